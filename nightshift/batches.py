"""Token ids -> tensors: documents lie end to end in one array and meet others of like length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from .tokenizer import PADDING

POOL = 20
"""Batches' worth of shuffled documents among which lengths are sorted: random enough, and tight."""


@dataclass(frozen=True)
class Documents:
    """Documents as token ids, without padding.

    ids: int32 (tokens,), all documents end to end; starts and lengths: int64 (documents,).
    labels: int64 (documents,), or None where no class is known.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def from_arrow(
        cls, rows: pa.ChunkedArray | pa.ListArray, max_tokens: int, labels: np.ndarray | None = None
    ) -> Documents:
        """list<int32> of Arrow -> documents, read from their heads, without a copy of the ids."""
        array = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows
        if isinstance(array, pa.ChunkedArray):  # combining no chunks at all
            array = pa.array([], pa.list_(pa.int32()))
        offsets = array.offsets.to_numpy().astype(np.int64)
        ids = array.values.to_numpy(zero_copy_only=False)
        lengths = np.minimum(np.diff(offsets), max_tokens)
        return cls(ids, offsets[:-1], lengths, labels)

    @classmethod
    def from_lists(cls, rows: list[list[int]], max_tokens: int) -> Documents:
        """Python lists -> documents."""
        return cls.from_arrow(pa.array(rows, pa.list_(pa.int32())), max_tokens)

    def take(self, rows: np.ndarray, labels: np.ndarray | None = None) -> Documents:
        """A selection; the ids are shared."""
        kept = self.labels[rows] if labels is None and self.labels is not None else labels
        return Documents(self.ids, self.starts[rows], self.lengths[rows], kept)

    def pad(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows -> ids (rows, longest) int64 padded on the right, and lengths (rows,) int64."""
        lengths = self.lengths[rows]
        steps = np.arange(max(1, int(lengths.max(initial=0))))
        inside = steps < lengths[:, None]
        places = np.where(inside, self.starts[rows][:, None] + steps, 0)
        padded = np.where(inside, self.ids[places], PADDING) if len(self.ids) else 0 * places
        return torch.from_numpy(padded.astype(np.int64)), torch.from_numpy(lengths.copy())


def buckets(
    lengths: np.ndarray, batch_tokens: int, random: np.random.Generator | None = None
) -> Iterator[np.ndarray]:
    """Row numbers, batch by batch, of at most `batch_tokens` tokens with their padding.

    Bucket by length first: padding otherwise dominates short texts. With `random`, documents are
    shuffled, sorted only inside pools, and the batches come in random order; without, documents
    are sorted as a whole. A document longer than the budget is a batch of its own.
    """
    rows = np.arange(len(lengths)) if random is None else random.permutation(len(lengths))
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    pool = len(rows) if random is None else max(1, int(POOL * batch_tokens / mean))
    found = [
        batch
        for start in range(0, len(rows), max(1, pool))
        for batch in _cut(rows[start : start + pool], lengths, batch_tokens)
    ]
    order = range(len(found)) if random is None else random.permutation(len(found))
    return (found[index] for index in order)


def _cut(rows: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    while start < len(rows):
        # Lengths only grow, so the last row of a batch sets its width.
        sizes = lengths[rows[start:]] * np.arange(1, len(rows) - start + 1)
        count = max(1, int(np.searchsorted(sizes, batch_tokens, side="right")))
        yield rows[start : start + count]
        start += count
