"""train: a challenger, when there is reason for one; vectors where labels do not suffice."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nightshift.batches import Documents
from nightshift.bundle import Model
from nightshift.corpus import (
    Labelled,
    current_assignments,
    current_labels,
    labelled_sides,
    texts_of,
    tokens_of,
)
from nightshift.discovery import MOST, Round, centres_of, discover
from nightshift.encoders import Network
from nightshift.inference import pick_device
from nightshift.learning import Learned, gather, learn
from nightshift.nearest import UNASSIGNED
from nightshift.pretrained import PREFIX
from nightshift.recipe import Recipe
from nightshift.tables import digest_of
from nightshift.tokenizer import Tokenizer
from nightshift.vectors import learn as learn_vectors

from .progress import track
from .stage import ModelRef, Night, Outcome, code_version, stage
from .tokens import Tokens, load_tokenizer
from .tracking import scratch

log = logging.getLogger(__name__)

VECTOR_TOKENS = 512
"""Tokens per document that corpus vectors read."""
GREW = 2.0
"""Vectors are learned again when the corpus has grown this much since."""
DESCRIBED, EXPECTED = 0.1, 10
"""A cluster is of no class where no more than this share is labelled of as many documents as its
size lets expect, and so many are expected: few labels miss a small cluster by chance."""
ENOUGH, LEAST = 1_000, 20
"""Documents from which a network learns clusters by default, and where it is asked to."""


class Trained(Outcome):
    """Tonight's challenger, or why there is none."""

    challenger: ModelRef | None
    reason: str
    basis: dict[str, Any]
    """What the newest training saw, to tell on later nights whether another is due."""


@stage("train", "tokenizer model pretrain train wide answers")
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
    due = _anew(night, tokens, champion, documents, lacking)
    if due is None:
        return Trained(challenger=None, reason=lacking, basis=before)
    log.info("train     %s", due)
    return _without_labels(night, tokens, documents, due)


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
        exclude={"when", "min_new_labels", "max_age_nights", "device", "min_rows", "without_labels"}
    )
    others = (pipeline.model, pipeline.pretrain, pipeline.wide, pipeline.answers)
    return digest_of([fitted, *(one.model_dump() for one in others)])


def _train_network(night: Night, tokens: Tokens, sides: dict[str, Labelled], due: str) -> Trained:
    pipeline, tokenizer = night.pipeline, load_tokenizer(night, tokens.tokenizer)
    champion = _start(night)
    material = gather(
        night.lake, tokenizer, sides, pipeline.pretrain,
        also=champion.labels if champion else [],
        declared=pipeline.source.split is not None,
    )  # fmt: skip
    material = replace(material, others=_of_no_class(night, tokenizer))
    if champion is not None:
        material = replace(material, fresh=_fresh(night, sides["train"].doc_ids))
    log.info("train     %s; %d documents of %d classes, on %s",
             due, len(material.train), len(material.classes),
             pick_device(pipeline.train.device))  # fmt: skip
    recipe = Recipe(**{part: getattr(pipeline, part) for part in Recipe.model_fields})
    params = {
        **recipe.model_dump(),
        "rows": len(material.train),
        "classes": len(material.classes),
        "tokenizer": tokenizer.digest,
        "data": sides["train"].digest,
        "code": code_version(),
    }  # fmt: skip
    night.tracking.read_from([tokens.tokens], night.lake.root, "training")
    learned: Learned | None = None
    with night.tracking.attempt("train", params) as run:
        for event in learn(
            material, recipe, champion, lambda rows, total: track(rows, total, "in batches")
        ):
            if isinstance(event, Learned):
                learned = event
                night.tracking.figures(event.figures, 0, run)
            else:
                night.tracking.figures(event.figures(), event.index, run)
                log.info("train     %s", event)
    assert learned is not None
    for note in learned.notes:
        log.info("train     %s", note)
    if learned.forgotten:
        log.warning(
            "train     the challenger has lost classes that the champion finds: %s. More rows of "
            "them, or train.warm_start, may help.", ", ".join(learned.forgotten),
        )  # fmt: skip
    return Trained(
        challenger=_keep(night, learned.model),
        reason=due,
        basis={
            "night": night.number,
            "labels": len(current_labels(night.lake)),
            "classes": material.classes,
            "tokenizer": tokenizer.digest,
            "recipe": _recipe(night),
            "documents": _documents(night),
        },
        figures={key: value for key, value in learned.figures.items() if "seconds" not in key},
    )


def _start(night: Night) -> Model | None:
    """The champion, where tonight's challenger shall start from it."""
    ref = champion_of(night)
    if not night.pipeline.train.warm_start or ref is None or ref.kind != "network":
        return None
    return load_model(night, ref)


def _of_no_class(night: Night, tokenizer: Tokenizer) -> Documents | None:
    """Documents of clusters that no label describes, labelled by the number of their cluster.

    A classifier of some topics would put all others together, and the clusters would not live on.
    """
    labels = current_labels(night.lake)
    rows = night.lake.read("documents", ["doc_id"], pc.field("split") != "test")
    learned = set(rows["doc_id"].to_pylist())
    members: dict[str, list[str]] = {}
    for doc_id, (cluster_id, _) in current_assignments(night.lake, but=night.name).items():
        members.setdefault(cluster_id, []).append(doc_id)
    members.pop(UNASSIGNED, None)
    share = sum(one in learned for one in labels) / max(1, len(learned))
    silent = [
        sorted(learned & {*found})
        for _, found in sorted(members.items())
        if is_of_no_class(len(found), sum(one in labels for one in found), share)
    ]
    pairs = [(one, place) for place, found in enumerate(silent) for one in found]
    drawn = np.random.default_rng(night.pipeline.train.seed).permutation(len(pairs))[:MOST]
    pairs = [pairs[row] for row in np.sort(drawn)]
    if not pairs:
        return None
    groups = np.unique([place for _, place in pairs], return_inverse=True)[1].astype(np.int64)
    return tokens_of(night.lake, tokenizer.digest, [one for one, _ in pairs]).labelled(groups)


def is_of_no_class(documents: int, labelled: int, share: float) -> bool:
    """Whether labels pass a cluster over, where they cover such a share of all documents."""
    expected = share * documents
    return expected >= EXPECTED and labelled <= DESCRIBED * expected


def _fresh(night: Night, doc_ids: list[str]) -> np.ndarray:
    """Which rows came, or were labelled anew, after the newest training; bool (rows,)."""
    since = night.before.get("basis", {}).get("night", 0)
    old = [row["night"] for row in night.lake.nights() if row["number"] <= since]
    later = ~pc.field("night").isin(old)
    new = {
        one
        for table in ("documents", "labels")
        for one in night.lake.read(table, ["doc_id"], later)["doc_id"].to_pylist()
    }
    return np.array([one in new for one in doc_ids])


def _anew(
    night: Night, tokens: Tokens, champion: ModelRef | None, documents: int, lacking: str
) -> str | None:
    """Why vectors are to be learned without labels, in words; None when they are not."""
    before = night.before.get("basis", {})
    if champion is None:
        return lacking
    if champion.kind == "network":
        # It has seen labels, which is more than can be learned without.
        return None
    if before.get("tokenizer") != tokens.tokenizer:
        return "the tokenizer changed"
    if documents >= GREW * before.get("documents", 0):
        return f"the corpus has grown from {before.get('documents', 0)} to {documents} documents"
    wanted = _kind(night, documents)
    if champion.kind != wanted:
        return f"train.without_labels asks for {wanted}"
    if champion.kind == "encoder" and (born := _unlearned(night)):
        return f"clusters were born that the network has not learned: {', '.join(born)}"
    return None


def _kind(night: Night, documents: int) -> str:
    pipeline = night.pipeline
    asked = pipeline.train.without_labels
    if pipeline.model.encoder.startswith(PREFIX):
        # Fine-tuning it to guesses would cost what it knows.
        return "vectors"
    enough = {"auto": ENOUGH, "clusters": LEAST}.get(asked)
    return "encoder" if enough is not None and documents >= enough else "vectors"


def _without_labels(night: Night, tokens: Tokens, documents: int, due: str) -> Trained:
    """What gives vectors without a classifier, so that the night still clusters."""
    tokenizer = load_tokenizer(night, tokens.tokenizer)
    doc_ids = night.lake.read("documents", ["doc_id"]).sort_by("doc_id")["doc_id"].to_pylist()
    encoder = _kind(night, documents) == "encoder"
    if encoder:
        doc_ids = _drawn(night, doc_ids)
    rows = tokens_of(night.lake, tokenizer.digest, doc_ids)
    held = current_assignments(night.lake, but=night.name)
    places = {one: place for place, one in enumerate(sorted({one for one, _ in held.values()}))}
    places.pop(UNASSIGNED, None)
    known = [places.get(held[one][0], -1) if one in held else -1 for one in doc_ids]
    model = (
        _learn_clusters(night, tokenizer, doc_ids, rows, np.array(known, np.int64))
        if encoder
        else _learn_vectors(night, tokenizer, rows)
    )
    basis = {
        "night": night.number,
        "documents": documents,
        "tokenizer": tokens.tokenizer,
        "clusters": len(places),
    }
    return Trained(challenger=_keep(night, model), reason=due, basis=basis)


def _unlearned(night: Night) -> list[str]:
    """Clusters of last night that stand for a topic which the network has not been taught."""
    assert night.previous is not None
    before, last = night.before["basis"], night.previous
    if before["night"] == last["number"] and not before.get("clusters"):
        return []  # the first clusters are those that it found itself
    where = (pc.field("night") == last["night"]) & (pc.field("event") == "born")
    return sorted(night.lake.read("clusters", ["cluster_id"], where)["cluster_id"].to_pylist())


def _drawn(night: Night, doc_ids: list[str]) -> list[str]:
    """As many documents as a network learns clusters from, drawn by chance, in no order."""
    drawn = np.random.default_rng(night.pipeline.train.seed).permutation(len(doc_ids))[:MOST]
    return [doc_ids[row] for row in drawn]


def _learn_clusters(
    night: Night, tokenizer: Tokenizer, doc_ids: list[str], rows: Documents, known: np.ndarray
) -> Model:
    pipeline, texts = night.pipeline, texts_of(night.lake, doc_ids)
    held = len(np.unique(known[known >= 0]))
    log.info("train     a network learns clusters by itself, from %d documents%s", len(rows),
             f" and last night's {held} clusters" if held else "")  # fmt: skip
    recipe = Recipe(**{part: getattr(pipeline, part) for part in Recipe.model_fields})
    newest: Round | None = None
    with night.tracking.attempt("train", {**recipe.model_dump(), "rows": len(rows)}) as run:
        for newest in discover(
            rows,
            [texts[one] for one in doc_ids],
            tokenizer,
            pipeline.model,
            pipeline.train,
            pipeline.clusters,
            known,
            _before(night, tokenizer),
            lambda parts, total: track(parts, total, "in batches"),
        ):
            night.tracking.figures({"moved": newest.moved}, newest.index, run)
            log.info("train     %s", newest)
    if newest is None:
        log.warning("train     the network's loss left the numbers: corpus vectors stand in")
        return _learn_vectors(night, tokenizer, rows)
    model = Model(
        kind="encoder",
        tokenizer=tokenizer,
        config=newest.network.config,
        cleaning=pipeline.cleaning,
        network=newest.network,
        corpus=learn_vectors(
            rows.cut(int(newest.network.config.max_tokens), pipeline.model.truncation),
            tokenizer.size,
            seed=pipeline.train.seed,
        ),
    )
    some = np.arange(len(newest.places))
    vectors = model.answer(rows.take(some), [], pipeline.train.device).vectors
    return replace(model, groups=centres_of(vectors, newest.places, newest.groups))


def _before(night: Night, tokenizer: Tokenizer) -> Network | None:
    """The network that learned clusters before, where it reads the same tokens."""
    ref = champion_of(night)
    if ref is None or ref.kind != "encoder":
        return None
    model = load_model(night, ref)
    return model.network if model.tokenizer.digest == tokenizer.digest else None


def _learn_vectors(night: Night, tokenizer: Tokenizer, rows: Documents) -> Model:
    recipe = night.pipeline.model
    if recipe.max_tokens == "auto":
        recipe = recipe.model_copy(update={"max_tokens": VECTOR_TOKENS})
    rows = rows.cut(int(recipe.max_tokens), recipe.truncation)
    log.info("train     learning vectors from the corpus itself, %d documents", len(rows))
    return Model(
        kind="vectors",
        tokenizer=tokenizer,
        config=recipe,
        cleaning=night.pipeline.cleaning,
        corpus=learn_vectors(rows, tokenizer.size, seed=night.pipeline.train.seed),
    )


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
