"""The lake as a training set: the newest label wins, sides hold still, tokens come in order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nightshift.corpus import (
    HEAD,
    Excerpt,
    Labelled,
    current_labels,
    labelled_sides,
    texts_of,
    tokens_of,
)
from nightshift.drift import read_sample
from nightshift.errors import AccountError
from nightshift.tables import Lake, rows_of
from nightshift.tokenizer import PADDING

WHEN = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path), "p")


def write(lake: Lake, table: str, night: str, *rows: dict[str, Any]) -> None:
    lake.replace(table, night, rows_of(table, list(rows)))


def document(doc_id: str, label: str | None, split: str = "train", share: float = 0.5) -> Any:
    digest = f"{int(share * 16**8):08x}"
    text = f"text of {doc_id}"
    return {
        "doc_id": doc_id, "text": text, "label": label, "split": split, "content_digest": digest,
    }  # fmt: skip


def later(doc_id: str, label: str, minutes: int, by: str = "person") -> Any:
    return {"doc_id": doc_id, "label": label, "by": by, "at": WHEN + timedelta(minutes=minutes)}


def tokens(doc_id: str, *ids: int, tokenizer: str = "t") -> Any:
    return {"doc_id": doc_id, "ids": list(ids), "tokenizer": tokenizer}


# --- labels ---------------------------------------------------------------------------------


def test_a_label_given_later_wins_over_the_documents_own_and_the_newest_over_all(
    lake: Lake,
) -> None:
    write(lake, "documents", "n1", *(document(one, "own") for one in "abc"), document("d", None))
    # Written on the later night, but given earlier.
    write(lake, "labels", "n2", later("b", "newest", 9), later("d", "first", 1))
    write(lake, "labels", "n3", later("b", "newer", 5), later("c", "newer", 5))
    assert current_labels(lake) == {"a": "own", "b": "newest", "c": "newer", "d": "first"}


def test_of_labels_given_at_the_same_moment_the_last_in_its_file_wins(lake: Lake) -> None:
    write(lake, "documents", "n1", *(document(str(one), "own") for one in range(50)))
    same = [later(str(one), name, 0) for one in range(50) for name in ("x", "y", "z")]
    write(lake, "labels", "n1", *same)
    assert set(current_labels(lake).values()) == {"z"}


def test_a_night_can_be_left_out(lake: Lake) -> None:
    write(lake, "documents", "n1", document("a", "own"))
    write(lake, "documents", "n2", document("b", "own"))
    write(lake, "labels", "n2", later("a", "new", 1))
    assert current_labels(lake, but="n2") == {"a": "own"}
    assert current_labels(lake, but="n1") == {"b": "own", "a": "new"}


def test_an_empty_lake_has_no_labels_sides_or_texts(lake: Lake) -> None:
    assert current_labels(lake) == {}
    assert {name: len(side) for name, side in labelled_sides(lake).items()} == {
        "train": 0,
        "validation": 0,
        "gate": 0,
        "test": 0,
    }
    assert texts_of(lake, ["a"]) == texts_of(lake, []) == {}
    assert len(tokens_of(lake, "t", [])) == 0


# --- sides ----------------------------------------------------------------------------------


def test_labelled_documents_are_sorted_by_id_on_each_side(lake: Lake) -> None:
    sides = {"a": "train", "b": "test", "c": "gate", "d": "validation", "e": "train"}
    rows = [document(one, f"label {one}", sides[one]) for one in "edcba"]
    write(lake, "documents", "n1", *rows, document("f", None))
    found = labelled_sides(lake)
    assert found["train"] == Labelled(["a", "e"], ["label a", "label e"])
    assert {name: side.doc_ids for name, side in found.items()} == {
        "train": ["a", "e"],
        "validation": ["d"],
        "gate": ["c"],
        "test": ["b"],
    }


def test_training_rows_without_validation_give_up_a_fixed_share(lake: Lake) -> None:
    shares = {"a": 0.04, "b": 0.0501, "c": 0.07, "d": 0.0999, "e": 0.1001, "f": 0.9}
    write(lake, "documents", "n1", *(document(one, "x", "train", shares[one]) for one in shares))
    found = labelled_sides(lake)
    assert found["validation"].doc_ids == ["b", "c", "d"]
    assert found["train"].doc_ids == ["a", "e", "f"]
    # As soon as the source has validation rows, training keeps its own.
    write(lake, "documents", "n2", document("v", "x", "validation"))
    assert labelled_sides(lake)["train"].doc_ids == list(shares)


def test_a_label_given_later_makes_a_document_labelled_on_its_own_side(lake: Lake) -> None:
    write(lake, "documents", "n1", document("a", None, "test"), document("b", "x", "validation"))
    write(lake, "labels", "n1", later("a", "y", 1), later("gone", "y", 1))
    assert labelled_sides(lake)["test"] == Labelled(["a"], ["y"])


def test_the_digest_of_a_side_changes_with_its_rows_and_labels() -> None:
    one = Labelled(["a", "b"], ["x", "y"])
    others = [Labelled(["a", "c"], ["x", "y"]), Labelled(["a", "b"], ["y", "x"]), Labelled([], [])]
    assert one.digest == Labelled(["a", "b"], ["x", "y"]).digest
    assert one.digest not in {other.digest for other in others}


# --- tokens and texts -----------------------------------------------------------------------


def test_tokens_come_in_the_order_asked_for_across_nights(lake: Lake) -> None:
    write(lake, "tokens", "n1", tokens("a", 2, 3, 4), tokens("b", 5), tokens("c", 6, 7))
    write(lake, "tokens", "n2", tokens("d", 8, 9))
    found = tokens_of(lake, "t", ["d", "b", "a"])
    ids, lengths = found.pad(np.arange(3))
    # Whole: how much of a document is read is the model's own affair.
    assert ids.tolist() == [[8, 9, PADDING], [5, PADDING, PADDING], [2, 3, 4]]
    assert lengths.tolist() == [2, 1, 3]
    first = tokens_of(lake, "t", ["d", "b", "a"], most=2)
    assert first.pad(np.arange(3))[0].tolist() == [[8, 9], [5, PADDING], [2, 3]]
    assert len(first.ids) == 5  # what is left out lies nowhere


def test_tokens_are_those_of_one_tokenizer(lake: Lake) -> None:
    write(lake, "tokens", "n1", tokens("a", 2, tokenizer="old"))
    write(lake, "tokens", "n2", tokens("a", 3), tokens("b", 4))
    found = tokens_of(lake, "t", ["b", "a"])
    assert found.ids[found.starts].tolist() == [4, 3]


def test_a_document_without_tokens_is_missed(lake: Lake) -> None:
    write(lake, "tokens", "n1", tokens("a", 2))
    with pytest.raises(AccountError, match="found tokens of 1 of 2 documents"):
        tokens_of(lake, "t", ["a", "b"])


def test_texts_are_found_by_id(lake: Lake) -> None:
    write(lake, "documents", "n1", document("a", None), document("b", "x"))
    assert texts_of(lake, ["b", "gone", "b"]) == {"b": "text of b"}


def test_texts_that_only_stand_for_others_are_cut(lake: Lake) -> None:
    long = {one: document(one, None) | {"text": f"{one}é中" * 2_000} for one in "ab"}
    write(lake, "documents", "n1", *long.values(), document("c", None))
    assert texts_of(lake, ["a", "c"], most=5) == {"a": "aé中aé", "c": "text "}
    excerpt = Excerpt(lake, pa.array(["a", "b", "c"]), pa.array(["b"]))
    assert texts_of(excerpt, ["a", "b", "c"]) == {
        "a": long["a"]["text"][:HEAD], "b": long["b"]["text"], "c": "text of c",
    }  # fmt: skip


def test_an_excerpt_gives_each_what_it_asks_for_and_reads_a_table_once(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lake, "documents", "9", *(document(one, None) for one in "abcd"))
    said = [{"doc_id": one, "label": f"{model}{one}", "model_id": model}
            for model in "mn" for one in "abcd"]  # fmt: skip
    for number, night in enumerate(("9", "10"), 1):
        lake.write_night({"night": night, "number": number, "state": "published"})
    write(lake, "predictions", "9", *({**one, "label": "older"} for one in said))
    write(lake, "predictions", "10", *said)
    read: list[str] = []
    real = Lake.read_of
    monkeypatch.setattr(Lake, "read_of", lambda self, table, *rest: (
        read.append(table), real(self, table, *rest)
    )[1])  # fmt: skip
    excerpt = Excerpt(lake, pa.array(["d", "a", "b", "a"]), pa.array([], pa.string()))
    assert texts_of(excerpt, ["a", "d"]) == {"a": "text of a", "d": "text of d"}
    assert texts_of(excerpt, ["b"]) == {"b": "text of b"}
    for model in "mnm":
        its = pc.field("model_id") == model
        found = excerpt.read_of("predictions", ["doc_id", "label"], pa.array(["b"]), its)
        assert found.to_pylist() == [{"doc_id": "b", "label": f"{model}b"}]
    assert read == ["documents", "predictions", "predictions"]
    # Of a long list a condition's words tell the two ends only.
    many = [f"x{number}" for number in range(100)]
    for middle, count in (("9", 1), ("none", 0)):
        its = pc.field("night").isin([*many, middle, *many])
        assert excerpt.read_of("predictions", ["doc_id"], pa.array(["b"]), its).num_rows == count


def test_of_two_answers_of_one_model_a_sample_has_the_newer_alone(lake: Lake) -> None:
    for number, night in enumerate(("9", "10"), 1):
        lake.write_night({"night": night, "number": number, "state": "published"})
        said = [{"doc_id": one, "label": f"{night}{one}", "model_id": "m"} for one in "ab"]
        write(lake, "predictions", night, *said)
    write(lake, "documents", "9", *(document(one, None) for one in "ab"))
    found = read_sample(lake, pa.array(["b", "a"], pa.string()), "m")
    assert found.labels == ["10b", "10a"]
    assert len(found.probability) == len(found.abstained) == 2
