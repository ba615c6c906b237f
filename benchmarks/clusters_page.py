"""The page and the picture of benchmarks/clusters.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from corpora import table
from quality_page import write_whole

from nightshift.pictures import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGREE = ("accuracy", "nmi", "ari", "purity", "v_measure")
COLUMNS = {
    "unlabelled": (*AGREE, "wall_seconds"),
    "identity": (
        "kept_least", "kept_change", "kept_all", "inertia", "unassigned", "clusters", "changes",
        "seconds",
    ),
    "births": ("born", "other_births", "purity", "holds", "seconds"),
    "some_labels": (*AGREE, "seconds"),
    "loop": ("classes", "macro_f1", "macro_f1_among_all", "others_abstained", "seconds"),
}  # fmt: skip
FLOORS = {"purity": 0.8, "holds": 0.7}
"""What a birth is asked to reach."""
WAYS = (
    "nightshift", "network", "retrained", "start", "vectors", "bertopic", "from_scratch", "tfidf",
    "lsa",
)  # fmt: skip
"""From left to right; one colour in all pictures."""
Found = dict[str, list[dict[str, Any]]]
"""The measurements of all seeds, by kind/corpus/trial."""


def write_page(found: dict[str, dict[str, Any]], about: str, file: Path) -> None:
    """Results as Markdown and as a picture, beside their JSON.

    Args: measurements by kind/corpus/trial-seed; what the benchmark says of itself.
    """
    seeds: Found = {}
    for name, one in sorted(found.items()):
        seeds.setdefault(name.rsplit("-", 1)[0], []).append(one)
    lines = ["# Clusters that live", "", about.split("\n\n", 2)[2].strip(), "",
             *sorted({f"- {one['machine']}, {one['day']}" for one in found.values()}), "",
             "![Accuracy without labels, identity and births](clusters.svg)"]  # fmt: skip
    for kind, columns in COLUMNS.items():
        lines += ["", f"## {kind.replace('_', ' ').capitalize()}", ""]
        lines += table(
            ["corpus", "trial", *columns, "seeds"],
            [[*key.split("/")[1:], *(_figure(rows, column) for column in columns), str(len(rows))]
             for key, rows in seeds.items() if key.startswith(kind)],
        )  # fmt: skip
    write_whole(file.with_suffix(".md"), "\n".join([*lines, ""]))
    _draw(seeds, file)


def _figure(rows: list[dict[str, Any]], column: str) -> str:
    values = [float(row[column]) for row in rows if column in row]
    if not values:
        return "-"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def _draw(seeds: Found, file: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("Agg")
    # The same results make the same bytes, or each page would be a change to commit.
    mpl.rcParams |= {"svg.hashsalt": "nightshift", "font.size": 9, "axes.spines.top": False,
                     "axes.spines.right": False}  # fmt: skip
    picture = Figure(figsize=(10, 7.2))
    above, below = picture.subfigures(2, 1, hspace=0.08)
    _bars(above.subplots(), seeds, "unlabelled", "accuracy", "accuracy without labels")
    left, right = below.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    _bars(left, seeds, "identity", "kept_all", "same cluster after ten nights")
    _births(right, seeds)
    picture.savefig(file.with_suffix(".svg"), metadata={"Date": None}, bbox_inches="tight")
    picture.savefig(file.with_suffix(".png"), dpi=150, bbox_inches="tight")


def _trials(seeds: Found, kind: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Corpus, trial and measurements."""
    for key, rows in seeds.items():
        if key.startswith(f"{kind}/"):
            _, corpus, trial = key.split("/")
            yield corpus, trial, rows


def _bars(axes: Axes, seeds: Found, kind: str, column: str, said: str) -> None:
    """A group of bars per corpus, one for each trial; whiskers are standard deviations."""
    corpora = list(dict.fromkeys(corpus for corpus, _, _ in _trials(seeds, kind)))
    there = {trial for _, trial, _ in _trials(seeds, kind)}
    trials = [way for way in WAYS if way in there]
    width = 0.8 / max(1, len(trials))
    for number, trial in enumerate(trials):
        found = [
            (corpora.index(corpus) + (number + 0.5) * width - 0.4, [row[column] for row in rows])
            for corpus, own, rows in _trials(seeds, kind)
            if own == trial
        ]
        heights = [mean(values) for _, values in found]
        # No whisker, rather than one of length 0.
        spread = [stdev(values) if len(values) > 1 else float("nan") for _, values in found]
        axes.bar([x for x, _ in found], heights, 0.9 * width, yerr=spread, capsize=1.5,
                 color=_colour(trial), label=trial)  # fmt: skip
    axes.set(ylabel=said, ylim=(0, 1.02))
    axes.set_xticks(range(len(corpora)), corpora)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)


def _colour(way: str) -> str:
    # The network is what the program clusters by; the last two never meet those of their colour.
    alike = {"network": "nightshift", "tfidf": "network", "lsa": "retrained"}
    return PALETTE[WAYS.index(alike.get(way, way))]


def _births(axes: Axes, seeds: Found) -> None:
    """A dot per trial and seed: how pure a newborn cluster is, and how much of its topic it has."""
    there = {trial.split()[-1] for _, trial, _ in _trials(seeds, "births")}
    for way in reversed([way for way in WAYS if way in there]):
        rows = [row for _, trial, found in _trials(seeds, "births") if trial.endswith(way)
                for row in found]  # fmt: skip
        axes.plot([row["holds"] for row in rows], [row["purity"] for row in rows], "o",
                  markersize=4, color=_colour(way), label=way)  # fmt: skip
    axes.axhline(FLOORS["purity"], color="grey", linewidth=0.8, linestyle=":")
    axes.axvline(FLOORS["holds"], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="share of the new topic in the newborn cluster", ylabel="its purity",
             xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))  # fmt: skip
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
