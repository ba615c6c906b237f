"""embed: one forward pass of the winner writes labels and vectors of what it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
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
from .train import champion_of, load_model

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
    model = load_model(night, winner) if winner else None
    with ExitStack() as stack:
        predictions = stack.enter_context(lake.writer("predictions", night.name))
        embeddings = stack.enter_context(lake.writer("embeddings", night.name))
        if model is not None and winner is not None:
            where = pc.field("tokenizer") == model.tokenizer.digest
            if winner == champion_of(night):
                where &= pc.field("night") == night.name
            for doc_ids, answers in _answers(night, model, where):
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


def _answers(
    night: Night, model: Model, where: pc.Expression
) -> Iterator[tuple[pa.Array, Answers]]:
    device = night.pipeline.train.device
    for batch in night.lake.scan("tokens", ["doc_id", "ids"], where, rows=CHUNK):
        documents = Documents.from_arrow(batch.column("ids"), int(model.config.max_tokens))
        answers = model.answer(
            documents, device, lambda rows, total: track(rows, total, "classifying, in batches")
        )
        yield batch.column("doc_id"), answers


def _predictions(
    doc_ids: pa.Array, answers: Answers, model: Model, model_id: str
) -> pa.RecordBatch:
    assert answers.probabilities is not None
    best = answers.probabilities.argmax(1)
    ordered = np.sort(answers.probabilities, axis=1)
    top = ordered[:, -1]
    return pa.RecordBatch.from_pydict({
        "doc_id": doc_ids,
        "label": pa.array(np.array(model.labels, object)[best], pa.string()),
        "probability": top,
        "margin": top - ordered[:, -2] if ordered.shape[1] > 1 else top,
        "abstained": top < model.abstain_below,
        "model_id": [model_id] * len(doc_ids),
    })  # fmt: skip


def _embeddings(doc_ids: pa.Array, answers: Answers, model_id: str) -> pa.RecordBatch:
    width = answers.vectors.shape[1]
    offsets = pa.array(np.arange(0, (len(doc_ids) + 1) * width, width, dtype=np.int32))
    vectors = pa.ListArray.from_arrays(offsets, pa.array(answers.vectors.ravel()))
    columns: dict[str, Any] = {"doc_id": doc_ids, "vector": vectors}
    return pa.RecordBatch.from_pydict({**columns, "model_id": [model_id] * len(doc_ids)})
