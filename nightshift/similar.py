"""Documents that are alike, and those that a reader would want: vectors, counted exactly.

Nothing is indexed: a table of vectors is streamed once, and only the best are kept.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .nearest import UNASSIGNED, unit

SEVERAL = re.compile(r"\s*[;|]\s*")
SMOOTH = 1.0
"""Documents' worth of everybody's taste that a reader starts with: who read one is not known by
it."""


def nearest(
    vector: np.ndarray,
    batches: Iterable[tuple[Sequence[str], np.ndarray]],
    k: int,
    but: str | None = None,
) -> list[tuple[str, float]]:
    """The k documents with the largest cosine to a vector, the nearest first.

    Equal ones come in the order of their ids. Memory is one batch and k.

    Args: float32 (width,); ids and float32 (documents, width), batch by batch; a document to leave
    out.
    """
    wanted = unit(np.asarray(vector, np.float32)[None])[0]
    best: list[tuple[float, str]] = []
    for doc_ids, vectors in batches:
        cosines = unit(vectors) @ wanted
        # Ties are decided by ids, so none at the edge may be lost here.
        edge = np.partition(cosines, -(k + 1))[-(k + 1)] if len(cosines) > k + 1 else -np.inf
        rows = np.flatnonzero(cosines >= edge)
        found = [
            (float(cosines[row]), doc_ids[row]) for row in rows.tolist() if doc_ids[row] != but
        ]
        best = heapq.nsmallest(k, {*best, *found}, key=lambda one: (-one[0], one[1]))
    return [(doc_id, cosine) for cosine, doc_id in best]


def readers_of(value: str | None) -> list[str]:
    """Who is named in a reader's column: several by `;` or `|`, each once."""
    return list(dict.fromkeys(one for one in SEVERAL.split((value or "").strip()) if one))


def followed(read: Iterable[tuple[str, str]]) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """How many documents of which cluster each reader read, and all of them together.

    Args: (reader, cluster id) of every document and reader before tonight.
    """
    of: dict[str, Counter[str]] = defaultdict(Counter)
    all_of = Counter[str]()
    for reader, cluster_id in read:
        of[reader][cluster_id] += 1
        all_of[cluster_id] += 1
    return dict(of), all_of


def ranked(
    follows: Mapping[str, int],
    popular: Mapping[str, int],
    tonight: Sequence[tuple[str, str, float]],
) -> list[str]:
    """Tonight's documents for a reader: those of the clusters they follow most, first.

    Within a cluster the nearest to its centre come first. Where a reader follows nothing, this is
    plain popularity.

    Args: documents read by cluster, the reader's own and everybody's; (doc_id, cluster id,
    distance) of tonight.
    """
    everybody = sum(popular.values()) or 1
    weight = {
        one: follows.get(one, 0) + SMOOTH * popular.get(one, 0) / everybody
        for one in {cluster for _, cluster, _ in tonight}
    }
    # Those in no cluster have nothing in common but that.
    weight[UNASSIGNED] = 0.0
    return [
        doc_id
        for doc_id, cluster, _ in sorted(
            tonight, key=lambda one: (-weight[one[1]], one[1], one[2], one[0])
        )
    ]


def recall_at(ranking: Sequence[str], read: set[str], k: int = 20) -> float:
    """Share of what was read that stands among the first k; of more than k, of k."""
    return len(read.intersection(ranking[:k])) / min(len(read), k)
