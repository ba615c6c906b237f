"""Slices of documents: language, length, age, file and declared columns, in the order asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nightshift.slices import MOST, OTHER, few, in_order, slices_of
from nightshift.tables import SCHEMAS, Lake, rows_of

WHEN = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path), "p")


def write(lake: Lake, night: str, table: str, *rows: dict[str, Any]) -> None:
    lake.replace(table, night, rows_of(table, list(rows)))


def test_documents_are_told_apart_in_the_order_given(lake: Lake) -> None:
    write(
        lake, "n1", "documents",
        {"doc_id": "a", "lang": "en", "source_file": "x/one.csv", "columns": '{"region": "north"}'},
        {"doc_id": "b", "lang": "zh", "source_file": "y/one.csv"},
        {"doc_id": "c", "lang": "", "source_file": "y/two.csv", "columns": '{"size": "3"}'},
    )  # fmt: skip
    found = slices_of(lake, ["c", "a", "b"], ["language", "source_file", "region", "age"])
    assert found == {
        "language": ["unknown", "en", "zh"],
        "source_file": ["two.csv", "x/one.csv", "y/one.csv"],
        "region": ["unknown", "north", "unknown"],
        "age": ["unknown"] * 3,
    }


def test_lengths_are_quarters_by_the_tokenizer_that_knows_most(lake: Lake) -> None:
    lengths = [1, 1, 2, 3, 5, 8, 13, 21]
    ids = [f"d{place}" for place in range(8)]
    mine = [{"doc_id": one, "n_tokens": length, "tokenizer": "t"}
            for one, length in zip(ids, lengths, strict=True)]  # fmt: skip
    other = [{"doc_id": "d0", "n_tokens": 500, "tokenizer": "u"}]
    write(lake, "n1", "tokens", *mine)
    write(lake, "n2", "tokens", *other)
    [found] = slices_of(lake, [*ids, "gone"], ["length"]).values()
    assert found == [
        *["1 token"] * 2, *["2 to 4 tokens"] * 2, *["5 to 12 tokens"] * 2, *["13 to 21 tokens"] * 2,
        "unknown",
    ]  # fmt: skip


def test_documents_of_one_length_are_one_slice(lake: Lake) -> None:
    write(lake, "n1", "tokens", *({"doc_id": one, "n_tokens": 7, "tokenizer": "t"} for one in "ab"))
    assert slices_of(lake, ["a", "b"], ["length"]) == {"length": ["7 tokens", "7 tokens"]}


def test_ages_count_from_the_newest_document_and_not_from_a_wrong_date(lake: Lake) -> None:
    days = [0, 0.5, 3, 20, 200, 500]
    times = [{"doc_id": str(place), "event_time": WHEN - timedelta(days=one)}
             for place, one in enumerate(days)]  # fmt: skip
    many = [{"doc_id": f"m{place}", "event_time": WHEN} for place in range(200)]
    write(lake, "n1", "documents", *times, *many,
          {"doc_id": "wrong", "event_time": WHEN + timedelta(days=9999)})  # fmt: skip
    [found] = slices_of(lake, [*(row["doc_id"] for row in times), "wrong"], ["age"]).values()
    assert found == [
        "up to a day", "up to a day", "up to a week", "up to a month", "up to a year",
        "older than a year", "up to a day",
    ]  # fmt: skip
    assert in_order("age", found)[:2] == ["up to a day", "up to a week"]


def test_many_values_leave_a_handful_and_the_rest() -> None:
    names = [name for place, name in enumerate("abcdefghij") for _ in range(20 - place)]
    found = few(names)
    assert in_order("region", found) == [*"abcdef", OTHER]
    assert len(set(found)) == MOST
    assert found.count(OTHER) == sum(20 - place for place in range(6, 10))


def test_a_lake_without_columns_is_read_and_written_on(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SCHEMAS["documents"]
    before = pa.schema([one for one in now if one.name != "columns"])
    monkeypatch.setitem(SCHEMAS, "documents", before)
    lake.replace("documents", "n1", rows_of("documents", [{"doc_id": "a", "lang": "en"}]))
    monkeypatch.setitem(SCHEMAS, "documents", now)
    assert slices_of(lake, ["a"], ["region"]) == {"region": ["unknown"]}
    write(lake, "n2", "documents", {"doc_id": "b", "columns": '{"region": "north"}'})
    assert slices_of(lake, ["a", "b"], ["region"]) == {"region": ["unknown", "north"]}
