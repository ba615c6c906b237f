"""What one accuracy does not tell: slices, calibration, mistakes, label errors, near duplicates.

Label errors are found by confident learning. cleanlab, which its authors published, is AGPL-3.0
and does not go with this project's Apache-2.0; what is needed of the paper is a few lines here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from .config import Config
from .scoring import BINS, calibration_bins, confusion, f1_by_class
from .slices import in_order

MISTAKES = 100
"""Mistakes and suspects kept of a model, the clearest first."""


class EvaluationConfig(Config):
    """What is looked at beside the scores."""

    near_duplicates: float = Field(default=0.6, gt=0, le=1)
    """Share of runs of five characters that two texts have in common from which they count as near
    duplicates: 0.6 is one changed character in a text of twenty."""
    near_documents: int = Field(default=200_000, ge=0)
    """With more training and test documents together, near duplicates are not looked for."""


# --- slices ---------------------------------------------------------------------------------


def wilson(right: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); unlike the normal one it stays within 0 and 1."""
    if not rows:
        return 0.0, 1.0
    share, weight = right / rows, z * z / rows
    middle = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / rows + weight / (4 * rows)) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def slice_scores(
    truth: Sequence[str], answers: Sequence[str], slices: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Scores of each slice: kind, name, rows, macro_f1, accuracy with its 95% interval low to high.

    A kind that does not part the rows is left out. Macro-F1 is over the classes met in the slice.

    Args: labels and answers (rows,); a slice's name per row, by kind.
    """
    found: list[dict[str, Any]] = []
    wanted, said = np.array(truth, object), np.array(answers, object)
    for kind, names in slices.items():
        different = in_order(kind, names)
        for name in different if len(different) > 1 else []:
            rows = np.flatnonzero(np.array(names, object) == name)
            right = int((wanted[rows] == said[rows]).sum())
            low, high = wilson(right, len(rows))
            _, table = confusion(wanted[rows].tolist(), said[rows].tolist())
            found.append({
                "kind": kind, "name": name, "rows": len(rows), "accuracy": right / len(rows),
                "low": low, "high": high, "macro_f1": float(f1_by_class(table).mean()),
            })  # fmt: skip
    return found


# --- calibration and mistakes ---------------------------------------------------------------


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence, accuracy and rows of each of the bins of the calibration error with a row.

    Args: the largest probability and whether the answer is right, (rows,) each.
    """
    rows, sure, right = calibration_bins(confidence, correct)
    return [
        {"confidence": sure[n] / rows[n], "accuracy": right[n] / rows[n], "rows": int(rows[n])}
        for n in range(BINS)
        if rows[n]
    ]


def surest_mistakes(
    truth: Sequence[str], answers: Sequence[str], confidence: np.ndarray
) -> np.ndarray:
    """Rows that are answered wrongly, the surest first, int64, at most `MISTAKES`.

    Args: labels, answers and the answers' probabilities, (rows,) each.
    """
    wrong = np.flatnonzero(np.array(truth, object) != np.array(answers, object))
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]


# --- label errors ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelErrors:
    """Rows whose label is probably wrong.

    rows: int64, the likeliest errors first. suggested: int64, the class each seems to be of.
    margins: float64, probability of the given label less the largest other one. share: of all rows,
    as the confident joint estimates it.
    """

    rows: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray
    share: float


def label_errors(labels: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Confident learning (Northcutt, Jiang & Chuang 2021): who is confidently of another class.

    A class's threshold is the mean probability of it on the rows that it labels. A row is counted
    for the likeliest class whose threshold it reaches; the counts by given and by that class are
    the confident joint, and what is off its diagonal are the suspects, ranked by their margin.

    Args: labels int64 (rows,), probabilities (rows, classes) of a model that was not taught these
    rows: it would believe what it was taught.
    """
    count, classes = probabilities.shape
    every = np.arange(count)
    of_label = probabilities[every, labels].astype(np.float64)
    sizes = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, of_label, minlength=classes)
    # Nobody is of a class without a row: there is nothing to tell its threshold by.
    thresholds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely, counted = reached.argmax(1), reached.max(1, initial=-1.0) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[counted], likely[counted]), 1.0)
    # Each row of it stands for all that bear its label, also those that reached no threshold.
    joint *= (sizes / np.maximum(joint.sum(1), 1))[:, None]
    others = probabilities.astype(np.float64)
    others[every, labels] = -1.0
    margins = of_label - others.max(1, initial=-1.0)
    rows = np.flatnonzero(counted & (likely != labels))
    rows = rows[np.argsort(margins[rows], kind="stable")]
    share = 1 - np.trace(joint) / joint.sum() if joint.sum() else 0.0
    return LabelErrors(rows, likely[rows], margins[rows], float(share))


# --- near duplicates ------------------------------------------------------------------------

RUN = 5
"""Characters of a shingle: a document of n characters has n, each character with its neighbours."""
SAMPLE = 128
"""Shingles kept of a document, at most on average: those with the smallest hashes."""
RAREST = 8
"""Shingles of a document by which others are found that may be its near duplicates."""
MOST_SHARED = 100
"""Training documents looked at for one shingle; more are a template, one of which suffices."""
PAIRS = 200_000
"""Pairs compared at once."""


@dataclass(frozen=True)
class NearDuplicates:
    """Test rows with a training row that is nearly the same, each (found,).

    rows, partners: int64, a test row and the training row most like it. similarity: float64.
    """

    rows: np.ndarray
    partners: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class _Shingled:
    """Documents as sets of shingles.

    keys: uint64, sorted: document in the high half, a shingle's hash in the low one. levels: int64
    (documents,); a document keeps hashes below 2**32 >> level. sizes: int64 (2, documents), how
    many that are, and how many would be at the next level.
    """

    keys: np.ndarray
    levels: np.ndarray
    sizes: np.ndarray


def near_duplicates(test: Sequence[str], train: Sequence[str], threshold: float) -> NearDuplicates:
    """Test texts of which training holds nearly a copy, each with the one most like it.

    Likeness is the Jaccard index of the sets of runs of five characters (shingles, Broder 1997);
    long texts are compared by those of their shingles that have the smallest hashes. Two texts
    that reach a threshold share some of their rarest shingles (prefix filter, Chaudhuri et al.
    2006), so only such pairs are compared. A hundred bytes a shingle, and pairs in blocks.

    Args: cleaned texts; upper and lower case and runs of spaces are alike. The least likeness.
    """
    one, two = _shingled(test), _shingled(train)
    rows, columns = _numbered(one, two)
    best = np.zeros(len(test))
    partner = np.zeros(len(test), np.int64)
    for here, there in _candidates(rows, columns, threshold):
        shared = np.asarray(rows[here].multiply(columns[there]).sum(1)).ravel()
        level = np.maximum(one.levels[here], two.levels[there])
        step_one, step_two = level - one.levels[here], level - two.levels[there]
        # Twice as long is another text; within that, both are counted at the same level.
        alike = (step_one <= 1) & (step_two <= 1)
        sizes = one.sizes[np.minimum(step_one, 1), here] + two.sizes[np.minimum(step_two, 1), there]
        likeness = np.where(alike, shared / np.maximum(sizes - shared, 1), 0.0)
        order = np.argsort(likeness, kind="stable")
        here, there, likeness = here[order], there[order], likeness[order]
        better = likeness > best[here]
        best[here[better]], partner[here[better]] = likeness[better], there[better]
    found = np.flatnonzero(best >= threshold)
    return NearDuplicates(found, partner[found], best[found])


def _shingled(texts: Sequence[str]) -> _Shingled:
    # The configuration is read where nobody waits for torch.
    from .wide import chunks

    keys, levels = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    done = 0
    for part in chunks(texts):
        hashes, documents = _hashes([" ".join(text.casefold().split()) for text in part])
        lengths = np.bincount(documents, minlength=len(part))
        level = np.ceil(np.log2(np.maximum(lengths, SAMPLE) / SAMPLE)).astype(np.uint64)
        kept = hashes >> (np.uint64(32) - level[documents]) == 0
        high = (documents[kept] + done).astype(np.uint64) << np.uint64(32)
        keys.append(_different(high | hashes[kept]))
        levels.append(level.astype(np.int64))
        done += len(part)
    every, level = np.concatenate(keys), np.concatenate(levels)
    documents = (every >> np.uint64(32)).astype(np.int64)
    low = every & np.uint64(0xFFFFFFFF)
    beyond = low >> (np.uint64(31) - level[documents].astype(np.uint64)) == 0
    sizes = [np.bincount(documents[mask], minlength=done) for mask in (beyond | True, beyond)]
    return _Shingled(every, level, np.stack(sizes))


def _different(values: np.ndarray) -> np.ndarray:
    """Sorted, each once; several times faster than NumPy's own, which hashes."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def _hashes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of 32 bits, uint64, and documents, int64, one of each for every character."""
    edge = "\n" * (RUN // 2)
    joined = edge + edge.join(texts) + edge
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    inside = points != ord("\n")
    width = len(points) - RUN + 1
    found = np.zeros(max(width, 0), np.uint64)
    for place in range(RUN):
        found = (found + points[place : place + width]) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    found = (found * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)
    # A run belongs to the document of its middle, and between two there are two edges.
    lengths = np.array([len(text) for text in texts])
    documents = np.repeat(np.arange(len(texts)), lengths)
    return found[inside[RUN // 2 : RUN // 2 + width]], documents


def _numbered(one: _Shingled, two: _Shingled) -> tuple[Any, Any]:
    """Both sets of documents as sparse matrices of ones, shingles numbered from the rarest up."""
    from scipy.sparse import csr_matrix

    keys = np.concatenate([one.keys, two.keys])
    _, place, times = np.unique(
        keys & np.uint64(0xFFFFFFFF), return_inverse=True, return_counts=True
    )
    number = np.empty(len(times), np.int64)
    number[np.argsort(times, kind="stable")] = np.arange(len(times))
    found = []
    for part, numbers in (
        (one, number[place[: len(one.keys)]]),
        (two, number[place[len(one.keys) :]]),
    ):
        starts = np.concatenate([[0], np.cumsum(part.sizes[0])])
        ones = np.ones(len(numbers), np.int32)
        matrix = csr_matrix((ones, numbers, starts), shape=(len(part.levels), len(number)))
        matrix.sort_indices()
        found.append(matrix)
    return found[0], found[1]


def _candidates(
    rows: Any, columns: Any, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of documents that share one of their rarest shingles, each pair once."""
    both = np.zeros(rows.shape[1], np.int8)
    for matrix, bit in ((rows, 1), (columns, 2)):
        both[matrix.indices] |= bit
    documents, shingles = _rarest(rows, both == 3, threshold)
    others, known = _rarest(columns, both == 3, threshold)
    order = np.argsort(known, kind="stable")
    others, known = others[order], known[order]
    start = np.searchsorted(known, shingles, "left")
    many = np.minimum(np.searchsorted(known, shingles, "right") - start, MOST_SHARED)
    ends = np.cumsum(many)
    cuts = np.searchsorted(ends, np.arange(PAIRS, ends[-1] if len(ends) else 0, PAIRS))
    for part in np.split(np.arange(len(many)), cuts):
        times = many[part]
        first = np.repeat(np.cumsum(times) - times, times)
        at = np.repeat(start[part], times) + np.arange(times.sum()) - first
        pairs = _different(np.repeat(documents[part], times) * columns.shape[0] + others[at])
        if len(pairs):
            yield pairs // columns.shape[0], pairs % columns.shape[0]


def _rarest(matrix: Any, alive: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Documents and shingles, int64, of what must hold a shingle in common with a near duplicate.

    Of n shingles all but t n may be missing in the other; the first n - ceil(t n) + 1 hold one that
    is not, whatever their order, if it is the same for all. Of these, the rarest few that anybody
    has on the other side.
    """
    sizes = np.diff(matrix.indptr)
    documents = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(documents)) - matrix.indptr[documents]
    most = sizes - np.ceil(threshold * sizes).astype(np.int64) + 1
    kept = np.flatnonzero((place < most[documents]) & alive[matrix.indices])
    documents, shingles = documents[kept], matrix.indices[kept].astype(np.int64)
    before = np.searchsorted(documents, documents, "left")
    few = np.arange(len(documents)) - before < RAREST
    return documents[few], shingles[few]
