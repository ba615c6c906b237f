"""The lake: nights replace their rows, readers see what was published, digests tell rows apart."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder

from nightshift import tables
from nightshift.errors import ConfigError, PassingError
from nightshift.tables import (
    SCHEMAS,
    VOLATILE,
    Digest,
    Lake,
    digest_of,
    rows_of,
    valid_night,
)

ROOT = Path(__file__).parent.parent
WHEN = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"), "headlines")


def labels(*pairs: tuple[str, str]) -> list[pa.RecordBatch]:
    return rows_of("labels", [{"doc_id": one, "label": label} for one, label in pairs])


def ids(lake: Lake, table: str = "labels", **options: Any) -> list[str]:
    return lake.read(table, ["doc_id"], **options)["doc_id"].to_pylist()


def night_row(name: str, number: int, state: str = "published", **more: Any) -> dict[str, Any]:
    return {"night": name, "number": number, "state": state, "started": WHEN, **more}


# --- writing --------------------------------------------------------------------------------


def test_a_table_that_does_not_exist_has_no_rows_and_no_version(lake: Lake) -> None:
    assert lake.version("labels") is None
    assert list(lake.scan("labels")) == []
    assert lake.read("labels").schema == SCHEMAS["labels"]
    assert (lake.nights(), lake.published(), lake.stages("n1")) == ([], None, {})


def test_repeating_a_night_replaces_its_rows_and_no_others(lake: Lake) -> None:
    lake.replace("labels", "n1", labels(("a", "x")))
    lake.replace("labels", "n2", labels(("b", "x"), ("c", "y")))
    lake.replace("labels", "n1", labels(("d", "z")))
    rows = lake.read("labels").to_pylist()
    assert [(row["doc_id"], row["night"]) for row in rows] == [
        ("d", "n1"),
        ("b", "n2"),
        ("c", "n2"),
    ]


def test_a_night_without_rows_empties_what_it_had_written(lake: Lake) -> None:
    lake.replace("labels", "n1", labels(("a", "x")))
    ref = lake.replace("labels", "n1", [])
    assert (ref.table, ref.rows) == ("labels", 0)
    assert ids(lake) == []


def test_a_write_is_one_commit_and_its_reference_names_the_version(lake: Lake) -> None:
    first = lake.replace("labels", "n1", labels(("a", "x")))
    second = lake.replace("labels", "n2", labels(("b", "y")))
    assert second.version == first.version + 1 == lake.version("labels")
    assert ids(lake, version=first.version) == ["a"]
    assert ids(lake, version=second.version) == ["a", "b"]


def test_nothing_appears_when_writing_fails_half_way(lake: Lake) -> None:
    before = lake.replace("labels", "n1", labels(("a", "x")))

    def broken() -> Any:
        yield from labels(("b", "y"))
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        lake.replace("labels", "n1", broken())
    assert lake.version("labels") == before.version
    assert ids(lake) == ["a"]


def test_rows_come_back_in_the_order_written_and_nights_in_that_of_their_names(lake: Lake) -> None:
    many = [(f"d{number:05d}", "x") for number in range(3000)]
    lake.replace("labels", "n2", labels(*reversed(many)))
    lake.replace("labels", "n1", labels(("first", "x")))
    assert ids(lake) == ["first", *(doc_id for doc_id, _ in reversed(many))]
    sizes = [batch.num_rows for batch in lake.scan("labels", ["doc_id"], rows=1000)]
    assert sum(sizes) == 3001
    assert max(sizes) <= 1000


def test_conditions_and_columns_are_those_asked_for(lake: Lake) -> None:
    lake.replace("labels", "n1", labels(("a", "x"), ("b", "y")))
    lake.replace("labels", "n2", labels(("c", "x")))
    found = lake.read("labels", ["label", "doc_id"], pc.field("label") == "x")
    assert found.to_pydict() == {"label": ["x", "x"], "doc_id": ["a", "c"]}
    assert ids(lake, where=pc.field("night") == "n2") == ["c"]


def test_a_streamed_writer_takes_mappings_and_batches_in_any_order_of_columns(lake: Lake) -> None:
    with lake.writer("labels", "n1") as writer:
        writer.write([{"doc_id": "a", "at": WHEN}])
        [batch] = labels(("b", "y"))
        writer.write(batch.select(list(reversed(batch.schema.names))))
    assert writer.ref.rows == 2
    assert lake.read("labels").to_pylist() == [
        {"doc_id": "a", "label": None, "by": None, "at": WHEN, "night": "n1"},
        {"doc_id": "b", "label": "y", "by": None, "at": None, "night": "n1"},
    ]


def test_whoever_reads_slowly_finds_a_few_groups_of_rows_in_memory_and_not_the_table(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 2)
    pairs = [(f"d{number:02d}", "x") for number in range(30)]
    lake.replace("labels", "n1", [one for pair in pairs for one in labels(pair)])
    read, real = list[int](), tables._batches
    monkeypatch.setattr(tables, "_batches", lambda group, **how: (
        read.append(group.row_groups[0].id), real(group, **how)
    )[1])  # fmt: skip
    found = lake.scan("labels", ["doc_id"])
    assert next(found).column("doc_id").to_pylist() == ["d00", "d01"]
    time.sleep(0.5)
    assert sorted(read) == [0, 1, 2]  # of fifteen
    assert sum(batch.num_rows for batch in found) == 28
    assert sorted(read) == [*range(15)]


def test_every_table_takes_and_gives_back_an_empty_night(lake: Lake) -> None:
    for table, schema in SCHEMAS.items():
        lake.replace(table, "n1", [])
        assert lake.read(table).schema == schema
        assert "night" in schema.names


def test_vectors_and_lists_survive_with_their_nulls(lake: Lake) -> None:
    rows = [
        {"doc_id": "a", "vector": [0.5, -1.0], "model_id": "m"},
        {"doc_id": "b", "vector": [], "model_id": "m"},
        {"doc_id": "c", "vector": None, "model_id": "m"},
    ]
    lake.replace("embeddings", "n1", rows_of("embeddings", rows))
    assert lake.read("embeddings")["vector"].to_pylist() == [[0.5, -1.0], [], None]


def test_vectors_lie_in_files_as_they_are_read_fastest_beside_files_of_before(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a version before wrote: compressed, and any number might have been null."""
    rows = [{"doc_id": f"{n}", "vector": [n, 0.5], "model_id": "m"} for n in range(3)]
    lake.replace("embeddings", "n1", rows_of("embeddings", rows[:2]))
    monkeypatch.setattr(tables, "_dense", lambda schema: schema)
    monkeypatch.setattr(tables, "_compression", lambda schema: {"compression": "zstd"})
    lake.replace("embeddings", "n2", rows_of("embeddings", rows[2:]))
    new, old = (Path(one) for one in sorted(lake.handle("embeddings").file_uris()))
    column = pq.ParquetFile(new).metadata.row_group(0).column(1)
    assert (column.compression, column.encodings) == ("UNCOMPRESSED", ("RLE", "PLAIN"))
    assert not pq.ParquetFile(new).schema_arrow.field("vector").type.value_field.nullable
    assert pq.ParquetFile(old).schema_arrow.field("vector").type.value_field.nullable
    for found in (
        lake.read("embeddings", ["doc_id", "vector"]),
        lake.handle("embeddings").to_pyarrow_table(columns=["doc_id", "vector"]),
        pa.table(
            QueryBuilder().register("t", lake.handle("embeddings"))
            .execute("select doc_id, vector from t").read_all()
        ),
    ):  # fmt: skip
        sorted_rows = sorted(found.to_pylist(), key=lambda row: row["doc_id"])
        assert sorted_rows == [{"doc_id": f"{n}", "vector": [n, 0.5]} for n in range(3)]


def test_the_tables_are_plain_delta_that_others_can_read(lake: Lake) -> None:
    lake.replace("labels", "n1", labels(("a", "x")))
    opened = DeltaTable(f"{lake.root}/labels")
    assert opened.to_pyarrow_table()["doc_id"].to_pylist() == ["a"]
    assert opened.metadata().partition_columns == ["night"]


def test_a_store_that_does_not_answer_is_worth_a_retry(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where the folder should be")
    with pytest.raises(PassingError, match="table 'labels' at"):
        Lake(str(tmp_path / "lake"), "p").replace("labels", "n1", labels(("a", "x")))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "n 1", "n'1", "x" * 65, "夜"])
def test_a_night_name_unfit_for_a_folder_is_refused(lake: Lake, name: str) -> None:
    with pytest.raises(ConfigError, match="Choose another name"):
        lake.replace("labels", name, [])


@pytest.mark.parametrize("name", ["2026-11-22", "night-1", "N_1.b", "x" * 64])
def test_a_plain_night_name_is_taken_as_it_is(name: str) -> None:
    assert valid_night(name) == name


# --- nights and stages ----------------------------------------------------------------------


def test_published_is_the_newest_by_number_whatever_its_name_and_later_failures(lake: Lake) -> None:
    lake.write_night(night_row("z", 1, versions={"labels": 3}))
    lake.write_night(night_row("a", 2, versions={"labels": 5}, figures={"documents": 7}))
    lake.write_night(night_row("m", 3, "failed"))
    assert [row["night"] for row in lake.nights()] == ["z", "a", "m"]
    found = lake.published()
    assert found is not None
    assert (found["night"], found["versions"]) == ("a", {"labels": 5})
    assert found["figures"] == {"documents": 7}


def test_before_the_publication_readers_still_find_yesterday(lake: Lake) -> None:
    yesterday = lake.replace("labels", "n1", labels(("a", "x")))
    lake.write_night(night_row("n1", 1, versions={"labels": yesterday.version}))
    lake.replace("labels", "n2", labels(("b", "y")))
    lake.write_night(night_row("n2", 2, "running"))
    seen = lake.published()
    assert seen is not None
    assert ids(lake, version=seen["versions"]["labels"]) == ["a"]
    lake.write_night(night_row("n2", 2, versions={"labels": lake.version("labels")}))
    seen = lake.published()
    assert seen is not None
    assert ids(lake, version=seen["versions"]["labels"]) == ["a", "b"]


def test_a_file_of_nights_is_read_once_and_what_another_process_wrote_is_seen(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        lake.write_night(night_row(f"n{number}", number, figures={"documents": number}))
    read: list[str] = []
    rows_of_nights = lake._rows_of

    def counted(table: str, opened: Any, nights: list[str]) -> Any:
        read.extend(nights)
        return rows_of_nights(table, opened, nights)

    monkeypatch.setattr(lake, "_rows_of", counted)
    assert [row["figures"]["documents"] for row in lake.nights()] == [1, 2, 3]
    assert sorted(read) == ["n1", "n2", "n3"]
    lake.nights()[0]["state"] = "altered by whoever asked"
    assert lake.nights()[0]["state"] == "published"
    assert len(read) == 3
    code = (
        "import sys; from datetime import UTC, datetime; from nightshift.tables import Lake\n"
        "lake = Lake(sys.argv[1], 'headlines'); row = lake.nights()[1]\n"
        "lake.write_night({**row, 'state': 'failed'})\n"
        "lake.write_night({**row, 'night': 'n4', 'number': 4})"
    )
    folder = lake.root.removesuffix("/headlines")
    subprocess.run([sys.executable, "-c", code, folder], check=True, cwd=ROOT, timeout=120)
    assert [row["state"] for row in lake.nights()] == [
        "published", "failed", "published", "published",
    ]  # fmt: skip
    assert sorted(read[3:]) == ["n2", "n4"]


def test_a_stage_is_noted_once_and_the_others_of_its_night_stay(lake: Lake) -> None:
    def note(stage: str, digest: str, minutes: int) -> None:
        row = {"stage": stage, "digest": digest, "outputs": {"rows": 1}, "figures": {"seconds": 2}}
        lake.write_stage("n1", {**row, "seconds": 0.5, "at": WHEN + timedelta(minutes=minutes)})

    note("train", "t", 1)
    note("ingest", "i", 0)
    note("train", "t2", 2)
    found = lake.stages("n1")
    assert {name: row["digest"] for name, row in found.items()} == {"ingest": "i", "train": "t2"}
    assert list(found) == ["ingest", "train"]
    assert found["train"]["outputs"] == {"rows": 1}
    assert lake.stages("n2") == {}


# --- digests --------------------------------------------------------------------------------

TOKENS = pa.table(
    {
        "doc_id": ["a", "b", None, "d"],
        "ids": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
        "share": pa.array([0.5, None, 1.0, 2.0], pa.float32()),
        "kept": pa.array([True, False, None, True]),
    }
)


def digest(table: pa.Table, rows: int = 100) -> str:
    found = Digest()
    for batch in table.to_batches(max_chunksize=rows):
        found.feed(batch)
    return found.hexdigest()


def test_a_digest_does_not_depend_on_how_rows_were_cut() -> None:
    assert digest(TOKENS, 1) == digest(TOKENS, 3) == digest(TOKENS)


@pytest.mark.parametrize(
    "change",
    [
        {"doc_id": ["a", "b", "", "d"]},
        {"doc_id": ["ab", "", None, "d"]},
        {"ids": [[1], [2], None, [3]]},
        {"ids": [[1, 2], None, [], [3]]},
        {"ids": [[1, 2], [], None, [4]]},
        {"share": [0.5, 0.0, 1.0, 2.0]},
        {"kept": [True, False, False, True]},
        {"doc_id": ["b", "a", None, "d"]},
    ],
)
def test_a_digest_changes_with_any_value_null_or_order(change: dict[str, list[Any]]) -> None:
    [(name, values)] = change.items()
    column = pa.array(values, TOKENS.schema.field(name).type)
    changed = TOKENS.set_column(TOKENS.schema.names.index(name), name, column)
    assert digest(changed) != digest(TOKENS)


def test_a_digest_leaves_out_moments_and_run_ids(lake: Lake) -> None:
    early = {"stage": "train", "digest": "t", "seconds": 1.0, "at": WHEN}
    late = {**early, "seconds": 9.0, "at": WHEN + timedelta(days=1)}
    one, two = (lake.replace("stages", "n1", rows_of("stages", [row])) for row in (early, late))
    assert one.digest == two.digest
    assert one.version != two.version
    assert {"seconds", "at", "mlflow_run"} <= VOLATILE


def test_the_same_rows_give_the_same_digest_on_another_night_and_machine(
    lake: Lake, tmp_path: Path
) -> None:
    one = lake.replace("labels", "n1", labels(("a", "x"), ("b", "y")))
    other = Lake(str(tmp_path / "other"), "headlines")
    two = other.replace("labels", "n2", [*labels(("a", "x")), *labels(("b", "y"))])
    assert one.digest == two.digest
    assert one.as_json() == {"table": "labels", "version": 1, "rows": 2, "digest": one.digest}


def test_a_digest_of_json_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert len(digest_of(None)) == 32


def test_versions_that_nights_name_do_not_expire(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    lake = Lake(str(tmp_path), "p")
    lake.replace("labels", "n1", [])
    kept = DeltaTable(f"{lake.root}/labels").metadata().configuration
    assert kept["delta.enableExpiredLogCleanup"] == "false"
