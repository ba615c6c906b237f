"""Unit vectors and the one rule that gives a document its cluster; NumPy alone."""

import numpy as np


def nearest_centroids(
    vectors: np.ndarray, centroids: np.ndarray, chunk: int = 65_536
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each document to its closest centroid (Lloyd 1982, assignment step).

    Args: float32, (documents, width) and (clusters, width).
    Returns: int64 places and Euclidean distances, each (documents,); ties take the lower place.
    """
    places = np.empty(len(vectors), np.int64)
    distances = np.empty(len(vectors), np.float32)
    half = (centroids**2).sum(1) / 2
    for start in range(0, len(vectors), chunk):
        part = slice(start, start + chunk)
        places[part] = (half - vectors[part] @ centroids.T).argmin(1)
        distances[part] = np.linalg.norm(vectors[part] - centroids[places[part]], axis=1)
    return places, distances


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 1e-12, length, 1.0)
