"""What whoever keeps it running does: the doctor in a damaged house, a backup restored."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import House, rows
from mlflow import MlflowClient

from flows import takeover
from flows.backup import as_lines, backup, restore
from flows.doctor import examine, healthy
from flows.locking import alone
from nightshift.errors import BusyError, ConfigError, NightError
from nightshift.journal import Journal
from nightshift.pipeline import load_settings
from nightshift.tables import SCHEMAS, Lake, NightWriter, rows_of

YESTERDAY = time.time() - 90_000


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """One published night, whose MLflow store is its own."""
    found = House(tmp_path_factory.mktemp("operating"))
    found.declare(when_busy="leave")
    whole = yaml.safe_load(found.config.read_text())
    found.config.write_text(yaml.safe_dump({**whole, "mlflow": "sqlite:///data/mlflow.db"}))
    found.drop("one.jsonl", rows(30))
    found.work("n1")
    Journal(Path(found.lake.root) / "journal.sqlite").say_name("c-0001", "Kitchen", by="ann")
    return found


def found(house: House, repair: bool = False) -> dict[str, str]:
    """What the doctor says, by check."""
    told = examine(load_settings(house.config), house.name, repair)
    return {one["check"]: one["state"] for one in told if "nightshift-" not in one["found"]}


def client(house: House) -> MlflowClient:
    uri = load_settings(house.config).mlflow
    return MlflowClient(uri, uri)


# --- doctor ---------------------------------------------------------------------------------


def test_a_house_in_order_is_healthy(house: House) -> None:
    assert found(house) == {}
    assert healthy([])


def test_the_doctor_finds_all_changes_nothing_repairs_all_and_is_content(house: House) -> None:
    lake, registry = house.lake, client(house)
    row = lake.nights()[0]
    # An orphan of a killed writer, older than the grace.
    NightWriter(lake.handle("labels"), "labels", "n1").lay_down(
        rows_of("labels", [{"doc_id": "x"}])
    )
    [orphan] = [one for one in Path(lake.root, "labels").rglob("*.parquet")
                if one.name not in str(lake.handle("labels").file_uris())]  # fmt: skip
    os.utime(orphan, (YESTERDAY, YESTERDAY))
    # A night in two files; a run left open; an alias moved by hand; a cut page; half a page.
    opened = lake.handle("documents")
    night = lake.read("documents").to_batches()
    added = NightWriter(opened, "documents", "n0").lay_down(night[:1])
    more = NightWriter(opened, "documents", "n0").lay_down(night[:1])
    opened.create_write_transaction([*added, *more], "append", SCHEMAS["documents"], ["night"])
    registry.create_run(registry.get_run(row["mlflow_run"]).info.experiment_id, run_name="n0")
    registry.delete_registered_model_alias(house.name, "champion")
    page = house.folder / "reports" / house.name / "n1.html"
    page.write_text(page.read_text()[:500])
    (page.parent / "n2.part").write_text("<html>")
    # A schema without its last step, and a night whose process is gone.
    lake.set_properties("labels", {"nightshift.schema": "5"})
    lake.write_night({**row, "night": "n2", "number": 2, "state": "running", "prefect_run": None})
    wanted = {"schema", "nights", "mlflow", "aliases", "files", "pages", "leftovers"}
    assert found(house) == dict.fromkeys(wanted, "repairable")
    assert found(house) == dict.fromkeys(wanted, "repairable")  # nothing was changed
    assert found(house, repair=True) == dict.fromkeys(wanted, "repaired")
    assert found(house) == {}
    assert not orphan.exists()
    assert page.read_text().rstrip().endswith("</html>")
    assert lake.nights()[1]["state"] == "failed"
    assert int(registry.get_model_version_by_alias(house.name, "champion").version) == 1
    lake.replace("documents", "n0", [])
    lake.replace("nights", "n2", [])


@pytest.mark.parametrize("command", ["status", "clusters"])
def test_what_only_prints_a_few_rows_does_not_load_pandas(house: House, command: str) -> None:
    code = (
        "import atexit, sys; from flows.cli import main; "
        "atexit.register(lambda: print(sys.modules.get('pandas'), file=sys.stderr)); main()"
    )
    words = (command, house.name, "--json", "--config", str(house.config))
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "None\n")
    assert '"night": "n1"' in done.stdout


@pytest.fixture
def own_prefect() -> Iterator[None]:
    """A server that no other run shares: any night that begins beside would bury the dead first."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def shown(house: House, flow: str, process: str, state: str) -> Any:
    """A flow run as Prefect shows it, worked by a process."""
    from prefect import Flow
    from prefect.client.orchestration import get_client
    from prefect.states import State

    with get_client(sync_client=True) as api:
        run = api.create_flow_run(
            Flow(lambda pipeline: None, name=flow), parameters={"pipeline": house.name},
            name=f"{flow}-{state}",
            state=State(type=state.upper()),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        if process:
            api.update_flow_run_labels(run.id, {takeover.LABEL: process})
    return run.id


def state_of(run: Any) -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as api:
        return api.read_flow_run(run).state_type.value  # pyright: ignore


@pytest.mark.slow
@pytest.mark.usefixtures("own_prefect")
def test_the_doctor_buries_dead_runs_of_every_part_and_no_run_that_lives_or_waits(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        dead = f"{takeover._machine()}@{gone.pid}:1.00"
    alive, elsewhere = takeover._this(), "another-boot:1@7:1.00"
    buried = [
        shown(house, "night", dead, "running"), shown(house, "train", dead, "running"),
        shown(house, "backfill", dead, "pending"), shown(house, "tune", dead, "running"),
    ]  # fmt: skip
    cancelled = shown(house, "rollback", dead, "cancelling")
    late = [shown(house, "night", elsewhere, "running"), shown(house, "ingest", "", "pending")]
    kept = [shown(house, "night", alive, "running"), shown(house, "replay", alive, "running"),
            shown(house, "tune", elsewhere, "running")]  # fmt: skip
    said = [one["found"] for one in examine(load_settings(house.config), house.name, False)]
    assert "Prefect shows the run backfill-pending as pending, and nobody works it" in said
    assert found(house, repair=True) == {"prefect": "repaired"}
    assert {state_of(one) for one in buried} == {"CRASHED"}
    assert state_of(cancelled) == "CANCELLED"
    assert found(house) == {}  # those of another machine may just have begun
    monkeypatch.setattr(takeover, "SILENT", timedelta(0))
    assert found(house, repair=True) == {"prefect": "repaired"}
    assert {state_of(one) for one in late} == {"CRASHED"}
    assert {state_of(one) for one in kept} == {"RUNNING"}
    for one in kept:
        takeover.bury(str(one))


def test_a_damaged_journal_and_champion_are_left_to_a_person(house: House) -> None:
    journal = Path(house.lake.root) / "journal.sqlite"
    whole = journal.read_bytes()
    journal.write_bytes(b"no database" * 100)
    weights = next((house.folder / "data" / "mlflow-artifacts").rglob("bundle/*.safetensors"))
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1])
    try:
        assert found(house, repair=True) == {"journal": "left", "champion": "left"}
    finally:
        journal.write_bytes(whole)
        weights.write_bytes(kept)
    assert found(house) == {}


def test_old_temporary_folders_go_and_young_ones_stay(house: House) -> None:
    old, young = (Path(tempfile.mkdtemp(prefix="nightshift-")) for _ in range(2))
    os.utime(old, (YESTERDAY, YESTERDAY))
    told = examine(load_settings(house.config), house.name, repair=False)
    shown = " ".join(one["found"] for one in told)
    assert str(old) in shown
    assert str(young) not in shown
    for one in (old, young):
        shutil.rmtree(one)


def test_while_a_night_runs_the_doctor_only_says_so(house: House) -> None:
    settings = load_settings(house.config)
    with alone(settings, house.name, settings.pipeline(house.name)):
        assert found(house) == {"night": "running"}
        with pytest.raises(BusyError):
            examine(settings, house.name, repair=True)


def test_the_command_says_what_it_found_and_ends_with_its_exit_code(house: House) -> None:
    def doctor(*words: str) -> subprocess.CompletedProcess[str]:
        code = "from flows.cli import main; main()"
        words = ("doctor", house.name, "--config", str(house.config), "--json", *words)
        return subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True,
            env={**os.environ, "TMPDIR": str(house.folder)}, timeout=200, check=False,
        )  # fmt: skip

    half = house.folder / "reports" / house.name / "n9.part"
    half.write_text("<html>")
    sick = doctor("--prune")
    assert (sick.returncode, half.exists()) == (1, True), sick.stderr
    whole = json.loads(sick.stdout)
    assert whole["pipelines"][house.name][0]["check"] == "leftovers"
    assert whole["pruned"][house.name][0].endswith("nothing to prune")
    assert (doctor("--repair").returncode, half.exists()) == (0, False)


# --- backup ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copy", "copy.tar.gz"])
def test_a_backup_restored_elsewhere_works_the_next_night(
    house: House, tmp_path: Path, name: str
) -> None:
    there = tmp_path / "away" / "copy-of-it"
    written = backup(house.config, tmp_path / name)
    assert {"lake", "mlflow", "reports", "pipelines.yaml"} <= written["parts"].keys()
    assert restore(tmp_path / name, there)["files"] == written["files"]
    if name != "copy":
        assert (tmp_path / name).stat().st_mode & 0o77 == 0
        return  # one of the two goes on
    # What was there is out of reach, so that only the copy can be read.
    hidden = house.folder.rename(house.folder.with_name("hidden"))
    try:
        again = House(there, house.settings)
        object.__setattr__(again, "folder", there)
        settings = load_settings(again.config)
        from flows.night import work

        (there / "inbox").mkdir()
        again.drop("two.jsonl", rows(8, seed=2))
        work(house.name, "n2", str(again.config))
        lake = Lake(settings.lake, house.name)
        assert [row["state"] for row in lake.nights()] == ["published", "published"]
        assert lake.read("documents").num_rows == 90 + 24
        assert [one["state"] for one in examine(settings, house.name, False)
                if "nightshift-" not in one["found"]] == []  # fmt: skip
        journal = Journal(Path(lake.root) / "journal.sqlite")
        assert journal.names()["c-0001"].name == "Kitchen"
    finally:
        hidden.rename(house.folder)


def test_a_backup_overwrites_nothing_and_waits_for_no_night(house: House, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        backup(house.config, tmp_path / "there")
    settings = load_settings(house.config)
    with alone(settings, house.name, settings.pipeline(house.name)), pytest.raises(BusyError):
        backup(house.config, tmp_path / "b.tar")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    written = tmp_path / "b"
    backup(house.config, written)
    with pytest.raises(ConfigError, match="is not empty"):
        restore(written, tmp_path / "full")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b", "full", "there"]


@pytest.mark.parametrize("name", ["press-journal", "db-wal", "a-shm"])
def test_a_pipeline_may_have_a_name_like_that_of_a_passing_file(
    house: House, tmp_path: Path, name: str
) -> None:
    named = House(tmp_path / "of" / "it")
    named.folder.mkdir(parents=True)
    named.declare()
    whole = yaml.safe_load(named.config.read_text())
    [pipeline] = whole["pipelines"].values()
    whole |= {"pipelines": {name: pipeline}, "mlflow": "sqlite:///mlflow.db"}
    named.config.write_text(yaml.safe_dump(whole))
    lake = Lake(str(named.folder / "lake"), name)
    lake.write_night(house.lake.nights()[0])
    (named.folder / "reports" / name).mkdir(parents=True)
    for one in ("n1.html", ".night.lock", "n2.part"):
        (named.folder / "reports" / name / one).write_text("page")
    files = backup(named.config, tmp_path / "b")["files"]
    assert any(one.startswith(f"lake/{name}/nights/") for one in files)
    assert [one for one in files if one.startswith("reports/")] == [f"reports/{name}/n1.html"]


def test_a_backup_without_the_tables_of_a_pipeline_is_none(house: House, tmp_path: Path) -> None:
    away = tmp_path / "another-disk"
    Path(house.lake.root).rename(away)
    Path(house.lake.root).symlink_to(away)
    try:
        with pytest.raises(NightError, match=f"{house.name} has nights, and its tables"):
            backup(house.config, tmp_path / "b.tar")
    finally:
        Path(house.lake.root).unlink()
        away.rename(house.lake.root)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("inside", ["reports/b.tar.gz", "lake/b", "data/mlflow-artifacts/x/b"])
def test_a_backup_does_not_go_into_what_it_copies(house: House, inside: str) -> None:
    with pytest.raises(ConfigError, match="would hold itself"):
        backup(house.config, house.folder / inside)
    assert not (house.folder / inside).parent.joinpath("b").exists()


def test_an_altered_backup_restores_nothing(house: House, tmp_path: Path) -> None:
    backup(house.config, tmp_path / "b.tar")
    backup(house.config, tmp_path / "b")
    page = next((tmp_path / "b" / "reports").rglob("*.html"))
    page.write_text(page.read_text() + " ")
    with pytest.raises(NightError, match="altered or not listed, such as reports/"):
        restore(tmp_path / "b", tmp_path / "r")
    body = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(body[: len(body) // 2])
    with pytest.raises(NightError, match="Nothing was restored"):
        restore(tmp_path / "b.tar", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("evil", ["../out", "/tmp/nightshift-out", "link"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, evil: str) -> None:
    manifest = {"format": 1, "files": {evil: [4, "x"]}, "parts": {}, "left_out": []}
    (tmp_path / "backup.json").write_text(json.dumps(manifest))
    (tmp_path / "body").write_text("evil")
    (tmp_path / "symlink").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(tmp_path / "backup.json", "backup.json")
        tar.add(tmp_path / ("symlink" if evil == "link" else "body"), evil)
    with pytest.raises(NightError, match="othing was restored"):
        restore(tmp_path / "evil.tar", tmp_path / "r")
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/nightshift-out").exists()
    assert not (tmp_path / "r").exists()


def test_secrets_of_the_pipelines_file_stay_out_of_a_backup(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", "from-outside")
    whole = yaml.safe_load(house.config.read_text())
    mail = {"host": "h", "user": "u-secret", "password": "${MAIL_PASSWORD}", "sender": "a@b",
            "to": ["c@d"]}  # fmt: skip
    whole["pipelines"][house.name] |= {"webhook": "http://x/secret-path",
                                       "alerts": {"email": mail}}  # fmt: skip
    config = house.folder / "secret.yaml"
    config.write_text(yaml.safe_dump(whole))
    written = backup(config, tmp_path / "b")
    text = (tmp_path / "b" / "pipelines.yaml").read_text()
    for secret in ("secret-path", "u-secret", "from-outside", "a@b", "c@d"):
        assert secret not in text
    assert "${MAIL_PASSWORD}" in text
    assert any("webhook" in line for line in as_lines(written))
    assert len(written["left_out"]) == 4


def test_state_on_servers_is_named_and_not_backed_up(house: House, tmp_path: Path) -> None:
    whole = yaml.safe_load(house.config.read_text())
    config = house.folder / "servers.yaml"
    config.write_text(yaml.safe_dump({**whole, "lake": "s3://b/l", "mlflow": "http://m:5000"}))
    with pytest.raises(ConfigError, match=r"lake s3://b/l .*mlflow http://m:5000 \(pg_dump"):
        backup(config, tmp_path / "b")


def test_databases_are_copied_whole_while_they_are_written_to(house: House, tmp_path: Path) -> None:
    journal = Path(house.lake.root) / "journal.sqlite"
    with closing(sqlite3.connect(journal)) as writer:
        writer.execute("begin immediate")
        writer.execute(
            "insert into names (cluster_id, name, by, at) values ('c-9', 'half', 'x', '2026-01-01')"
        )
        backup(house.config, tmp_path / "b")
        writer.rollback()
    copy = tmp_path / "b" / "lake" / house.name / "journal.sqlite"
    with closing(sqlite3.connect(copy)) as opened:
        assert opened.execute("select name from names").fetchall() == [("Kitchen",)]
