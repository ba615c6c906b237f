"""Vectors in a file give what vectors in memory give, and a corpus larger than memory is worked."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_info, threadpool_limits

from nightshift.chunks import Held, Spooled, cores, each
from nightshift.clustering import ClusterConfig, cluster, settle
from nightshift.ids import drawn, index_in, steady
from nightshift.nearest import Cells, unit


def cloud(count: int, seed: int = 1) -> np.ndarray:
    """Five groups of unit vectors."""
    random = np.random.default_rng(seed)
    ends = np.eye(8, dtype=np.float32)[random.integers(5, size=count)]
    return unit(ends + random.normal(0, 0.2, ends.shape)).astype(np.float32)


def threads() -> list[int]:
    return [one["num_threads"] for one in threadpool_info()]


def test_vectors_in_a_file_are_those_that_were_put_there() -> None:
    vectors = cloud(1000)
    spooled = Spooled(vectors[start : start + 300] for start in range(0, 1000, 300))
    assert (len(spooled), spooled.width) == (1000, 8)
    assert [len(one) for one in spooled.chunks(400)] == [400, 400, 200]
    assert np.array_equal(np.concatenate([*spooled.chunks(400)]), vectors)
    rows = np.array([999, 0, 500, 0])
    assert np.array_equal(spooled.take(rows), vectors[rows])
    assert len(Spooled([])) == 0


def test_clusters_of_vectors_in_a_file_are_those_of_vectors_in_memory() -> None:
    vectors, config = cloud(3000), ClusterConfig(k=5, minibatch_above=1000)
    one, two = cluster(vectors, config), cluster(Spooled([vectors]), config)
    assert np.array_equal(one.places, two.places)
    assert np.array_equal(one.distances, two.distances)
    assert one.cells.centroids.tobytes() == two.cells.centroids.tobytes()
    assert one.figures == two.figures


def test_a_round_over_chunks_finds_the_means_of_all() -> None:
    class Small(Held):
        def chunks(self, rows: int = 7):
            yield from super().chunks(min(rows, 7))

    vectors = np.array([[0, 1], [0, 3], [4, 0], [6, 0], [8, 0]] * 4, np.float32)
    cells = settle(Small(vectors), Cells.of(np.array([[0, 2.5], [5, 0]], np.float32)))
    assert cells.centroids.tolist() == [[0, 2], [6, 0]]


def test_a_large_corpus_is_clustered_by_a_sample_and_assigned_whole() -> None:
    vectors = cloud(5000)
    whole = cluster(vectors, ClusterConfig(k=5))
    by_some = cluster(vectors, ClusterConfig(k=5, minibatch_above=1000))
    near = unit(whole.cells.centroids) @ unit(by_some.cells.centroids).T
    assert (near.max(1) > 0.995).all()
    assert len(by_some.places) == 5000


def test_chunks_come_back_in_order_and_few_are_in_memory_at_once() -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def made():
        nonlocal alive, most
        for number in range(50):
            with lock:
                alive += 1
                most = max(most, alive)
            yield np.array([number])

    def work(chunk: np.ndarray) -> int:
        return int(chunk[0]) ** 2

    found: list[int] = []
    for one in each(work, made()):
        found.append(one)
        with lock:
            alive -= 1
    assert found == [number**2 for number in range(50)]
    assert most <= cores() + 1


def test_work_that_has_threads_of_its_own_leaves_those_of_others_alone() -> None:
    with threadpool_limits(2):
        before = threads()
        assert [threads() for _ in each(int, ["1", "2", "3"], 2)] == [before] * 3
        assert {one for found in each(int, ["1", "2"]) for one in threads()} == {1}
        assert threads() == before


def test_a_sample_of_a_growing_corpus_stays_the_same_but_for_its_share() -> None:
    before, after = steady(100_000, 10_000), steady(101_000, 10_000)
    assert abs(len(before) - 10_000) < 300
    kept = np.isin(after[after < 100_000], before)
    assert kept.all()  # a smaller share of each row's own chance
    assert np.isin(before, after).mean() > 0.98
    assert steady(5, 10).tolist() == [0, 1, 2, 3, 4]
    # Spread evenly, whatever the rows' numbers have in common.
    assert [abs((before % 7 == rest).mean() - 1 / 7) < 0.02 for rest in range(7)] == [True] * 7


def test_documents_are_drawn_in_the_order_of_their_ids() -> None:
    ids = pa.array(["d", "a", "c", "b"])
    assert drawn(ids, 9).to_pylist() == ["a", "b", "c", "d"]
    assert len(drawn(ids, 2)) == 2
    assert index_in(pa.array(["b", "x"]), ids).tolist() == [3, -1]


def test_few_are_found_among_many_where_they_first_stand() -> None:
    many = pa.array(["c", None, "a", "c", "b", "a", "d", "e", "f", "g"], pa.string())
    few = pa.array(["a", "x"])
    assert index_in(few, many).tolist() == [2, -1]
    # As many as are looked for the other way round.
    more = pa.concat_arrays([few, pa.array(["a", "c", None, "g"], pa.string())])
    assert index_in(more, many).tolist() == [2, -1, 2, 0, 1, 9]
    assert index_in(pa.array([], pa.string()), many).tolist() == []
