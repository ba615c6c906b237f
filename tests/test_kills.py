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
from conftest import SCRATCH, House, rows

BIN = Path(sys.executable).parent

# Runs a night that dies by SIGKILL the moment before, or after, the given call on the given table.
DRIVER = """
import os, signal, sys
place, table, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
from flows.environment import prepare
from pathlib import Path
prepare(Path(os.environ["PREFECT_HOME"]))
import nightshift.tables as tables
import tasks.publish as publish

def die():
    os.kill(os.getpid(), signal.SIGKILL)

real = tables.NightWriter._commit
calls = 0
def commit(self):
    global calls
    if self._table == table:
        calls += 1
        if place == "before" and calls == count:
            die()
    real(self)
    if self._table == table and place == "after" and calls == count:
        die()
tables.NightWriter._commit = commit
if place == "alias":
    publish.follow = lambda *_: die()
from flows.night import work
work(sys.argv[4], sys.argv[6], sys.argv[5])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A Prefect server of our own, as PREFECT_API_URL names one in production."""
    port = free_port()
    log = (SCRATCH / "server.log").open("w")
    process = subprocess.Popen(
        [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        stdout=log, stderr=log, start_new_session=True,
        env={**os.environ, "PREFECT_HOME": str(SCRATCH / "server")},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"
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


def still_running(url: str) -> int:
    """Flow runs that Prefect believes to be running."""
    body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/flow_runs/count", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(answer.read())


@pytest.fixture(scope="module")
def whole(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What an uninterrupted night leaves."""
    house = House(tmp_path_factory.mktemp("whole"))
    house.declare()
    house.drop("one.jsonl", rows(30))
    done = run(house, server, str(BIN / "nightshift"), "run", house.name, "--night", "n1")
    assert done.returncode == 0, done.stderr
    return house.digests("n1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "table", "count"),
    [
        ("before", "documents", 1),
        ("after", "tokens", 1),
        ("before", "stages", 4),  # the model is trained and kept, but not noted as done
        ("before", "embeddings", 1),
        ("before", "nights", 2),  # the model is registered, the night not yet published
        ("alias", "", 0),  # published, and the aliases still say yesterday
    ],
)
def test_a_killed_night_is_finished_by_running_it_again_and_equals_an_uninterrupted_one(
    server: str, whole: dict[str, object], tmp_path: Path, place: str, table: str, count: int
) -> None:
    house = House(tmp_path)
    house.declare()
    house.drop("one.jsonl", rows(30))
    words = [place, table, str(count), house.name, str(house.config), "n1"]
    killed = run(house, server, "-c", DRIVER, *words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = house.status()[0]["state"]
    assert state == ("published" if place == "alias" else "failed")
    again = run(house, server, str(BIN / "nightshift"), "run", house.name, "--night", "n1")
    assert again.returncode == 0, again.stderr
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
    assert still_running(server) == 0


@pytest.mark.slow
def test_a_night_killed_among_its_clusters_keeps_yesterdays_identities(
    server: str, tmp_path: Path
) -> None:
    house = House(tmp_path)
    house.declare(source={"label": None}, clusters={"k_min": 2, "k_max": 6})
    house.drop("one.jsonl", rows(60))
    nightly = (str(BIN / "nightshift"), "run", house.name, "--night")
    assert run(house, server, *nightly, "n1").returncode == 0
    before = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    ids = {row["cluster_id"] for row in house.table("clusters")}
    house.drop("two.jsonl", rows(10, seed=1))
    # Tonight's clusters are written, and who is in which is not.
    words = ["after", "clusters", "1", house.name, str(house.config), "n2"]
    assert run(house, server, "-c", DRIVER, *words).returncode == -signal.SIGKILL
    assert {row["night"] for row in house.lake.read("clusters").to_pylist()} == {"n1", "n2"}
    shown = json.loads(
        run(house, server, str(BIN / "nightshift"), "clusters", house.name, "--json").stdout
    )
    assert shown["night"] == "n1"
    assert {one["cluster_id"] for one in shown["clusters"]} == ids
    done = run(house, server, *nightly, "n2")
    assert done.returncode == 0, done.stderr
    tonight = [row for row in house.table("clusters") if row["night"] == "n2"]
    assert sorted(row["cluster_id"] for row in tonight) == sorted(ids)
    assert {row["event"] for row in tonight} == {"continued"}
    after = {row["doc_id"]: row["cluster_id"] for row in house.table("assignments")}
    assert sum(after[one] == where for one, where in before.items()) >= 0.95 * len(before)
