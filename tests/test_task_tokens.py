"""The tokens stage's own parts; whole nights are in test_flow_night.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nightshift.compute import Made
from nightshift.shards import Encode
from nightshift.tables import Lake, rows_of
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from tasks.tokens import encoded_here


def rows(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"doc_id": [*texts], "text": [*texts]})


class Work:
    """In place of the tokenizer: fails for a text, and tells when a chunk is begun."""

    def __init__(self, bad: str = "") -> None:
        self.bad, self.begun = bad, {one: threading.Event() for one in "abc"}

    def __call__(self, chunk: pa.RecordBatch) -> Made:
        (text,) = chunk.column("text").to_pylist()
        if text == self.bad:
            raise ValueError("no tokens in it")
        self.begun[text].set()
        return {"tokens": chunk}


def encoded(lake: Lake, work: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The texts a, b and c, in chunks of one."""
    monkeypatch.setattr("tasks.tokens.ROWS", 1)
    texts = [{"doc_id": one, "text": one} for one in "abc"]
    lake.replace("documents", "n1", rows_of("documents", texts))
    for made in encoded_here(lake, pc.field("night") == "n1", work):
        yield made["tokens"].column("text")[0].as_py()


def test_chunks_come_in_order_and_the_next_is_encoded_while_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = Work(), ""
    for text in encoded(Lake(str(tmp_path), "p"), work, monkeypatch):
        seen += text
        # Without another thread it would begin only when this one asks for it.
        assert work.begun["abc"[min(len(seen), 2)]].wait(timeout=10)
    assert seen == "abc"


def test_a_chunk_that_cannot_be_encoded_ends_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = encoded(Lake(str(tmp_path), "p"), Work(bad="b"), monkeypatch)
    assert next(found) == "a"
    with pytest.raises(ValueError, match="no tokens in it"):
        next(found)


def test_counts_are_of_whole_documents_and_ids_of_their_head() -> None:
    texts = ["a b a b"] * 3
    tokenizer = Tokenizer.learn(iter(texts), TokenizerConfig(unit="word", min_count=1))
    found = Encode(tokenizer, 2)(rows("a b a", "z"))["tokens"].to_pydict()
    assert [len(ids) for ids in found["ids"]] == [2, 1]
    assert (found["n_tokens"], found["n_unknown"]) == ([3, 1], [0, 1])
