"""What stands on the morning page, table by table: rows, cards and lists, ready to be written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from markupsafe import Markup

from . import sentences
from .identity import UNASSIGNED
from .phrases import WORDS
from .pictures import GREY, Point, clean, cluster_colours, cut, interval_picture
from .plots import reliability_picture, spark_picture
from .scoring import Scores
from .sentences import difference, number
from .wording import Both, both, plain, share, signed_points, words_of

if TYPE_CHECKING:
    from .reports import NightReport, ReportConfig

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
MOST_SHIFTS = 12
MOST_WORDS, MOST_TOLD = 200, 20
"""Words of an explained answer that are shown, and those of them whose numbers are."""
QUEUES = {"unsure": "unsure", "surprising": "surprising", "disagreeing": "against",
          "suspected": "suspects"}  # fmt: skip
"""Lists of what deserves a look, and the review page's queues of the same."""


def comparison(report: NightReport) -> list[dict[str, Any]]:
    """One row per measure: tonight, yesterday and the change, linear baseline, challenger."""
    if report.measured is None:
        return []
    rows = []
    for name, title, style, more_is_better in MEASURES:
        write = share if style == "share" else plain
        now = getattr(report.measured, name)
        change = difference(now, number(report.previous, name))
        rows.append({
            "key": name,
            "title": title,
            "note": "" if more_is_better else "less is better",
            "now": write(now),
            "then": write(number(report.previous, name)),
            "change": _signed(change, style),
            "moved": _moved(change, style),
            "tone": _tone(change, more_is_better),
            "linear": write(number(report.baseline, name)),
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
        made = one["kind"] in ("length", "age")  # other names are people's
        below = report.measured is not None and one["high"] < report.measured.accuracy
        rows.append({
            "kind": "" if one["kind"] == last else kind,
            "key": f"kind_{one['kind']}" if one["kind"] in KINDS else "",
            "name": sentences.term(one["name"]) if made else one["name"],
            "rows": one["rows"],
            "accuracy": share(one["accuracy"]),
            "interval": words_of("from_low", low=share(one["low"]), high=share(one["high"])),
            "macro_f1": share(one["macro_f1"]),
            "tone": "worse" if below else "",
        })  # fmt: skip
        last = one["kind"]
    return rows


def reliability(details: Mapping[str, Any]) -> Markup | str:
    """The picture of calibration, where it was measured."""
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


def weakest_first(quality: Scores) -> list[dict[str, Any]]:
    """Scores by class."""
    return sorted(quality.per_class, key=lambda one: (one["f1"], -one["support"], one["label"]))


def bars(counts: Mapping[str, int]) -> dict[str, Any]:
    """The most frequent names with the share of the longest bar; what is left, as one number."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], str(one[0])))
    total, longest = sum(counts.values()), max(counts.values(), default=0) or 1
    shown = [
        {"name": name, "count": count, "share": count / (total or 1), "width": count / longest}
        for name, count in ordered[:MOST_BARS]
    ]
    left = ordered[MOST_BARS:]
    return {"shown": shown, "left": len(left), "left_count": sum(count for _, count in left)}


def cards(report: NightReport, config: ReportConfig) -> list[dict[str, Any]]:
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
            "texts": _texts(report, one)[: config.examples],
        }
        for one in by_size
    ]


def _texts(report: NightReport, cluster: Mapping[str, Any]) -> list[str]:
    shown = cluster.get("exemplars") or []
    return [report.examples[doc_id] for doc_id in shown if doc_id in report.examples]


def _event(cluster: Mapping[str, Any], report: NightReport) -> Both | str:
    """What happened to a cluster tonight, and to its size, in a few words."""
    size, before = cluster["size"] or 0, cluster.get("previous_size")
    if report.number == 1:
        return ""
    event = str(cluster.get("event") or "born")
    known = words_of(f"event_{event}") if f"event_{event}" in WORDS else event
    if before is None:
        return words_of("new_tonight") if event == "born" else known
    change = f"{size - before:+,}".replace("-", "\u2212")
    moved = words_of("unchanged") if size == before else words_of("by_tonight", change=change)
    if event in ("born", "continued"):
        return moved
    return both(lambda say: f"{say.said(known)}, {say.said(moved)}")


def events(report: NightReport) -> list[dict[str, Any]]:
    """The same of all clusters to which anything happened, by kind, each with a document of it."""
    colours = cluster_colours(report.clusters)
    names = {one["cluster_id"]: str(one["name"]) for one in [*report.clusters, *report.ended]}
    found: list[dict[str, Any]] = []
    for kind, rows in report.events.items():
        for one in rows:
            parents = [cut(str(names.get(own, own)), 60) for own in one.get("parents") or []]
            heirs = [cut(str(names.get(own, own)), 60) for own in one.get("heirs") or []]
            before, size = one.get("previous_size"), one["size"] or 0
            about: Both | str = ""
            if kind == "split" and parents:
                about = words_of("from_parents", names=", ".join(parents))
            if kind == "merged" and parents:
                about = words_of("took_in", names=", ".join(parents))
            if kind == "ended":
                about = (
                    words_of("went_to", names=", ".join(heirs))
                    if heirs
                    else words_of("went_nowhere")
                )
            if kind == "grown":
                about = words_of("by_tonight", change=f"{size - (before or 0):+,}")
            found.append({
                "kind": kind, "id": one["cluster_id"], "name": one["name"], "size": size,
                "colour": colours.get(one["cluster_id"], GREY), "about": about,
                "keywords": list(one.get("keywords") or []),
                "text": next(iter(_texts(report, one)), ""),
            })  # fmt: skip
    return found


def shifts(report: NightReport) -> dict[str, Any] | None:
    """The largest shifts of the label mix, each with its two causes."""
    rows = [row for row in report.shift.get("rows", []) if abs(row["shift"]) >= 0.0005]
    return {**report.shift, "rows": rows[:MOST_SHIFTS]} if report.shift else None


def drift(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison, as the page has it: a sentence, its evidence, words."""
    rows = []
    for one in found["evidence"]:
        write = signed_points if one["kind"] in ("words", "unknown", "confidence") else plain
        rows.append({
            "kind": one["kind"], "value": write(one["value"]), "limit": write(one["limit"]),
            "before": share(one["before"]), "after": share(one["after"]), "drifts": one["drifts"],
        })  # fmt: skip
    return {
        "name": sentences.drift_name(kind, found),
        "sentence": both(lambda say: sentences.one_drift(kind, found, say)),
        "rows": rows,
        "arrived": found["arrived"],
        "vanished": found["vanished"],
    }


def look(report: NightReport, review_url: str | None = None) -> list[dict[str, Any]]:
    """What deserves a look: a list of documents each, with what tells them from others.

    A list without a document stays, where its like was looked for: that there is none is worth
    knowing. Rows lead to their question on the review page, where its address is declared.
    """
    columns = {"unsure": ("margin",), "surprising": ("distance",),
               "disagreeing": ("mostly", "purity")}  # fmt: skip
    found: list[dict[str, Any]] = []
    for kind, titles in columns.items():
        rows = []
        for one in report.standouts.get(kind, []):
            cells = {
                "margin": plain(one.get("margin")), "distance": plain(one.get("distance")),
                "mostly": one.get("usual") or "", "purity": share(one.get("purity")),
            }  # fmt: skip
            rows.append({
                "doc_id": one["doc_id"], "label": one["label"] or "–",
                "cluster": _cluster_of(one["cluster_id"], report),
                "cells": [cells[title] for title in titles],
            })  # fmt: skip
        found.append({"kind": kind, "titles": titles, "rows": rows})
    if "suspects" in report.details:
        rows = [
            {"doc_id": one["doc_id"], "label": one["label"], "cluster": None,
             "cells": [one["suggested"], plain(one["margin"])]}
            for one in report.details["suspects"][:12]
        ]  # fmt: skip
        found.append({"kind": "suspected", "titles": ("perhaps", "margin"), "rows": rows})
    for one in found:
        for row in one["rows"]:
            row["text"] = report.examples.get(row["doc_id"], "")
            row["link"] = question(review_url, QUEUES[one["kind"]], row["doc_id"])
    return found if report.standouts or any(one["rows"] for one in found) else []


def _cluster_of(cluster_id: str | None, report: NightReport) -> Both | str:
    if cluster_id == UNASSIGNED:
        return words_of("unassigned")
    names = {one["cluster_id"]: str(one["name"]) for one in report.clusters}
    return names.get(cluster_id or "", cluster_id or "–")


def question(review_url: str | None, queue: str, doc_id: str) -> str | None:
    """Where the review page asks about a document; None where nobody said where the page is."""
    if review_url is None:
        return None
    return f"{review_url.rstrip('/')}/review?{urlencode({'queue': queue, 'doc': clean(doc_id)})}"


def explained(one: Mapping[str, Any]) -> dict[str, Any]:
    """An explanation as runs of text: a word with its shade and figures, or what is between; and
    the strongest words as a table, for whoever rests on nothing: keys, fingers, paper."""
    words = one["words"][:MOST_WORDS]
    top = max((abs(word["together"]) for word in words), default=0.0) or 1.0
    most = max((word["attention"] or 0.0 for word in words), default=0.0) or 1.0
    runs, last = [], 0
    for word in words:
        shade = round(9 * abs(word["together"]) / top)
        side = "p" if word["together"] > 0 else "m"
        figures = _in_figures(word)
        given = {"so_far" if name == "probability" else name: value
                 for name, value in figures.items() if name != "text"}  # fmt: skip
        runs.append({
            "gap": one["text"][last : word["start"]], "text": word["text"],
            "about": words_of("word_about", **given),
            "shade": f"{side}{shade}" if shade else "",
            "attention": round(4 * (word["attention"] or 0.0) / most),
        })  # fmt: skip
        last = word["end"]
    chances = [word["probability"] for word in words if word["probability"] is not None]
    strongest = sorted(words, key=lambda word: -abs(word["together"]))[:MOST_TOLD]
    return {
        "doc_id": one["doc_id"], "label": one["label"], "probability": one["probability"],
        "abstained": one["abstained"], "runs": runs, "text": one["text"],
        "left_out": max(0, len(one["words"]) - MOST_WORDS),
        "table": [_in_figures(word) for word in strongest],
        "words": len(words), "untold": len(words) > MOST_TOLD,
        "spark": Markup(spark_picture(chances)) if len(chances) > 1 else "",
    }  # fmt: skip


def _in_figures(word: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a word, written; a dash for what is not."""
    signed = {name: "–" if word[name] is None else f"{word[name]:+.3f}".replace("-", "\u2212")
              for name in ("network", "wide")}  # fmt: skip
    return {
        "text": word["text"], "together": f"{word['together']:+.1%}".replace("-", "\u2212"),
        "network": signed["network"], "linear": signed["wide"],
        "attention": share(word["attention"]), "probability": share(word["probability"]),
    }  # fmt: skip


def interval(promotion: Mapping[str, Any] | None) -> Markup | str:
    """The picture of the challenger's lead, where both were scored."""
    numbers = [
        number(promotion, name) for name in ("champion_score", "challenger_score", "low", "high")
    ]
    champion, challenger, low, high = numbers
    if champion is None or challenger is None or low is None or high is None:
        return ""
    return Markup(interval_picture(challenger - champion, low, high))


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points, evenly taken."""
    if len(points) <= most:
        return list(points)
    return [points[index * len(points) // most] for index in range(most)]


def fold(text: str, length: int) -> dict[str, Any]:
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


def _moved(change: float | None, style: str) -> Both:
    written = _signed(change, style)
    if written == "no change":
        return words_of("no_change")
    return Both(written, written.replace("points", "个百分点"))


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
