"""How much hostile input was tried, and what it broke: the targets of tests/test_fuzz.py, for long.

    python benchmarks/fuzz.py --minutes 15 [--only csv --only config] [--inputs 1000]
    python benchmarks/fuzz.py --again csv 17

Each target runs in batches, one per seed, each in a process of its own, so that a crash of a
library below is counted too, and not the end. results/fuzz.json says which seed comes next: a run
that was killed loses its batch, and the next run goes on with new seeds. `--again` repeats one
batch and shows what broke. Exit code 1 where anything broke.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from corpora import RESULTS, machine

HERE = Path(__file__)
TESTS = HERE.parents[1] / "tests"
PAGE, KEPT = RESULTS / "fuzz.md", RESULTS / "fuzz.json"
BATCH_SECONDS = 600
"""A batch that takes longer hangs."""
ABOUT = {
    "csv": "CSV and TSV of odd fields in eight encodings, mangled, compressed, mangled again",
    "jsonl": "JSON lines of any values, likewise",
    "text": "text files, likewise",
    "parquet": "Parquet of eighteen types of columns, likewise",
    "honest": "well-formed files: every text comes back",
    "predict": "the same files through `predict --out`, three formats",
    "config": "pipelines.yaml with keys, values, YAML's own marks and bytes changed",
    "request": "bodies of POST /predict and /invocations",
    "bundle": "a bundle's files with bits flipped, digests forged or not",
    "journal": "a journal's SQLite file, mangled",
}


def targets() -> dict[str, Any]:
    """Those of the test suite."""
    sys.path.insert(0, str(TESTS))
    from test_fuzz import TARGETS

    return TARGETS


def batch(target: str, number: int, inputs: int) -> int:
    """One batch, in this process; returns how many inputs were tried."""
    targets()
    from hypothesis import Phase
    from test_fuzz import tried

    phases = (Phase.generate, Phase.shrink)
    return tried(target, number, max_examples=inputs, phases=phases, print_blob=False)


def in_a_child(target: str, number: int, inputs: int) -> dict[str, Any]:
    """One batch in a process of its own: inputs tried, seconds, and what broke, if anything."""
    started = time.monotonic()
    words = [sys.executable, str(HERE), "--batch", target, str(number), "--inputs", str(inputs)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=BATCH_SECONDS)
    except subprocess.TimeoutExpired:
        return {"inputs": 0, "seconds": BATCH_SECONDS, "broke": "took too long"}
    seconds = round(time.monotonic() - started, 1)
    if done.returncode == 0:
        return {"inputs": int(done.stdout.split()[-1]), "seconds": seconds, "broke": None}
    said = [line.strip(" |+") for line in done.stderr.splitlines() if line.strip(" |+-")]
    named = [line for line in said if "Error" in line or "Exception" in line]
    broke = f"signal {-done.returncode}" if done.returncode < 0 else (named or said or ["?"])[-1]
    return {"inputs": 0, "seconds": seconds, "broke": broke[:200]}


def run(minutes: float, only: list[str], inputs: int) -> bool:
    """Batches of each target in turn, for so long; returns whether none broke."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.is_file() else {"targets": {}}
    end, well = time.monotonic() + 60 * minutes, True
    names = only or list(ABOUT)
    while time.monotonic() < end:
        for name in names:
            empty = {"next_seed": 0, "inputs": 0, "seconds": 0.0, "batches": 0, "broke": []}
            row = kept["targets"].setdefault(name, empty)
            found = in_a_child(name, row["next_seed"], inputs)
            if found["broke"]:
                well = False
                row["broke"].append({"seed": row["next_seed"], "what": found["broke"]})
                print(f"{name} {row['next_seed']}: {found['broke']}", flush=True)
            row["next_seed"] += 1
            row["batches"] += 1
            row["inputs"] += found["inputs"]
            row["seconds"] = round(row["seconds"] + found["seconds"], 1)
            kept["machine"] = machine()
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            if time.monotonic() >= end:
                break
    write_page(kept)
    return well


def write_page(kept: dict[str, Any]) -> None:
    """The page of all runs so far."""
    rows = kept["targets"]
    total = sum(row["inputs"] for row in rows.values())
    broke = sum(len(row["broke"]) for row in rows.values())
    lines = [
        "# Hostile input",
        "",
        f"Made by `python benchmarks/fuzz.py`; {total:,} inputs in batches, each with a seed of "
        f"its own; {broke} batches broke a property.",
        "",
        "The properties: no traceback, only an error in words that names the file or field; no row",
        "is lost (rows in = kept + duplicates + rejects, numbered without a gap); no secret in a",
        "message. They are in tests/test_fuzz.py, and CI tries each on a few dozen inputs.",
        "",
        "| target | what | inputs | batches | seconds | broke |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, what in ABOUT.items():
        if name in rows:
            row = rows[name]
            lines.append(
                f"| {name} | {what} | {row['inputs']:,} | {row['batches']} | "
                f"{row['seconds']:,.0f} | {len(row['broke'])} |"
            )
    lines += [f"\n- {name}, seed {one['seed']}: {one['what']}"
              for name, row in rows.items() for one in row["broke"]]  # fmt: skip
    lines += ["", f"Machine: {kept['machine']}."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--only", action="append", default=[], choices=list(ABOUT))
    parser.add_argument("--inputs", type=int, default=1_000, help="inputs of a batch")
    parser.add_argument("--batch", "--again", nargs=2, metavar=("TARGET", "SEED"))
    given = parser.parse_args()
    if given.batch:
        print(batch(given.batch[0], int(given.batch[1]), given.inputs))
        return 0
    return 0 if run(given.minutes, given.only, given.inputs) else 1


if __name__ == "__main__":
    sys.exit(main())
