"""embed: one forward pass of the winner writes labels and vectors of what it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.batches import Documents
from nightshift.bundle import Answers, Model
from nightshift.tables import TableRef

from .progress import track
from .promote import Promoted
from .stage import ModelRef, Night, Outcome, stage
from .tokens import Tokens

log = logging.getLogger(__name__)

CHUNK = 16_384
"""Documents per forward pass: enough to sort by length, little enough to hold."""


class Embedded(Outcome):
    """Tonight's predictions and embeddings, all of one model."""

    predictions: TableRef
    embeddings: TableRef
    winner: ModelRef | None


@stage("embed", "train", device=True)
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
            for doc_ids, answers in _answers(night, model, unseen):
                embeddings.write(_embeddings(doc_ids, answers, winner.model_id))
                if answers.probabilities is not None:
                    predictions.write(_predictions(doc_ids, answers, model, winner.model_id))
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


def _answers(
    night: Night, model: Model, unseen: pc.Expression
) -> Iterator[tuple[pa.Array, Answers]]:
    device = night.pipeline.train.device
    for doc_ids, ids, texts in _tokens_and_texts(night, model, unseen):
        answers = model.answer(
            Documents.from_arrow(ids), texts, device,
            lambda rows, total: track(rows, total, "classifying, in batches"),
        )  # fmt: skip
        yield doc_ids, answers


def _tokens_and_texts(
    night: Night, model: Model, unseen: pc.Expression
) -> Iterator[tuple[pa.Array, pa.Array, list[str]]]:
    """Ids, tokens and texts of documents, chunk by chunk; texts only where the model reads them."""
    its = (pc.field("tokenizer") == model.tokenizer.digest) & unseen
    tokens = night.lake.scan("tokens", ["doc_id", "ids"], its, rows=CHUNK)
    if model.wide is None:
        for batch in tokens:
            yield batch.column("doc_id"), batch.column("ids"), []
        return
    tonight = pc.field("night") == night.name
    texts = chain.from_iterable(
        night.lake.scan("documents", ["doc_id", "text"], part & unseen, rows=CHUNK)
        for part in (tonight, ~tonight)
    )
    # Both tables were written in the same order, a night at a time: what waits stays little.
    waiting: dict[str, str] = {}
    for batch in tokens:
        doc_ids = batch.column("doc_id").to_pylist()
        while not all(one in waiting for one in doc_ids):
            more = next(texts)
            waiting.update(
                zip(more.column("doc_id").to_pylist(), more.column("text").to_pylist(), strict=True)
            )
        yield batch.column("doc_id"), batch.column("ids"), [waiting.pop(one) for one in doc_ids]


def _predictions(
    doc_ids: pa.Array, answers: Answers, model: Model, model_id: str
) -> pa.RecordBatch:
    assert answers.probabilities is not None
    rows = np.arange(len(doc_ids))
    said = answers.probabilities[rows, answers.choice]
    others = answers.probabilities.copy()
    others[rows, answers.choice] = 0
    return pa.RecordBatch.from_pydict({
        "doc_id": doc_ids,
        "label": pa.array(np.array(model.labels, object)[answers.choice], pa.string()),
        "probability": said,
        "margin": said - others.max(1, initial=0),
        "abstained": answers.abstained,
        "model_id": [model_id] * len(doc_ids),
    })  # fmt: skip


def _embeddings(doc_ids: pa.Array, answers: Answers, model_id: str) -> pa.RecordBatch:
    width = answers.vectors.shape[1]
    offsets = pa.array(np.arange(0, (len(doc_ids) + 1) * width, width, dtype=np.int32))
    vectors = pa.ListArray.from_arrays(offsets, pa.array(answers.vectors.ravel()))
    columns: dict[str, Any] = {"doc_id": doc_ids, "vector": vectors}
    return pa.RecordBatch.from_pydict({**columns, "model_id": [model_id] * len(doc_ids)})
