"""Taking rows in: each becomes a document, a duplicate or a reject, and labels are not lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nightshift.cleaning import CleaningConfig, content_digest
from nightshift.intake import ID_REUSED, RAW_CHARACTERS, Intake, Known, Taken, known_before
from nightshift.rows import Row, make_row, rejected
from nightshift.splits import SplitConfig, side
from nightshift.tables import Lake, rows_of

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


def intake(known: Known | None = None, **options: Any) -> Intake:
    settings: dict[str, Any] = {
        "cleaning": CleaningConfig(),
        "splits": SplitConfig(),
        "language": "en",
        "now": NOW,
    }
    return Intake(known=known or Known(), **{**settings, **options})


def row(number: int, text: Any, label: Any = None, id_: Any = None, split: Any = None) -> Row:
    return make_row(number, text, label, id_, split, None)


def take(*rows: Row, into: Intake | None = None, uri: str = "a.csv") -> Taken:
    return (into or intake()).take(uri, list(rows))


def pairs(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(one[name] for name in names) for one in rows]


# --- the account ----------------------------------------------------------------------------


def test_every_row_is_kept_or_a_duplicate_or_a_reject() -> None:
    rows = [
        row(1, "first", "x", "a"),
        row(2, "first", "x", "a"),
        row(3, "  first ", None, "b"),
        row(4, ""),
        row(5, None),
        row(6, 3.5),
        row(7, "other", 1.5),
        row(8, "other text", "y", "a"),
        rejected(9, "wrong_fields", "x,y,z"),
        row(10, "\u200b"),
        row(11, "last"),
    ]
    taken = take(*rows)
    assert taken.rows == len(rows) == 11
    assert pairs(taken.documents, "row", "doc_id") == [(1, "a"), (11, content_digest("last"))]
    assert pairs(taken.duplicates, "row", "doc_id", "source_id") == [(2, "a", "a"), (3, "a", "b")]
    assert pairs(taken.rejects, "row", "reason") == [
        (4, "no_text"),
        (5, "no_text"),
        (6, "text_type"),
        (7, "label_type"),
        (8, "id_reused"),
        (9, "wrong_fields"),
        (10, "no_text"),
    ]


def test_a_document_has_what_its_row_said() -> None:
    moment = datetime(2020, 1, 2, tzinfo=UTC)
    given = make_row(7, " Hello\x07 ", 3, 42, "test", "2020-01-02")
    given.columns = {"region": "北", "area": "1"}
    [document] = take(given, uri="s3://b/a.csv").documents
    assert document == {
        "doc_id": "42",
        "text": "Hello",
        "label": "3",
        "lang": "en",
        "event_time": moment,
        "source_file": "s3://b/a.csv",
        "row": 7,
        "content_digest": content_digest("Hello"),
        "split": "test",
        "columns": '{"area": "1", "region": "北"}',
    }


def test_without_an_id_the_content_names_a_document() -> None:
    [document] = take(row(1, "Hello")).documents
    assert document["doc_id"] == document["content_digest"] == content_digest("Hello")


def test_a_text_past_the_limit_is_rejected_with_its_beginning() -> None:
    short = intake(cleaning=CleaningConfig(max_characters=600))
    [reject] = take(row(3, "x" * 601), into=short, uri="b.csv").rejects
    assert reject == {
        "source_file": "b.csv",
        "row": 3,
        "reason": "too_long",
        "raw": "x" * RAW_CHARACTERS,
    }


def test_what_a_reject_shows_can_always_be_written() -> None:
    [reject] = take(Row(1, text="lone \ud83d", problem="undecodable")).rejects
    assert reject["raw"].encode() == b"lone ?"


# --- duplicates and ids ---------------------------------------------------------------------


def test_texts_that_are_equal_once_cleaned_are_duplicates() -> None:
    taken = take(row(1, "café"), row(2, "cafe\u0301 "), row(3, "Café"))
    assert [len(taken.documents), len(taken.duplicates)] == [2, 1]


def test_a_duplicate_points_to_the_first_document_with_its_text() -> None:
    into = intake()
    first = take(row(1, "same", None, "a"), into=into).documents
    second = take(row(1, "same", None, "b"), row(2, "same"), into=into, uri="b.csv")
    assert first[0]["doc_id"] == "a"
    assert second.documents == []
    assert pairs(second.duplicates, "doc_id", "source_id", "source_file") == [
        ("a", "b", "b.csv"),
        ("a", None, "b.csv"),
    ]


def test_the_same_id_with_another_text_is_rejected_and_the_first_stays() -> None:
    into = intake()
    taken = take(row(1, "one", "x", "a"), row(2, "two", "y", "a"), into=into)
    assert pairs(taken.rejects, "reason", "raw") == [(ID_REUSED, "two")]
    assert taken.labels == []
    later = take(row(1, "one", None, "a"), row(2, "two", None, "b"), into=into)
    assert pairs(later.duplicates, "doc_id") == [("a",)]
    assert pairs(later.documents, "doc_id") == [("b",)]


def test_chunks_of_a_file_know_of_one_another() -> None:
    rows = [row(number, f"text {number % 5}", None, f"i{number % 7}") for number in range(40)]
    whole = take(*rows)
    into = intake()
    parts = [take(*rows[start : start + 3], into=into) for start in range(0, 40, 3)]
    for name in ("documents", "duplicates", "rejects"):
        assert [one for part in parts for one in getattr(part, name)] == getattr(whole, name)


# --- labels ---------------------------------------------------------------------------------


def test_a_duplicate_with_another_label_is_a_label_given_later() -> None:
    taken = take(row(1, "same", "x", "a"), row(2, "same", "y", "b"))
    assert len(taken.duplicates) == 1
    assert taken.labels == [{"doc_id": "a", "label": "y", "by": "source", "at": NOW}]


def test_a_duplicate_that_brings_the_first_label_is_news() -> None:
    into = intake()
    take(row(1, "same"), into=into)
    taken = take(row(1, "same", "x"), row(2, "same", "x"), into=into)
    assert pairs(taken.labels, "label") == [("x",)]


@pytest.mark.parametrize("label", [None, "x"])
def test_a_duplicate_without_another_label_is_no_news(label: str | None) -> None:
    assert take(row(1, "same", "x"), row(2, "same", label)).labels == []


def test_a_label_that_comes_back_is_told_again() -> None:
    taken = take(*(row(number, "same", label) for number, label in enumerate("xyx")))
    assert pairs(taken.labels, "label") == [("y",), ("x",)]


# --- sides and languages --------------------------------------------------------------------


@pytest.mark.parametrize("declared", ["train", "dev", "test", None, "nonsense"])
def test_a_document_is_on_the_side_of_its_content_and_declaration(declared: str | None) -> None:
    texts = [f"text {number}" for number in range(60)]
    taken = take(*(row(number, text, split=declared) for number, text in enumerate(texts)))
    assert [one["split"] for one in taken.documents] == [
        side(content_digest(text), declared, SplitConfig()) for text in texts
    ]


def test_a_duplicate_on_another_side_does_not_move_its_document() -> None:
    into = intake()
    [document] = take(row(1, "same", split="test"), into=into).documents
    taken = take(row(1, "same", split="train"), into=into)
    assert document["split"] == "test"
    assert taken.documents == []


def test_languages_are_detected_once_a_chunk_unless_declared() -> None:
    asked: list[list[str]] = []

    def detect(texts: list[str]) -> list[str]:
        asked.append(texts)
        return ["fr" for _ in texts]

    taken = take(
        row(1, "un"), row(2, ""), row(3, "deux"), into=intake(language="auto", detect=detect)
    )
    assert [one["lang"] for one in taken.documents] == ["fr", "fr"]
    assert asked == [["un", "deux"]]
    assert take(row(1, "un"), into=intake(language="pl")).documents[0]["lang"] == "pl"
    assert take(into=intake(language="auto")).rows == 0


# --- across nights --------------------------------------------------------------------------


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path), "p")
    first = take(row(1, "one", "x", "a"), row(2, "two", None, "b"))
    lake.replace("documents", "n1", rows_of("documents", first.documents))
    return lake


def test_duplicates_and_reused_ids_are_known_across_nights(lake: Lake) -> None:
    known = known_before(lake, "n2", with_ids=True)
    taken = take(
        row(1, "one", "z", "q"), row(2, "three", None, "a"), row(3, "two", "y"), into=intake(known)
    )
    assert pairs(taken.duplicates, "doc_id") == [("a",), ("b",)]
    assert pairs(taken.rejects, "reason") == [(ID_REUSED,)]
    assert pairs(taken.labels, "doc_id", "label") == [("a", "z"), ("b", "y")]


def test_a_night_that_is_repeated_does_not_know_its_own_rows(lake: Lake) -> None:
    known = known_before(lake, "n1", with_ids=True)
    assert len(known) == 0
    again = take(row(1, "one", "x", "a"), row(2, "two", None, "b"), into=intake(known))
    assert pairs(again.documents, "doc_id") == [("a",), ("b",)]


def test_labels_given_on_earlier_nights_are_no_news(lake: Lake) -> None:
    given = [{"doc_id": "b", "label": "y", "by": "source", "at": NOW}]
    lake.replace("labels", "n2", rows_of("labels", given))
    taken = take(row(1, "two", "y"), into=intake(known_before(lake, "n3", with_ids=False)))
    assert taken.labels == []
    repeated = take(row(1, "two", "y"), into=intake(known_before(lake, "n2", with_ids=False)))
    assert pairs(repeated.labels, "doc_id", "label") == [("b", "y")]


def test_ids_are_remembered_only_where_the_source_names_its_documents(lake: Lake) -> None:
    ids = [content_digest(one) for one in ("a", "b")]
    nameless, named = (known_before(lake, "n2", with_ids=with_ids) for with_ids in (False, True))
    assert [nameless.reused(one, content_digest("else")) for one in ids] == [False, False]
    assert [named.reused(one, content_digest("else")) for one in ids] == [True, True]
    assert not named.reused(ids[0], content_digest("one"))


def test_texts_are_known_again_when_they_are_too_many_for_a_mapping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nightshift.known.RECENT", 10)
    into = intake()
    take(*(row(n, f"text {n}", "x", f"i{n}") for n in range(95)), into=into)
    again = take(*(row(n, f"text {n}", "y") for n in range(0, 95, 7)), row(9, "new"), into=into)
    assert pairs(again.duplicates, "doc_id") == [(f"i{n}",) for n in range(0, 95, 7)]
    assert [one["label"] for one in again.labels] == ["y"] * 14
    assert pairs(again.documents, "text") == [("new",)]
    reused = take(row(1, "another", None, "i50"), into=into)
    assert pairs(reused.rejects, "reason") == [(ID_REUSED,)]
