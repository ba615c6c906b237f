"""The morning page: finished tables -> one HTML file, and ten plain lines for the terminal.

    NightReport (filled by the flow) -> sentences and rows (here) -> report.html (the template)
                                     -> pictures.py (SVG)

Nothing is computed twice: figures arrive finished, this file only compares them and says them
in words. What a night did not have (labels, test rows, a yesterday) is said too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import Field

from .config import Config
from .pictures import (
    GREY,
    Point,
    clean,
    cluster_colours,
    confusion_picture,
    cut,
    interval_picture,
    map_picture,
    stage_bar,
)
from .plots import curves_picture, reliability_picture
from .scoring import Scores

TEMPLATE = Path(__file__).with_name("report.html")

MEASURES = (
    ("accuracy", "Accuracy", "share", True),
    ("macro_f1", "Macro-F1", "share", True),
    ("log_loss", "Log loss", "plain", False),
    ("calibration_error", "Calibration error", "plain", False),
)
"""(field, name, how it is written, whether more is better)."""

KINDS = {"language": "Language", "length": "Length", "age": "Age", "source_file": "File"}
"""Slices by what the page calls them; a declared column is called by its own name."""
MOST_BARS = 20
MOST_LOOSE = 5
"""Groups of the unassigned that are shown."""
MOST_FOLDED = 2_000
"""Characters of a long text that the page keeps behind a fold; past it, only their number."""


class ReportConfig(Config):
    """What the report shows of a night, and how much of it."""

    map_points: int = Field(default=1500, ge=0, le=5000)
    """Most documents on the map; more are sampled. 0 draws no map."""
    examples: int = Field(default=5, ge=0, le=20)
    """Documents shown per cluster, the nearest to its centre first."""
    text_length: int = Field(default=240, ge=40, le=5000)
    """Characters of a document shown at once; the rest is behind a fold."""


@dataclass(frozen=True)
class NightReport:
    """All that the page says of one night; what the night did not have is None or empty."""

    pipeline: str
    night: str
    number: int
    """1 is the pipeline's first night."""
    started: datetime
    finished: datetime
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, in the order of the night."""

    documents: int = 0
    """New tonight: rows in = documents + duplicates + rejects."""
    duplicates: int = 0
    rejects: int = 0
    labelled: int = 0
    """Of the new documents."""
    documents_total: int = 0
    reject_reasons: dict[str, int] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `batches`."""
    languages: dict[str, int] = field(default_factory=dict)
    unknown_rate: float | None = None
    """Share of tonight's tokens that the tokenizer does not know."""

    champion: str | None = None
    """The model that answers now, such as `version 3`."""
    trained: bool = False
    outcome: str = ""
    """The promotion's decision and reason, or why nothing was trained, in a sentence."""
    quality: Scores | None = None
    """Of the champion, on the test rows."""
    previous: dict[str, Any] | None = None
    """Figures to compare with, by the names of `Scores`."""
    previous_name: str = "yesterday"
    """Whose they are: yesterday's, or yesterday's model on tonight's rows, which is fairer."""
    challenger: Scores | None = None
    """Of the model trained tonight; shown where it did not become the champion."""
    baseline: dict[str, Any] | None = None
    """Accuracy and macro_f1 of TF-IDF and a linear model, on the same rows."""
    promotion: dict[str, Any] | None = None
    """Row of `promotions`; decision is `promoted` or `kept`, low and high bound the lead."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else was seen of the champion on the test rows: slices, reliability, mistakes, suspects,
    apart (its scores without near duplicates); texts are in `examples`."""
    near: dict[str, Any] = field(default_factory=dict)
    """Test documents that nearly stand in training: rows, of, share, threshold, examples; or a
    note why nobody looked."""
    curves: list[dict[str, float]] = field(default_factory=list)
    """Epochs of tonight's training."""
    checks: int = 0
    """Declared checks, one for each text."""
    failed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By model, such as `champion`: the checks it fails, each a sentence, and whether it must."""
    label_counts: dict[str, int] = field(default_factory=dict)
    """Predicted labels over the new documents."""

    clusters: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `clusters` without centroids, with previous_size (None where new)."""
    cluster_quality: dict[str, float] = field(default_factory=dict)
    """Of the clusters: silhouette, davies_bouldin, stability; with labels also cluster_accuracy and
    the like."""
    loose: list[dict[str, Any]] = field(default_factory=list)
    """The unassigned in groups of their own, the tightest first: size, keywords, exemplars."""
    examples: dict[str, str] = field(default_factory=dict)
    """Text by doc_id, for the clusters' exemplars."""
    points: list[Point] = field(default_factory=list)

    notes: list[str] = field(default_factory=list)
    """Warnings of the night, in words."""
    links: dict[str, str] = field(default_factory=dict)
    """Name -> path or URL."""

    @property
    def rows_in(self) -> int:
        """Rows read tonight."""
        return self.documents + self.duplicates + self.rejects

    @property
    def measured(self) -> Scores | None:
        """The champion's quality, if there was any row to measure it on."""
        return self.quality if self.quality and self.quality.rows else None

    @property
    def promoted(self) -> bool:
        """Whether tonight's model took over from another one, or as the first."""
        return bool(self.promotion) and self.promotion["decision"] == "promoted"


def render(report: NightReport, config: ReportConfig | None = None) -> str:
    """The whole page: one HTML file without scripts, that asks nothing of the network."""
    config = config or ReportConfig()
    page = _environment(config).from_string(TEMPLATE.read_text(encoding="utf-8"))
    quality = report.measured
    points = _spread(report.points, config.map_points)
    return page.render(
        night=report,
        verdict=verdict(report),
        against_yesterday=against_yesterday(report),
        against_linear=against_linear(report),
        linear_leads=(_linear_lead(report) or 0) >= 0.0005,
        on_the_gate=on_the_gate(report.promotion),
        comparison=comparison(report),
        margin=accuracy_margin(quality) if quality else None,
        classes=_weakest_first(quality) if quality else [],
        confusion=Markup(confusion_picture(quality.confusion, quality.labels)) if quality else "",
        interval=_interval(report.promotion),
        slices=slice_rows(report),
        reliability=_reliability(report.details),
        curves=Markup(curves_picture(report.curves)) if report.curves else "",
        leakage=leakage(report),
        labels=_bars(report.label_counts),
        cards=_cards(report, config),
        loose=report.loose[:MOST_LOOSE],
        map=Markup(map_picture(points, report.clusters)) if points else "",
        points=len(points),
        timing=Markup(stage_bar(report.seconds)) if report.seconds else "",
        total_seconds=sum(report.seconds.values()),
        links=[(name, to, safe_link(to)) for name, to in report.links.items()],
    )


def _environment(config: ReportConfig) -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every printed text is cleaned of what no reader should meet, then escaped.
        finalize=lambda value: value if isinstance(value, Markup) else _printable(value),
    )
    environment.filters.update(
        count=counted,
        share=share,
        plain=plain,
        fold=lambda text: _fold(text, config.text_length),
        short=lambda text: cut(text, config.text_length),
    )
    return environment


def _printable(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value


# --- sentences


def verdict(report: NightReport) -> str:
    """The night in one sentence: what came, who answers, how the clusters stand."""
    parts = [_what_came(report), _who_answers(report), _how_clusters_stand(report)]
    said = "; ".join(part for part in parts if part)
    return said[:1].upper() + said[1:] + "."


def _what_came(report: NightReport) -> str:
    if not report.rows_in:
        return "nothing new arrived tonight"
    if not report.documents:
        return f"{counted(report.rows_in, 'row')} arrived, none of them a new document"
    new = counted(report.documents, "new document")
    return f"{new} on the first night" if report.number == 1 else f"{new} tonight"


def _who_answers(report: NightReport) -> str:
    if report.champion is None:
        return "no classifier answers yet"
    who = f"{report.champion} {'took over' if report.promoted else 'still answers'}"
    if report.number == 1 and report.promoted:
        who = f"{report.champion} is the first model"
    if report.measured is None:
        return f"{who}, without test rows to measure it on"
    right = f"{who} and is right on {share(report.measured.accuracy)} of the test rows"
    change = _accuracy_change(report)
    if change is None:
        return right
    if abs(change) < 0.0005:
        return f"{right}, as {report.previous_name}"
    word = "better" if change > 0 else "worse"
    return f"{right}, {_points(change)} {word} than {report.previous_name}"


def _how_clusters_stand(report: NightReport) -> str:
    if not report.clusters:
        return ""
    born = sum(1 for one in report.clusters if one.get("event") == "born")
    new = f", {born} of them new" if born and report.number > 1 else ""
    return f"{counted(len(report.clusters), 'cluster')}{new}"


def against_yesterday(report: NightReport) -> str:
    """How accuracy moved since the last night, in a sentence."""
    if report.measured is None:
        return "" if report.champion is None else "No test rows were labelled, so nothing moved."
    change = _accuracy_change(report)
    if change is None:
        return (
            "This is the first night, so there is no yesterday to compare with."
            if report.number == 1
            else "The night before has no figures to compare with."
        )
    now, then = report.measured.accuracy, _number(report.previous, "accuracy") or 0.0
    if abs(change) < 0.0005:
        return f"Accuracy is {share(now)}, the same as {report.previous_name}."
    word = "better" if change > 0 else "worse"
    return (
        f"Accuracy is {_points(change)} {word} than {report.previous_name}: "
        f"{share(now)} against {share(then)}."
    )


def against_linear(report: NightReport) -> str:
    """What the network adds to TF-IDF and a linear model, in a sentence or two."""
    if report.measured is None:
        return ""
    lead = _linear_lead(report)
    if lead is None:
        return "No linear baseline was measured tonight."
    whole, linear = report.measured.accuracy, _number(report.baseline, "accuracy")
    alone = report.measured.more.get("network_accuracy")
    network = f" The network alone: {share(alone)}." if alone is not None else ""
    if abs(lead) < 0.0005:
        return f"A linear model on TF-IDF alone does as well: both {share(whole)}.{network}"
    if lead < 0:
        both = f"{share(whole)} against {share(linear)}"
        return f"The model is {_points(lead)} ahead of a linear one on TF-IDF: {both}.{network}"
    both = f"{share(linear)} against {share(whole)}"
    return (
        f"A linear model on TF-IDF, trained on the same rows, is {_points(lead)} better: {both}. "
        f"On this text, the network does not earn its cost.{network}"
    )


def on_the_gate(promotion: Mapping[str, Any] | None) -> str:
    """The scores that the promotion compared, in a sentence; empty without a comparison."""
    champion = _number(promotion, "champion_score")
    challenger = _number(promotion, "challenger_score")
    if promotion is None or challenger is None:
        return ""
    metric = str(promotion.get("metric") or "score").replace("_", "-")
    write = plain if "loss" in metric else share
    against = f"champion {write(champion)}, " if champion is not None else ""
    rows = counted(promotion.get("rows") or 0, "gate row")
    said = f"{metric} on {rows}: {against}challenger {write(challenger)}."
    return (said[:1].upper() + said[1:]).replace("-f1", "-F1")


def leakage(report: NightReport) -> str:
    """How many test rows nearly stand in training, and what the score is without them."""
    near, apart = report.near, report.details.get("apart")
    if "note" in near:
        return f"Nobody looked for near duplicates: {near['note']}."
    if not near:
        return ""
    what = f"texts that share {near['threshold']:.0%} or more of their runs of five characters"
    if not near["rows"]:
        return f"No test row is a near duplicate of a training row: {what}."
    verb = "is a near duplicate" if near["rows"] == 1 else "are near duplicates"
    of = f"{counted(near['rows'])} of {counted(near['of'], 'test row')} ({share(near['share'])})"
    said = f"{of} {verb} of training rows: {what}."
    if apart is None or report.measured is None:
        return said
    both = f"{share(apart['accuracy'])} instead of {share(report.measured.accuracy)}"
    return f"{said} Without them the accuracy is {both}."


def digest_text(report: NightReport) -> str:
    """Ten plain lines, for the terminal, mail and chat."""
    quality = report.measured
    lines = {
        "night": f"{report.pipeline} {report.night}, night {report.number}, "
        f"{_long(sum(report.seconds.values()))}",
        "verdict": verdict(report),
        "rows": f"{report.rows_in:,} in = {report.documents:,} kept + {report.duplicates:,} "
        f"duplicates + {report.rejects:,} rejects",
        "documents": f"{report.documents_total:,} in all, {report.labelled:,} of tonight's "
        "labelled",
        "quality": f"accuracy {share(quality.accuracy)}, macro-F1 {share(quality.macro_f1)}, on "
        f"{counted(quality.rows, 'test row')}"
        if quality
        else "not measured: no classifier, or no test rows",
        "baseline": against_linear(report) or "not measured",
        "model": report.outcome or "nothing was decided",
        "clusters": _largest_clusters(report) or "none",
        "seconds": ", ".join(f"{name} {taken:.1f}" for name, taken in report.seconds.items())
        or "not measured",
        "notes": _first_note(report),
    }
    return "\n".join(f"{name:<10} {cut(text, 300)}" for name, text in lines.items())


def _largest_clusters(report: NightReport) -> str:
    if not report.clusters:
        return ""
    by_size = sorted(report.clusters, key=lambda one: -(one["size"] or 0))
    names = ", ".join(f"{cut(str(one['name']), 40)} ({one['size']:,})" for one in by_size[:3])
    return f"{len(by_size)}; the largest: {names}"


def _first_note(report: NightReport) -> str:
    if not report.notes:
        return "nothing unusual"
    more = len(report.notes) - 1
    return cut(report.notes[0], 250) + (f" (and {more} more in the report)" if more else "")


# --- rows of the page's tables


def comparison(report: NightReport) -> list[dict[str, str]]:
    """One row per measure: tonight, yesterday and the change, linear baseline, challenger."""
    if report.measured is None:
        return []
    rows = []
    for name, title, style, more_is_better in MEASURES:
        write = share if style == "share" else plain
        now = getattr(report.measured, name)
        change = _difference(now, _number(report.previous, name))
        rows.append({
            "title": title,
            "note": "" if more_is_better else "less is better",
            "now": write(now),
            "then": write(_number(report.previous, name)),
            "change": _signed(change, style),
            "tone": _tone(change, more_is_better),
            "linear": write(_number(report.baseline, name)),
            "challenger": write(getattr(report.challenger, name, None)),
        })  # fmt: skip
    return rows


def slice_rows(report: NightReport) -> list[dict[str, Any]]:
    """One row per slice; `tone` is worse where the whole interval lies below the accuracy of all.

    The first row of a kind carries its name.
    """
    rows: list[dict[str, Any]] = []
    last = ""
    for one in report.details.get("slices", []) if report.measured else []:
        kind = KINDS.get(one["kind"], one["kind"])
        below = report.measured is not None and one["high"] < report.measured.accuracy
        rows.append({
            "kind": "" if one["kind"] == last else kind,
            "name": one["name"],
            "rows": one["rows"],
            "accuracy": share(one["accuracy"]),
            "interval": f"{share(one['low'])} to {share(one['high'])}",
            "macro_f1": share(one["macro_f1"]),
            "tone": "worse" if below else "",
        })  # fmt: skip
        last = one["kind"]
    return rows


def _reliability(details: Mapping[str, Any]) -> Markup | str:
    found = details.get("reliability")
    if not found:
        return ""
    errors = (found["error_before"], found["error_after"])
    return Markup(reliability_picture(found["before"], found["after"], errors))


def accuracy_margin(quality: Scores) -> float | None:
    """Half of the 95% interval around the accuracy (normal approximation); None without rows."""
    if not quality.rows:
        return None
    return 1.96 * math.sqrt(quality.accuracy * (1 - quality.accuracy) / quality.rows)


def _weakest_first(quality: Scores) -> list[dict[str, Any]]:
    return sorted(quality.per_class, key=lambda one: (one["f1"], -one["support"], one["label"]))


def _bars(counts: Mapping[str, int]) -> dict[str, Any]:
    """The most frequent names with the share of the longest bar; what is left, as one number."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], str(one[0])))
    total, longest = sum(counts.values()), max(counts.values(), default=0) or 1
    shown = [
        {"name": name, "count": count, "share": count / (total or 1), "width": count / longest}
        for name, count in ordered[:MOST_BARS]
    ]
    left = ordered[MOST_BARS:]
    return {"shown": shown, "left": len(left), "left_count": sum(count for _, count in left)}


def _cards(report: NightReport, config: ReportConfig) -> list[dict[str, Any]]:
    """The clusters, the largest first, with all that a card says."""
    colours = cluster_colours(report.clusters)
    by_size = sorted(report.clusters, key=lambda one: -(one["size"] or 0))
    return [
        {
            "id": one["cluster_id"],
            "name": one["name"],
            "size": one["size"] or 0,
            "colour": colours.get(one["cluster_id"], GREY),
            "event": _event(one, report),
            "cohesion": one.get("cohesion"),
            "keywords": list(one.get("keywords") or []),
            "texts": [
                report.examples[doc_id]
                for doc_id in one.get("exemplars") or []
                if doc_id in report.examples
            ][: config.examples],
        }
        for one in by_size
    ]


def _event(cluster: Mapping[str, Any], report: NightReport) -> str:
    """What happened to a cluster tonight, and to its size, in a few words."""
    size, before = cluster["size"] or 0, cluster.get("previous_size")
    if report.number == 1:
        return ""
    if before is None:
        return "new tonight" if cluster.get("event") in (None, "born") else str(cluster["event"])
    moved = "unchanged" if size == before else f"{size - before:+,} tonight"
    moved = moved.replace("-", "\u2212")
    event = cluster.get("event")
    return moved if event in (None, "born", "continued") else f"{event}, {moved}"


def _interval(promotion: Mapping[str, Any] | None) -> Markup | str:
    numbers = [
        _number(promotion, name) for name in ("champion_score", "challenger_score", "low", "high")
    ]
    champion, challenger, low, high = numbers
    if champion is None or challenger is None or low is None or high is None:
        return ""
    return Markup(interval_picture(challenger - champion, low, high))


def _spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points, evenly taken."""
    if len(points) <= most:
        return list(points)
    return [points[index * len(points) // most] for index in range(most)]


def _fold(text: str, length: int) -> dict[str, Any]:
    """A text as the page shows it: its head, what is behind a fold, and what is left out."""
    rest = text[length:]
    if len(rest) <= 40:
        return {"head": text, "rest": "", "left_out": 0}
    left_out = len(rest) - MOST_FOLDED
    return {"head": text[:length], "rest": rest[:MOST_FOLDED], "left_out": max(0, left_out)}


SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def safe_link(to: str) -> str | None:
    """The address where a browser may go: http, https, or a path; nothing that runs."""
    to = re.sub(r"[\t\r\n]", "", clean(to)).strip()  # browsers drop them, too
    if SCHEME.match(to) and not to.lower().startswith(("http://", "https://")):
        return None
    return to or None


# --- numbers in words


def counted(number: int, noun: str = "") -> str:
    """`1 document`, `4,512 documents`, or the number alone."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}" if noun else f"{number:,}"


def share(value: float | None) -> str:
    """0.8912 -> `89.1%`; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def plain(value: float | None) -> str:
    """Three decimals; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _points(change: float) -> str:
    written = f"{abs(change) * 100:.1f}"
    return f"{written} point" if written == "1.0" else f"{written} points"


def _signed(change: float | None, style: str) -> str:
    if change is None:
        return "–"
    written = f"{change * 100:+.1f} points" if style == "share" else f"{change:+.3f}"
    if not re.search("[1-9]", written):
        return "no change"
    return written.replace("-", "\u2212")


def _tone(change: float | None, more_is_better: bool) -> str:
    if change is None or abs(change) < 0.0005:
        return ""
    return "better" if (change > 0) == more_is_better else "worse"


def _number(figures: Mapping[str, Any] | None, name: str) -> float | None:
    value = (figures or {}).get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def _difference(now: float, then: float | None) -> float | None:
    return None if then is None or not math.isfinite(now) else now - then


def _accuracy_change(report: NightReport) -> float | None:
    if report.measured is None:
        return None
    return _difference(report.measured.accuracy, _number(report.previous, "accuracy"))


def _linear_lead(report: NightReport) -> float | None:
    """By how much the linear baseline's accuracy is above the model's."""
    linear = _number(report.baseline, "accuracy")
    return None if linear is None or not report.measured else linear - report.measured.accuracy


def _long(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minutes"
    return f"{minutes // 60} h {minutes % 60} min"
