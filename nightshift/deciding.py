"""From the scores of both paths to an answer, or to none: blend, reject, move the threshold.

Everything here is fitted on validation and then only applied. It travels in served bundles, so
NumPy alone does it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from .config import nearest
from .errors import ConfigError
from .recipe import AnswerConfig

TINY = 1e-12
"""Smallest probability whose logarithm is taken."""


# --- blend ----------------------------------------------------------------------------------

LOG_TEMPERATURE = 2.5
"""Temperatures stay between exp(-2.5) and exp(2.5)."""
CHANCE = 1.0
"""Rows of unknown class beside validation's when a temperature is fitted (Laplace's rule of
succession): twenty rows that are all right do not make a model certain. Measured with 62 intents:
test loss .347 against .403 without on 20 rows, the same on 1,200."""
PRIOR = 10.0
"""Rows beside validation's when the weight is fitted, half of them explained by either path alone
(a Beta prior): with few rows the weight is near a half, with thousands it is validation's own.
Measured with 62 intents: test loss .347 against .380 without on 20 rows, the same on 1,200."""


@dataclass(frozen=True)
class Blend:
    """How the scores of two paths become one set of probabilities; a missing path weighs nothing.

    weight: the network's, the rest is the wide path's. temperature: of the blended logarithms.
    """

    network_temperature: float
    wide_temperature: float
    weight: float
    temperature: float = 1.0

    def probabilities(self, network: np.ndarray | None, wide: np.ndarray | None) -> np.ndarray:
        """Scores before softmax (rows, classes) -> probabilities float32 (rows, classes).

        Either may be None, as when it was fitted; not both.
        """
        return softmax(_log(self._mixed(network, wide)) / self.temperature).astype(np.float32)

    def untempered(self) -> Blend:
        """The same weights with every temperature 1: what calibration started from."""
        return Blend(1.0, 1.0, self.weight)

    def _mixed(self, network: np.ndarray | None, wide: np.ndarray | None) -> np.ndarray:
        if wide is None:
            assert network is not None
            return softmax(network / self.network_temperature)
        one = softmax(wide / self.wide_temperature)
        if network is None:
            return one
        return one + self.weight * (softmax(network / self.network_temperature) - one)

    def as_json(self) -> dict[str, float]:
        """A plain mapping; `Blend(**mapping)` reads it."""
        return asdict(self)


def fit_blend(network: np.ndarray | None, wide: np.ndarray | None, labels: np.ndarray) -> Blend:
    """Fit on validation: a temperature per path, the network's weight, a temperature of the whole.

    A mixture of two calibrated paths is too modest (Ranjan & Gneiting 2010); the last temperature
    puts that right. Without a row: temperatures 1 and equal weights.

    Args: scores before softmax (rows, classes), either may be None; labels int64 (rows,).
    """
    blend = Blend(
        1.0 if network is None else temperature(network, labels, CHANCE),
        1.0 if wide is None else temperature(wide, labels, CHANCE),
        0.0 if network is None else 1.0,
    )
    if network is not None and wide is not None:
        one = softmax(network / blend.network_temperature)
        two = softmax(wide / blend.wide_temperature)
        blend = Blend(blend.network_temperature, blend.wide_temperature, _weight(one, two, labels))
    mixed = _log(blend._mixed(network, wide))
    return Blend(**{**blend.as_json(), "temperature": temperature(mixed, labels, CHANCE)})


def temperature(scores: np.ndarray, labels: np.ndarray, chance: float = 0.0) -> float:
    """The divisor of the scores that makes validation's log loss least (Guo et al. 2017).

    Args: scores (rows, classes), labels int64 (rows,); `chance` more rows like the mean row, but
    of every class alike. Returns: 1 without a row, else exp(-2.5) to exp(2.5).
    """
    if not len(labels):
        return 1.0
    given = scores.astype(np.float64)
    given -= given.max(1, keepdims=True)
    of_truth = given[np.arange(len(labels)), labels].sum() + chance * given.mean()
    wanted = of_truth / (len(labels) + chance)

    def too_sharp(log_temperature: float) -> bool:
        # The loss is convex in 1 / T; its slope is the expected score less the true class's.
        expected = softmax(given / math.exp(log_temperature)) * given
        return float(expected.sum(1).mean()) > wanted

    return math.exp(_turn(too_sharp, -LOG_TEMPERATURE, LOG_TEMPERATURE))


def _weight(network: np.ndarray, wide: np.ndarray, labels: np.ndarray) -> float:
    rows = np.arange(len(labels))
    one, two = network[rows, labels], wide[rows, labels]

    def too_small(weight: float) -> bool:
        # The log likelihood is concave in the weight: this is its slope, the prior's included.
        gain = ((one - two) / np.maximum(weight * one + (1 - weight) * two, TINY)).sum()
        return float(gain) + PRIOR / 2 * (1 / weight - 1 / (1 - weight)) > 0

    return _turn(too_small, 0.0, 1.0)


def _turn(below: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds from `low` on stops to hold, by bisection."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def softmax(scores: np.ndarray) -> np.ndarray:
    """Scores (rows, classes) -> probabilities, float64 (rows, classes)."""
    given = scores.astype(np.float64)
    powers = np.exp(given - given.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, TINY))


# --- reject ---------------------------------------------------------------------------------

SAMPLE = 20_000
"""Training documents that the spread of a class is measured on, at most."""
WIDEST = 2048
"""Columns of a space in which distances are measured, at most: their covariance is a square."""
SHRINKAGE = 0.3
"""Share of a covariance that is its mean variance alone. Measured on validation with 62 intents:
0.01 to 1 differ by a point of recall."""
CHUNK = 1024
FEW = 20
"""With fewer rows than this, scores are added as they are instead of standardised."""
NARROW = 0.01
"""Smallest standard deviation to divide by: a smaller one is agreement, not a scale."""


@dataclass(frozen=True)
class Gaussians:
    """A normal distribution per class, all of one covariance, to be far from (Lee et al. 2018).

    means: float32 (classes with rows, width), whitened; whitener: float32 (width, width).
    """

    means: np.ndarray
    whitener: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, labels: np.ndarray) -> Gaussians:
        """Fit to documents (rows, width) and their labels int64 (rows,); at least one row."""
        given = vectors.astype(np.float64)
        classes, place = np.unique(labels, return_inverse=True)
        means = np.stack([given[place == one].mean(0) for one in range(len(classes))])
        apart = given - means[place]
        covariance = apart.T @ apart / len(apart)
        width = len(covariance)
        # Fewer rows than columns leave directions without any spread: the mean variance fills them.
        level = max(float(np.trace(covariance)) / width, TINY)
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(width)
        whitener = np.linalg.cholesky(np.linalg.inv(covariance))
        return cls((means @ whitener).astype(np.float32), whitener.astype(np.float32))

    def distance(self, vectors: np.ndarray) -> np.ndarray:
        """Mahalanobis distance to the nearest class, float32 (rows,)."""
        out = np.zeros(len(vectors), np.float32)
        lengths = (self.means**2).sum(1)
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            white = vectors[part].astype(np.float32) @ self.whitener
            squares = (lengths - 2 * white @ self.means.T).min(1) + (white**2).sum(1)
            out[part] = np.sqrt(np.maximum(squares, 0))
        return out


def sample(labels: np.ndarray, seed: int, limit: int = SAMPLE) -> np.ndarray:
    """At most `limit` rows, as many of every class as of any other if there are; sorted int64.

    Args: labels int64 (rows,).
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # The first of every class, then the second of every class: small classes stay whole.
    rank = np.empty(len(order), np.int64)
    for one in np.unique(labels):
        mine = order[labels[order] == one]
        rank[mine] = np.arange(len(mine))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:limit])


@dataclass(frozen=True)
class Scale:
    """What a z-score subtracts and divides by."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Of validation's values (rows,); plain 0 and 1 where the rows are few."""
        if len(values) < FEW:
            return cls()
        return cls(float(values.mean()), max(float(values.std()), NARROW))

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Values -> z-scores, float32 (rows,)."""
        return ((values - self.mean) / self.deviation).astype(np.float32)


Spaces = dict[str, np.ndarray]
"""Documents as vectors (rows, width), by the name of the space: the network's, and the wide path's
scores, which are far from every class's where the words are strange."""


@dataclass(frozen=True)
class Reject:
    """Which answers are kept back: those whose score is below the threshold.

    scales: of validation's entropies and distances, by name. near: where the classes are, by space.
    """

    score: Literal["blend", "probability", "distance"]
    threshold: float
    scales: dict[str, Scale]
    near: dict[str, Gaussians]

    def scores(self, probabilities: np.ndarray, spaces: Spaces) -> np.ndarray:
        """How much in scope, float32 (rows,).

        Args: blended float32 (rows, classes), and the spaces it was fitted with.
        """
        if self.score == "probability":
            return probabilities.max(1).astype(np.float32)
        parts = _strangeness(self.score, probabilities, spaces, self.near)
        return -np.sum([self.scales[name].standardise(part) for name, part in parts.items()], 0)

    def tensors(self) -> dict[str, np.ndarray]:
        """What is stored beside the weights."""
        return {
            f"reject.{space}.{name}": getattr(there, name)
            for space, there in self.near.items()
            for name in ("means", "whitener")
        }

    def as_json(self) -> dict[str, Any]:
        """The rest of it, a plain mapping; a threshold below everything is null."""
        return {
            "score": self.score,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
        }

    @classmethod
    def from_json(cls, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> Reject:
        """Read what `as_json` and `tensors` gave."""
        spaces = {name.split(".")[1] for name in tensors}
        return cls(
            about["score"],
            -math.inf if about["threshold"] is None else about["threshold"],
            {name: Scale(**scale) for name, scale in about["scales"].items()},
            {
                space: Gaussians(*(tensors[f"reject.{space}.{n}"] for n in ("means", "whitener")))
                for space in sorted(spaces)
            },
        )


def _strangeness(
    score: str, probabilities: np.ndarray, spaces: Spaces, near: dict[str, Gaussians]
) -> dict[str, np.ndarray]:
    """What is large where a document is out of scope, by name, each (rows,)."""
    parts = {space: there.distance(spaces[space]) for space, there in near.items()}
    if score == "blend":
        parts["entropy"] = -(probabilities * _log(probabilities)).sum(1)
    return parts


def fit_near(spaces: Spaces, labels: np.ndarray, config: AnswerConfig) -> dict[str, Gaussians]:
    """Where the classes are in each space; nowhere where the score asks for no distance.

    Args: training documents; labels int64 (rows,).
    """
    if config.reject_score == "probability" or not len(labels):
        return {}
    return {
        space: Gaussians.of(vectors, labels)
        for space, vectors in spaces.items()
        if vectors.shape[1] <= WIDEST
    }


def fit_reject(
    config: AnswerConfig, probabilities: np.ndarray, spaces: Spaces, near: dict[str, Gaussians]
) -> Reject:
    """Fit on validation so that `config.keep` of the answers are kept.

    With no space to be far in, the score is the probability, whatever was declared. The sum of the
    blend's entropy and both distances found more of the classes held out of 77 intents than any
    part of it, and than the nearest training documents: benchmarks/results/out_of_scope.md.

    Args: blended float32 (rows, classes) and the spaces of the same rows; what `fit_near` gave.
    """
    score = config.reject_score if near else "probability"
    parts = {} if score == "probability" else _strangeness(score, probabilities, spaces, near)
    reject = Reject(score, -math.inf, {name: Scale.of(part) for name, part in parts.items()}, near)
    threshold = keep_threshold(reject.scores(probabilities, spaces), config.keep)
    return replace(reject, threshold=threshold)


def keep_threshold(scores: np.ndarray, keep: float) -> float:
    """The score below which a document is kept back, so that `keep` of new ones are not.

    The k-th smallest of n, k = floor((1 - keep) (n + 1)): a new document like validation's falls
    below it with probability k / (n + 1) at most (split conformal, Vovk et al. 2005). With too few
    rows to promise that, k is 0 and everything is kept.
    """
    # The sum of floats may fall short of a whole number by a rounding error.
    place = math.floor((1 - keep) * (len(scores) + 1) + 1e-9)
    return float(np.sort(scores)[place - 1]) if place else -math.inf


# --- imbalance ------------------------------------------------------------------------------

ROWS = 10
"""Positives that must be said on validation before their precision counts."""
NEVER = 2.0
"""A threshold that no probability reaches."""


@dataclass(frozen=True)
class Threshold:
    """The probability from which the positive class is said, and what validation saw there.

    rows: how often it was said. note: why it is not what was asked for, or empty.
    """

    value: float
    precision: float
    recall: float
    rows: int
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """A plain mapping; `Threshold(**mapping)` reads it."""
        return asdict(self)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights that make every class count alike and the mean row 1, float32 (classes,).

    A class without a row gets 1.

    Args: labels int64 (rows,).
    """
    counts = np.bincount(labels, minlength=classes)
    there = np.maximum(np.count_nonzero(counts), 1)
    return np.where(counts > 0, len(labels) / (there * np.maximum(counts, 1)), 1.0).astype(
        np.float32
    )


def positive_class(config: AnswerConfig, classes: list[str]) -> int | None:
    """The place of `answers.positive` among the classes; None where nothing is declared.

    Raises: ConfigError where it is none of them, is needed and missing, or has no other beside it.
    """
    if config.precision is not None and config.cost is not None:
        raise ConfigError(
            "answers: found both precision and cost, but one threshold cannot follow two rules. "
            "Keep one of them."
        )
    if config.positive is None:
        if config.precision is None and config.cost is None:
            return None
        raise ConfigError(
            "answers: found precision or cost, but not the class it is meant for. Add `positive:`; "
            f"known here: {', '.join(classes)}."
        )
    if config.positive not in classes:
        raise ConfigError(
            f"answers.positive: found '{config.positive}', which labels no training row; "
            + nearest(config.positive, classes)
        )
    if len(classes) < 2:
        raise ConfigError(
            f"answers.positive: found one class only, '{classes[0]}'; expected two or more. "
            "Remove `positive`, or label documents of another class."
        )
    return classes.index(config.positive)


def threshold_for(
    scores: np.ndarray,
    truth: np.ndarray,
    precision: float | None = None,
    cost: float | None = None,
) -> Threshold:
    """Choose on validation from which probability on the positive class is said.

    For a precision: the lowest threshold that reaches it on `ROWS` rows or more, else the best
    there is, with a note. For a cost of a false positive, where a miss costs 1: the least cost in
    all, which may be never to say it; of equals the lowest.

    Args: the positive class's probabilities and whether it is the truth, (rows,) each.
    """
    if not truth.any():
        return Threshold(0.5, 0.0, 0.0, 0, "validation has no row of the positive class")
    values, said, hits = _cuts(scores, truth)
    if cost is not None:
        costs = cost * (said - hits) + truth.sum() - hits
        if truth.sum() < costs.min():
            return Threshold(NEVER, 0.0, 0.0, 0, "never to say it costs least on validation")
        return _threshold(values, said, hits, int(_last(costs == costs.min())))
    of_said = hits / said
    enough = said >= min(ROWS, len(truth))
    wanted = 0.0 if precision is None else precision
    reached = enough & (of_said >= wanted)
    if reached.any():
        return _threshold(values, said, hits, _last(reached))
    best = of_said[enough].max()
    note = f"validation reaches a precision of {best:.3f} at most, not {wanted:g}"
    return _threshold(values, said, hits, _last(enough & (of_said == best)), note)


def apply_threshold(probabilities: np.ndarray, positive: int, threshold: float) -> np.ndarray:
    """The class said, int64 (rows,): the positive one from the threshold on, else the best other.

    Args: float32 (rows, classes), two classes or more.
    """
    others = probabilities.astype(np.float64)
    say = others[:, positive] >= threshold
    others[:, positive] = -1
    return np.where(say, positive, others.argmax(1)).astype(np.int64)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under precision over recall, by steps (not interpolated); 0 without a positive row.

    Args: scores (rows,), truth bool (rows,); rows of the same score come in together.
    """
    if not truth.any():
        return 0.0
    _, said, hits = _cuts(scores, truth)
    return float((np.diff(hits, prepend=0) * hits / said).sum() / truth.sum())


def recall_at_precision(scores: np.ndarray, truth: np.ndarray, precision: float) -> float:
    """The most positives found at any threshold of this precision or better; 0 where none is."""
    if not truth.any():
        return 0.0
    _, said, hits = _cuts(scores, truth)
    return float(hits[hits / said >= precision].max(initial=0) / truth.sum())


def _cuts(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every threshold that makes a difference, from high to low, each (thresholds,).

    Returns: its value, half-way to the next lower score, as new scores fall between those seen;
    how many rows reach it, and how many of those are positive.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    ends = np.flatnonzero(np.diff(ranked, append=-np.inf))
    values = (ranked[ends] + np.append(ranked[ends][1:], 0.0)) / 2
    return values, ends + 1, np.cumsum(truth[order])[ends]


def _threshold(
    values: np.ndarray, said: np.ndarray, hits: np.ndarray, place: int, note: str = ""
) -> Threshold:
    found, rows = int(hits[place]), int(said[place])
    return Threshold(float(values[place]), found / rows, found / int(hits[-1]), rows, note)


def _last(yes: np.ndarray) -> int:
    return int(np.flatnonzero(yes)[-1])
