"""Vectors of many documents, a chunk at a time, as often as they are asked for.

Lloyd's algorithm reads all vectors again and again; a table's files would have to be unpacked for
each round. So they are unpacked once, into a file of plain numbers, and memory holds a chunk.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

Given = TypeVar("Given")
Result = TypeVar("Result")

CHUNK = 65_536
"""Vectors in memory at a time."""


class Vectors(Protocol):
    """Vectors of one width, in a fixed order."""

    width: int

    def __len__(self) -> int: ...

    def chunks(self, rows: int = CHUNK) -> Iterator[np.ndarray]:
        """All of them in order, float32 (at most `rows`, width) each."""
        ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows, in the given order, float32 (rows, width)."""
        ...


class Held:
    """Vectors that are in memory, float32 (documents, width)."""

    def __init__(self, vectors: np.ndarray):
        self._vectors, self.width = vectors, vectors.shape[1]

    def __len__(self) -> int:
        return len(self._vectors)

    def chunks(self, rows: int = CHUNK) -> Iterator[np.ndarray]:
        """As of `Vectors`; nothing is copied."""
        for start in range(0, len(self), rows):
            yield self._vectors[start : start + rows]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """As of `Vectors`."""
        return self._vectors[rows]


class Spooled:
    """Vectors in a file that nobody sees and that goes with this object.

    Args: parts of them in order, float32 (any, width) each; their width, where there may be none.
    """

    def __init__(self, parts: Iterable[np.ndarray], width: int = 1):
        # Read past Python's own buffer: pages that the system keeps are the system's.
        self._file = tempfile.TemporaryFile(prefix="nightshift-", buffering=0)  # noqa: SIM115
        self._rows, self.width = 0, width
        for part in parts:
            self.width = part.shape[1]
            left = np.ascontiguousarray(part, np.float32).reshape(-1).view(np.uint8).data
            while left:
                left = left[self._file.write(left) :]
            self._rows += len(part)

    def __len__(self) -> int:
        return self._rows

    def chunks(self, rows: int = CHUNK) -> Iterator[np.ndarray]:
        """As of `Vectors`."""
        for start in range(0, self._rows, rows):
            found = np.empty((min(rows, self._rows - start), self.width), np.float32)
            self._read(start, found.reshape(-1).view(np.uint8).data)
            yield found

    def take(self, rows: np.ndarray) -> np.ndarray:
        """As of `Vectors`."""
        found, size = np.empty((len(rows), self.width), np.float32), self.width * 4
        into, order = found.reshape(-1).view(np.uint8).data, np.argsort(rows, kind="stable")
        for place, row in zip(order.tolist(), rows[order].tolist(), strict=True):
            self._read(row, into[place * size : (place + 1) * size])
        return found

    def _read(self, start: int, into: memoryview) -> None:
        self._file.seek(start * self.width * 4)
        while into:
            read = self._file.readinto(into)
            if not read:
                raise EOFError(f"found vectors up to row {self._rows} only, asked from {start} on")
            into = into[read:]


def each(
    work: Callable[[Given], Result], chunks: Iterable[Given], workers: int | None = None
) -> Iterator[Result]:
    """What comes of every chunk, in their order: a core works on one, and one more is read.

    A chunk's result depends on the chunk alone, so wherever it is worked on, it is the same. Args:
    workers, for work that has threads of its own; else one to a core, and whoever reads the results
    computes in one thread until the last.
    """
    waiting = deque[Future[Result]]()
    # A core has its chunk: more threads in each would only be in each other's way.
    alone = nullcontext() if workers else threadpool_limits(1)
    workers = workers or cores()
    with alone, ThreadPoolExecutor(workers) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def cores() -> int:
    """Processors that this process may use."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return len(own) or os.cpu_count() or 1


def as_vectors(vectors: Vectors | np.ndarray) -> Vectors:
    """An array as what may as well be a file."""
    return Held(vectors) if isinstance(vectors, np.ndarray) else vectors
