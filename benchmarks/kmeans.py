"""KMeans on a million vectors: seconds to one inertia, in memory, from the table, and by faiss.

    python benchmarks/kmeans.py [--rows 1000000] [--clusters 256] [--pairs 3] [--out FOLDER]

Unit vectors around many centres of different weight, and noise; the seed is fixed. faiss works
first, with its own defaults but for all rows instead of a sample: its inertia after 25 iterations
is the goal. Ours starts from KMeans on 20,000 rows and runs Lloyd's algorithm on all of them until
the goal is reached; the clock counts start and rounds, not the rounds' inertia, which only tells
when to stop. Once the vectors are in memory, once they are read from a table of the lake, whose
unpacking the clock counts. All have two threads and take turns, each going first in every third
round. Rows of a results file: kmeans.json; kmeans.md is written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from corpora import RESULTS, busy_seconds, keep, kept, machine, table
from peers import environment

WIDTH, CENTRES, NOISE, THREADS, MOST_ROUNDS = 128, 400, 0.09, 2, 100
CLOSE = 1e-3
"""How far our ways' inertias may lie apart."""
WAYS = ("memory", "table", "faiss")
FAISS = """
import json, sys, time
import faiss, numpy as np
rows, k, threads = np.load(sys.argv[1], mmap_mode="r"), int(sys.argv[2]), int(sys.argv[3])
vectors = np.ascontiguousarray(rows)
faiss.omp_set_num_threads(threads)
spent, started = time.process_time(), time.perf_counter()
# Else it would draw 256 rows for each cluster.
found = faiss.Kmeans(vectors.shape[1], k, niter=25, seed=int(sys.argv[4]),
                     max_points_per_centroid=len(vectors))
found.train(vectors)
seconds, spent = time.perf_counter() - started, time.process_time() - spent
distances, _ = found.index.search(vectors, 1)
print(json.dumps({"seconds": seconds, "cpu_seconds": spent, "inertia": float(distances.sum()),
                  "rounds": 25}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--one", nargs=4, metavar=("WAY", "FOLDER", "GOAL", "SEED"))
    options = parser.parse_args()
    if options.one:
        way, folder, goal, seed = options.one
        print(json.dumps(ours(way, Path(folder), options.clusters, float(goal), int(seed))))
        return 0
    with TemporaryDirectory(prefix="nightshift-benchmark-") as folder:
        print(f"making {options.rows:,} vectors", flush=True)
        make(Path(folder), options.rows)
        rounds = [
            _round(Path(folder), options.clusters, turn) for turn in range(options.pairs)
        ]  # fmt: skip
    about = {"machine": machine(), "day": datetime.now(UTC).date().isoformat()}
    row = {**about, "rows": options.rows, "clusters": options.clusters, "rounds": rounds}
    keep(options.out, "kmeans.json", f"{options.rows}x{WIDTH}-{options.clusters}", row)
    text = page(kept(options.out, "kmeans.json"))
    (options.out / "kmeans.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def make(folder: Path, rows: int) -> None:
    """The vectors as an array's file, and as a table of a lake."""
    import pyarrow as pa

    from nightshift.tables import Lake

    random = np.random.default_rng(7)
    centres = _unit(random.normal(size=(CENTRES, WIDTH)))
    weight = random.gamma(1.0, size=CENTRES)
    whole = np.lib.format.open_memmap(
        folder / "vectors.npy", "w+", np.float32, (rows, WIDTH)
    )  # fmt: skip
    with Lake(str(folder / "lake"), "p").writer("embeddings", "n1") as writer:
        for start in range(0, rows, 65_536):
            count = min(65_536, rows - start)
            own = random.choice(CENTRES, count, p=weight / weight.sum())
            noise = random.normal(size=(count, WIDTH)) * NOISE
            part = _unit(centres[own] + noise).astype(np.float32)
            whole[start : start + count] = part
            offsets = pa.array(np.arange(0, (count + 1) * WIDTH, WIDTH, dtype=np.int32))
            ids = pa.array([f"{row:032x}" for row in range(start, start + count)])
            writer.write(pa.RecordBatch.from_pydict({
                "doc_id": ids,
                "vector": pa.ListArray.from_arrays(offsets, pa.array(part.ravel())),
                "model_id": pa.array(["m"] * count),
            }))  # fmt: skip
    whole.flush()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _round(folder: Path, k: int, turn: int) -> dict[str, Any]:
    """Each way once, with a seed of the round's own."""
    before, started = busy_seconds(), time.time()
    found = {"faiss": _faiss(folder, k, turn)}
    goal = found["faiss"]["inertia"]
    for way in ("memory", "table") if turn % 2 else ("table", "memory"):
        command = [sys.executable, __file__, "--clusters", str(k), "--one", way, str(folder),
                   repr(goal), str(turn)]  # fmt: skip
        found[way] = _run(command)
    if turn % 2:  # so that neither of us always goes second
        found["faiss"] = _faiss(folder, k, turn)
    spent = sum(one["cpu_seconds"] for one in found.values())
    others = (busy_seconds() - before - spent) / (time.time() - started)
    for way in WAYS:
        print(f"  {way}: {found[way]['seconds']:.1f} s to {found[way]['inertia']:.1f}", flush=True)
    return {**found, "others_cores": round(others, 2)}


def _faiss(folder: Path, k: int, seed: int) -> dict[str, Any]:
    file = folder / "vectors.npy"
    words = [str(environment("faiss")), "-c", FAISS, str(file), str(k), str(THREADS), str(seed)]
    return _run(words)


def _run(command: list[str]) -> dict[str, Any]:
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def ours(way: str, folder: Path, k: int, goal: float, seed: int) -> dict[str, Any]:
    """Lloyd's algorithm until the goal's inertia, from a fit to a sample."""
    from nightshift.chunks import Held, Spooled, Vectors, each
    from nightshift.clustering import FIT_SAMPLE, fit_centroids, settle
    from nightshift.ids import steady
    from nightshift.nearest import Cells, nearest_centroids
    from nightshift.tables import Lake

    held = Held(np.load(folder / "vectors.npy")) if way == "memory" else None
    import sklearn.cluster  # noqa: F401 - faiss is imported before its clock starts, too

    spent, started = time.process_time(), time.perf_counter()
    vectors: Vectors = held or Spooled(
        batch.column("vector").flatten().to_numpy().reshape(batch.num_rows, -1)
        for batch in Lake(str(folder / "lake"), "p").scan("embeddings", ["vector"])
    )
    sample = vectors.take(steady(len(vectors), FIT_SAMPLE))
    cells = Cells.of(fit_centroids(sample, k, seed))
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    inertia, rounds = np.inf, 0
    while inertia > goal and rounds < MOST_ROUNDS:
        spent, started = time.process_time(), time.perf_counter()
        cells = settle(vectors, cells, rounds=1)
        seconds += time.perf_counter() - started
        cpu += time.process_time() - spent
        rounds += 1

        def apart(chunk: np.ndarray, centroids: np.ndarray = cells.centroids) -> float:
            return float((nearest_centroids(chunk, centroids)[1].astype(np.float64) ** 2).sum())

        inertia = sum(each(apart, vectors.chunks()))
    return {"seconds": seconds, "cpu_seconds": cpu, "inertia": inertia, "rounds": rounds}


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# KMeans on a million vectors", "",
        "`python benchmarks/kmeans.py`: seconds until faiss's inertia after 25 iterations on all",
        f"rows, {THREADS} threads each. `others` is what the rest of the machine computed",
        "meanwhile, in cores: with more than a few percent the seconds say little.", "",
    ]  # fmt: skip
    for key, row in rows.items():
        found = row["rounds"]
        lines += [f"## {key}", "", f"- machine: {row['machine']}", f"- day: {row['day']}", ""]
        lines += table(
            ["round", *(f"{way}, s" for way in WAYS), "faiss / memory", "table / memory",
             "inertia apart", "rounds", "others"],
            [_line(str(turn + 1), one) for turn, one in enumerate(found)],
        )  # fmt: skip
        ratios = [one["faiss"]["seconds"] / one["memory"]["seconds"] for one in found]
        streams = [one["table"]["seconds"] / one["memory"]["seconds"] for one in found]
        lines += ["", f"Median: faiss takes {median(ratios):.2f} times as long; from the table "
                  f"{median(streams):.2f} times as long as in memory.", ""]  # fmt: skip
    return "\n".join(lines)


def _line(turn: str, one: dict[str, Any]) -> list[str]:
    memory, streamed, faiss = (one[way] for way in WAYS)
    apart = abs(memory["inertia"] - streamed["inertia"]) / memory["inertia"]
    return [
        turn, *(f"{one[way]['seconds']:.1f}" for way in WAYS),
        f"{faiss['seconds'] / memory['seconds']:.2f}",
        f"{streamed['seconds'] / memory['seconds']:.2f}",
        f"{apart:.4%}{'' if apart <= CLOSE else ' TOO FAR'}",
        str(memory["rounds"]), f"{one['others_cores']:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
