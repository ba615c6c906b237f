"""The morning page in sentences: what came, who answers, how good, what drifts; in either language.

Each takes the night and `say`, the language; without it they speak English.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .phrases import LINES, REASONS, TERMS, WORDS
from .pictures import cut
from .wording import EN, Both, Say, counts, plain, share, words_of

if TYPE_CHECKING:
    from .reports import NightReport

YESTERDAYS = {
    "yesterday": "yesterday",
    "yesterday's model on the same rows": "yesterdays_model",
}
"""Whose figures tonight's are held against, by the key of its words."""


def verdict(report: NightReport, say: Say = EN) -> str:
    """The night in one sentence: what came, who answers, how the clusters stand."""
    parts = [_what_came(report, say), _who_answers(report, say), _how_clusters_stand(report, say)]
    said = ("；" if say.language == "zh" else "; ").join(part for part in parts if part)
    return said[:1].upper() + said[1:] + ("。" if say.language == "zh" else ".")


def _what_came(report: NightReport, say: Say) -> str:
    if not report.rows_in:
        return say("v_nothing")
    if not report.documents:
        return say("v_no_document", rows=counts("row", report.rows_in))
    new = counts("new document", report.documents)
    return say("v_first" if report.number == 1 else "v_new", documents=new)


def _who_answers(report: NightReport, say: Say) -> str:
    if report.champion is None:
        return say("v_no_model")
    took = "v_took_over" if report.promoted else "v_still"
    if report.number == 1 and report.promoted:
        took = "v_first_model"
    who = say(took, champion=report.champion)
    if report.measured is None:
        return say("v_unmeasured", who=who)
    right = say("v_right", who=who, share=share(report.measured.accuracy))
    change = accuracy_change(report)
    if change is None:
        return right
    given = {"right": right, "previous": previous(report), "points": say.points(change)}
    if abs(change) < 0.0005:
        return say("v_as", **given)
    return say("v_better" if change > 0 else "v_worse", **given)


def _how_clusters_stand(report: NightReport, say: Say) -> str:
    if not report.clusters:
        return ""
    born = sum(1 for one in report.clusters if one.get("event") == "born")
    all_of = counts("cluster", len(report.clusters))
    if not born or report.number == 1:
        return say.said(all_of)
    return say("v_clusters_new", clusters=all_of, n=born)


def previous(report: NightReport) -> Both | str:
    """Whose figures tonight's are held against."""
    key = YESTERDAYS.get(report.previous_name)
    return words_of(key) if key else report.previous_name


def against_yesterday(report: NightReport, say: Say = EN) -> str:
    """How accuracy moved since the last night, in a sentence."""
    if report.measured is None:
        return "" if report.champion is None else say("nothing_moved")
    change = accuracy_change(report)
    if change is None:
        return say("no_yesterday" if report.number == 1 else "no_figures")
    then = share(number(report.previous, "accuracy") or 0.0)
    given = {"now": share(report.measured.accuracy), "then": then, "previous": previous(report)}
    if abs(change) < 0.0005:
        return say("same_accuracy", **given)
    key = "better_accuracy" if change > 0 else "worse_accuracy"
    return say(key, points=say.points(change), **given)


def against_linear(report: NightReport, say: Say = EN) -> str:
    """What the network adds to TF-IDF and a linear model, in a sentence or two."""
    if report.measured is None:
        return ""
    lead = linear_lead(report)
    if lead is None:
        return say("no_linear")
    whole, linear = share(report.measured.accuracy), share(number(report.baseline, "accuracy"))
    alone = report.measured.more.get("network_accuracy")
    network = say("network_alone", share=share(alone)) if alone is not None else ""
    if abs(lead) < 0.0005:
        return say("linear_equal", share=whole) + network
    key = "linear_behind" if lead < 0 else "linear_ahead"
    return say(key, points=say.points(lead), whole=whole, linear=linear) + network


SCORES = re.compile(r"[:;] (?:accuracy|macro-F1) \S+ against \S+ on \d+ gate rows \([^)]*\)")
"""What a decision's reason says in figures; the page says the same, rounded, beside it."""


def decided(report: NightReport, say: Say = EN) -> str:
    """What was decided about a model, without the figures that the page has beside it."""
    words = SCORES.sub("", report.outcome).strip().rstrip(".")
    if not words:
        return ""
    if say.language == "zh":
        chinese = in_chinese(words)
        # What has no Chinese is left in English, and the page says so to a screen reader.
        return chinese + "。" if chinese != words else decided(report)
    # The name of a key begins no sentence, and keeps its letters.
    key = "." in words.split()[0]
    return (f"Because {words}" if key else words[:1].upper() + words[1:]) + "."


def in_chinese(reason: str) -> str:
    """A reason of the ledger in Chinese; what has none stays as it is."""
    for pattern, chinese in REASONS:
        if found := re.fullmatch(pattern, reason, re.DOTALL):
            return chinese.format(*(in_chinese(one) for one in found.groups()))
    return reason


def term(name: str) -> Both:
    """A name that a table has in English, such as a reason of `rejects`, in both languages."""
    for pattern, chinese in TERMS:
        if found := re.fullmatch(pattern, name):
            return Both(name, chinese.format(*found.groups()))
    return Both(name, name)


def on_the_gate(promotion: Mapping[str, Any] | None, say: Say = EN) -> str:
    """The scores that the promotion compared, in a sentence; empty without a comparison."""
    champion = number(promotion, "champion_score")
    challenger = number(promotion, "challenger_score")
    if promotion is None or challenger is None:
        return ""
    name = str(promotion.get("metric") or "score")
    metric = words_of(name) if name in WORDS else name.replace("_", "-").capitalize()
    write = plain if "loss" in name else share
    given = {"metric": metric, "rows": counts("gate row", promotion.get("rows") or 0),
             "challenger": write(challenger)}  # fmt: skip
    if champion is None:
        return say("gate_one", **given)
    said = say("gate_both", champion=write(champion), **given)
    wins, losses = number(promotion, "wins"), number(promotion, "losses")
    if wins is None or losses is None:
        return said
    return said + say("gate_won", wins=f"{wins:,.0f}", losses=f"{losses:,.0f}")


def paired(promotion: Mapping[str, Any] | None, say: Say = EN) -> str:
    """Whether the champion was kept, and the paired interval, in two sentences; empty without."""
    if promotion is None:
        return ""
    key = {"promoted": "replaced", "waiting": "waiting"}.get(promotion.get("decision", ""), "kept")
    first = say(key) if promotion.get("champion") else ""
    names = ("champion_score", "challenger_score", "low", "high")
    champion, challenger, low, high = (number(promotion, name) for name in names)
    if champion is None or challenger is None or low is None or high is None:
        return first
    write = _signed if "loss" in str(promotion.get("metric")) else say.points
    sign = {value: "−" if value < 0 and write is not _signed else "" for value in (low, high)}
    lead = challenger - champion
    said = say(
        "interval_words",
        lead=("−" if lead < 0 and write is not _signed else "") + write(lead),
        low=sign[low] + write(low), high=sign[high] + write(high),
    )  # fmt: skip
    return f"{first} {said}".strip()


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def leakage(report: NightReport, say: Say = EN) -> str:
    """How many test rows nearly stand in training, and what the score is without them."""
    near, apart = report.near, report.details.get("apart")
    if "note" in near:
        return say("near_note", note=Both(near["note"], in_chinese(near["note"])))
    if not near:
        return ""
    what = say("near_what", share=f"{near['threshold']:.0%}")
    if not near["rows"]:
        return say("near_none", what=what)
    said = say(
        "near_one" if near["rows"] == 1 else "near_some",
        n=f"{near['rows']:,}", of=counts("test row", near["of"]), share=share(near["share"]),
        what=what,
    )  # fmt: skip
    if apart is None or report.measured is None:
        return said
    return said + say(
        "near_apart", apart=share(apart["accuracy"]), whole=share(report.measured.accuracy)
    )


# --- drift ----------------------------------------------------------------------------------


def drift_name(kind: str, found: Mapping[str, Any]) -> Both:
    """What tonight is held against: a night, or what the model was trained on."""
    if kind == "last_night":
        return words_of("against_night", night=found.get("night", ""))
    return words_of("against_training")


def drift_verdict(report: NightReport, say: Say = EN) -> str:
    """What drifts against last night and the training set, plainly."""
    if not report.drift:
        return say("nothing_before" if report.documents else "nothing_drifts")
    return " ".join(one_drift(kind, found, say) for kind, found in report.drift.items())


def one_drift(kind: str, found: Mapping[str, Any], say: Say = EN) -> str:
    """The same against one of them."""
    name = drift_name(kind, found)
    if not found["evidence"]:
        old, new = (counts("document", n) for n in found["documents"])
        return say("too_few", name=name, new=new, old=old)
    if not found["drifts"]:
        return say("no_drift", name=name)
    what = [say(f"short_{one}") for one in found["drifts"]]
    if len(what) == 1:
        plural = found["drifts"][0] in ("unknown", "vectors")
        return say("some_drift" if plural else "one_drifts", name=name, what=what[0])
    joined = say.listed(what[:-1]) + ("和" if say.language == "zh" else " and ") + what[-1]
    return say("some_drift", name=name, what=joined)


# --- the digest -----------------------------------------------------------------------------


def digest_text(report: NightReport, say: Say = EN) -> str:
    """Twelve plain lines, for the terminal, mail and chat."""
    quality = report.measured
    lines = {
        "night": say("d_head", pipeline=report.pipeline, night=report.night, n=report.number,
                     long=long(sum(report.seconds.values()), say)),
        "verdict": verdict(report, say),
        "rows": say("d_rows", rows=f"{report.rows_in:,}", documents=f"{report.documents:,}",
                    duplicates=f"{report.duplicates:,}", rejects=f"{report.rejects:,}"),
        "documents": say("d_documents", total=f"{report.documents_total:,}",
                         labelled=f"{report.labelled:,}"),
        "quality": say("d_quality", accuracy=share(quality.accuracy),
                       macro_f1=share(quality.macro_f1), rows=counts("test row", quality.rows))
        if quality
        else say("d_unmeasured"),
        "baseline": against_linear(report, say) or say("d_not_measured"),
        "model": _decision(report, say) or say("d_undecided"),
        "clusters": _largest_clusters(report, say) or say("d_none"),
        "changed": _what_changed(report, say),
        "drift": drift_verdict(report, say),
        "seconds": ", ".join(f"{name} {taken:.1f}" for name, taken in report.seconds.items())
        or say("d_not_measured"),
        "notes": _first_note(report, say),
    }  # fmt: skip
    if say.language == "zh":
        return "\n".join(f"{LINES[name]}：{cut(text, 300)}" for name, text in lines.items())
    return "\n".join(f"{name:<10} {cut(text, 300)}" for name, text in lines.items())


def _decision(report: NightReport, say: Say) -> str:
    """As the ledger has it, with its figures: a digest has no other place for them."""
    return in_chinese(report.outcome) if say.language == "zh" else report.outcome


def _largest_clusters(report: NightReport, say: Say) -> str:
    if not report.clusters:
        return ""
    by_size = sorted(report.clusters, key=lambda one: -(one["size"] or 0))
    names = [f"{cut(str(one['name']), 40)} ({one['size']:,})" for one in by_size[:3]]
    return say("d_clusters", n=len(by_size), names=say.listed(names))


def _what_changed(report: NightReport, say: Say) -> str:
    """Labels that changed, and what happened to clusters, in figures."""
    parts = []
    if report.changes.get("documents"):
        parts.append(say("d_moved", n=f"{report.changes['documents']:,}",
                         of=counts("document", report.changes["of"])))  # fmt: skip
    for kind, rows in report.events.items():
        if rows and kind != "grown":
            parts.append(f"{say.count('cluster', len(rows))} {say(f'event_{kind}')}")
    return say.listed(parts) or say("d_no_change")


def _first_note(report: NightReport, say: Say) -> str:
    if not report.notes:
        return say("d_usual")
    more = len(report.notes) - 1
    first = cut(str(say.said(report.notes[0])), 250)
    return first + (say("d_more", n=more) if more else "")


def long(seconds: float, say: Say = EN) -> str:
    """A stretch of time in words."""
    if seconds < 90:
        return say("seconds", n=f"{seconds:.1f}")
    minutes = round(seconds / 60)
    if minutes < 90:
        return say.count("minute", minutes)
    return say("hours", h=minutes // 60, m=minutes % 60)


# --- numbers --------------------------------------------------------------------------------


def number(figures: Mapping[str, Any] | None, name: str) -> float | None:
    """A figure, None where it is missing or no number."""
    value = (figures or {}).get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def difference(now: float, then: float | None) -> float | None:
    """What is now less what was, where both are known."""
    return None if then is None or not math.isfinite(now) else now - then


def accuracy_change(report: NightReport) -> float | None:
    """By how much the accuracy moved."""
    if report.measured is None:
        return None
    return difference(report.measured.accuracy, number(report.previous, "accuracy"))


def linear_lead(report: NightReport) -> float | None:
    """By how much the linear baseline's accuracy is above the model's."""
    linear = number(report.baseline, "accuracy")
    return None if linear is None or not report.measured else linear - report.measured.accuracy
