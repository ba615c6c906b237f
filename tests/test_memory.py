"""A night whose texts are longer than the memory it may take: every stage reads them in parts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FILLER, House, rows

ROOT = Path(__file__).parents[1]
SHORT = rows(20)
LONG, CHARACTERS = 1_200, 100_000
ROOM = LONG * CHARACTERS // 2
"""Bytes that a stage may take beyond what it took with short texts: half of the long ones."""

PLAIN = {
    "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
}  # fmt: skip
"""Memory that is given back when it is free: Arrow's own allocator takes a gigabyte of addresses at
once and fills it unseen, and the system's keeps what another thread may ask for. (A thread's stack
counts whole, and how many there are differs: hence `ulimit -s`.)"""

NIGHT = """
import contextlib, json, resource, sys, threading, time
import nightshift.parquet, nightshift.sources, nightshift.tables, nightshift.tokenizer
import nightshift.wide, tasks.cluster, tasks.stage
# A small part of what is held at once, and small samples, so that little text is enough to tell.
tasks.cluster.KEYWORD_SAMPLE = tasks.cluster.LOOSE_SAMPLE = 200
nightshift.tables.GROUP_BYTES >>= 6
nightshift.tokenizer.PIECE >>= 6
nightshift.sources.CHUNK_CHARACTERS >>= 6
nightshift.parquet.BATCH_BYTES >>= 6
nightshift.wide.CHUNK_CHARACTERS >>= 4
from flows.night import work

def held():
    "Bytes of this process that RLIMIT_DATA counts."
    return 1024 * int(open("/proc/self/status").read().split("VmData:")[1].split()[0])

config, name, limits = sys.argv[1:]
limits, most, now = json.loads(limits), {}, None

def watch():
    while True:
        stage = now
        if stage:
            most[stage] = max(most[stage], held())
        time.sleep(0.01)

before = tasks.stage._room

@contextlib.contextmanager
def room(stage):
    global now
    most[stage] = held()
    now = stage
    limit = limits.get(stage, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    try:
        with before(stage):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        now = None

tasks.stage._room = room
threading.Thread(target=watch, daemon=True).start()
print(work(name, "n1", config).digest_text, file=sys.stderr)
print(json.dumps(most))
"""


def long_texts(file: Path, count: int, characters: int) -> None:
    """Unlabelled documents of about so many characters, no two alike."""
    chance = random.Random(1)
    words = [f"{a}{b}" for a in FILLER.split() for b in FILLER.split()]
    passages = [" ".join(chance.choices(words, k=150)) for _ in range(400)]
    parts = characters * len(passages) // sum(map(len, passages))
    with file.open("w") as out:
        for number in range(count):
            text = ". ".join([f"number {number}", *chance.choices(passages, k=parts)])
            out.write(json.dumps({"text": text}) + "\n")
    os.utime(file, (0, 0))  # a file of this minute would wait until it is settled


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_stage_holds_a_part_of_the_text_at_a_time(tmp_path: Path) -> None:
    """Addresses, not resident pages: a limit on them fails at once, on every machine alike. To each
    stage its own, as what a night imports late would be room for what comes early."""

    def worked(name: str, characters: int, limits: dict[str, int]) -> dict[str, int]:
        house = House(tmp_path / name)
        house.folder.mkdir()
        house.declare(
            language="en", clusters={"k": 4}, wide={"words": 1, "characters": 0},
            report={"map_points": 200, "explained": 0},
            tokenizer={"vocabulary": 300, "learn_from": 800},
        )  # fmt: skip
        house.drop("labelled.jsonl", SHORT)
        long_texts(house.folder / "inbox" / "long.jsonl", LONG, characters)
        done = subprocess.run(
            ["sh", "-c", 'ulimit -s 2048; exec "$@"', "sh", sys.executable, "-c", NIGHT,
             str(house.config), house.name, json.dumps(limits)],
            cwd=ROOT, capture_output=True, text=True, timeout=1_500, check=False,
            env={**os.environ, **PLAIN},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    short = worked("short", 200, {})
    assert len(short) == 10
    worked("long", CHARACTERS, {stage: most + ROOM for stage, most in short.items()})
