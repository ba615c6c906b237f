"""Topics that only tonight has: found, apart from one another, and not where nothing is new."""

from __future__ import annotations

import numpy as np
import pytest

from nightshift.births import LEAST, Newborn, find_newborn, new_topics, novelty, with_newborn
from nightshift.nearest import Cells, unit

WIDTH = 12


def around(direction: int, count: int, seed: int, spread: float = 0.12) -> np.ndarray:
    """Unit vectors round one axis."""
    random = np.random.default_rng([seed, direction])
    apart = spread * random.normal(size=(count, WIDTH))
    return unit(np.eye(WIDTH)[direction] + apart).astype(np.float32)


def of(*parts: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.concatenate([around(direction, count, seed) for direction, count in parts])


KNOWN = of((0, 200), (1, 200), (2, 200))
CELLS = Cells.of(np.eye(WIDTH, dtype=np.float32)[:3])


NONE = KNOWN[:0]


def topics(
    fresh: np.ndarray, known: np.ndarray = KNOWN, loose: np.ndarray = NONE, seed: int = 1
) -> list[np.ndarray]:
    return new_topics(fresh, loose, known, CELLS.centroids, seed)


def newborn(fresh: np.ndarray) -> list[Newborn]:
    """Of tonight's documents, which stand behind the known ones."""
    rows = [len(KNOWN) + one for one in topics(fresh)]
    tonight = np.arange(len(KNOWN) + len(fresh)) >= len(KNOWN)
    return find_newborn(rows, np.concatenate([KNOWN, fresh]), tonight, CELLS)


def test_more_of_the_same_is_no_birth() -> None:
    for seed in range(1, 11):
        assert topics(of((0, 20), (1, 20), (2, 20), seed=seed), seed=seed) == []


def test_a_known_topic_that_grows_fast_is_no_birth() -> None:
    assert topics(of((0, 150), (1, 5), seed=1)) == []


def test_a_topic_that_only_tonight_has_is_found_with_its_documents() -> None:
    fresh = of((0, 20), (1, 20), (7, 30), seed=1)
    [rows] = topics(fresh)
    assert rows.tolist() == list(range(40, 70))
    [born] = newborn(fresh)
    assert born.documents == 30
    assert float(unit(born.centroid[None])[0, 7]) > 0.98
    places, _ = with_newborn(CELLS, [born]).assign(np.concatenate([KNOWN, around(7, 40, 5)]))
    assert (places[:600] < 3).all()
    assert (places[600:] == 3).all()


def test_a_topic_that_comes_little_by_little_is_found_once_its_documents_are_a_group() -> None:
    # Three a night, which are too few to be new tonight; the earlier ones are in no cluster.
    tonight = of((0, 20), (1, 20), (7, 3))
    strange = np.concatenate([around(direction, 1, 3) for direction in (4, 5, 6, 9, 10)])
    few = np.concatenate([strange, around(7, LEAST - 4, 4)])
    assert topics(tonight, loose=few) == []
    enough = np.concatenate([strange, around(7, 25, 4)])
    [rows] = topics(tonight, loose=enough)
    # Behind tonight's 43 and the five strange ones; half of a group is nearer than usual.
    assert set(range(48, 73)) <= {*rows.tolist()} <= {40, 41, 42, *range(48, 73)}
    # A group that stands where a cluster does is no topic, wherever its documents were.
    assert topics(tonight, loose=around(0, 30, 5)) == []


def test_two_new_topics_are_two_births() -> None:
    fresh = of((0, 20), (5, 40), (9, 25), seed=1)
    assert [rows.tolist() for rows in topics(fresh)] == [[*range(20, 60)], [*range(60, 85)]]
    assert [one.documents for one in newborn(fresh)] == [40, 25]


def test_a_topic_that_the_vectors_cannot_tell_apart_has_no_cell() -> None:
    # Called a topic by others, but half of what stands there is known.
    vectors = np.concatenate([KNOWN, of((0, 20), (1, 20))])
    tonight = np.arange(len(vectors)) >= len(KNOWN)
    rows = [np.arange(len(KNOWN), len(KNOWN) + 20)]
    assert find_newborn(rows, vectors, tonight, CELLS) == []


def test_two_halves_nearer_than_clusters_are_to_each_other_are_one_topic() -> None:
    # Clusters stand at a cosine of 0.5 to their nearest; the halves at 0.9.
    known = [np.eye(WIDTH)[0], np.eye(WIDTH)[0] / 2 + np.eye(WIDTH)[1] * 3**0.5 / 2]
    centroids = np.stack(known).astype(np.float32)
    random = np.random.default_rng(3)
    old = unit(np.repeat(np.stack(known), 200, 0) + 0.03 * random.normal(size=(400, WIDTH)))
    one = np.eye(WIDTH)[5]
    two = 0.9 * one + 0.19**0.5 * np.eye(WIDTH)[6]
    new = unit(np.repeat(np.stack([one, two]), 30, 0) + 0.03 * random.normal(size=(60, WIDTH)))
    [rows] = new_topics(new.astype(np.float32), NONE, old.astype(np.float32), centroids, 1)
    assert len(rows) == 60


@pytest.mark.parametrize("count", [0, 1, LEAST - 1])
def test_a_handful_of_strange_documents_is_no_topic(count: int) -> None:
    fresh = np.concatenate([around(0, 20, 1), around(7, count, 1)])
    assert topics(fresh) == []


def test_without_documents_of_either_side_nothing_is_born() -> None:
    assert topics(NONE) == []
    assert topics(KNOWN, NONE) == []
    assert find_newborn([], KNOWN, np.zeros(len(KNOWN), bool), CELLS) == []


def test_the_same_seed_finds_the_same() -> None:
    fresh = of((0, 20), (7, 30), seed=1)
    one, two = (topics(fresh, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_where_both_sides_are_mixed_half_of_the_neighbours_are_tonights() -> None:
    random = np.random.default_rng(2)
    mixed = novelty(around(0, 400, 1), around(0, 900, 2), random)
    assert mixed.mean() == pytest.approx(0.5, abs=0.03)
    alone = novelty(np.concatenate([around(0, 100, 1), around(7, 40, 1)]), KNOWN, random)
    assert (alone[100:] == 1).all()


def test_a_newborn_stands_behind_the_old_clusters_with_its_own_scale() -> None:
    born = Newborn(np.full(WIDTH, 0.5, np.float32), 0.7, 12)
    cells = with_newborn(Cells(CELLS.centroids, CELLS.scales, 1.5), [born])
    assert cells.scales.tolist() == pytest.approx([1, 1, 1, 0.7])
    assert (len(cells), cells.radius) == (4, 1.5)
    assert with_newborn(CELLS, []) is CELLS
