"""Nothing lost, nothing twice: a night is killed at many moments, and run again.

    python benchmarks/kills.py [--seeds 3] [--jobs 2] [--only 'amid*']
    python benchmarks/kills.py --page

Every kill starts from the same folder: a second night, with new documents, known texts, bad rows
and a label that changed, dies by SIGKILL (dying.py) and is run again by the command. All tables are
then compared, row by row, with those of a house whose nights were not interrupted. A real Prefect
server and an MLflow on SQLite watch: what they still show as running counts as left open. Seeds
change the corpus, the weights, and the moments that are drawn by chance. A kill with a row in
results/kills.json is not made again. kills.md is written from it. Exit code 1 where anything is
lost, doubled, changed or left open.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import yaml
from corpora import NIGHTSHIFT, RESULTS, keep, kept, machine

HERE = Path(__file__)
FILE = "kills.json"
TABLES = ("batches", "documents", "duplicates", "rejects", "labels", "tokenizers", "tokens",
          "predictions", "embeddings", "clusters", "assignments", "promotions")  # fmt: skip
KEYS = {
    "batches": ("uri",),
    "documents": ("doc_id",),
    "duplicates": ("source_file", "row"),
    "rejects": ("source_file", "row"),
    "labels": ("doc_id", "label", "night"),
    "tokenizers": ("digest",),
    "tokens": ("doc_id", "tokenizer"),
    "predictions": ("doc_id", "model_id"),
    "embeddings": ("doc_id", "model_id"),
    "clusters": ("cluster_id", "night"),
    "assignments": ("doc_id", "night"),
    "promotions": ("night",),
}
"""What there is one row of."""
PIPELINE = {
    "source": {"paths": ["inbox/*"], "text": "text", "label": "label"},
    "tokenizer": {"vocabulary": 300},
    "model": {"hidden": 16, "embedding": 16, "vector": 16},
    # Models are not compared on gate rows, each in a process of its own: half a night's time.
    "splits": {"gate": 0.0},
    "promotion": {"policy": "always"},
    "clusters": {"k_max": 6},
    "report": {"map_points": 60},
}
TRAIN = {"epochs": 4, "learning_rate": 0.02, "batch_tokens": 512, "when": "always"}
WORDS = {
    "cooking": "oven butter flour bake simmer garlic onion recipe dough pan roast salt taste stir",
    "sailing": "anchor sail mast harbour tide wind keel deck rope skipper wave port starboard hull",
    "chess": "pawn rook bishop queen castle gambit endgame check mate opening tempo knight board",
}

# --- moments --------------------------------------------------------------------------------

STAGES = range(1, 11)
FIXED = [
    "start", "lease", "run",
    *(f"before:stages:{number}" for number in STAGES),
    *(f"after:stages:{number}" for number in STAGES),
    "before:nights:1", "after:nights:1", "before:nights:2", "after:nights:2",
    *(f"laid:{table}:1" for table in ("documents", "labels", "tokens", "predictions", "embeddings",
                                      "clusters", "assignments", "promotions", "nights", "stages")),
    *(f"after:{table}:1" for table in ("documents", "tokens", "embeddings", "clusters")),
    "epoch:1", "epoch:3", "upload:1", "upload:6", "logged", "alias:0", "alias:1", "alias:2",
    "published",
]  # fmt: skip
"""For the first seed."""


def moments(seed: int) -> list[str]:
    """The moments of a seed: every named one for the first, and some by chance for each."""
    chance = random.Random(seed)
    drawn = [f"after-seconds:{chance.uniform(0.05, 6):.2f}" for _ in range(8)]
    amid = [
        f"amid:{chance.choice(TABLES[1:])}:1:{chance.uniform(0, 8):.1f}",
        f"amid:stages:{chance.randint(1, 10)}:{chance.uniform(0, 8):.1f}",
        f"amid:nights:2:{chance.uniform(0, 8):.1f}",
        f"upload:{chance.uniform(0, 20):.1f}",
    ]
    return [*(FIXED if seed == 1 else []), *amid, *drawn]


# --- a house --------------------------------------------------------------------------------


def texts(topic: str, count: int, chance: random.Random) -> list[dict[str, Any]]:
    """Labelled rows of a topic."""
    words = WORDS[topic].split()
    return [
        {"text": " ".join(chance.choices(words, k=5)) + f" {chance.randrange(999)}", "label": topic}
        for _ in range(count)
    ]


def build(folder: Path, name: str, mlflow: str, seed: int) -> None:
    """A pipelines file and the files of two nights; the second one's wait beside the inbox."""
    chance = random.Random(seed)
    inbox = folder / "inbox"
    shutil.rmtree(folder, ignore_errors=True)
    inbox.mkdir(parents=True)
    first = [row for topic in WORDS for row in texts(topic, 30, chance)]
    second = [row for topic in WORDS for row in texts(topic, 10, chance)]
    # Known texts, one of them with another label, and rows that are refused.
    second += [first[0], {**first[1], "label": "chess"}, {"text": ""}, {"text": "   "}]
    for where, rows in (("inbox/one.jsonl", first), ("two.jsonl", second)):
        path = folder / where
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(path, (1e9, 1e9))
    whole = {
        "lake": "lake",
        "mlflow": mlflow,
        "reports": "reports",
        "pipelines": {name: {**PIPELINE, "train": {**TRAIN, "seed": seed}}},
    }
    (folder / "pipelines.yaml").write_text(yaml.safe_dump(whole))


def tables(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Every published table's rows, without what differs between two equal nights."""
    from nightshift.tables import VOLATILE, Lake

    lake = Lake(str(folder / "lake"), name)
    row = lake.published()
    assert row is not None
    return {
        table: [
            {key: value for key, value in one.items() if key not in VOLATILE}
            for one in lake.read(table, version=row["versions"][table]).to_pylist()
        ]
        for table in TABLES
        if table in row["versions"]
    }


def differences(
    mine: dict[str, list[dict[str, Any]]], whole: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Rows lost and doubled by key, and tables whose rows are not the same, in order."""
    lost = doubled = 0
    for table, key in KEYS.items():
        have, wanted = (
            Counter(tuple(row[one] for one in key) for row in side.get(table, []))
            for side in (mine, whole)
        )
        lost += sum((wanted - have).values())
        doubled += sum((have - wanted).values())
    changed = [table for table in TABLES if mine.get(table, []) != whole.get(table, [])]
    return {"rows_lost": lost, "rows_doubled": doubled, "changed": changed}


class Nursery:
    """Works nights in processes of their own, forked from one that has imported everything."""

    def __init__(self, folder: Path, url: str, delays: str = ""):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PYTHONPATH": str(HERE.parent.parent),
            **({"DELAYS": delays} if delays else {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE.with_name("dying.py")), "--nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def run(
        self, folder: Path, name: str, night: str, moment: str = "", fault: str | None = None
    ) -> int:
        """Work a night, as the command does or with a moment of dying.py; returns its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        environment = {} if fault is None else {"FAULT": fault}
        said = [moment, name, str(folder / "pipelines.yaml"), night, str(folder / "night.log"),
                environment]  # fmt: skip
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


# --- what watches ---------------------------------------------------------------------------


@contextmanager
def prefect_server(folder: Path, database: str | None = None) -> Iterator[str]:
    """A Prefect server of our own; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(folder), "PREFECT_LOGGING_LEVEL": "ERROR",
                   "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}  # fmt: skip
    if database:
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    command = [str(NIGHTSHIFT.with_name("prefect")), "server", "start", "--port", str(port)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}/api"
        try:
            for _ in range(600):
                with suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=1)
                    break
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def open_flows(url: str, name: str) -> int:
    """Flow runs of a pipeline that Prefect shows as running, and their tasks."""
    states = {"type": {"any_": ["RUNNING", "PENDING"]}}

    def ask(kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"{url}/{kind}/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    runs = ask("flow_runs", {"flow_runs": {"name": {"like_": name}}})
    ids = [one["id"] for one in runs if one["parameters"].get("pipeline") == name]
    tasks = ask("task_runs", {"flow_runs": {"id": {"any_": ids}}, "task_runs": {"state": states}})
    still = sum(one["id"] in ids and one["state_type"] in states["type"]["any_"] for one in runs)
    return still + len(tasks)


def open_mlflow(uri: str, name: str) -> int:
    """Runs of a pipeline that MLflow shows as running, nested ones too."""
    if uri.startswith("sqlite:"):
        # Not MLflow's client: it would still have the file open that was here before.
        words = "SELECT count(*) FROM runs JOIN experiments USING (experiment_id) " \
                "WHERE experiments.name = ? AND runs.status = 'RUNNING'"  # fmt: skip
        return _ask(uri, words, name)[0][0]
    from mlflow import MlflowClient

    import tasks.tracking  # noqa: F401 - sets MLflow's manners first

    client = MlflowClient(uri, uri)
    found = client.get_experiment_by_name(name)
    assert found is not None
    return len(client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'"))


def versions(uri: str, name: str) -> tuple[int, int]:
    """How many versions a store on SQLite has, and which one is champion."""
    count = _ask(uri, "SELECT count(*) FROM model_versions WHERE name = ?", name)[0][0]
    words = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = 'champion'"
    return count, int(_ask(uri, words, name)[0][0])


def _ask(uri: str, words: str, name: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
        return store.execute(words, (name,)).fetchall()


# --- one kill -------------------------------------------------------------------------------


class Bench:
    """Where one job works; every kill of a seed starts from a copy of one folder."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self.house, self.mlflow = folder / "house", f"sqlite:///{folder}/house/mlflow.db"
        self.nursery = Nursery(folder, url)
        self._whole: dict[int, dict[str, Any]] = {}

    def whole(self, seed: int) -> dict[str, Any]:
        """The tables after two nights that nobody interrupted, and how many versions they made."""
        if seed not in self._whole:
            name = self.name(seed)
            build(self.house, name, self.mlflow, seed)
            self._work(name, "n1")
            (self.house / "two.jsonl").rename(self.house / "inbox" / "two.jsonl")
            shutil.copytree(self.house, self.folder / f"first-{seed}")
            self._work(name, "n2")
            count, champion = versions(self.mlflow, name)
            self._whole[seed] = {
                "tables": tables(self.house, name), "versions": count, "champion": champion
            }  # fmt: skip
        return self._whole[seed]

    def name(self, seed: int) -> str:
        """The pipeline of a seed."""
        return f"{self.folder.name}-{seed}"

    def _work(self, name: str, night: str) -> None:
        if self.nursery.run(self.house, name, night) != 0:
            raise SystemExit((self.house / "night.log").read_text())

    def kill(self, moment: str, seed: int) -> dict[str, Any]:
        """A second night that dies and is run again; what it came to."""
        whole, name, house = self.whole(seed), self.name(seed), self.house
        shutil.rmtree(house)
        shutil.copytree(self.folder / f"first-{seed}", house)
        began = time.perf_counter()
        code = self.nursery.run(house, name, "n2", moment)
        killed = time.perf_counter()
        again = self.nursery.run(house, name, "n2")
        finished = time.perf_counter()
        count, champion = versions(self.mlflow, name)
        log = (house / "night.log").read_text().rpartition("Beginning")[2]
        return {
            "moment": moment,
            "seed": seed,
            "killed": code == -signal.SIGKILL,
            "resumed": again == 0,
            "kept": log.count("done before, kept"),
            "seconds_to_kill": round(killed - began, 1),
            "seconds_to_finish": round(finished - killed, 1),
            **differences(tables(house, name), whole["tables"]),
            "left_open": open_flows(self.url, name) + open_mlflow(self.mlflow, name),
            "versions_doubled": count - whole["versions"],
            "champion": champion == whole["champion"],
        }


def good(row: dict[str, Any]) -> bool:
    """Whether a kill, if it came, left nothing behind."""
    return (
        row["resumed"] and row["champion"] and not row["changed"]
        and not row["rows_lost"] + row["rows_doubled"] + row["left_open"] + row["versions_doubled"]
    )  # fmt: skip


# --- the page -------------------------------------------------------------------------------


def write_page(rows: dict[str, Any]) -> None:
    """kills.md from kills.json: one line per kind of moment."""
    found = [row for row in rows.values() if row["killed"]]
    late = [row for row in rows.values() if not row["killed"]]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        place, *rest = row["moment"].split(":")
        chance = place in ("after-seconds", "upload")
        kinds.setdefault(place if chance else " ".join([place, *rest[:2]]), []).append(row)
    lines = [
        "# Kills",
        "",
        "Made by `python benchmarks/kills.py`; do not edit. A second night is killed by SIGKILL",
        "and run again; its tables are compared row by row with those of a night that was not.",
        "",
        f"{len(found)} kills, {sum(row['resumed'] for row in found)} resumed,",
        f"{sum(row['rows_lost'] for row in found)} rows lost,",
        f"{sum(row['rows_doubled'] for row in found)} rows doubled,",
        f"{sum(len(row['changed']) for row in found)} tables changed,",
        f"{sum(row['left_open'] for row in found)} runs of Prefect or MLflow left open,",
        f"{sum(row['versions_doubled'] for row in found)} versions of the registry doubled.",
        "",
        "| moment | times | resumed | rows lost | rows doubled | tables changed | left open | "
        "seconds to finish |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, some in kinds.items():
        seconds = sorted(row["seconds_to_finish"] for row in some)
        lines.append(
            f"| {kind} | {len(some)} | {sum(row['resumed'] for row in some)} | "
            f"{sum(row['rows_lost'] for row in some)} | {sum(row['rows_doubled'] for row in some)} "
            f"| {sum(len(row['changed']) for row in some)} | "
            f"{sum(row['left_open'] for row in some)} | {seconds[len(seconds) // 2]:.0f} |"
        )
    if late:
        named = ", ".join(f"{row['moment']} (seed {row['seed']})" for row in late)
        lines += ["", f"{len(late)} moments came after the night was done, and killed nothing:"]
        lines += [f"{named}."]
    lines += ["", f"{machine()}, shared with other work."]
    (RESULTS / "kills.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="*")
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if args.page:
        write_page(kept(RESULTS, FILE))
        return 0
    sys.path.insert(0, str(HERE.parent.parent))
    from flows.environment import prepare

    with TemporaryDirectory(prefix="kills-") as scratch:
        base = Path(scratch)
        prepare(base / "prefect")
        with prefect_server(base / "server") as url:
            work(args.seeds, args.jobs, args.only, base, url)
    rows = kept(RESULTS, FILE)
    write_page(rows)
    return 0 if all(good(row) for row in rows.values()) else 1


def work(seeds: int, jobs: int, only: str, base: Path, url: str) -> None:
    """All kills that have no row yet, several at a time."""
    for number in range(jobs):
        (base / f"job{number}").mkdir()
    benches = [Bench(base / f"job{number}", url) for number in range(jobs)]
    writing = Lock()

    def one(bench: Bench, moment: str, seed: int) -> None:
        row = bench.kill(moment, seed)
        row["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        with writing:
            keep(RESULTS, FILE, f"{seed}/{moment}", row)
        print(f"{'ok ' if good(row) else 'BAD'} {json.dumps(row)}", flush=True)

    there = kept(RESULTS, FILE)
    due = [
        (moment, seed)
        for seed in range(1, seeds + 1)
        for moment in moments(seed)
        if f"{seed}/{moment}" not in there and fnmatch(moment, only)
    ]

    def all_of(number: int) -> None:
        for moment, seed in due[number::jobs]:
            one(benches[number], moment, seed)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(all_of, number) for number in range(jobs)]:
            done.result()


if __name__ == "__main__":
    sys.exit(main())
