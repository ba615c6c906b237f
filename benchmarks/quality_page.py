"""quality.md and its pictures, made from the result files of quality.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from corpora import table
from quality_plan import GOALS, LINEAR, NIGHTSHIFT, SAME, SLOW, TABLES, Table, jobs_of, plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NOT_RUN = "not run"


@dataclass(frozen=True)
class Results:
    """The result files under a folder."""

    folder: Path

    def rows(self, where: Table, corpus: str, name: str) -> list[dict[str, Any]]:
        """The results of one cell, one per seed that has run."""
        files = (job.file(self.folder) for job in jobs_of(where, corpus, name))
        return [json.loads(one.read_text(encoding="utf-8")) for one in files if one.exists()]

    def all(self) -> list[dict[str, Any]]:
        """Every result that is in the plan."""
        files = (job.file(self.folder) for job in plan(3))
        return [json.loads(one.read_text(encoding="utf-8")) for one in files if one.exists()]


def values(rows: list[dict[str, Any]], key: str) -> list[float]:
    """A figure over the seeds, without those that do not tell it."""
    return [row[key] for row in rows if row.get(key) is not None]


def figure(rows: list[dict[str, Any]], key: str, form: str = ".4f") -> str:
    """Mean ± standard deviation over the seeds; the mean alone of one seed."""
    found = values(rows, key)
    if not found:
        return NOT_RUN if not rows else "-"
    spread = f" ± {stdev(found):{form}}" if len(found) > 1 else ""
    return f"{mean(found):{form}}{spread}"


def standard_error(accuracy: float, test_rows: int) -> float:
    """Of a test accuracy, for the rows that happened to be drawn: sqrt(p (1 - p) / n)."""
    return (accuracy * (1 - accuracy) / test_rows) ** 0.5


def verdict(found: list[float], floor: float) -> str:
    """Whether the mean over the seeds reaches a floor."""
    return NOT_RUN if not found else "holds" if mean(found) >= floor else "MISSED"


# --- the page -------------------------------------------------------------------------------


def write_whole(file: Path, text: str) -> None:
    """Whole or not at all: half a file would count as a job that is done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def write_page(out: Path) -> int:
    """quality.md and its pictures, from the result files."""
    results = Results(out)
    write_whole(out / "quality.md", page(results))
    draw(results, out / "quality")
    print(f"{out / 'quality.md'}: {len(results.all())} of {len(plan(3))} jobs have run")
    return 0


def page(results: Results) -> str:
    """The results as Markdown."""
    done = results.all()
    return "\n".join([
        "# How good", "",
        "`python benchmarks/quality.py --data DIR`. Means over three seeds ± their standard",
        f"deviation; {', '.join(sorted(SLOW))}: one seed. A seed changes the training only, never",
        "the test rows. Everything is chosen on validation rows; each job reads the test rows",
        f"once, at its end. {len(done)} of {len(plan(3))} jobs have run.", "",
        *(f"- {key}: {said}" for key in ("machine", "day")
          for said in sorted({row[key] for row in done})),
        "", "## Goals", "", *_goals(results), "",
        "Beside the better linear model, less than one standard error of the test rows below it:",
        "", *_beside_linear(results), "",
        "## All corpora: test accuracy", "", TABLES[0].about, "", *_matrix(results), "",
        "![Test accuracy by corpus](quality/main.svg)", "",
        "## The two paths of the default recipe", "", *_paths(results),
        *(line for where in TABLES for line in _section(where, results)),
    ])  # fmt: skip


def _goals(results: Results) -> list[str]:
    said = {"accuracy": "blend", "network_accuracy": "network alone"}
    return table(
        ["corpus", "of", "goal", "mean", "seeds", "verdict"],
        [
            [goal.corpus, said[goal.key], f"{goal.floor:.3f}", figure(rows, goal.key),
             str(len(rows)),
             verdict(values(rows, goal.key), goal.floor)]
            for goal in GOALS
            for rows in [results.rows(TABLES[0], goal.corpus, NIGHTSHIFT)]
        ],
    )  # fmt: skip


def _beside_linear(results: Results) -> list[str]:
    lines = []
    for corpus in TABLES[0].corpora:
        peers = [results.rows(TABLES[0], corpus, name) for name in LINEAR]
        best = max((rows for rows in peers if rows), key=lambda one: mean(values(one, "accuracy")),
                   default=[])  # fmt: skip
        own = results.rows(TABLES[0], corpus, NIGHTSHIFT)
        said = [figure(best, "accuracy"), NOT_RUN, figure(own, "accuracy"), NOT_RUN]
        if best:
            accuracy = mean(values(best, "accuracy"))
            error = standard_error(accuracy, best[0]["test_rows"])
            said[1], said[3] = f"{error:.4f}", verdict(values(own, "accuracy"), accuracy - error)
        lines.append([corpus, *said])
    return table(["corpus", "linear", "standard error", "blend", "verdict"], lines)


def _matrix(results: Results) -> list[str]:
    where = TABLES[0]
    return table(
        ["recipe", *where.corpora],
        [
            [name, *(_cell(results, where, corpus, name) for corpus in where.corpora)]
            for name in where.recipes
        ],
    )


def _cell(results: Results, where: Table, corpus: str, name: str) -> str:
    if (corpus, name) in SAME:
        return "as svm_words"
    return figure(results.rows(where, corpus, name), "accuracy")


def _paths(results: Results) -> list[str]:
    keys = ("accuracy", "network_accuracy", "wide_accuracy", "validation_accuracy", "weight",
            "calibration_error")  # fmt: skip
    return table(
        ["corpus", "blend", "network", "wide", "blend, validation", "weight of the network",
         "calibration error"],
        [
            [corpus, *(figure(results.rows(TABLES[0], corpus, NIGHTSHIFT), key) for key in keys)]
            for corpus in TABLES[0].corpora
        ],
    )  # fmt: skip


def _section(where: Table, results: Results) -> Iterator[str]:
    """All figures of a table, corpus by corpus."""
    yield from ("", f"## {where.name.capitalize()}: all figures", "", where.about, "")
    yield "Seconds are CPU seconds, of training and of the whole process; documents/s are answers"
    yield "per CPU second. With one thread a quiet machine takes as long by the clock."
    if where.name in ("ablation", "family"):
        yield from ("", f"![{where.about}](quality/{where.name}.svg)")
    for corpus in where.corpora:
        yield from ("", f"### {where.name}: {corpus}", "")
        yield from table(
            ["recipe", "accuracy", "network alone", "macro-F1", "validation", "training s", "all s",
             "documents/s", "parameters", "seeds"],
            [_line(name, results.rows(where, corpus, name)) for name in where.recipes
             if (corpus, name) not in SAME],
        )  # fmt: skip
    yield ""


def _line(name: str, rows: list[dict[str, Any]]) -> list[str]:
    keys = ("accuracy", "network_accuracy", "macro_f1", "validation_accuracy")
    return [
        name, *(figure(rows, key) for key in keys), figure(rows, "train_cpu_seconds", ".1f"),
        *(_mean(rows, key) for key in ("cpu_seconds", "documents_per_second", "parameters")),
        str(len(rows)),
    ]  # fmt: skip


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    return f"{mean(values(rows, key)):,.0f}" if rows else NOT_RUN


# --- pictures -------------------------------------------------------------------------------


def draw(results: Results, folder: Path) -> None:
    """The pictures of the page, each as SVG and PNG; what has not run leaves a gap."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results make the same bytes, or each page would be a change to commit.
    mpl.rcParams |= {"svg.hashsalt": "nightshift", "font.size": 9, "axes.spines.top": False,
                     "axes.spines.right": False}  # fmt: skip
    drawn = {
        "main": bars(results, TABLES[0]),
        "family": against_seconds(results, TABLES[1]),
        "ablation": dots(results, TABLES[2]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        picture.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")


def bars(results: Results, where: Table) -> Figure:
    """Test accuracy of every recipe, a group per corpus; whiskers are standard deviations."""
    from matplotlib.figure import Figure as New

    from nightshift.pictures import PALETTE

    picture = New(figsize=(10, 4))
    axes = picture.add_subplot()
    width = 0.8 / len(where.recipes)
    for number, (name, colour) in enumerate(zip(where.recipes, PALETTE, strict=False)):
        found = [
            (place + (number + 0.5) * width - 0.4, *_spread(rows, "accuracy"))
            for place, corpus in enumerate(where.corpora)
            if (rows := results.rows(where, corpus, name))
        ]
        x, means, spreads = zip(*found, strict=True) if found else ((), (), ())
        axes.bar(x, means, 0.9 * width, yerr=spreads, color=colour, capsize=1.5, label=name)
    axes.set(ylabel="test accuracy (not from 0)", ylim=_room(axes.patches))
    axes.set_xticks(range(len(where.corpora)), where.corpora)
    axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return picture


def _room(patches: Iterable[Any]) -> tuple[float, float]:
    """Limits that show differences; accuracies far from 0 would else be bars of one height."""
    heights = [one.get_height() for one in patches] or [0.0]
    return max(0.0, min(heights) - 0.05), min(1.0, max(heights) + 0.02)


def _spread(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    found = values(rows, key)
    # No whisker, rather than one of length 0.
    return mean(found), stdev(found) if len(found) > 1 else float("nan")


def dots(results: Results, where: Table) -> Figure:
    """Accuracy of the network alone per option, beside the default's."""
    from matplotlib.figure import Figure as New

    from nightshift.pictures import PALETTE

    names = [*reversed(where.recipes)]
    picture = New(figsize=(10, 0.22 * len(names) + 1))
    every = picture.subplots(1, len(where.corpora), sharey=True)
    for axes, corpus in zip(every, where.corpora, strict=True):
        for place, name in enumerate(names):
            if not values(rows := results.rows(where, corpus, name), "network_accuracy"):
                continue
            found, spread = _spread(rows, "network_accuracy")
            axes.errorbar(found, place, xerr=spread, fmt="o", color=PALETTE[0], markersize=4)
            if name == "default":
                axes.axvline(found, color=PALETTE[0], linewidth=0.8, linestyle=":")
        axes.set(title=corpus, xlabel="test accuracy of the network alone")
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", alpha=0.3)
    return picture


def against_seconds(results: Results, where: Table) -> Figure:
    """Accuracy of the network alone against the seconds of its training."""
    from matplotlib.figure import Figure as New

    from nightshift.pictures import PALETTE

    picture = New(figsize=(6, 4))
    axes = picture.add_subplot()
    for number, name in enumerate(where.recipes):
        rows = results.rows(where, where.corpora[0], name)
        key = "accuracy" if name in SLOW else "network_accuracy"
        if not values(rows, key):
            continue
        high, spread = _spread(rows, key)
        wide, sideways = _spread(rows, "train_cpu_seconds")
        axes.errorbar(wide, high, yerr=spread, xerr=sideways, fmt="o",
                      color=PALETTE[number % len(PALETTE)])  # fmt: skip
        axes.annotate(name, (wide, high), xytext=(6, 4), textcoords="offset points")
    axes.set(xlabel="CPU seconds of training", ylabel="test accuracy of the network alone")
    axes.set_title(where.corpora[0])
    axes.grid(alpha=0.3)
    return picture
