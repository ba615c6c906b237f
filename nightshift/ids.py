"""Columns of documents' ids: where they stand, and which of them chance draws.

A million ids are some 30 MB to Arrow, and ten times that as Python's strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LARGE = 200_000
"""Documents from which on a sample is drawn in the order in which they came: to sort all their ids
would take longer than all else."""
FEW = 4
"""So many times fewer values than those among which they are looked for: the many are looked up in
a table of the few, since to make one of the many takes ten times as long as to ask it."""


def index_in(values: pa.Array, among: pa.Array) -> np.ndarray:
    """Where each value first stands among others, -1 for nowhere, int64."""
    if len(values) * FEW < len(among):
        few = values.unique()
        there = _index_in(among, few)
        rows = np.flatnonzero(there >= 0)[::-1]  # from behind: the first is the one that stays
        first = np.full(len(few) + 1, -1, np.int64)
        first[there[rows]] = rows
        return first[_index_in(values, few)]
    return _index_in(values, among)


def _index_in(values: pa.Array, among: pa.Array) -> np.ndarray:
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=among))
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def numbers_of(names: pa.Array, nights: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """The number of each row's night, int64; 0 for a night that is not among these.

    Names alone do not tell which came later: "9" is read after "10".
    """
    order = {row["night"]: row["number"] for row in nights}
    found = names.dictionary_encode()
    numbers = [order.get(one, 0) for one in found.dictionary.to_pylist()]
    return np.array([*numbers, 0], np.int64)[found.indices.to_numpy(zero_copy_only=False)]


def ids_of(rows: pa.ChunkedArray) -> pa.Array:
    """A column of strings in one piece."""
    return pa.concat_arrays(rows.chunks) if rows.num_chunks else pa.array([], pa.string())


def drawn(doc_ids: pa.Array, most: int, seed: int = 1) -> pa.Array:
    """At most so many documents by chance, sorted by their ids; of a large corpus that grows,
    mostly the same."""
    if len(doc_ids) > LARGE:
        some = doc_ids.take(pa.array(steady(len(doc_ids), most)[:most]))
        return some.take(pc.call_function("array_sort_indices", [some]))
    ordered = doc_ids.take(pc.call_function("array_sort_indices", [doc_ids]))
    chosen = np.random.default_rng(seed).permutation(len(ordered))[:most]
    return ordered.take(pa.array(np.sort(chosen)))


def steady(count: int, most: int) -> np.ndarray:
    """Rows drawn by chance, about so many, ascending int64; all where there are no more.

    Chance is a row's own: of a corpus that grows, the same documents are drawn every night, and
    clusters do not move for the draw.
    """
    rows = np.arange(count, dtype=np.int64)
    if count <= most:
        return rows
    # A multiplicative hash (Knuth 1973): the high bits of its products are spread evenly.
    chance = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    chance ^= chance >> np.uint64(29)
    chance *= np.uint64(0xBF58476D1CE4E5B9)
    return rows[(chance >> np.uint64(32)) < np.uint64(int(most / count * 2**32))]
