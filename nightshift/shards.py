"""What is computed shard by shard: tokens of documents, answers to tokens, places of vectors.

Pairs of a source and of the work on its chunks, for `compute.spread`; both are plain enough to be
sent to another machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from .batches import Documents, Watch, unwatched
from .compute import Made
from .nearest import Cells
from .tables import ROW_GROUP, Lake, Stretch
from .tokenizer import UNKNOWN, Tokenizer

if TYPE_CHECKING:
    # Who has a model to send has torch; who encodes or places vectors needs none.
    from .bundle import Answers, Model

SHARD = 16_384
"""Rows of a shard, at most: some seconds of work."""


# --- tokens ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Documents that fit a condition on their night: doc_id, text."""

    where: pc.Expression
    rows: int
    """Of a chunk."""

    COLUMNS = ("doc_id", "text")

    def stream(self, lake: Lake) -> Iterator[pa.RecordBatch]:
        """All chunks in order."""
        return lake.scan("documents", [*self.COLUMNS], self.where, rows=self.rows)

    def shards(self, lake: Lake) -> list[Stretch]:
        """As many whole chunks to each as make a shard."""
        return lake.stretches("documents", SHARD, self.where, self.rows)

    def read(self, lake: Lake, shard: Stretch) -> Iterator[pa.RecordBatch]:
        """The chunks of one shard."""
        return lake.read_stretch("documents", shard, [*self.COLUMNS], self.where)


@dataclass(frozen=True)
class Encode:
    """A chunk of texts -> rows of `tokens`, cut at `most` tokens."""

    tokenizer: Tokenizer
    most: int

    def __call__(self, chunk: pa.RecordBatch) -> Made:
        """Ids as the tokenizer has them."""
        parts: list[pa.Array] = []
        tokens, unknown = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for ids in self.tokenizer.pieces(chunk.column("text").to_pylist()):
            # Python's numbers are nine times as large as NumPy's: a piece of them at a time.
            lengths = np.fromiter(map(len, ids), np.int32, len(ids))
            flat = np.fromiter(chain.from_iterable(ids), np.int32, lengths.sum())
            starts = np.append(np.int32(0), lengths.cumsum(dtype=np.int32))
            tokens.append(lengths)
            unknown.append(np.add.reduceat(flat == UNKNOWN, starts[:-1], dtype=np.int32))
            if lengths.max(initial=0) > self.most:
                within = np.arange(len(flat)) - np.repeat(starts[:-1], lengths)
                flat, lengths = flat[within < self.most], np.minimum(lengths, self.most)
                starts = np.append(np.int32(0), lengths.cumsum(dtype=np.int32))
            parts.append(pa.ListArray.from_arrays(pa.array(starts), pa.array(flat)))
        columns: dict[str, Any] = {
            "doc_id": chunk.column("doc_id"),
            "ids": pa.chunked_array(parts, pa.list_(pa.int32())).combine_chunks(),
            "n_tokens": np.concatenate(tokens),
            "n_unknown": np.concatenate(unknown),
            "tokenizer": [self.tokenizer.digest] * chunk.num_rows,
        }
        return {"tokens": pa.RecordBatch.from_pydict(columns)}


# --- answers --------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Documents for one forward pass; texts only where the model reads them."""

    doc_ids: pa.Array
    ids: pa.Array
    texts: list[str]


class _Shard(NamedTuple):
    tokens: Stretch
    documents: list[Stretch]
    """Where the texts of these tokens stand."""


@dataclass(frozen=True)
class Unread:
    """What a model has not read: tokens, and their documents' texts where it reads them."""

    tokenizer: str
    unseen: pc.Expression
    night: str
    """The night at work, whose documents were encoded first."""
    texts: bool
    rows: int
    """Of a chunk, and so of a forward pass: its documents are sorted by their lengths."""

    @property
    def _tokens(self) -> pc.Expression:
        return (pc.field("tokenizer") == self.tokenizer) & self.unseen

    @property
    def _documents(self) -> list[pc.Expression]:
        tonight = pc.field("night") == self.night
        return [part & self.unseen for part in (tonight, ~tonight)]

    def stream(self, lake: Lake) -> Iterator[Chunk]:
        """All chunks in order."""
        tokens = lake.scan("tokens", ["doc_id", "ids"], self._tokens, rows=self.rows)
        if not self.texts:
            yield from (Chunk(one.column("doc_id"), one.column("ids"), []) for one in tokens)
            return
        texts = chain.from_iterable(
            lake.scan("documents", ["doc_id", "text"], part, rows=self.rows)
            for part in self._documents
        )
        # Both tables were written in the same order, a night at a time: what waits stays little.
        waiting: dict[str, str] = {}
        for batch in tokens:
            doc_ids = batch.column("doc_id").to_pylist()
            while not all(one in waiting for one in doc_ids):
                more = next(texts)
                waiting.update(
                    zip(more.column("doc_id").to_pylist(), more.column("text").to_pylist(),
                        strict=True)
                )  # fmt: skip
            found = [waiting.pop(one) for one in doc_ids]
            yield Chunk(batch.column("doc_id"), batch.column("ids"), found)

    def shards(self, lake: Lake) -> list[_Shard]:
        """One to a chunk; for the texts, ids of both tables are read here."""
        stretches = lake.stretches("tokens", self.rows, self._tokens, self.rows)
        if not self.texts:
            return [_Shard(one, []) for one in stretches]
        found: list[_Shard] = []
        where, more = dict[str, Stretch](), self._places(lake)
        for one in stretches:
            doc_ids = [
                doc_id
                for batch in lake.read_stretch(
                    "tokens", one, ["doc_id"], self._tokens, ("tokenizer",)
                )
                for doc_id in batch.column("doc_id").to_pylist()
            ]
            while not all(doc_id in where for doc_id in doc_ids):
                where.update(next(more))
            found.append(_Shard(one, [*dict.fromkeys(where.pop(doc_id) for doc_id in doc_ids)]))
        return found

    def _places(self, lake: Lake) -> Iterator[dict[str, Stretch]]:
        """Ids of documents, in the order of the texts, with the row group that each stands in."""
        for part in self._documents:
            for one in lake.stretches("documents", ROW_GROUP, part, ROW_GROUP):
                for batch in lake.read_stretch("documents", one, ["doc_id"], part):
                    yield dict.fromkeys(batch.column("doc_id").to_pylist(), one)

    def read(self, lake: Lake, shard: _Shard) -> Iterator[Chunk]:
        """The chunks of one shard."""
        columns = ["doc_id", "ids"]
        for one in lake.read_stretch("tokens", shard.tokens, columns, self._tokens, ("tokenizer",)):
            if not self.texts:
                yield Chunk(one.column("doc_id"), one.column("ids"), [])
                continue
            texts: dict[str, str] = {}
            wanted = pc.field("doc_id").isin(one.column("doc_id"))
            for stretch in shard.documents:
                for more in lake.read_stretch("documents", stretch, ["doc_id", "text"], wanted):
                    texts.update(zip(*(column.to_pylist() for column in more.columns), strict=True))
            found = [texts[doc_id] for doc_id in one.column("doc_id").to_pylist()]
            yield Chunk(one.column("doc_id"), one.column("ids"), found)


@dataclass
class Answer:
    """A chunk of tokens -> rows of `embeddings` and, from a classifier, of `predictions`."""

    model: Model
    model_id: str
    device: str
    watch: Watch = unwatched

    def __call__(self, chunk: Chunk) -> Made:
        """One forward pass."""
        documents = Documents.from_arrow(chunk.ids)
        answers = self.model.answer(documents, chunk.texts, self.device, self.watch)
        made = {"embeddings": self._embeddings(chunk.doc_ids, answers)}
        if answers.probabilities is not None:
            made["predictions"] = self._predictions(chunk.doc_ids, answers)
        return made

    def _predictions(self, doc_ids: pa.Array, answers: Answers) -> pa.RecordBatch:
        assert answers.probabilities is not None
        rows = np.arange(len(doc_ids))
        said = answers.probabilities[rows, answers.choice]
        others = answers.probabilities.copy()
        others[rows, answers.choice] = 0
        return pa.RecordBatch.from_pydict({
            "doc_id": doc_ids,
            "label": pa.array(np.array(self.model.labels, object)[answers.choice], pa.string()),
            "probability": said,
            "margin": said - others.max(1, initial=0),
            "abstained": answers.abstained,
            "model_id": [self.model_id] * len(doc_ids),
        })  # fmt: skip

    def _embeddings(self, doc_ids: pa.Array, answers: Answers) -> pa.RecordBatch:
        width = answers.vectors.shape[1]
        offsets = pa.array(np.arange(0, (len(doc_ids) + 1) * width, width, dtype=np.int32))
        vectors = pa.ListArray.from_arrays(offsets, pa.array(answers.vectors.ravel()))
        columns: dict[str, Any] = {"doc_id": doc_ids, "vector": vectors}
        return pa.RecordBatch.from_pydict({**columns, "model_id": [self.model_id] * len(doc_ids)})


# --- places ---------------------------------------------------------------------------------


class _Rows(NamedTuple):
    stretches: list[Stretch]
    """Row groups in which these rows stand, one behind the other."""
    first: int
    """Rows of a model before them there."""
    rows: int


@dataclass(frozen=True)
class ModelVectors:
    """The vectors of a model, float32 (rows, width), in chunks that are full but for the last.

    Chunks are counted through all files: sums of floats depend on how a matrix is cut, and a
    cluster's documents must be the same wherever they were assigned.
    """

    model_id: str
    rows: int
    """Of a chunk."""

    @property
    def _where(self) -> pc.Expression:
        return pc.field("model_id") == self.model_id

    def stream(self, lake: Lake) -> Iterator[np.ndarray]:
        """All chunks in order."""
        for shard in self.shards(lake):
            yield from self.read(lake, shard)

    def shards(self, lake: Lake) -> list[_Rows]:
        """One to a chunk; the ids of models are read here, to count."""
        stretches = lake.stretches("embeddings", ROW_GROUP, self._where, ROW_GROUP)
        counts = [
            sum(batch.num_rows for batch in lake.read_stretch(
                "embeddings", one, ["model_id"], self._where
            ))
            for one in stretches
        ]  # fmt: skip
        ends = [*accumulate(counts)]
        found: list[_Rows] = []
        for first in range(0, ends[-1] if ends else 0, self.rows):
            last = min(first + self.rows, ends[-1])
            inside = [n for n, end in enumerate(ends) if end > first and end - counts[n] < last]
            before = ends[inside[0]] - counts[inside[0]]
            found.append(_Rows([stretches[n] for n in inside], first - before, last - first))
        return found

    def read(self, lake: Lake, shard: _Rows) -> Iterator[np.ndarray]:
        """The one chunk of a shard."""
        batches = [
            batch
            for one in shard.stretches
            for batch in lake.read_stretch(
                "embeddings", one, ["vector"], self._where, ("model_id",)
            )
        ]
        vectors = pa.Table.from_batches(batches).slice(shard.first, shard.rows).column("vector")
        flat = vectors.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield flat.reshape(shard.rows, -1)


@dataclass(frozen=True)
class Place:
    """A chunk of vectors -> the place of each among the clusters, and its distance in scales."""

    cells: Cells

    def __call__(self, chunk: np.ndarray) -> Made:
        """On one thread, as a chunk is worked on in the night's own process."""
        with threadpool_limits(1):
            places, distances = self.cells.assign(chunk)
        return {"places": pa.RecordBatch.from_pydict({"place": places, "distance": distances})}
