"""The lake's files: joined without moving a row, vacuumed under readers; lakes of older code."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nightshift import tables
from nightshift.errors import ConfigError, NightError, PassingError
from nightshift.migrations import STEPS, migrate, outdated
from nightshift.retention import (
    KeepConfig,
    gone_models,
    gone_versions,
    needed_versions,
    old_nights,
)
from nightshift.tables import SCHEMA_PROPERTY, SCHEMA_VERSION, SCHEMAS, Lake, NightWriter, rows_of
from nightshift.upkeep import (
    compact,
    delete,
    first_version,
    orphans,
    split_nights,
    trim_log,
    vacuum,
)

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"), "headlines")


def labels(*doc_ids: str) -> list[pa.RecordBatch]:
    return rows_of("labels", [{"doc_id": one, "label": "x"} for one in doc_ids])


def ids(lake: Lake, version: int | None = None) -> list[str]:
    return lake.read("labels", ["doc_id"], version=version)["doc_id"].to_pylist()


def files(lake: Lake, table: str = "labels") -> set[str]:
    return {one.name for one in (Path(lake.root) / table).rglob("*.parquet")
            if "_delta_log" not in one.parts}  # fmt: skip


# --- files ----------------------------------------------------------------------------------


def test_joining_a_nights_files_keeps_its_rows_their_order_and_their_digest(lake: Lake) -> None:
    first = lake.replace("labels", "n1", labels("a", "b", "c", "d", "e"))
    lake.replace("labels", "n1", labels("a", "b"))
    opened = lake.handle("labels")
    for more in (("c",), ("d", "e")):  # as another tool would append
        added = NightWriter(opened, "labels", "n1").lay_down(labels(*more))
        opened.create_write_transaction(added, "append", SCHEMAS["labels"], ["night"])
        opened.update_incremental()
    before = ids(lake)
    assert split_nights(lake, "labels") == 1
    assert compact(lake, "labels") == 3
    assert split_nights(lake, "labels") == 0
    assert ids(lake) == before
    assert sorted(before) == ["a", "b", "c", "d", "e"]
    # In the order of the one file they would have been in, the digest is that of one.
    again = lake.replace("labels", "n2", labels("a", "b", "c", "d", "e"))
    assert again.digest == first.digest
    assert compact(lake, "labels") == 0


def test_a_vacuum_leaves_what_kept_versions_name_and_what_is_younger_than_the_grace(
    lake: Lake,
) -> None:
    versions = [lake.replace("labels", "n1", labels(str(one))).version for one in range(4)]
    assert vacuum(lake, "labels", set(), grace_hours=1) == (0, 0)
    would, size = vacuum(lake, "labels", {versions[1]}, 0, dry_run=True)
    assert (would, size > 0, len(files(lake))) == (2, True, 4)
    assert vacuum(lake, "labels", {versions[1]}, 0)[0] == 2
    assert ids(lake, versions[1]) == ["1"]
    assert ids(lake) == ["3"]
    with pytest.raises(PassingError):
        ids(lake, versions[2])


def test_a_reader_that_reads_while_the_vacuum_runs_gets_every_row(lake: Lake) -> None:
    many = [f"d{number:06d}" for number in range(60_000)]
    pinned = lake.replace("labels", "n1", labels(*many)).version
    lake.replace("labels", "n2", labels("late"))
    pinned = lake.version("labels")
    begun, cleaned, seen = threading.Event(), threading.Event(), list[str]()

    def read() -> None:
        for batch in lake.scan("labels", ["doc_id"], version=pinned, rows=500):
            seen.extend(batch.column("doc_id").to_pylist())
            if len(seen) == 500:
                begun.set()
                assert cleaned.wait(60)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    # Tonight replaces all of it, twice; the version that the reader pinned is the published one.
    for _ in range(2):
        lake.replace("labels", "n1", labels("new"))
        lake.replace("labels", "n2", [])
    assert vacuum(lake, "labels", {pinned or 0}, 0)[0] == 1
    trim_log(lake, "labels", pinned or 0)
    cleaned.set()
    reader.join(60)
    assert seen == [*many, "late"]
    assert ids(lake, pinned) == seen  # and whoever opens it now
    assert ids(lake) == ["new"]


def test_a_trimmed_log_opens_the_oldest_kept_version_and_all_after_it(lake: Lake) -> None:
    versions = [lake.replace("labels", f"n{one}", labels(str(one))).version for one in range(6)]
    assert first_version(lake, "labels") == 0
    assert trim_log(lake, "labels", versions[3]) == versions[3]
    assert first_version(lake, "labels") == versions[3]
    assert [len(ids(lake, one)) for one in versions[3:]] == [4, 5, 6]
    # Never the empty table that delta-rs takes it for.
    with pytest.raises(NightError, match="log was trimmed"):
        ids(lake, versions[2])
    lake.replace("labels", "n9", labels("9"))
    assert len(ids(lake)) == 7
    assert trim_log(lake, "labels", versions[3]) == 0
    # A vacuum passes versions over that are gone.
    assert vacuum(lake, "labels", {versions[0], versions[4]}, 0) == (0, 0)


def test_a_table_that_stays_open_is_cleaned_after_its_log_was_trimmed(lake: Lake) -> None:
    lake.hold(1)
    versions = [lake.replace("labels", f"n{one}", labels(str(one))).version for one in range(6)]
    assert len(ids(lake, versions[2])) == 3
    trim_log(lake, "labels", versions[3])
    with pytest.raises(NightError, match="log was trimmed"):
        ids(lake, versions[2])
    # Another night under the same lease, which wrote nothing to this table.
    assert vacuum(lake, "labels", {versions[4]}, 0) == (0, 0)
    assert len(ids(lake)) == 6
    lake.let_go()


def test_orphans_are_files_no_version_ever_named_and_older_than_the_grace(lake: Lake) -> None:
    lake.replace("labels", "n1", labels("a"))
    lake.replace("labels", "n1", labels("b"))  # replaced is not orphaned
    NightWriter(lake.handle("labels"), "labels", "n1").lay_down(labels("killed"))
    [(path, size)] = orphans(lake, "labels", 0)
    assert size > 0
    assert orphans(lake, "labels", 1) == []
    delete(lake, "labels", [path, path])
    assert orphans(lake, "labels", 0) == []
    assert len(files(lake)) == 2


def test_files_that_only_a_checkpoint_names_are_no_orphans(lake: Lake) -> None:
    for night in ("n1", "n2", "n3"):
        lake.replace("labels", night, labels(night))
    lake.replace("labels", "n1", labels("later"))
    before = lake.version("labels")
    assert before is not None
    trim_log(lake, "labels", before - 1)
    # The commits that added n1, n2 and n3 are gone; the last but one version still opens.
    assert ids(lake, before - 1) == ["n1", "n2", "n3"]
    assert orphans(lake, "labels", 0) == []
    NightWriter(lake.handle("labels"), "labels", "n1").lay_down(labels("killed"))
    [(path, _)] = orphans(lake, "labels", 0)
    delete(lake, "labels", [path])
    assert ids(lake, before - 1) == ["n1", "n2", "n3"]
    # A reader that began before may still be at the file that was replaced: it is vacuum's.
    trim_log(lake, "labels", before)
    assert orphans(lake, "labels", 0) == []
    assert len(files(lake)) == 4


# --- schema ---------------------------------------------------------------------------------

OLD = {
    "nights": ("manifest",),
    "documents": ("columns",),
    "clusters": ("named_by", "born", "heirs", "scale", "radius"),
    "promotions": ("policy", "wins", "losses", "p_value", "slices", "champion_ms",
                   "challenger_ms"),
}  # fmt: skip


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake as the first code wrote it: fewer columns, no version of the schema, no tombstones."""
    lake = Lake(str(tmp_path / "old"), "headlines")
    with monkeypatch.context() as then:
        for table, later in OLD.items():
            fewer = pa.schema([one for one in SCHEMAS[table] if one.name not in later])
            then.setitem(tables.SCHEMAS, table, fewer)
        then.setattr(tables, "SCHEMA_PROPERTY", "delta.appendOnly")
        then.setattr(tables, "SCHEMA_VERSION", "false")
        then.setattr(tables, "schema_of", lambda _: 0)
        then.setattr(tables.Lake, "_open", _open_then)
        lake.replace("documents", "n1", rows_of("documents", [{"doc_id": "a", "text": "t"}]))
        row = {"cluster_id": "c-0001", "event": "born", "size": 1}
        lake.replace("clusters", "n1", rows_of("clusters", [row]))
        night = {"night": "n1", "number": 1, "state": "published"}
        batch = pa.Table.from_pylist([night], schema=tables.SCHEMAS["nights"])
        lake.replace("nights", "n1", batch.to_batches())
    return lake


def _open_then(self: Lake, table: str, version: int | None) -> Any:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(f"{self.root}/{table}", version)
    except TableNotFoundError:
        return None


def test_a_lake_of_the_first_code_is_read_as_it_is_and_brought_forward_in_place(
    first: Lake,
) -> None:
    assert first.nights()[0]["manifest"] == {}
    # Of each table, the version of the last step whose columns it has.
    assert outdated(first) == {"documents": 2, "clusters": 1, "nights": 4}
    said = list(migrate(first))
    assert said[0] == "table 'documents', to version 3 (further columns of the source): columns"
    assert any(one.endswith("scale, radius, filled in 1 rows") for one in said)
    assert outdated(first) == {}
    assert list(migrate(first)) == []
    for table in ("documents", "clusters", "nights"):
        opened = first.handle(table)
        assert {one.name for one in opened.schema().fields} == {*SCHEMAS[table].names}
        configuration = opened.metadata().configuration
        assert configuration[SCHEMA_PROPERTY] == str(SCHEMA_VERSION)
        assert configuration["delta.enableExpiredLogCleanup"] == "false"
    [row] = first.read("clusters").to_pylist()
    assert (row["scale"], row["radius"], row["heirs"]) == (1.0, float("inf"), None)
    first.replace("documents", "n2", rows_of("documents", [{"doc_id": "b", "columns": "{}"}]))
    assert first.read("documents", ["doc_id", "columns"]).to_pydict() == {
        "doc_id": ["a", "b"], "columns": [None, "{}"],
    }  # fmt: skip


def test_every_version_of_the_schema_has_its_step_and_every_step_its_columns() -> None:
    assert sorted(STEPS) == list(range(2, SCHEMA_VERSION + 1))
    for step in STEPS.values():
        for table, columns in step.columns.items():
            assert {*columns} <= {*SCHEMAS[table].names}


def test_a_lake_of_newer_code_is_refused_by_readers_and_writers(lake: Lake) -> None:
    lake.replace("labels", "n1", labels("a"))
    lake.set_properties("labels", {SCHEMA_PROPERTY: str(SCHEMA_VERSION + 1)})
    for refused in (lambda: ids(lake), lambda: lake.replace("labels", "n2", labels("b"))):
        with pytest.raises(ConfigError, match="a newer one wrote it"):
            refused()


# --- policy ---------------------------------------------------------------------------------


def nights(*models: str, days_ago: int = 10) -> list[dict[str, Any]]:
    """One published night a day, each with a version of its own: 1, 2, ..."""
    return [
        {"night": f"n{number}", "number": number, "state": "published", "model_id": model,
         "registry_version": number, "figures": {"challenger_version": None},
         "finished": NOW - timedelta(days=days_ago - number)}
        for number, model in enumerate(models, 1)
    ]  # fmt: skip


def test_a_night_is_old_when_neither_rule_keeps_it() -> None:
    rows = nights("m", "m", "m", "m")  # finished 9, 8, 7 and 6 days ago
    assert old_nights(rows, KeepConfig(), NOW) == []
    assert old_nights(rows, KeepConfig(nights=2), NOW) == ["n1", "n2"]
    assert old_nights(rows, KeepConfig(days=8), NOW) == ["n1"]
    assert old_nights(rows, KeepConfig(nights=2, days=8), NOW) == ["n1"]
    # The published night stays, however old it is.
    assert old_nights(rows, KeepConfig(days=1), NOW) == ["n1", "n2", "n3"]


def test_champion_challenger_way_back_and_an_unfinished_decision_stay() -> None:
    rows = nights("a", "b", "b", "c", "c", "c")
    rows[-1]["figures"]["challenger_version"] = 9
    rows.append({"night": "n7", "state": "failed", "figures": {"turn": {"version": 2}}})
    # 6 is champion, 9 waits, 3 is the newest version of another model, 2 is what n7 turns to.
    assert needed_versions(rows) == {6, 9, 3, 2}
    versions = [
        {"version": one, "model_id": rows[one - 1]["model_id"], "night": f"n{one}"}
        for one in range(1, 7)
    ]
    gone = gone_versions(rows, versions, KeepConfig(models=1))
    assert [one["version"] for one in gone] == [1, 4, 5]
    assert gone_versions(rows, versions, KeepConfig()) == []
    # Model c lives on in version 6; a has no version left.
    assert gone_models(rows, versions, gone) == {"a"}
