"""promote: the challenger becomes champion only if it is better on the gate rows."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from nightshift.corpus import labelled_sides
from nightshift.scoring import confusion, f1_by_class, paired_interval
from nightshift.tables import TableRef, rows_of

from .evaluate import Evaluated, answers
from .stage import ModelRef, Night, Outcome, stage
from .train import Trained

log = logging.getLogger(__name__)


_WHAT = {
    "network": "a classifier",
    "encoder": "a network that learned clusters",
    "vectors": "corpus vectors",
}


class Promoted(Outcome):
    """The model that answers from tonight on, and why."""

    winner: ModelRef | None
    promoted: bool
    reason: str
    promotions: TableRef


@stage("promote", "promotion")
def promote(night: Night, trained: Trained, evaluated: Evaluated) -> Promoted:
    """Compare both on the same rows, and write the decision down."""
    champion, challenger = night.champion, trained.challenger
    row = _decide(night, champion, challenger, trained.reason, evaluated.failed_checks)
    rows = [row] if challenger is not None else []
    promoted = bool(rows) and row["decision"] == "promoted"
    ref = night.lake.replace("promotions", night.name, rows_of("promotions", rows))
    log.info("promote   %s", row["reason"])
    return Promoted(
        winner=challenger if promoted else champion,
        promoted=promoted,
        reason=row["reason"],
        promotions=ref,
        figures={"promoted": float(promoted)},
    )


def _decide(
    night: Night,
    champion: ModelRef | None,
    challenger: ModelRef | None,
    reason: str,
    failed: list[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "champion": champion.model_id if champion else None,
        "challenger": challenger.model_id if challenger else None,
        "metric": night.pipeline.promotion.metric,
        "by": "policy",
        "at": datetime.now(UTC),
    }
    if challenger is None:
        kept = "the champion stays" if champion else "there is no champion"
        return {**row, "decision": "kept", "reason": f"{kept}: {reason}"}
    if failed:
        more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
        words = f"the challenger fails a check that it must pass: {'; '.join(failed[:3])}{more}"
        return {**row, "decision": "kept", "reason": words}
    if champion is None:
        what = "classifier" if challenger.kind == "network" else f"model ({_WHAT[challenger.kind]})"
        return {**row, "decision": "promoted", "reason": f"the first {what} becomes champion"}
    if champion.model_id == challenger.model_id:
        return {**row, "decision": "kept", "reason": "the challenger is the champion, bit by bit"}
    if champion.kind != challenger.kind:
        words = f"{_WHAT[challenger.kind]} replaces {_WHAT[champion.kind]}"
        return {**row, "decision": "promoted", "reason": words}
    if challenger.kind != "network":
        words = f"{_WHAT[challenger.kind]}, learned anew ({reason})"
        return {**row, "decision": "promoted", "reason": words}
    return {**row, **_compare(night, champion, challenger)}


def _compare(night: Night, champion: ModelRef, challenger: ModelRef) -> dict[str, Any]:
    """Both on the gate rows of tonight: scores, the interval of their difference, per class."""
    gate, config = labelled_sides(night.lake)["gate"], night.pipeline.promotion
    if not len(gate):
        return {
            "rows": 0,
            "decision": "kept",
            "reason": "the champion stays: no labelled document is on the gate side",
        }
    said: list[list[str]] = []
    for ref in (champion, challenger):
        model = night.load(ref)
        said.append([model.labels[one] for one in answers(night, model, gate).choice])
    old, new, low, high = paired_interval(
        gate.labels, said[0], said[1], config.metric, config.resamples
    )
    better = new > old
    verdict = "promoted" if better else "kept"
    names = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
    return {
        "rows": len(gate),
        "rows_digest": gate.digest,
        "champion_score": old,
        "challenger_score": new,
        "low": low,
        "high": high,
        "per_class": json.dumps(_per_class(gate.labels, *said), ensure_ascii=False),
        "decision": verdict,
        "reason": (
            f"the challenger {'is' if better else 'is not'} better on {len(gate)} gate rows: "
            f"{names[config.metric]} {new:.4f} against {old:.4f} "
            f"(difference {new - old:+.4f}, 95% interval {low:+.4f} to {high:+.4f})"
        ),
    }


def _per_class(truth: list[str], old: list[str], new: list[str]) -> dict[str, list[float]]:
    """F1 of champion and challenger by class."""
    found: dict[str, list[float]] = {}
    for said in (old, new):
        names, table = confusion(truth, said)
        scores = dict(zip(names, f1_by_class(table).tolist(), strict=True))
        for name in set(truth):
            found.setdefault(name, []).append(round(scores[name], 4))
    return dict(sorted(found.items()))
