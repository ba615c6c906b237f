"""train: a challenger, when there is reason for one; corpus vectors where labels do not suffice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from nightshift.batches import Documents
from nightshift.bundle import BATCH_TOKENS, Model
from nightshift.corpus import Labelled, current_labels, labelled_sides, tokens_of
from nightshift.encoders import Network
from nightshift.recipe import resolve
from nightshift.tables import digest_of
from nightshift.tokenizer import Tokenizer
from nightshift.training import Epoch, fit, forward, pick_device, temperature
from nightshift.vectors import learn

from .progress import track
from .stage import ModelRef, Night, Outcome, code_version, stage
from .tokens import Tokens, load_tokenizer
from .tracking import scratch

log = logging.getLogger(__name__)

GREW = 2.0
"""Corpus vectors are learned again when the corpus has grown this much since."""


class Trained(Outcome):
    """Tonight's challenger, or why there is none."""

    challenger: ModelRef | None
    reason: str
    basis: dict[str, Any]
    """What the newest training saw, to tell on later nights whether another is due."""


@stage("train", "tokenizer model train")
def train(night: Night, tokens: Tokens) -> Trained:
    """Train a classifier if one is due and possible; else keep, or learn, what gives vectors."""
    before: dict[str, Any] = night.before.get("basis", {})
    champion = champion_of(night)
    if not tokens.tokenizer:
        return Trained(challenger=None, reason="there are no documents yet", basis=before)
    sides = labelled_sides(night.lake)
    lacking = _lacking(sides, night.pipeline.train.min_rows)
    if lacking is None:
        due = _due(night, tokens, sides, champion)
        if due is None:
            reason = "nothing new to learn from"
            return Trained(challenger=None, reason=reason, basis=before)
        return _train_network(night, tokens, sides, due)
    log.info("train     no classifier: %s", lacking)
    documents = _documents(night)
    grown = documents >= GREW * before.get("documents", 0)
    changed = before.get("tokenizer") != tokens.tokenizer
    if champion is not None and (champion.kind == "network" or not (grown or changed)):
        return Trained(challenger=None, reason=lacking, basis=before)
    return _learn_vectors(night, tokens, documents, lacking)


def champion_of(night: Night) -> ModelRef | None:
    """The model of the newest published night."""
    found = night.before.get("model")
    return ModelRef.model_validate(found) if found else None


def _lacking(sides: dict[str, Labelled], min_rows: int) -> str | None:
    """Why no classifier can be trained, in words; None when one can."""
    rows, classes = len(sides["train"]), set(sides["train"].labels)
    if not rows:
        return "no document is labelled"
    if len(classes) < 2:
        return f"all {rows} labelled training documents say {next(iter(classes))!r}: one class"
    if rows < min_rows:
        return f"{rows} labelled training documents, and train.min_rows is {min_rows}"
    if not set(sides["validation"].labels) & classes:
        return "no labelled document is on the validation side, which decides when to stop"
    return None


def _due(
    night: Night, tokens: Tokens, sides: dict[str, Labelled], champion: ModelRef | None
) -> str | None:
    """Why a training is due, in words; None when it is not (`train.when`)."""
    config, before = night.pipeline.train, night.before.get("basis", {})
    if config.when == "never":
        return None
    if config.when == "always":
        return "train.when is always"
    if champion is None or champion.kind != "network":
        return "there is no classifier yet"
    if before.get("tokenizer") != tokens.tokenizer:
        return "the tokenizer changed"
    if before.get("recipe") != _recipe(night):
        return "the recipe changed"
    new_classes = sorted(set(sides["train"].labels) - set(before.get("classes", [])))
    if new_classes:
        shown = ", ".join(new_classes[:5]) + (", ..." if len(new_classes) > 5 else "")
        return f"new classes: {shown}"
    changed = _changed_labels(night, before)
    wanted = config.min_new_labels
    if wanted < 1:
        wanted *= before.get("labels", 0)
    if changed and changed >= wanted:
        return f"{changed} new labels"
    if changed and night.number - before.get("night", 0) >= config.max_age_nights:
        return f"the champion is {night.number - before['night']} nights old"
    return None


def _changed_labels(night: Night, before: dict[str, Any]) -> int:
    """Labels that are new or different since the newest training."""
    given = night.lake.read("labels", ["night"])["night"].to_pylist()
    numbers = {row["night"]: row["number"] for row in night.lake.nights()}
    later = sum(numbers.get(one, 0) > before.get("night", 0) for one in given)
    labelled = len(current_labels(night.lake)) - before.get("labels", 0)
    return max(later, 0) + max(labelled, 0)


def _recipe(night: Night) -> str:
    pipeline = night.pipeline
    fitted = pipeline.train.model_dump(
        exclude={"when", "min_new_labels", "max_age_nights", "device", "min_rows"}
    )
    return digest_of([pipeline.model.model_dump(), fitted])


def _train_network(night: Night, tokens: Tokens, sides: dict[str, Labelled], due: str) -> Trained:
    pipeline, tokenizer = night.pipeline, load_tokenizer(night, tokens.tokenizer)
    classes = sorted(set(sides["train"].labels))
    most = pipeline.tokenizer.max_tokens
    rows = tokens_of(night.lake, tokenizer.digest, sides["train"].doc_ids, most)
    p50, p95 = (int(one) for one in np.percentile(rows.lengths, [50, 95]))
    recipe, schedule = resolve(pipeline.model, pipeline.train, len(rows), p50, p95)
    training = _labelled(rows, sides["train"], classes, int(recipe.max_tokens))
    validation = _validation(night, tokenizer, sides["validation"], classes, int(recipe.max_tokens))
    device = pick_device(schedule.device)
    log.info("train     %s; %d documents of %d classes, %d epochs at most, on %s",
             due, len(training), len(classes), schedule.epochs, device)  # fmt: skip
    params = {
        "model": recipe.model_dump(),
        "train": schedule.model_dump(),
        "rows": len(training),
        "classes": len(classes),
        "tokenizer": tokenizer.digest,
        "data": sides["train"].digest,
        "code": code_version(),
        "device": str(device),
    }
    night.tracking.read_from([tokens.tokens], night.lake.root, "training")
    epochs: list[Epoch] = []
    with night.tracking.attempt("train", params) as run:
        for epoch in fit(
            lambda: Network(recipe, tokenizer.size, len(classes)),
            training,
            validation,
            schedule,
            lambda batches, total: track(batches, total, "training, in batches"),
        ):
            if epoch.index == 1:
                epochs.clear()  # a start before this one came to nothing
            night.tracking.figures(epoch.figures(), epoch.index, run)
            epochs.append(epoch)
            log.info(
                "train     epoch %d of %d: loss %.4f, validation loss %.4f, accuracy %.4f%s",
                epoch.index, epoch.epochs, epoch.train_loss, epoch.validation_loss,
                epoch.validation_accuracy, " (best)" if epoch.best else "",
            )  # fmt: skip
    network = epochs[-1].network
    assert validation.labels is not None
    scores, _ = forward(network, validation, BATCH_TOKENS, device)
    model = Model(
        kind="network",
        tokenizer=tokenizer,
        config=recipe,
        cleaning=pipeline.cleaning,
        network=network,
        labels=classes,
        temperature=temperature(scores, validation.labels),
        abstain_below=pipeline.train.abstain_below,
    )
    best = min(epochs, key=lambda one: one.validation_loss)
    return Trained(
        challenger=_keep(night, model),
        reason=due,
        basis={
            "night": night.number,
            "labels": len(current_labels(night.lake)),
            "classes": classes,
            "tokenizer": tokenizer.digest,
            "recipe": _recipe(night),
            "documents": _documents(night),
        },
        figures={
            "epochs": len(epochs),
            "rows": len(training),
            "classes": len(classes),
            "temperature": model.temperature,
            "validation_accuracy": best.validation_accuracy,
            "validation_loss": best.validation_loss,
        },
    )


def _labelled(documents: Documents, labelled: Labelled, classes: list[str], most: int) -> Documents:
    place = {name: index for index, name in enumerate(classes)}
    labels = np.array([place[label] for label in labelled.labels], np.int64)
    return Documents(documents.ids, documents.starts, np.minimum(documents.lengths, most), labels)


def _validation(
    night: Night, tokenizer: Tokenizer, side: Labelled, classes: list[str], most: int
) -> Documents:
    """Validation documents of the classes that the training side knows."""
    known = set(classes)
    pairs = [pair for pair in zip(side.doc_ids, side.labels, strict=True) if pair[1] in known]
    kept = Labelled([doc_id for doc_id, _ in pairs], [label for _, label in pairs])
    rows = tokens_of(night.lake, tokenizer.digest, kept.doc_ids, most)
    return _labelled(rows, kept, classes, most)


def _learn_vectors(night: Night, tokens: Tokens, documents: int, lacking: str) -> Trained:
    """Vectors from the corpus itself, so that a night without a classifier still clusters."""
    tokenizer = load_tokenizer(night, tokens.tokenizer)
    doc_ids = night.lake.read("documents", ["doc_id"]).sort_by("doc_id")["doc_id"].to_pylist()
    recipe, _ = resolve(night.pipeline.model, night.pipeline.train, len(doc_ids), 1, 512)
    rows = tokens_of(night.lake, tokenizer.digest, doc_ids, int(recipe.max_tokens))
    log.info("train     learning vectors from the corpus itself, %d documents", len(rows))
    model = Model(
        kind="vectors",
        tokenizer=tokenizer,
        config=recipe,
        cleaning=night.pipeline.cleaning,
        corpus=learn(rows, tokenizer.size, seed=night.pipeline.train.seed),
    )
    basis = {"night": night.number, "documents": documents, "tokenizer": tokenizer.digest}
    return Trained(challenger=_keep(night, model), reason=lacking, basis=basis)


def _documents(night: Night) -> int:
    return night.lake.read("documents", ["doc_id"]).num_rows


def _keep(night: Night, model: Model) -> ModelRef:
    with scratch() as folder:
        model_id = model.save(Path(folder))
        uri = night.tracking.keep(Path(folder), f"models/{model_id}")
    return ModelRef(model_id=model_id, uri=uri, kind=model.kind)


def load_model(night: Night, ref: ModelRef) -> Model:
    """A model from where MLflow keeps it."""
    return Model.load(night.tracking.fetch(ref.uri))
