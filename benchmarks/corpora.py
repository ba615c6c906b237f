"""A night on each labelled corpus, as a user runs it: how good, how long, how much memory.

    python benchmarks/corpora.py --data DIR [--only thucnews,banking77] [--out FOLDER]

DIR (or NIGHTSHIFT_DATA) holds `<corpus>.parquet` with the columns text and label, and split where
the source has one. Every corpus gets a scratch folder whose pipelines.yaml declares those columns
and nothing else, and the command `nightshift run` in a process of its own. Each finished corpus is
kept in corpora.json at once, so that a run may be cut short, or repeat one corpus only; corpora.md
is written from it. Exit code 1 where a floor does not hold or a night fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

# As on a user's machine: where it is set, as in many images, every command that is timed would
# compile every module of ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

NIGHTSHIFT = Path(sys.executable).with_name("nightshift")
RESULTS = Path(__file__).with_name("results")
NIGHT = "n1"
SPLIT_SEED, TEST_SHARE = 1, 0.2
LIBRARIES = ("torch", "numpy", "scikit-learn", "tokenizers", "pyarrow", "deltalake", "mlflow",
             "prefect")  # fmt: skip
STAGES = ("files", "ingest", "tokens", "train", "evaluate", "promote", "embed", "cluster", "report",
          "publish")  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A file of labelled text, and the test accuracy that is promised on it."""

    name: str
    has_split: bool
    floor: float | None = None


CORPORA = [
    Corpus("thucnews", True, 0.87),
    Corpus("banking77", True, 0.88),
    Corpus("agnews_test", False, 0.85),
    Corpus("imdb", True, 0.86),
    Corpus("search_snippets", False),
    Corpus("biomedical", False),
]


@dataclass(frozen=True)
class Run:
    """What a process took, children that it waited for included."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float
    """Of its largest process."""
    begins_seconds: float
    """From the start of the process to the first line of the night."""
    server_seconds: float
    """The last part of it, from the birth of the embedded Prefect server; 0 without one."""
    others_cpu_seconds: float
    """What the rest of the machine computed meanwhile. A few percent of the cores' time is noise;
    more than that, and the seconds say little: training on all cores suffers most."""


class NightFailedError(Exception):
    """A night left with an exit code other than 0; its last lines are the message."""


def main() -> int:
    options = _options()
    wanted = options.only.split(",") if options.only else [one.name for one in CORPORA]
    unknown = sorted(set(wanted) - {one.name for one in CORPORA})
    if unknown:
        print(f"--only: found {', '.join(unknown)}, expected some of "
              f"{', '.join(one.name for one in CORPORA)}.", file=sys.stderr)  # fmt: skip
        return 2
    failed: list[str] = []
    for corpus in [one for one in CORPORA if one.name in wanted]:
        file = options.data / f"{corpus.name}.parquet"
        if not file.is_file():
            print(f"{corpus.name}: skipped, found no {file.name} in {options.data}")
            continue
        try:
            keep(options.out, "corpora.json", corpus.name, measure(corpus, file))
        except NightFailedError as error:
            failed.append(corpus.name)
            print(f"{corpus.name}: the night failed.\n{error}", file=sys.stderr)
            continue
        (options.out / "corpora.md").write_text(page(kept(options.out)), encoding="utf-8")
    rows = kept(options.out)
    print(page(rows))
    missed = [one.name for one in CORPORA if one.name in rows and holds(one, rows) is False]
    return 1 if failed or missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--only", metavar="NAMES", help="some of the corpora, by commas")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


WITHOUT_DATA = {"--page", "--plan", "--run", "--one", "--bare"}
"""Options of a benchmark that make it read no corpus."""


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data DIR`, which the environment can give as well."""
    given = os.environ.get("NIGHTSHIFT_DATA")
    needed = not given and not WITHOUT_DATA & {*sys.argv}
    parser.add_argument(
        "--data", type=Path, metavar="DIR", default=given, required=needed,
        help="the folder of the corpora; else the environment's NIGHTSHIFT_DATA",
    )  # fmt: skip


# --- one night ------------------------------------------------------------------------------


def measure(corpus: Corpus, file: Path) -> dict[str, Any]:
    """Run the corpus's first night in a scratch folder and read what it left there."""
    with TemporaryDirectory(prefix="nightshift-benchmark-") as folder:
        config = declare(corpus, file, Path(folder))
        done = run([str(NIGHTSHIFT), "run", corpus.name, "--night", NIGHT, "--config", str(config)])
        said = status(corpus.name, config)
        return {**_figures(corpus, config), **_told(said), **asdict(done), **_circumstances()}


def declare(corpus: Corpus, file: Path, folder: Path) -> Path:
    """Write the smallest pipelines.yaml for a corpus; one without a split gets a copy with one."""
    if not corpus.has_split:
        file = _with_split(file, folder)
    config = folder / "pipelines.yaml"
    source = {"paths": [str(file.resolve())], "text": "text", "label": "label", "split": "split"}
    # JSON is YAML, and quotes every name that needs it.
    declared = json.dumps({"pipelines": {corpus.name: {"source": source}}}, ensure_ascii=False)
    config.write_text(declared, encoding="utf-8")
    return config


def _with_split(file: Path, folder: Path) -> Path:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    order = np.random.default_rng(SPLIT_SEED).permutation(table.num_rows)
    test = order < round(TEST_SHARE * table.num_rows)
    copy = folder / file.name
    pq.write_table(table.append_column("split", pa.array(np.where(test, "test", "train"))), copy)
    # A file of this minute would wait until it is settled.
    os.utime(copy, (copy.stat().st_atime, file.stat().st_mtime))
    return copy


def run(command: list[str]) -> Run:
    """Run a command to its end; its lines on standard error pass through.

    Raises: NightFailedError with its last lines.
    """
    before, started, begins, server = busy_seconds(), time.time(), 0.0, 0.0
    lines: list[str] = []
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        sys.stderr.write(f"  {line}")
        if line.rstrip().endswith(" begins") and not begins:
            now = time.time()
            begins = now - started
            with suppress(psutil.Error):
                children = psutil.Process(process.pid).children()
                server = now - min((one.create_time() for one in children), default=now)
    # Not process.wait(): only this tells what this one process and its children took.
    _, state, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(state)
    if process.returncode:
        raise NightFailedError("".join(lines[-30:]))
    kib = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    cpu = usage.ru_utime + usage.ru_stime
    others = max(0.0, busy_seconds() - before - cpu)
    return Run(time.time() - started, cpu, kib / 1024, begins, server, others)


def busy_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    spent = psutil.cpu_times()
    return spent.user + spent.nice + spent.system


def status(name: str, config: Path) -> dict[str, Any]:
    """The night as `nightshift status --json` tells it."""
    command = [str(NIGHTSHIFT), "status", name, "--json", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[-1]


def _told(said: dict[str, Any]) -> dict[str, Any]:
    names = ("documents", "duplicates", "rejects", "test_accuracy", "test_macro_f1", "clusters")
    return {**{name: said[name] for name in names}, "seconds": said["seconds"]}


def _figures(corpus: Corpus, config: Path) -> dict[str, Any]:
    """What only the tables tell: the linear model, the validation side, counts."""
    from nightshift.pipeline import load_settings
    from nightshift.tables import Lake

    lake = Lake(load_settings(config).lake, corpus.name)
    stages = lake.stages(NIGHT)
    evaluated, trained = stages["evaluate"]["outputs"], stages["train"]["figures"]
    return {
        "classes": int(trained["classes"]),
        "train_rows": int(trained["rows"]),
        "epochs": int(trained["epochs"]),
        "validation_accuracy": trained["validation_accuracy"],
        "test_rows": evaluated["challenger"]["rows"],
        "linear_accuracy": evaluated["baseline"]["accuracy"],
        "linear_macro_f1": evaluated["baseline"]["macro_f1"],
        "silhouette": stages["cluster"]["figures"].get("silhouette"),
        "code": lake.nights()[-1]["code_version"],
    }


def _circumstances() -> dict[str, str]:
    return {"machine": machine(), "day": datetime.now(UTC).date().isoformat()}


def machine() -> str:
    """Cores, memory and versions, without names or places."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{cores} cores ({platform.machine()}), {memory:.0f} GiB memory, {platform.system()}, "
        f"Python {platform.python_version()}, {libraries}"
    )


# --- results --------------------------------------------------------------------------------


def keep(folder: Path, name: str, key: str, row: dict[str, Any]) -> None:
    """Put one row into a results file, beside the others that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {**kept(folder, name), key: row}
    text = json.dumps(rows, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / name).write_text(text + "\n", encoding="utf-8")


def kept(folder: Path, name: str = "corpora.json") -> dict[str, Any]:
    """The rows of a results file; none while there is no such file."""
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def holds(corpus: Corpus, rows: dict[str, Any]) -> bool | None:
    """Whether a corpus's accuracy reaches its floor; None where none is promised."""
    accuracy = rows[corpus.name]["test_accuracy"]
    return None if corpus.floor is None else accuracy >= corpus.floor


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    found = [(corpus, rows[corpus.name]) for corpus in CORPORA if corpus.name in rows]
    return "\n".join([
        "# A night on each corpus", "",
        "`python benchmarks/corpora.py --data DIR`: the first night of a pipeline that declares",
        "text, label and split, and nothing else. \\* The source has no split:",
        f"{TEST_SHARE:.0%} of its rows, drawn with seed {SPLIT_SEED}, are the test rows.", "",
        *(f"- {each}: {said}" for each in ("machine", "code", "day") for said in _all(each, found)),
        "", "## How good", "",
        "On the test rows. The linear model is TF-IDF and a linear SVM on the same training rows.",
        "",
        *table(
            ["corpus", "rows kept", "classes", "test rows", "accuracy", "macro-F1",
             "linear accuracy", "linear macro-F1", "clusters", "floor"],
            [_quality(corpus, row, rows) for corpus, row in found],
        ),
        "", "## How long, how much", "",
        "Seconds by stage. `night` is the whole command, start of its process to end; `server` is",
        "the part of it in which the embedded Prefect server starts (not in the stages). Documents",
        "per second are rows kept by `night`. Memory is that of the largest process at its peak.",
        "`others` is CPU seconds that the rest of the machine took meanwhile.",
        "",
        *table(
            ["corpus", *STAGES, "server", "night", "documents/s", "peak MiB", "others"],
            [_cost(corpus, row) for corpus, row in found],
        ),
        "",
    ])  # fmt: skip


def _all(key: str, found: list[tuple[Corpus, dict[str, Any]]]) -> list[str]:
    """What the rows say under a key: once where they agree, else with the corpora it holds for."""
    said: dict[str, list[str]] = {}
    for corpus, row in found:
        said.setdefault(row[key], []).append(corpus.name)
    return [f"{one} ({', '.join(who)})" if len(said) > 1 else one for one, who in said.items()]


def _name(corpus: Corpus) -> str:
    return corpus.name if corpus.has_split else f"{corpus.name}\\*"


def _quality(corpus: Corpus, row: dict[str, Any], rows: dict[str, Any]) -> list[str]:
    scores = ("test_accuracy", "test_macro_f1", "linear_accuracy", "linear_macro_f1")
    words = {None: "-", True: f"{corpus.floor} holds", False: f"{corpus.floor} MISSED"}
    return [
        _name(corpus), f"{row['documents']:,}", str(row["classes"]), f"{row['test_rows']:,}",
        *(f"{row[name]:.4f}" for name in scores), str(row["clusters"]), words[holds(corpus, rows)],
    ]  # fmt: skip


def _cost(corpus: Corpus, row: dict[str, Any]) -> list[str]:
    stages = [f"{row['seconds'].get(name, 0):.1f}" for name in STAGES]
    rate = row["documents"] / row["wall_seconds"]
    return [
        _name(corpus), *stages, f"{row['server_seconds']:.1f}", f"{row['wall_seconds']:.1f}",
        f"{rate:,.0f}", f"{row['peak_mib']:,.0f}", f"{row['others_cpu_seconds']:.0f}",
    ]  # fmt: skip


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table; all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


if __name__ == "__main__":
    sys.exit(main())
