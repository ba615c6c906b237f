"""What a night changed and what deserves a look, counted by hand on a few rows of real tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightshift.atlas import BUDGET, atlas, bounded, script_json
from nightshift.changes import by_file, cluster_events, label_changes, place_all, standouts
from nightshift.corpus import Assigned
from nightshift.pictures import Point
from nightshift.similar import followed, nearest, ranked, readers_of, recall_at
from nightshift.tables import SCHEMAS, Lake, rows_of


def put(lake: Lake, table: str, night: str, found: list[dict[str, Any]]) -> None:
    names = [one for one in SCHEMAS[table].names if one != "night"]
    whole = [{name: row.get(name) for name in names} for row in found]
    lake.replace(table, night, rows_of(table, whole))


def said(doc_id: str, label: str, model: str, margin: float = 0.5) -> dict[str, Any]:
    return {"doc_id": doc_id, "label": label, "probability": 0.9, "margin": margin,
            "abstained": False, "model_id": model}  # fmt: skip


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Five documents by one model; on the second night two more, and another model for all."""
    found = Lake(str(tmp_path), "p")
    old = [{"doc_id": f"d{n}", "text": "t", "source_file": "a.csv"} for n in range(5)]
    new = [{"doc_id": "e1", "text": "t", "source_file": "b.csv", "label": "good"},
           {"doc_id": "e2", "text": "t", "source_file": "c.csv"},
           {"doc_id": "e3", "text": "t", "source_file": "c.csv"}]  # fmt: skip
    put(found, "documents", "n1", old)
    put(found, "documents", "n2", new)
    put(found, "predictions", "n1", [said(f"d{n}", "good", "m1") for n in range(5)])
    after = ["good", "bad", "bad", "bad", "odd"]
    put(found, "predictions", "n2", [
        *(said(f"d{n}", label, "m2") for n, label in enumerate(after)),
        said("e1", "bad", "m2", 0.3), said("e2", "bad", "m2", 0.1), said("e3", "good", "m2", 0.2),
    ])  # fmt: skip
    return found


def assigned(where: dict[str, tuple[str, float]]) -> Assigned:
    names = sorted({cluster for cluster, _ in where.values()})
    places = [names.index(cluster) for cluster, _ in where.values()]
    far = np.array([distance for _, distance in where.values()], np.float32)
    return Assigned(pa.array(where, pa.string()), names, np.array(places, np.int32), far)


def test_documents_are_counted_by_file_and_by_label_given_or_predicted(lake: Lake) -> None:
    found = by_file(lake, "n2", "m2")
    assert [(one["file"], one["documents"], one["labelled"]) for one in found["files"]] == [
        ("c.csv", 2, 0),
        ("b.csv", 1, 1),
    ]
    assert found["files"][0]["labels"] == [["bad", 1], ["good", 1]]
    # Its own label counts, not what the model makes of it.
    assert found["files"][1]["labels"] == [["good", 1]]


def test_label_changes_are_those_of_documents_that_both_models_know(lake: Lake) -> None:
    found = label_changes(lake, "m1", "m2")
    assert (found["of"], found["documents"]) == (5, 4)
    assert found["flows"] == [
        {"before": "good", "after": "bad", "documents": 3},
        {"before": "good", "after": "odd", "documents": 1},
    ]
    # One of each flow in turn, so that the largest does not fill the list.
    assert [one["doc_id"] for one in found["examples"]] == ["d1", "d4", "d2", "d3"]
    assert label_changes(lake, "m2", "m2") == {}
    assert label_changes(lake, None, "m2") == {}


def test_of_a_document_that_a_model_answered_twice_the_newest_answer_counts(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "p")
    said = {  # names that do not tell which came later
        "7": [("m1", "d1", "good"), ("m1", "d2", "good"), ("m1", "d3", "good")],
        "8": [("m2", "d1", "bad"), ("m2", "d2", "bad"), ("m2", "d3", "good")],
        "9-extra": [("m1", "d1", "bad"), ("m1", "d2", "odd")],
        "10": [("m2", "d2", "good"), ("m2", "d3", "bad")],
    }
    for number, (night, rows) in enumerate(said.items(), 1):
        lake.write_night({"night": night, "number": number, "state": "published"})
        put(lake, "predictions", night, [
            {"doc_id": one, "label": label, "probability": 0.5, "model_id": model}
            for model, one, label in rows
        ])  # fmt: skip
    there = label_changes(lake, "m1", "m2")  # d1 stays bad, d2 was odd, d3 was good
    assert (there["of"], there["documents"]) == (3, 2)
    assert {(one["doc_id"], one["before"], one["after"]) for one in there["examples"]} == {
        ("d2", "odd", "good"), ("d3", "good", "bad"),
    }  # fmt: skip


def test_what_deserves_a_look_is_unsure_far_or_at_odds_with_its_cluster(lake: Lake) -> None:
    where = {f"d{n}": ("c-1", 0.1) for n in range(5)} | {
        "e1": ("c-1", 0.2), "e2": ("c-1", 0.9), "e3": ("unassigned", 1.5),
    }  # fmt: skip
    labels = {f"d{n}": "good" for n in range(5)} | {"e1": "good"}
    found = standouts(lake, "n2", "m2", assigned(where), labels)
    assert [one["doc_id"] for one in found["unsure"]] == ["e2", "e3", "e1"]
    assert [one["doc_id"] for one in found["surprising"]] == ["e3", "e2", "e1"]
    # Of seven labels in the cluster six are good; e2 is called bad.
    [only] = found["disagreeing"]
    assert (only["doc_id"], only["label"], only["usual"]) == ("e2", "bad", "good")
    assert only["purity"] == pytest.approx(6 / 7)


def test_a_new_topic_does_not_fill_the_list_of_surprises(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "p")
    axes = np.eye(8, dtype=np.float32)
    # Nine of one topic and one of another in no cluster, and five far ones of a cluster.
    kinds = [*([("unassigned", 0)] * 9), ("unassigned", 1), *(("c-1", 2 + n) for n in range(5))]
    ids = [f"e{n:02d}" for n in range(len(kinds))]
    put(lake, "documents", "n1", [{"doc_id": one, "text": "t"} for one in ids])
    put(lake, "embeddings", "n1", [
        {"doc_id": one, "vector": (axes[axis] + 0.01 * n).tolist(), "model_id": "m1"}
        for n, (one, (_, axis)) in enumerate(zip(ids, kinds, strict=True))
    ])  # fmt: skip
    where = {one: (cluster, 2.0 - n / 100)
             for n, (one, (cluster, _)) in enumerate(zip(ids, kinds, strict=True))}  # fmt: skip
    found = standouts(lake, "n1", "m1", assigned(where), {})["surprising"]
    assert [one["doc_id"] for one in found] == ["e00", "e01", "e09", "e10", "e11", "e12"]
    assert [one["distance"] for one in found[:2]] == pytest.approx([2.0, 1.99])


def test_clusters_that_grew_most_are_three_at_most() -> None:
    rows = [{"cluster_id": f"c-{n}", "event": "continued", "size": 10 + n, "previous_size": 10}
            for n in range(6)]  # fmt: skip
    rows.append({"cluster_id": "c-9", "event": "born", "size": 99, "previous_size": None})
    found = cluster_events(rows, [{"cluster_id": "c-7"}])
    assert [one["cluster_id"] for one in found["grown"]] == ["c-5", "c-4", "c-3"]
    assert [one["cluster_id"] for one in found["born"]] == ["c-9"]
    assert len(found["ended"]) == 1


# --- the map ----------------------------------------------------------------------------------


def test_documents_beyond_the_sample_stand_among_those_that_are_like_them() -> None:
    random = np.random.default_rng(1)
    vectors = np.zeros((400, 8), np.float32)
    vectors[:200, 0], vectors[200:, 1] = 1, 1
    vectors += random.normal(scale=0.05, size=vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = place_all(vectors, sample=80)
    one, two = places[:200].mean(0), places[200:].mean(0)
    nearer = np.linalg.norm(places - one, axis=1) < np.linalg.norm(places - two, axis=1)
    assert nearer[:200].all()
    assert not nearer[200:].any()
    assert np.array_equal(places, place_all(vectors, sample=80))


def test_texts_of_the_map_are_bounded_in_bytes_however_many_there_are() -> None:
    assert bounded("abc", 10) == "abc"
    for hard in ("汉字" * 100, "&" * 500, "<" * 3, "a" * 50):
        assert len(bounded(hard, 20).replace("&", "&amp;").replace("<", "&lt;").encode()) <= 20
    text = "汉字 & <tag> " * 100
    points = [Point(n, n, "c-1", None, text, "n1") for n in range(40_000)]
    found = atlas(points, [], "n1")
    assert len(found["texts"].encode()) <= BUDGET + 40_000  # and their line ends
    assert found["texts"].count("\n") == 39_999


def test_json_in_the_page_ends_no_script_and_no_line() -> None:
    said = script_json({"a": "</script><!-- \u2028 \u2029 & 汉"})
    assert not set("<>&\u2028\u2029") & set(said)
    import json

    assert json.loads(said) == {"a": "</script><!-- \u2028 \u2029 & 汉"}


# --- what is alike ----------------------------------------------------------------------------


def test_the_nearest_are_found_whatever_the_batches_and_ties_go_by_id() -> None:
    ids = [f"d{n}" for n in range(6)]
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8], [1, 0], [-1, 0]], np.float32)
    wanted = [("d0", 1.0), ("d2", 1.0), ("d3", pytest.approx(0.6))]
    for size in (1, 2, 6):
        batches = [(ids[n : n + size], vectors[n : n + size]) for n in range(0, 6, size)]
        assert nearest(np.array([2, 0], np.float32), batches, 3, but="d4") == wanted
    assert nearest(np.array([1, 0], np.float32), [], 3) == []


def test_a_reader_gets_first_what_they_follow_then_what_all_do() -> None:
    follows, popular = followed([("ann", "c-1"), ("ann", "c-1"), ("bob", "c-2"), ("cid", "c-2"),
                                 ("dan", "c-2")])  # fmt: skip
    tonight = [("x", "c-2", 0.1), ("y", "c-1", 0.5), ("z", "c-1", 0.2), ("u", "unassigned", 0.0)]
    assert ranked(follows["ann"], popular, tonight) == ["z", "y", "x", "u"]
    assert ranked({}, popular, tonight) == ["x", "z", "y", "u"]
    assert recall_at(["a", "b", "c"], {"b", "c"}, k=2) == 0.5
    assert readers_of("ann; bob|ann ; ") == ["ann", "bob"]
    assert readers_of(None) == []
