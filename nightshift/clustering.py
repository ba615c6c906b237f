"""KMeans on document vectors: start from last night's centroids, let topics be born, choose k.

A cluster's published documents are always those that `Cells.assign` gives it, so a document that
arrives alone gets the same cluster as one that was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from .births import find_newborn, with_newborn
from .chunks import Vectors, as_vectors, each
from .ids import steady
from .naming import NamingConfig
from .nearest import UNASSIGNED, Cells, nearest_centroids, nearest_places

SAMPLE = 2_000
"""Documents on which silhouettes are measured: they cost the square of their number."""
FIT_SAMPLE = 20_000
"""Documents on which candidates for k are fitted."""
STAY = 0.02
"""Silhouette that a split or a merger must gain: a number that wanders helps nobody."""
SPLITS = 3
"""Clusters that are tried in halves each night, those with the most spread."""
ROUNDS = 20
"""Rounds of Lloyd's algorithm on a later night; it starts where the last one ended."""
SETTLED = 1e-4
"""Centroids that move less than this stand."""
UNSEEN = 100
"""Documents that a model has not learned from are told by, if there are so many: the others lie
nearer to their centroids than any that will come."""

Assign = Callable[[Vectors, Cells], tuple[np.ndarray, np.ndarray]]
"""All vectors and cells -> places and distances, as of `Cells.assign`."""


class ClusterConfig(NamingConfig):
    """How documents are grouped."""

    k: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of clusters; auto chooses by silhouette on the first night, and later lets clusters be
    born, split and merge."""
    k_min: int = Field(default=4, ge=1)
    """Fewest clusters auto may choose."""
    k_max: int = Field(default=80, ge=2)
    """Most clusters auto may choose."""
    unassigned: float = Field(default=0.03, ge=0, lt=0.5)
    """Share of known documents that are too far from every centroid to belong to a cluster; 0 puts
    each document into one."""
    minibatch_above: int = Field(default=200_000, ge=1000)
    """Of more documents than this, so many are drawn by chance to fit the clusters to; all are
    assigned. What is held in memory at once grows with it."""
    exemplars: int = Field(default=5, ge=1, le=100)
    """Nearest documents listed per cluster."""
    seed: int = Field(default=1, ge=0)
    """Seed of the fit."""


@dataclass(frozen=True)
class Clustering:
    """places int64 (-1: unassigned) and distances float32, in scales, (documents,)."""

    cells: Cells
    places: np.ndarray
    distances: np.ndarray
    figures: dict[str, float]
    """What `quality` says of them."""


def cluster(
    vectors: Vectors | np.ndarray,
    config: ClusterConfig,
    start: Cells | None = None,
    fresh: np.ndarray | None = None,
    topics: Sequence[np.ndarray] = (),
    unseen: np.ndarray | None = None,
    by_hand: np.ndarray | None = None,
    assign: Assign | None = None,
) -> Clustering:
    """Group unit vectors; no cluster is empty, and k never exceeds the number of distinct ones.

    Args: float32 (documents, width), at least one row, which may lie in a file; `start`, last
    night's clusters in tonight's space: the fit begins there; which documents are tonight's, bool
    (documents,); the rows of each topic that is new, which is born where k is `auto`; which
    documents the vectors' model has not learned from, bool (documents,): they tell what is far,
    where they suffice; which of `start` a person merged or split, ever, bool (clusters,): these are
    not split or merged again, and the number of clusters is that of `start`, whatever `k` says;
    what gives all vectors their places, where that is not `assigned`.
    """
    vectors = as_vectors(vectors)
    most = distinct(vectors, max(config.k_max, 0 if config.k == "auto" else config.k))
    known = np.ones(len(vectors), bool) if fresh is None or fresh.all() else ~fresh
    if start is None:
        cells = _first(vectors, config, most)
    elif config.k == "auto":
        cells = _auto(vectors, config, start, known, most, topics, by_hand)
    else:
        k = min(most, config.k) if by_hand is None else distinct(vectors, len(start))
        some = _some(vectors, config)
        cells = settle(some, Cells(*_seeds(some, k, start, config.seed)))
    if unseen is not None and (known & unseen).sum() >= UNSEEN:
        known = known & unseen
    return _published(vectors, cells, config, known, assign or assigned)


def _first(vectors: Vectors, config: ClusterConfig, most: int) -> Cells:
    sample, k = _sample(vectors, config), config.k
    if k == "auto":
        k = choose_k(sample, config)
    if len(vectors) <= config.minibatch_above:
        return Cells.of(_fit(_all(vectors), min(most, k), config, starts=3))
    start = _fit(sample, min(k, distinct(sample, k)), config, starts=3)
    return settle(_some(vectors, config), Cells.of(start))


def _auto(
    vectors: Vectors,
    config: ClusterConfig,
    start: Cells,
    known: np.ndarray,
    most: int,
    topics: Sequence[np.ndarray],
    by_hand: np.ndarray | None,
) -> Cells:
    """Last night's clusters with tonight's births, settled; then one split or merger at most."""
    room, some = min(config.k_max, most, max(1, len(vectors) // 2)), _some(vectors, config)
    if by_hand is not None:
        room = max(room, distinct(vectors, len(start)))
    if len(start) > room:
        start = Cells(*_seeds(some, room, start, config.seed))
    born = find_newborn(topics, vectors, ~known, start, config.minibatch_above)
    cells = settle(some, with_newborn(start, born[: room - len(start)]))
    # A night of a birth has had its change; and a cell just born would be the first to be merged.
    return cells if born else _adjusted(vectors, cells, config, room, by_hand)


def _published(
    vectors: Vectors, cells: Cells, config: ClusterConfig, known: np.ndarray, assign: Assign
) -> Clustering:
    """Set the radius, leave out cells that hold nothing, and assign."""
    places, distances = assign(vectors, cells)
    radius = math.inf
    if config.unassigned:
        farthest = np.sort(distances[known])
        edge = farthest[len(farthest) - 1 - int(config.unassigned * len(farthest))]
        radius = float(edge) * (1 + 1e-5) + 1e-5  # whoever stands on the edge belongs
    full = np.flatnonzero(np.bincount(places[distances <= radius], minlength=len(cells)))
    every = len(full) == len(cells)
    cells = Cells(cells.centroids[full], cells.scales[full], radius)
    if every:
        places = np.where(distances <= radius, places, -1)
    else:
        places, distances = assign(vectors, cells)
    held = np.flatnonzero(places >= 0)
    return Clustering(cells, places, distances, quality(vectors, places, config.seed, held))


def assigned(vectors: Vectors, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of every document, chunk by chunk: each chunk's is its own affair, so that they
    may as well be found elsewhere (`shards.Place`).

    Returns: as `Cells.assign`.
    """
    places, distances = zip(*each(cells.assign, vectors.chunks()), strict=True)
    return np.concatenate(places), np.concatenate(distances)


def choose_k(vectors: np.ndarray, config: ClusterConfig) -> int:
    """The k of the best silhouette, for a first night; a sample of the vectors."""
    ceiling = min(config.k_max, distinct(vectors, config.k_max), max(1, len(vectors) // 2))
    floor = min(config.k_min, ceiling)
    grid = np.unique(np.geomspace(max(floor, 1), ceiling, 9).round().astype(int)).tolist()
    found: dict[int, float] = {}
    for k in grid:
        places, _ = nearest_centroids(vectors, _fit(vectors, k, config))
        measured = silhouette(vectors, places, config.seed)
        found[k] = -1.0 if measured is None else measured
    return max(found, key=lambda k: (found[k], -k))


def _adjusted(
    vectors: Vectors,
    cells: Cells,
    config: ClusterConfig,
    room: int,
    by_hand: np.ndarray | None,
) -> Cells:
    """The clusters, or with one of them split, or two merged, where that is clearly better.

    Every candidate starts from the clusters as they are: fits from scratch differ by luck alone.
    What a person shaped stays.
    """
    sample = _sample(vectors, config)
    floor = min(config.k_min, room)
    loose = np.ones(len(cells), bool)
    if by_hand is not None and len(by_hand) == len(cells):
        loose = ~by_hand
    tried = [
        *(_halves(sample, cells, config, loose) if len(cells) < room else []),
        *(_mergers(sample, cells, loose) if len(cells) > floor else []),
    ]
    measured = [_worth(sample, one, config) for one in tried]
    if not tried or max(measured) < _worth(sample, cells, config) + STAY:
        return cells
    return settle(_some(vectors, config), tried[int(np.argmax(measured))])


def _worth(sample: np.ndarray, cells: Cells, config: ClusterConfig) -> float:
    places, _ = nearest_centroids(sample, cells.centroids, cells.scales)
    measured = silhouette(sample, places, config.seed)
    return -1.0 if measured is None else measured


def _halves(
    sample: np.ndarray, cells: Cells, config: ClusterConfig, loose: np.ndarray
) -> list[Cells]:
    """The loose clusters of most spread, each in two."""
    places, distances = nearest_centroids(sample, cells.centroids, cells.scales)
    spread = np.bincount(places, distances.astype(np.float64) ** 2, len(cells))
    found: list[Cells] = []
    widest = np.argsort(-spread, kind="stable")
    for place in widest[loose[widest]][:SPLITS]:
        members = sample[places == place]
        if distinct(members, 2) == 2:
            two = _fit(members, 2, config)
            rest = np.delete(cells.centroids, place, axis=0)
            scales = np.append(np.delete(cells.scales, place), [cells.scales[place]] * 2)
            found.append(settle(sample, Cells(np.vstack([rest, two]), scales)))
    return found


def _mergers(sample: np.ndarray, cells: Cells, loose: np.ndarray) -> list[Cells]:
    """The two nearest loose clusters as one."""
    if loose.sum() < 2:
        return []
    apart = np.linalg.norm(cells.centroids[:, None] - cells.centroids[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    apart[~loose], apart[:, ~loose] = np.inf, np.inf
    one, two = np.unravel_index(int(apart.argmin()), apart.shape)
    centroids, scales = cells.centroids.copy(), cells.scales.copy()
    centroids[one] = (centroids[one] + centroids[two]) / 2
    scales[one] = max(scales[one], scales[two])
    left = Cells(np.delete(centroids, two, axis=0), np.delete(scales, two))
    return [settle(sample, left)]


def settle(vectors: Vectors | np.ndarray, cells: Cells, rounds: int = ROUNDS) -> Cells:
    """Lloyd's algorithm (Lloyd 1982) in cells of different scale, from where they stand.

    A round passes over the vectors once, chunk by chunk. A cell that holds nothing keeps its
    centroid.
    """
    centroids, vectors = cells.centroids, as_vectors(vectors)
    for _ in range(rounds):
        moved = _means(vectors, centroids, cells.scales)
        settled = np.abs(moved - centroids).max() < SETTLED
        centroids = moved
        if settled:
            break
    return Cells(centroids, cells.scales, cells.radius)


def _means(vectors: Vectors, centroids: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The mean of what each cell holds."""
    from scipy.sparse import csr_matrix

    def of_chunk(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = nearest_places(chunk, centroids, scales)
        ones, rows = np.ones(len(places), np.float32), np.arange(len(places))
        members = csr_matrix((ones, (places, rows)), (len(centroids), len(places)))
        return np.asarray(members @ chunk), np.bincount(places, minlength=len(centroids))

    sums, sizes = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    for some, count in each(of_chunk, vectors.chunks()):
        sums += some
        sizes += count
    means = sums / np.maximum(sizes, 1)[:, None]
    return np.where(sizes[:, None] > 0, means, centroids).astype(np.float32)


def _sample(vectors: Vectors, config: ClusterConfig) -> np.ndarray:
    random = np.random.default_rng(config.seed)
    return vectors.take(np.sort(random.permutation(len(vectors))[:FIT_SAMPLE]))


def _some(vectors: Vectors, config: ClusterConfig) -> Vectors:
    """All vectors, or of too many as many as the config allows."""
    rows = steady(len(vectors), config.minibatch_above)
    return vectors if len(rows) == len(vectors) else as_vectors(_rows(vectors, rows))


def _rows(vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    """Many ascending rows, by passing over all."""
    found, start = [np.empty((0, vectors.width), np.float32)], 0
    for chunk in vectors.chunks():
        low, high = np.searchsorted(rows, [start, start + len(chunk)])
        found.append(chunk[rows[low:high] - start])
        start += len(chunk)
    return np.concatenate(found)


def _all(vectors: Vectors) -> np.ndarray:
    parts = [*vectors.chunks(max(1, len(vectors)))]
    return parts[0] if parts else np.empty((0, vectors.width), np.float32)


def _fit(vectors: np.ndarray, k: int, config: ClusterConfig, starts: int = 1) -> np.ndarray:
    return fit_centroids(vectors, k, config.seed, starts)


def fit_centroids(vectors: np.ndarray, k: int, seed: int, starts: int = 1) -> np.ndarray:
    """KMeans from scratch, the best of so many starts.

    Returns: float32 (k, width).
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    settings: dict[str, Any] = {"n_init": starts, "random_state": seed}
    # One thread per fit: sums over threads come in no fixed order, and a night must repeat.
    with threadpool_limits(1):
        fitted = KMeans(n_clusters=k, init="k-means++", **settings).fit(vectors)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32)


def _seeds(vectors: Vectors, k: int, start: Cells, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Exactly k centroids to begin with: last night's, without the emptiest or with fresh ones.

    Fresh ones are drawn with probability by squared distance to what is there, as k-means++ does
    (Arthur & Vassilvitskii 2007). Returns: centroids (k, width) and scales (k,).
    """
    random = np.random.default_rng(seed)
    places, distances = assigned(vectors, Cells(start.centroids, start.scales))
    if len(start) > k:
        sizes = np.bincount(places, minlength=len(start))
        kept = np.sort(np.argsort(-sizes, kind="stable")[:k])
        return start.centroids[kept], start.scales[kept]
    centroids = list(start.centroids)
    while len(centroids) < k:
        weight = distances.astype(np.float64) ** 2
        chance = weight / weight.sum() if weight.sum() > 0 else None
        fresh = vectors.take(random.choice(len(vectors), 1, p=chance))[0]
        centroids.append(fresh)
        apart = [np.linalg.norm(chunk - fresh, axis=1) for chunk in vectors.chunks()]
        distances = np.minimum(distances, np.concatenate(apart))
    scales = np.append(start.scales, np.ones(k - len(start)))
    return np.stack(centroids).astype(np.float32), scales.astype(np.float32)


def distinct(vectors: Vectors | np.ndarray, enough: int) -> int:
    """Number of different rows, counted no further than needed."""
    found: set[bytes] = set()
    for chunk in as_vectors(vectors).chunks(1024):
        for row in chunk:
            found.add(row.tobytes())
            if len(found) >= enough:
                return len(found)
    return len(found)


def quality(
    vectors: Vectors | np.ndarray, places: np.ndarray, seed: int, among: np.ndarray | None = None
) -> dict[str, float]:
    """How far apart clusters are, and whether they are there again in other documents.

    On a sample of all rows, or of those `among` which it is asked, int64.
    Returns: silhouette (Rousseeuw 1987), the more the better; davies_bouldin (Davies & Bouldin
    1979), the less the better; stability, the adjusted Rand index of two groupings of all, by
    KMeans on either half (Ben-Hur et al. 2002). Empty with fewer than two clusters.
    """
    from sklearn.metrics import adjusted_rand_score, davies_bouldin_score

    among = np.arange(len(places)) if among is None else among
    rows = among[np.random.default_rng(seed).permutation(len(among))[:SAMPLE]]
    some, there = as_vectors(vectors).take(rows), places[rows]
    measured = _silhouette(some, there)
    if measured is None:
        return {}
    k = len(np.unique(there))
    halves = [
        nearest_centroids(some, fit_centroids(half, min(k, distinct(half, k)), seed))[0]
        for half in (some[::2], some[1::2])
    ]
    return {
        "silhouette": measured,
        "davies_bouldin": float(davies_bouldin_score(some, there)),
        "stability": float(adjusted_rand_score(*halves)),
    }


def silhouette(vectors: np.ndarray, places: np.ndarray, seed: int) -> float | None:
    """Mean silhouette (Rousseeuw 1987) on a sample; None with fewer than two clusters in it."""
    rows = np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]
    return _silhouette(vectors[rows], places[rows])


def _silhouette(some: np.ndarray, places: np.ndarray) -> float | None:
    from sklearn.metrics import silhouette_score

    there = len(np.unique(places))
    if there < 2 or there >= len(places):
        return None
    return float(silhouette_score(some, places))


def carried_over(
    vectors: Vectors | np.ndarray, places: np.ndarray, names: Sequence[str]
) -> tuple[list[str], np.ndarray | None]:
    """Last night's clusters in tonight's space: the mean of the vectors of their documents.

    A new encoder moves every vector, but documents know where they were.

    Args: vectors (documents, width); the place of each document's cluster of last night among the
    `names`, -1 for none, int64 (documents,).
    Returns: cluster ids that still have documents, sorted, and centroids (clusters, width).
    """
    sizes = np.bincount(places[places >= 0], minlength=len(names))
    ids = sorted(one for one, size in zip(names, sizes, strict=True) if size and one != UNASSIGNED)
    if not ids:
        return [], None
    own = {one: index for index, one in enumerate(ids)}
    owner = np.array([*(own.get(one, -1) for one in names), -1], np.int64)[places]
    sums, start = np.zeros((len(ids), as_vectors(vectors).width), np.float64), 0
    for chunk in as_vectors(vectors).chunks():
        mine = owner[start : start + len(chunk)]
        np.add.at(sums, mine[mine >= 0], chunk[mine >= 0])
        start += len(chunk)
    means = sums / np.bincount(owner[owner >= 0], minlength=len(ids))[:, None]
    return ids, means.astype(np.float32)


def reshaped(
    vectors: Vectors | np.ndarray,
    members: Mapping[str, np.ndarray],
    ids: list[str],
    start: Cells,
    into: Mapping[str, str],
    parts: Mapping[str, int],
    seed: int,
) -> tuple[list[str], Cells]:
    """Last night's clusters as people want them: first mergers, then splits.

    Args: unit vectors (documents, width); the rows of each cluster's documents; the ids of the
    clusters of `start`; into whom some are merged, and into how many some others are split.
    Returns: of each cluster now, the id that its documents had; and the clusters.
    """
    vectors = as_vectors(vectors)
    joined = {one: [one] for one in ids if one not in into}
    for one, other in into.items():
        joined[other].append(one)
    place = {one: index for index, one in enumerate(ids)}
    owners: list[str] = []
    centroids: list[np.ndarray] = []
    scales: list[float] = []
    for own, group in joined.items():
        rows = np.concatenate([members.get(one, np.empty(0, np.int64)) for one in group])
        here = start.centroids[place[own]][None]
        if len(rows) and (own in parts or len(group) > 1):
            some = vectors.take(rows[steady(len(rows), FIT_SAMPLE)])
            here = some.mean(0, keepdims=True)
            if own in parts:
                here = fit_centroids(some, distinct(some, parts[own]), seed, starts=3)
        owners += [own] * len(here)
        centroids.append(here)
        scales += [float(max(start.scales[place[one]] for one in group))] * len(here)
    return owners, Cells(np.concatenate(centroids).astype(np.float32), np.array(scales, np.float32))
