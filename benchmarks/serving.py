"""`nightshift serve` beside `mlflow models serve`: how fast, how large, and what a flip costs.

    python benchmarks/serving.py --data DIR [--seconds 10] [--rounds 3] [--out FOLDER]
    python benchmarks/serving.py --data DIR --environment    # and in a fresh environment

Two nights of banking77 (its quick recipe; half the rows, then the other half) register two
versions. Both servers serve the same one, and the same client asks them in turns, over connections
that it keeps: single texts by one client and by eight, batches of 32 by four. Then the alias is
flipped ten times within a minute of load: a request that fails, or an answer by a version that was
not champion within the declared pickup, fails the benchmark (exit code 1). Last, how requests share
the model inside one process. With `--environment` the champion is also loaded in a virtual
environment that has its own requirements and nothing else.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from corpora import (
    NIGHTSHIFT,
    RESULTS,
    add_data_option,
    busy_seconds,
    keep,
    kept,
    machine,
    run,
    table,
)

CORPUS = "banking77"
LOADS = {"1 text, 1 client": (1, 1), "1 text, 8 clients": (1, 8), "32 texts, 4 clients": (32, 4)}
"""Texts in a request, and clients that send it."""
FLIPS, FLIP_SECONDS, EVERY, PICKUP = 10, 60.0, 1.0, 5.0
"""`--every`, and the seconds after which a new champion must answer."""
ENVIRONMENT = Path(__file__).with_name(".venvs") / "serving"
WAYS = ("nightshift serve", "mlflow models serve")


@dataclass(frozen=True)
class Answer:
    """One request: when, how it ended, and who says to have answered."""

    began: float
    ended: float
    status: int
    version: int | None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environment", action="store_true", help="load it in a fresh one, too")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    before, started = busy_seconds(), time.time()
    with TemporaryDirectory(prefix="nightshift-benchmark-") as folder:
        config, texts = two_nights(options.data, Path(folder))
        row = measure(config, texts, options.seconds, options.rounds)
        # First: a process's peak begins with that of the one that starts it.
        row["files"] = files(config, texts)
        row["sharing"] = sharing(config, texts, options.seconds)
        if options.environment:
            row["environment"] = in_fresh_environment(config, Path(folder))
        elif CORPUS in kept(options.out, "serving.json"):
            row["environment"] = kept(options.out, "serving.json")[CORPUS].get("environment")
    cores = (busy_seconds() - before) / (time.time() - started)
    about = {"machine": machine(), "day": datetime.now(UTC).date().isoformat(), "cores": cores,
             "load": os.getloadavg()[2]}  # fmt: skip
    keep(options.out, "serving.json", CORPUS, {**row, **about})
    text = page(kept(options.out, "serving.json")[CORPUS])
    (options.out / "serving.md").write_text(text, encoding="utf-8")
    print(text)
    flips = row["flips"]
    return 1 if flips["failed"] or flips["strangers"] else 0


def two_nights(data: Path, folder: Path) -> tuple[Path, list[str]]:
    """A pipeline with two registered versions, and texts to ask about."""
    import pyarrow.parquet as pq

    rows = pq.read_table(data / f"{CORPUS}.parquet")
    (folder / "inbox").mkdir()
    config = folder / "pipelines.yaml"
    source = {"paths": ["inbox/*"], "text": "text", "label": "label", "split": "split"}
    pipeline = {"source": source, "train": {"preset": "quick", "when": "always"}}
    config.write_text(json.dumps({"pipelines": {CORPUS: pipeline}}), encoding="utf-8")
    order = random.Random(1).sample(range(rows.num_rows), rows.num_rows)
    half = len(order) // 2
    for night, part in (("n1", order[:half]), ("n2", order[half:])):
        file = folder / "inbox" / f"{night}.parquet"
        pq.write_table(rows.take(part), file)
        os.utime(file, (time.time() - 3600,) * 2)
        run([str(NIGHTSHIFT), "run", CORPUS, "--night", night, "--config", str(config)])
    return config, rows["text"].to_pylist()


# --- servers --------------------------------------------------------------------------------


@contextmanager
def server(way: str, config: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """One of the two servers of the pipeline's champion, alone in a process group."""
    here = Path(sys.executable).parent
    ours = [str(NIGHTSHIFT), "serve", CORPUS, "--every", str(EVERY), "--config", str(config)]
    theirs = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local",
              "--model-uri", f"models:/{CORPUS}@champion"]  # fmt: skip
    process = subprocess.Popen(
        [*(ours if way == WAYS[0] else theirs), "--port", str(port), "--host", "127.0.0.1"],
        env={**os.environ, "MLFLOW_TRACKING_URI": store(config),
             "PATH": f"{here}:{os.environ['PATH']}"},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def store(config: Path) -> str:
    return f"sqlite:///{config.parent}/data/mlflow.db"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def first_answer(port: int, process: subprocess.Popen[bytes], started: float) -> float:
    """Seconds from the start of a process to its first answer to a text."""
    while True:
        if process.poll() is not None or time.perf_counter() - started > 300:
            raise SystemExit(f"serving: the server ended or never answered ({process.args}).")
        with suppress(OSError, http.client.HTTPException):
            one = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            if ask(one, ["is my card lost?"]).status == 200:
                return time.perf_counter() - started
        time.sleep(0.05)


def size_mib(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Resident memory of the process that answers, and of it with those that watch over it."""
    parent = psutil.Process(process.pid)
    sizes = [one.memory_info().rss / 2**20 for one in (parent, *parent.children(recursive=True))]
    return {"answering_mib": max(sizes), "all_mib": sum(sizes)}


# --- load -----------------------------------------------------------------------------------


def ask(connection: http.client.HTTPConnection, texts: list[str]) -> Answer:
    body = json.dumps({"inputs": {"text": texts}}).encode()
    began = time.perf_counter()
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    said = reply.read()
    ended = time.perf_counter()
    found = json.loads(said) if reply.status == 200 else {}
    if reply.status == 200 and len(found["predictions"]) != len(texts):
        raise SystemExit("serving: a request was not answered text by text.")
    return Answer(began, ended, reply.status, found.get("model_version"))


def load(port: int, texts: list[str], size: int, clients: int, seconds: float) -> list[Answer]:
    """Ask for so many seconds; a connection that breaks counts as an answer with status 0."""
    over = time.perf_counter() + seconds

    def client(seed: int) -> list[Answer]:
        chance, answers = random.Random(seed), []
        one = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < over:
            began = time.perf_counter()
            try:
                answers.append(ask(one, chance.sample(texts, size)))
            except (OSError, http.client.HTTPException):
                answers.append(Answer(began, time.perf_counter(), 0, None))
                one.close()
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return [answer for part in pool.map(client, range(clients)) for answer in part]


def figures(answers: list[Answer], size: int, seconds: float) -> dict[str, float]:
    took = sorted(one.ended - one.began for one in answers)
    return {
        "texts_per_second": size * len(answers) / seconds,
        "p50_ms": 1000 * took[len(took) // 2],
        "p99_ms": 1000 * took[int(0.99 * (len(took) - 1))],
        "requests": len(answers),
        "failed": sum(one.status != 200 for one in answers),
    }


def measure(config: Path, texts: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Both servers, in turns; then the flips."""
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Any] = {way: {name: [] for name in LOADS} for way in WAYS}
    sizes: dict[str, dict[str, float]] = {}
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
            port, started = free_port(), time.perf_counter()
            with server(way, config, port) as process:
                starts[way].append(first_answer(port, process, started))
                for name, (size, clients) in LOADS.items():
                    load(port, texts, size, clients, 1.0)
                    answers = load(port, texts, size, clients, seconds)
                    found[way][name].append(figures(answers, size, seconds))
                sizes[way] = size_mib(process)
            print(f"round {turn + 1}: {way} done", file=sys.stderr)
    return {
        "loads": {
            way: {
                name: {key: median(one[key] for one in rows) for key in rows[0]}
                for name, rows in found[way].items()
            }
            for way in WAYS
        },
        "first_answer_seconds": {way: median(starts[way]) for way in WAYS},
        "sizes": sizes,
        "rounds": rounds,
        "seconds": seconds,
        "flips": flips(config, texts),
    }


# --- flips ----------------------------------------------------------------------------------


def flips(config: Path, texts: list[str]) -> dict[str, Any]:
    """A minute of load on `nightshift serve` while the alias goes to and fro."""
    from mlflow import MlflowClient

    client = MlflowClient(store(config), store(config))
    newest = int(client.get_model_version_by_alias(CORPUS, "champion").version)
    other = newest - 1
    port, started = free_port(), time.perf_counter()
    with server(WAYS[0], config, port) as process:
        first_answer(port, process, started)
        before = size_mib(process)["answering_mib"]
        reigns = [(started, time.perf_counter(), newest)]

        def flip() -> None:
            for number in range(FLIPS):
                time.sleep(FLIP_SECONDS / (FLIPS + 1))
                crowned, asked = (other, newest)[number % 2], time.perf_counter()
                client.set_registered_model_alias(CORPUS, "champion", str(crowned))
                reigns.append((asked, time.perf_counter(), crowned))

        flipping = threading.Thread(target=flip)
        flipping.start()
        answers = load(port, texts, 1, 4, FLIP_SECONDS)
        flipping.join()
        meters = http.client.HTTPConnection("127.0.0.1", port)
        meters.request("GET", "/metrics")
        swaps = meters.getresponse().read().decode().partition("\nnightshift_swaps_total ")[2]
        after = size_mib(process)["answering_mib"]
    late = [lateness(one, reigns) for one in answers if one.status == 200]
    return {
        **figures(answers, 1, FLIP_SECONDS),
        "flips": FLIPS,
        "swaps": int(float(swaps.split("\n")[0])) - 1,
        "strangers": sum(seconds > PICKUP for seconds in late),
        "latest_seconds": max(late),
        "versions": sorted({one.version for one in answers if one.version}),
        "mib_before": before,
        "mib_after": after,
    }


def lateness(answer: Answer, reigns: list[tuple[float, float, int]]) -> float:
    """Seconds since the answering version's reign surely ended, when the request began.

    0 within a reign, and infinite for a version that was not champion yet.
    """
    ends = [sure for _, sure, _ in reigns[1:]] + [float("inf")]
    return min(
        (
            max(0.0, answer.began - end)
            for (begins, _, version), end in zip(reigns, ends, strict=True)
            if version == answer.version and begins <= answer.ended
        ),
        default=float("inf"),
    )


# --- inside one process ---------------------------------------------------------------------


def sharing(config: Path, texts: list[str], seconds: float) -> dict[str, float]:
    """Texts a second that eight threads get from one model, asking for one at a time."""
    from flows.asked import Asked
    from flows.desk import Champion, Desk, Job
    from flows.reading import champion
    from nightshift.pipeline import load_settings

    number, bundle = champion(load_settings(config), CORPUS)
    lock, desk, served = threading.Lock(), Desk(), Champion(number, bundle)
    threading.Thread(target=desk.work, daemon=True).start()

    def locked(text: str) -> None:
        with lock:
            bundle.answer([text])

    def together(text: str) -> None:
        desk.ask(Job(served, Asked([text]))).result()

    ways: dict[str, Callable[[str], Any]] = {
        "a lock": locked,
        "no lock": lambda text: bundle.answer([text]),
        "one thread, what waits together": together,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            over = time.perf_counter() + seconds / 3

            def client(seed: int, way: Callable[[str], Any] = way, over: float = over) -> int:
                chance, done = random.Random(seed), 0
                while time.perf_counter() < over:
                    way(chance.choice(texts))
                    done += 1
                return done

            with ThreadPoolExecutor(8) as pool:
                found[name].append(sum(pool.map(client, range(8))) / (seconds / 3))
    desk.close()
    return {name: median(rates) for name, rates in found.items()}


# --- files ----------------------------------------------------------------------------------


def files(config: Path, texts: list[str]) -> list[dict[str, float]]:
    """`nightshift predict --out` of the corpus, once and several times over: does memory grow?"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for times in (1, 4, 16):
        file, out = (config.with_name(f"{name}-{times}.parquet") for name in ("texts", "scored"))
        pq.write_table(pa.table({"text": texts * times}), file)
        done = run([str(NIGHTSHIFT), "predict", CORPUS, str(file), "--out", str(out),
                    "--config", str(config)])  # fmt: skip
        rows = pq.read_metadata(out).num_rows
        if rows != times * len(texts):
            raise SystemExit(f"serving: {rows} of {times * len(texts)} rows were written.")
        found.append({"rows": rows, "seconds": done.wall_seconds, "peak_mib": done.peak_mib})
    return found


# --- a fresh environment --------------------------------------------------------------------

LOADING = """
import json, sys, time
started = time.perf_counter()
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
said = model.predict(pandas.DataFrame({"text": ["is my card lost?", ""]}))
for name in ("nightshift", "flows", "tasks", "prefect"):
    try:
        __import__(name)
        raise SystemExit(f"{name} is here")
    except ImportError:
        pass
print(json.dumps({"label": said["label"][0], "error": said["error"][1],
                  "seconds": time.perf_counter() - started}))
"""


def in_fresh_environment(config: Path, folder: Path) -> dict[str, Any]:
    """Install what the champion says it needs into a new environment, and ask it there."""
    from mlflow.artifacts import download_artifacts

    os.environ["MLFLOW_TRACKING_URI"] = store(config)
    where = Path(download_artifacts(f"models:/{CORPUS}@champion", dst_path=str(folder / "alone")))
    pins = (where / "requirements.txt").read_text(encoding="utf-8").split()
    rmtree(ENVIRONMENT, ignore_errors=True)
    started = time.perf_counter()
    venv.create(ENVIRONMENT, with_pip=True)
    python = str(ENVIRONMENT / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    installed = time.perf_counter() - started
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", LOADING, str(where)], capture_output=True, text=True, cwd=folder / "alone",
        env=environment,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"serving: the bundle did not load alone.\n{done.stderr[-3000:]}")
    mib = sum(one.stat().st_size for one in ENVIRONMENT.rglob("*") if one.is_file()) / 2**20
    rmtree(ENVIRONMENT)
    said = json.loads(done.stdout.splitlines()[-1])
    return {"requirements": pins, "install_seconds": installed, "mib": mib, **said}


# --- page -----------------------------------------------------------------------------------


def page(row: dict[str, Any]) -> str:
    """The results as Markdown."""
    flips, sizes, first = row["flips"], row["sizes"], row["first_answer_seconds"]
    lines = [
        "# Serving", "",
        "`python benchmarks/serving.py --data DIR`: the champion of two nights of banking77",
        "(quick recipe), by `nightshift serve` and by `mlflow models serve --env-manager local`,",
        f"in turns; medians of {row['rounds']} rounds of {row['seconds']:g} s, with one client",
        "process over kept connections on the same machine.",
        "",
        f"- {row['machine']}",
        f"- {row['day']}; other work ran meanwhile: load average {row['load']:.1f}, and all",
        f"  processes together took {row['cores']:.1f} cores. Ratios say more than numbers.",
        "",
        *table(
            ["load", "server", "texts/s", "p50 ms", "p99 ms", "failed"],
            [
                [name, way, f"{one['texts_per_second']:,.0f}", f"{one['p50_ms']:.1f}",
                 f"{one['p99_ms']:.1f}", f"{one['failed']:.0f}"]
                for name in LOADS
                for way in WAYS
                for one in [row["loads"][way][name]]
            ],
        ),
        "",
        *table(
            ["server", "seconds to first answer", "MiB that answer", "MiB in all"],
            [
                [way, f"{first[way]:.1f}", f"{sizes[way]['answering_mib']:,.0f}",
                 f"{sizes[way]['all_mib']:,.0f}"]
                for way in WAYS
            ],
        ),
        "",
        "## While the champion changes", "",
        f"{FLIP_SECONDS:.0f} s of single texts by four clients, while the alias flipped"
        f" {flips['flips']} times between versions",
        f"{' and '.join(map(str, flips['versions']))} (`--every {EVERY:g}`):"
        f" {flips['requests']:,} requests, {flips['failed']} failed; {flips['swaps']} swaps.",
        "An answer by the version before came at most"
        f" {flips['latest_seconds']:.1f} s after its alias had moved;",
        f"{flips['strangers']} came from a version that was not champion within the declared"
        f" {PICKUP:g} s. p50 {flips['p50_ms']:.1f} ms,",
        f"p99 {flips['p99_ms']:.1f} ms. The process had {flips['mib_before']:,.0f} MiB before and"
        f" {flips['mib_after']:,.0f} MiB after.",
        "",
        "## How requests share the model", "",
        "Eight threads of one process ask for one text at a time, without HTTP:", "",
        *table(["way", "texts/s"], [[n, f"{v:,.0f}"] for n, v in row["sharing"].items()]),
        "",
    ]  # fmt: skip
    lines += [
        "## Large files", "",
        "`nightshift predict --out` of the corpus, once, 4 and 16 times over, start included:",
        "",
        *table(
            ["rows", "seconds", "peak MiB"],
            [
                [f"{one['rows']:,}", f"{one['seconds']:.0f}", f"{one['peak_mib']:,.0f}"]
                for one in row["files"]
            ],
        ),
        "",
    ]  # fmt: skip
    alone = row.get("environment")
    if alone:
        lines += [
            "## Alone", "",
            f"A new virtual environment with `{' '.join(alone['requirements'])}` and nothing else",
            f"({alone['mib']:,.0f} MiB, {alone['install_seconds']:.0f} s to install) loaded the"
            f" version with `mlflow.pyfunc.load_model`",
            f"and answered after {alone['seconds']:.1f} s, imports included: `{alone['label']}`.",
            "",
        ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
