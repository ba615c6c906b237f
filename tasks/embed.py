"""embed: one forward pass of the winner writes labels and vectors of what it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from nightshift.compute import Made, spread
from nightshift.shards import Answer, Unread
from nightshift.tables import TableRef

from .progress import track
from .promote import Promoted
from .stage import ModelRef, Night, Outcome, stage
from .tokens import Tokens

if TYPE_CHECKING:
    from nightshift.bundle import Model

log = logging.getLogger(__name__)

CHUNK = 16_384
"""Documents per forward pass: enough to sort by length, little enough to hold."""


class Embedded(Outcome):
    """Tonight's predictions and embeddings, all of one model."""

    predictions: TableRef
    embeddings: TableRef
    winner: ModelRef | None


@stage("embed", "train")
def embed(night: Night, tokens: Tokens, promoted: Promoted) -> Embedded:
    """Classify and embed what is new; everything, if another model answers from tonight on."""
    lake, winner = night.lake, promoted.winner
    # Where nobody waits for an answer, the model stays where it is.
    unseen = _unseen(night, winner) if winner else pc.scalar(False)
    model = night.load(winner) if winner and lake.count("documents", unseen) else None
    with ExitStack() as stack:
        predictions = stack.enter_context(lake.writer("predictions", night.name))
        embeddings = stack.enter_context(lake.writer("embeddings", night.name))
        if model is not None and winner is not None:
            stack.enter_context(night.device())
            for made in _answers(night, model, winner, unseen):
                embeddings.write(made["embeddings"])
                if "predictions" in made:
                    predictions.write(made["predictions"])
    log.info("embed     %d documents classified, %d embedded",
             predictions.ref.rows, embeddings.ref.rows)  # fmt: skip
    return Embedded(
        predictions=predictions.ref,
        embeddings=embeddings.ref,
        winner=winner,
        figures={"classified": predictions.ref.rows, "embedded": embeddings.ref.rows},
    )


def _unseen(night: Night, winner: ModelRef) -> pc.Expression:
    """Which documents the model has not read: all, tonight's, or after a rollback some older; or
    those that were asked for."""
    if night.asked.part == "ingest":
        return pc.scalar(False)
    if night.asked.part == "reclassify" and night.asked.which == "window":
        return pc.field("doc_id").isin(_in_window(night))
    if night.asked.part == "reclassify" and night.asked.which == "all":
        return pc.scalar(True)
    if night.champion is None or winner.model_id != night.champion.model_id:
        return pc.scalar(True)
    lake, others = night.lake, pc.field("night") != night.name
    own = others & (pc.field("model_id") == winner.model_id)
    there = lake.read("embeddings", ["doc_id"], own)["doc_id"].unique()
    if len(there) == lake.count("documents", others):
        return pc.field("night") == night.name
    return ~pc.field("doc_id").isin(there)


def _in_window(night: Night) -> pa.Array:
    """Documents of the days that were asked for, by event time, else by the night they came in."""
    began = {row["night"]: row["started"] for row in night.lake.nights()}
    rows = night.lake.read("documents", ["doc_id", "event_time", "night"]).to_pylist()
    first, last = night.asked.first or date.min, night.asked.last or date.max
    days = ((row["doc_id"], (row["event_time"] or began[row["night"]]).date()) for row in rows)
    return pa.array([doc_id for doc_id, day in days if first <= day <= last], pa.string())


def _answers(night: Night, model: Model, winner: ModelRef, unseen: pc.Expression) -> Iterator[Made]:
    """Rows of both tables, chunk by chunk."""
    compute = night.pipeline.compute
    source = Unread(model.tokenizer.digest, unseen, night.name, model.wide is not None, CHUNK)
    work = Answer(model, winner.model_id, night.pipeline.train.device)
    if compute.engine == "local":
        work.watch = lambda rows, total: track(rows, total, "classifying, in batches")
        return spread(compute, night.lake, source, work)
    return track(spread(compute, night.lake, source, work), None, "classifying, in chunks")
