"""Which explanation finds the words that matter: deletion curves on banking77.

    python benchmarks/explain.py --data DIR [--seeds 3] [--documents 500] [--out FOLDER]
    python benchmarks/explain.py --page

Each seed trains Nightshift's default recipe on banking77 (test rows unseen) and explains a sample
of test questions. Words are taken out in the order an explanation gives, the most important first;
the curve is the mean probability that is left for the answer, and its area is the score: lower
finds the words that carry the answer. Chance takes words out in five random orders. What the
network is explained by is measured on the network alone, what both paths are on the whole answer.
Results: explain.json, explain.md, explain.png. Exit code 1 where integrated gradients do not beat
attention and chance.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from corpora import CORPORA, RESULTS, add_data_option, machine
from peers import held_out, read_corpus
from quality import teach

CORPUS = "banking77"
SHARES = [round(0.05 * n, 2) for n in range(21)]
RANDOM_ORDERS = 5
NAMES = {
    "network": ["integrated gradients", "attention", "chance"],
    "both paths": ["together", "integrated gradients", "wide path", "attention", "chance"],
}


def main() -> int:
    options = _options()
    file = options.out / "explain.json"
    if not options.page:
        rows = [measure(options.data, seed, options) for seed in range(1, options.seeds + 1)]
        found = {
            "corpus": CORPUS, "documents": options.documents, "shares": SHARES, "runs": rows,
            "machine": machine(), "day": datetime.now(UTC).date().isoformat(),
        }  # fmt: skip
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    (options.out / "explain.md").write_text(page(found), encoding="utf-8")
    draw(found, options.out / "explain.png")
    print(page(found))
    return 0 if holds(found) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=500, help="test questions explained")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="trained before, by seed")
    parser.add_argument("--page", action="store_true", help="only make the page and the picture")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


def measure(data: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train once, explain a sample of the test rows, and take the words out."""
    from nightshift.bundle import Model
    from nightshift.cleaning import clean
    from nightshift.explanations import explain

    where = next(one for one in CORPORA if one.name == CORPUS)
    sides = read_corpus(where, data)
    folder = options.models / str(seed) if options.models else None
    if folder is not None and folder.is_dir():
        model = Model.load(folder)
    else:
        train, held = held_out(sides.train, sides.validation, seed)
        taught = teach(train, held, bool(sides.validation.texts), {}, seed)
        model = taught.learned.model
        if folder is not None:
            model.save(folder)
    random = np.random.default_rng(seed)
    rows = random.permutation(len(sides.test.texts))[: options.documents]
    texts = [clean(sides.test.texts[row], model.cleaning) for row in rows]
    curves: dict[str, dict[str, list[np.ndarray]]] = {
        on: {name: [] for name in names} for on, names in NAMES.items()
    }
    errors, seconds, words = [], 0.0, 0
    for text in texts:
        began = time.perf_counter()
        found = explain(model, text, prefixes=False)
        seconds += time.perf_counter() - began
        words += len(found.words)
        errors.append(abs(found.error))
        for on, names in NAMES.items():
            for name in names:
                curves[on][name].append(_curve(model, found, on, name, random))
    print(f"seed {seed}: {seconds:.0f} s for {len(texts)} explanations", flush=True)
    return {
        "seed": seed,
        "milliseconds": 1000 * seconds / len(texts),
        "words": words / len(texts),
        "median_error": float(np.median(errors)),
        "curves": {
            on: {name: np.mean(rows, 0).round(5).tolist() for name, rows in of.items()}
            for on, of in curves.items()
        },
    }


def _curve(model: Any, found: Any, on: str, name: str, random: np.random.Generator) -> np.ndarray:
    """The deletion curve of one document in the order of one explanation."""
    from nightshift.explanations import deletion_curve

    parts = [(one.start, one.end) for one in found.words]
    chance = _chance(model, model.labels.index(found.label), on)
    if name == "chance":
        orders = [random.permutation(len(parts)).tolist() for _ in range(RANDOM_ORDERS)]
        return np.mean(
            [deletion_curve(found.text, parts, one, chance, SHARES) for one in orders], 0
        )
    key = {"integrated gradients": "network", "attention": "attention", "wide path": "wide",
           "together": "together"}[name]  # fmt: skip
    values = np.array([getattr(one, key) or 0.0 for one in found.words])
    order = np.argsort(-values, kind="stable").tolist()
    return deletion_curve(found.text, parts, order, chance, SHARES)


def _chance(model: Any, target: int, on: str) -> Callable[[list[str]], np.ndarray]:
    def probability(texts: list[str]) -> np.ndarray:
        said = model.answer(model.documents(texts), texts, "cpu")
        return (said.network if on == "network" else said.probabilities)[:, target]

    return probability


# --- the page -------------------------------------------------------------------------------


def area(curve: list[float]) -> float:
    """Under the curve, by trapezoids; the shares go from 0 to 1."""
    return float(np.trapezoid(curve, SHARES))


def areas(found: dict[str, Any], on: str, name: str) -> list[float]:
    return [area(run["curves"][on][name]) for run in found["runs"]]


def holds(found: dict[str, Any]) -> bool:
    """Whether integrated gradients beat attention and chance."""
    gradients = np.mean(areas(found, "network", "integrated gradients"))
    return all(gradients < np.mean(areas(found, "network", one)) for one in ("attention", "chance"))


def page(found: dict[str, Any]) -> str:
    runs = found["runs"]
    lines = [
        "# Which explanation finds the words that matter",
        "",
        f"{found['documents']} test questions of {found['corpus']} by each of {len(runs)} seeds of "
        "the default recipe. Words are taken out, the most important first; the number is the area "
        "under the mean probability that is left for the answer: lower is better, and chance is "
        "the measure.",
        "",
        "![deletion curves](explain.png)",
    ]
    for on, names in NAMES.items():
        what = "the network alone" if on == "network" else "the whole answer, both paths"
        lines += [
            "",
            f"Of {what}:",
            "",
            "| words taken out by | area | by seed |",
            "|---|---:|---|",
        ]
        for name in names:
            each = areas(found, on, name)
            said = ", ".join(f"{one:.3f}" for one in each)
            lines.append(f"| {name} | {np.mean(each):.3f} | {said} |")
    took = np.mean([run["milliseconds"] for run in runs])
    error = np.mean([run["median_error"] for run in runs])
    lines += [
        "",
        f"An explanation of a question of {np.mean([run['words'] for run in runs]):.0f} words took "
        f"{took:.0f} ms; the integral missed what it should sum to by {error:.3f} nats (median). "
        f"Machine: {found['machine']}. Measured on {found['day']} by `benchmarks/explain.py`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    colours = {"integrated gradients": "#0072b2", "together": "#009e73", "wide path": "#e69f00",
               "attention": "#d55e00", "chance": "#8a8f99"}  # fmt: skip
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (on, names) in zip(panels, NAMES.items(), strict=True):
        for name in names:
            mean = np.mean([run["curves"][on][name] for run in found["runs"]], 0)
            axes.plot(SHARES, mean, color=colours[name], label=name)
        axes.set(title=on, xlabel="share of the words taken out")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("probability left for the answer")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
