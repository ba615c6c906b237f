"""The tokens stage's own parts; whole nights are in test_flow_night.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from nightshift.compute import Made
from nightshift.shards import Encode
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from tasks.tokens import _ahead


def rows(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"doc_id": [*texts], "text": [*texts]})


def test_batches_come_in_order_and_the_next_is_encoded_while_one_is_written() -> None:
    begun = [threading.Event() for _ in range(3)]

    def made() -> Iterator[Made]:
        for one in range(3):
            begun[one].set()
            yield {"tokens": rows(str(one))}

    seen = []
    for place, batch in enumerate(_ahead(made())):
        seen.append(batch["tokens"]["text"][0].as_py())
        # Without another thread it would begin only when this one asks for it.
        assert begun[min(place + 1, 2)].wait(timeout=10)
    assert seen == ["0", "1", "2"]
    assert [*_ahead(iter([]))] == []


def test_a_batch_that_cannot_be_encoded_ends_the_stage() -> None:
    def made() -> Iterator[Made]:
        yield {"tokens": rows("good")}
        raise ValueError("no tokens in it")

    found = _ahead(made())
    assert next(found)["tokens"]["text"][0].as_py() == "good"
    with pytest.raises(ValueError, match="no tokens in it"):
        next(found)


def test_counts_are_of_whole_documents_and_ids_of_their_head() -> None:
    texts = ["a b a b"] * 3
    tokenizer = Tokenizer.learn(iter(texts), TokenizerConfig(unit="word", min_count=1))
    found = Encode(tokenizer, 2)(rows("a b a", "z"))["tokens"].to_pydict()
    assert [len(ids) for ids in found["ids"]] == [2, 1]
    assert (found["n_tokens"], found["n_unknown"]) == ([3, 1], [0, 1])
