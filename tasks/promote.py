"""promote: the challenger becomes champion only if it is better on the gate rows."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal

from nightshift.corpus import labelled_sides, texts_of
from nightshift.errors import BusyError, NightError, PassingError
from nightshift.promotion import Judged, compare, judge
from nightshift.slices import slices_of
from nightshift.tables import TableRef, rows_of

from .evaluate import Evaluated
from .judging import judged
from .stage import ModelRef, Night, Outcome, code_version, stage
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
    decision: Literal["promoted", "kept", "waiting"]
    reason: str
    by: str
    promotions: TableRef

    @property
    def promoted(self) -> bool:
        """Whether the challenger is the winner."""
        return self.decision == "promoted"


@stage("promote", "promotion")
def promote(night: Night, trained: Trained, evaluated: Evaluated) -> Promoted:
    """Compare both on the same rows, and write the decision down."""
    champion, challenger = night.champion, trained.challenger
    row = _decide(night, champion, challenger, trained.reason, evaluated.failed_checks)
    rows = [row] if challenger is not None else []
    ref = night.lake.replace("promotions", night.name, rows_of("promotions", rows))
    log.info("promote   %s", row["reason"])
    promoted = row["decision"] == "promoted"
    return Promoted(
        winner=challenger if promoted else champion,
        decision=row["decision"],
        reason=row["reason"],
        by=row["by"],
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
    policy, turn = night.pipeline.promotion.policy, night.turn
    row: dict[str, Any] = {
        "champion": champion.model_id if champion else None,
        "challenger": challenger.model_id if challenger else None,
        "policy": policy,
        "by": "policy",
        "at": datetime.now(UTC),
    }
    if challenger is None:
        kept = "the champion stays" if champion else "there is no champion"
        return {**row, "decision": "kept", "reason": f"{kept}: {reason}"}
    same_kind = champion is not None and champion.kind == challenger.kind == "network"
    more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
    fails = f"the challenger fails a check that it must pass: {'; '.join(failed[:3])}{more}"
    if turn is not None:
        measured = _compare(night, champion, challenger) if champion and same_kind else {}
        words = f"{turn.by} promoted version {turn.version}: {turn.reason}"
        words += f" ({fails})" if failed else ""
        return {**row, **measured, "decision": "promoted", "reason": words, "by": turn.by}
    if failed:
        return {**row, "decision": "kept", "reason": fails}
    if champion is None:
        what = "classifier" if challenger.kind == "network" else f"model ({_WHAT[challenger.kind]})"
        return {**row, "decision": "promoted", "reason": f"the first {what} becomes champion"}
    if champion.model_id == challenger.model_id:
        return {**row, "decision": "kept", "reason": "the challenger is the champion, bit by bit"}
    if same_kind:
        return {**row, **_compare(night, champion, challenger)}
    words = f"{_WHAT[challenger.kind]}, learned anew ({reason})"
    if champion.kind != challenger.kind:
        words = f"{_WHAT[challenger.kind]} replaces {_WHAT[champion.kind]}"
    if policy == "manual":
        words = f"a person decides (promotion.policy is manual): {words}"
        return {**row, "decision": "waiting", "reason": words}
    return {**row, "decision": "promoted", "reason": words}


def _compare(night: Night, champion: ModelRef, challenger: ModelRef) -> dict[str, Any]:
    """Both on the gate rows of tonight, each in a process of its own, and the verdict."""
    gate, config = labelled_sides(night.lake)["gate"], night.pipeline.promotion
    if not len(gate):
        decision = {"always": "promoted", "manual": "waiting"}.get(config.policy, "kept")
        words = f"promotion.policy is {config.policy}, and no labelled document is on the gate side"
        return {"rows": 0, "decision": decision, "reason": words}
    by_id = texts_of(night.lake, gate.doc_ids)
    texts = [by_id[one] for one in gate.doc_ids]
    device, said = night.pipeline.train.device, list[Judged]()
    for ref in (champion, challenger):
        try:
            folder = night.tracking.fetch(ref.uri)
            with night.device():
                said.append(judged(folder, ref.model_id, texts, device))
        except (PassingError, BusyError):
            raise  # it is not the model that did not answer
        except NightError as error:
            if ref is champion:
                raise
            return {"decision": "kept", "reason": f"the challenger cannot answer: {error}"}
    slices = slices_of(night.lake, gate.doc_ids, [*config.floors])
    found = compare(gate.labels, said[0], said[1], config, slices)
    verdict = judge(found, config)
    return {
        **found.as_row(),
        "rows_digest": gate.digest,
        "decision": verdict.decision,
        "reason": verdict.reason + by_other_code(night),
    }


def by_other_code(night: Night) -> str:
    """What is to be said where the champion's version brings other code than it is judged by.

    Both answer the gate rows by tonight's.
    """
    row = night.previous or {}
    made = night.before.get("bundle_code") or row.get("code_version")
    if made in (None, code_version()):
        return ""
    return (
        f" (both were judged by code {code_version()}; the champion's version was made by {made}, "
        "and serves with that)"
    )
