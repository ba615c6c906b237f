"""pipelines.yaml as deployments on a real Prefect server, and runs of them by a real worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SCRATCH, House, rows
from test_kills import BIN, run, server  # noqa: F401 - a fixture

CLI = str(BIN / "nightshift")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCHEDULE = {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "tags": ["team-a"]}


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")


def steps(house: House, url: str, *options: str) -> dict[str, str]:
    """Each deployment's line, by its title."""
    done = run(house, url, CLI, "deploy", *options)
    assert done.returncode == 0, done.stderr
    found = (line.split(maxsplit=1) for line in done.stdout.splitlines() if "/" in line)
    return {rest.partition(":")[0]: f"{what}: {rest}" for what, rest in found}


@pytest.fixture(scope="module")
def deployed(server: str, tmp_path_factory: pytest.TempPathFactory) -> House:  # noqa: F811
    house = House(tmp_path_factory.mktemp("deployed"))
    house.declare(schedule=SCHEDULE, webhook="http://127.0.0.1:9/secret-path")
    house.drop("one.jsonl", rows(30))
    assert {line.split(":")[0] for line in steps(house, server, "--dry-run").values()} == {"new"}
    tagged = {"deployments": {"tags": {"all_": [house.name]}}}
    assert ask(server, "/deployments/filter", tagged) == []  # a dry run did nothing
    steps(house, server)
    return house


def of(server: str, house: House, flow: str = "night") -> dict[str, Any]:  # noqa: F811
    return ask(server, f"/deployments/name/{flow}/{house.name}")


@pytest.mark.slow
def test_deploying_again_changes_nothing(server: str, deployed: House) -> None:  # noqa: F811
    before = of(server, deployed)
    again = steps(deployed, server)
    assert len(again) == 13  # with the watcher of late nights, and automations, which share a word
    assert {line.split(":")[0] for line in again.values()} == {"unchanged"}
    assert of(server, deployed)["updated"] == before["updated"]


@pytest.mark.slow
def test_the_night_has_its_schedule_tags_and_a_form_with_the_pipelines_own_values(
    server: str,  # noqa: F811
    deployed: House,
) -> None:
    found = of(server, deployed)
    [one] = found["schedules"]
    assert (one["schedule"]["cron"], one["schedule"]["timezone"]) == ("0 2 * * *", "Europe/Berlin")
    assert (one["active"], one["parameters"]) == (True, {"scheduled": True})
    assert found["tags"] == [deployed.name, "nightshift", "team-a"]
    fields = found["parameter_openapi_schema"]["properties"]
    assert list(fields) == ["pipeline", "night", "config", "retry_from", "changes"]
    epochs = fields["changes"]["properties"]["train"]["properties"]["epochs"]
    assert epochs["default"] == 6  # of the file; the library's is auto
    assert epochs["description"].startswith("Passes over the training rows")
    ahead = {"deployments": {"id": {"any_": [found["id"]]}}, "limit": 1}
    runs = ask(server, "/flow_runs/filter", {**ahead, "sort": "EXPECTED_START_TIME_ASC"})
    assert all(one["state_type"] == "SCHEDULED" for one in runs)


@pytest.mark.slow
def test_what_the_form_does_not_allow_is_refused_by_the_server(
    server: str,  # noqa: F811
    deployed: House,
) -> None:
    path = f"/deployments/{of(server, deployed)['id']}/create_flow_run"
    for wrong in ({"pipeline": "another"}, {"changes": {"train": {"epochs": 0}}},
                  {"changes": {"sources": {}}}):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(server, path, {"parameters": wrong})
        assert caught.value.code in (409, 422)


@pytest.mark.slow
def test_a_run_from_the_page_is_worked_by_a_worker_and_tells_what_it_did(
    server: str,  # noqa: F811
    deployed: House,
) -> None:
    path = f"/deployments/{of(server, deployed)['id']}/create_flow_run"
    changes = {"train": {"epochs": 2}, "clusters": {"k_max": 3}}
    made = ask(server, path, {"parameters": {"night": "n1", "changes": changes}})
    environment = {**os.environ, "PREFECT_API_URL": server, "OMP_NUM_THREADS": "1"}
    del environment["PREFECT_LOGGING_EXTRA_LOGGERS"]  # a worker that knows nothing of ours
    with (SCRATCH / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "nightshift"],
            stdout=log, stderr=log, start_new_session=True, env=environment,
        )  # fmt: skip
    found: dict[str, Any] = {}
    try:
        for _ in range(240):
            found = ask(server, f"/flow_runs/{made['id']}")
            if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED"):
                break
            time.sleep(0.5)
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            # A worker that is told while its run ends may miss it, and would work others' runs.
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)
    assert found["state_type"] == "COMPLETED", found["state"]
    assert found["name"] == f"{deployed.name}-n1"
    assert {deployed.name, "n1", "nightshift", "team-a"} <= {*found["tags"]}
    by_run = {"flow_run_id": {"any_": [made["id"]]}}
    lines = [one["message"] for one in ask(server, "/logs/filter", {"logs": by_run, "limit": 200})]
    assert any(line.startswith("train     epoch 2 of 2") for line in lines), lines
    artifacts = {one["key"]: one for one in ask(server, "/artifacts/filter", {"artifacts": by_run})}
    told = artifacts[f"{deployed.name}-report"]["data"]
    assert "| documents | 90 in all, 90 of tonight's labelled |" in told
    assert "&#" not in told
    assert "MLflow run:" in told
    assert artifacts["progress-training"]["data"] == 100.0
    row = deployed.lake.nights()[0]
    assert row["manifest"]["config"]["train"]["epochs"] == 2  # replay works it with that again
    assert row["figures"]["asked"]["changes"] == changes
    from nightshift.pipeline import changed, config_digest, load_settings

    declared = load_settings(deployed.config).pipeline(deployed.name)
    assert row["config_digest"] == config_digest(changed(declared, changes))
    assert row["config_digest"] != config_digest(declared)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_prefects_page_shows_the_form_what_the_night_did_and_the_way_to_its_run(
    server: str,  # noqa: F811
    deployed: House,
) -> None:
    from playwright.sync_api import sync_playwright

    done = run(deployed, server, CLI, "run", deployed.name, "--night", "n2")
    assert done.returncode == 0, done.stderr
    root, key = server.removesuffix("/api"), f"{deployed.name}-report"
    found = ask(server, "/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}})
    told = max(found, key=lambda one: one["created"])
    form = f"{root}/deployments/deployment/{of(server, deployed)['id']}/run"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(form)
        page.get_by_text("For this run alone; what is left as it is follows").wait_for()
        page.get_by_text("Passes over the training rows").first.scroll_into_view_if_needed()
        page.goto(f"{root}/runs/flow-run/{told['flow_run_id']}")
        page.get_by_text(f"{deployed.name}-n2").first.wait_for()
        page.get_by_text("night n2 is published").wait_for()
        page.goto(f"{root}/artifacts/artifact/{told['id']}")
        page.get_by_role("cell", name="90 in all").wait_for()
        assert page.get_by_text("MLflow run").count()
        page.screenshot(path=SCRATCH / "artifact.png")
        browser.close()


@pytest.mark.slow
def test_a_pipeline_of_the_same_name_in_another_file_is_not_overwritten(
    server: str,  # noqa: F811
    deployed: House,
    tmp_path: Path,
) -> None:
    before = of(server, deployed)
    other = House(tmp_path / deployed.folder.name)
    other.folder.mkdir()
    other.declare(schedule={"cron": "0 5 * * *"})
    refused = run(other, server, CLI, "deploy")
    assert refused.returncode == 2, refused.stderr
    assert f"is of the file {deployed.config}, and this one is {other.config}" in refused.stderr
    assert of(server, deployed)["updated"] == before["updated"]
    try:
        told = steps(other, server, "--force")
        assert told[f"night/{deployed.name}"].startswith("changed")
        assert of(server, deployed)["parameters"]["config"] == str(other.config)
        # The watcher of each file has a name of its own.
        [watcher] = [one for one in told if one.startswith("watch/")]
        assert watcher != "watch/pipelines"
    finally:
        steps(deployed, server, "--force")


@pytest.mark.slow
def test_a_deployment_paused_on_the_page_stays_so(
    server: str,  # noqa: F811
    deployed: House,
) -> None:
    number = of(server, deployed)["id"]
    ask(server, f"/deployments/{number}/pause_deployment", {})
    told = steps(deployed, server)[f"night/{deployed.name}"]
    assert told == (
        f"unchanged: night/{deployed.name}: paused on Prefect's page, and left so"
    )  # fmt: skip
    deployed.declare(schedule={**SCHEDULE, "cron": "0 3 * * *"})
    assert steps(deployed, server)[f"night/{deployed.name}"].startswith("changed")
    found = of(server, deployed)
    assert (found["paused"], found["schedules"][0]["schedule"]["cron"]) == (True, "0 3 * * *")
    ask(server, f"/deployments/{number}/resume_deployment", {})
    deployed.declare(schedule=SCHEDULE)
    steps(deployed, server)


@pytest.mark.slow
def test_what_changed_in_the_file_is_told_and_who_left_it_is_removed_when_asked(
    server: str,  # noqa: F811
    deployed: House,
) -> None:
    whole = yaml.safe_load(deployed.config.read_text())
    pipeline = whole["pipelines"].pop(deployed.name)
    before = deployed.config.read_text()
    try:
        deployed.declare(schedule={**SCHEDULE, "paused": True})
        told = steps(deployed, server)[f"night/{deployed.name}"]
        assert told.endswith(
            "schedule: 0 2 * * * Europe/Berlin -> 0 2 * * * Europe/Berlin (paused)"
        )
        assert of(server, deployed)["schedules"][0]["active"] is False
        other = f"{deployed.name[:50]}-b"
        whole["pipelines"] = {other: pipeline}
        deployed.config.write_text(yaml.safe_dump(whole))
        assert steps(deployed, server)[f"night/{deployed.name}"].startswith("gone")
        assert of(server, deployed)["name"] == deployed.name  # shown, and left alone
        told = steps(deployed, server, "--prune")
        assert told[f"night/{deployed.name}"].startswith("removed")
        assert told[f"automation/nightshift {deployed.name}"].startswith("removed")
        with pytest.raises(urllib.error.HTTPError):
            of(server, deployed)
    finally:
        deployed.config.write_text(before)


@pytest.mark.slow
def test_a_new_file_starts_one_run_however_often_and_by_whom_it_is_seen(
    server: str,  # noqa: F811
    house: House,
) -> None:
    house.declare(triggers={"new_files": "ingest"})
    house.drop("one.jsonl", rows(2))
    unready = run(house, server, CLI, "watch", "--once")
    assert "found no deployment" in unready.stderr
    steps(house, server)
    first = run(house, server, CLI, "watch", "--once")
    assert first.stdout == f"{house.name}: a new file, one.jsonl; started ingest\n", first.stderr
    assert run(house, server, CLI, "watch", "--once").stdout == "nothing new\n"
    # A second watcher, which knows nothing of the first.
    (house.folder / "reports" / house.name / ".watch.json").unlink()
    assert "started ingest" in run(house, server, CLI, "watch", "--once").stdout
    tagged = {"flow_runs": {"tags": {"all_": [house.name, "cause:new_files"]}}}
    assert ask(server, "/flow_runs/count", tagged) == 1


def test_without_a_server_deploying_says_what_to_set(house: House) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    for url, code in ((None, 2), ("http://127.0.0.1:9/api", 1)):
        given = environment if url is None else environment | {"PREFECT_API_URL": url}
        done = subprocess.run(
            [CLI, "deploy", "--config", str(house.config)], env=given, text=True,
            capture_output=True, cwd=Path(house.folder),
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "PREFECT_API_URL" in done.stderr
        assert "nightshift up" in done.stderr
        assert "Traceback" not in done.stderr
