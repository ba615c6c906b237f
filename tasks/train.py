"""train: a challenger, when there is reason for one; vectors where labels do not suffice."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nightshift.batches import Documents
from nightshift.corpus import (
    Labelled,
    assigned,
    current_labels,
    labelled_sides,
    tokens_of,
)
from nightshift.ids import ids_of, index_in
from nightshift.nearest import UNASSIGNED
from nightshift.plots import curves_picture
from nightshift.recipe import Recipe, most_read
from nightshift.tables import TableRef, digest_of
from nightshift.tokenizer import Tokenizer

from .discover import (
    Topics,
    documents_of,
    due_without_labels,
    find_topics,
    learn_without_labels,
)
from .progress import Shown, track
from .stage import ModelRef, Night, Outcome, code_version, stage
from .tokens import Tokens, load_tokenizer

if TYPE_CHECKING:
    from nightshift.bundle import Model
    from nightshift.training import Epoch

log = logging.getLogger(__name__)

DESCRIBED, EXPECTED = 0.1, 10
"""A cluster is of no class where no more than this share is labelled of as many documents as its
size lets expect, and so many are expected: few labels miss a small cluster by chance."""
REFUSED = (
    "the newest classifier did not become champion, and since then neither labels, config nor code "
    "have changed: it would come out the same"
)


class Trained(Outcome):
    """Tonight's challenger, or why there is none."""

    challenger: ModelRef | None
    reason: str
    basis: dict[str, Any]
    """What the newest training saw, to tell on later nights whether another is due."""
    topics: Topics = Field(default_factory=list[list[str]])
    """What is new tonight, for the network to learn and for the clusters to be born with."""
    curves: list[dict[str, float]] = Field(default_factory=list[dict[str, float]])
    """The classifier's epochs: epoch, train_loss, validation_loss, validation_accuracy."""


@stage("train", "tokenizer model pretrain train wide answers clusters")
def train(night: Night, tokens: Tokens) -> Trained:
    """Train a classifier if one is due and possible; else keep, or learn, what gives vectors."""
    before: dict[str, Any] = night.before.get("basis", {})
    champion = night.champion
    if night.turn is not None:
        words = f"version {night.turn.version} was asked for by {night.turn.by}"
        return Trained(challenger=night.turn.model, reason=words, basis=before)
    if not tokens.tokenizer:
        return Trained(challenger=None, reason="there are no documents yet", basis=before)
    asked = night.asked.part
    if asked in ("ingest", "reclassify", "recluster"):
        return Trained(challenger=None, reason=f"only {asked} was asked for", basis=before)
    topics = find_topics(night, tokens)
    kept = Trained(challenger=None, reason="nothing new to learn from", basis=before, topics=topics)
    sides = labelled_sides(night.lake)
    lacking = _lacking(sides, night.pipeline.train.min_rows)
    if lacking is None:
        due = _due(night, tokens, sides, champion)
        none = champion is None or champion.kind != "network"
        if due is None and none and night.pipeline.train.when == "auto":
            kept = kept.model_copy(update={"reason": REFUSED})
        if due is None:
            return kept
        with night.device():
            return _train_network(night, tokens, sides, due, topics)
    log.info("train     no classifier: %s", lacking)
    due = due_without_labels(night, tokens, lacking, topics)
    if due is None:
        return kept.model_copy(update={"reason": lacking})
    log.info("train     %s", due)
    with night.device():
        ref, basis = learn_without_labels(night, tokens, topics)
    return Trained(challenger=ref, reason=due, basis=basis, topics=topics)


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
    if night.asked.part == "train" and night.asked.force:
        return night.asked.cause or "a training was asked for"
    if config.when == "never":
        return None
    if config.when == "always":
        return "train.when is always"
    if champion is None or champion.kind != "network":
        then = _night_of(night, before)
        if "classes" not in before or then is None:
            return "there is no classifier yet"
        if then["code_version"] != code_version():
            return "the code changed since a classifier was refused"
        if then["manifest"].get("config", {}).get("checks") != _checks(night):
            return "the checks changed since a classifier was refused"
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


def _night_of(night: Night, before: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the night of the newest training."""
    return next((row for row in night.lake.nights() if row["number"] == before.get("night")), None)


def _checks(night: Night) -> dict[str, Any]:
    return night.pipeline.checks.model_dump(mode="json")


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
        exclude={"when", "min_new_labels", "max_age_nights", "device", "min_rows", "without_labels"}
    )
    others = (pipeline.model, pipeline.pretrain, pipeline.wide, pipeline.answers)
    return digest_of([fitted, *(one.model_dump() for one in others)])


def _train_network(
    night: Night, tokens: Tokens, sides: dict[str, Labelled], due: str, topics: Topics
) -> Trained:
    from nightshift.inference import pick_device
    from nightshift.learning import Learned, gather, learn
    from nightshift.pretraining import Pass
    from nightshift.together import passes_of
    from nightshift.training import Epoch

    pipeline, tokenizer = night.pipeline, load_tokenizer(night, tokens.tokenizer)
    champion = _start(night)
    recipe = Recipe(**{part: getattr(pipeline, part) for part in Recipe.model_fields})
    material = gather(
        night.lake, tokenizer, sides, recipe,
        also=champion.labels if champion else [],
        declared=pipeline.source.split is not None,
    )  # fmt: skip
    material = replace(material, others=_of_no_class(night, tokenizer, topics))
    if champion is not None:
        material = replace(material, fresh=_fresh(night, sides["train"].doc_ids))
    log.info("train     %s; %d documents of %d classes, on %s",
             due, len(material.train), len(material.classes),
             pick_device(pipeline.train.device))  # fmt: skip
    params = {
        **recipe.model_dump(),
        "rows": len(material.train),
        "classes": len(material.classes),
        "tokenizer": tokenizer.digest,
        "data": sides["train"].digest,
        "code": code_version(),
    }  # fmt: skip
    came = night.lake.stages(night.name)["ingest"]["outputs"]
    read = [*(TableRef(**came[name]) for name in ("documents", "labels")), tokens.tokens]
    night.tracking.read_from(read, night.lake.root, "training")
    learned: Learned | None = None
    epochs: list[dict[str, float]] = []
    pretraining, training = Shown("pretraining", 0.0), Shown("training", 0.0)
    with night.tracking.attempt("train", params) as run:
        for event in learn(
            material,
            recipe,
            champion,
            lambda rows, total: track(rows, total, "in batches", False),
            passes_of(pipeline.compute),
        ):
            if isinstance(event, Learned):
                learned = event
                night.tracking.figures(event.figures, 0, run)
            else:
                night.tracking.figures(event.figures(), event.index, run)
                log.info("train     %s", event)
            if isinstance(event, Pass):
                pretraining.at(event.index / event.passes, str(event))
            if isinstance(event, Epoch):
                training.at(event.index / event.epochs, str(event))
                # A start that failed began at 1 as well.
                epochs = [*epochs[: event.index - 1], _point(event)]
    assert learned is not None
    for shown in (pretraining, training):
        shown.at(1.0, "done")
    night.tracking.text(curves_picture(epochs), "training/curves.svg")
    for note in learned.notes:
        log.info("train     %s", note)
    if learned.forgotten:
        log.warning(
            "train     the challenger has lost classes that the champion finds: %s. More rows of "
            "them, or train.warm_start, may help.", ", ".join(learned.forgotten),
        )  # fmt: skip
    return Trained(
        challenger=night.keep(learned.model),
        reason=due,
        basis={
            "night": night.number,
            "labels": len(current_labels(night.lake)),
            "classes": material.classes,
            "tokenizer": tokenizer.digest,
            "recipe": _recipe(night),
            "documents": documents_of(night),
        },
        topics=topics,
        curves=epochs,
        figures={key: value for key, value in learned.figures.items() if "seconds" not in key},
    )


def _point(epoch: Epoch) -> dict[str, float]:
    """An epoch on the learning curves."""
    shown = ("train_loss", "validation_loss", "validation_accuracy")
    return {"epoch": epoch.index, **{name: epoch.figures()[name] for name in shown}}


def _start(night: Night) -> Model | None:
    """The champion, where tonight's challenger shall start from it."""
    ref = night.champion
    if not night.pipeline.train.warm_start or ref is None or ref.kind != "network":
        return None
    return night.load(ref)


def _of_no_class(night: Night, tokenizer: Tokenizer, topics: Topics) -> Documents | None:
    """Documents of clusters and new topics that no label describes, labelled by their number.

    A classifier of some topics would put all others together, and the clusters would not live on.
    """
    from nightshift.discovery import MOST

    labels = current_labels(night.lake)
    rows = night.lake.read("documents", ["doc_id"], pc.field("split") != "test")
    learned, given = ids_of(rows["doc_id"]), pa.array(labels, pa.string())
    held = assigned(night.lake, but=night.name)
    labelled = index_in(held.doc_ids, given) >= 0
    share = int((index_in(given, learned) >= 0).sum()) / max(1, len(learned))
    silent: list[pa.Array] = []
    for place, name in enumerate(held.names):
        inside = held.places == place
        if name != UNASSIGNED and is_of_no_class(
            int(inside.sum()), int((inside & labelled).sum()), share
        ):
            silent.append(held.doc_ids.filter(pa.array(inside)))
    for topic in topics:
        if is_of_no_class(len(topic), sum(one in labels for one in topic), share):
            silent.append(pa.array(topic, pa.string()))
    silent = [found.filter(pa.array(index_in(found, learned) >= 0)) for found in silent]
    silent = [found.take(pc.call_function("array_sort_indices", [found])) for found in silent]
    doc_ids = pa.concat_arrays([pa.array([], pa.string()), *silent])
    places = np.repeat(np.arange(len(silent)), [len(found) for found in silent])
    drawn = np.random.default_rng(night.pipeline.train.seed).permutation(len(doc_ids))[:MOST]
    drawn = np.sort(drawn)
    if not len(drawn):
        return None
    groups = np.unique(places[drawn], return_inverse=True)[1].astype(np.int64)
    chosen = doc_ids.take(pa.array(drawn))
    most = most_read(night.pipeline.model)
    return tokens_of(night.lake, tokenizer.digest, chosen, most).labelled(groups)


def is_of_no_class(documents: int, labelled: int, share: float) -> bool:
    """Whether labels pass a cluster over, where they cover such a share of all documents."""
    expected = share * documents
    return expected >= EXPECTED and labelled <= DESCRIBED * expected


def _fresh(night: Night, doc_ids: list[str]) -> np.ndarray:
    """Which rows came, or were labelled anew, after the newest training; bool (rows,)."""
    since = night.before.get("basis", {}).get("night", 0)
    old = [row["night"] for row in night.lake.nights() if row["number"] <= since]
    later = ~pc.field("night").isin(pa.array(old, pa.string()))
    new = {
        one
        for table in ("documents", "labels")
        for one in night.lake.read(table, ["doc_id"], later)["doc_id"].to_pylist()
    }
    return np.array([one in new for one in doc_ids])
