"""Lists for readers: recall@20 by the clusters that each follows, beside plain popularity.

    python benchmarks/readers.py --data DIR [--corpus search_snippets] [--documents 4000]

The corpora have no readers, so these are made up: each follows two or three classes and reads a
twentieth of what comes of them, and as much again of the rest of what comes as one document in ten
by chance. Nobody tells Nightshift the classes: it sees texts and who read them. Half of the
documents are one night, the other half the next; the lists are of the second night's documents, and
what is read among them is what they should have found. Results: readers.json and readers.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from corpora import CORPORA, RESULTS, add_data_option, machine
from loop import _drop, _run
from peers import read_corpus

READERS = 60
READ, BY_CHANCE = 0.05, 0.1
"""Share read of the classes followed; share of a reader's documents that are of any class."""


def main() -> int:
    options = _options()
    rows = [measure(options, seed) for seed in range(1, options.seeds + 1)]
    found = {
        "corpus": options.corpus, "documents": options.documents, "readers": READERS, "runs": rows,
        "machine": machine(), "day": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    (options.out / "readers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "readers.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return 0 if all(one["recall_at_20"] > one["popularity_recall_at_20"] for one in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--corpus", default="search_snippets")
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


def made_up(labels: list[str], seed: int) -> list[list[str]]:
    """Who reads each document."""
    random = np.random.default_rng(seed)
    classes = sorted(set(labels))
    readers: list[list[str]] = [[] for _ in labels]
    of = {one: np.flatnonzero(np.array(labels, object) == one) for one in classes}
    for number in range(READERS):
        follows = random.choice(classes, random.integers(2, 4), replace=False)
        inside = np.concatenate([of[one] for one in follows])
        wanted = inside[random.random(len(inside)) < READ]
        others = random.choice(len(labels), round(len(wanted) * BY_CHANCE), replace=False)
        for row in {*wanted.tolist(), *others.tolist()}:
            readers[row].append(f"reader-{number:02d}")
    return readers


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Two nights without a label, and what the lists of the second find."""
    from flows.explaining import for_reader
    from nightshift.pipeline import load_settings

    where = next(one for one in CORPORA if one.name == options.corpus)
    sides = read_corpus(where, options.data)
    texts = [*sides.train.texts, *sides.validation.texts, *sides.test.texts]
    labels = [*sides.train.labels, *sides.validation.labels, *sides.test.labels]
    order = np.random.default_rng(seed).permutation(len(texts))[: options.documents]
    readers = made_up([labels[row] for row in order], seed)
    rows = [{"id": f"d{n}", "text": texts[row], "reader": "; ".join(readers[n])}
            for n, row in enumerate(order)]  # fmt: skip
    with TemporaryDirectory() as folder:
        home = Path(folder)
        source = {"paths": ["inbox/*"], "text": "text", "id": "id", "reader": "reader"}
        pipeline = {"source": source, "report": {"map_points": 0}, "train": {"seed": seed}}
        whole = {"lake": "lake", "mlflow": "sqlite:///mlflow.db", "reports": "reports",
                 "pipelines": {"corpus": pipeline}}  # fmt: skip
        (home / "inbox").mkdir()
        (home / "pipelines.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
        for night, part in (("n1", rows[: len(rows) // 2]), ("n2", rows[len(rows) // 2 :])):
            _drop(home, night, part)
            _run(home, "run", "corpus", "--night", night)
        found = for_reader(load_settings(home / "pipelines.yaml"), "corpus", "reader-00", 20)
    keys = ("readers", "recall_at_20", "popularity_recall_at_20")
    best = known([labels[row] for row in order], readers)
    return {"seed": seed, **{key: found[key] for key in keys}, "known_recall_at_20": best}


def known(labels: list[str], readers: list[list[str]]) -> float:
    """The same lists by the true classes: what a reader reads of them is chance, so no clusters can
    be expected to do better."""
    from flows.explaining import recalls
    from nightshift.similar import followed

    half = len(labels) // 2
    follows, popular = followed((who, labels[n]) for n in range(half) for who in readers[n])
    new = [(f"d{n}", labels[n], 0.0) for n in range(half, len(labels))]
    read: dict[str, set[str]] = {}
    for n in range(half, len(labels)):
        for who in readers[n]:
            read.setdefault(who, set()).add(f"d{n}")
    return recalls(read, follows, popular, new)["recall_at_20"]


def page(found: dict[str, Any]) -> str:
    """The results, in words."""
    lines = [
        "# Lists for readers",
        "",
        f"{found['readers']} made-up readers over {found['documents']:,} documents of "
        f"{found['corpus']}, in two nights, without a label: each follows two or three classes. "
        "The lists are of the second night's documents; recall@20 is the share of what is read "
        "there, of at most 20, that stands in the first 20. A reader reads a twentieth of what "
        "comes of their classes, by chance: lists by the true classes are the last column.",
        "",
        "| seed | readers | by the clusters they follow | plain popularity | by the true classes |",
        "|---:|---:|---:|---:|---:|",
        *(f"| {one['seed']} | {one['readers']} | {one['recall_at_20']:.3f} | "
          f"{one['popularity_recall_at_20']:.3f} | {one['known_recall_at_20']:.3f} |"
          for one in found["runs"]),
        "",
        f"Machine: {found['machine']}. Measured on {found['day']} by `benchmarks/readers.py`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
