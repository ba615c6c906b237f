"""Kill -9 in the middle of a night, for real, against a real Prefect server; then run it again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import SCRATCH, SMALL, House, rows

from flows.locking import stale
from nightshift.pipeline import load_settings
from tasks.keep import plan
from tasks.tracking import versions_of

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from kills import Nursery

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A Prefect server of our own, as PREFECT_API_URL names one in production."""
    port = free_port()
    log = (SCRATCH / "server.log").open("w")
    url = f"http://127.0.0.1:{port}/api"
    process = subprocess.Popen(
        [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        stdout=log, stderr=log, start_new_session=True,
        # Its page looks for the server where this says.
        env={**os.environ, "PREFECT_HOME": str(SCRATCH / "server"),
             "PREFECT_SERVER_UI_API_URL": url},
    )  # fmt: skip
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    yield url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(house: House, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_API_URL": url, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, text=True, capture_output=True, timeout=200,
        cwd=house.folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def nursery(server: str) -> Iterator[Nursery]:
    """Works nights in processes of their own, which have imported everything already."""
    found = Nursery(SCRATCH, server)
    yield found
    found.close()


def work(nursery: Nursery, house: House, night: str, moment: str = "") -> None:
    """A night by the command, or one that dies by SIGKILL at a moment of dying.py."""
    code = nursery.run(house.folder, house.name, night, moment)
    expected = -signal.SIGKILL if moment else 0
    assert code == expected, (house.folder / "night.log").read_text()[-3000:]


def still_running(url: str, kind: str = "flow_runs") -> int:
    """Runs of flows, or of tasks, that Prefect believes to be running."""
    body = json.dumps({kind: {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{kind}/count", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(answer.read())


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What an uninterrupted night leaves."""
    house = House(tmp_path_factory.mktemp("whole"))
    house.declare()
    house.drop("one.jsonl", rows(30))
    work(nursery, house, "n1")
    return house.digests("n1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "start",  # the flow run has begun, and nothing tells whose it is but itself
        "laid:documents:1",  # rows lie in a file that no version of the table names
        "epoch:3",
        "upload:5",
        "before:stages:4",  # the model is trained and kept, but not noted as done
        "after:stages:8",  # before the report
        "logged",  # the bundle is in MLflow, and no version of the registry names it
        "before:nights:2",  # the model is registered, the night not yet published
        "alias:1",  # published, and one of the aliases still says yesterday
        "published",
    ],
)
def test_a_killed_night_is_finished_by_running_it_again_and_equals_an_uninterrupted_one(
    server: str, nursery: Nursery, whole: dict[str, object], tmp_path: Path, moment: str
) -> None:
    house = House(tmp_path)
    house.declare()
    house.drop("one.jsonl", rows(30))
    work(nursery, house, "n1", moment)
    states = [one["state"] for one in house.status()]
    early, late = moment == "start", moment.startswith(("alias", "published"))
    assert states == ([] if early else ["published" if late else "failed"])
    work(nursery, house, "n1")
    only = house.status()[0]
    assert only["state"] == "published"
    found = house.digests("n1")
    for stage in ("files", "ingest", "tokens", "train", "promote", "embed", "cluster"):
        mine, other = found[stage], whole[stage]
        if stage == "files":  # the same file in another folder
            mine, other = ([one["digest"] for one in side["files"]] for side in (mine, other))
        if stage == "ingest":  # its rows name that folder
            mine, other = (side["figures"] for side in (mine, other))
        assert mine == other, stage
    client = mlflow.MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db")
    versions = client.search_model_versions(f"name = '{house.name}'")
    assert len(versions) == 1
    assert client.get_model_version_by_alias(house.name, "champion").version == versions[0].version
    night_run = client.get_run(house.lake.nights()[0]["mlflow_run"])
    assert night_run.info.status == "FINISHED"
    assert not client.search_runs([night_run.info.experiment_id], "attributes.status = 'RUNNING'")
    assert still_running(server) == still_running(server, "task_runs") == 0
    assert stale(load_settings(house.config), house.name) is None


@pytest.mark.slow
def test_a_night_killed_among_its_clusters_keeps_yesterdays_identities(
    server: str, nursery: Nursery, tmp_path: Path
) -> None:
    house = House(tmp_path)
    house.declare(source={"label": None}, clusters={"k_min": 2, "k_max": 6})
    house.drop("one.jsonl", rows(60))
    work(nursery, house, "n1")
    before = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    ids = {row["cluster_id"] for row in house.table("clusters")}
    house.drop("two.jsonl", rows(10, seed=1))
    # Tonight's clusters are written, and who is in which is not.
    work(nursery, house, "n2", "after:clusters:1")
    assert {row["night"] for row in house.lake.read("clusters").to_pylist()} == {"n1", "n2"}
    shown = json.loads(
        run(house, server, str(BIN / "nightshift"), "clusters", house.name, "--json").stdout
    )
    assert shown["night"] == "n1"
    assert {one["cluster_id"] for one in shown["clusters"]} == ids
    work(nursery, house, "n2")
    tonight = [row for row in house.table("clusters") if row["night"] == "n2"]
    assert sorted(row["cluster_id"] for row in tonight) == sorted(ids)
    assert {row["event"] for row in tonight} == {"continued"}
    after = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    assert sum(after[one] == where for one, where in before.items()) >= 0.95 * len(before)


@pytest.mark.slow
def test_what_a_killed_pruning_left_goes_with_the_next_night(
    nursery: Nursery, tmp_path: Path
) -> None:
    house = House(tmp_path)
    policy = {"nights": 2, "models": 1, "artifacts": 2, "pages": 2, "table_versions": 2}
    house.declare(keep={**policy, "grace_hours": 0}, promotion={"policy": "always"})
    moments = ["", "keep:note", "keep:remove_rows", "keep:remove_version", "keep:vacuum", ""]
    for number, moment in enumerate(moments):
        house.declare(train={**SMALL["train"], "seed": number, "when": "always"})
        house.drop(f"{number}.jsonl", [*rows(20 if number == 0 else 2, seed=number), {"text": ""}])
        work(nursery, house, f"n{number}", moment)
        published = house.lake.published()
        assert published["night"] == f"n{number}"  # what follows a publication takes none back
        assert house.lake.read("documents", version=published["versions"]["documents"]).num_rows
    settings = load_settings(house.config)
    assert plan(settings, house.name, settings.pipeline(house.name)).found == []
    assert {row["night"] for row in house.lake.read("rejects").to_pylist()} == {"n4", "n5"}
    assert len(house.table("documents")) == 60 + 5 * 6
    left = versions_of(settings.mlflow, house.name)
    assert [one["version"] for one in left] == [5, 6]  # the champion, and the one before
    gone = house.lake.read("prunings").to_pylist()
    models = [one["subject"] for one in gone if one["kind"] == "model"]
    assert {*models} == {"1", "2", "3", "4"}  # noted once more where a note was all that was done


@pytest.mark.slow
def test_a_night_killed_while_it_reads_peoples_labels_reads_each_once(
    nursery: Nursery, tmp_path: Path
) -> None:
    house = House(tmp_path)
    house.declare()
    house.drop("one.jsonl", rows(30))
    work(nursery, house, "n1")
    docs = [row["doc_id"] for row in house.table("documents")]
    journal = load_settings(house.config).journal_of(house.name)
    for one in docs[:3]:
        journal.say_label(one, "galley", "cooking", "unsure", "ada")
    work(nursery, house, "n2", "before:labels:1")
    work(nursery, house, "n2", "after:labels:1")
    # Said after the night began: it waits for the next one, although this night is not over.
    journal.say_label(docs[3], "late", "cooking", "unsure", "bob")
    work(nursery, house, "n2")
    told = [(row["doc_id"], row["label"], row["by"]) for row in house.table("labels")]
    assert sorted(told) == sorted((one, "galley", "ada") for one in docs[:3])
    work(nursery, house, "n3")
    after = [(row["doc_id"], row["label"], row["by"]) for row in house.table("labels")]
    assert sorted(after) == sorted([*told, (docs[3], "late", "bob")])
