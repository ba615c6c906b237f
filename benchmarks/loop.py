"""The whole loop, with the program itself: no labels, clusters, names, predictions.

Half of a corpus is one night, the rest the next. In between somebody names the three largest
clusters after the class that most of their documents have. Macro-F1 of the second night's answers
is measured over its new documents: of those three classes alone, and with the documents of all
others, for which only an abstention is right.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from nightshift.tables import Lake

NAMED = 3
OTHER = "other"


def loop(texts: Sequence[str], labels: Sequence[str], k: int, seed: int) -> dict[str, float]:
    """Two nights and three names; figures of the second night's answers."""
    from sklearn.metrics import f1_score

    order = np.random.default_rng(seed).permutation(len(texts))
    rows = [{"id": f"d{row}", "text": texts[row]} for row in order]
    true = {f"d{row}": labels[row] for row in order}
    with TemporaryDirectory() as folder:
        home = Path(folder)
        _declare(home, k, seed)
        _drop(home, "one", rows[: len(rows) // 2])
        _run(home, "run", "corpus", "--night", "n1")
        lake = Lake(str(home / "lake"), "corpus")
        held = {row["doc_id"]: row["cluster_id"] for row in lake.read("assignments").to_pylist()}
        sizes = Counter(one for one in held.values() if one != "unassigned")
        classes: set[str] = set()
        for cluster_id, _ in sizes.most_common(NAMED):
            inside = Counter(true[one] for one, where in held.items() if where == cluster_id)
            name = inside.most_common(1)[0][0]
            classes.add(name)
            _run(home, "name", "corpus", cluster_id, name, "--class", name)
        _drop(home, "two", rows[len(rows) // 2 :])
        _run(home, "run", "corpus", "--night", "n2")
        answers = {row["doc_id"]: row for row in lake.read("predictions").to_pylist()}
    new = [row["id"] for row in rows[len(rows) // 2 :] if row["id"] in answers]
    truth = [true[one] if true[one] in classes else OTHER for one in new]
    said = [OTHER if answers[one]["abstained"] else answers[one]["label"] for one in new]
    of_named = [place for place, one in enumerate(truth) if one != OTHER]
    names = sorted(classes)
    others = [said[place] for place, one in enumerate(truth) if one == OTHER]
    theirs = [[side[place] for place in of_named] for side in (truth, said)]
    return {
        "classes": len(names),
        "macro_f1": float(f1_score(*theirs, labels=names, average="macro")),
        "macro_f1_among_all": float(f1_score(truth, said, labels=names, average="macro")),
        "others_abstained": others.count(OTHER) / max(1, len(others)),
    }


def _declare(home: Path, k: int, seed: int) -> None:
    pipeline = {
        "source": {"paths": ["inbox/*"], "text": "text", "id": "id"},
        "clusters": {"k": k, "seed": seed},
        "train": {"seed": seed},
    }
    places = {"lake": "lake", "mlflow": "sqlite:///mlflow.db", "reports": "reports"}
    (home / "inbox").mkdir()
    whole = {**places, "pipelines": {"corpus": pipeline}}
    (home / "pipelines.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")


def _drop(home: Path, name: str, rows: list[dict[str, str]]) -> None:
    path = home / "inbox" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    old = time.time() - 3600  # a night waits for files that are still being written
    os.utime(path, (old, old))


def _run(home: Path, *words: str) -> None:
    command = [Path(sys.executable).parent / "nightshift", *words]
    environment = {**os.environ, "PREFECT_HOME": str(home / "prefect")}
    done = subprocess.run(command, cwd=home, env=environment, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"nightshift {' '.join(words)}: {done.stderr[-2000:]}")
