"""What the train stage does without labels: vectors, groups to learn, and topics that are new."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.batches import Documents
from nightshift.births import fewest
from nightshift.corpus import Assigned, assigned, texts_of, tokens_of
from nightshift.ids import ids_of, index_in
from nightshift.nearest import UNASSIGNED
from nightshift.recipe import PREFIX, Recipe, most_read
from nightshift.tokenizer import Tokenizer
from nightshift.vectors import SAMPLE
from nightshift.vectors import learn as learn_vectors

from .progress import track
from .stage import ModelRef, Night
from .tokens import Tokens, load_tokenizer

if TYPE_CHECKING:
    from nightshift.bundle import Model
    from nightshift.encoders import Network

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
    config, held = night.pipeline.clusters, assigned(night.lake, but=night.name)
    groups = len({*held.names} - {UNASSIGNED})
    if config.k != "auto" or not groups or groups >= config.k_max:
        return []
    number = {row["night"]: row["number"] for row in night.lake.nights()}
    trained = night.before.get("basis", {}).get("night", 0)
    if _too_few(night, held, [one for one, its in number.items() if its > trained]):
        return []
    rows = night.lake.read("documents", ["doc_id", "night"])
    nights, doc_ids = ids_of(rows["night"]).dictionary_encode(), ids_of(rows["doc_id"])
    late = np.array([number[one] > trained for one in nights.dictionary.to_pylist()], bool)
    late = late[nights.indices.to_numpy(zero_copy_only=False)]
    found = held.rows_of(doc_ids)
    of = np.append(_places(held), -1)[found]
    loose = (found >= 0) & (of < 0) & late
    if not (found < 0).any() or (found < 0).sum() + loose.sum() < fewest(len(doc_ids)):
        return []
    from nightshift import discovery

    order = pc.call_function("array_sort_indices", [doc_ids]).to_numpy()
    doc_ids, found, of = doc_ids.take(pa.array(order)), found[order], of[order]
    sides = [np.flatnonzero(side) for side in (found < 0, loose[order], of >= 0)]
    random = np.random.default_rng(config.seed)
    some = discovery.MOST
    chosen = np.concatenate([side[random.permutation(len(side))[:some]] for side in sides])
    drawn, fresh = doc_ids.take(pa.array(chosen)), found[chosen] < 0
    # As a share of the corpus, where only some of tonight's documents are looked at.
    least = round(fewest(len(doc_ids)) * fresh.sum() / max(1, len(sides[0])))
    tokenizer = load_tokenizer(night, tokens.tokenizer)
    most = min(VECTOR_TOKENS, max(SHORT, discovery.MOST_TOKENS // len(drawn)))
    topics = discovery.find_topics(
        tokens_of(night.lake, tokenizer.digest, drawn, most),
        fresh,
        of[chosen],
        tokenizer.size,
        config.seed,
        least,
    )
    for topic in topics:
        log.info("train     a new topic, of %d documents so far", len(topic))
    return [sorted(drawn.take(pa.array(topic)).to_pylist()) for topic in topics]


def _too_few(night: Night, held: Assigned, late: list[str]) -> bool:
    """Whether late nights alone tell that a new topic would be too small: of a large corpus only
    their files are read then."""
    came = pc.field("night").isin(pa.array(late, pa.string()))
    found = held.rows_of(ids_of(night.lake.read("documents", ["doc_id"], came)["doc_id"]))
    fresh, loose = (found < 0).sum(), (np.append(_places(held), 0)[found] < 0).sum()
    count = night.lake.count("documents")
    # Documents of earlier nights that have no place would have to be looked for among all.
    return fresh == count - len(held.doc_ids) and (not fresh or fresh + loose < fewest(count))


def _places(held: Assigned) -> np.ndarray:
    """The number of each document's cluster, -1 for those that are in none, int64."""
    named = (one for one in held.names if one != UNASSIGNED)
    number = {one: place for place, one in enumerate(named)}
    return np.array([number.get(one, -1) for one in held.names] or [-1], np.int64)[held.places]


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
    doc_ids = ids_of(night.lake.read("documents", ["doc_id"]).sort_by("doc_id")["doc_id"])
    tried, most = _kind(night, len(doc_ids)), most_read(night.pipeline.model)
    basis = {
        "night": night.number,
        "documents": len(doc_ids),
        "tokenizer": tokens.tokenizer,
        "tried": tried,
    }
    if tried == "encoder":
        drawn = _drawn(night, doc_ids, topics)
        rows = tokens_of(night.lake, tokenizer.digest, drawn, most)
        model = _learn_clusters(night, tokenizer, drawn, rows, topics)
    else:
        # No more are learned from.
        rows = tokens_of(night.lake, tokenizer.digest, doc_ids[:SAMPLE], most)
        model = _learn_vectors(night, tokenizer, rows)
    return night.keep(model), basis


def _drawn(night: Night, doc_ids: pa.Array, topics: Topics) -> list[str]:
    """As many documents as a network learns clusters from, drawn by chance, in no order.

    Up to half of them are of new topics, which chance alone would leave out of a large corpus.
    """
    from nightshift.discovery import MOST

    random = np.random.default_rng(night.pipeline.train.seed)
    new = sorted(one for topic in topics for one in topic)
    first = {new[row] for row in random.permutation(len(new))[: MOST // 2]}
    others = np.flatnonzero(index_in(doc_ids, pa.array(first, pa.string())) < 0)
    kept = others[random.permutation(len(others))[: MOST - len(first)]]
    drawn = [*sorted(first), *doc_ids.take(pa.array(kept)).to_pylist()]
    return [drawn[row] for row in random.permutation(len(drawn))]


def _learn_clusters(
    night: Night, tokenizer: Tokenizer, doc_ids: list[str], rows: Documents, topics: Topics
) -> Model:
    from nightshift.bundle import Model
    from nightshift.discovery import Round, centres_of, discover

    pipeline, texts = night.pipeline, texts_of(night.lake, doc_ids)
    # Last night's clusters, and behind them what is new tonight.
    held, wanted = assigned(night.lake, but=night.name), pa.array(doc_ids, pa.string())
    k = len({*held.names} - {UNASSIGNED})
    log.info("train     a network learns clusters by itself, from %d documents%s", len(rows),
             f" and last night's {k} clusters" if k else "")  # fmt: skip
    known = np.append(_places(held), -1)[held.rows_of(wanted)]
    for place, topic in enumerate(topics):
        known[index_in(wanted, pa.array(topic, pa.string())) >= 0] = k + place
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
            index_in(wanted, held_out(night)) >= 0,
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
    from nightshift.bundle import Model

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


def held_out(night: Night) -> pa.Array:
    """Documents of the gate and test sides, which teach a network no clusters."""
    where = pc.field("split").isin(["gate", "test"])
    return ids_of(night.lake.read("documents", ["doc_id"], where)["doc_id"])


def documents_of(night: Night) -> int:
    """How many documents there are."""
    return night.lake.count("documents")
