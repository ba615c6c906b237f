"""Read the lake as a training set: who is labelled how, on which side, with which tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .batches import Documents
from .errors import AccountError
from .splits import stands_in_for_validation
from .tables import Lake, digest_of


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


def current_assignments(
    lake: Lake, but: str | None = None, version: int | None = None, until: int | None = None
) -> dict[str, tuple[str, float]]:
    """Cluster id and distance by document: the newest change of each. Nights count by their number.

    Args: `but`, a night whose rows are about to be replaced; a version that is not the newest; the
    number of the last night that counts.
    """
    order = {row["night"]: row["number"] for row in lake.nights()}
    columns = ["night", "doc_id", "cluster_id", "distance"]
    others = pc.field("night") != (but or "")
    changes = lake.read("assignments", columns, others, version).to_pydict()
    rows = zip(*(changes[name] for name in columns), strict=True)
    newest_last = sorted(rows, key=lambda row: order.get(row[0], 0))
    if until is not None:
        newest_last = [row for row in newest_last if order.get(row[0], 0) <= until]
    return {doc_id: (cluster_id, far) for _, doc_id, cluster_id, far in newest_last}


def labelled_sides(lake: Lake) -> dict[str, Labelled]:
    """All labelled documents by side: train, validation, gate, test.

    A source that declares training rows but no validation gets a fixed share of the former.
    """
    labels = current_labels(lake)
    rows = lake.read("documents", ["doc_id", "split", "content_digest"]).sort_by("doc_id")
    sides: dict[str, list[tuple[str, str]]] = {
        name: [] for name in ("train", "validation", "gate", "test")
    }
    for doc_id, side, digest in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        if doc_id in labels:
            sides[side].append((doc_id, digest))
    if not sides["validation"]:
        held = [pair for pair in sides["train"] if stands_in_for_validation(pair[1])]
        sides["validation"] = held
        sides["train"] = [pair for pair in sides["train"] if not stands_in_for_validation(pair[1])]
    return {
        name: Labelled([one for one, _ in pairs], [labels[one] for one, _ in pairs])
        for name, pairs in sides.items()
    }


def tokens_of(lake: Lake, tokenizer: str, doc_ids: Sequence[str]) -> Documents:
    """Token ids of the given documents, in the given order.

    Raises: AccountError unless there are tokens of every one.
    """
    wanted = {doc_id: place for place, doc_id in enumerate(doc_ids)}
    places: list[int] = []
    pieces: list[pa.ListArray] = []
    for batch in lake.scan("tokens", ["doc_id", "ids"], pc.field("tokenizer") == tokenizer):
        found = [wanted.get(one, -1) for one in batch.column("doc_id").to_pylist()]
        rows = [row for row, place in enumerate(found) if place >= 0]
        places.extend(found[row] for row in rows)
        pieces.append(batch.column("ids").take(pa.array(rows, pa.int64())))
    if len(places) != len(wanted):
        raise AccountError(
            f"tokens: found tokens of {len(places)} of {len(wanted)} documents by tokenizer "
            f"{tokenizer[:8]}. Run the night again with --retry-from tokens."
        )
    order = np.argsort(np.array(places, np.int64))
    chunks = pa.chunked_array(pieces, pa.list_(pa.int32()))
    return Documents.from_arrow(chunks).take(order)


def texts_of(lake: Lake, doc_ids: Iterable[str]) -> dict[str, str]:
    """The texts of some documents, by id."""
    wanted = pa.array(sorted(set(doc_ids)), pa.string())
    if not len(wanted):
        return {}
    rows = lake.read("documents", ["doc_id", "text"], pc.field("doc_id").isin(wanted))
    return dict(zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
