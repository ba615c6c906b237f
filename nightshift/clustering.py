"""KMeans on document vectors: start from last night's centroids, choose k, keep ids, find names.

A cluster's published documents are always those nearest to its centroid (`nearest_centroids`), so
a document that arrives alone gets the same cluster as one that was fitted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from .config import Config
from .nearest import nearest_centroids
from .tokenizer import HAN, words

SAMPLE = 2_000
"""Documents on which silhouettes are measured: they cost the square of their number."""
FIT_SAMPLE = 20_000
"""Documents on which candidates for k are fitted."""
STAY = 0.01
"""Silhouette a new k must gain over last night's: a number that wanders helps nobody."""
SHARED = 0.5
"""A cluster continues last night's when they share this much of the smaller one's documents."""


class ClusterConfig(Config):
    """How documents are grouped."""

    k: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of clusters; auto chooses by silhouette, moving little from night to night."""
    k_min: int = Field(default=4, ge=1)
    """Fewest clusters auto may choose."""
    k_max: int = Field(default=80, ge=2)
    """Most clusters auto may choose."""
    minibatch_above: int = Field(default=200_000, ge=1000)
    """More documents than this are fitted by MiniBatchKMeans (Sculley 2010)."""
    keywords: int = Field(default=8, ge=1, le=50)
    """Keywords per cluster."""
    exemplars: int = Field(default=5, ge=1, le=100)
    """Nearest documents listed per cluster."""
    seed: int = Field(default=1, ge=0)
    """Seed of the fit."""


@dataclass(frozen=True)
class Clustering:
    """places int64 and distances float32 (documents,); centroids float32 (clusters, width)."""

    centroids: np.ndarray
    places: np.ndarray
    distances: np.ndarray
    silhouette: float | None


def cluster(
    vectors: np.ndarray, config: ClusterConfig, start: np.ndarray | None = None
) -> Clustering:
    """Group unit vectors; no cluster is empty, and k never exceeds the number of distinct ones.

    Args: float32 (documents, width), at least one row; `start`, last night's centroids in tonight's
    space, float32 (clusters, width): the fit begins there.
    """
    distinct = _distinct(vectors, max(config.k_max, 0 if config.k == "auto" else config.k))
    random = np.random.default_rng(config.seed)
    sample = vectors[np.sort(random.permutation(len(vectors))[:FIT_SAMPLE])]
    last = None if start is None else len(start)
    k = min(distinct, choose_k(sample, config, last) if config.k == "auto" else config.k)
    centroids = _fit(vectors, k, config, start)
    places, distances = nearest_centroids(vectors, centroids)
    full = np.unique(places)
    if len(full) < len(centroids):  # MiniBatchKMeans may leave a centroid that nothing is near
        centroids = centroids[full]
        places, distances = nearest_centroids(vectors, centroids)
    return Clustering(centroids, places, distances, silhouette(vectors, places, config.seed))


def choose_k(vectors: np.ndarray, config: ClusterConfig, last: int | None) -> int:
    """The k of the best silhouette; near last night's k, which stays unless another is better.

    Args: a sample of the vectors; last night's k, or None on a first night.
    """
    ceiling = min(
        config.k_max, max(1, _distinct(vectors, config.k_max), 1), max(1, len(vectors) // 2)
    )
    floor = min(config.k_min, ceiling)
    if last is None:
        grid = np.unique(np.geomspace(max(floor, 1), ceiling, 9).round().astype(int)).tolist()
    else:
        grid = sorted({min(max(one, floor), ceiling) for one in range(last - 1, last + 3)})
    found: dict[int, float] = {}
    for k in grid:
        places, _ = nearest_centroids(vectors, _fit(vectors, k, config, None, starts=1))
        measured = silhouette(vectors, places, config.seed)
        found[k] = -1.0 if measured is None else measured
    best = max(found, key=lambda k: (found[k], -k))
    if last in found and found[best] < found[last] + STAY:
        return last
    return best


def _fit(
    vectors: np.ndarray,
    k: int,
    config: ClusterConfig,
    start: np.ndarray | None,
    starts: int = 3,
) -> np.ndarray:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    big = len(vectors) > config.minibatch_above
    kind: Any = MiniBatchKMeans if big else KMeans
    settings: dict[str, Any] = {"batch_size": 8192} if big else {}
    if start is None:
        settings |= {"init": "k-means++", "n_init": starts}
    else:
        settings |= {"init": _seeds(vectors, k, start, config.seed), "n_init": 1}
    # One thread per fit: sums over threads come in no fixed order, and a night must repeat.
    with threadpool_limits(1):
        fitted = kind(n_clusters=k, random_state=config.seed, **settings).fit(vectors)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32)


def _seeds(vectors: np.ndarray, k: int, start: np.ndarray, seed: int) -> np.ndarray:
    """Exactly k centroids to begin with: last night's, without the emptiest or with fresh ones.

    Fresh ones are drawn with probability by squared distance to what is there, as k-means++ does
    (Arthur & Vassilvitskii 2007).
    """
    random = np.random.default_rng(seed)
    places, distances = nearest_centroids(vectors, start)
    if len(start) > k:
        sizes = np.bincount(places, minlength=len(start))
        return start[np.sort(np.argsort(-sizes, kind="stable")[:k])]
    centroids = list(start)
    while len(centroids) < k:
        weight = distances.astype(np.float64) ** 2
        chance = weight / weight.sum() if weight.sum() > 0 else None
        fresh = vectors[random.choice(len(vectors), p=chance)]
        centroids.append(fresh)
        distances = np.minimum(distances, np.linalg.norm(vectors - fresh, axis=1))
    return np.stack(centroids).astype(np.float32)


def _distinct(vectors: np.ndarray, enough: int) -> int:
    """Number of different rows, counted no further than needed."""
    found: set[bytes] = set()
    for row in vectors:
        found.add(row.tobytes())
        if len(found) >= enough:
            break
    return len(found)


def silhouette(vectors: np.ndarray, places: np.ndarray, seed: int) -> float | None:
    """Mean silhouette (Rousseeuw 1987) on a sample; None with fewer than two clusters in it."""
    from sklearn.metrics import silhouette_score

    rows = np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]
    there = len(np.unique(places[rows]))
    if there < 2 or there >= len(rows):
        return None
    return float(silhouette_score(vectors[rows], places[rows]))


def carried_over(
    vectors: np.ndarray, doc_ids: Sequence[str], clusters: dict[str, str]
) -> tuple[list[str], np.ndarray | None]:
    """Last night's clusters in tonight's space: the mean of the vectors of their documents.

    A new encoder moves every vector, but documents know where they were.

    Args: vectors (documents, width), their ids, cluster id by document of last night.
    Returns: cluster ids that still have documents, sorted, and centroids (clusters, width).
    """
    held = [clusters.get(doc_id) for doc_id in doc_ids]
    ids = sorted({one for one in held if one is not None})
    if not ids:
        return [], None
    place = {one: index for index, one in enumerate(ids)}
    rows = np.array([index for index, one in enumerate(held) if one is not None])
    owners = np.array([place[one] for one in held if one is not None])
    sums = np.zeros((len(ids), vectors.shape[1]), np.float64)
    np.add.at(sums, owners, vectors[rows])
    means = sums / np.bincount(owners, minlength=len(ids))[:, None]
    return ids, means.astype(np.float32)


@dataclass(frozen=True)
class Identity:
    """The id of each of tonight's clusters, what happened to it, and the ids that ended."""

    ids: list[str]
    events: list[Literal["born", "continued"]]
    ended: list[str]


def identify(
    places: np.ndarray,
    k: int,
    doc_ids: Sequence[str],
    clusters: dict[str, str],
    ever: Iterable[str],
) -> Identity:
    """Match tonight's clusters to last night's by shared documents (Kuhn 1955).

    Args: tonight's place of each document, the number of places, the documents' ids, cluster id by
    document of last night, every id ever given (never given again).
    """
    from scipy.optimize import linear_sum_assignment

    old = sorted(set(clusters.values()))
    index = {one: place for place, one in enumerate(old)}
    shared = np.zeros((k, len(old)), np.int64)
    for place, doc_id in zip(places.tolist(), doc_ids, strict=True):
        before = clusters.get(doc_id)
        if before is not None:
            shared[place, index[before]] += 1
    smaller = np.minimum(shared.sum(1, keepdims=True), shared.sum(0, keepdims=True))
    rows, columns = linear_sum_assignment(-shared)
    kept = {
        int(row): old[column]
        for row, column in zip(rows, columns, strict=True)
        if shared[row, column] > 0 and shared[row, column] >= SHARED * smaller[row, column]
    }
    numbers = [int(one.removeprefix("c-")) for one in ever]
    fresh = max(numbers, default=0)
    ids: list[str] = []
    for place in range(k):
        if place not in kept:
            fresh += 1
        ids.append(kept.get(place, f"c-{fresh:04d}"))
    events: list[Literal["born", "continued"]] = [
        "continued" if place in kept else "born" for place in range(k)
    ]
    return Identity(ids, events, sorted(set(old) - set(kept.values())))


def keywords(texts: Sequence[str], places: Sequence[int], k: int, most: int) -> list[list[str]]:
    """Words that tell a cluster from the others, by class-based TF-IDF (Grootendorst 2022).

    Args: texts and their clusters' places, the number of clusters, words per cluster at most.
    """
    counts = [Counter[str]() for _ in range(k)]
    for text, place in zip(texts, places, strict=True):
        counts[place].update(set(terms(text[:4000])))
    total = Counter[str]()
    for one in counts:
        total.update(one)
    mean = sum(total.values()) / max(k, 1)
    found: list[list[str]] = []
    for one in counts:
        size = max(sum(one.values()), 1)
        rarely = 2 if size > 200 else 1
        scored = {
            word: n / size * np.log1p(mean / total[word]) for word, n in one.items() if n >= rarely
        }
        found.append(sorted(scored, key=lambda word: (-scored[word], word))[:most])
    return found


def terms(text: str) -> list[str]:
    """Words worth naming a cluster by: folded, no stop words, numbers or single letters."""
    stop = stop_words()
    return [
        word
        for word in (one.lower() for one in words(text))
        if word not in stop and (len(word) > 2 or (len(word) > 1 and HAN.search(word)))
        and not NUMBER.fullmatch(word)
    ]  # fmt: skip


NUMBER = re.compile(r"[\d_.,]+\w{0,2}")

# Function words of Chinese that jieba leaves standing alone and that name nothing.
CHINESE_STOP_WORDS = """
一个 一些 一样 一种 一直 一定 一下 一次 不会 不是 不能 不要 不过 不同 与 且 两个 为什么 为了
也是 了 了吗 什么 今天 今年 他们 以及 以后 以来 以上 以下 任何 但是 你们 使用 其中 其他 其实
几个 则 到 却 又 及 只有 只是 可以 可能 各 各种 同时 后 向 吗 吧 呢 和 因为 因此 在 多少
大家 太 她们 如何 如果 如此 它们 对 对于 将 就是 已经 已 并 并且 应该 开始 当 很 很多 怎么
怎样 您 情况 想 成为 我们 我 或 或者 所以 所有 才 把 按 据 无法 时 时候 是 是否 更 更多 最
有 有些 有没有 有的 来 来说 根据 正在 每 比 比较 没 没有 没法 然后 现在 由 由于 的 的话 目前
相关 着 知道 给 而 而且 自己 虽然 被 要 认为 让 许多 请问 还 还是 还有 这 这个 这些 这样
这种 进行 通过 那 那个 那么 那些 都 都是 里 需要 非常 首次
"""


@cache
def stop_words() -> frozenset[str]:
    """English (scikit-learn's list) and Chinese words that name no cluster."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    contracted = {"don't", "i'm", "it's", "i've", "can't", "doesn't", "didn't", "isn't", "that's"}
    return frozenset({*ENGLISH_STOP_WORDS, *CHINESE_STOP_WORDS.split(), *contracted})
