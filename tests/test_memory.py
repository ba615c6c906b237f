"""Bigger than memory: a night of long documents in little more room than one of short ones."""

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
LONG, CHARACTERS = 2_400, 60_000
ROOM = LONG * CHARACTERS // 2
"""Bytes that long texts may take beyond short ones: half of what they are."""

NIGHT = """
import resource, sys, threading, time
import nightshift.parquet, nightshift.sources, nightshift.tables, nightshift.tokenizer
import tasks.cluster
# An eighth of what is held at once, and small samples, so that little text is enough to tell.
tasks.cluster.KEYWORD_SAMPLE = tasks.cluster.LOOSE_SAMPLE = 200
nightshift.tables.GROUP_BYTES >>= 3
nightshift.tokenizer.PIECE >>= 3
nightshift.sources.CHUNK_CHARACTERS >>= 3
nightshift.parquet.BATCH_BYTES >>= 3
from flows.night import work

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmData")) << 10

def watch():
    global most
    while True:
        most = max(most, held())
        time.sleep(0.02)

config, name, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
most = 0
threading.Thread(target=watch, daemon=True).start()
print(work(name, "n1", config).digest_text, file=sys.stderr)
print(most)
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
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much it holds")
def test_a_night_holds_a_part_of_its_text_at_a_time(tmp_path: Path) -> None:
    def worked(name: str, characters: int, limit: int) -> subprocess.CompletedProcess[str]:
        house = House(tmp_path / name)
        house.folder.mkdir()
        house.declare(
            language="en", clusters={"k": 4}, wide={"words": 1, "characters": 0},
            report={"map_points": 200, "explained": 0},
        )  # fmt: skip
        house.drop("labelled.jsonl", SHORT)
        long_texts(house.folder / "inbox" / "long.jsonl", LONG, characters)
        return subprocess.run(
            [sys.executable, "-c", NIGHT, str(house.config), house.name, str(limit)], cwd=ROOT,
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip

    short = worked("short", 200, 0)
    assert short.returncode == 0, short.stderr[-3000:]
    long = worked("long", CHARACTERS, int(short.stdout) + ROOM)
    assert long.returncode == 0, long.stderr[-3000:]
