"""Asking a network: devices, the three ways of padding, answers in the order of the documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nightshift.batches import Documents
from nightshift.encoders import Network
from nightshift.errors import TrainingError
from nightshift.inference import forward, padded, pick_device
from nightshift.recipe import ModelConfig

CPU = torch.device("cpu")


def build(**options: Any) -> Network:
    torch.manual_seed(1)
    small: dict[str, Any] = {"hidden": 8, "embedding": 8, "vector": 6, "stride": 1}
    return Network(ModelConfig(**{**small, "max_tokens": 16, **options}), 20, 2)


def documents(rows: int = 60) -> Documents:
    random = np.random.default_rng(2)
    lengths = random.integers(1, 15, rows)
    return Documents.from_lists([random.integers(1, 20, one).tolist() for one in lengths])


# --- devices --------------------------------------------------------------------------------


def test_a_device_that_is_missing_is_named() -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name, found in there.items():
        if found:
            assert pick_device(name).type == name
        else:
            with pytest.raises(TrainingError, match=f"found no {name} device"):
                pick_device(name)
    assert pick_device("cpu") == CPU


def test_auto_takes_the_first_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in [(0, 0, "cpu"), (0, 1, "mps"), (1, 1, "cuda")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: bool(mps))
        assert pick_device("auto").type == expected


# --- padding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "expected", "lengths"),
    [
        ("bucket", [[5, 6, 0], [7, 8, 9]], [2, 3]),
        ("post", [[5, 6, 0, 0, 0], [7, 8, 9, 0, 0]], [2, 3]),
        ("pre", [[0, 0, 0, 5, 6], [0, 0, 7, 8, 9]], [5, 5]),
    ],
)
def test_documents_are_padded_as_the_recipe_says(
    way: str, expected: list[list[int]], lengths: list[int]
) -> None:
    rows = Documents.from_lists([[7, 8, 9], [2], [5, 6]])
    ids, found = padded(build(padding=way, max_tokens=5), rows, np.array([2, 0]))
    assert ids.tolist() == expected
    assert found.tolist() == lengths


def test_padding_behind_the_text_changes_no_answer_and_padding_before_it_does() -> None:
    rows = documents()
    bucket, post, pre = (
        forward(build(padding=way), rows, 64, CPU)[0] for way in ("bucket", "post", "pre")
    )
    np.testing.assert_allclose(post, bucket, atol=1e-6)
    assert np.abs(pre - bucket).max() > 1e-3


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["bucket", "post", "pre"])
def test_answers_come_in_the_order_of_the_documents_whatever_the_batches(way: str) -> None:
    network, rows = build(padding=way), documents()
    scores, vectors = forward(network, rows, 4096, CPU)
    assert (scores.shape, vectors.shape) == ((60, 2), (60, 6))
    assert scores.dtype == vectors.dtype == np.float32
    for tokens in (1, 30):
        again, others = forward(network, rows, tokens, CPU)
        np.testing.assert_allclose(again, scores, atol=1e-6)
        np.testing.assert_allclose(others, vectors, atol=1e-6)
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_allclose(
        forward(network, rows.take(order), 50, CPU)[0], scores[order], atol=1e-6
    )


def test_an_answer_is_what_the_network_says_of_one_document() -> None:
    network, rows = build(), documents(5)
    scores, vectors = forward(network, rows, 64, CPU)
    for row, length in enumerate(rows.lengths):
        start = int(rows.starts[row])
        ids = torch.from_numpy(rows.ids[None, start : start + length].astype(np.int64))
        with torch.inference_mode():
            one, two = network.eval()(ids, torch.tensor([length]))
        np.testing.assert_allclose(scores[row], one[0], atol=1e-6)
        np.testing.assert_allclose(vectors[row], two[0], atol=1e-6)


def test_a_network_in_training_is_asked_without_its_dropout() -> None:
    network, rows = build(dropout=0.5, word_dropout=0.5).train(), documents()
    one, two = (forward(network, rows, 64, CPU)[0] for _ in range(2))
    assert np.array_equal(one, two)


def test_no_documents_have_no_answers() -> None:
    scores, vectors = forward(build(), documents().take(np.array([], np.int64)), 64, CPU)
    assert (scores.shape, vectors.shape) == ((0, 2), (0, 6))


def test_a_caller_can_watch_the_batches() -> None:
    seen: list[tuple[int, int]] = []

    def watch(parts: Any, total: int) -> Any:
        parts = list(parts)
        seen.append((total, sum(map(len, parts))))
        return parts

    forward(build(), documents(), 64, CPU, watch)
    [(total, rows)] = seen
    assert rows == 60
    assert total > 1
