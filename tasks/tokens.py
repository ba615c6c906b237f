"""tokens: learn a tokenizer once per pipeline, then encode what is new."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from nightshift.chunks import each
from nightshift.compute import Made, spread
from nightshift.recipe import PREFIX
from nightshift.shards import Encode, Texts
from nightshift.tables import Lake, TableRef, digest_of, rows_of
from nightshift.tokenizer import Tokenizer, TokenizerConfig

from .ingest import Ingested
from .progress import track
from .stage import Night, Outcome, stage

log = logging.getLogger(__name__)

ROWS = 4096
"""Documents that are encoded at once."""


def encoded_here(lake: Lake, where: pc.Expression, work: Encode) -> Iterator[Made]:
    """Chunks of texts encoded on this machine, two at a time: the tokenizer has threads of its own,
    but what it returns is read by one at a time, and meanwhile the next is at work. A third one
    waits."""
    return each(work, Texts(where, ROWS).stream(lake), 2)


class Tokens(Outcome):
    """The night's tokens, and the digest of the tokenizer that made them."""

    tokens: TableRef
    tokenizer: str
    """Empty while the pipeline has no documents to learn one from."""


@stage("tokens", "tokenizer model")
def tokenize(night: Night, ingested: Ingested) -> Tokens:
    """Encode the night's documents; all documents when a new tokenizer had to be learned."""
    lake, config = night.lake, night.pipeline.tokenizer
    encoder = night.pipeline.model.encoder
    tokenizer, fresh = _tokenizer(night, config, encoder)
    if tokenizer is None:
        return Tokens(tokens=lake.replace("tokens", night.name, []), tokenizer="")
    counts = {"tokens": 0, "unknown": 0}

    def encoded() -> Iterator[pa.RecordBatch]:
        for one in (tokenizer, *_answering(night, tokenizer)):
            where = pc.field("night").isin(_nights_without(night, one.digest))
            documents = lake.count("documents", where)
            work = Encode(one, config.max_tokens)
            if night.pipeline.compute.engine == "local":
                made = encoded_here(lake, where, work)
            else:
                made = spread(night.pipeline.compute, lake, Texts(where, ROWS), work)
            # A file's last batch is a short one: there may be more than this, and a few seconds.
            for rows in track(made, -(-documents // ROWS), f"encoding, in batches of {ROWS}"):
                batch = rows["tokens"]
                if one is tokenizer:
                    for name in counts:
                        column = batch.column(f"n_{name}")
                        counts[name] += pc.call_function("sum", [column]).as_py()
                yield batch

    ref = lake.replace("tokens", night.name, encoded())
    unknown = counts["unknown"] / max(counts["tokens"], 1)
    log.info(
        "tokens    %d documents, %d tokens, %.2f%% unknown",
        ref.rows,
        counts["tokens"],
        100 * unknown,
    )
    if unknown > config.unknown_warning:
        log.warning(
            "tokens    %.1f%% of tonight's tokens are unknown (warning above %.1f%%): the text has "
            "changed since the tokenizer was learned. %s",
            100 * unknown, 100 * config.unknown_warning,
            "The pretrained encoder may be of another language." if encoder.startswith(PREFIX)
            else "Change tokenizer.vocabulary to learn anew.",
        )  # fmt: skip
    return Tokens(
        tokens=ref,
        tokenizer=tokenizer.digest,
        figures={
            "tokens": counts["tokens"],
            "unknown_rate": unknown,
            "vocabulary": tokenizer.size,
            "learned": float(fresh),
        },
    )


def load_tokenizer(night: Night, digest: str) -> Tokenizer:
    """A tokenizer that was learned on any night, by its digest."""
    row = night.lake.read("tokenizers", where=pc.field("digest") == digest).to_pylist()[-1]
    return Tokenizer(row["serialized"], row["unit"])


def _tokenizer(
    night: Night, config: TokenizerConfig, encoder: str
) -> tuple[Tokenizer | None, bool]:
    """The pipeline's tokenizer, and whether it was learned tonight."""
    lake = night.lake
    declared = digest_of(config.model_dump(exclude={"unknown_warning", "max_tokens"}))
    if encoder.startswith(PREFIX):
        declared = digest_of(encoder)
    rows = lake.read("tokenizers", where=pc.field("config_digest") == declared).to_pylist()
    earlier = [row for row in rows if row["night"] != night.name]
    if earlier:
        # The newest: an older one of the same declaration was learned before that was changed.
        return Tokenizer(earlier[-1]["serialized"], earlier[-1]["unit"]), False
    # Test rows stay unseen, their characters included.
    texts = (
        text.as_py()
        for batch in lake.scan("documents", ["text"], pc.field("split") != "test")
        for text in batch.column("text")
    )
    first = next(texts, None)
    if first is None:
        return None, False
    if encoder.startswith(PREFIX):
        log.info("tokens    reading the tokenizer of %s", encoder)
        from nightshift.pretrained import read_tokenizer

        tokenizer = read_tokenizer(encoder)
    else:
        log.info("tokens    learning a %s tokenizer", config.unit)
        tokenizer = Tokenizer.learn((text for part in ([first], texts) for text in part), config)
    row = {
        "digest": tokenizer.digest,
        "unit": tokenizer.unit,
        "config_digest": declared,
        "serialized": tokenizer.serialized,
    }
    lake.replace("tokenizers", night.name, rows_of("tokenizers", [row]))
    return tokenizer, True


def _answering(night: Night, tokenizer: Tokenizer) -> list[Tokenizer]:
    """Other tokenizers, of models that may answer tonight: the champion, or whom a person chose."""
    known = night.lake.read("tokenizers", ["digest"])["digest"].unique().to_pylist()
    if {*known} <= {tokenizer.digest}:
        return []
    models = [night.champion, night.turn.model if night.turn else None]
    found = {one.digest: one for one in (night.load(ref).tokenizer for ref in models if ref)}
    return [one for digest, one in found.items() if digest != tokenizer.digest]


def _nights_without(night: Night, tokenizer: str) -> list[str]:
    """Nights whose documents this tokenizer has not encoded: tonight, or all since its last use."""
    numbers = {row["night"]: row["number"] for row in night.lake.nights()} | {
        night.name: night.number
    }
    # The newest first: most nights are found by the files of one of them.
    its = pc.field("tokenizer") == tokenizer
    before = next(
        (number for name, number in sorted(numbers.items(), key=lambda one: -one[1])
         if name != night.name and night.lake.count("tokens", its & (pc.field("night") == name))),
        0,
    )  # fmt: skip
    return [name for name, number in numbers.items() if number > before]
