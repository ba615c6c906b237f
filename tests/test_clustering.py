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
    identify,
    keywords,
    silhouette,
    stop_words,
    terms,
)
from nightshift.nearest import nearest_centroids, unit


def blobs(k: int, size: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around k directions, one direction after the other."""
    random = np.random.default_rng(seed)
    centres = np.repeat(np.eye(16)[:k], size, axis=0)
    return unit(centres + 0.05 * random.normal(size=centres.shape)).astype(np.float32)


def config(**options: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(options)


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


def test_chunks_change_no_answer() -> None:
    vectors = blobs(5, 20)
    whole, parts = (nearest_centroids(vectors, vectors[::20], size) for size in (1000, 7))
    assert np.array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


def test_unit_vectors_have_length_one_and_zero_stays() -> None:
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


# --- grouping -------------------------------------------------------------------------------


def test_clear_groups_are_found_and_counted_by_themselves() -> None:
    found = cluster(blobs(6, 20), config())
    assert sizes(found.places) == [20] * 6
    assert found.silhouette is not None
    assert found.silhouette > 0.7
    assert all(len(set(found.places[start : start + 20])) == 1 for start in range(0, 120, 20))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_declared_k_is_kept(k: int) -> None:
    found = cluster(blobs(3, 20), config(k=k))
    assert len(found.centroids) == len(set(found.places.tolist())) == k
    assert (found.silhouette is None) == (k == 1)


def test_there_are_never_more_clusters_than_different_documents() -> None:
    assert len(cluster(blobs(3, 1), config(k=8)).centroids) == 3
    twice = np.repeat(blobs(4, 1), 5, axis=0)
    assert sizes(cluster(twice, config(k=8)).places) == [5] * 4


@pytest.mark.parametrize("start", [None, np.eye(16, dtype=np.float32)[:3]])
@pytest.mark.parametrize("k", ["auto", 3])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_equal_documents_are_one_cluster(rows: int, k: Any, start: np.ndarray | None) -> None:
    for vectors in (np.repeat(blobs(1, 1), rows, axis=0), np.zeros((rows, 16), np.float32)):
        found = cluster(vectors, config(k=k), start)
        assert found.places.tolist() == [0] * rows
        assert found.silhouette is None
        assert found.distances.max() < 1e-3


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
@pytest.mark.parametrize("start", [None, np.eye(16, dtype=np.float32)])
def test_a_handful_of_documents_is_grouped_without_complaint(
    rows: int, start: np.ndarray | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster(blobs(rows, 1), config(), start)
    assert 1 <= len(found.centroids) <= max(1, rows // 2)
    assert len(set(found.places.tolist())) == len(found.centroids)


@pytest.mark.parametrize("k", ["auto", 3, 5, 8])
@pytest.mark.parametrize("minibatch", [False, True])
def test_no_cluster_is_empty_and_every_document_is_at_its_nearest(minibatch: bool, k: Any) -> None:
    vectors = blobs(5, 250)
    start = np.concatenate([vectors[::250], -vectors[:2]])  # two that nothing is near
    settled = config(k=k, minibatch_above=1000 if minibatch else 10_000)
    for given in (None, start):
        found = cluster(vectors, settled, given)
        assert sizes(found.places)[0] > 0
        assert len(found.centroids) == found.places.max() + 1
        assert np.array_equal(found.places, nearest_centroids(vectors, found.centroids)[0])
        assert found.centroids.dtype == np.float32


def test_many_documents_are_fitted_in_small_batches() -> None:
    vectors = blobs(5, 250)
    found = cluster(vectors, config(k=5, minibatch_above=1000))
    assert sizes(found.places) == [250] * 5


@pytest.mark.parametrize("minibatch", [1000, 10_000])
def test_the_same_input_gives_the_same_clusters(minibatch: int) -> None:
    vectors = blobs(7, 180)
    one, two = (cluster(vectors, config(minibatch_above=minibatch)) for _ in range(2))
    assert np.array_equal(one.centroids, two.centroids)
    assert np.array_equal(one.places, two.places)
    assert one.silhouette == two.silhouette


def test_starting_from_last_night_keeps_every_place() -> None:
    vectors = blobs(6, 20)
    start = vectors[[100, 20, 60, 0, 80, 40]]
    found = cluster(vectors, config(), start)
    assert found.places[::20].tolist() == [3, 1, 5, 2, 4, 0]


def test_a_new_topic_gets_a_place_after_the_old_ones() -> None:
    vectors = blobs(6, 20)
    found = cluster(vectors, config(), vectors[[0, 20, 40, 60, 80]])
    assert found.places[::20].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_emptiest_of_last_night_gives_way_where_k_is_smaller() -> None:
    vectors = np.concatenate([blobs(3, 20), blobs(4, 3)[-3:]])
    found = cluster(vectors, config(k=3), vectors[[60, 0, 20, 40]])
    assert found.places[:60:20].tolist() == [0, 1, 2]


# --- how many -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, 6, 9])
def test_auto_chooses_the_number_of_clear_groups(k: int) -> None:
    assert choose_k(blobs(k, 30), config(k_max=12), None) in (k - 1, k, k + 1)


def test_auto_stays_at_last_nights_number_unless_another_is_clearly_better() -> None:
    vectors = blobs(6, 30)
    assert choose_k(vectors, config(), 6) == 6
    assert choose_k(vectors, config(), 5) == 6
    shapeless = unit(np.random.default_rng(0).normal(size=(400, 16))).astype(np.float32)
    assert choose_k(shapeless, config(), 9) in (9, 10, 11)


def test_auto_stays_between_its_bounds() -> None:
    vectors = blobs(8, 20)
    assert choose_k(vectors, config(k_min=2, k_max=5), None) <= 5
    assert choose_k(vectors, config(k_min=10, k_max=12), None) >= 10
    assert choose_k(vectors, config(k_max=5), 9) == 5


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


# --- identity -------------------------------------------------------------------------------

TWELVE = [f"d{number:02d}" for number in range(12)]
# Last night: four documents each in c-0001 and c-0002, and two in c-0004; d10 and d11 are new.
BEFORE = {
    **dict.fromkeys(TWELVE[0:4], "c-0001"),
    **dict.fromkeys(TWELVE[4:8], "c-0002"),
    **dict.fromkeys(TWELVE[8:10], "c-0004"),
}
EVER = ["c-0001", "c-0002", "c-0003", "c-0004"]


def places(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


def test_clusters_that_share_their_documents_continue_in_whatever_order_they_come() -> None:
    tonight = places(2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 0)
    found = identify(tonight, 3, TWELVE, BEFORE, EVER)
    assert found.ids == ["c-0002", "c-0004", "c-0001"]
    assert found.events == ["continued"] * 3
    assert found.ended == []


def test_a_new_group_is_born_under_an_id_never_given_before() -> None:
    tonight = places(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3)
    found = identify(tonight, 4, TWELVE, BEFORE, [*EVER, "c-0007"])
    assert found.ids == ["c-0001", "c-0002", "c-0004", "c-0008"]
    assert found.events == ["continued", "continued", "continued", "born"]


def test_a_cluster_whose_documents_went_elsewhere_has_ended_and_its_id_stays_unused() -> None:
    # The two documents of c-0004 joined those of c-0002; d10 and d11 are a new group.
    tonight = places(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2)
    found = identify(tonight, 3, TWELVE, BEFORE, EVER)
    assert found.ids == ["c-0001", "c-0002", "c-0005"]
    assert found.ended == ["c-0004"]
    # The next night the group falls apart, and neither c-0004 nor c-0003 comes back.
    after = dict(zip(TWELVE, (found.ids[place] for place in tonight), strict=True))
    later = places(0, 0, 0, 0, 1, 1, 1, 1, 3, 3, 2, 2)
    again = identify(later, 4, TWELVE, after, [*EVER, *found.ids])
    assert again.ids == ["c-0001", "c-0002", "c-0005", "c-0006"]


def test_of_a_split_cluster_the_larger_part_keeps_the_id() -> None:
    tonight = places(1, 0, 0, 0, 2, 2, 2, 2, 3, 3, 3, 3)
    found = identify(tonight, 4, TWELVE, BEFORE, EVER)
    assert found.ids == ["c-0001", "c-0005", "c-0002", "c-0004"]
    assert found.events == ["continued", "born", "continued", "continued"]


def test_half_of_the_smaller_clusters_documents_is_a_continuation() -> None:
    # c-0001 x place 0: 2 of min(3, 4); c-0002 x place 1: 2 of 3; c-0004 x place 2: 2 of 2.
    tonight = places(0, 0, 1, 2, 0, 1, 1, 2, 2, 2, 0, 1)
    found = identify(tonight, 3, TWELVE, BEFORE, EVER)
    assert found.ids == ["c-0001", "c-0002", "c-0004"]


def test_less_than_half_of_the_smaller_clusters_documents_is_none() -> None:
    # The three documents of c-0001 are spread over three places: one is less than half of three.
    before = {name: "c-0001" if name < "d03" else "c-0002" for name in TWELVE}
    tonight = places(0, 1, 2, 0, 0, 1, 1, 2, 2, 2, 2, 2)
    found = identify(tonight, 3, TWELVE, before, EVER)
    assert found.ids == ["c-0005", "c-0006", "c-0002"]
    assert found.ended == ["c-0001"]


def test_the_best_matching_is_that_of_all_clusters_together() -> None:
    # Shared: place 0 with c-0001 3 and c-0002 4; place 1 with c-0002 3. Place 0 alone would take
    # c-0002 and leave 4; together 3 + 3 is more.
    before = {name: "c-0001" if name < "d03" else "c-0002" for name in TWELVE[:10]}
    tonight = places(0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    found = identify(tonight, 2, TWELVE, before, EVER)
    assert found.ids == ["c-0001", "c-0002"]
    assert found.events == ["continued", "continued"]


def test_on_a_first_night_every_cluster_is_born() -> None:
    found = identify(places(0, 1, 1), 2, TWELVE[:3], {}, [])
    assert (found.ids, found.events, found.ended) == (["c-0001", "c-0002"], ["born"] * 2, [])


def test_when_every_document_is_new_every_old_cluster_has_ended() -> None:
    found = identify(places(0, 1), 2, ["new1", "new2"], BEFORE, EVER)
    assert found.ids == ["c-0005", "c-0006"]
    assert found.ended == ["c-0001", "c-0002", "c-0004"]


def test_ids_grow_past_four_digits() -> None:
    assert identify(places(0), 1, ["x"], {}, ["c-9999"]).ids == ["c-10000"]


# --- carrying over --------------------------------------------------------------------------


def test_last_nights_clusters_are_where_their_documents_are_tonight() -> None:
    vectors = np.array([[1, 0], [3, 0], [0, 2], [9, 9]], np.float32)
    ids, centroids = carried_over(
        vectors, ["a", "b", "c", "new"], {"c": "c-0001", "a": "c-0002", "b": "c-0002", "gone": "x"}
    )
    assert ids == ["c-0001", "c-0002"]
    assert centroids is not None
    assert centroids.tolist() == [[0, 2], [2, 0]]
    assert centroids.dtype == np.float32


def test_without_a_last_night_nothing_is_carried_over() -> None:
    vectors = np.ones((2, 3), np.float32)
    assert carried_over(vectors, ["a", "b"], {}) == ([], None)
    assert carried_over(vectors, ["a", "b"], {"gone": "c-0001"}) == ([], None)


# --- names ----------------------------------------------------------------------------------


def test_keywords_tell_a_cluster_from_the_others_in_english_and_chinese() -> None:
    texts = [
        "The cat purrs, and every pet sleeps",
        "My cat and his mouse: a pet story",
        "The dog barks at a pet",
        "A dog runs, a dog is a pet",
        "股票市场今天上涨",
        "我们的股票下跌",
    ]
    cats, dogs, shares = keywords(texts, [0, 0, 1, 1, 2, 2], 3, 3)
    assert cats[0] == "cat"
    assert dogs[0] == "dog"
    assert "股票" in "".join(shares)
    assert len(cats) == len(dogs) == 3
    assert not {"the", "and", "my", "我们", "的"} & {*cats, *dogs, *shares}


def test_keywords_are_scored_by_hand() -> None:
    # Documents with a word: place 0 apple 2, fruit 1; place 1 pear 2, fruit 2: 7 in all, 3.5 each.
    # Place 0: apple 2/3 ln(1 + 3.5/2) = 0.674, fruit 1/3 ln(1 + 3.5/3) = 0.258.
    # Place 1: pear 2/4 ln(1 + 3.5/2) = 0.506, fruit 2/4 ln(1 + 3.5/3) = 0.387.
    texts = ["apple fruit", "apple", "fruit pear", "fruit pear pear"]
    assert keywords(texts, [0, 0, 1, 1], 2, 5) == [["apple", "fruit"], ["pear", "fruit"]]


def test_keywords_of_equal_weight_are_in_the_order_of_the_alphabet() -> None:
    assert keywords(["zebra apple mango"], [0], 1, 2) == [["apple", "mango"]]


def test_a_cluster_without_words_has_no_keywords() -> None:
    assert keywords(["!!!", "word"], [0, 1], 3, 5) == [[], ["word"], []]
    assert keywords([], [], 2, 5) == [[], []]


def test_terms_leave_out_what_names_nothing() -> None:
    assert terms("The 2026 report, a 3rd of it's 12.5 on AI by GPUs") == ["report", "gpus"]
    assert terms("我们的股票在今天上涨") == ["股票", "上涨"]
    assert {"the", "我们"} <= stop_words()
