"""Clusters that live: who keeps their cluster over ten nights, and who notices a new topic?

    python benchmarks/clusters.py --data DIR [--seeds 5] [--only 'identity/*'] [--page]

All on the corpus's own document vectors, without labels, by the night's own code.

- identity: half of a corpus, then ten nights of 5% new documents. Share of the old documents that
  keep their cluster's id each night and after all ten, and inertia beside a fit from scratch. The
  peer fits KMeans from scratch every night and matches its clusters to last night's (Kuhn 1955).
- births: some classes are withheld until night five, when all their documents up to then arrive.
  What is born on that night, and on the others; purity of the newborn cluster for the class, and
  the share of the class's documents in it.

The truth is only read to measure. Resumable: results/clusters.json keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from corpora import CORPORA, RESULTS, add_data_option, machine, table
from peers import read_corpus
from quality_page import write_whole

from nightshift.batches import Documents
from nightshift.cleaning import CleaningConfig, clean
from nightshift.clustering import ClusterConfig, cluster
from nightshift.identity import fates
from nightshift.nearest import UNASSIGNED, Cells, nearest_centroids
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from nightshift.vectors import learn

FILE = RESULTS / "clusters.json"
NIGHTS, SHARE, LATE = 10, 0.05, 5
WITHHELD = {
    "thucnews": [(0,), (3,), (7,)],
    "banking77": [(5, 40), (10, 60), (20, 33)],
    "search_snippets": [(0,), (3,)],
}
"""Classes by their place in the alphabet, a trial each."""
Fit = Callable[[np.ndarray, int, Cells | None, np.ndarray, int], tuple[np.ndarray, Cells]]


@cache
def corpus_vectors(name: str, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 (documents, width) of a whole corpus, and its labels' numbers."""
    where = next(one for one in CORPORA if one.name == name)
    sides = read_corpus(where, data)
    rows = [sides.train, sides.validation, sides.test]
    texts = [clean(text, CleaningConfig()) for side in rows for text in side.texts]
    labels = [label for side in rows for label in side.labels]
    tokenizer = Tokenizer.learn(iter(texts), TokenizerConfig(unit="word"))
    documents = Documents.from_lists(tokenizer.encode(texts))
    vectors = learn(documents, tokenizer.size).embed(documents)
    return vectors, np.unique(labels, return_inverse=True)[1]


def nights_of(documents: int, seed: int) -> np.ndarray:
    """The night each document arrives on, int64 (documents,): half on night 0."""
    order = np.random.default_rng(seed).permutation(documents)
    night = np.zeros(documents, np.int64)
    start = round(documents * (1 - SHARE * NIGHTS))
    for one in range(NIGHTS):
        night[order[start + round(one * SHARE * documents) :]] = one + 1
    return night


def ours(
    vectors: np.ndarray, k: int, start: Cells | None, fresh: np.ndarray, seed: int
) -> tuple[np.ndarray, Cells]:
    """A night of Nightshift's: k on the first, then whatever is born, split or merged."""
    config = ClusterConfig(k=k if start is None else "auto", k_min=2, k_max=2 * k, seed=seed)
    found = cluster(vectors, config, start, fresh)
    return found.places, found.cells


def scratch(
    vectors: np.ndarray, k: int, start: Cells | None, fresh: np.ndarray, seed: int
) -> tuple[np.ndarray, Cells]:
    """KMeans as if there had been no last night."""
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=3, random_state=seed + len(vectors)).fit(vectors)
    return fitted.labels_.astype(np.int64), Cells.of(fitted.cluster_centers_.astype(np.float32))


def story(
    vectors: np.ndarray, night: np.ndarray, k: int, fit: Fit, seed: int
) -> Iterator[tuple[np.ndarray, list[str], Cells, list[str], list[str]]]:
    """Night after night: the documents there, their cluster ids, the cells, births and ends."""
    before: dict[str, str] = {}
    ever: set[str] = set()
    cells: Cells | None = None
    for now in range(NIGHTS + 1):
        rows = np.flatnonzero(night <= now)
        names = [str(row) for row in rows]
        places, cells = fit(vectors[rows], k, cells, night[rows] == now, seed)
        tonight, ended = fates(places, len(cells), names, before, ever)
        ids = [*(one.cluster_id for one in tonight), UNASSIGNED]
        before = {name: ids[place] for name, place in zip(names, places, strict=True)}
        ever |= {*ids}
        born = [one.cluster_id for one in tonight if one.event in ("born", "split")]
        yield rows, list(before.values()), cells, born, [one.cluster_id for one in ended]


def identity(name: str, data: Path, fit: Fit, seed: int) -> dict[str, Any]:
    """Ten nights without anything new in them."""
    vectors, labels = corpus_vectors(name, data)
    night, k = nights_of(len(vectors), seed), int(labels.max()) + 1
    kept: list[float] = []
    first: dict[int, str] = {}
    last: dict[int, str] = {}
    changes = 0
    cells = None
    for rows, ids, cells, born, ended in story(vectors, night, k, fit, seed):  # noqa: B007
        now = dict(zip(rows.tolist(), ids, strict=True))
        if last:
            kept.append(mean(now[row] == one for row, one in last.items()))
            changes += len(born) + len(ended)
        first, last = first or now, now
    assert cells is not None
    return {
        "kept_least": min(kept),
        "kept_all": mean(last[row] == one for row, one in first.items()),
        "inertia": _inertia(vectors, cells) / _inertia(vectors, scratch(
            vectors, len(cells), None, night == 0, seed)[1]),
        "clusters": len(cells),
        "changes": changes,
    }  # fmt: skip


def _inertia(vectors: np.ndarray, cells: Cells) -> float:
    return float((nearest_centroids(vectors, cells.centroids)[1].astype(np.float64) ** 2).sum())


def births(name: str, data: Path, withheld: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Ten nights, with classes that appear on the fifth."""
    vectors, labels = corpus_vectors(name, data)
    night, hidden = nights_of(len(vectors), seed), np.isin(labels, withheld)
    night[hidden & (night < LATE)] = LATE
    k = int(labels.max()) + 1 - len(withheld)
    other, found = 0, list[dict[str, float]]()
    for now, (rows, ids, _, born, _) in enumerate(story(vectors, night, k, ours, seed)):
        if now not in (0, LATE):
            other += len(born)
        if now == LATE:
            inside = np.array(ids, object)
            found = [_newborn(inside == one, labels[rows], withheld) for one in born]
    best = [max((one[f"of_{place}"] for one in found), default=0.0) for place in withheld]
    pure = [
        max(((one[f"of_{place}"], one[f"purity_{place}"]) for one in found), default=(0.0, 0.0))[1]
        for place in withheld
    ]
    return {"born": len(found), "other_births": other, "purity": mean(pure), "holds": mean(best)}


def _newborn(inside: np.ndarray, labels: np.ndarray, withheld: tuple[int, ...]) -> dict[str, float]:
    told: dict[str, float] = {}
    for place in withheld:
        both = float((inside & (labels == place)).sum())
        told[f"purity_{place}"] = both / max(1, int(inside.sum()))
        told[f"of_{place}"] = both / max(1, int((labels == place).sum()))
    return told


def jobs(data: Path, seeds: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every measurement by its name."""
    for seed in range(1, seeds + 1):
        for name in WITHHELD:
            for who, fit in (("nightshift", ours), ("from_scratch", scratch)):
                yield (
                    f"identity/{name}/{who}-{seed}",
                    lambda name=name, fit=fit, seed=seed: identity(name, data, fit, seed),
                )
        for name, trials in WITHHELD.items():
            for classes in trials:
                said = "+".join(map(str, classes))
                yield (
                    f"births/{name}/{said}-{seed}",
                    lambda name=name, classes=classes, seed=seed: births(name, data, classes, seed),
                )


def page(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    cells = {key: [one for name, one in found.items() if name.rsplit("-", 1)[0] == key]
             for key in dict.fromkeys(name.rsplit("-", 1)[0] for name in found)}  # fmt: skip
    lines = ["# Clusters that live", "", (__doc__ or "").split("\n\n", 2)[2].strip(), "",
             *sorted({f"- {one['machine']}, {one['day']}" for one in found.values()})]  # fmt: skip
    for kind, columns in (
        ("identity", ("kept_least", "kept_all", "inertia", "clusters", "changes", "seconds")),
        ("births", ("born", "other_births", "purity", "holds", "seconds")),
    ):
        lines += ["", f"## {kind.capitalize()}", ""]
        lines += table(
            ["corpus", "trial", *columns, "seeds"],
            [[*key.split("/")[1:], *(_figure(rows, column) for column in columns), str(len(rows))]
             for key, rows in cells.items() if key.startswith(kind)],
        )  # fmt: skip
    return "\n".join([*lines, ""])


def _figure(rows: list[dict[str, Any]], column: str) -> str:
    values = [float(row[column]) for row in rows]
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    if "--page" not in sys.argv:
        add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="*", help="measurements like this, * for any")
    parser.add_argument("--page", action="store_true", help="only make the page")
    options = parser.parse_args()
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name, measure in [] if options.page else jobs(options.data, options.seeds):
        if name in found or not fnmatch(name, options.only):
            continue
        started = time.process_time()
        told = measure()
        seconds = round(time.process_time() - started, 1)
        day = datetime.now(UTC).date().isoformat()
        found[name] = {**told, "seconds": seconds, "day": day, "machine": machine()}
        print(name, told, flush=True)
        write_whole(FILE, json.dumps(found, indent=1, sort_keys=True) + "\n")
    write_whole(FILE.with_suffix(".md"), page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
