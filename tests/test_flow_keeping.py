"""Retention, over whole nights: what goes, what stays, and what is told of what is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRATCH, House, rows
from mlflow import MlflowClient

import tasks.keep
from flows.champions import as_lines as champion_lines
from flows.champions import champion_at, roll_back
from flows.lineage import as_lines as lineage_lines
from flows.lineage import lineage
from flows.replaying import replay
from nightshift.errors import ConfigError, PassingError, ReplayError
from nightshift.pipeline import load_settings
from tasks.keep import plan
from tasks.tracking import versions_of

POLICY = {
    "nights": 2, "models": 1, "artifacts": 2, "pages": 2, "table_versions": 2, "grace_hours": 0,
}  # fmt: skip


def another(house: House, seed: int, **more: Any) -> None:
    training = {"epochs": 3, "learning_rate": 0.02, "batch_tokens": 512, "when": "always"}
    house.declare(train={**training, "seed": seed}, promotion={"policy": "always"}, **more)


def count(house: House, table: str, version: int | None = None) -> dict[str, int]:
    found: dict[str, int] = {}
    for night in house.lake.read(table, ["night"], version=version)["night"].to_pylist():
        found[night] = found.get(night, 0) + 1
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Four nights with a new model each, of which the last one has a policy."""
    house = House(tmp_path_factory.mktemp("keeping"))
    for number in range(1, 5):
        declared = {"keep": POLICY} if number == 4 else {}
        another(house, number, **declared)
        # One row without a text, which is rejected, and one that is known from the first night.
        house.drop(
            f"{number}.jsonl",
            [*rows(20 if number == 1 else 4, seed=number), {"text": ""}, rows(1, seed=1)[0]],
        )
        if number == 4:
            house.before = {one: count(house, one) for one in ("rejects", "documents")}  # pyright: ignore[reportAttributeAccessIssue]
            settings = load_settings(house.config)
            house.planned = plan(settings, house.name, settings.pipeline(house.name))  # pyright: ignore[reportAttributeAccessIssue]
        house.work(f"n{number}")
    return house


def night(house: House, name: str) -> dict[str, Any]:
    return next(row for row in house.lake.nights() if row["night"] == name)


def files_of(run: str) -> set[str]:
    client = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    return {one.path for one in client.list_artifacts(run)}


def test_rows_of_old_nights_go_and_those_of_newer_ones_stay(story: House) -> None:
    assert story.before["rejects"] == {"n1": 1, "n2": 1, "n3": 1}  # pyright: ignore[reportAttributeAccessIssue]
    assert count(story, "rejects") == {"n3": 1, "n4": 1}
    assert set(count(story, "duplicates")) == {"n3", "n4"}
    told = {one["night"]: one["outputs"] for one in story.lake.read("stages").to_pylist()}
    assert (told["n1"], told["n2"]) == ("{}", "{}")
    assert story.lake.stages("n3")["ingest"]["outputs"]["rejects"]


def test_documents_labels_tokens_and_decisions_stay_whatever_the_policy(story: House) -> None:
    assert count(story, "documents") == {"n1": 60, "n2": 12, "n3": 12, "n4": 12}
    assert set(count(story, "tokens")) == set(count(story, "batches")) == {"n1", "n2", "n3", "n4"}
    assert len(story.lake.read("promotions")) == 4
    # No id of a cluster is ever given again: the row of its birth stays.
    born = [one for one in story.lake.read("clusters").to_pylist() if one["event"] == "born"]
    assert {one["born"] for one in born} >= {"n1"}


def test_the_status_of_a_night_is_whole_after_its_rows_went(story: House) -> None:
    first = story.status()[0]
    assert (first["documents"], first["rejects"], first["state"]) == (60, 1, "published")
    assert first["seconds"]["train"] > 0


def test_only_the_champion_and_the_version_to_go_back_to_are_left_of_the_models(
    story: House,
) -> None:
    settings = load_settings(story.config)
    versions = [night(story, name)["registry_version"] for name in ("n1", "n2", "n3", "n4")]
    left = [one["version"] for one in versions_of(settings.mlflow, story.name)]
    assert left == versions[2:]
    models = {night(story, name)["model_id"] for name in ("n3", "n4")}
    for table in ("predictions", "embeddings"):
        assert {*story.lake.read(table)["model_id"].to_pylist()} == models
    root = Path(SCRATCH / "mlflow-artifacts" / story.name)
    weights = [*root.rglob("*.safetensors")]
    held = {night(story, name)["mlflow_run"] for name in ("n1", "n2")}
    assert weights
    assert not [one for one in weights if held & {*one.parts}]


def test_runs_keep_their_figures_and_old_ones_lose_their_files(story: House) -> None:
    client = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    old, new = night(story, "n1")["mlflow_run"], night(story, "n4")["mlflow_run"]
    assert "report.html" not in files_of(old)
    assert {"report.html", "models"} <= files_of(new)
    assert client.get_run(old).data.metrics["ingest/documents"] == 60
    assert client.get_run(new).data.metrics["keep/rows"] > 0


def test_old_pages_go(story: House) -> None:
    folder = story.folder / "reports" / story.name
    assert sorted(one.name for one in folder.glob("*.html")) == ["n3.html", "n4.html"]


def test_a_plan_changes_nothing_and_says_what_the_night_then_did(story: House) -> None:
    planned = {(one.kind, one.subject, one.of_night) for one in story.planned.found}  # pyright: ignore[reportAttributeAccessIssue]
    noted = story.lake.read("prunings").to_pylist()
    done = {(one["kind"], one["subject"], one["of_night"]) for one in noted}
    # The plan was made before the fourth night: with it one more grew old.
    assert ("rows", "rejects", "n1") in planned & done
    assert ("rows", "rejects", "n2") in done - planned
    assert all(one["size"] > 0 and one["because"].startswith("keep.") for one in noted)


def test_pruning_again_finds_nothing(story: House) -> None:
    settings = load_settings(story.config)
    assert plan(settings, story.name, settings.pipeline(story.name)).found == []


def test_the_last_two_nights_can_be_read_as_they_were_and_older_files_are_gone(
    story: House,
) -> None:
    third, fourth = night(story, "n3")["versions"], night(story, "n4")["versions"]
    assert set(count(story, "documents", third["documents"])) == {"n1", "n2", "n3"}
    # The newest published night still shows what it had: a reader pins its versions.
    assert set(count(story, "rejects", fourth["rejects"])) == {"n1", "n2", "n3", "n4"}
    log = story.folder / "lake" / story.name / "documents" / "_delta_log"
    first = min(int(one.stem) for one in log.glob("*.json"))
    assert first == third["documents"]


def test_who_asks_for_what_is_gone_is_told_when_and_why(story: House) -> None:
    settings = load_settings(story.config)
    today = f"{datetime.now(UTC).astimezone():%Y-%m-%d}"
    first = night(story, "n1")
    gone = first["registry_version"]
    with pytest.raises(ConfigError, match=rf"version {gone} of .* removed on {today} \(keep.mod"):
        roll_back(story.name, gone, "why not", "ann", str(story.config))
    with pytest.raises(ReplayError, match=rf"night n2 .* removed on {today} \(keep\."):
        replay(settings, story.name, "n2")
    then = champion_at(settings, story.name, first["finished"].isoformat())
    assert then["gone"] == f"removed on {today} (keep.models: 1)"
    assert any("cannot answer again" in line for line in champion_lines(then))


def test_back_to_the_version_that_was_kept_and_on_to_the_next_night(story: House) -> None:
    third = night(story, "n3")["registry_version"]
    back = roll_back(story.name, None, "it was better", "ann", str(story.config))
    assert night(story, back.name)["registry_version"] == third
    # With this night the third grew old: its model stays, and the rest of its run went.
    settings, doc_id = load_settings(story.config), story.table("documents")[0]["doc_id"]
    found = lineage(settings, story.name, doc_id)
    today = f"{datetime.now(UTC).astimezone():%Y-%m-%d}"
    assert found["trained"]["night"] == "n3"
    assert sorted(found["gone"]) == [
        f"the MLflow run's files of night n3: removed on {today} (keep.artifacts: 2)",
        f"these table versions of night n3: removed on {today} (keep.table_versions: 2)",
    ]
    assert sum(line.startswith("gone") for line in lineage_lines(found)) == 2
    assert files_of(night(story, "n3")["mlflow_run"]) == {"models"}
    another(story, 4, keep=POLICY)
    story.drop("five.jsonl", rows(4, seed=9))
    story.work("n5")
    assert story.status()[-1]["state"] == "published"
    assert len(story.table("documents")) == 108


def test_pruning_that_fails_fails_no_night(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.declare(keep={"pages": 1})
    house.drop("one.jsonl", rows(10))
    house.work("n1")

    def away(*_: object) -> None:
        raise PassingError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.keep, "note", away)
        house.work("n2")
    assert [one["state"] for one in house.status()] == ["published", "published"]
    assert "n2 is published; after it: the store is away" in caplog.text
    page = house.folder / "reports" / house.name / "n1.html"
    assert page.is_file()
    house.work("n3")
    assert not page.exists()
