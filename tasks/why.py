"""why: what the report holds tonight against, and which answers it explains.

Nights without training read tables only. Where another model answers from tonight on, the old one
is asked a bounded sample of tonight's documents: that much is needed to tell text from model.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nightshift.corpus import Excerpt, texts_of
from nightshift.drift import (
    Sample,
    compare,
    flat,
    mix,
    read_sample,
    sample_ids,
    sample_of,
    split_shift,
)
from nightshift.errors import NightshiftError

from .stage import ModelRef, Night

if TYPE_CHECKING:
    from nightshift.bundle import Model

log = logging.getLogger(__name__)

ASKED = 2_000
"""Of tonight's documents that the old model is asked, at most."""


def learned_from(night: Night, winner: ModelRef | None, documents: int) -> pa.Array:
    """Ids of documents that stand for what the winner learned from; none where tonight is compared
    with nothing, or with last night alone."""
    learned = _learned_on(night, winner) if winner is not None and documents else []
    if not learned or learned == [_last_with_documents(night)]:
        return pa.array([], pa.string())
    return sample_ids(night.lake, learned, held_out=True)


def shift_and_drift(
    night: Night, winner: ModelRef | None, documents: int, excerpt: Excerpt, learned: pa.Array
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, float]]:
    """The label mix's shift with its causes, drift against last night and the training set, and
    the same as figures. All are empty where nothing new arrived, or nothing was there before.

    Args: what `learned_from` found, and where it may be read.
    """
    if winner is None or not documents:
        return {}, {}, {}
    last = _last_with_documents(night)
    tonight = sample_of(night.lake, [night.name], winner.model_id)
    drift: dict[str, dict[str, Any]] = {}
    shift: dict[str, Any] = {}
    if last is not None:
        before = sample_of(night.lake, [last], winner.model_id)
        shift = _shift(night, winner, last, before, tonight)
        drift["last_night"] = {**compare(before, tonight), "night": last}
    if len(learned):
        training = read_sample(excerpt, learned, winner.model_id)
        drift["training"] = compare(training, tonight)
    figures: dict[str, float] = {}
    for name, found in drift.items():
        figures |= flat(found, name)
        what = ", ".join(found["drifts"]) or ("nothing" if found["evidence"] else "too few to tell")
        log.info("report    drift against %s: %s", name.replace("_", " "), what)
    return shift, drift, figures


def _last_with_documents(night: Night) -> str | None:
    """The newest earlier night that brought documents."""
    rows = [row for row in night.lake.nights() if row["state"] == "published"]
    brought = [row["night"] for row in rows
               if row["night"] != night.name and row["figures"].get("documents")]  # fmt: skip
    return brought[-1] if brought else None


def _learned_on(night: Night, winner: ModelRef) -> list[str]:
    """The nights that were there when the winner was trained, without tonight."""
    rows = [row for row in night.lake.nights() if row["state"] == "published"]
    first = next(
        (row["number"] for row in rows if row["model_id"] == winner.model_id), night.number
    )
    return [row["night"] for row in rows if row["number"] <= first and row["night"] != night.name]


def _shift(
    night: Night, winner: ModelRef, last: str, before: Sample, tonight: Sample
) -> dict[str, Any]:
    """How the label mix moved since the last night with documents, and which cause did it."""
    old = night.champion
    if old is None or "network" not in (old.kind, winner.kind) or not tonight.labels:
        return {}
    said = {
        "night": last,
        "documents": [len(before), len(tonight)],
        "other_model": False,
        "asked": 0,
    }
    if old.model_id == winner.model_id:
        one, two = mix(before.labels), mix(tonight.labels)
        return {**said, "rows": split_shift(one, two, two, one)} if before.labels else {}
    then = read_sample(night.lake, pa.array(before.doc_ids, pa.string()), old.model_id)
    if old.kind != "network" or not then.labels:
        return {}
    # The same documents of both models: a sample's own chance would else pass for the model.
    ids = tonight.doc_ids[:: max(1, -(-len(tonight) // ASKED))]
    asked = read_sample(night.lake, pa.array(ids, pa.string()), winner.model_id, whole=True)
    return {
        **said,
        "documents": [len(then), len(asked)],
        "other_model": True,
        "asked": len(asked) if len(asked) < len(tonight) else 0,
        "rows": split_shift(
            mix(then.labels), mix(asked.labels), mix(_answers(night, old, asked.texts)),
            mix(before.labels),
        ),
    }  # fmt: skip


def _answers(night: Night, ref: ModelRef, texts: list[str]) -> list[str]:
    model = night.load(ref)
    with night.device():
        said = model.answer(model.documents(texts), texts, night.pipeline.train.device)
    return [model.labels[one] for one in said.choice]


def explained(night: Night, winner: ModelRef | None, doc_ids: list[str]) -> list[dict[str, Any]]:
    """Why the winner says what it says of some documents; what cannot be explained is left out."""
    most = night.pipeline.report.explained
    if winner is None or winner.kind != "network" or not most or not doc_ids:
        return []
    from nightshift.explanations import explain

    model: Model = night.load(winner)
    texts = texts_of(night.lake, doc_ids)
    found: list[dict[str, Any]] = []
    for doc_id in doc_ids:
        if len(found) == most:
            break
        try:
            found.append({"doc_id": doc_id, **explain(model, texts[doc_id]).as_json()})
        except NightshiftError as error:
            log.info("report    %s is not explained: %s", doc_id, error)
    return found
