"""How large the morning page of a night with 50,000 documents is, and how fast a browser has it.

    python benchmarks/report.py --documents 50000

Generates texts, a third of them Chinese, with vectors, labels and clusters (no model is trained),
places and writes the page by the functions that a night uses, and opens it in the system's
Chromium: opening, panning the map by mouse, searching it. Writes benchmarks/results/report.json and
report.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from nightshift.changes import place_all
from nightshift.machine import machine, of_torch
from nightshift.pedigree import pedigree_picture
from nightshift.pictures import Point
from nightshift.reports import NightReport, ReportConfig, render
from nightshift.scoring import Scores

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RESULTS = Path(__file__).parent / "results"
LABELS, CLUSTERS, WIDTH, NIGHTS = 60, 120, 128, 8
OPENED = 5
"""How often the page is opened, each time in a new profile."""
FIRST, LAST = (
    "b c d f g h k l m n p r s t v w br cl dr fl gr pl st tr",
    "an el or ub ist ome ate ing ous ish ent able ion ard et ow",
)
"""Syllables of English-looking words."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--documents", type=int, default=50_000)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightshift-report-") as folder:
        found = measure(Path(folder) / "night.html", given.documents)
    RESULTS.joinpath("report.json").write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.joinpath("report.md").write_text(page_of(found))
    print(page_of(found))


def measure(path: Path, documents: int) -> dict[str, Any]:
    night, seconds = generated(documents)
    started = time.perf_counter()
    html = render(night, ReportConfig(map_points=min(documents, 50_000)))
    written = time.perf_counter() - started
    path.write_text(html, encoding="utf-8")
    lengths = sorted(len(one.text) for one in night.points)
    return {
        "documents": documents,
        "labels": LABELS,
        "clusters": CLUSTERS,
        "characters": [int(np.percentile(lengths, share)) for share in (5, 50, 95)],
        "place_seconds": round(seconds, 1),
        "write_seconds": round(written, 1),
        "bytes": path.stat().st_size,
        **in_a_browser(path, documents),
        "machine": machine() | of_torch("cpu"),
        "load": round(os.getloadavg()[0], 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# --- a night -----------------------------------------------------------------------------------


def generated(documents: int) -> tuple[NightReport, float]:
    """A night of so many documents, and the seconds that their places took."""
    random = np.random.default_rng(1)
    # Few clusters are large and many small, as topics are.
    weights = 1 / np.arange(1, CLUSTERS + 1) ** 0.8
    of = random.choice(CLUSTERS, documents, p=weights / weights.sum())
    loose = random.random(documents) < 0.04
    centres = random.normal(size=(CLUSTERS, WIDTH))
    vectors = centres[of] + random.normal(scale=0.7, size=(documents, WIDTH))
    vectors[loose] = random.normal(size=(int(loose.sum()), WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    texts = written_texts(random, of)
    labels = [f"{'类别' if one % 3 == 0 else 'class'} {one % LABELS}" for one in of.tolist()]
    started = time.perf_counter()
    places = place_all(vectors)
    seconds = time.perf_counter() - started
    ids = [f"c-{one + 1:04d}" for one in range(CLUSTERS)]
    nights = [f"2026-11-{14 + n}" for n in range(NIGHTS)]
    when = random.integers(0, NIGHTS, documents).tolist()
    points = [
        Point(float(x), float(y), "unassigned" if off else ids[one], label, text, nights[n])
        for (x, y), off, one, label, text, n in zip(
            places, loose.tolist(), of.tolist(), labels, texts, when, strict=True
        )
    ]
    sizes = Counter(one.cluster_id for one in points)
    members = {one: [n for n, c in enumerate(of.tolist()) if c == place][:5]
               for place, one in enumerate(ids)}  # fmt: skip
    clusters = [
        {"cluster_id": one, "name": ", ".join(texts[members[one][0]].split()[:3])[:60],
         "event": "continued", "size": sizes[one], "previous_size": sizes[one] - 3,
         "cohesion": 0.7, "keywords": texts[members[one][0]].split()[:8],
         "exemplars": [f"d-{n}" for n in members[one]]}
        for one in ids
    ]  # fmt: skip
    started_at = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
    names = sorted(set(labels))
    night = NightReport(
        pipeline="large", night=nights[-1], number=NIGHTS, started=started_at,
        finished=started_at + timedelta(minutes=20), seconds={"ingest": 30.0, "train": 900.0},
        documents=documents, documents_total=documents, champion="version 8",
        quality=scores(names, random), previous={"accuracy": 0.8},
        label_counts=dict(Counter(labels)), clusters=clusters,
        examples={f"d-{n}": texts[n] for rows in members.values() for n in rows},
        points=points, pedigree=pedigree(nights, clusters),
        standouts={"unsure": [
            {"doc_id": f"d-{members[one][0]}", "label": names[0], "cluster_id": one, "margin": 0.1}
            for one in ids[:12]
        ]},
        explained=[explained(texts[members[one][0]], names[0]) for one in ids[:9]],
    )  # fmt: skip
    return night, seconds


def written_texts(random: np.random.Generator, of: np.ndarray) -> list[str]:
    """English and Chinese of any length from a headline to a page, each cluster with its words."""
    words = np.array(
        [
            a + b + c
            for a in FIRST.split()
            for b in LAST.split()
            for c in ("", "er", "s", "ly", "ness")
        ]
    )
    # Any three thousand do: a character takes three bytes.
    characters = np.array([chr(one) for one in range(0x4E00, 0x4E00 + 3000)])
    lengths = np.minimum(400, random.lognormal(3.4, 0.8, len(of)).astype(int) + 4)
    found: list[str] = []
    for n, (cluster, length) in enumerate(zip(of.tolist(), lengths.tolist(), strict=True)):
        own = (cluster * 37 + random.integers(0, 40, length)) % len(words)
        any_ = (random.pareto(0.7, length) * 20).astype(int) % len(words)
        chosen = np.where(random.random(length) < 0.4, own, any_)
        if cluster % 3 == 0:
            found.append("".join(characters[chosen % len(characters)]) + f"，第{n}条。")
        else:
            found.append(" ".join(words[chosen]) + f", no. {n}.")
    return found


def scores(names: list[str], random: np.random.Generator) -> Scores:
    table = random.poisson(0.4, (len(names), len(names))) + np.diag(
        random.integers(20, 80, len(names))
    )
    per_class = [{"label": one, "precision": 0.9, "recall": 0.8, "f1": 0.85,
                  "support": int(row.sum())}
                 for one, row in zip(names, table, strict=True)]  # fmt: skip
    right = float(np.trace(table) / table.sum())
    return Scores(int(table.sum()), right, right, 0.5, 0.03, names, per_class, table.tolist())


def pedigree(nights: list[str], clusters: list[dict[str, Any]]) -> str:
    rows = [{**one, "night": night, "parents": [], "heirs": [],
             "size": one["size"] * (n + 1) // len(nights) + 1}
            for n, night in enumerate(nights) for one in clusters]  # fmt: skip
    moved: dict[str, dict[tuple[str | None, str], int]] = {}
    for night in nights:
        moved[night] = {(None, one["cluster_id"]): one["size"] // len(nights) for one in clusters}
    return pedigree_picture(nights, rows, moved)


def explained(text: str, label: str) -> dict[str, Any]:
    words, start = [], 0
    for n, one in enumerate(text.split()):
        start = text.index(one, start)
        words.append({"text": one, "start": start, "end": start + len(one), "network": 0.01 * n,
                      "wide": -0.02, "together": 0.03 - 0.002 * n, "attention": 0.01,
                      "probability": 0.5})  # fmt: skip
        start += len(one)
    return {"doc_id": text[:8], "text": text, "label": label, "probability": 0.9,
            "abstained": False, "words": words}  # fmt: skip


# --- a browser ---------------------------------------------------------------------------------


def in_a_browser(path: Path, documents: int) -> dict[str, Any]:
    """What a reader waits for; of every open, the seconds until the map stands there painted."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("No chromium on this machine: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = [open_page(browser, path, documents) for _ in range(OPENED)]
        page = opened[-1][1]
        panned, searched = (
            pan(page),
            [search(page, one) for one in ("ness", "no. 777", "一", "第77")],
        )
        found = {
            "chromium": browser.version,
            "open_seconds": [round(one, 2) for one, _ in opened],
            "paint_milliseconds": round(paint(page), 1),
            "pan_frames": panned,
            "search_milliseconds": dict(searched),
            "megabytes_of_memory": round(page.evaluate("performance.memory.usedJSHeapSize") / 1e6),
        }
        browser.close()
    return found


def open_page(browser: Browser, path: Path, documents: int) -> tuple[float, Page]:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    started = time.perf_counter()
    page.goto(path.as_uri())
    page.locator("#map-count", has_text=f"{min(documents, 50_000):,}").wait_for()
    page.evaluate("nightshiftAtlas.paint()")
    return time.perf_counter() - started, page


def paint(page: Page) -> float:
    """Milliseconds of script that one frame of the whole map takes."""
    return page.evaluate(
        "(() => { const t = performance.now(); for (let n = 0; n < 20; n++) "
        "nightshiftAtlas.paint(); return (performance.now() - t) / 20; })()"
    )


PAN = """([x, y]) => new Promise((done) => {
  const top = document.getElementById("map-top"), gaps = [];
  let last = performance.now(), n = 0;
  const next = () => {
    const now = performance.now();
    gaps.push(now - last);
    last = now;
    if (++n > 120) return done(gaps.slice(2));
    const at = { clientX: x + 150 * Math.sin(n / 10), clientY: y + 100 * Math.cos(n / 14) };
    top.dispatchEvent(new PointerEvent("pointermove", { ...at, buttons: 1, pointerType: "mouse" }));
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
})"""
"""A hand that moves at every frame, which a test's mouse does not: it waits for each answer."""


def pan(page: Page) -> dict[str, float]:
    """Milliseconds from frame to frame while the map, zoomed by two, is dragged about."""
    page.locator("#map-top").scroll_into_view_if_needed()
    box = page.locator("#map-top").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.dblclick(x, y)
    before = page.evaluate("nightshiftAtlas.place(0)")
    page.mouse.move(x, y)
    page.mouse.down()
    gaps = page.evaluate(PAN, [x, y])
    assert page.evaluate("nightshiftAtlas.place(0)") != before
    page.mouse.up()
    page.click("#map-all")
    p50, p95 = np.percentile(gaps, [50, 95])
    return {"p50": round(float(p50), 1), "p95": round(float(p95), 1), "max": round(max(gaps), 1)}


def search(page: Page, words: str) -> tuple[str, float]:
    """Milliseconds from the last letter to the count of matches, less the 120 that it waits for
    another letter; the middle of three."""
    spent: list[float] = []
    for _ in range(3):
        page.click("#map-all")
        spent.append(page.evaluate(
            "words => new Promise(done => { const box = document.getElementById('map-search'), "
            "count = document.getElementById('map-count'), t = performance.now(); "
            "new MutationObserver((_, own) => { own.disconnect(); nightshiftAtlas.paint(); "
            "done(performance.now() - t - 120); }).observe(count, {childList: true}); "
            "box.value = words; box.dispatchEvent(new Event('input')); })", words
        ))  # fmt: skip
    return words, round(median(spent), 1)


def page_of(found: dict[str, Any]) -> str:
    """The results for readers."""
    pan, searched = found["pan_frames"], found["search_milliseconds"]
    opened = found["open_seconds"]
    low, middle, high = found["characters"]
    rows = [
        ("size", f"{found['bytes'] / 1e6:.1f} MB", "under 15 MB"),
        ("open until the map is painted, median", f"{median(opened):.2f} s", "under 2 s"),
        ("the slowest of five", f"{max(opened):.2f} s", ""),
        ("script of one frame, the whole map", f"{found['paint_milliseconds']} ms", ""),
        ("frame to frame while panning, p50", f"{pan['p50']} ms", ""),
        ("frame to frame while panning, p95", f"{pan['p95']} ms", ""),
        *((f"search for `{one}`", f"{taken} ms", "") for one, taken in searched.items()),
        ("memory of the script", f"{found['megabytes_of_memory']} MB", ""),
    ]  # fmt: skip
    table = "\n".join(f"| {name} | {value} | {wanted} |" for name, value, wanted in rows)
    return (
        "# The morning page\n\nMade by `python benchmarks/report.py`; do not edit.\n\n"
        f"{found['documents']:,} generated documents of {low} to {high} characters (5% to 95%; the "
        f"median is {middle}), a third of them Chinese, {found['labels']} labels, "
        f"{found['clusters']} clusters; all of them on the map. Chromium {found['chromium']}, no "
        f"graphics card, {os.cpu_count()} cores shared with other work (load {found['load']}), "
        f"{found['at'][:10]}. Placing the documents took {found['place_seconds']:.0f} s, writing "
        f"the page {found['write_seconds']:.0f} s. Searches are without the 120 ms that the page "
        "waits for another letter, and include painting what is found.\n\n"
        f"| | measured | asked |\n|---|---:|---:|\n{table}\n"
    )


if __name__ == "__main__":
    main()
