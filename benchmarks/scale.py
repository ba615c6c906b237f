"""A corpus that grows: seconds per stage, memory and disk of its nights, by its size.

    python benchmarks/scale.py [--sizes 10000,100000,1000000] [--server] [--out FOLDER]

Texts are generated: every one is different, a topic's own words among those that all share, in
Zipf's proportions; the first of them are labelled with their topic, equally many at every size.
The network is a small one, but its vectors are as wide as by default.
The command `nightshift run` works, in a scratch folder: a first night of the whole corpus, then
nights of 1,000 new documents each, which train nothing, and nights without a new file. Memory is
that of the night's process and of all its children together (proportional set size where the
system tells it), looked at five times a second. Against `--server`, Prefect runs beside the nights
and is not counted; without it, every night starts a server of its own, which is.
Each size is kept in scale.json at once, so that a run may be cut short; scale.md and scale.svg are
written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil
from corpora import NIGHTSHIFT, RESULTS, STAGES, busy_seconds, keep, kept, machine, table

NAME = "generated"
TOPICS, LABELLED, NEW = 20, 3_000, 1_000
SHARED_WORDS, OWN_WORDS, LEAST_WORDS, MOST_WORDS = 3_000, 150, 8, 16
ROWS = 50_000
"""Documents made at a time."""
EVERY_SECONDS = 0.2
KINDS = ("first", "thousand", "empty")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=_sizes, default="10000,100000,1000000", metavar="N,N",
                        help="documents, by commas")  # fmt: skip
    parser.add_argument("--nights", type=int, default=3, help="of a thousand, and empty ones")
    parser.add_argument("--server", action="store_true", help="with Prefect running beside")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here, and leave it there")
    options = parser.parse_args()
    for size in options.sizes:
        with _folder(options.keep and options.keep / str(size)) as folder:
            row = measure(size, options.nights, folder, options.server)
        keep(options.out, "scale.json", f"{size:09d}-{row['prefect']}", row)
        rows = kept(options.out, "scale.json")
        (options.out / "scale.md").write_text(page(rows), encoding="utf-8")
        (options.out / "scale.svg").write_text(picture(rows), encoding="utf-8")
    print(page(kept(options.out, "scale.json")))
    return 0


def _sizes(said: str) -> list[int]:
    """A ValueError is told by argparse, with the words."""
    return [int(one) for one in said.split(",")]


@contextmanager
def _folder(kept_at: Path | None) -> Iterator[Path]:
    if kept_at is not None:
        kept_at.mkdir(parents=True, exist_ok=True)
        yield kept_at
        return
    with TemporaryDirectory(prefix="nightshift-benchmark-") as folder:
        yield Path(folder)


# --- texts ----------------------------------------------------------------------------------


def write_texts(file: Path, first: int, count: int, labelled: int) -> None:
    """So many generated texts from number `first` on; a number always gives the same text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = _words(SHARED_WORDS + TOPICS * OWN_WORDS)
    schema = pa.schema([("text", pa.string()), ("label", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(first, first + count, ROWS):
            texts, topics = _texts(words, start, min(ROWS, first + count - start))
            labels = [f"topic {topic:02d}" if start + row < labelled else None
                      for row, topic in enumerate(topics)]  # fmt: skip
            writer.write_table(pa.table([texts, pa.array(labels, pa.string())], schema=schema))
    os.utime(file, (1e9, 1e9))  # a file of this minute would wait until it is settled


def _words(count: int) -> np.ndarray:
    """Different pronounceable words, in no order that means anything."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    every = np.array([a + b + c for a in syllables for b in syllables for c in syllables[:9]])
    return every[np.random.default_rng(0).permutation(len(every))[:count]]


def _texts(words: np.ndarray, start: int, count: int) -> tuple[Any, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc

    random = np.random.default_rng([1, start])
    topics = random.integers(TOPICS, size=count)
    lengths = random.integers(LEAST_WORDS, MOST_WORDS + 1, size=count)
    of = np.repeat(topics, lengths)
    shared = _zipf(random, len(of), SHARED_WORDS)
    own = SHARED_WORDS + of * OWN_WORDS + _zipf(random, len(of), OWN_WORDS)
    drawn = words[np.where(random.random(len(of)) < 0.4, own, shared)]
    # Two texts may draw the same words; their number in letters parts them.
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    texts = pc.call_function(
        "binary_join", [pa.ListArray.from_arrays(pa.array(offsets), pa.array(drawn)), " "]
    )
    letters = np.array([_in_letters(start + row) for row in range(count)])
    return pc.call_function("binary_join_element_wise", [texts, pa.array(letters), " "]), topics


def _zipf(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Places below `size`, drawn with a probability by 1 / (place + 5)."""
    weight = np.cumsum(1 / (np.arange(size) + 5.0))
    return np.searchsorted(weight / weight[-1], random.random(count)).clip(max=size - 1)


def _in_letters(number: int) -> str:
    return "x" + np.base_repr(number, 26).lower().translate(
        str.maketrans("0123456789abcdefghijklmnop", "abcdefghijklmnopqrstuvwxyz")
    )


# --- nights ---------------------------------------------------------------------------------


def measure(size: int, nights: int, folder: Path, server: bool) -> dict[str, Any]:
    """The nights of one size, in a folder that is empty."""
    data = folder / "texts"
    data.mkdir(exist_ok=True)
    config = folder / "pipelines.yaml"
    source = {"paths": [str(data)], "text": "text", "label": "label"}
    declared = {
        "source": source,
        "language": "en",
        # Small, so that reading a million documents is what takes the time.
        "model": {"encoder": "mingru", "hidden": 32, "embedding": 32},
        "wide": {"words": 1, "characters": 0},
        "train": {"preset": "quick", "min_new_labels": 100_000},
    }
    config.write_text(json.dumps({"pipelines": {NAME: declared}}), encoding="utf-8")
    print(f"{size:,} documents: making their texts", flush=True)
    write_texts(data / "n000.parquet", 0, size, LABELLED)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with _prefect(folder, server) as environment:
        found["first"].append(_night("n000", config, environment))
        for turn in range(1, nights + 1):
            write_texts(data / f"n{turn:03d}.parquet", size + turn * NEW, NEW, 0)
            found["thousand"].append(_night(f"n{turn:03d}", config, environment))
        for turn in range(nights + 1, 2 * nights + 1):
            found["empty"].append(_night(f"n{turn:03d}", config, environment))
    return {
        "documents": size,
        "prefect": "server" if server else "embedded",
        "nights": found,
        "lake_mib": _mib(folder / "data" / "lake"),
        "all_mib": _mib(folder) - _mib(data),
        "texts_mib": _mib(data),
        "machine": machine(),
        "day": datetime.now(UTC).date().isoformat(),
    }


def _night(name: str, config: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One night by the command line, its memory looked at all the while."""
    command = [str(NIGHTSHIFT), "run", NAME, "--night", name, "--config", str(config)]
    before, started, samples = busy_seconds(), time.time(), list[tuple[float, float, float]]()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    watcher = threading.Thread(target=_watch, args=(process.pid, samples), daemon=True)
    watcher.start()
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        sys.stderr.write(f"  {line}")
    _, state, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(state)
    wall = time.time() - started
    if process.returncode:
        raise SystemExit(f"night {name} failed:\n{''.join(lines[-30:])}")
    stages = _stages(name, config)
    cpu = usage.ru_utime + usage.ru_stime
    row = {
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "others_cpu_seconds": round(max(0.0, busy_seconds() - before - cpu), 2),
        "peak_mib": round(max((one for _, one, _ in samples), default=0)),
        "own_peak_mib": round(max((one for _, _, one in samples), default=0)),
        "seconds": {stage: round(end - begin, 2) for stage, (begin, end) in stages.items()},
        "peaks_mib": {
            stage: round(max((own for at, _, own in samples if begin <= at <= end), default=0))
            for stage, (begin, end) in stages.items()
        },
    }
    print(f"  night {name}: {wall:.1f} s, {row['peak_mib']} MiB ({row['own_peak_mib']} its own)",
          flush=True)  # fmt: skip
    return row


def _watch(pid: int, samples: list[tuple[float, float, float]]) -> None:
    """Time, and MiB of a process with its children and of itself alone, until it ends."""
    while True:
        try:
            own = _memory(pid)
            children = psutil.Process(pid).children(recursive=True)
        except (psutil.Error, OSError):
            return
        others = 0.0
        for child in children:
            with suppress(psutil.Error, OSError):
                others += _memory(child.pid)
        samples.append((time.time(), own + others, own))
        time.sleep(EVERY_SECONDS)


def _memory(pid: int) -> float:
    """MiB of a process: what it shares with others counts in part, where the system tells that."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if rollup.exists():
        for line in rollup.read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return psutil.Process(pid).memory_info().rss / 2**20


def _stages(night: str, config: Path) -> dict[str, tuple[float, float]]:
    """When each stage of a night began and ended."""
    from nightshift.pipeline import load_settings
    from nightshift.tables import Lake

    rows = Lake(load_settings(config).lake, NAME).stages(night)
    return {
        stage: (rows[stage]["at"].timestamp() - rows[stage]["seconds"],
                rows[stage]["at"].timestamp())
        for stage in STAGES if stage in rows
    }  # fmt: skip


@contextmanager
def _prefect(folder: Path, server: bool) -> Iterator[dict[str, str]]:
    """The environment of a night, and Prefect's server beside it where that is wanted."""
    if not server:
        yield {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        return
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port",
               str(port), "--no-ui"]  # fmt: skip
    home = {**os.environ, "PREFECT_HOME": str(folder / "prefect-server"), "PREFECT_API_URL": "",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}  # fmt: skip
    running = subprocess.Popen(command, env=home, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait_for(f"{url}/health", running)
        yield {**os.environ, "PREFECT_API_URL": url}
    finally:
        running.terminate()
        running.wait(30)


def _wait_for(url: str, running: subprocess.Popen[bytes], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and running.poll() is None:
        with suppress(URLError, OSError), urlopen(url, timeout=2):
            return
        time.sleep(0.5)
    raise SystemExit("Prefect's server did not start; try without --server.")


def _mib(folder: Path) -> float:
    return round(sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) / 2**20, 1)


# --- results --------------------------------------------------------------------------------


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    found = [rows[key] for key in sorted(rows)]
    head = ["documents", "prefect", *STAGES, "night", "peak MiB", "its own"]
    lines = [
        "# A corpus that grows", "",
        "`python benchmarks/scale.py` and the same with `--server`: generated short texts, every",
        f"one different, {LABELLED:,} of them labelled. Seconds by stage; `night` is the whole",
        "command. Medians where a night was worked several times. Memory is that of the night and",
        "its children (an embedded Prefect is one), and of the night's process alone.", "",
        *(f"- {key}: {'; '.join(sorted({row[key] for row in found}))}"
          for key in ("machine", "day")),
    ]  # fmt: skip
    titles = ("The first night, of everything", f"A night of {NEW:,} new documents",
              "A night without a new file")  # fmt: skip
    for kind, title in zip(KINDS, titles, strict=True):
        lines += ["", f"## {title}", "", *table(head, [_line(row, kind) for row in found])]
    lines += [
        "", "## Peak MiB of the night's process, by stage of the first night", "",
        *table(["documents", "prefect", *STAGES], [_peaks(row) for row in found]),
        "", "## On disk, MiB", "",
        *table(["documents", "prefect", "texts (Parquet)", "tables", "all that a night left"],
               [[f"{row['documents']:,}", row["prefect"], f"{row['texts_mib']:,.0f}",
                 f"{row['lake_mib']:,.0f}", f"{row['all_mib']:,.0f}"] for row in found]),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _line(row: dict[str, Any], kind: str) -> list[str]:
    nights = row["nights"][kind]
    if not nights:
        return [f"{row['documents']:,}", row["prefect"], *["-"] * (len(STAGES) + 3)]
    stages = [median(one["seconds"].get(stage, 0.0) for one in nights) for stage in STAGES]
    figures = [median(one[key] for one in nights) for key in ("peak_mib", "own_peak_mib")]
    return [
        f"{row['documents']:,}", row["prefect"], *(f"{one:.1f}" for one in stages),
        f"{median(one['wall_seconds'] for one in nights):.1f}", *(f"{one:,.0f}" for one in figures),
    ]  # fmt: skip


def _peaks(row: dict[str, Any]) -> list[str]:
    peaks = row["nights"]["first"][0]["peaks_mib"]
    return [f"{row['documents']:,}", row["prefect"],
            *(f"{peaks.get(stage, 0):,.0f}" for stage in STAGES)]  # fmt: skip


def picture(rows: dict[str, Any]) -> str:
    """Seconds of a night and peak memory by the corpus's size, both on logarithmic axes, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import io

    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "nightshift"
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way in sorted({row["prefect"] for row in rows.values()}):
        found = [rows[key] for key in sorted(rows) if rows[key]["prefect"] == way]
        sizes = [row["documents"] for row in found]
        for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
            for axis, key in zip(axes, ("wall_seconds", "peak_mib"), strict=True):
                values = [median(one[key] for one in row["nights"][kind]) if row["nights"][kind]
                          else np.nan for row in found]  # fmt: skip
                axis.plot(sizes, values, style, marker="o", label=f"{kind}, {way}")
    for axis, title in zip(axes, ("seconds of a night", "peak MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="documents", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
