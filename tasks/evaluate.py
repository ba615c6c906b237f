"""evaluate: champion and challenger on the test rows, now, beside a linear model."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from nightshift.checks import count_checks, failures
from nightshift.corpus import Labelled, labelled_sides, texts_of, tokens_of
from nightshift.deciding import average_precision, recall_at_precision
from nightshift.erasure import forgotten_since
from nightshift.evaluation import (
    MISTAKES,
    label_errors,
    near_duplicates,
    reliability,
    slice_scores,
    surest_mistakes,
)
from nightshift.pictures import confusion_picture
from nightshift.pipeline import config_to_keep
from nightshift.plots import reliability_picture
from nightshift.scoring import (
    Scores,
    calibration_error,
    confusion,
    f1_by_class,
    linear_baseline,
    score,
)
from nightshift.slices import slices_of
from nightshift.sources import SLICES

from .stage import Night, Outcome, code_version, stage
from .train import Trained

if TYPE_CHECKING:
    from nightshift.bundle import Answers, Model

log = logging.getLogger(__name__)


CONFIG = "tokenizer source evaluation checks"
"""Keys of the pipeline's config that are read."""
SHOWN = 12
"""Mistakes and suspects that an outcome carries for the page; the artifacts have them all."""
MOST_TEXT = 2_000
"""Characters of a text in an artifact."""
EXAMPLES = 5
"""Of near duplicates."""


class Evaluated(Outcome):
    """Scores on the test rows; None where there is nothing to score."""

    champion: dict[str, Any] | None
    challenger: dict[str, Any] | None
    baseline: dict[str, float] | None
    note: str = ""
    """Why there are no scores, in words."""
    details: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """What else was seen of `champion` and `challenger`: slices, reliability, mistakes, suspects,
    apart (scores without near duplicates), checks that failed."""
    near: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Test documents that nearly stand in training: rows, of, share, examples; or a note why
    nobody looked."""
    checks: int = 0
    """Declared checks, one for each text."""
    failed_checks: list[str] = Field(default_factory=list[str])
    """What the challenger must pass and does not, a sentence each."""


@dataclass(frozen=True)
class Judged:
    """A model's answers on the test rows, with those of the gate below them."""

    model: Model
    said: Answers
    scores: Scores
    words: list[str]
    """The labels said, test rows only."""

    @property
    def confidence(self) -> np.ndarray:
        """Probability of each answer on the test rows, float32 (rows,)."""
        assert self.said.probabilities is not None
        rows = np.arange(len(self.words))
        return self.said.probabilities[rows, self.said.choice[rows]]


@stage("evaluate", CONFIG)
def evaluate(night: Night, trained: Trained) -> Evaluated:
    """Score both models on all labelled test documents there are by now."""
    before = _as_before(night, trained)
    if before is not None:
        log.info("evaluate  as last night: the same model and rows")
        return before
    with night.device():
        return _evaluated(night, trained)


def _evaluated(night: Night, trained: Trained) -> Evaluated:
    sides = labelled_sides(night.lake)
    test, gate = sides["test"], sides["gate"]
    models = {"champion": night.champion, "challenger": trained.challenger}
    loaded = {name: night.load(ref) for name, ref in models.items()
              if ref is not None and ref.kind == "network"}  # fmt: skip
    failed = {name: failures(model, night.pipeline.checks) for name, model in loaded.items()}
    checks = count_checks(night.pipeline.checks) if loaded else 0
    musts = [one.sentence for one in failed.get("challenger", []) if one.must]
    for name, found in failed.items() if checks else ():
        log.info("evaluate  %-10s fails %d of %d checks", name, len(found), checks)
    judged = {name: _judge(night, model, test, gate) for name, model in loaded.items() if len(test)}
    baseline: dict[str, float] | None = night.before.get("baseline")
    if "challenger" in loaded:
        whole = judged["challenger"].scores if judged else None
        baseline = _baseline(night, whole, sides["train"], test)
    details: dict[str, dict[str, Any]] = {
        name: {"failed": [one.as_json() for one in found]} for name, found in failed.items()
    }
    figures: dict[str, float] = {}
    if checks:
        figures |= {f"{name}_checks_failed": len(found) for name, found in failed.items()}
    if not judged:
        note = "no labelled document is on the test side" if not len(test) else trained.reason
        log.info("evaluate  nothing to score: %s", note)
        return Evaluated(champion=None, challenger=None, baseline=None, note=note, checks=checks,
                         failed_checks=musts, details=details, figures=figures)  # fmt: skip
    near, shared = _near(night, sides)
    slices = slices_of(night.lake, test.doc_ids, [*SLICES, *night.pipeline.source.columns])
    for name, one in judged.items():
        details[name] |= _details(night, name, one, test, gate, slices, shared)
        figures |= {f"{name}_{key}": value for key, value in one.scores.figures().items()}
        figures |= _flat(name, details[name])
        _keep(night, name, one.scores, details[name])
        log.info("evaluate  %-10s accuracy %.4f, macro-F1 %.4f on %d rows%s", name,
                 one.scores.accuracy, one.scores.macro_f1, one.scores.rows,
                 _paths(one.scores))  # fmt: skip
    if "share" in near:
        figures["near_duplicates"] = near["rows"]
        figures["near_duplicate_share"] = near["share"]
    if baseline:
        figures |= {f"baseline_{key}": value for key, value in baseline.items()}
        log.info("evaluate  linear     accuracy %.4f, macro-F1 %.4f",
                 baseline["accuracy"], baseline["macro_f1"])  # fmt: skip
    scores = {name: one.scores.as_json() for name, one in judged.items()}
    return Evaluated(
        champion=scores.get("champion"),
        challenger=scores.get("challenger"),
        baseline=baseline,
        details={name: _short(one) for name, one in details.items()},
        near=near,
        checks=checks,
        failed_checks=musts,
        figures=figures,
    )


def _as_before(night: Night, trained: Trained) -> Evaluated | None:
    """Last night's scores, where the champion, all labelled rows, code and config are the same."""
    last, tonight = night.previous, pc.field("night") == night.name
    if last is None or trained.challenger is not None or night.champion is None:
        return None
    news = any(night.lake.count(table, tonight) for table in ("documents", "labels"))
    # What people forgot, or retention removed, since then was among the rows.
    since = pc.field("night") == last["night"]
    news = news or forgotten_since(night.lake, last["number"])
    news = news or night.lake.count("prunings", since) > 0
    config, then = (
        {key: found.get(key) for key in CONFIG.split()}
        for found in (config_to_keep(night.pipeline), last["manifest"].get("config", {}))
    )
    row = night.lake.stages(last["night"]).get("evaluate")
    if news or config != then or last["code_version"] != code_version() or row is None:
        return None
    found = Evaluated.model_validate(row["outputs"])
    # Whoever lost is gone; whoever won is the champion now.
    who = "challenger" if last["figures"].get("promoted") else "champion"
    if getattr(found, who) is None or last["figures"].get("turn"):
        return None
    figures = {
        key.replace(who, "champion", 1): value
        for key, value in found.figures.items()
        if key.startswith(who) or not key.startswith(("champion", "challenger"))
    }
    return found.model_copy(
        update={
            "champion": getattr(found, who),
            "challenger": None,
            "details": {"champion": found.details[who]} if who in found.details else {},
            "failed_checks": [],
            "figures": figures,
        }
    )


def _judge(night: Night, model: Model, test: Labelled, gate: Labelled) -> Judged:
    both = Labelled([*test.doc_ids, *gate.doc_ids], [*test.labels, *gate.labels])
    said = answers(night, model, both)
    assert said.probabilities is not None
    rows = len(test)
    words = np.array(model.labels, object)[said.choice[:rows]].tolist()
    whole = score(test.labels, said.probabilities[:rows], model.labels, words)
    return Judged(model, said, replace(whole, more=_more(model, said, test.labels)), words)


def _details(
    night: Night,
    name: str,
    one: Judged,
    test: Labelled,
    gate: Labelled,
    slices: dict[str, list[str]],
    shared: np.ndarray,
) -> dict[str, Any]:
    """All that is looked at beside the scores, and its tables and pictures as artifacts."""
    said, truth = one.said, np.array(test.labels, object)
    assert said.probabilities is not None
    assert said.untempered is not None
    bins: dict[str, Any] = {}
    for part, given in (("before", said.untempered), ("after", said.probabilities)):
        sure, right = given[: len(test)].max(1), truth == np.array(one.words, object)
        bins[part] = reliability(sure, right)
        bins[f"error_{part}"] = calibration_error(sure, right)
    mistakes = [
        {"doc_id": test.doc_ids[row], "label": test.labels[row], "said": one.words[row],
         "probability": round(float(one.confidence[row]), 6)}
        for row in surest_mistakes(test.labels, one.words, one.confidence).tolist()
    ]  # fmt: skip
    suspects, counted = _suspects(one, test, gate)
    apart = ~shared
    found = {
        "slices": slice_scores(test.labels, one.words, slices),
        "reliability": bins,
        "mistakes": mistakes,
        "suspects": suspects,
        **counted,
        "apart": _scores_of(truth[apart], np.array(one.words, object)[apart]),
    }
    texts = texts_of(night.lake, [row["doc_id"] for row in (*mistakes, *suspects)])
    for kind in ("mistakes", "suspects"):
        rows = [{**row, "text": texts[row["doc_id"]][:MOST_TEXT]} for row in found[kind]]
        _write(night, rows, f"evaluation/{name}_{kind}.json")
    return found


def _suspects(
    one: Judged, test: Labelled, gate: Labelled
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of test and gate, which no model was taught, whose label is probably wrong; how many."""
    assert one.said.probabilities is not None
    place = {name: index for index, name in enumerate(one.model.labels)}
    doc_ids, given = [*test.doc_ids, *gate.doc_ids], [*test.labels, *gate.labels]
    known = np.array([row for row, label in enumerate(given) if label in place], np.int64)
    labels = np.array([place[given[row]] for row in known], np.int64)
    found = label_errors(labels, one.said.probabilities[known])
    rows = [
        {"doc_id": doc_ids[known[row]], "label": given[known[row]],
         "suggested": one.model.labels[other], "margin": round(float(margin), 6),
         "side": "test" if known[row] < len(test) else "gate"}
        for row, other, margin in zip(found.rows, found.suggested, found.margins, strict=True)
    ]  # fmt: skip
    return rows[:MISTAKES], {"suspected": len(rows), "label_error_share": found.share}


def _near(night: Night, sides: dict[str, Labelled]) -> tuple[dict[str, Any], np.ndarray]:
    """Test documents that nearly stand among those learned from, and which rows that are."""
    test, config = sides["test"], night.pipeline.evaluation
    learned = [*sides["train"].doc_ids, *sides["validation"].doc_ids]
    shared = np.zeros(len(test), bool)
    total = len(test) + len(learned)
    if total > config.near_documents:
        note = (
            f"{total:,} training and test documents are more than evaluation.near_documents "
            f"({config.near_documents:,})"
        )
        return {"note": note}, shared
    texts = texts_of(night.lake, [*test.doc_ids, *learned])
    found = near_duplicates(
        [texts[one] for one in test.doc_ids], [texts[one] for one in learned],
        config.near_duplicates,
    )  # fmt: skip
    shared[found.rows] = True
    pairs = [
        {"doc_id": test.doc_ids[row], "like": learned[other], "similarity": round(float(much), 4)}
        for row, other, much in zip(found.rows, found.partners, found.similarity, strict=True)
    ]
    pairs.sort(key=lambda pair: (-pair["similarity"], pair["doc_id"]))
    _write(night, pairs, "evaluation/near_duplicates.json")
    share = len(pairs) / len(test)
    log.info("evaluate  %d of %d test documents nearly stand in training", len(pairs), len(test))
    told = {"rows": len(pairs), "of": len(test), "share": share, "examples": pairs[:EXAMPLES]}
    return {**told, "threshold": config.near_duplicates}, shared


def _scores_of(truth: np.ndarray, said: np.ndarray) -> dict[str, float] | None:
    if not len(truth):
        return None
    _, table = confusion(truth.tolist(), said.tolist())
    return {
        "rows": len(truth),
        "accuracy": float((truth == said).mean()),
        "macro_f1": float(f1_by_class(table).mean()),
    }


def _flat(name: str, details: dict[str, Any]) -> dict[str, float]:
    """The numbers worth a line in MLflow."""
    figures = {
        f"{name}_uncalibrated_error": details["reliability"]["error_before"],
        f"{name}_suspects": details["suspected"],
        f"{name}_label_error_share": details["label_error_share"],
    }
    if details["apart"]:
        figures[f"{name}_apart_accuracy"] = details["apart"]["accuracy"]
    for one in details["slices"]:
        # MLflow takes a slash for a folder, and refuses a name that is no plain path.
        which = f"{one['kind']} {one['name']}".replace("/", "_")
        figures[f"{name}_accuracy/{which}"] = one["accuracy"]
    return figures


def _keep(night: Night, name: str, scores: Scores, details: dict[str, Any]) -> None:
    """Tables and pictures, as artifacts of the night."""
    bins = details["reliability"]
    errors = (bins["error_before"], bins["error_after"])
    picture = reliability_picture(bins["before"], bins["after"], errors)
    night.tracking.text(picture, f"reliability/{name}.svg")
    night.tracking.text(confusion_picture(scores.confusion, scores.labels), f"confusion/{name}.svg")
    _write(night, scores.as_json(), f"evaluation/{name}.json")
    for kind in ("slices", "reliability", "failed"):
        _write(night, details[kind], f"evaluation/{name}_{kind}.json")


def _write(night: Night, value: Any, name: str) -> None:
    night.tracking.text(json.dumps(value, ensure_ascii=False, indent=1), name)


def _short(details: dict[str, Any]) -> dict[str, Any]:
    """What an outcome carries: no more rows than the page shows."""
    return {
        key: value[:SHOWN] if key in ("mistakes", "suspects") else value
        for key, value in details.items()
    }


def _more(model: Model, said: Answers, truth: list[str]) -> dict[str, float]:
    """Each path alone, what is kept back, and how well the positive class is found."""
    rows = len(truth)
    more = {"abstained": float(said.abstained[:rows].mean())}
    for name, part in (("network", said.network), ("wide", said.wide)):
        if part is not None:
            alone = score(truth, part[:rows], model.labels)
            more |= {f"{name}_accuracy": alone.accuracy, f"{name}_macro_f1": alone.macro_f1}
    if said.wide is not None:
        more["network_weight"] = model.blend.weight
    if model.positive is not None and said.probabilities is not None:
        chances = said.probabilities[:rows, model.positive]
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
