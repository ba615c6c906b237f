"""How good: scores on held-out rows, and a linear model to beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from .tokenizer import HAN

Metric = Literal["accuracy", "macro_f1"]
BINS = 15
"""Ranges of confidence that are compared with their accuracy."""


@dataclass(frozen=True)
class Scores:
    """Figures of one model on labelled rows; `confusion` is true class by predicted class."""

    rows: int
    accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float
    labels: list[str]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    more: dict[str, float] = field(default_factory=dict)
    """What else was measured, such as each path alone."""

    def figures(self) -> dict[str, float]:
        """The single numbers, without the tables."""
        return {
            name: getattr(self, name)
            for name in ("rows", "accuracy", "macro_f1", "log_loss", "calibration_error")
        } | self.more

    def as_json(self) -> dict[str, Any]:
        """A plain mapping."""
        return asdict(self)


def score(
    truth: list[str],
    probabilities: np.ndarray,
    classes: list[str],
    answers: list[str] | None = None,
) -> Scores:
    """Score class probabilities against labels; the answers are the likeliest classes, or given.

    A label the model does not know counts as wrong, at the smallest probability (1e-6).

    Args: labels (rows,), probabilities float32 (rows, classes), the classes' names in order.
    """
    if answers is None:
        answers = [classes[one] for one in probabilities.argmax(1)]
    known = {name: index for index, name in enumerate(classes)}
    columns = np.array([known.get(label, -1) for label in truth])
    of_truth = np.where(
        columns >= 0, probabilities[np.arange(len(truth)), np.maximum(columns, 0)], 0.0
    )
    names, table = confusion(truth, answers)
    correct = np.array([one == other for one, other in zip(truth, answers, strict=True)])
    return Scores(
        rows=len(truth),
        accuracy=float(correct.mean()),
        macro_f1=float(np.mean(f1_by_class(table))),
        log_loss=float(-np.log(np.maximum(of_truth, 1e-6)).mean()),
        calibration_error=calibration_error(probabilities.max(1), correct),
        labels=names,
        per_class=_per_class(names, table),
        confusion=table.tolist(),
    )


def confusion(truth: list[str], answers: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of all classes met, sorted, and counts int64 (true class, predicted class)."""
    names = sorted({*truth, *answers})
    place = {name: index for index, name in enumerate(names)}
    pairs = [
        place[one] * len(names) + place[other] for one, other in zip(truth, answers, strict=True)
    ]
    counts = np.bincount(pairs, minlength=len(names) ** 2)
    return names, counts.reshape(len(names), len(names))


def f1_by_class(table: np.ndarray) -> np.ndarray:
    """F1 per class from a confusion table; a class neither present nor predicted scores 0."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    return 2 * hits / np.maximum(table.sum(-1) + table.sum(-2), 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean gap of confidence and accuracy (Naeini et al. 2015)."""
    _, sure, right = calibration_bins(confidence, correct, bins)
    return float(np.abs(sure - right).sum() / max(len(confidence), 1))


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, and the sums of their confidence and of their right answers, each (bins,).

    Args: the largest probability and whether the answer is right, (rows,) each.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    every = (np.ones(len(place)), confidence, correct)
    rows, sure, right = (np.bincount(place, one, minlength=bins) for one in every)
    return rows, sure, right


def _per_class(names: list[str], table: np.ndarray) -> list[dict[str, Any]]:
    hits, support, said = np.diagonal(table), table.sum(1), table.sum(0)
    f1 = f1_by_class(table)
    return [
        {
            "label": name,
            "precision": float(hits[i] / max(said[i], 1)),
            "recall": float(hits[i] / max(support[i], 1)),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    ]


def quality_with_labels(labels: list[str], places: np.ndarray) -> dict[str, float]:
    """How well clusters agree with classes.

    Args: a label per document; its cluster int64 (documents,), -1 counting as one of its own.
    Returns: accuracy under the best one-to-one match (Kuhn 1955), purity, normalized mutual
    information, adjusted Rand index (Hubert & Arabie 1985), V-measure with its parts homogeneity
    and completeness (Rosenberg & Hirschberg 2007).
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics

    table = metrics.cluster.contingency_matrix(labels, places)
    rows, columns = linear_sum_assignment(table, maximize=True)
    homogeneity, completeness, v_measure = metrics.homogeneity_completeness_v_measure(
        labels, places
    )
    return {
        "accuracy": float(table[rows, columns].sum() / len(labels)),
        "purity": float(table.max(0).sum() / len(labels)),
        "nmi": float(metrics.normalized_mutual_info_score(labels, places)),
        "ari": float(metrics.adjusted_rand_score(labels, places)),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
        "v_measure": float(v_measure),
    }


def linear_baseline(
    texts: list[str], labels: list[str], test_texts: list[str], test_labels: list[str]
) -> dict[str, float] | None:
    """TF-IDF and a linear SVM on the same rows: what a user would have in seconds without us.

    Words and pairs of words; characters 1 to 3 where the text is mostly Chinese.
    Returns: accuracy and macro-F1 on the test rows; None when there is nothing to learn from.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    if len(set(labels)) < 2 or not test_texts:
        return None
    chinese = sum(bool(HAN.search(text)) for text in texts[:1000]) * 2 > min(len(texts), 1000)
    settings: dict[str, Any] = (
        {"analyzer": "char", "ngram_range": (1, 3)} if chinese else {"ngram_range": (1, 2)}
    )
    settings |= {"min_df": 2 if len(texts) >= 200 else 1, "dtype": np.float32}
    vectorizer = TfidfVectorizer(sublinear_tf=True, **settings)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # not one term is left, as with texts of punctuation alone
        return None
    answers = (
        LinearSVC(random_state=1).fit(features, labels).predict(vectorizer.transform(test_texts))
    )
    _, table = confusion(test_labels, [str(one) for one in answers])
    return {
        "accuracy": float(np.diagonal(table).sum() / table.sum()),
        "macro_f1": float(f1_by_class(table).mean()),
    }
