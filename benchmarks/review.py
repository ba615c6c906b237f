"""How fast the review page answers over a lake of a million generated documents.

    python benchmarks/review.py --documents 1000000

Makes a published night by hand (no model is trained), says 20,000 words into its journal, starts
`nightshift review`, and asks each page by HTTP, one request after another and eight at a time.
Writes benchmarks/results/review.json and review.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from nightshift.journal import Journal, journal_path
from nightshift.machine import machine, of_torch
from nightshift.tables import SCHEMAS, Lake, rows_of

RESULTS = Path(__file__).parent / "results"
NAME, CLASSES, CLUSTERS, WORDS = "million", 20, 60, 20_000
CHINESE = "银行卡丢失手机支付账户余额转账汇率密码客服投诉退款物流订单发票优惠活动会员积分"
CHUNK = 50_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--documents", type=int, default=1_000_000)
    arguments.add_argument("--requests", type=int, default=200)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightshift-review-") as folder:
        found = measure(Path(folder), given.documents, given.requests)
    RESULTS.joinpath("review.json").write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.joinpath("review.md").write_text(page(found))
    print(page(found))


def measure(folder: Path, documents: int, requests: int) -> dict[str, Any]:
    config = folder / "pipelines.yaml"
    config.write_text(f"lake: lake\nreports: reports\npipelines:\n  {NAME}:\n    source: "
                      "{paths: [inbox/*]}\n")  # fmt: skip
    lake = Lake(str(folder / "lake"), NAME)
    write(lake, documents)
    journal = Journal(journal_path(str(folder / "lake"), NAME, ""))
    random = np.random.default_rng(2)
    words = min(WORDS, documents // 50)
    said = [(f"d{n}", f"class {n % CLASSES}", None)
            for n in random.permutation(documents)[:words].tolist()]  # fmt: skip
    journal.say_labels(said, "unsure", "ada")
    with served(config, folder) as (url, seconds):
        pages = {name: timed(url, make, requests) for name, make in asked().items()}
        together = timed(url, asked()["next document"], requests, 8)
        index = sum(one.stat().st_size for one in (folder / "lake" / NAME).glob("review-*"))
    return {
        "documents": documents,
        "words_in_the_journal": words,
        "index_seconds": round(seconds, 1),
        "index_megabytes": round(index / 1e6),
        "pages": pages,
        "eight_at_a_time": together,
        "machine": machine() | of_torch("cpu"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(lake: Lake, documents: int) -> None:
    """A published night: texts of 8 to 30 words, half of them labelled, a fifth Chinese."""
    random = np.random.default_rng(1)
    words = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("an", "el", "or", "ub")
                      for c in ("", "ing", "er", "ish", "ate", "ous")])  # fmt: skip
    characters = np.array(list(CHINESE))
    order = 1 / np.arange(1, len(words) + 1)
    order /= order.sum()
    names = ("documents", "predictions", "assignments")
    writers = {name: lake.writer(name, "n1") for name in names}
    for one in writers.values():
        one.__enter__()
    for start in range(0, documents, CHUNK):
        count = min(CHUNK, documents - start)
        ids = [f"d{start + n}" for n in range(count)]
        lengths = random.integers(8, 31, count)
        flat = words[random.choice(len(words), lengths.sum(), p=order)]
        cuts = np.split(flat, lengths.cumsum()[:-1])
        texts = [
            "".join(random.choice(characters, length)) if n % 5 == 0 else " ".join(cut)
            for n, (cut, length) in enumerate(zip(cuts, lengths.tolist(), strict=True))
        ]
        classes = random.integers(0, CLASSES, count)
        put(writers["documents"], "documents", {
            "doc_id": ids, "text": texts,
            "lang": ["zh" if n % 5 == 0 else "en" for n in range(count)],
            "label": [f"class {one}" if n % 2 else None for n, one in enumerate(classes.tolist())],
        })  # fmt: skip
        sure = random.random(count).astype(np.float32)
        wrong = (classes + (random.random(count) < 0.05)) % CLASSES
        put(writers["predictions"], "predictions", {
            "doc_id": ids, "label": [f"class {one}" for one in wrong.tolist()], "probability": sure,
            "margin": sure, "model_id": ["m1"] * count,
        })  # fmt: skip
        put(writers["assignments"], "assignments", {
            "doc_id": ids, "cluster_id": [f"c-{one:04d}" for one in (classes * 3 + 1).tolist()],
            "distance": random.random(count).astype(np.float32),
        })  # fmt: skip
    for one in writers.values():
        one.__exit__(None, None, None)
    lake.replace("clusters", "n1", rows_of("clusters", [
        {"cluster_id": f"c-{one:04d}", "name": f"words {one}", "event": "born", "size": 10,
         "keywords": ["ban", "del"], "exemplars": [f"d{one}", f"d{one + 1}"], "parents": []}
        for one in range(1, CLUSTERS)
    ]))  # fmt: skip
    versions = {name: lake.version(name) for name in (*names, "clusters")}
    now = datetime.now(UTC)
    lake.write_night({
        "night": "n1", "number": 1, "state": "published", "started": now, "finished": now,
        "versions": versions, "model_id": "m1", "figures": {"words": 0},
    })  # fmt: skip


def put(writer: Any, table: str, columns: dict[str, Any]) -> None:
    """Columns of a table, null where none is given."""
    rows = len(columns["doc_id"])
    arrays = {
        field.name: pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(rows, field.type)
        for field in SCHEMAS[table]
        if field.name != "night"
    }
    writer.write(pa.RecordBatch.from_pydict(arrays))


@contextmanager
def served(config: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """The command itself; its address, and the seconds until its first page."""
    log = folder / "review.log"
    command = [Path(sys.executable).parent / "nightshift", "review", NAME, "--port", "0"]
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--config", config], stdout=stream, stderr=stream)
    try:
        started, url = time.perf_counter(), ""
        while not url:
            time.sleep(0.1)
            url = next(iter(re.findall(r"http://[\d.:]+", log.read_text())), "")
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
        with introduced(url, "first") as client:
            while client.get("/").status_code != 200:
                time.sleep(0.5)
        yield url, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def introduced(url: str, name: str) -> Iterator[httpx.Client]:
    """The browser of somebody who has said who they are."""
    with httpx.Client(base_url=url, headers={"Origin": url}, timeout=60) as client:
        token = re.findall(r'name="token" value="([^"]+)"', client.get("/").text)[0]
        client.post("/settings", data={"token": token, "name": name})
        yield client


Make = Callable[[httpx.Client, int], Callable[[], httpx.Response]]


def asked() -> dict[str, Make]:
    """The pages, each as what makes the next request of it."""

    def get(path: str, **query: str) -> Make:
        return lambda client, n: lambda: client.get(path, params=query)

    def search(words: list[str]) -> Make:
        return lambda client, n: lambda: client.get("/search", params={"q": words[n % len(words)]})

    def say(client: httpx.Client, n: int) -> Callable[[], httpx.Response]:
        shown = client.get("/review", params={"queue": "unsure"}).text
        token = re.findall(r'name="token" value="([^"]+)"', shown)[0]
        doc = re.findall(r'data-doc="([^"]+)"', shown)[0]
        form = {"token": token, "doc": doc, "queue": "unsure", "do": "label", "label": "class 1"}
        return lambda: client.post("/say", data=form)

    return {
        "home": get("/"),
        "next document": get("/review", queue="unsure"),
        "next of a cluster": get("/review", queue="cluster c-0001"),
        "a label": say,
        "clusters": get("/clusters"),
        "search, a common word": search(["ban", "ban del", "baning"]),
        "search, a rare phrase": search(["toring tubous", "torous suber", "tubate roring"]),
        "search, as typed": search(["t", "tu", "tub", "ban t"]),
        "search, two Chinese characters": search(["银行", "丢失", "退款", "积分"]),
        "search, one or four": search(["银", "账户余额", "手机支付"]),
    }


def timed(url: str, make: Make, requests: int, at_once: int = 1) -> dict[str, float]:
    """Milliseconds of requests: p50, p95, max. Each client is a person of its own."""

    def person(number: int) -> list[float]:
        with introduced(url, f"person {number}") as client:
            found: list[float] = []
            for n in range(requests // at_once):
                send = make(client, n)
                started = time.perf_counter()
                answer = send()
                found.append((time.perf_counter() - started) * 1000)
                assert answer.status_code in (200, 303), answer.text[:500]
            return found

    with ThreadPoolExecutor(at_once) as people:
        spent = [one for part in people.map(person, range(at_once)) for one in part]
    p50, p95 = np.percentile(spent, [50, 95])
    return {"p50": round(p50, 1), "p95": round(p95, 1), "max": round(max(spent), 1)}


def page(found: dict[str, Any]) -> str:
    """The results for readers."""
    rows = [
        *found["pages"].items(),
        ("next document, eight people at once", found["eight_at_a_time"]),
    ]
    table = "\n".join(
        f"| {name} | {one['p50']} | {one['p95']} | {one['max']} |" for name, one in rows
    )
    return (
        "# The review page\n\nMade by `python benchmarks/review.py`; do not edit.\n\n"
        f"{found['documents']:,} generated documents, {found['words_in_the_journal']:,} words in "
        f"the journal, {os.cpu_count()} cores shared with other work, {found['at'][:10]}. The "
        f"index of the night took {found['index_seconds']:.0f} s to make, once, in a process of "
        f"its own, and has {found['index_megabytes']:,} MB. Milliseconds of whole answers over "
        "HTTP:\n\n"
        f"| page | p50 | p95 | max |\n|---|---:|---:|---:|\n{table}\n"
    )


if __name__ == "__main__":
    main()
