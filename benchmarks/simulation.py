"""A month in which much goes wrong: 3 pipelines, 30 nights on a compressed clock.

    python benchmarks/simulation.py --folder DIR [--days 30] [--seed 1]

Every day files arrive, and the pipelines work their nights at the same time, against a Prefect
server on Postgres and an MLflow server. By chance a night is killed, at once run again or left to
the next day, and a server is frozen or killed and started again. In the end all nights must be
published in order, every delivered row must be in the tables once, and nothing may be left open
once the pipelines have been started again, and the doctor has been.
DIR keeps everything, so that a simulation that was stopped goes on with the next day. Results:
results/simulation.json and simulation.md. Exit code 1 where something is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from corpora import RESULTS, machine
from faults import POSTGRES, World, world
from kills import PIPELINE, TRAIN, WORDS, texts

PIPELINES = ("news", "tickets", "reviews")
FIRST = date(2026, 1, 1)
KILLED, AGAIN, OUTAGE = 0.3, 0.5, 0.35
"""Chances: that a night is killed, that it is run again the same day, that a day has an outage."""
OUTAGE_SECONDS = (3.0, 12.0)


def declare(folder: Path, mlflow: str) -> None:
    """The pipelines file; MLflow's port is another one after every start."""
    pipelines = {
        name: {
            **PIPELINE,
            "source": {**PIPELINE["source"], "paths": [f"inbox/{name}/*"]},
            "train": {**TRAIN, "when": "auto", "min_new_labels": 0.5},
        }
        for name in PIPELINES
    }
    whole = {"lake": "lake", "mlflow": mlflow, "reports": "reports", "pipelines": pipelines}
    (folder / "pipelines.yaml").write_text(yaml.safe_dump(whole))


def deliver(folder: Path, name: str, day: int, chance: random.Random) -> None:
    """A file of new rows, some known ones and a bad one; on some days nothing comes."""
    inbox = folder / "inbox" / name
    inbox.mkdir(parents=True, exist_ok=True)
    if day > 1 and chance.random() < 0.1:
        return
    rows = [row for topic in WORDS for row in texts(topic, 25 if day == 1 else 4, chance)]
    earlier = sorted(inbox.iterdir())
    if earlier:
        rows += [json.loads(earlier[0].read_text().splitlines()[chance.randrange(10)])]
    rows += [{"text": " "}]
    path = inbox / f"{day:02}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(path, (1e9 + day, 1e9 + day))


def missed(folder: Path, name: str, day: int) -> list[str]:
    """Nights before a day that never began: whoever should have was killed over an earlier one."""
    from nightshift.tables import Lake

    begun = {row["night"] for row in Lake(str(folder / "lake"), name).nights()}
    before = ((FIRST + timedelta(days=one)).isoformat() for one in range(day - 1))
    return [one for one in before if one not in begun]


def one_night(here: World, name: str, day: int, chance: random.Random) -> dict[str, Any]:
    """A night of a pipeline, which may be killed and may be run again; those that were missed come
    first, as with `missed: backfill`."""
    kill = chance.random() < KILLED
    again = chance.random() < AGAIN
    moment = f"after-seconds:{chance.uniform(0.1, 8):.2f}" if kill else ""
    folder, night = here.folder / "month", (FIRST + timedelta(days=day - 1)).isoformat()
    for earlier in missed(folder, name, day):
        here.nurseries[name].run(folder, name, earlier)
    codes = [here.nurseries[name].run(folder, name, night, moment)]
    if codes[0] != 0 and again:
        codes.append(here.nurseries[name].run(folder, name, night))
    return {"pipeline": name, "night": night, "codes": codes}


def outage(here: World, chance: random.Random) -> str:
    """Freeze a server, or kill it and start it again; what was done, in words."""
    seconds = round(chance.uniform(*OUTAGE_SECONDS), 1)
    servers = {"prefect": here.prefect, "mlflow": here.mlflow}
    if here.postgres is not None:
        servers["postgres"] = here.postgres
    name, how = chance.choice(sorted(servers)), chance.choice(["frozen", "killed"])
    time.sleep(chance.uniform(1, 8))
    server = servers[name]
    os.system(server.frozen(seconds) if how == "frozen" else server.killed(seconds))
    time.sleep(seconds)
    for _ in range(360):  # a server that was killed has to start
        if server.answers():
            break
        time.sleep(0.5)
    return f"{name} {how} for {seconds} s"


def one_day(here: World, day: int, seed: int) -> dict[str, Any]:
    """Files arrive, all pipelines work, something may go wrong."""
    for name in PIPELINES:
        path = here.folder / "month" / "inbox" / name / f"{day:02}.jsonl"
        if not path.exists():
            deliver(here.folder / "month", name, day, random.Random(f"{seed} {name} {day}"))
    chance, said = random.Random(f"{seed} {day}"), list[str]()
    bad_day = chance.random() < OUTAGE
    trouble = threading.Thread(target=lambda: said.append(outage(here, chance)))
    began = time.perf_counter()
    if bad_day:
        trouble.start()
    with ThreadPoolExecutor(len(PIPELINES)) as pool:
        nights = [
            pool.submit(one_night, here, name, day, random.Random(f"{seed} kill {name} {day}"))
            for name in PIPELINES
        ]
        worked = [one.result() for one in nights]
    if bad_day:
        trouble.join()
    return {"day": day, "nights": worked, "outage": said[0] if said else None,
            "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


def audit(here: World, name: str, days: int) -> dict[str, Any]:
    """What became of all that was delivered to a pipeline."""
    from nightshift.tables import Lake

    folder = here.folder / "month"
    lake = Lake(str(folder / "lake"), name)
    nights = lake.nights()
    published = [row for row in nights if row["state"] == "published"]
    names = [row["night"] for row in published]
    versions = published[-1]["versions"]
    kept = lake.read("documents", ["text"], version=versions["documents"])["text"].to_pylist()
    rows = [
        json.loads(line)
        for path in (folder / "inbox" / name).iterdir()
        for line in path.read_text().splitlines()
    ]
    wanted = {row["text"] for row in rows if row["text"].strip()}
    counted = {
        table: lake.read(table, ["row"], version=versions[table]).num_rows
        for table in ("documents", "duplicates", "rejects")
    }
    answered = Counter(
        (row["doc_id"], row["model_id"])
        for row in lake.read(
            "predictions", ["doc_id", "model_id"], version=versions["predictions"]
        ).to_pylist()
    )
    return {
        "pipeline": name,
        "nights_published": len(published),
        "in_order": names == sorted(names)
        and [row["number"] for row in published] == list(range(1, days + 1))
        and all(one["finished"] < two["finished"] for one, two in pairwise(published)),
        "rows_delivered": len(rows),
        "rows_accounted": sum(counted.values()),
        "rows_lost": len(wanted - set(kept)),
        "rows_doubled": len(kept) - len(set(kept)) + sum(answered.values()) - len(answered),
        "left_open": here.close_left(folder, name),
        "champion_is_the_tables": _champion(here.uri, name) == published[-1]["registry_version"],
    }  # fmt: skip


def _champion(uri: str, name: str) -> int:
    from mlflow import MlflowClient

    return int(MlflowClient(uri, uri).get_model_version_by_alias(name, "champion").version)


def good(found: dict[str, Any], days: int) -> bool:
    """Whether nothing was lost."""
    return (
        found["nights_published"] == days and found["in_order"] and found["champion_is_the_tables"]
        and found["rows_delivered"] == found["rows_accounted"]
        and not found["rows_lost"] + found["rows_doubled"] + found["left_open"]
    )  # fmt: skip


def simulate(here: World, days: int, seed: int) -> dict[str, Any]:
    """Work all days that are not worked yet; returns what happened and what became of it."""
    month = here.folder / "month"
    month.mkdir(exist_ok=True)
    declare(month, here.uri)
    journal = here.folder / "days.jsonl"
    done = [json.loads(one) for one in journal.read_text().splitlines()] if journal.exists() else []
    for day in range(len(done) + 1, days + 1):
        done.append(one_day(here, day, seed))
        with journal.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(json.dumps(done[-1]), flush=True)
    last = (FIRST + timedelta(days=days - 1)).isoformat()
    for name in PIPELINES:  # twice: the second start closes what the last night left open
        for _ in range(2):
            here.nurseries[name].run(month, name, last)
    return {"seed": seed, "days": done, "pipelines": [audit(here, one, days) for one in PIPELINES]}


def write_page(found: dict[str, Any]) -> None:
    """simulation.md from what was found."""
    days = found["days"]
    codes = [night["codes"] for day in days for night in day["nights"]]
    outages = Counter(" ".join(day["outage"].split()[:2]) for day in days if day["outage"])
    killed = sum(one[0] == -9 for one in codes)
    left = sum(one[-1] != 0 for one in codes)
    failed = sum(code not in (0, -9) for one in codes for code in one)
    said = ", ".join(f"{name} {times} times" for name, times in sorted(outages.items()))
    lines = [
        "# A simulated month",
        "",
        "Made by `python benchmarks/simulation.py`; do not edit.",
        "",
        f"{len(days)} days, {len(PIPELINES)} pipelines at the same time, a Prefect server on",
        f"Postgres 15, an MLflow server. Of {len(codes)} nights {killed} were killed and {left}",
        f"left unfinished to the next day; {failed} tries failed by themselves. Outages: {said}.",
        "",
        "| pipeline | nights published | in order | rows delivered | rows in the tables |"
        " rows lost | rows doubled | runs left open |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in found["pipelines"]:
        order = "yes" if one["in_order"] else "no"
        lines.append(
            f"| {one['pipeline']} | {one['nights_published']} | {order} | {one['rows_delivered']} |"
            f" {one['rows_accounted']} | {one['rows_lost']} | {one['rows_doubled']} |"
            f" {one['left_open']} |"
        )
    lines += ["", f"{machine()}, shared with other work."]
    (RESULTS / "simulation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    args.folder.mkdir(parents=True, exist_ok=True)
    with world(args.folder.resolve(), POSTGRES.exists(), "2,15,60", PIPELINES) as here:
        found = simulate(here, args.days, args.seed)
    found["at"] = datetime.now(UTC).isoformat(timespec="seconds")
    (RESULTS / "simulation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    write_page(found)
    return 0 if all(good(one, args.days) for one in found["pipelines"]) else 1


if __name__ == "__main__":
    sys.exit(main())
