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
LONG, CHARACTERS = 400, 400_000
ROOM = 48 << 20
"""Bytes for all that a night holds of a text at once; half as much as there is text."""

NIGHT = """
import resource, shutil, sys, threading, time
import nightshift.parquet, nightshift.sources, nightshift.tables, nightshift.tokenizer
# An eighth of what is held at once, so that an eighth of the text is enough to tell.
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

config, name, limit, inbox = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
most = 0
threading.Thread(target=watch, daemon=True).start()
for night in ("n1", "n2"):
    shutil.move(f"{night}.jsonl", inbox)
    print(work(name, night, config).digest_text, file=sys.stderr)
print(most)
"""


def long_texts(folder: Path, count: int, characters: int) -> None:
    """Unlabelled documents of so many characters, no two alike, in a file for each night."""
    chance = random.Random(1)
    words = [f"{a}{b}" for a in FILLER.split() for b in FILLER.split()]
    passages = [" ".join(chance.choices(words, k=150)) for _ in range(400)]
    size = sum(map(len, passages)) / len(passages)
    for file in ("n1.jsonl", "n2.jsonl"):
        with (folder / file).open("w") as out:
            for number in range(count // 2):
                text = ". ".join(
                    [f"{file} {number}", *chance.choices(passages, k=int(characters / size))]
                )
                out.write(json.dumps({"text": text}) + "\n")
        os.utime(folder / file, (0, 0))  # a file of this minute would wait until it is settled


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much it holds")
def test_a_night_holds_a_part_of_its_text_at_a_time(tmp_path: Path) -> None:
    def worked(name: str, characters: int, limit: int) -> subprocess.CompletedProcess[str]:
        house = House(tmp_path / name)
        house.folder.mkdir()
        house.declare(language="en", clusters={"k": 4}, wide={"words": 1, "characters": 0})
        house.drop("labelled.jsonl", SHORT)
        long_texts(house.folder, LONG, characters)
        asked = [str(house.config), house.name, str(limit), str(house.folder / "inbox")]
        return subprocess.run(
            [sys.executable, "-c", NIGHT, *asked], cwd=house.folder, capture_output=True, text=True,
            timeout=500, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    short = worked("short", 200, 0)
    assert short.returncode == 0, short.stderr[-3000:]
    limit = int(short.stdout) + ROOM
    assert ROOM * 2 <= LONG * CHARACTERS
    long = worked("long", CHARACTERS, limit)
    assert long.returncode == 0, long.stderr[-3000:]
