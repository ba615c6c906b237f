"""Token ids -> tensors: documents lie end to end in one array and meet others of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .tokenizer import PADDING

if TYPE_CHECKING:
    # A night that asks no network reads the tables without it.
    import torch

Watch = Callable[[Iterable[np.ndarray], int], Iterable[np.ndarray]]
"""Wraps the batches of one pass, with their number, so that a caller can show progress."""

POOL = 20
"""Batches' worth of shuffled documents among which lengths are sorted: random enough, and tight."""


@dataclass(frozen=True)
class Documents:
    """Documents as token ids, without padding.

    ids: int32 (tokens,), all documents end to end; starts and lengths: int64 (documents,).
    labels: int64 (documents,), or None where no class is known.
    skips: int64 (documents,), tokens left out in the middle, after half of the length; or None.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None = None
    skips: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def from_arrow(cls, rows: pa.ChunkedArray | pa.ListArray) -> Documents:
        """list<int32> of Arrow -> whole documents, without a copy of the ids."""
        array = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows
        if isinstance(array, pa.ChunkedArray):  # combining no chunks at all
            array = pa.array([], pa.list_(pa.int32()))
        offsets = array.offsets.to_numpy().astype(np.int64)
        ids = array.values.to_numpy(zero_copy_only=False)
        return cls(ids, offsets[:-1], np.diff(offsets))

    @classmethod
    def from_lists(cls, rows: list[list[int]]) -> Documents:
        """Python lists -> whole documents."""
        return cls.from_arrow(pa.array(rows, pa.list_(pa.int32())))

    def take(self, rows: np.ndarray) -> Documents:
        """A selection; the ids are shared."""
        labels = None if self.labels is None else self.labels[rows]
        skips = None if self.skips is None else self.skips[rows]
        return Documents(self.ids, self.starts[rows], self.lengths[rows], labels, skips)

    def join(self, other: Documents) -> Documents:
        """These documents and then the others; both with labels, or neither."""
        labels = skips = None
        if self.labels is not None and other.labels is not None:
            labels = np.concatenate([self.labels, other.labels])
        if self.skips is not None or other.skips is not None:
            none = (np.zeros(len(one), np.int64) for one in (self, other))
            pairs = zip((self.skips, other.skips), none, strict=True)
            skips = np.concatenate([zeros if own is None else own for own, zeros in pairs])
        return Documents(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.starts, other.starts + len(self.ids)]),
            np.concatenate([self.lengths, other.lengths]),
            labels,
            skips,
        )

    def labelled(self, labels: np.ndarray | None) -> Documents:
        """The same documents with these labels, int64 (documents,)."""
        return replace(self, labels=labels)

    def cut(self, max_tokens: int, truncation: str = "head") -> Documents:
        """Of each whole document, read its head, its tail, or half of both ends."""
        over = np.maximum(self.lengths - max_tokens, 0)
        if not over.any():
            return self
        lengths = self.lengths - over
        if truncation == "both":
            return replace(self, lengths=lengths, skips=over)
        return replace(
            self, starts=self.starts + over if truncation == "tail" else self.starts,
            lengths=lengths,
        )  # fmt: skip

    def places(self, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Where in `ids` the given steps of the given rows stand; both int64, of equal shape."""
        found = self.starts[rows] + steps
        if self.skips is not None:
            found += np.where(steps >= (self.lengths[rows] + 1) // 2, self.skips[rows], 0)
        return found

    def pad(
        self, rows: np.ndarray, width: int | None = None, before: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows -> ids (rows, longest) int64 padded on the right, and lengths (rows,) int64.

        Args: `width` pads all to this many steps; `before` puts the padding to the left and counts
        it as text, so that the network reads it.
        """
        import torch

        lengths = self.lengths[rows]
        wide = max(1, int(lengths.max(initial=0))) if width is None else width
        steps = np.arange(wide)[None, :] - (wide - lengths[:, None] if before else 0)
        inside = (steps >= 0) & (steps < lengths[:, None])
        each = np.broadcast_to(rows[:, None], inside.shape)
        # An empty document may start behind the last id.
        places = np.where(inside, self.places(each, np.where(inside, steps, 0)), 0)
        padded = np.where(inside, self.ids[places], PADDING) if len(self.ids) else 0 * places
        shown = np.full_like(lengths, wide) if before else lengths.copy()
        return torch.from_numpy(padded.astype(np.int64)), torch.from_numpy(shown)


def batches(
    lengths: np.ndarray, batch_tokens: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Row numbers in random order, as many a batch as `buckets` has on average."""
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    size = max(1, int(batch_tokens / mean))
    rows = random.permutation(len(lengths))
    return (rows[start : start + size] for start in range(0, len(rows), size))


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


def unwatched(batches: Iterable[np.ndarray], total: int) -> Iterable[np.ndarray]:
    """Show no progress."""
    return batches
