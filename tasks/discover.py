"""What the train stage does without labels: vectors, groups to learn, and topics that are new."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nightshift import discovery
from nightshift.batches import Documents
from nightshift.births import fewest
from nightshift.bundle import Model
from nightshift.corpus import current_assignments, texts_of, tokens_of
from nightshift.discovery import MOST, MOST_TOKENS, Round, centres_of
from nightshift.encoders import Network
from nightshift.nearest import UNASSIGNED
from nightshift.pretrained import PREFIX
from nightshift.recipe import Recipe
from nightshift.tokenizer import Tokenizer
from nightshift.vectors import learn as learn_vectors

from .progress import track
from .stage import ModelRef, Night
from .tokens import Tokens, load_tokenizer

log = logging.getLogger(__name__)

VECTOR_TOKENS, SHORT = 512, 64
"""Tokens per document that corpus vectors read; and at least, when new topics are looked for."""
GREW = 2.0
"""Vectors are learned again when the corpus has grown this much since."""
ENOUGH, LEAST = 1_000, 20
"""Documents from which a network learns clusters by default, and where it is asked to."""
Topics = list[list[str]]
"""Ids of the documents of each new topic."""


def due_without_labels(night: Night, tokens: Tokens, lacking: str, topics: Topics) -> str | None:
    """Why vectors are to be learned without labels, in words; None when they are not.

    Args: why there is no classifier; what is new tonight.
    """
    before, champion = night.before.get("basis", {}), night.champion
    if champion is None:
        return lacking
    if champion.kind == "network" or night.pipeline.train.when == "never":
        # What has seen labels has seen more than can be learned without.
        return None
    if before.get("tokenizer") != tokens.tokenizer:
        return "the tokenizer changed"
    documents, learned = documents_of(night), before.get("documents", 0)
    if documents >= GREW * learned:
        return f"the corpus has grown from {learned} to {documents} documents"
    wanted = _kind(night, documents)
    # What was tried for the same documents and failed would fail again.
    if before.get("tried", champion.kind) != wanted:
        return f"train.without_labels asks for {wanted}"
    if topics:
        return f"new tonight: {len(topics)} topics, of {sum(map(len, topics))} documents"
    return None


def find_topics(night: Night, tokens: Tokens) -> Topics:
    """Topics that no cluster has: among tonight's documents and those that no cluster took.

    Of the latter, those count that came since the newest training, or the same ones would have the
    network learn anew every night.
    """
    config, held = night.pipeline.clusters, _held(night)
    places = _places(held)
    if config.k != "auto" or not places or max(places.values()) + 1 >= config.k_max:
        return []
    rows = night.lake.read("documents", ["doc_id", "night"]).sort_by("doc_id").to_pylist()
    number = {row["night"]: row["number"] for row in night.lake.nights()}
    trained = night.before.get("basis", {}).get("night", 0)
    sides: tuple[list[str], list[str], list[str]] = ([], [], [])
    for row in rows:
        one = row["doc_id"]
        if one not in held:
            sides[0].append(one)
        elif one in places:
            sides[2].append(one)
        elif number[row["night"]] > trained:
            sides[1].append(one)
    if not sides[0] or len(sides[0]) + len(sides[1]) < fewest(len(rows)):
        return []
    random = np.random.default_rng(config.seed)
    drawn = [side[row] for side in sides for row in random.permutation(len(side))[:MOST]]
    fresh = np.array([one not in held for one in drawn])
    # As a share of the corpus, where only some of tonight's documents are looked at.
    least = round(fewest(len(rows)) * fresh.sum() / max(1, len(sides[0])))
    tokenizer = load_tokenizer(night, tokens.tokenizer)
    found = discovery.find_topics(
        tokens_of(night.lake, tokenizer.digest, drawn).cut(
            min(VECTOR_TOKENS, max(SHORT, MOST_TOKENS // len(drawn)))
        ),
        fresh,
        np.array([places.get(one, -1) for one in drawn], np.int64),
        tokenizer.size,
        config.seed,
        least,
    )
    for topic in found:
        log.info("train     a new topic, of %d documents so far", len(topic))
    return [sorted(drawn[row] for row in topic) for topic in found]


def _places(held: dict[str, str]) -> dict[str, int]:
    """The number of each document's cluster, for those that are in one."""
    number = {one: place for place, one in enumerate(sorted({*held.values()} - {UNASSIGNED}))}
    return {doc_id: number[one] for doc_id, one in held.items() if one in number}


def _held(night: Night) -> dict[str, str]:
    """The cluster of every document that has been looked at, as of last night."""
    found = current_assignments(night.lake, but=night.name)
    return {doc_id: cluster_id for doc_id, (cluster_id, _) in found.items()}


def _kind(night: Night, documents: int) -> str:
    pipeline = night.pipeline
    asked = pipeline.train.without_labels
    if pipeline.model.encoder.startswith(PREFIX):
        # Fine-tuning it to guesses would cost what it knows.
        return "vectors"
    enough = {"auto": ENOUGH, "clusters": LEAST}.get(asked)
    return "encoder" if enough is not None and documents >= enough else "vectors"


def learn_without_labels(
    night: Night, tokens: Tokens, topics: Topics
) -> tuple[ModelRef, dict[str, Any]]:
    """What gives vectors without a classifier, so that the night still clusters; and its basis."""
    tokenizer = load_tokenizer(night, tokens.tokenizer)
    doc_ids = night.lake.read("documents", ["doc_id"]).sort_by("doc_id")["doc_id"].to_pylist()
    tried = _kind(night, len(doc_ids))
    basis = {
        "night": night.number,
        "documents": len(doc_ids),
        "tokenizer": tokens.tokenizer,
        "tried": tried,
    }
    if tried == "encoder":
        doc_ids = _drawn(night, doc_ids, topics)
        rows = tokens_of(night.lake, tokenizer.digest, doc_ids)
        model = _learn_clusters(night, tokenizer, doc_ids, rows, topics)
    else:
        model = _learn_vectors(night, tokenizer, tokens_of(night.lake, tokenizer.digest, doc_ids))
    return night.keep(model), basis


def _drawn(night: Night, doc_ids: list[str], topics: Topics) -> list[str]:
    """As many documents as a network learns clusters from, drawn by chance, in no order.

    Up to half of them are of new topics, which chance alone would leave out of a large corpus.
    """
    random = np.random.default_rng(night.pipeline.train.seed)
    new = sorted(one for topic in topics for one in topic)
    first = {new[row] for row in random.permutation(len(new))[: MOST // 2]}
    others = [one for one in doc_ids if one not in first]
    kept = [others[row] for row in random.permutation(len(others))[: MOST - len(first)]]
    drawn = [*sorted(first), *kept]
    return [drawn[row] for row in random.permutation(len(drawn))]


def _learn_clusters(
    night: Night, tokenizer: Tokenizer, doc_ids: list[str], rows: Documents, topics: Topics
) -> Model:
    pipeline, texts = night.pipeline, texts_of(night.lake, doc_ids)
    # Last night's clusters, and behind them what is new tonight.
    places = _places(_held(night))
    k = max(places.values(), default=-1) + 1
    log.info("train     a network learns clusters by itself, from %d documents%s", len(rows),
             f" and last night's {k} clusters" if k else "")  # fmt: skip
    places |= {one: k + place for place, topic in enumerate(topics) for one in topic}
    known = np.array([places.get(one, -1) for one in doc_ids], np.int64)
    unseen = held_out(night)
    recipe = Recipe(**{part: getattr(pipeline, part) for part in Recipe.model_fields})
    newest: Round | None = None
    with night.tracking.attempt("train", {**recipe.model_dump(), "rows": len(rows)}) as run:
        for newest in discovery.discover(
            rows,
            [texts[one] for one in doc_ids],
            tokenizer,
            pipeline.model,
            pipeline.train,
            pipeline.clusters,
            known,
            _before(night, tokenizer),
            np.array([one in unseen for one in doc_ids]),
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
    ref = night.champion
    if ref is None or ref.kind != "encoder":
        return None
    model = night.load(ref)
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


def held_out(night: Night) -> set[str]:
    """Documents of the gate and test sides, which teach a network no clusters."""
    where = pc.field("split").isin(["gate", "test"])
    return {*night.lake.read("documents", ["doc_id"], where)["doc_id"].to_pylist()}


def documents_of(night: Night) -> int:
    """How many documents there are."""
    return night.lake.read("documents", ["doc_id"]).num_rows
