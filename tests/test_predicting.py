"""A file predicted into another: every row and column there, and memory that does not grow."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_bundle import CLUSTERS, TEXTS, model, saved
from test_integrity import crown, registered

from flows.predicting import ADDED, ANSWERED, CHUNK, check_places, score_file
from flows.reading import texts_of_file
from nightshift.bundle import Bundle
from nightshift.errors import ConfigError, SourceError
from nightshift.sources import SourceConfig

if TYPE_CHECKING:
    from conftest import House

BUNDLE = Bundle(model(), CLUSTERS)
OUT = ["parquet", "csv", "jsonl"]


def score(file: Path | str, out: Path, **source: Any) -> tuple[int, dict[str, str]]:
    return score_file(BUNDLE, 7, str(file), SourceConfig(paths=["x"], **source), out, 2)


def read(out: Path) -> list[dict[str, Any]]:
    if out.suffix == ".parquet":
        return pq.read_table(out).to_pylist()
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8-sig"))))


def is_answer(row: dict[str, Any], text: str, typed: bool = True) -> bool:
    [answer] = BUNDLE.answer([text], top=2)
    whole = {**ANSWERED, **answer, "model_version": 7}
    if typed and isinstance(row["top"], str):
        row = {**row, "top": json.loads(row["top"])}
    same = [row["label"] == whole["label"], row["cluster_id"] == whole["cluster_id"]]
    if typed:
        numbers = (row["probability"], row["distance"])
        said = pytest.approx((whole["probability"], whole["distance"]), abs=3e-6)
        tops = [one["label"] for one in row["top"]] == [one["label"] for one in whole["top"]]
        same += [numbers == said, tops, row["model_version"] == 7, row["error"] is None]
    return all(same)


def table(rows: int) -> pa.Table:
    return pa.table({
        "id": pa.array(range(rows), pa.int16()),
        "text": pa.array([TEXTS[one % 5] for one in range(rows)], pa.large_string()),
        "price": pa.array([Decimal("1.50")] * rows, pa.decimal128(8, 2)),
        "when": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * rows, pa.timestamp("ns", "UTC")),
        "tags": pa.array([["a", "b"]] * rows),
        "kind": pa.array(["x"] * rows).dictionary_encode(),
    })  # fmt: skip


@pytest.mark.parametrize("ending", OUT)
def test_a_parquet_file_keeps_its_rows_and_columns_and_gets_predictions(
    tmp_path: Path, ending: str
) -> None:
    given, out = table(2 * CHUNK + 5), tmp_path / "new" / f"out.{ending}"
    pq.write_table(given, tmp_path / "in.parquet", row_group_size=700)
    assert score(tmp_path / "in.parquet", out) == (len(given), {})
    rows = read(out)
    assert [int(row["id"]) for row in rows] == list(range(len(given)))
    assert list(rows[0]) == [*given.column_names, *ADDED.names]
    for row in (*rows[:5], *rows[-5:]):
        assert is_answer(row, row["text"], typed=ending != "csv")
    if ending == "parquet":
        found = pq.read_table(out)
        assert found.select(given.column_names).equals(given)
        assert found.select(ADDED.names).schema.equals(ADDED)
    if ending == "csv":
        assert (rows[0]["price"], rows[0]["tags"]) == ("1.50", '["a", "b"]')


@pytest.mark.parametrize("ending", OUT)
def test_a_csv_file_loses_no_row_even_where_one_is_broken(tmp_path: Path, ending: str) -> None:
    (tmp_path / "in.csv").write_bytes(
        b'n,text,extra\n1,the cat sat on the mat,"a, b"\n2,too,many,fields\n3,,empty\n4,'
        + "北京清华大学".encode()
        + b",=1+1\n5,a\xff,x\n"
    )
    out = tmp_path / f"out.{ending}"
    assert score(tmp_path / "in.csv", out)[0] == 5
    rows = read(out)
    assert is_answer(rows[0], "the cat sat on the mat", typed=ending != "csv")
    assert is_answer(rows[3], "北京清华大学", typed=ending != "csv")
    assert [row["error"] or None for row in rows] == [
        None, "wrong_fields", "no_text", None, "undecodable"
    ]  # fmt: skip
    assert rows[0]["extra"] == "a, b"
    assert rows[3]["extra"] == ("'=1+1" if ending == "csv" else "=1+1")
    assert not rows[1]["label"]


@pytest.mark.parametrize("ending", OUT)
def test_json_lines_keep_what_is_nested(tmp_path: Path, ending: str) -> None:
    given = [
        {"text": "a dog ran", "about": {"n": [1, 2]}, "n": 3},
        {"text": 5, "n": None},
        {"n": 4, "text": "half \ud800 a character"},
    ]
    lines = [json.dumps(one) for one in given] + ["{broken"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    out = tmp_path / f"out.{ending}"
    assert score(tmp_path / "in.jsonl", out)[0] == 4
    rows = read(out)
    assert is_answer(rows[0], "a dog ran", typed=ending != "csv")
    about = rows[0]["about"]
    assert (about if isinstance(about, dict) else json.loads(about)) == {"n": [1, 2]}
    assert [row.get("error") or None for row in rows] == [
        None, "text_type", None, "unreadable_line"
    ]  # fmt: skip
    assert rows[0]["n"] == (3 if ending == "jsonl" else "3")


def test_a_key_that_comes_late_is_told_and_only_json_lines_can_hold_it(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a"})] * 70_000 + [json.dumps({"text": "a", "late": 1})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pytest.raises(SourceError, match=r"key 'late'.*name in \.jsonl"):
        score_file(Short(), 7, str(tmp_path / "in.jsonl"), SourceConfig(paths=["x"]),
                   tmp_path / "out.parquet", 2)  # fmt: skip
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


class Short(Bundle):
    """Answers nothing, at once: for files whose length matters."""

    def __init__(self) -> None:
        super().__init__(BUNDLE.model, None)

    def answer(self, texts: list[str], top: int = 3, vectors: bool = False) -> list[dict[str, Any]]:
        return [{} for _ in texts]


def test_columns_that_the_file_has_already_keep_their_names(tmp_path: Path) -> None:
    columns = ["text", "label", "predicted_label", "error"]
    pq.write_table(pa.table({name: ["the cat"] for name in columns}), tmp_path / "in.parquet")
    rows, renamed = score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert renamed == {"label": "predicted_predicted_label", "error": "predicted_error"}
    [row] = read(tmp_path / "out.parquet")
    assert (rows, row["label"], row["predicted_label"], row["error"]) == (1, *["the cat"] * 3)
    assert row["predicted_predicted_label"] == BUNDLE.answer(["the cat"])[0]["label"]


def test_the_declared_text_column_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a dog ran"], "text": ["no"]}), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", tmp_path / "out.jsonl", text="body")
    assert is_answer(read(tmp_path / "out.jsonl")[0], "a dog ran")
    with pytest.raises(SourceError, match="no column 'headline'"):
        score(tmp_path / "in.parquet", tmp_path / "none.jsonl", text="headline")
    assert not (tmp_path / "none.jsonl").exists()


def test_any_other_file_is_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_text("the cat\n\na dog\n")
    assert score(tmp_path / "in.log", tmp_path / "out.parquet")[0] == 3
    rows = read(tmp_path / "out.parquet")
    assert [(row["text"], row["error"]) for row in rows] == [
        ("the cat", None), ("", "no_text"), ("a dog", None)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
def test_an_empty_file_gives_an_empty_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert score(tmp_path / name, tmp_path / "out.parquet") == (0, {})
    assert pq.read_table(tmp_path / "out.parquet").schema.names == ADDED.names


def test_a_file_that_breaks_off_leaves_what_was_there_before(tmp_path: Path) -> None:
    pq.write_table(table(3_000), tmp_path / "in.parquet", row_group_size=1_000)
    whole = bytearray((tmp_path / "in.parquet").read_bytes())
    metadata = pq.read_metadata(tmp_path / "in.parquet")
    at = metadata.row_group(2).column(1).data_page_offset
    whole[at : at + 200] = bytes(200)
    (tmp_path / "in.parquet").write_bytes(whole)
    (tmp_path / "out.parquet").write_text("yesterday's")
    with pytest.raises(SourceError, match="breaks off"):
        score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "yesterday's"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_lines_of_text_are_read_from_an_address(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the cat sat\nthe dog ran\n")
    address = f"file://{tmp_path}/in.txt"
    assert [*texts_of_file(address, SourceConfig(paths=["x"]))] == ["the cat sat", "the dog ran"]
    assert score(address, tmp_path / "out.jsonl")[0] == 2
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["the cat sat", "the dog ran"]
    for absent in (f"file://{tmp_path}/none", f"file://{tmp_path}/none.csv", "none://x/y"):
        with pytest.raises((ConfigError, SourceError), match=r"no file|cannot be opened"):
            score(absent, tmp_path / "out.jsonl")
        with pytest.raises((ConfigError, SourceError), match=r"no file|cannot be opened"):
            list(texts_of_file(absent, SourceConfig(paths=["x"])))


@pytest.mark.parametrize("out", ["s3://bucket/out.parquet", "file:///tmp/out.csv", "gs:/b/o.jsonl"])
def test_an_address_to_write_to_is_refused_before_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("text\na\n")
    with pytest.raises(ConfigError, match="expected a path on this machine, not an address"):
        score("in.csv", Path(out))
    assert [one.name for one in tmp_path.iterdir()] == ["in.csv"]


def test_places_that_cannot_be_are_told_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\na\n")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="itself"):
        check_places(f"file://{tmp_path}/in.csv", tmp_path / "in.csv")
    for file, out, words in [
        ("in.csv", "out.xlsx", "expected a name in"),
        ("in.csv", "in.csv", "is .*itself"),
        ("none.csv", "out.csv", "no file"),
        ("in.csv", "in.csv/out.csv", "cannot be written"),
        ("in.csv", "folder.csv", "is a folder"),
    ]:
        with pytest.raises(ConfigError, match=words):
            score(tmp_path / file, tmp_path / out)
    (tmp_path / "in.csv").write_text("text,text\na,b\n")
    with pytest.raises(SourceError, match="'text' twice"):
        score(tmp_path / "in.csv", tmp_path / "out.csv")


MEMORY = """
import re, resource, sys
from pathlib import Path
from flows.predicting import score_file
from nightshift.bundle import Bundle
from nightshift.sources import SourceConfig

bundle, source = Bundle.load(Path(sys.argv[1])), SourceConfig(paths=["x"])

def peak_kib():
    # Not ru_maxrss on Linux: there it begins with the peak of whoever started the process.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for file in sys.argv[2:]:
    rows, _ = score_file(bundle, 1, file, source, Path(file + ".out.parquet"), 3)
    print(rows, peak_kib())
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Eight times the rows, of 8 kB each: 270 MiB more, if they were held. No two batches are of
    one shape, and each shape would leave a hole in the memory."""
    small, large = 5_000, 40_000
    for rows in (small, large):
        wide = [f"{one:08d}" * 1_000 for one in range(rows)]
        texts = ["the cat sat " * (1 + one % 97) for one in range(rows)]
        columns = {"text": texts, "wide": wide}
        # In one row group, as many writers have it.
        pq.write_table(pa.table(columns), tmp_path / f"{rows}.parquet", row_group_size=rows,
                       use_dictionary=False)  # fmt: skip
    files = [str(tmp_path / f"{rows}.parquet") for rows in (small, large)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(saved(tmp_path)), *files],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (rows_one, peak_one), (rows_eight, peak_eight) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    assert (rows_one, rows_eight) == (small, large)
    assert peak_eight - peak_one < 40 * 1024


def test_the_command_writes_a_scored_file(house: House) -> None:
    registered(house, "one-a", "one-b", "one-c")
    crown(house, 1)
    pq.write_table(table(5), house.folder / "big.parquet")
    out = house.folder / "scored.parquet"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("nightshift")), "predict", house.name,
         str(house.folder / "big.parquet"), "--out", str(out), "--config", str(house.config)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "scored.parquet: 5 rows, by version 1" in done.stdout
    assert {row["label"][:4] for row in read(out)} == {"one-"}
