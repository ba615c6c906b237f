"""New topics: where tonight's documents stand denser than all those before.

Clusters of a fitted corpus say little of a topic that arrived today: it lies in the cells of others
until it is large. But round its documents there are only tonight's, while elsewhere tonight's and
earlier ones are mixed as everywhere (the nearest-neighbour two-sample test, Henze 1988). That shows
in vectors that have learned tonight's words; those of an older model do not know them. Documents
that no cluster took are looked at again, until they are a group; what trickles in and lies in the
cells of others is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .chunks import Vectors, as_vectors
from .nearest import Cells, nearest_centroids, unit

NEIGHBOURS = 20
NOVEL = 0.8
"""Share of tonight's documents among a document's neighbours, drawn from as many of both, that
makes it novel: with nothing new, 16 of 20 are tonight's for six documents in a thousand."""
PURITY, TELLING = 0.87, 0.7
"""Share of a newborn cell's documents that are more than the usual share of tonight's; and what
share tells a new topic from a known one that grows."""
LEAST, LEAST_SHARE = 10, 0.002
"""Documents that a topic has at least: in all, and as a share of the corpus."""
APART = 0.5
"""Groups that are nearer than this share of the clusters are to their nearest are one topic."""
SLACK = 0.5
"""Of the clusters' usual likeness, how much a novel document needs to be counted to a group."""
STEPS = np.linspace(0.3, 1.6, 53)
"""Scales tried for a newborn."""
NEARLY = 0.9
"""Of what is new in the best of the scales tried, how much is enough: a scale nearer to 1 is
steadier, because one that is too small gives way to any later topic, and one that is too large
drifts as Lloyd's algorithm runs on."""
MOST = 20_000
"""Documents of either side that are compared, at most: the cost is their product."""
CHUNK = 512


@dataclass(frozen=True)
class Newborn:
    """A topic that is new: centroid float32 (width,), its scale, and its documents tonight."""

    centroid: np.ndarray
    scale: float
    documents: int


def new_topics(
    fresh: np.ndarray,
    loose: np.ndarray,
    known: np.ndarray,
    centroids: np.ndarray,
    seed: int,
    least: int | None = None,
) -> list[np.ndarray]:
    """Topics that no cluster has: among tonight's documents and those that no cluster took.

    Args: unit vectors float32 (documents, width) of tonight's documents, of earlier ones that are
    in no cluster, and of those that are in one, learned from all; centroids of the clusters among
    them, float32 (clusters, width); documents that make a topic, by default `fewest` of all these.
    Returns: rows of `fresh` with `loose` behind, ascending int64. Of more than `MOST` fresh ones,
    only those compared are told.
    """
    random = np.random.default_rng(seed)
    least = max(LEAST, least or fewest(len(fresh) + len(loose) + len(known)))
    if len(known) < least or not len(centroids):
        return []
    known = known[random.permutation(len(known))[: max(MOST, len(fresh))]]
    some = np.sort(random.permutation(len(fresh))[:MOST])
    novel = some[:0]
    if len(fresh) >= least:
        novel = some[novelty(fresh[some], known, random) >= NOVEL]
        least = max(LEAST, round(least * len(some) / len(fresh)))
    candidates = np.append(novel, len(fresh) + np.arange(len(loose)))
    everyone = np.concatenate([fresh, loose])
    own = unit(centroids)[nearest_centroids(known, centroids)[0]]
    usual = float(np.median((known * own).sum(1)))
    found = [candidates[rows] for rows in _topics(everyone[candidates], usual, least, centroids)]
    # A known topic that grows fast looks new as well, but has no place of its own.
    groups, there = [everyone[rows] for rows in found], np.concatenate([fresh[some], loose])
    alone = _cells_of(groups, there, known, Cells.of(centroids), TELLING)
    return [
        rows
        for rows, cell in zip(found, alone, strict=True)
        if cell is not None and cell.documents >= least
    ]


def fewest(documents: int) -> int:
    """Documents that a new topic has at least, in a corpus of so many."""
    return max(LEAST, round(LEAST_SHARE * documents))


def find_newborn(
    topics: Sequence[np.ndarray],
    vectors: Vectors | np.ndarray,
    fresh: np.ndarray,
    cells: Cells,
    most: int = 200_000,
) -> list[Newborn]:
    """The cells of new topics among the clusters' own; a topic that none can tell apart has none.

    Args: rows of each topic; unit vectors float32 (documents, width); which of them are tonight's,
    bool (documents,); the clusters so far; how many documents of either side are looked at.
    """
    if not len(topics):
        return []
    vectors, fresh = as_vectors(vectors), fresh.copy()
    for rows in topics:
        fresh[rows] = True
    groups = [vectors.take(rows) for rows in topics]
    new, old = (_drawn(np.flatnonzero(side), most) for side in (fresh, ~fresh))
    found = _cells_of(groups, vectors.take(new), vectors.take(old), cells, PURITY)
    return [one for one in found if one is not None and one.documents >= LEAST]


def _drawn(rows: np.ndarray, most: int) -> np.ndarray:
    """So many of some rows, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(1).permutation(rows)[:most])


def _cells_of(
    groups: list[np.ndarray], fresh: np.ndarray, known: np.ndarray, cells: Cells, purity: float
) -> list[Newborn | None]:
    """The cell of each group that is as pure, if any: float32 (rows, width) each."""
    plain = [Newborn(group.mean(0), 1.0, len(group)) for group in groups]
    found: list[Newborn | None] = []
    for place, group in enumerate(groups):
        # The other new topics are there as well, or the first one would take them in.
        others = [*(one for one in found if one is not None), *plain[place + 1 :]]
        found.append(_grown(group, fresh, known, with_newborn(cells, others), purity))
    return found


def with_newborn(cells: Cells, born: list[Newborn]) -> Cells:
    """The clusters with the new ones behind them."""
    if not born:
        return cells
    return Cells(
        np.vstack([cells.centroids, *(one.centroid for one in born)]).astype(np.float32),
        np.append(cells.scales, [one.scale for one in born]).astype(np.float32),
        cells.radius,
    )


def novelty(fresh: np.ndarray, known: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Share of fresh documents among the nearest of a sample of both sides, float32 (fresh,).

    Args: unit vectors, float32 (documents, width). As many of either side are drawn, so that a half
    is usual.
    """
    size = min(len(fresh), len(known))
    drawn = random.permutation(len(fresh))[:size]
    both = np.concatenate([fresh[drawn], known[random.permutation(len(known))[:size]]])
    # Mixed: of equally near ones, the first are taken.
    order = random.permutation(len(both))
    both, tonight = both[order], order < size
    own = np.full(len(fresh), -1)
    own[drawn[order[tonight]]] = np.flatnonzero(tonight)
    near = min(NEIGHBOURS, len(both) - 1)
    out = np.empty(len(fresh), np.float32)
    for start in range(0, len(fresh), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(fresh)))
        likeness = fresh[rows] @ both.T
        itself = own[rows] >= 0
        likeness[np.flatnonzero(itself), own[rows][itself]] = -np.inf
        nearest = np.argpartition(-likeness, near - 1, axis=1)[:, :near]
        out[rows] = tonight[nearest].mean(1)
    return out


def _topics(novel: np.ndarray, usual: float, least: int, centroids: np.ndarray) -> list[np.ndarray]:
    """Novel documents in groups, the rows of each, int64.

    Args: novel unit vectors; how like a document usually is to its cluster (cosine); the fewest
    documents of a group; centroids of the clusters, whose nearness to each other is the measure.
    """
    centres = _dense(novel, usual, least)
    if not centres:
        return []
    others = unit(centroids) @ unit(centroids).T
    np.fill_diagonal(others, -1)
    near = float(np.quantile(others.max(1), APART)) if len(centroids) > 1 else 1.0
    groups = _merged(novel, centres, near)
    found = [np.flatnonzero(groups == one) for one in range(int(groups.max()) + 1)]
    centre = [unit(novel[rows].mean(0, keepdims=True))[0] for rows in found]
    kept = [
        rows[novel[rows] @ one > SLACK * usual] for rows, one in zip(found, centre, strict=True)
    ]
    return [rows for rows in kept if len(rows) >= least]


def _dense(novel: np.ndarray, usual: float, least: int) -> list[np.ndarray]:
    """Centres of dense groups, the densest first, each taking its documents away."""
    # Two documents as like a centre as usual are as like each other as its square, on average.
    left, centres = novel[:MOST], list[np.ndarray]()
    while len(left) >= least:
        counts = np.concatenate([
            (left[start : start + CHUNK] @ left.T > usual**2).sum(1)
            for start in range(0, len(left), CHUNK)
        ])  # fmt: skip
        if counts.max() < least:
            break
        centre = left[left @ left[int(counts.argmax())] > usual**2].mean(0)
        centre /= max(float(np.linalg.norm(centre)), 1e-12)
        inside = left @ centre > usual
        if inside.sum() < least:
            break
        centres.append(centre)
        left = left[~inside]
    return centres


def _merged(novel: np.ndarray, centres: list[np.ndarray], near: float) -> np.ndarray:
    """The group of each novel document, int64 (novel,), centres that are too near being one."""
    groups = (novel @ np.stack(centres).T).argmax(1)
    while len(centres) > 1:
        likeness = np.stack(centres) @ np.stack(centres).T
        np.fill_diagonal(likeness, -1)
        one, two = np.unravel_index(int(likeness.argmax()), likeness.shape)
        if likeness[one, two] < near:
            break
        groups[groups == two] = one
        groups[groups > two] -= 1
        means = [novel[groups == place].mean(0) for place in range(len(centres) - 1)]
        centres = list(unit(np.stack(means)))
    return np.unique(groups, return_inverse=True)[1]


def _grown(
    group: np.ndarray, fresh: np.ndarray, known: np.ndarray, cells: Cells, purity: float
) -> Newborn | None:
    """The cell round a group that holds most of what is new, and little else; None if none does."""
    there = [cells.assign(side)[1] for side in (fresh, known)]
    centre, usual, found = group.mean(0), len(fresh) / len(known), None
    for _ in range(3):  # the centre moves with what the cell holds
        apart = [np.linalg.norm(side - centre, axis=1) for side in (fresh, known)]
        # A document falls to the new cell when its scale is above this.
        from_scale = [np.sort(a / np.maximum(b, 1e-9)) for a, b in zip(apart, there, strict=True)]
        new, old = (np.searchsorted(one, STEPS) for one in from_scale)
        more = new - usual * old
        fits = (more >= purity * (new + old)) & (new > 0)
        if not fits.any():
            return found
        enough = np.flatnonzero(fits & (more >= NEARLY * more[fits].max()))
        best = int(enough[np.abs(STEPS[enough] - 1).argmin()])
        found = Newborn(centre.astype(np.float32), float(STEPS[best]), int(new[best]))
        centre = fresh[apart[0] / STEPS[best] < there[0]].mean(0)
    return found
