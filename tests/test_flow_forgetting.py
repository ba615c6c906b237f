"""Documents that are forgotten: nothing anywhere shows them, and nothing else is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
from conftest import SCRATCH, House, rows
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows import cli
from flows.forgetting import forget
from nightshift.cleaning import content_digest
from nightshift.errors import ConfigError, ReplayError
from nightshift.journal import Journal, journal_path
from nightshift.pipeline import load_settings
from nightshift.tables import SCHEMAS
from tasks.tracking import rewrite_artifacts

SECRET = "my neighbour Ottokar Quillfeather burned the garlic butter in his oven again"
TRACE = b"Quillfeather"
ID = "r-secret"

# Forgets a document in a process that dies by SIGKILL at the given place.
DRIVER = """
import os, signal, sys
from pathlib import Path
place, config, pipeline, doc_id = sys.argv[1:]
import flows.forgetting as forgetting
import nightshift.tables as tables
from nightshift.pipeline import load_settings

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dying_at(count, real):
    calls = 0
    def call(*given, **named):
        nonlocal calls
        calls += 1
        return die() if calls == count else real(*given, **named)
    return call

if place == "tables":  # some tables are anew, of another only the first nights are back
    from deltalake import DeltaTable
    DeltaTable.create_write_transaction = dying_at(6, DeltaTable.create_write_transaction)
if place == "switch":
    tables.Lake.write_nights = die
if place == "switched":  # the nights name the new versions, the note does not know it yet
    forgetting._write = dying_at(2, forgetting._write)
if place == "vacuum":
    from deltalake import DeltaTable
    DeltaTable.vacuum = dying_at(3, DeltaTable.vacuum)
forgetting.forget(load_settings(Path(config)), pipeline, [doc_id], "asked for", "ada")
"""


def numbered(found: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    return [{**row, "id": f"{prefix}-{place}"} for place, row in enumerate(found)]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Three nights; the second brings the document, the third brings it again."""
    house = House(tmp_path_factory.mktemp("forgetting"))
    house.declare(source={"id": "id"}, report={"map_points": 1000})
    house.drop("one.jsonl", numbered(rows(40), "a"))
    house.work("n1")
    secret = {"id": ID, "text": SECRET, "label": "cooking"}
    house.drop("two.jsonl", [*numbered(rows(5, seed=1), "b"), secret])
    house.work("n2")
    again = {**secret, "id": "r-copy"}
    broken = b'{"id": "r-broken", "text": "' + SECRET.encode() + b'", "label": \n'
    more = "".join(json.dumps(row) + "\n" for row in [*numbered(rows(5, seed=2), "c"), again])
    house.drop("three.jsonl", more.encode() + broken)
    house.work("n3")
    return house


@pytest.fixture
def house(worked: House, tmp_path: Path) -> House:
    """A copy of the lake and the reports; MLflow is shared."""
    shutil.copytree(worked.folder, tmp_path / worked.folder.name)
    return House(tmp_path / worked.folder.name, worked.settings)


def files_that_show_it(house: House) -> list[str]:
    """Every file but the user's own in which the name stands: tables, pages, stores, databases."""
    artifacts = SCRATCH / "mlflow-artifacts" / house.name
    places = [*house.folder.rglob("*"), *artifacts.rglob("*"), *SCRATCH.glob("*.db*"),
              *(SCRATCH / "prefect").rglob("*")]  # fmt: skip
    found: list[str] = []
    for path in places:
        if not path.is_file() or path.is_relative_to(house.folder / "inbox"):
            continue
        said = path.read_bytes()
        if path.suffix == ".parquet":
            said = json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
        if TRACE in said:
            found.append(str(path))
    return found


def as_published(house: House) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What every published night's versions hold, by night and table."""
    return {
        (row["night"], table): house.lake.read(table, version=version).to_pylist()
        for row in house.lake.nights()
        for table, version in row["versions"].items()
    }


def without_it(
    before: dict[tuple[str, str], list[dict[str, Any]]],
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The same without the document, by hand."""
    after: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (night, table), found in before.items():
        kept = [dict(row) for row in found]
        if table == "duplicates":
            for row in kept:
                if row["doc_id"] == ID:
                    row.update(doc_id=None, source_id=None)
        elif table == "rejects":
            for row in kept:
                row["raw"] = "" if "Quillfeather" in row["raw"] else row["raw"]
        elif table == "clusters":
            for row in kept:
                row["exemplars"] = [one for one in row["exemplars"] or [] if one != ID]
        else:
            kept = [row for row in kept if row.get("doc_id") != ID]
        after[night, table] = kept
    return after


@pytest.fixture(scope="module")
def forgotten(worked: House, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document forgotten in a copy; and what was there before."""
    folder = tmp_path_factory.mktemp("copy") / worked.folder.name
    shutil.copytree(worked.folder, folder)
    house = House(folder, worked.settings)
    shown, before = files_that_show_it(house), as_published(house)
    receipt = forget(load_settings(house.config), house.name, [ID], "asked for", "ada")
    return {"house": house, "shown": shown, "before": before, "receipt": receipt}


# --- nothing shows it -------------------------------------------------------------------------


def test_it_was_shown_in_tables_pages_and_mlflow_before(forgotten: dict[str, Any]) -> None:
    shown = "\n".join(forgotten["shown"])
    assert "/documents/" in shown
    assert "/rejects/" in shown
    assert "/reports/" in shown
    assert "mlflow-artifacts" in shown


def test_no_file_table_log_artifact_or_database_shows_it_after(forgotten: dict[str, Any]) -> None:
    assert files_that_show_it(forgotten["house"]) == []


def test_every_nights_versions_are_what_they_were_without_it(forgotten: dict[str, Any]) -> None:
    after = as_published(forgotten["house"])
    wanted = without_it(forgotten["before"])
    assert {key: one for key, one in after.items() if key[1] != "tombstones"} == wanted
    # Nothing of the first night is written anew: it came before the document.
    [first, second, _] = forgotten["house"].lake.nights()
    assert {row["night"] for row in after["n1", "documents"]} == {"n1"}
    assert second["versions"]["documents"] > first["versions"]["documents"]


def test_the_tombstone_tells_nothing_but_digests(forgotten: dict[str, Any]) -> None:
    [row] = forgotten["house"].table("tombstones")
    assert row["doc_digest"] == content_digest(ID)
    assert row["content_digest"] == content_digest(SECRET)
    assert (row["document_night"], row["after"], row["by"]) == ("n2", 3, "ada")


def test_the_receipt_says_who_when_why_what_which_models_and_which_files(
    forgotten: dict[str, Any],
) -> None:
    receipt, house = forgotten["receipt"], forgotten["house"]
    assert (receipt["by"], receipt["reason"]) == ("ada", "asked for")
    assert receipt["documents"] == [
        {"doc_digest": content_digest(ID), "content_digest": content_digest(SECRET), "night": "n2"}
    ]
    rows = receipt["rows"]
    assert (rows["documents"], rows["tokens"], rows["duplicates"], rows["rejects"]) == (1, 1, 1, 1)
    assert rows["predictions"] >= 1
    assert any("report.html" in one for one in receipt["pages"])
    nights = {one["night"]: one["because"] for one in receipt["models"]}
    assert "n1" not in nights
    assert nights
    assert {Path(one).name for one in receipt["source_files"]} == {"three.jsonl", "two.jsonl"}
    assert json.loads(Path(receipt["kept_at"]).read_text()) == receipt
    assert ID not in json.dumps(receipt)
    assert not (house.folder / "reports" / house.name / ".forgetting.json").exists()


def test_pages_keep_all_others(forgotten: dict[str, Any]) -> None:
    house = forgotten["house"]
    page = (house.folder / "reports" / house.name / "n2.html").read_text()
    assert page.count("[forgotten]") >= 1
    others = [row["text"] for row in house.table("documents") if row["night"] != "n3"]
    assert sum(one in page for one in others) >= 100


# --- it does not come back --------------------------------------------------------------------


def test_the_next_night_refuses_it_and_its_rows_add_up(forgotten: dict[str, Any]) -> None:
    house: House = forgotten["house"]
    more = [
        *numbered(rows(4, seed=3), "d"),
        {"id": "r-new", "text": SECRET, "label": "cooking"},
        {"id": ID, "text": "another text by the same person entirely", "label": "chess"},
    ]
    house.drop("two-again.jsonl", more)
    house.work("n4")
    last = house.status()[-1]
    assert last["state"] == "published"
    assert (last["documents"], last["duplicates"], last["rejects"]) == (12, 0, 2)
    refused = [row for row in house.table("rejects") if row["night"] == "n4"]
    assert [(row["reason"], row["raw"]) for row in refused] == [("forgotten", "")] * 2
    # Of every night: kept by then = documents now, and those that were forgotten.
    for batch_night in ("n1", "n2", "n3", "n4"):
        kept = sum(row["kept"] for row in house.table("batches") if row["night"] == batch_night)
        there = sum(row["night"] == batch_night for row in house.table("documents"))
        gone = sum(row["document_night"] == batch_night for row in house.table("tombstones"))
        assert kept == there + gone
    assert files_that_show_it(house) == []


def test_a_night_that_had_it_cannot_be_replayed_and_says_why(forgotten: dict[str, Any]) -> None:
    from flows.replaying import replay

    house = forgotten["house"]
    with pytest.raises(ReplayError, match=r"documents that night n3 had, 1 were forgotten since"):
        replay(load_settings(house.config), house.name, "n3")


def test_it_cannot_be_forgotten_twice(forgotten: dict[str, Any]) -> None:
    house = forgotten["house"]
    with pytest.raises(ConfigError, match=r"no document r-secret \(1 of them forgotten before\)"):
        forget(load_settings(house.config), house.name, [ID], "asked for")


# --- killed -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tables", "switch", "switched", "vacuum"])
def test_killed_in_the_middle_it_is_finished_by_the_same_command(house: House, place: str) -> None:
    before = as_published(house)
    words = [place, str(house.config), house.name, ID]
    killed = subprocess.run([sys.executable, "-c", DRIVER, *words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if place == "tables":  # the newest version of a table is short of its newest nights
        newest = house.lake.nights()[-1]["versions"]
        found = [(house.lake.read(one), house.lake.read(one, version=newest[one]))
                 for one in ("labels", "tokens", "predictions")]  # fmt: skip
        assert any(now.num_rows < then.num_rows - 1 for now, then in found)
    if place != "vacuum":
        # Readers still have versions that they can read, of the old rows or of the new.
        assert as_published(house).keys() >= before.keys()
    receipt = forget(load_settings(house.config), house.name, [ID], "asked for", "ada")
    assert receipt["rows"]["documents"] == 1
    after = as_published(house)
    assert {key: one for key, one in after.items() if key[1] != "tombstones"} == without_it(before)
    assert files_that_show_it(house) == []


@pytest.mark.slow
def test_a_night_finishes_what_was_left_before_it_begins(house: House) -> None:
    words = ["tables", str(house.config), house.name, ID]
    subprocess.run([sys.executable, "-c", DRIVER, *words], capture_output=True)
    house.work("n4")
    assert house.status()[-1]["state"] == "published"
    assert len([row for row in house.table("documents") if row["night"] != "n4"]) == 150
    assert files_that_show_it(house) == []


# --- asking -----------------------------------------------------------------------------------


def test_an_unknown_id_or_no_reason_changes_nothing(house: House) -> None:
    settings = load_settings(house.config)
    versions = [house.lake.version(table) for table in SCHEMAS]
    with pytest.raises(ConfigError, match="has no document nobody"):
        forget(settings, house.name, [ID, "nobody"], "asked for")
    with pytest.raises(ConfigError, match="--reason: found nothing"):
        forget(settings, house.name, [ID], " ")
    assert [house.lake.version(table) for table in SCHEMAS] == versions


def test_the_command_asks_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    words = ["forget", house.name, ID, "--reason", "x", "--config", str(house.config)]
    done = CliRunner().invoke(cli.app, words, input="n\n")
    assert done.exit_code == 2
    assert "to forget: 1, of n2" in done.stderr
    assert "nothing was changed" in done.stderr
    assert house.lake.version("tombstones") is None


def test_an_id_that_is_no_text_is_not_known(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for words in (["forget", house.name, "\udcff", "--reason", "x", "--yes"],
                  ["lineage", house.name, "\udcff"]):  # fmt: skip
        done = CliRunner().invoke(cli.app, [*words, "--config", str(house.config)])
        assert isinstance(done.exception, ConfigError)
        assert "has no document" in str(done.exception)


def test_the_journal_loses_every_word_about_it(tmp_path: Path) -> None:
    import sqlite3

    path = journal_path(str(tmp_path), "p", str(tmp_path))
    journal = Journal(path)
    journal.say_name("c-0001", "Cards")
    with sqlite3.connect(path) as opened:
        opened.execute("create table said (number integer primary key, doc_id text, word text)")
        opened.execute("insert into said values (1, 'r-1', 'Quillfeather'), (2, 'r-2', 'kept')")
    opened.close()
    assert journal.erase(["r-1"]) == 1
    assert all(TRACE not in one.read_bytes() for one in path.parent.iterdir())
    assert b"kept" in path.read_bytes()
    assert journal.names()["c-0001"].name == "Cards"


def test_versions_of_models_are_left_and_named(forgotten: dict[str, Any]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    there = {
        int(one.version)
        for one in client.search_model_versions(f"name = '{forgotten['house'].name}'")
    }
    assert {one["version"] for one in forgotten["receipt"]["models"]} <= there


def test_an_artifact_that_is_no_utf8_stops_no_forgetting(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db", f"sqlite:///{SCRATCH}/mlflow.db")
    experiment = client.create_experiment("not-utf-8", (tmp_path / "kept").as_uri())
    run = client.create_run(experiment).info.run_id
    for name in ("left.txt", "edited.txt"):
        (tmp_path / name).write_bytes(f"caf\xe9 {name}".encode("latin-1"))
        client.log_artifact(run, str(tmp_path / name))
    changed = rewrite_artifacts(
        f"sqlite:///{SCRATCH}/mlflow.db", "not-utf-8", (".txt",),
        lambda said, _: "gone" if "edited" in said else said,
    )  # fmt: skip
    assert changed == [f"{run}/edited.txt"]
    kept = [
        Path(client.download_artifacts(run, one)).read_bytes() for one in ("left.txt", "edited.txt")
    ]
    assert kept == [b"caf\xe9 left.txt", b"gone"]
