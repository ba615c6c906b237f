"""evaluate: champion and challenger on the test rows, now, beside a linear model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from nightshift.bundle import Answers, Model
from nightshift.corpus import Labelled, labelled_sides, texts_of, tokens_of
from nightshift.deciding import average_precision, recall_at_precision
from nightshift.pictures import confusion_picture
from nightshift.scoring import Scores, linear_baseline, score

from .stage import ModelRef, Night, Outcome, stage
from .train import Trained

log = logging.getLogger(__name__)


class Evaluated(Outcome):
    """Scores on the test rows; None where there is nothing to score."""

    champion: dict[str, Any] | None
    challenger: dict[str, Any] | None
    baseline: dict[str, float] | None
    note: str = ""
    """Why there are no scores, in words."""


@stage("evaluate", "tokenizer")
def evaluate(night: Night, trained: Trained) -> Evaluated:
    """Score both models on all labelled test documents there are by now."""
    sides = labelled_sides(night.lake)
    test = sides["test"]
    baseline: dict[str, float] | None = night.before.get("baseline")
    champion = _score(night, night.champion, test)
    challenger = _score(night, trained.challenger, test)
    if trained.challenger is not None and trained.challenger.kind == "network":
        baseline = _baseline(night, challenger, sides["train"], test)
    if champion is None and challenger is None:
        note = "no labelled document is on the test side" if not len(test) else trained.reason
        log.info("evaluate  nothing to score: %s", note)
        return Evaluated(champion=None, challenger=None, baseline=None, note=note)
    figures: dict[str, float] = {}
    for name, scores in (("champion", champion), ("challenger", challenger)):
        if scores is not None:
            figures |= {f"{name}_{key}": value for key, value in scores.figures().items()}
            picture = confusion_picture(scores.confusion, scores.labels)
            night.tracking.text(picture, f"confusion/{name}.svg")
            whole = json.dumps(scores.as_json(), ensure_ascii=False)
            night.tracking.text(whole, f"evaluation/{name}.json")
            log.info("evaluate  %-10s accuracy %.4f, macro-F1 %.4f on %d rows%s", name,
                     scores.accuracy, scores.macro_f1, scores.rows, _paths(scores))  # fmt: skip
    if baseline:
        figures |= {f"baseline_{key}": value for key, value in baseline.items()}
        log.info("evaluate  linear     accuracy %.4f, macro-F1 %.4f",
                 baseline["accuracy"], baseline["macro_f1"])  # fmt: skip
    return Evaluated(
        champion=champion.as_json() if champion else None,
        challenger=challenger.as_json() if challenger else None,
        baseline=baseline,
        figures=figures,
    )


def _score(night: Night, ref: ModelRef | None, test: Labelled) -> Scores | None:
    if ref is None or ref.kind != "network" or not len(test):
        return None
    model = night.load(ref)
    said = answers(night, model, test)
    assert said.probabilities is not None
    names = np.array(model.labels, object)
    whole = score(test.labels, said.probabilities, model.labels, names[said.choice].tolist())
    return replace(whole, more=_more(model, said, test.labels))


def _more(model: Model, said: Answers, truth: list[str]) -> dict[str, float]:
    """Each path alone, what is kept back, and how well the positive class is found."""
    more = {"abstained": float(said.abstained.mean())}
    for name, part in (("network", said.network), ("wide", said.wide)):
        if part is not None:
            alone = score(truth, part, model.labels)
            more |= {f"{name}_accuracy": alone.accuracy, f"{name}_macro_f1": alone.macro_f1}
    if said.wide is not None:
        more["network_weight"] = model.blend.weight
    if model.positive is not None and said.probabilities is not None:
        chances = said.probabilities[:, model.positive]
        wanted = np.array(truth, object) == model.labels[model.positive]
        more["positive_average_precision"] = average_precision(chances, wanted)
        more["positive_recall_at_99_precision"] = recall_at_precision(chances, wanted, 0.99)
    return more


def answers(night: Night, model: Model, rows: Labelled) -> Answers:
    """What a model says of some rows, in their order."""
    documents = tokens_of(night.lake, model.tokenizer.digest, rows.doc_ids)
    texts = texts_of(night.lake, rows.doc_ids) if model.wide else {}
    given = [texts[one] for one in rows.doc_ids] if model.wide else []
    return model.answer(documents, given, night.pipeline.train.device)


def _paths(scores: Scores) -> str:
    more = scores.more
    if "wide_accuracy" not in more:
        return ""
    return (
        f" (network alone {more['network_accuracy']:.4f}, weight {more['network_weight']:.2f}; "
        f"wide path alone {more['wide_accuracy']:.4f})"
    )


def _baseline(
    night: Night, challenger: Scores | None, train: Labelled, test: Labelled
) -> dict[str, float] | None:
    """The wide path alone is the linear model a user would have without us; else one is fitted."""
    if challenger is not None and "wide_accuracy" in challenger.more:
        return {name: challenger.more[f"wide_{name}"] for name in ("accuracy", "macro_f1")}
    texts = texts_of(night.lake, [*train.doc_ids, *test.doc_ids])
    return linear_baseline(
        [texts[one] for one in train.doc_ids],
        train.labels,
        [texts[one] for one in test.doc_ids],
        test.labels,
    )
