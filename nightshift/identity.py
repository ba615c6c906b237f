"""Who is who among clusters: told by the documents that tonight's and last night's share.

A cluster continues, is born, splits from another, takes others in, or ends; its id is never given
again. What moves a cluster in space, such as another encoder, does not matter: documents know where
they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .nearest import UNASSIGNED

SHARED = 0.5
"""Share of documents that makes two clusters relatives: of the smaller one's to continue, of the
child's to have split from a parent, of the parent's to have been taken in."""
HEIR = 0.2
"""Share of an ended cluster's documents that makes another its heir."""

Event = Literal["born", "continued", "split", "merged", "ended"]


@dataclass(frozen=True)
class Fate:
    """What became of a cluster tonight.

    parents: whom it split from (`split`), or took in (`merged`). heirs: where most documents of an
    ended one went, the largest share first.
    """

    cluster_id: str
    event: Event
    parents: list[str] = field(default_factory=list)
    heirs: list[str] = field(default_factory=list)


def fates(
    places: np.ndarray,
    k: int,
    doc_ids: Sequence[str],
    before: Mapping[str, str],
    ever: Iterable[str],
    likeness: Mapping[str, np.ndarray] | None = None,
    given_up: Mapping[str, str] | None = None,
) -> tuple[list[Fate], list[Fate]]:
    """Match tonight's clusters to last night's: the most documents keep their id (Kuhn 1955).

    Args: tonight's place of each document, -1 for none, int64 (documents,), below `k`; their ids;
    last night's cluster id by document; every id ever given. Where documents leave a tie,
    `likeness` decides: by old id, a cosine to each of tonight's centroids, float (k,). `given_up`,
    old ids that a person merged into others, by id: theirs end, whoever has more documents.
    Returns: the fates of tonight's clusters in the order of their places, and of those that ended.
    """
    old = sorted({one for one in before.values() if one != UNASSIGNED})
    return fates_of(places, k, _columns(doc_ids, before, old), old, ever, likeness, given_up)


def fates_of(
    places: np.ndarray,
    k: int,
    before: np.ndarray,
    old: list[str],
    ever: Iterable[str],
    likeness: Mapping[str, np.ndarray] | None = None,
    given_up: Mapping[str, str] | None = None,
) -> tuple[list[Fate], list[Fate]]:
    """The same of documents without names.

    Args: last night's place of each document among the sorted `old` ids, -1 for none, int64
    (documents,); the others as of `fates`.
    """
    shared = _shared(places, k, before, len(old))
    merged = given_up or {}
    kept = _matched(shared, old, likeness or {}, merged)
    ids = _ids(kept, k, old, [*ever, *old])
    ended = [column for column in range(len(old)) if column not in kept.values()]
    lost = np.where(np.isin(np.arange(len(old)), ended), shared.sum(0), 0)
    sizes = np.bincount(places[places >= 0], minlength=k)
    tonight = [
        _fate(ids[row], shared[row], int(sizes[row]), old, lost, row in kept) for row in range(k)
    ]
    tonight = [_with_merged(one, merged, old) for one in tonight]
    return tonight, [_end(old[column], shared[:, column], ids) for column in ended]


def given_back(
    ids: Sequence[str],
    places: np.ndarray,
    doc_ids: Sequence[str],
    before: Mapping[str, str],
    living: Iterable[str],
) -> tuple[list[Fate], list[Fate]]:
    """The same where it is known who is who: earlier clusters live again, as after a rollback.

    Args: their ids; the place among them of each document, -1 for none, int64 (documents,); the
    documents' ids and clusters until now; the clusters that live until now.
    Returns: as `fates`. One that had ended comes out of whoever has its documents.
    """
    old = sorted({*living, *before.values()} - {UNASSIGNED})
    shared = _shared(places, len(ids), _columns(doc_ids, before, old), len(old))
    ended = [column for column, one in enumerate(old) if one not in ids]
    lost = np.where(np.isin(np.arange(len(old)), ended), shared.sum(0), 0)
    sizes = np.bincount(places[places >= 0], minlength=len(ids))
    back = [
        _fate(one, shared[row], int(sizes[row]), old, lost, one in old)
        for row, one in enumerate(ids)
    ]
    return back, [_end(old[column], shared[:, column], [*ids]) for column in ended]


def _columns(doc_ids: Sequence[str], before: Mapping[str, str], old: list[str]) -> np.ndarray:
    """Each document's place among the old ids, -1 for none, int64."""
    index = {one: place for place, one in enumerate(old)}
    return np.array([index.get(before.get(one, ""), -1) for one in doc_ids], np.int64)


def _shared(places: np.ndarray, k: int, before: np.ndarray, old: int) -> np.ndarray:
    """Documents in common, int64 (tonight's clusters, last night's)."""
    there = (before >= 0) & (places >= 0)
    shared = np.zeros((k, old), np.int64)
    np.add.at(shared, (places[there], before[there]), 1)
    return shared


def _matched(
    shared: np.ndarray,
    old: list[str],
    likeness: Mapping[str, np.ndarray],
    given_up: Mapping[str, str],
) -> dict[int, int]:
    """Which of tonight's clusters is which of last night's, by row and column."""
    from scipy.optimize import linear_sum_assignment

    # Into whom a person merged others is whoever has the documents of all of them.
    shared = shared.copy()
    for one, other in given_up.items():
        if one in old and other in old:
            shared[:, old.index(other)] += shared[:, old.index(one)]
            shared[:, old.index(one)] = 0
    smaller = np.minimum(shared.sum(1, keepdims=True), shared.sum(0, keepdims=True))
    related = (shared > 0) & (shared >= SHARED * smaller)
    near = np.zeros(shared.shape)
    for column, one in enumerate(old):
        if one in likeness:
            near[:, column] = np.clip(likeness[one], -1, 1) + 1
    # Less than one document in all, so that likeness only parts what documents cannot.
    score = np.where(related, shared + near / (4 * max(1, *shared.shape)), 0)
    rows, columns = linear_sum_assignment(-score)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {row: column for row, column in pairs if related[row, column]}


def _ids(kept: dict[int, int], k: int, old: list[str], ever: Iterable[str]) -> list[str]:
    numbers = [int(one.removeprefix("c-")) for one in ever if one != UNASSIGNED]
    fresh = max(numbers, default=0)
    ids: list[str] = []
    for row in range(k):
        if row not in kept:
            fresh += 1
        ids.append(old[kept[row]] if row in kept else f"c-{fresh:04d}")
    return ids


def _fate(
    own: str, shared: np.ndarray, size: int, old: list[str], lost: np.ndarray, continues: bool
) -> Fate:
    """Of one of tonight's clusters.

    Args: documents shared with each of last night's, its size, and how many documents each of last
    night's has tonight, 0 for those that continue.
    """
    if continues:
        taken = np.flatnonzero((shared > 0) & (lost > 0) & (shared >= SHARED * lost)).tolist()
        event = "merged" if taken else "continued"
        return Fate(own, event, parents=[old[one] for one in taken])
    # Of all its documents: mostly new ones have no past, whatever the few old among them were.
    if len(old) and shared.max() > 0 and shared.max() >= SHARED * size:
        return Fate(own, "split", parents=[old[int(shared.argmax())]])
    return Fate(own, "born")


def _with_merged(fate: Fate, given_up: Mapping[str, str], old: list[str]) -> Fate:
    """With the clusters that a person merged into it, wherever their documents went."""
    own = [one for one, other in given_up.items() if other == fate.cluster_id and one in old]
    if not own:
        return fate
    return Fate(fate.cluster_id, "merged", parents=sorted({*fate.parents, *own}))


def _end(own: str, shared: np.ndarray, ids: list[str]) -> Fate:
    order = np.argsort(-shared, kind="stable")
    heirs = [ids[row] for row in order if shared[row] > 0 and shared[row] >= HEIR * shared.sum()]
    return Fate(own, "ended", heirs=heirs)
