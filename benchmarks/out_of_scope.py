"""Out of scope: who notices a class that was never seen?

    python benchmarks/out_of_scope.py --data DIR [--corpus banking77] [--page]

Five folds: one class in five is held out of the training rows, the default recipe learns the rest,
and the test rows of the unseen classes should be kept back. Told for the rule of the largest
probability, of the network alone and of the blend, and for the reject score: the recall of unseen
classes where each rule keeps 95% of the answers to test rows of known classes; and what the
threshold that validation set does on its own. The score was chosen on training rows of the held-out
classes; each fold reads the test rows once. Resumable: a fold whose result stands in
results/out_of_scope.json is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from corpora import CORPORA, RESULTS, add_data_option, machine, table
from peers import Rows, held_out, read_corpus
from quality import teach
from quality_page import write_whole

FOLDS, SHUFFLE_SEED, KEEP = 5, 5, 0.95
ASKED = 0.10
"""How much more recall than the largest probability's the reject score should have."""
FILE = RESULTS / "out_of_scope.json"


def run_fold(corpus: str, data: Path, fold: int) -> dict[str, Any]:
    """Hold a fifth of the classes out, learn the rest, read the test rows once."""
    import numpy as np

    where = next(one for one in CORPORA if one.name == corpus)
    sides = read_corpus(where, data)
    names = sorted(set(sides.train.labels))
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(names))
    unseen = {names[one] for one in order[fold::FOLDS]}
    train, held = (_known(side, unseen) for side in held_out(sides.train, sides.validation, 1))
    started = time.process_time()
    taught = teach(train, held, bool(sides.validation.texts), {}, 1)
    said = taught.answer(sides.test.texts)
    assert said.probabilities is not None
    assert said.network is not None
    classes = np.array(taught.learned.model.labels, object)
    truth = np.array(sides.test.labels, object)
    out = np.array([label in unseen for label in truth])
    rules = {
        "network": said.network.max(1), "blend": said.probabilities.max(1), "score": said.scope,
    }  # fmt: skip
    lines = {name: float(np.quantile(found[~out], 1 - KEEP)) for name, found in rules.items()}
    return {
        "corpus": corpus,
        "fold": fold,
        "classes": len(classes),
        "unseen": len(unseen),
        "unseen_rows": int(out.sum()),
        "recall": {name: float((found[out] < lines[name]).mean()) for name, found in rules.items()},
        "own_kept": float(1 - said.abstained[~out].mean()),
        "own_recall": float(said.abstained[out].mean()),
        "accuracy": float((classes[said.choice] == truth)[~out].mean()),
        "cpu_seconds": round(time.process_time() - started, 1),
        "day": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def _known(rows: Rows, unseen: set[str]) -> Rows:
    pairs = zip(rows.texts, rows.labels, strict=True)
    kept = [(text, label) for text, label in pairs if label not in unseen]
    return Rows([text for text, _ in kept], [label for _, label in kept])


def page(folds: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Out of scope", "", (__doc__ or "").split("\n\n", 2)[2].strip(), "",
        *sorted({f"- {one['machine']}, {one['day']}" for one in folds}),
    ]  # fmt: skip
    for corpus in sorted({one["corpus"] for one in folds}):
        mine = [one for one in folds if one["corpus"] == corpus]
        rules = {name: [one["recall"][name] for one in mine] for name in mine[0]["recall"]}
        means = {name: mean(found) for name, found in rules.items()}
        own = [[one[key] for one in mine] for key in ("own_kept", "own_recall", "accuracy")]
        lines += ["", f"## {corpus}", ""]
        lines += table(
            ["fold", "unseen classes", "largest probability, network", "largest probability, blend",
             "reject score", "kept at its own threshold", "recall there", "accuracy, known"],
            [
                *([str(one["fold"]), f"{one['unseen']} of {one['classes'] + one['unseen']}",
                   *(f"{found:.3f}" for found in one["recall"].values()),
                   *(f"{one[key]:.3f}" for key in ("own_kept", "own_recall", "accuracy"))]
                  for one in mine),
                ["mean", "", *(f"{found:.3f}" for found in means.values()),
                 *(f"{mean(found):.3f}" for found in own)],
            ],
        )  # fmt: skip
        for name in ("network", "blend"):
            more = means["score"] - means[name]
            said = "holds" if more >= ASKED else "MISSED"
            lines += ["", f"Above the {name}'s largest probability: {100 * more:.1f} points "
                      f"({100 * ASKED:.0f} are asked: {said})."]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--corpus", default="banking77", choices=[one.name for one in CORPORA])
    parser.add_argument("--page", action="store_true", help="only make the page")
    options = parser.parse_args()
    # Before torch is imported: it reads it once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folds = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []
    done = {(one["corpus"], one["fold"]) for one in folds}
    for fold in range(0 if options.page else FOLDS):
        if (options.corpus, fold) not in done:
            folds.append(run_fold(options.corpus, options.data, fold))
            print(f"fold {fold}: {folds[-1]['recall']}", flush=True)
            write_whole(FILE, json.dumps(folds, indent=1) + "\n")
    write_whole(FILE.with_suffix(".md"), page(folds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
