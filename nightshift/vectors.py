"""Document vectors from the corpus itself, for pipelines without a classifier.

Word vectors are the singular vectors of the positive pointwise mutual information of words that
share a document (Levy & Goldberg 2014); a document is their mean, weighted by smooth inverse
frequency, without the component common to all (Arora et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .batches import Documents
from .nearest import unit
from .tokenizer import UNKNOWN

if TYPE_CHECKING:
    # Learning needs it, answering does not: a served bundle goes without.
    from scipy import sparse

SMOOTHING = 0.75
"""Power on the context counts, which tames rare words (Levy et al. 2015)."""
SIF = 1e-3
"""Weight of a word is SIF / (SIF + its probability)."""
SAMPLE = 50_000
"""Documents that the vectors are learned from, at most."""
CHUNK = 8192


@dataclass(frozen=True)
class CorpusVectors:
    """Weighted word vectors float32 (vocabulary, width); the direction to leave out (width,)."""

    words: np.ndarray
    common: np.ndarray

    def embed(self, documents: Documents) -> np.ndarray:
        """Vectors of unit length, float32 (documents, width); zero where no word tells anything."""
        out = np.zeros((len(documents), self.words.shape[1]), np.float32)
        for start in range(0, len(documents), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(documents)))
            mean = self._mean(documents.take(rows))
            left = mean - np.outer(mean @ self.common, self.common)
            # A document that is nothing but common: what rounding leaves has no direction.
            spent = np.linalg.norm(left, axis=1) <= 1e-5 * np.linalg.norm(mean, axis=1)
            out[rows] = np.where(spent[:, None], 0, unit(left))
        return out

    def _mean(self, documents: Documents) -> np.ndarray:
        """Mean word vectors, float32 (documents, width); zero for a document without words."""
        import torch
        from torch.nn import functional as F

        ids = torch.from_numpy(_ids(documents)[1].astype(np.int64))
        starts = torch.from_numpy(np.cumsum(documents.lengths) - documents.lengths)
        return F.embedding_bag(ids, torch.from_numpy(self.words), starts, mode="mean").numpy()


def learn(documents: Documents, vocabulary: int, width: int = 50, seed: int = 1) -> CorpusVectors:
    """Learn vectors from documents (the first `SAMPLE` of them).

    The width is smaller where the corpus has fewer words or documents than that.
    """
    from sklearn.utils.extmath import randomized_svd

    sample = documents.take(np.arange(min(len(documents), SAMPLE)))
    counts = count(sample, vocabulary)
    information = _information(counts)
    width = max(1, min(width, len(sample) - 1, vocabulary - 1))
    left, strength, _ = randomized_svd(information, width, random_state=seed)
    frequency = np.asarray(counts.sum(0)).ravel()
    weight = SIF / (SIF + frequency / max(frequency.sum(), 1))
    words = (left * np.sqrt(strength) * weight[:, None]).astype(np.float32)
    words[frequency == 0] = 0
    words[UNKNOWN] = 0
    raw = CorpusVectors(words, np.zeros(width, np.float32)).embed(sample)
    _, _, directions = randomized_svd(raw, 1, random_state=seed)
    return CorpusVectors(words, directions[0].astype(np.float32))


def count(documents: Documents, vocabulary: int) -> sparse.csr_matrix:
    """Token counts, float32 (documents, vocabulary)."""
    from scipy import sparse

    rows, ids = _ids(documents)
    ones = np.ones(len(ids), np.float32)
    return sparse.csr_matrix((ones, (rows, ids)), shape=(len(documents), vocabulary))


def _ids(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Of every token read: its document, and its id."""
    rows = np.repeat(np.arange(len(documents)), documents.lengths)
    ends = np.cumsum(documents.lengths)
    steps = np.arange(len(rows)) - np.repeat(ends - documents.lengths, documents.lengths)
    return rows, documents.ids[documents.places(rows, steps)]


def _information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive pointwise mutual information of sharing a document, (vocabulary, vocabulary)."""
    from scipy import sparse

    there = counts.copy()
    there.data = np.ones_like(there.data)
    together = (there.T @ there).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    of_word = np.asarray(together.sum(1)).ravel()
    of_context = of_word**SMOOTHING
    of_context /= max(of_context.sum(), 1e-12)
    pairs = together.tocoo()
    expected = of_word[pairs.row] * of_context[pairs.col]
    gain = np.log(np.maximum(pairs.data / np.maximum(expected, 1e-12), 1e-12))
    kept = gain > 0
    places = (pairs.row[kept], pairs.col[kept])
    return sparse.csr_matrix((gain[kept], places), shape=together.shape)
