"""Topics that only tonight has: found, apart from one another, and not where nothing is new."""

from __future__ import annotations

import numpy as np
import pytest

from nightshift.births import LEAST, Newborn, find_births, novelty, with_newborn
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


def test_more_of_the_same_is_no_birth() -> None:
    for seed in range(1, 11):
        assert find_births(of((0, 20), (1, 20), (2, 20), seed=seed), KNOWN, CELLS, seed) == []


def test_a_known_topic_that_grows_fast_is_no_birth() -> None:
    assert find_births(of((0, 150), (1, 5), seed=1), KNOWN, CELLS, 1) == []


def test_a_topic_that_only_tonight_has_is_found_with_its_documents() -> None:
    [born] = find_births(of((0, 20), (1, 20), (7, 30), seed=1), KNOWN, CELLS, 1)
    assert born.documents == 30
    assert float(unit(born.centroid[None])[0, 7]) > 0.98
    places, _ = with_newborn(CELLS, [born]).assign(np.concatenate([KNOWN, around(7, 40, 5)]))
    assert (places[:600] < 3).all()
    assert (places[600:] == 3).all()


def test_two_new_topics_are_two_births() -> None:
    fresh = of((0, 20), (5, 40), (9, 25), seed=1)
    born = find_births(fresh, KNOWN, CELLS, 1)
    assert [one.documents for one in born] == [40, 25]


def test_two_halves_nearer_than_clusters_are_to_each_other_are_one_topic() -> None:
    # Clusters stand at a cosine of 0.5 to their nearest; the halves at 0.9.
    known = [np.eye(WIDTH)[0], np.eye(WIDTH)[0] / 2 + np.eye(WIDTH)[1] * 3**0.5 / 2]
    cells = Cells.of(np.stack(known).astype(np.float32))
    random = np.random.default_rng(3)
    old = unit(np.repeat(np.stack(known), 200, 0) + 0.03 * random.normal(size=(400, WIDTH)))
    one = np.eye(WIDTH)[5]
    two = 0.9 * one + 0.19**0.5 * np.eye(WIDTH)[6]
    new = unit(np.repeat(np.stack([one, two]), 30, 0) + 0.03 * random.normal(size=(60, WIDTH)))
    [born] = find_births(new.astype(np.float32), old.astype(np.float32), cells, 1)
    assert born.documents == 60


@pytest.mark.parametrize("count", [0, 1, LEAST - 1])
def test_a_handful_of_strange_documents_is_no_topic(count: int) -> None:
    fresh = np.concatenate([around(0, 20, 1), around(7, count, 1)])
    assert find_births(fresh, KNOWN, CELLS, 1) == []


def test_without_documents_of_either_side_nothing_is_born() -> None:
    none = KNOWN[:0]
    assert find_births(none, KNOWN, CELLS, 1) == []
    assert find_births(KNOWN, none, CELLS, 1) == []


def test_the_same_seed_finds_the_same() -> None:
    fresh = of((0, 20), (7, 30), seed=1)
    one, two = (find_births(fresh, KNOWN, CELLS, 4) for _ in range(2))
    assert np.array_equal(one[0].centroid, two[0].centroid)
    assert one[0].scale == two[0].scale


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
