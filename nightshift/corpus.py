"""Read the lake as a training set: who is labelled how, on which side, with which tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .batches import Documents
from .errors import AccountError
from .ids import ids_of, index_in, numbers_of
from .splits import stands_in_for_validation
from .tables import Lake, digest_of

HEAD = 2_000
"""Characters of a text that is one of thousands: its words are counted, or it is on the map."""


@dataclass(frozen=True)
class Labelled:
    """Labelled documents of one side, in the order of their ids."""

    doc_ids: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.doc_ids)

    @property
    def digest(self) -> str:
        """Digest of exactly these rows and labels."""
        return digest_of([self.doc_ids, self.labels])


def current_labels(lake: Lake, but: str | None = None, by: str | None = None) -> dict[str, str]:
    """The label of every labelled document: the newest given later, else the document's own.

    Args: `but`, a night whose rows are left out because they are about to be replaced; `by`, whose
    later labels alone count.
    """
    others = pc.field("night") != (but or "")
    rows = lake.read("documents", ["doc_id", "label"], pc.field("label").is_valid() & others)
    labels = dict(zip(rows["doc_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    # Stable: of labels given at the same moment, the one further down its file is the newer.
    given = others if by is None else others & (pc.field("by") == by)
    later = lake.read("labels", ["doc_id", "label", "at"], given).sort_by("at")
    labels.update(zip(later["doc_id"].to_pylist(), later["label"].to_pylist(), strict=True))
    # A label that was taken back is null.
    return {doc_id: label for doc_id, label in labels.items() if label is not None}


@dataclass(frozen=True)
class Assigned:
    """Where documents are: one row each, in no order that means anything.

    doc_ids: string (documents,). names: cluster ids, sorted. places: int32 (documents,) among the
    names. distances: float32 (documents,), NaN where none is known.
    """

    doc_ids: pa.Array
    names: list[str]
    places: np.ndarray
    distances: np.ndarray

    def rows_of(self, doc_ids: pa.Array) -> np.ndarray:
        """The row of each of some documents, -1 for those that are nowhere, int64."""
        return index_in(doc_ids, self.doc_ids)

    def places_of(self, doc_ids: pa.Array) -> np.ndarray:
        """The place of each of some documents among the names, -1 for nowhere, int64."""
        return self.places_at(self.rows_of(doc_ids))

    def places_at(self, rows: np.ndarray) -> np.ndarray:
        """The same of rows that `rows_of` found."""
        return np.where(rows >= 0, np.append(self.places, -1)[rows], -1).astype(np.int64)

    def mapping(self, doc_ids: pa.Array | None = None) -> dict[str, tuple[str, float]]:
        """Cluster id and distance by document, of some or of all."""
        rows = np.arange(len(self.doc_ids))
        if doc_ids is not None:
            rows = self.rows_of(doc_ids)
            rows = rows[rows >= 0]
        ids = self.doc_ids.take(pa.array(rows)).to_pylist()
        names = np.array([*self.names, ""], object)[self.places[rows]].tolist()
        return dict(zip(ids, zip(names, self.distances[rows].tolist(), strict=True), strict=True))


def assigned(
    lake: Lake, but: str | None = None, version: int | None = None, until: int | None = None
) -> Assigned:
    """Where every document is: the newest change of each. Nights count by their number.

    Args: `but`, a night whose rows are about to be replaced; a version that is not the newest; the
    number of the last night that counts.
    """
    columns = ["night", "doc_id", "cluster_id", "distance"]
    rows = lake.read("assignments", columns, pc.field("night") != (but or ""), version)
    numbers = numbers_of(ids_of(rows["night"]), lake.nights())
    kept = np.arange(len(numbers)) if until is None else np.flatnonzero(numbers <= until)
    kept = kept[np.argsort(numbers[kept], kind="stable")]
    kept = kept[_newest(rows["doc_id"].take(pa.array(kept)), numbers[kept])]
    rows = rows.take(pa.array(kept))
    clusters = ids_of(rows["cluster_id"]).dictionary_encode()
    names = sorted(clusters.dictionary.to_pylist())
    place = {one: n for n, one in enumerate(names)}
    places = np.array([place[one] for one in clusters.dictionary.to_pylist()], np.int32)
    return Assigned(
        ids_of(rows["doc_id"]),
        names,
        places[clusters.indices.to_numpy(zero_copy_only=False)],
        rows["distance"].to_numpy().astype(np.float32),
    )


def _newest(doc_ids: pa.ChunkedArray, numbers: np.ndarray) -> np.ndarray:
    """The rows that no later one of the same document replaces, ascending; numbers ascend, and a
    night has a document once."""
    first = np.searchsorted(numbers, numbers[:1], "right")[0] if len(numbers) else 0
    if first == len(numbers):
        return np.arange(first)
    earlier, later = doc_ids[:first], ids_of(doc_ids[first:])
    rows = pa.table([later, pa.array(np.arange(first, len(numbers)))], ["doc_id", "row"])
    last = rows.group_by("doc_id").aggregate([("row", "max")])["row_max"].to_numpy()
    # Most documents came once and stayed: what changed is looked up in them, not they in it.
    gone = pc.call_function("is_in", [earlier], pc.SetLookupOptions(value_set=later))
    stayed = np.flatnonzero(~gone.to_numpy())
    return np.concatenate([stayed, np.sort(last)])


def current_assignments(
    lake: Lake, but: str | None = None, version: int | None = None, until: int | None = None
) -> dict[str, tuple[str, float]]:
    """The same as a mapping: cluster id and distance by document."""
    return assigned(lake, but, version, until).mapping()


def labelled_sides(lake: Lake) -> dict[str, Labelled]:
    """All labelled documents by side: train, validation, gate, test.

    A source that declares training rows but no validation gets a fixed share of the former.
    """
    labels = current_labels(lake)
    wanted = pa.array(labels, pa.string())
    rows = lake.read_of("documents", ["doc_id", "split", "content_digest"], wanted)
    rows = rows.sort_by("doc_id")
    sides: dict[str, list[tuple[str, str]]] = {
        name: [] for name in ("train", "validation", "gate", "test")
    }
    for doc_id, side, digest in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        sides[side].append((doc_id, digest))
    if not sides["validation"]:
        held = [pair for pair in sides["train"] if stands_in_for_validation(pair[1])]
        sides["validation"] = held
        sides["train"] = [pair for pair in sides["train"] if not stands_in_for_validation(pair[1])]
    return {
        name: Labelled([one for one, _ in pairs], [labels[one] for one, _ in pairs])
        for name, pairs in sides.items()
    }


def tokens_of(
    lake: Lake, tokenizer: str, doc_ids: Sequence[str] | pa.Array, most: int | None = None
) -> Documents:
    """Token ids of the given documents, in the given order; at most so many of each.

    Raises: AccountError unless there are tokens of every one.
    """
    wanted = doc_ids if isinstance(doc_ids, pa.Array) else pa.array(doc_ids, pa.string())
    its = pc.field("tokenizer") == tokenizer
    shorten = partial(_first_ids, most=most) if most else None
    rows = lake.read_of("tokens", ["doc_id", "ids"], wanted, its, shorten)
    if rows.num_rows != len(wanted):
        raise AccountError(
            f"tokens: found tokens of {rows.num_rows} of {len(wanted)} documents by tokenizer "
            f"{tokenizer[:8]}. Run the night again with --retry-from tokens."
        )
    places = index_in(ids_of(rows["doc_id"]), wanted)
    order = np.argsort(places, kind="stable")
    return Documents.from_arrow(rows["ids"]).take(order)


def _first_ids(rows: pa.RecordBatch, most: int) -> pa.RecordBatch:
    how = pc.ListSliceOptions(0, most, return_fixed_size_list=False)
    return rows.set_column(1, "ids", pc.call_function("list_slice", [rows.column("ids")], how))


class Excerpt:
    """The newest row of each of some documents: a table passes by once, whoever asks how often.

    A model that was asked for everything again has answered a document twice. Args: ids of all
    documents that will be asked for, any of them as often as one likes; of those whose texts are
    wanted whole, not their first HEAD characters alone.
    """

    COLUMNS: ClassVar = {
        "documents": ["doc_id", "night", "text"],
        "tokens": ["doc_id", "night", "n_tokens", "n_unknown"],
        "predictions": ["doc_id", "night", "label", "probability", "abstained"],
        "embeddings": ["doc_id", "night", "vector"],
    }

    def __init__(self, lake: Lake, doc_ids: pa.Array, whole: pa.Array):
        self._lake, self._doc_ids, self._whole = lake, doc_ids.unique(), whole
        self._read: list[tuple[str, pc.Expression | None, pa.Table]] = []

    def read_of(
        self,
        table: str,
        columns: list[str],
        doc_ids: pa.Array,
        where: pc.Expression | None = None,
    ) -> pa.Table:
        """As `Lake.read_of`, but for rows that a newer one replaces."""
        rows = next((its for name, fits, its in self._read if name == table and _same(fits, where)),
                    None)  # fmt: skip
        if rows is None:
            cut = heads(HEAD, self._whole) if table == "documents" else None
            found = self._lake.read_of(table, self.COLUMNS[table], self._doc_ids, where, cut)
            numbers = numbers_of(ids_of(found["night"]), self._lake.nights())
            # The newest first: `index_in` finds the first.
            newest = np.argsort(numbers, kind="stable")[::-1]
            first = index_in(self._doc_ids, ids_of(found["doc_id"]).take(pa.array(newest)))
            rows = found.take(pa.array(np.sort(newest[first[first >= 0]])))
            self._read.append((table, where, rows))
        wanted = pa.array(index_in(ids_of(rows["doc_id"]), doc_ids) >= 0)
        return rows.select(columns).filter(wanted)


def _same(one: pc.Expression | None, two: pc.Expression | None) -> bool:
    """Whether two conditions are one; their words leave out the middle of a long list."""
    return one is two if one is None or two is None else one.equals(two)


def heads(most: int, whole: pa.Array | None = None) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """What cuts the texts of rows, but for some documents', to so many characters at most.

    Thousands of documents that only stand for others would else be as large in memory as they are
    long.
    """

    def cut(rows: pa.RecordBatch) -> pa.RecordBatch:
        place = rows.schema.get_field_index("text")
        texts = rows.column(place)
        short = pc.call_function("utf8_slice_codeunits", [texts], pc.SliceOptions(0, most))
        if whole is not None:
            wanted = pc.SetLookupOptions(value_set=whole)
            kept = pc.call_function("is_in", [rows.column("doc_id")], wanted)
            short = pc.call_function("if_else", [kept, texts, short])
        return rows.set_column(place, "text", short)

    return cut


def texts_of(
    lake: Lake | Excerpt, doc_ids: Iterable[str], most: int | None = None
) -> dict[str, str]:
    """The texts of some documents, by id; at most so many characters of each."""
    wanted = pa.array(sorted(set(doc_ids)), pa.string())
    if not len(wanted):
        return {}
    columns = ["doc_id", "text"]
    if isinstance(lake, Excerpt):
        rows = lake.read_of("documents", columns, wanted)
    else:
        cut = None if most is None else heads(most)
        rows = lake.read_of("documents", columns, wanted, shorten=cut)
    return dict(zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
