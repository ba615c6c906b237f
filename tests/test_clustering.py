"""Clusters: how many, who is in them, which of last night's they are, what they are called."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from nightshift.clustering import (
    ClusterConfig,
    carried_over,
    choose_k,
    cluster,
    quality,
    silhouette,
)
from nightshift.nearest import UNASSIGNED, Cells, nearest_centroids, unit


def blobs(k: int, size: int, seed: int = 0, spread: float = 0.05) -> np.ndarray:
    """Unit vectors around k directions, one direction after the other."""
    random = np.random.default_rng(seed)
    centres = np.repeat(np.eye(16)[:k], size, axis=0)
    return unit(centres + spread * random.normal(size=centres.shape)).astype(np.float32)


def config(**options: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"unassigned": 0, **options})


def sizes(places: np.ndarray) -> list[int]:
    return sorted(np.bincount(places).tolist())


# --- nearest --------------------------------------------------------------------------------


def test_a_document_belongs_to_the_nearest_centroid() -> None:
    vectors = np.array([[1, 0], [0, 1], [3, 4]], np.float32)
    places, distances = nearest_centroids(vectors, np.array([[0, 2], [1, 1]], np.float32))
    # (1, 0) is 1 from (1, 1); (0, 1) is 1 from both; (3, 4) is sqrt 13 from (0, 2) and (1, 1).
    assert places.tolist() == [1, 0, 0]
    assert distances.tolist() == pytest.approx([1, 1, 13**0.5])


def test_a_tied_document_goes_to_the_lower_place() -> None:
    same = np.array([[1, 0], [1, 0], [-1, 0]], np.float32)
    places, _ = nearest_centroids(np.array([[0, 1], [1, 0]], np.float32), same)
    assert places.tolist() == [0, 0]


def test_a_cluster_of_smaller_scale_reaches_less_far() -> None:
    centroids = np.array([[0, 0], [3, 0]], np.float32)
    line = np.array([[1, 0], [1.9, 0], [2.1, 0], [9, 0]], np.float32)
    # At half the scale the border is where x = 2 (3 - x), at 2.
    cells = Cells(centroids, np.array([1, 0.5], np.float32), radius=2.0)
    places, distances = cells.assign(line)
    assert places.tolist() == [0, 0, 1, -1]
    assert distances.tolist() == pytest.approx([1, 1.9, 1.8, 9])


def test_chunks_change_no_answer() -> None:
    vectors = blobs(5, 20)
    scales = np.linspace(0.5, 1, 5, dtype=np.float32)
    whole, parts = (nearest_centroids(vectors, vectors[::20], scales, size) for size in (1000, 7))
    assert np.array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


def test_unit_vectors_have_length_one_and_zero_stays() -> None:
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


# --- grouping -------------------------------------------------------------------------------


def test_clear_groups_are_found_and_counted_by_themselves() -> None:
    found = cluster(blobs(6, 20), config())
    assert sizes(found.places) == [20] * 6
    assert found.figures["silhouette"] > 0.7
    assert all(len(set(found.places[start : start + 20])) == 1 for start in range(0, 120, 20))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_declared_k_is_kept(k: int) -> None:
    found = cluster(blobs(3, 20), config(k=k))
    assert len(found.cells) == len(set(found.places.tolist())) == k
    assert (found.figures == {}) == (k == 1)


def test_there_are_never_more_clusters_than_different_documents() -> None:
    assert len(cluster(blobs(3, 1), config(k=8)).cells) == 3
    twice = np.repeat(blobs(4, 1), 5, axis=0)
    assert sizes(cluster(twice, config(k=8)).places) == [5] * 4


@pytest.mark.parametrize("start", [None, Cells.of(np.eye(16, dtype=np.float32)[:3])])
@pytest.mark.parametrize("k", ["auto", 3])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_equal_documents_are_one_cluster(rows: int, k: Any, start: Cells | None) -> None:
    for vectors in (np.repeat(blobs(1, 1), rows, axis=0), np.zeros((rows, 16), np.float32)):
        found = cluster(vectors, config(k=k), start)
        assert found.places.tolist() == [0] * rows
        assert found.figures == {}
        assert found.distances.max() < 1e-3


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
@pytest.mark.parametrize("start", [None, Cells.of(np.eye(16, dtype=np.float32))])
def test_a_handful_of_documents_is_grouped_without_complaint(
    rows: int, start: Cells | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster(blobs(rows, 1), config(), start)
    assert 1 <= len(found.cells) <= max(1, rows // 2)
    assert len(set(found.places.tolist())) == len(found.cells)


@pytest.mark.parametrize("k", ["auto", 3, 5, 8])
@pytest.mark.parametrize("minibatch", [False, True])
def test_no_cluster_is_empty_and_every_document_is_at_its_nearest(minibatch: bool, k: Any) -> None:
    vectors = blobs(5, 250)
    start = Cells.of(np.concatenate([vectors[::250], -vectors[:2]]))  # two that nothing is near
    settled = config(k=k, minibatch_above=1000 if minibatch else 10_000)
    for given in (None, start):
        found = cluster(vectors, settled, given)
        assert sizes(found.places)[0] > 0
        assert len(found.cells) == found.places.max() + 1
        assert np.array_equal(found.places, nearest_centroids(vectors, found.cells.centroids)[0])
        assert found.cells.centroids.dtype == np.float32


def test_many_documents_are_fitted_in_small_batches() -> None:
    vectors = blobs(5, 250)
    found = cluster(vectors, config(k=5, minibatch_above=1000))
    assert sizes(found.places) == [250] * 5


@pytest.mark.parametrize("minibatch", [1000, 10_000])
def test_the_same_input_gives_the_same_clusters(minibatch: int) -> None:
    vectors = blobs(7, 180)
    one, two = (cluster(vectors, config(minibatch_above=minibatch)) for _ in range(2))
    assert np.array_equal(one.cells.centroids, two.cells.centroids)
    assert np.array_equal(one.places, two.places)
    assert one.figures == two.figures


def test_starting_from_last_night_keeps_every_place() -> None:
    vectors = blobs(6, 20)
    start = Cells.of(vectors[[100, 20, 60, 0, 80, 40]])
    found = cluster(vectors, config(), start)
    assert found.places[::20].tolist() == [3, 1, 5, 2, 4, 0]


def test_two_topics_in_one_cluster_are_parted() -> None:
    vectors = blobs(6, 20)
    found = cluster(vectors, config(), Cells.of(vectors[[0, 20, 40, 60, 80]]))
    assert sizes(found.places) == [20] * 6


def test_two_clusters_of_one_topic_are_merged() -> None:
    vectors = blobs(6, 20)
    found = cluster(vectors, config(), Cells.of(vectors[[0, 20, 40, 60, 80, 100, 1]]))
    assert sizes(found.places) == [20] * 6
    assert found.places[:120:20].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_declared_number_neither_parts_nor_merges() -> None:
    vectors = blobs(6, 20)
    for rows in ([0, 20, 40, 60, 80], [0, 20, 40, 60, 80, 100, 1]):
        found = cluster(vectors, config(k=len(rows)), Cells.of(vectors[rows]))
        assert len(found.cells) == len(rows)


def test_a_topic_that_only_tonight_has_is_born_after_the_old_ones() -> None:
    vectors = np.concatenate([blobs(5, 60), blobs(5, 10, seed=1), blobs(6, 30)[-30:]])
    fresh = np.arange(len(vectors)) >= 300
    start, topics = Cells.of(vectors[:300:60]), [np.arange(350, 380)]
    assert len(cluster(vectors, config(k=5), start, fresh, topics).cells) == 5
    found = cluster(vectors, config(), start, fresh, topics)
    assert len(found.cells) == 6
    assert (found.places[-30:] == 5).all()
    assert found.places[:300:60].tolist() == [0, 1, 2, 3, 4]


def test_the_farthest_of_the_known_are_unassigned_and_whoever_is_farther_tonight() -> None:
    # Of 100 known documents 5 stand apart; of the two of tonight one is near, one far.
    known = np.concatenate([blobs(5, 19), -blobs(5, 1)])
    vectors = np.concatenate([known, blobs(1, 1, seed=3), -blobs(1, 1, seed=3)])
    fresh = np.arange(102) >= 100
    start = Cells.of(np.eye(16, dtype=np.float32)[:5])
    found = cluster(vectors, config(k=5, unassigned=0.05), start, fresh)
    assert np.flatnonzero(found.places < 0).tolist() == [95, 96, 97, 98, 99, 101]
    assert np.array_equal(found.places, found.cells.assign(vectors)[0])
    everyone = cluster(vectors, config(k=5), start, fresh)
    assert (everyone.places >= 0).all()
    assert everyone.cells.radius == float("inf")


def test_few_documents_are_all_assigned() -> None:
    found = cluster(blobs(3, 8), config(k=3, unassigned=0.03))
    assert (found.places >= 0).all()


def test_the_emptiest_of_last_night_gives_way_where_k_is_smaller() -> None:
    vectors = np.concatenate([blobs(3, 20), blobs(4, 3)[-3:]])
    found = cluster(vectors, config(k=3), Cells.of(vectors[[60, 0, 20, 40]]))
    assert found.places[:60:20].tolist() == [0, 1, 2]


# --- how many -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, 6, 9])
def test_auto_chooses_the_number_of_clear_groups(k: int) -> None:
    assert choose_k(blobs(k, 30), config(k_max=12)) in (k - 1, k, k + 1)


def test_auto_stays_at_last_nights_number_unless_another_is_clearly_better() -> None:
    shapeless = unit(np.random.default_rng(0).normal(size=(400, 16))).astype(np.float32)
    assert len(cluster(shapeless, config(), Cells.of(shapeless[:9])).cells) == 9


def test_auto_stays_between_its_bounds() -> None:
    vectors = blobs(8, 20)
    assert choose_k(vectors, config(k_min=2, k_max=5)) <= 5
    assert choose_k(vectors, config(k_min=10, k_max=12)) >= 10
    start = Cells.of(vectors[::18])
    assert len(cluster(vectors, config(k_max=5), start).cells) == 5


def test_a_silhouette_needs_two_clusters_and_a_document_to_spare() -> None:
    vectors = blobs(2, 2)
    assert silhouette(vectors, np.array([0, 0, 0, 0]), 1) is None
    assert silhouette(vectors, np.array([0, 1, 2, 3]), 1) is None
    found = silhouette(vectors, np.array([0, 0, 1, 1]), 1)
    assert found is not None
    assert found > 0.8


@pytest.mark.parametrize("given", [{"k": 0}, {"k": "some"}, {"k_min": 0}, {"kk": 3}])
def test_a_number_of_clusters_out_of_bounds_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**given)


# --- carrying over --------------------------------------------------------------------------


def test_last_nights_clusters_are_where_their_documents_are_tonight() -> None:
    vectors = np.array([[1, 0], [3, 0], [0, 2], [9, 9], [7, 7]], np.float32)
    names = [UNASSIGNED, "c-0002", "x", "c-0001"]
    ids, centroids = carried_over(vectors, np.array([1, 1, 3, 0, -1]), names)
    assert ids == ["c-0001", "c-0002"]
    assert centroids is not None
    assert centroids.tolist() == [[0, 2], [2, 0]]
    assert centroids.dtype == np.float32


def test_without_a_last_night_nothing_is_carried_over() -> None:
    vectors = np.ones((2, 3), np.float32)
    assert carried_over(vectors, np.array([-1, -1]), []) == ([], None)
    assert carried_over(vectors, np.array([-1, -1]), ["c-0001"]) == ([], None)


def test_clusters_of_two_far_groups_are_good_and_there_again_in_either_half() -> None:
    random = np.random.default_rng(0)
    ends = np.array([[1.0, 0.0], [0.0, 1.0]])[np.repeat([0, 1], 50)]
    vectors = unit((ends + random.normal(0, 0.02, ends.shape)).astype(np.float32))
    good = quality(vectors, np.repeat([0, 1], 50), 1)
    assert good["stability"] == 1.0
    assert good["silhouette"] > 0.9
    assert good["davies_bouldin"] < 0.1
    # Split across both groups, the same documents are bad clusters.
    bad = quality(vectors, np.tile([0, 1], 50), 1)
    assert bad["davies_bouldin"] > 5
    assert bad["silhouette"] < 0.1


def test_what_is_far_is_told_by_documents_that_the_model_has_not_learned_from() -> None:
    # A model draws together what it learns: those it has not seen lie about twice as far.
    tight, wide = blobs(5, 400, spread=0.02), blobs(5, 40, spread=0.05, seed=1)
    vectors = np.concatenate([tight, wide])
    unseen = np.arange(len(vectors)) >= len(tight)
    start = Cells.of(vectors[:2000:400])
    blind = cluster(vectors, config(k=5, unassigned=0.03), start)
    assert (blind.places[unseen] < 0).mean() > 0.2
    told = cluster(vectors, config(k=5, unassigned=0.03), start, unseen=unseen)
    assert (told.places[unseen] < 0).mean() == 0.03
    assert (told.places[~unseen] < 0).mean() == 0
    # Too few tell nothing.
    few = unseen & (np.arange(len(vectors)) < len(tight) + 50)
    assert cluster(vectors, config(k=5, unassigned=0.03), start, unseen=few).cells.radius == (
        blind.cells.radius
    )
