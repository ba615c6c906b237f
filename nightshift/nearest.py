"""Unit vectors and the one rule that gives a document its cluster; NumPy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

UNASSIGNED = "unassigned"
"""In place of a cluster's id: far from every centroid."""
BLOCK = 4_096
"""Documents compared at a time: their distances to hundreds of centroids stay in a core's cache."""


@dataclass(frozen=True)
class Cells:
    """Centroids, how far each reaches, and how far is too far.

    A document belongs to the centroid that is nearest in units of the cluster's scale
    (multiplicatively weighted Voronoi cells, Aurenhammer & Edelsbrunner 1984), unless even that is
    farther than the radius. Scales are 1 but for a topic that is narrower than the clusters it was
    born among: with their reach it would take half of its neighbours in.

    centroids: float32 (clusters, width). scales: float32 (clusters,). radius: in scales.
    """

    centroids: np.ndarray
    scales: np.ndarray
    radius: float = math.inf

    @classmethod
    def of(cls, centroids: np.ndarray) -> Cells:
        """Plain cells that reach as far as any."""
        return cls(centroids, np.ones(len(centroids), np.float32))

    def __len__(self) -> int:
        return len(self.centroids)

    def assign(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of each document, fitted or alone.

        Args: float32 (documents, width).
        Returns: int64 places, -1 beyond the radius, and distances in scales, each (documents,).
        """
        places, distances = nearest_centroids(vectors, self.centroids, self.scales)
        return np.where(distances <= self.radius, places, -1), distances


def nearest_centroids(
    vectors: np.ndarray,
    centroids: np.ndarray,
    scales: np.ndarray | None = None,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each document to its closest centroid (Lloyd 1982, assignment step).

    Args: float32, (documents, width) and (clusters, width); what the distance to each centroid is
    divided by, (clusters,).
    Returns: int64 places and the Euclidean distances so divided, each (documents,); ties take the
    lower place.
    """
    places = nearest_places(vectors, centroids, scales, block)
    distances = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), block):
        part, found = vectors[start : start + block], places[start : start + block]
        exact = np.linalg.norm(part - centroids[found], axis=1)
        distances[start : start + block] = exact if scales is None else exact / scales[found]
    return places, distances


def nearest_places(
    vectors: np.ndarray,
    centroids: np.ndarray,
    scales: np.ndarray | None = None,
    block: int = BLOCK,
) -> np.ndarray:
    """The places alone, which is all that Lloyd's algorithm asks for."""
    places = np.empty(len(vectors), np.int64)
    half = (centroids**2).sum(1) / 2
    equal = scales is None or bool((scales == scales[0]).all()) if len(centroids) else True
    near = np.empty((min(block, len(vectors)), len(centroids)), np.float32)
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        here = near[: len(part)]
        np.matmul(part, centroids.T, out=here)
        np.subtract(half, here, out=here)
        if not equal:
            assert scales is not None
            here += (part**2).sum(1, keepdims=True) / 2
            here /= scales**2
        places[start : start + block] = here.argmin(1)
    return places


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 1e-12, length, 1.0)
