"""Which of two models should answer: the same rows, in pairs, with what may not be lost.

A comparison measures, a verdict judges it by what is declared; both are written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from .config import Config
from .scoring import Metric, confusion, f1_by_class

Policy = Literal["better", "not_worse", "always", "manual"]
NAMES: dict[Metric, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
SHOWN = 3
"""Classes, or losses, that a sentence names."""


class PromotionConfig(Config):
    """When a challenger replaces the champion."""

    policy: Policy = "better"
    """better: the 95% interval of the lead lies above zero; not_worse: above -margin; always;
    manual: a person says `nightshift promote`. For a challenger that knows more classes it is
    enough not to be worse on the others, and to be right on a gate row of the new ones, if any."""
    metric: Metric = "accuracy"
    """What is compared on the gate rows."""
    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Resamples of the paired bootstrap interval that is written beside the decision."""
    margin: float = Field(default=0.01, ge=0, le=1)
    """How much less than the champion still counts as not worse."""
    class_margin: float | None = Field(default=0.2, ge=0, le=1)
    """How much F1 no class may lose more of; null leaves classes unguarded."""
    floors: dict[str, float] = Field(default_factory=dict)
    """How much accuracy no slice may lose more of: {language: 0.05}, or any column."""
    min_rows: int = Field(default=10, ge=1)
    """Gate rows below which a class or slice says too little to refuse a challenger, and those of
    known classes too little to prefer one for the new classes that it knows."""
    slower: float | None = Field(default=None, ge=1)
    """How many times the champion's time per document a challenger may take; null for any."""


@dataclass(frozen=True)
class Judged:
    """What one model said of the gate rows, in their order."""

    answers: list[str]
    classes: list[str]
    """All that it can say."""
    milliseconds: float
    """Per document, in one pass over all of them."""


@dataclass(frozen=True)
class Pair:
    """Scores of both on the same rows, and the 95% interval of the challenger's lead."""

    rows: int
    champion: float
    challenger: float
    low: float
    high: float

    @property
    def lead(self) -> float:
        """How much better the challenger is."""
        return self.challenger - self.champion


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the gate rows of one moment."""

    metric: Metric
    whole: Pair
    known: Pair | None
    """The rows of classes that both know, where the challenger knows more; None without any."""
    more_classes: list[str]
    """What the challenger knows and the champion does not."""
    more_right: tuple[int, int]
    """Of these classes, gate rows that the challenger has right, and all."""
    wins: int
    """Rows that only the challenger has right."""
    losses: int
    """Rows that only the champion has right."""
    p_value: float
    """Of McNemar's exact test: how likely such odds are of two equal models."""
    per_class: dict[str, tuple[float, float, int]]
    """F1 of champion and challenger, and rows."""
    slices: dict[str, dict[str, tuple[float, float, int]]]
    """Accuracy of both, and rows, by kind of slice and slice."""
    milliseconds: tuple[float, float]
    """Per document, of champion and challenger."""

    def as_row(self) -> dict[str, Any]:
        """Columns of the table `promotions`."""
        return {
            "rows": self.whole.rows,
            "metric": self.metric,
            "champion_score": self.whole.champion,
            "challenger_score": self.whole.challenger,
            "low": self.whole.low,
            "high": self.whole.high,
            "wins": self.wins,
            "losses": self.losses,
            "p_value": self.p_value,
            "per_class": _packed(self.per_class),
            "slices": _packed(self.slices),
            "champion_ms": self.milliseconds[0],
            "challenger_ms": self.milliseconds[1],
        }


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a challenger, and the sentence that says why."""

    decision: Literal["promoted", "kept", "waiting"]
    reason: str


def compare(
    truth: list[str],
    champion: Judged,
    challenger: Judged,
    config: PromotionConfig,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Measure both on the same rows.

    A class that a model does not know is one that it gets wrong.

    Args: labels (rows,); both models' answers; by kind of slice, each row's slice (rows,).
    """
    more = sorted({*challenger.classes} - {*champion.classes})
    both = {*champion.classes} & {*challenger.classes}
    shared = [row for row, label in enumerate(truth) if label in both] if more else []
    one, two = (np.array(side.answers, object) for side in (champion, challenger))
    right = np.array(truth, object)
    wins = int(((two == right) & (one != right)).sum())
    losses = int(((one == right) & (two != right)).sum())
    return Comparison(
        metric=config.metric,
        whole=_pair(truth, champion.answers, challenger.answers, config),
        known=_pair(
            [truth[row] for row in shared],
            [champion.answers[row] for row in shared],
            [challenger.answers[row] for row in shared],
            config,
        ) if shared else None,
        more_classes=more,
        more_right=_right_of(truth, challenger.answers, {*more}),
        wins=wins,
        losses=losses,
        p_value=mcnemar(wins, losses),
        per_class=_per_class(truth, champion.answers, challenger.answers),
        slices={kind: _per_slice(right, one, two, names) for kind, names in (slices or {}).items()},
        milliseconds=(champion.milliseconds, challenger.milliseconds),
    )  # fmt: skip


def judge(found: Comparison, config: PromotionConfig) -> Verdict:
    """Apply the declared policy and floors to a comparison."""
    if config.policy == "always":
        return Verdict("promoted", f"promotion.policy is always: {_scores(found)}")
    proved, words = _proved(found, config)
    lost = list(_lost(found, config))
    better = proved and not lost
    reason = words if not lost else f"{words}; but {_listed(lost)}"
    if config.policy == "manual":
        advice = "it would be promoted" if better else "it would be refused"
        return Verdict(
            "waiting", f"a person decides (promotion.policy is manual); {advice}: {reason}"
        )
    return Verdict("promoted" if better else "kept", reason)


def _proved(found: Comparison, config: PromotionConfig) -> tuple[bool, str]:
    """Whether the challenger's lead is enough, and in words."""
    known = found.known
    if found.more_classes and known is not None and known.rows >= config.min_rows:
        return _knows_more(found, known, config)
    if config.policy == "not_worse":
        proved, said = found.whole.low >= -config.margin, "not worse"
    else:
        proved, said = found.whole.low > 0, "better"
    return proved, f"the challenger is {'' if proved else 'not '}proved {said}: {_scores(found)}"


def _knows_more(found: Comparison, known: Pair, config: PromotionConfig) -> tuple[bool, str]:
    """The same of a challenger that knows classes which the champion cannot say.

    Where it is not worse on the others, these are reason enough. Where few rows cannot tell that it
    is not, it must be better on all of them together, and not behind on the others by the margin.
    """
    right, rows = found.more_right
    which = f"knows {_listed(found.more_classes)}, which the champion does not"
    told = f"right on {right} of {rows} gate rows of them" if rows else "no gate row tells how well"
    others = (
        f"on the {known.rows} gate rows of classes that both know (lead {known.lead:+.4f}, 95% "
        f"interval {known.low:+.4f} to {known.high:+.4f})"
    )
    if known.lead < -config.margin:
        said, proved = f"worse {others}, although it {which} ({told})", False
    elif rows and not right:
        said, proved = f"said to know {_listed(found.more_classes)}, but {told}", False
    elif known.low >= -config.margin:
        said, proved = f"not worse {others}, and {which} ({told})", True
    elif found.whole.low > 0:
        said, proved = f"proved better, and {which} ({told})", True
    else:
        said, proved = f"not proved to be no worse {others}, although it {which} ({told})", False
    return proved, f"the challenger is {said}; {_scores(found)}"


def _lost(found: Comparison, config: PromotionConfig) -> Iterator[str]:
    """What may not be lost, and is."""
    if config.class_margin is not None:
        for name, (old, new, rows) in found.per_class.items():
            if rows >= config.min_rows and old - new > config.class_margin:
                yield f"class {name!r} falls from F1 {old:.2f} to {new:.2f} on {rows} rows"
    for kind, margin in config.floors.items():
        for name, (old, new, rows) in found.slices.get(kind, {}).items():
            if rows >= config.min_rows and old - new > margin:
                yield f"{kind} {name!r} falls from accuracy {old:.2f} to {new:.2f} on {rows} rows"
    before, after = found.milliseconds
    if config.slower is not None and after > config.slower * before:
        yield f"a document takes {after:.2f} ms, and took {before:.2f}"


def _scores(found: Comparison) -> str:
    whole = found.whole
    return (
        f"{NAMES[found.metric]} {whole.challenger:.4f} against {whole.champion:.4f} on "
        f"{whole.rows} gate rows (lead {whole.lead:+.4f}, 95% interval {whole.low:+.4f} to "
        f"{whole.high:+.4f}; {found.wins} rows won, {found.losses} lost, p {found.p_value:.3f})"
    )


def _listed(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if words[SHOWN:] else "")


def _right_of(truth: list[str], answers: list[str], classes: set[str]) -> tuple[int, int]:
    """Rows of some classes that are answered rightly, and all of them."""
    own = [label == said for label, said in zip(truth, answers, strict=True) if label in classes]
    return sum(own), len(own)


def _pair(truth: list[str], one: list[str], two: list[str], config: PromotionConfig) -> Pair:
    found = paired_interval(truth, one, two, config.metric, config.resamples)
    return Pair(len(truth), *found)


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact test: the two-sided binomial probability of such odds (McNemar 1947).

    Args: rows that only the one has right, and only the other. Returns: 1 where there are none.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired_interval(
    truth: list[str],
    champion: list[str],
    challenger: list[str],
    metric: Metric,
    resamples: int,
    seed: int = 1,
) -> tuple[float, float, float, float]:
    """Compare two models on the same rows by a paired bootstrap (Koehn 2004).

    Returns: champion's score, challenger's score, and the 95% interval of their difference.
    """
    names = sorted({*truth, *champion, *challenger})
    place = {name: index for index, name in enumerate(names)}
    wanted, one, two = (
        np.array([place[a] for a in rows]) for rows in (truth, champion, challenger)
    )
    of: Callable[[np.ndarray, np.ndarray], float] = _accuracy if metric == "accuracy" else _macro_f1
    random = np.random.default_rng(seed)
    gaps = np.empty(resamples)
    for index in range(resamples):
        rows = random.integers(0, len(wanted), len(wanted))
        gaps[index] = of(wanted[rows], two[rows]) - of(wanted[rows], one[rows])
    low, high = np.quantile(gaps, [0.025, 0.975])
    return of(wanted, one), of(wanted, two), float(low), float(high)


def _accuracy(truth: np.ndarray, answers: np.ndarray) -> float:
    return float((truth == answers).mean())


def _macro_f1(truth: np.ndarray, answers: np.ndarray) -> float:
    hits = np.bincount(truth[truth == answers], minlength=truth.max() + 1)
    met = np.bincount(np.concatenate([truth, answers]))
    hits = np.pad(hits, (0, len(met) - len(hits)))
    return float((2 * hits[met > 0] / met[met > 0]).mean())


def _per_class(
    truth: list[str], one: list[str], two: list[str]
) -> dict[str, tuple[float, float, int]]:
    scores: list[dict[str, float]] = []
    for said in (one, two):
        names, table = confusion(truth, said)
        scores.append(dict(zip(names, f1_by_class(table).tolist(), strict=True)))
    return {
        name: (scores[0][name], scores[1][name], truth.count(name)) for name in sorted({*truth})
    }


def _per_slice(
    right: np.ndarray, one: np.ndarray, two: np.ndarray, names: Sequence[str]
) -> dict[str, tuple[float, float, int]]:
    of, found = np.array(names, object), dict[str, tuple[float, float, int]]()
    for name in sorted({*names}):
        rows = of == name
        old, new = (float((said[rows] == right[rows]).mean()) for said in (one, two))
        found[name] = (old, new, int(rows.sum()))
    return found


def _packed(found: Any) -> str:
    """JSON with numbers of four digits."""
    return json.dumps(_rounded(found), ensure_ascii=False)


def _rounded(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: _rounded(value) for key, value in found.items()}
    if isinstance(found, tuple):
        return [_rounded(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found
