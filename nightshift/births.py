"""New topics: where tonight's documents stand denser than all those before.

Clusters of a fitted corpus say little of a topic that arrived today: it lies in the cells of others
until it is large. But round its documents there are only tonight's, while elsewhere tonight's and
earlier ones are mixed as everywhere (the nearest-neighbour two-sample test, Henze 1988).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .nearest import Cells, unit

NEIGHBOURS = 20
NOVEL = 0.8
"""Share of tonight's documents among a document's neighbours, drawn from as many of both, that
makes it novel: with nothing new, 16 of 20 are tonight's for six documents in a thousand."""
PURITY = 0.87
"""Share of a newborn's documents that are more than the usual share of tonight's."""
LEAST, LEAST_SHARE = 10, 0.002
"""Documents that a topic has at least: in all, and as a share of the corpus."""
APART = 0.5
"""Groups that are nearer than this share of the clusters are to their nearest are one topic."""
SLACK = 0.7
"""Of the clusters' usual likeness, how much a novel document needs to be counted to a group."""
STEPS = np.linspace(0.3, 1.6, 53)
"""Scales tried for a newborn."""
MOST = 20_000
"""Documents of either side that are compared, at most: the cost is their product."""
CHUNK = 2048


@dataclass(frozen=True)
class Newborn:
    """A topic that is new: centroid float32 (width,), its scale, and its documents tonight."""

    centroid: np.ndarray
    scale: float
    documents: int


def find_births(fresh: np.ndarray, known: np.ndarray, cells: Cells, seed: int) -> list[Newborn]:
    """Topics that tonight's documents have and earlier ones have not.

    Args: unit vectors of tonight's and of earlier documents, float32 (documents, width); the
    clusters so far.
    """
    random = np.random.default_rng(seed)
    least = max(LEAST, round(LEAST_SHARE * (len(fresh) + len(known))))
    if len(fresh) < least or len(known) < least or not len(cells):
        return []
    share = min(1.0, MOST / len(fresh))
    known = known[random.permutation(len(known))[: max(MOST, len(fresh))]]
    fresh = fresh[random.permutation(len(fresh))[:MOST]]
    least = max(LEAST, round(share * least))
    novel = fresh[novelty(fresh, known, random) >= NOVEL]
    usual = float(np.median((known * unit(cells.centroids)[cells.assign(known)[0]]).sum(1)))
    groups = _topics(novel, usual, least, cells.centroids)
    plain = [Newborn(group.mean(0), 1.0, len(group)) for group in groups]
    born: list[Newborn] = []
    for place, group in enumerate(groups):
        # The other new topics are there as well, or the first one would take them in.
        there = with_newborn(cells, [*born, *plain[place + 1 :]])
        found = _grown(group, fresh, known, there)
        if found is not None and found.documents >= least:
            born.append(found)
    return born


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
    own = np.full(len(fresh), -1)
    own[drawn] = np.arange(size)
    near = min(NEIGHBOURS, len(both) - 1)
    out = np.empty(len(fresh), np.float32)
    for start in range(0, len(fresh), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(fresh)))
        likeness = fresh[rows] @ both.T
        itself = own[rows] >= 0
        likeness[np.flatnonzero(itself), own[rows][itself]] = -np.inf
        nearest = np.argpartition(-likeness, near - 1, axis=1)[:, :near]
        out[rows] = (nearest < size).mean(1)
    return out


def _topics(novel: np.ndarray, usual: float, least: int, centroids: np.ndarray) -> list[np.ndarray]:
    """Novel documents in groups, float32 (rows, width) each.

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
    found = [novel[groups == one] for one in range(int(groups.max()) + 1)]
    likeness = ((group, group @ unit(group.mean(0, keepdims=True))[0]) for group in found)
    kept = (group[near_enough > SLACK * usual] for group, near_enough in likeness)
    return [group for group in kept if len(group) >= least]


def _dense(novel: np.ndarray, usual: float, least: int) -> list[np.ndarray]:
    """Centres of dense groups, the densest first, each taking its documents away."""
    # Two documents as like a centre as usual are as like each other as its square, on average.
    left, centres = novel[:MOST], list[np.ndarray]()
    while len(left) >= least:
        counts = np.concatenate([
            (left[start : start + CHUNK] @ left.T > usual**2).sum(1)
            for start in range(0, len(left), CHUNK)
        ])  # fmt: skip
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


def _grown(group: np.ndarray, fresh: np.ndarray, known: np.ndarray, cells: Cells) -> Newborn | None:
    """The cell round a group that holds most of what is new, and little else; None if none does."""
    there = [cells.assign(side)[1] for side in (fresh, known)]
    centre, usual, found = group.mean(0), len(fresh) / len(known), None
    for _ in range(3):  # the centre moves with what the cell holds
        apart = [np.linalg.norm(side - centre, axis=1) for side in (fresh, known)]
        # A document falls to the new cell when its scale is above this.
        from_scale = [np.sort(a / np.maximum(b, 1e-9)) for a, b in zip(apart, there, strict=True)]
        new, old = (np.searchsorted(one, STEPS) for one in from_scale)
        more = new - usual * old
        fits = (more >= PURITY * (new + old)) & (new > 0)
        if not fits.any():
            return found
        # Of equal ones the most usual: a scale that is too small gives way to any later topic.
        equal = np.flatnonzero(fits & (more == more[fits].max()))
        best = int(equal[np.abs(STEPS[equal] - 1).argmin()])
        found = Newborn(centre.astype(np.float32), float(STEPS[best]), int(new[best]))
        centre = fresh[apart[0] / STEPS[best] < there[0]].mean(0)
    return found
