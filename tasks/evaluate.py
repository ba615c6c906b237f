"""evaluate: champion and challenger on the test rows, now, beside a linear model."""

from __future__ import annotations

import json
import logging
from typing import Any

from nightshift.bundle import Model
from nightshift.corpus import Labelled, labelled_sides, texts_of, tokens_of
from nightshift.pictures import confusion_picture
from nightshift.scoring import Scores, linear_baseline, score

from .stage import ModelRef, Night, Outcome, stage
from .train import Trained, champion_of, load_model

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
    champion = _score(night, champion_of(night), test)
    challenger = _score(night, trained.challenger, test)
    if trained.challenger is not None and trained.challenger.kind == "network":
        baseline = _baseline(night, sides["train"], test)
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
            log.info("evaluate  %-10s accuracy %.4f, macro-F1 %.4f on %d rows",
                     name, scores.accuracy, scores.macro_f1, scores.rows)  # fmt: skip
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
    model = load_model(night, ref)
    return score(test.labels, probabilities(night, model, test), model.labels)


def probabilities(night: Night, model: Model, rows: Labelled) -> Any:
    """A network's class probabilities, float32 (rows, classes)."""
    documents = tokens_of(
        night.lake, model.tokenizer.digest, rows.doc_ids, int(model.config.max_tokens)
    )
    said = model.answer(documents, night.pipeline.train.device).probabilities
    assert said is not None
    return said


def _baseline(night: Night, train: Labelled, test: Labelled) -> dict[str, float] | None:
    texts = texts_of(night.lake, [*train.doc_ids, *test.doc_ids])
    return linear_baseline(
        [texts[one] for one in train.doc_ids],
        train.labels,
        [texts[one] for one in test.doc_ids],
        test.labels,
    )
