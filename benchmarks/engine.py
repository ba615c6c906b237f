"""A night on three nodes of which one is killed, against one in a single process; and scaling.

    python benchmarks/engine.py [--documents 100000] [--out FOLDER] [--again nights,costs]

Needs the extra `ray`. Three parts, each kept in engine.json as soon as it is done and not done
again unless asked for: `nights` works the same night with `engine: local` and on a Ray cluster of
three nodes on this machine, a processor each, one of which is killed with all its processes while
it classifies, and compares what every stage left; `costs` measures what one shard takes, piece by
piece; from these a simulation tells how long 1 to 64 nodes would take. engine.md and engine.png are
written from the file. Exit code 1 where the digests differ.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from corpora import RESULTS, keep, kept, machine, table

FILE = "engine.json"
NIGHT, PIPELINE = "n1", "engine"
WORKERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
COMPARED = ("files", "ingest", "tokens", "train", "promote", "embed", "cluster")
"""Stages that leave the same where everything is; the others tell how long it took."""
LABELLED = 2_000
NETWORK = 1e9
"""Bytes a second between a node and the night's: assumed, 10 Gbit/s with some loss."""
SIZES = (1_000_000, 10_000_000)
TASKS = 200
MANY = 80
"""Clusters to which vectors are assigned, beside those that were found: as many as auto chooses at
most by default."""


def main() -> int:
    options = _options()
    with TemporaryDirectory(prefix="nightshift-engine-") as folder:
        found = _measured(options, Path(folder))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engine.md").write_text(page(found), encoding="utf-8")
    picture(found["costs"], options.out / "engine.png")
    print(page(found))
    return 0 if found["nights"]["equal"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--again", default="", metavar="PARTS", help="nights, costs, or both")
    return parser.parse_args()


def _measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    about = {"documents": options.documents, "machine": machine(),
             "day": datetime.now(UTC).date().isoformat()}  # fmt: skip
    missing = [
        one for one in ("nights", "costs")
        if one not in kept(options.out, FILE) or one in options.again.split(",")
    ]  # fmt: skip
    if missing:
        _prepare(folder)
        print(f"engine: {options.documents:,} documents", file=sys.stderr)
        source = generate(folder, options.documents)
        with nodes() as cluster:
            if "nights" in missing:
                keep(options.out, FILE, "nights", {**nights(folder, source, cluster), **about})
            else:
                work(folder / "local", source, {})
            if "costs" in missing:
                keep(options.out, FILE, "costs", {**costs(folder / "local", cluster), **about})
    return kept(options.out, FILE)


def _prepare(folder: Path) -> None:
    """One thread everywhere, as on a node of one processor: sums must be cut alike to be equal."""
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    os.environ |= {
        "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip


# --- the same night twice ---------------------------------------------------------------------


def generate(folder: Path, documents: int) -> Path:
    """Distinct texts of 20 to 100 words, each of one of eight topics; the first are labelled."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(1)
    words = np.array([f"{one}{two}{three}" for one in "bdfgklmnprst" for two in "aeiou"
                      for three in ("l", "n", "rt", "st", "m", "ck", "th", "x")])  # fmt: skip
    topics = chance.integers(0, 8, documents)
    lengths = chance.integers(20, 101, documents)
    texts = []
    for number, (topic, length) in enumerate(zip(topics, lengths, strict=True)):
        own = chance.random(length) < 0.4
        drawn = np.where(own, 40 * topic + chance.integers(0, 40, length),
                         chance.integers(0, len(words), length))  # fmt: skip
        texts.append(f"{number} {' '.join(words[drawn])}")
    labels = [f"t{one}" if place < LABELLED else None for place, one in enumerate(topics)]
    file = folder / "documents.parquet"
    pq.write_table(pa.table({"text": texts, "label": pa.array(labels, pa.string())}), file)
    os.utime(file, (time.time() - 3600,) * 2)
    return file


class Nodes:
    """Three nodes of a processor each, as processes of this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self._others = [self._cluster.add_node(wait=False, num_cpus=1) for _ in range(2)]
        self._cluster.wait_for_nodes()
        self.address = self._cluster.address

    def kill(self) -> None:
        """As a machine dies, a second into a shard: the node's daemon and all that it started."""
        raylet = psutil.Process(self._others.pop().all_processes["raylet"][0].process.pid)
        until = time.monotonic() + 120
        while time.monotonic() < until and not _at_work(raylet):
            time.sleep(0.1)
        time.sleep(1)
        for one in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()

    def close(self) -> None:
        """End all of them."""
        self._cluster.shutdown()


def _at_work(raylet: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        lines = [" ".join(one.cmdline()) for one in raylet.children(recursive=True)]
        return any(one.startswith("ray::") and "IDLE" not in one for one in lines)
    return False


@contextmanager
def nodes() -> Any:
    found = Nodes()
    try:
        yield found
    finally:
        found.close()


def nights(folder: Path, source: Path, cluster: Nodes) -> dict[str, Any]:
    from tasks.stage import stable

    declared = {"engine": "ray", "address": cluster.address}
    alone = work(folder / "local", source, {})
    together = work(folder / "ray", source, {"compute": declared}, cluster)
    one, two = (lake(folder / name).stages(NIGHT) for name in ("local", "ray"))
    differ = [
        name for name in COMPARED if stable(one[name]["outputs"]) != stable(two[name]["outputs"])
    ]  # fmt: skip
    digests = {name: one[stage]["outputs"][name]["digest"][:8] for stage, name in (
        ("tokens", "tokens"), ("embed", "predictions"), ("embed", "embeddings"),
        ("cluster", "assignments"),
    )}  # fmt: skip
    return {
        "equal": not differ, "differ": differ, "digests": digests,
        "local": alone, "ray": together,
    }  # fmt: skip


def work(folder: Path, source: Path, more: dict[str, Any], cluster: Nodes | None = None) -> Any:
    """Work the night as the command does; with a cluster, kill a node in mid-classification."""
    folder.mkdir()
    pipeline = {
        "source": {"paths": [str(source)], "text": "text", "label": "label"},
        "pretrain": {"objective": "none"}, "train": {"epochs": 3, "device": "cpu"}, **more,
    }  # fmt: skip
    config = folder / "pipelines.yaml"
    whole = {"lake": "lake", "mlflow": "sqlite:///mlflow.db", "reports": "reports",
             "pipelines": {PIPELINE: pipeline}}  # fmt: skip
    config.write_text(json.dumps(whole), encoding="utf-8")
    command = [sys.executable, "-m", "flows.cli", "run", PIPELINE, "--night", NIGHT,
               "--config", str(config)]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )  # fmt: skip
    assert process.stderr is not None
    spread, killed, lines = 0, list[float](), list[str]()
    for line in process.stderr:
        lines.append(line)
        sys.stderr.write(f"  {line}")
        spread += "shards on the Ray cluster" in line
        if cluster is not None and spread == 2 and not killed:
            killed.append(0)
            threading.Thread(target=_kill_soon, args=(cluster, killed), daemon=True).start()
    if process.wait():
        raise SystemExit("".join(lines[-30:]))
    stages = lake(folder).stages(NIGHT)
    seconds = {name: row["seconds"] for name, row in stages.items()}
    return {"seconds": seconds, "killed_at": killed[-1] if killed else None}


def _kill_soon(cluster: Nodes, killed: list[float]) -> None:
    began = time.time()
    cluster.kill()
    killed.append(time.time() - began)
    print("  (a node is killed)", file=sys.stderr)


def lake(folder: Path) -> Any:
    from nightshift.tables import Lake

    return Lake(str(folder / "lake"), PIPELINE)


# --- what a shard costs -----------------------------------------------------------------------


def costs(folder: Path, cluster: Nodes) -> dict[str, Any]:
    """Seconds of each piece of a shard, in this process; of a task, on the cluster."""
    import pyarrow.compute as pc

    from nightshift.chunks import CHUNK as VECTORS
    from nightshift.nearest import Cells
    from nightshift.pipeline import load_settings
    from nightshift.shards import Answer, Encode, ModelVectors, Place, Texts, Unread
    from nightshift.tokenizer import Tokenizer
    from tasks.cluster import clusters_of
    from tasks.embed import CHUNK
    from tasks.stage import ModelRef
    from tasks.tokens import ROWS
    from tasks.tracking import Tracking

    tables, settings = lake(folder), load_settings(folder / "pipelines.yaml")
    row = tables.read("tokenizers").to_pylist()[-1]
    tokenizer = Tokenizer(row["serialized"], row["unit"])
    ref = ModelRef.model_validate(tables.nights()[-1]["figures"]["model"])
    from nightshift.bundle import Model

    model = Model.load(Tracking(settings.mlflow, "").fetch(ref.uri))
    most = settings.pipeline(PIPELINE).tokenizer.max_tokens
    clusters, vectors = clusters_of(tables, NIGHT), ModelVectors(ref.model_id, VECTORS)
    assert clusters is not None
    some = next(vectors.stream(tables))[:MANY]
    cells = {f"assign to {len(one)}": one for one in (clusters.cells, Cells.of(some))}
    pairs = {
        "tokens": (Texts(pc.scalar(True), ROWS), Encode(tokenizer, most)),
        "embed": (
            Unread(tokenizer.digest, pc.scalar(True), NIGHT, model.wide is not None, CHUNK),
            Answer(model, ref.model_id, "cpu"),
        ),
        **{name: (vectors, Place(one)) for name, one in cells.items()},
    }
    stages = {
        name: _of_shards(tables, lake(folder / "measured"), *pair) for name, pair in pairs.items()
    }
    for name in cells:
        stages[name]["spooled"] = 1
    return {
        "stages": stages,
        "task_seconds": _of_tasks(cluster),
    }


def _of_shards(tables: Any, into: Any, source: Any, work: Any) -> dict[str, float]:
    from nightshift.compute import _packed, _unpacked

    began = time.perf_counter()
    shards = source.shards(tables)
    plan = (time.perf_counter() - began) / max(1, len(shards))
    took: dict[str, list[float]] = {name: [] for name in ("read", "compute", "pack", "lay")}
    rows, size, commit = 0, 0, 0.0
    writers: dict[str, Any] = {}
    for shard in shards[:8]:
        clock = _Clock(took)
        chunks = [*source.read(tables, shard)]
        clock("read")
        made = [work(one) for one in chunks]
        clock("compute")
        packed = [{name: _packed(one) for name, one in some.items()} for some in made]
        clock("pack")
        for some in packed:
            for name, one in some.items():
                size += one.size
                batch = _unpacked(one)
                rows += batch.num_rows if name != "predictions" else 0
                if name == "places":  # which no table holds
                    continue
                if name not in writers:
                    writers[name] = into.writer(name, NIGHT).__enter__()
                writers[name].write(batch)
        for one in writers.values():
            one._flush()
        clock("lay")
    for one in writers.values():
        began = time.perf_counter()
        one.__exit__(None, None, None)
        commit += time.perf_counter() - began
    count = len(shards[:8])
    return {
        "rows": rows / count, "bytes": size / count, "plan": plan, "commit": commit,
        **{name: median(some) for name, some in took.items()},
    }  # fmt: skip


class _Clock:
    def __init__(self, took: dict[str, list[float]]):
        self._took, self._since = took, time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self._took[part].append(now - self._since)
        self._since = now


def _of_tasks(cluster: Nodes) -> float:
    """Seconds that the night's process spends on one task beside what it brings: asking, waiting
    and hearing of it, where the task itself does nothing."""
    from nightshift.compute import ComputeConfig, connect

    ray = connect(ComputeConfig(engine="ray", address=cluster.address))
    nothing = ray.remote(_nothing).options(num_cpus=1, scheduling_strategy="SPREAD")
    ray.get([nothing.remote(one) for one in range(8)])
    began = time.perf_counter()
    ray.get([nothing.remote(one) for one in range(TASKS)])
    seconds = (time.perf_counter() - began) / TASKS
    ray.shutdown()
    return seconds


def _nothing(number: int) -> int:
    return number


# --- what more nodes would bring --------------------------------------------------------------


def simulated(stage: dict[str, float], task: float, documents: int, workers: int) -> float:
    """Seconds of a stage: shards go to whoever is free, at most AHEAD for each; the night's
    process, which is one, plans them, asks for them and writes what comes, in order."""
    from nightshift.compute import AHEAD

    shards = max(1, round(documents / stage["rows"]))
    planned = shards * stage["plan"]
    busy = stage["read"] + stage["compute"] + stage["pack"] + stage["bytes"] / NETWORK
    free = [planned] * workers
    written: list[float] = []
    for number in range(shards):
        asked = planned if number < AHEAD * workers else written[number - AHEAD * workers]
        done = max(heapq.heappop(free), asked) + busy
        heapq.heappush(free, done)
        written.append(max(done, written[-1] if written else planned) + task + stage["lay"])
    return written[-1] + stage["commit"]


def alone(stage: dict[str, float], documents: int) -> float:
    """Seconds of a stage in one process, which neither plans nor packs."""
    shards = max(1, round(documents / stage["rows"]))
    return shards * _shard_alone(stage) + stage["commit"]


def _shard_alone(stage: dict[str, float]) -> float:
    """Vectors lie in a file of plain numbers there, since the fit has read them before."""
    read = 0 if stage.get("spooled") else stage["read"]
    return read + stage["compute"] + stage["lay"]


def limit(stage: dict[str, float], task: float) -> float:
    """How many times faster than alone it can get, with any number of nodes: then the night's own
    process does nothing but plan, ask and write."""
    return _shard_alone(stage) / (stage["plan"] + task + stage["lay"])


def enough(stage: dict[str, float], task: float, documents: int) -> int:
    """The most workers of WORKERS of which each still brings half of what it costs: twice as many
    would be less than 1.5 times as fast."""
    for few, many in pairwise(WORKERS):
        faster = simulated(stage, task, documents, few) / simulated(stage, task, documents, many)
        if faster - 1 < (many / few - 1) / 2:
            return few
    return WORKERS[-1]


# --- the page ---------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    one, cost = found["nights"], found["costs"]
    task, stages = cost["task_seconds"], cost["stages"]
    said = "equal" if one["equal"] else f"DIFFERENT in {', '.join(one['differ'])}"
    return "\n".join([
        "# Past one machine", "",
        "`python benchmarks/engine.py`: one night in one process, and the same night on a Ray",
        "cluster of three nodes of one processor each, all on this machine, of which one is killed",
        "while it classifies. One thread everywhere.", "",
        f"- {one['machine']}", f"- {one['documents']:,} generated documents, {one['day']}",
        f"- what {', '.join(COMPARED)} left: **{said}** ("
        + ", ".join(f"{name} {digest}" for name, digest in one["digests"].items()) + ")",
        f"- the node was killed {one['ray']['killed_at']:.1f} s after classifying began", "",
        "## Seconds by stage", "",
        "The machine has fewer processors than the cluster pretends, so this shows what comes of a",
        "death, and what a cluster costs, not what it saves.", "",
        *table(["stage", "one process", "three nodes, one killed"], [
            [name, f"{seconds:.1f}", f"{one['ray']['seconds'][name]:.1f}"]
            for name, seconds in one["local"]["seconds"].items()
        ]),
        "", "## What a shard costs", "",
        "Milliseconds, the median of up to eight shards, in one process. Read, compute and pack",
        "are the nodes' part; plan, task and write the part of the night's own process.", "",
        *table(
            ["stage", "rows", "KiB back", "read", "compute", "pack", "plan", "task", "write",
             "commit, once"],
            [[name, f"{its['rows']:,.0f}", f"{its['bytes'] / 1024:,.0f}",
              *(f"{1000 * its[part]:.1f}" for part in ("read", "compute", "pack", "plan")),
              f"{1000 * task:.1f}", f"{1000 * its['lay']:.1f}", f"{1000 * its['commit']:.0f}"]
             for name, its in stages.items()],
        ),
        "", "## What more nodes would bring: a simulation", "",
        "Made of these costs, and of 10 Gbit/s to the night's machine; nodes as fast as this one,",
        "a processor each, up already. Times faster than one process:", "",
        *table(["stage", "documents", *map(str, WORKERS), "limit", "pays up to"], [
            [name, f"{size:,}",
             *(f"{alone(its, size) / simulated(its, task, size, many):.1f}" for many in WORKERS),
             f"{limit(its, task):.0f}", str(enough(its, task, size))]
            for name, its in stages.items() for size in SIZES
        ]),
        "",
        "The limit is the night's own process: it writes every row itself, in order, so that a",
        "table is the same whoever computed it. `pays up to`: with twice as many nodes it would be",
        "less than 1.5 times as fast. A last wave of shards that does not fill all nodes is in it.",
        "", "![times faster, by nodes](engine.png)", "",
    ])  # fmt: skip


def picture(cost: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for name, its in cost["stages"].items():
        for size, style in zip(SIZES, ("--", "-"), strict=True):
            faster = [
                alone(its, size) / simulated(its, cost["task_seconds"], size, many)
                for many in WORKERS
            ]
            axes.plot(WORKERS, faster, style, marker=".", label=f"{name}, {size:,} documents")
    axes.plot(WORKERS, WORKERS, ":", color="grey", label="as many times as nodes")
    axes.set(xscale="log", yscale="log", xlabel="nodes of one processor", ylabel="times faster")
    axes.set_xticks(WORKERS, [str(one) for one in WORKERS])
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
