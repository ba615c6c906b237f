"""A past night worked again: the same digests where nothing changed, and what changed where not.
And lineage: from a prediction back to what it was learned from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRATCH, House, rows

from flows.lineage import as_lines as as_told
from flows.lineage import lineage
from flows.replaying import TABLES, _declare, _differences, as_lines, replay
from nightshift.errors import ConfigError, ReplayError
from nightshift.pipeline import load_settings
from nightshift.tables import SCHEMAS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Three published nights; a cluster was named before the third, which trains anew."""
    house = House(tmp_path_factory.mktemp("replaying"))
    house.declare()
    house.drop("one.jsonl", rows(40))
    house.work("n1")
    house.drop("two.jsonl", [*rows(5, seed=1), {"text": "a ~ b"}, {"text": ""}])
    house.work("n2")
    from nightshift.journal import Journal, journal_path

    journal = Journal(journal_path(str(house.folder / "lake"), house.name, "unused"))
    journal.say_name(house.table("clusters")[0]["cluster_id"], "Said by a person")
    house.drop("three.jsonl", rows(30, seed=2))
    house.work("n3")
    # Said after the night: a replay must not hear it.
    journal.say_name(house.table("clusters")[0]["cluster_id"], "Said too late")
    return house


def found(house: House, night: str, **more: Any) -> dict[str, Any]:
    return replay(load_settings(house.config), house.name, night, **more)


def everything(house: House) -> dict[str, str]:
    """Digest of every file of the lake, the journal, the reports, and MLflow's, by its path."""
    places = [*house.folder.rglob("*"), *(SCRATCH / "mlflow-artifacts" / house.name).rglob("*")]
    contents = {str(path): path.read_bytes() for path in places if path.is_file()}
    with closing(sqlite3.connect(SCRATCH / "mlflow.db")) as opened:
        # SQLite moves pages about by itself.
        contents["mlflow"] = "\n".join(opened.iterdump()).encode()
    return {path: hashlib.blake2b(one).hexdigest() for path, one in contents.items()}


def test_every_table_of_the_lake_is_compared() -> None:
    compared = {table for tables in TABLES.values() for table in tables}
    assert compared == SCHEMAS.keys() - {"nights", "stages", "tombstones", "prunings"}


def test_a_night_keeps_its_config_code_and_machine_without_secrets(worked: House) -> None:
    row = worked.lake.published()
    manifest = row["manifest"]
    assert manifest["config"]["train"]["epochs"] == 6
    assert "webhook" not in manifest["config"]
    assert len(manifest["code"]["nightshift/tables.py"]) == 16
    assert {"torch", "numpy", "scikit-learn", "threads", "processor"} <= manifest["machine"].keys()


def test_the_first_night_again_gives_every_digest_and_touches_nothing(worked: House) -> None:
    before = everything(worked)
    again = found(worked, "n1")
    assert again["same"], again
    assert again["first"] is None
    names = {one["output"] for one in again["outputs"]}
    assert {"documents", "tokens", "embeddings", "clusters", "model_id", "bundle"} <= names
    assert all(one["then"] for one in again["outputs"])
    assert everything(worked) == before


def test_the_third_night_again_gives_every_digest_and_keeps_what_was_asked_for(
    worked: House, tmp_path: Path
) -> None:
    again = found(worked, "n3", keep=tmp_path / "kept")
    assert again["same"], again
    assert (tmp_path / "kept" / "reports" / worked.name / "n3.html").is_file()
    trained = next(row for row in worked.status() if row["night"] == "n3")
    assert trained["trained"]  # so the network was learned again, not only carried over
    names = [row["name"] for row in worked.table("clusters") if row["night"] == "n3"]
    assert "Said by a person" in names


def test_a_file_that_is_gone_is_taken_from_the_lake_and_said(worked: House) -> None:
    path = worked.folder / "inbox" / "two.jsonl"
    away = path.rename(worked.folder / "two.away")
    try:
        again = found(worked, "n2")
    finally:
        away.rename(path)
    assert again["same"], again
    assert again["from_the_lake"] == {str(path): "cannot be read any more"}
    assert any("ingest was not repeated" in line for line in as_lines(again))


@pytest.mark.slow
def test_one_changed_line_of_the_library_shows_in_what_it_changes(
    worked: House, tmp_path: Path
) -> None:
    for floor in ("nightshift", "tasks", "flows"):
        shutil.copytree(ROOT / floor, tmp_path / floor)
    naming = tmp_path / "nightshift" / "naming.py"
    before = naming.read_text()
    naming.write_text(before.replace("\nNAME = 40\n", "\nNAME = 12\n"))
    assert naming.read_text() != before
    words = ["replay", worked.name, "n1", "--json", "--config", str(worked.config)]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    again = json.loads(done.stdout)
    differing = {one["output"] for one in again["outputs"] if one["then"] != one["now"]}
    assert again["first"] == "cluster"
    assert {"clusters", "bundle"} <= differing
    assert not differing & {"documents", "tokens", "embeddings", "model_id"}
    [why] = again["differences"]
    assert why.startswith("code 0.1.0+")
    assert why.endswith(": nightshift/naming.py")


def test_what_cannot_be_replayed_says_why(worked: House, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"has no night 'n9'; the newest are n1, n2, n3"):
        found(worked, "n9")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ReplayError, match="which is not empty"):
        found(worked, "n1", keep=tmp_path / "full")
    shutil.copytree(worked.folder / "lake", tmp_path / "lake")
    house = House(tmp_path / worked.folder.name, worked.settings)
    house.folder.mkdir()
    house.declare()
    shutil.move(tmp_path / "lake", house.folder / "lake")
    first, *_, last = house.lake.nights()
    house.lake.write_night({**last, "state": "failed"})
    with pytest.raises(ReplayError, match=r"n3 of .* is failed, and only a published night"):
        found(house, "n3")
    house.lake.write_night({**first, "manifest": None})
    with pytest.raises(ReplayError, match=r"kept no manifest"):
        found(house, "n1")
    folder = house.folder / "lake" / house.name / "tokens" / "night=n1"
    shutil.rmtree(folder)
    with pytest.raises(ReplayError, match="tables or the model of the nights before n2"):
        found(house, "n2")


def test_another_machine_library_or_config_is_named(worked: House, tmp_path: Path) -> None:
    row = worked.lake.published()
    manifest = row["manifest"]
    machine = {**manifest["machine"], "torch": "1.0", "threads": 64}
    config = json.loads(json.dumps(manifest["config"]))
    del config["train"]["epochs"]  # as a version of Nightshift without this key would write it
    row["manifest"] = {**manifest, "machine": machine, "config": config}
    _, changed = _declare(load_settings(worked.config), worked.name, row, tmp_path)
    [epochs] = changed
    assert epochs.startswith("config train.epochs: None then, ")
    said = _differences(row, changed)
    assert [one.partition(" ")[0] for one in said] == ["threads", "torch", "config"]
    assert said[1].startswith("torch 1.0 then, 2.")


# --- lineage ----------------------------------------------------------------------------------


def test_lineage_leads_from_a_prediction_to_the_rows_it_was_learned_from(worked: House) -> None:
    # The first night's model answers for documents of the second: the third's was not better.
    first, second, third = worked.lake.nights()
    assert third["model_id"] == first["model_id"]
    doc_id = next(one["doc_id"] for one in worked.table("documents") if one["night"] == "n2")
    told = lineage(load_settings(worked.config), worked.name, doc_id)
    assert told["document"]["source_file"].endswith("two.jsonl")
    assert told["prediction"]["model_id"] == first["model_id"]
    assert told["prediction"]["mlflow_run"] == second["mlflow_run"]
    trained = told["trained"]
    assert (trained["night"], trained["code"]) == ("n1", first["code_version"])
    assert trained["prefect_run"] == first["prefect_run"]
    seen = worked.lake.read("documents", version=trained["tables"]["documents"])
    assert seen.num_rows == 120
    assert told["model"]["version"] == second["registry_version"]  # what answered that night
    tokenizer = worked.table("tokenizers")[0]["digest"]
    assert told["model"]["tokenizer"] == tokenizer
    assert any(tokenizer in line for line in as_told(told))


def test_a_model_leads_to_the_table_versions_it_was_learned_from(worked: House) -> None:
    import mlflow

    third = worked.lake.published()
    client = mlflow.MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    read = client.get_run(third["mlflow_run"]).inputs.dataset_inputs
    found = {one.dataset.name: json.loads(one.dataset.source) for one in read}
    assert found.keys() == {"documents", "labels", "tokens"}
    for name, source in found.items():
        assert source["delta_table_version"] == third["versions"][name]
        assert source["path"] == f"{worked.folder}/lake/{worked.name}/{name}"


def test_lineage_of_an_unknown_document_says_where_ids_are(worked: House) -> None:
    with pytest.raises(ConfigError, match=r"no document 'x'.*nightshift export"):
        lineage(load_settings(worked.config), worked.name, "x")


def test_the_runs_of_mlflow_and_prefect_lead_to_one_another(worked: House) -> None:
    import mlflow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    row = worked.lake.published()
    client = mlflow.MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    assert client.get_run(row["mlflow_run"]).data.tags["prefect.flow_run_id"] == row["prefect_run"]
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[row["prefect_run"]]))
    with get_client(sync_client=True) as api:
        for _ in range(100):  # logs are sent from a thread of Prefect's
            said = [one.message for one in api.read_logs(wanted)]
            if any(row["mlflow_run"] in one for one in said):
                return
            time.sleep(0.1)
    raise AssertionError(said)
