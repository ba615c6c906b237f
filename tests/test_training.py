"""Training: it repeats, learns, stops in time, and meets bad numbers and a full memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from nightshift.batches import Documents
from nightshift.encoders import Network
from nightshift.errors import TrainingError
from nightshift.recipe import ModelConfig, TrainConfig
from nightshift.training import Epoch, evaluate, fit, forward, pick_device, temperature

CPU = torch.device("cpu")
MODEL = ModelConfig(
    hidden=8, embedding=8, vector=6, stride=1, max_tokens=16, dropout=0.1, word_dropout=0.0
)


def config(**options: Any) -> TrainConfig:
    quick = {"epochs": 2, "batch_tokens": 128, "learning_rate": 0.02, "device": "cpu"}
    return TrainConfig.model_validate({**quick, **options})


def build() -> Network:
    return Network(MODEL, 20, 2)


def toy(rows: int, seed: int, turned: bool = False) -> Documents:
    """Documents of 2 to 8 tokens; the label says whether token 3 or token 4 is among them."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    texts = [random.integers(5, 20, random.integers(2, 9)) for _ in range(rows)]
    for text, label in zip(texts, labels, strict=True):
        text[random.integers(len(text))] = 3 + label
    documents = Documents.from_lists([text.tolist() for text in texts], 16)
    return Documents(
        documents.ids, documents.starts, documents.lengths, 1 - labels if turned else labels
    )


TRAIN, VALIDATION = toy(200, 1), toy(60, 2)


def trained(make: Callable[[], Network] = build, **options: Any) -> list[Epoch]:
    return list(fit(make, TRAIN, VALIDATION, config(**options)))


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, two[name]) for name, value in one.items())


# --- fitting --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_model_bit_by_bit_and_another_another() -> None:
    one, two, other = (trained(seed=seed)[-1] for seed in (1, 1, 2))
    assert equal(weights(one.network), weights(two.network))
    assert one.figures()["validation_loss"] == two.figures()["validation_loss"]
    assert not equal(weights(one.network), weights(other.network))


def test_what_ran_before_in_the_process_does_not_change_the_model() -> None:
    one = weights(trained()[-1].network)
    torch.rand(7)
    np.random.default_rng().random(3)
    assert equal(one, weights(trained()[-1].network))


def test_a_learnable_problem_is_learned() -> None:
    epochs = trained(epochs=8)
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    assert evaluate(epochs[-1].network, toy(100, 3), 1024, CPU)[1] >= 0.95
    assert epochs[0].validation_accuracy < 0.95


def test_epochs_are_told_as_they_end() -> None:
    epochs = trained(epochs=3)
    assert [(one.index, one.epochs) for one in epochs] == [(1, 3), (2, 3), (3, 3)]
    for one in epochs:
        assert all(math.isfinite(value) for value in one.figures().values())
    # One cycle: the rate falls from its peak to almost nothing.
    assert epochs[0].learning_rate > epochs[1].learning_rate > epochs[2].learning_rate
    assert epochs[2].learning_rate < 1e-4


def test_training_stops_when_validation_gets_worse_and_keeps_the_best_weights() -> None:
    # Validation says the opposite of what is learned: the first epoch is the best one.
    seen: list[dict[str, torch.Tensor]] = []
    epochs: list[Epoch] = []
    for epoch in fit(build, TRAIN, toy(60, 2, turned=True), config(epochs=12, patience=2)):
        seen.append(weights(epoch.network))
        epochs.append(epoch)
    best = min(epochs, key=lambda one: one.validation_loss)
    assert len(epochs) == best.index + 2 < 12
    assert [one.best for one in epochs] == [one.index <= best.index for one in epochs]
    assert equal(weights(epochs[-1].network), seen[best.index - 1])
    assert not equal(seen[best.index - 1], seen[best.index])


def test_a_caller_can_watch_the_batches_of_every_pass() -> None:
    passes: list[tuple[int, int]] = []

    def watch(batches: Iterable[np.ndarray], total: int) -> Iterable[np.ndarray]:
        rows = list(batches)
        passes.append((total, sum(map(len, rows))))
        return rows

    list(fit(build, TRAIN, VALIDATION, config(), watch))
    assert [rows for _, rows in passes] == [200, 200]
    assert all(total > 1 for total, _ in passes)


def test_a_single_document_still_trains() -> None:
    one = TRAIN.take(np.array([0]))
    [epoch] = fit(build, one, one, config(epochs=1))
    assert epoch.best


# --- bad numbers and full memories ----------------------------------------------------------


def broken(times: int) -> tuple[Callable[[], Network], list[int]]:
    """A builder whose first networks hold a weight that is not a number."""
    built: list[int] = []

    def make() -> Network:
        network = build()
        built.append(len(built))
        if len(built) <= times:
            network.head.weight.data[0, 0] = math.nan
        return network

    return make, built


def test_a_loss_that_is_no_number_starts_again_at_a_quarter_of_the_learning_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make, built = broken(times=1)
    with caplog.at_level(logging.WARNING, "nightshift"):
        epochs = trained(make, learning_rate=0.02)
    assert len(built) == 2
    assert len(epochs) == 2
    assert "not a finite number at learning rate 0.02" in caplog.text
    assert "learning_rate = 0.005" in caplog.text
    assert equal(weights(epochs[-1].network), weights(trained(learning_rate=0.005)[-1].network))


def test_a_loss_that_stays_no_number_ends_with_a_way_out() -> None:
    make, built = broken(times=9)
    with pytest.raises(
        TrainingError, match=r"Set train.learning_rate below 0.0003125 in"
    ) as caught:
        trained(make, learning_rate=0.02)
    assert len(built) == 3
    assert caught.value.exit_code == 1


def test_weights_that_overflow_are_met_like_any_loss_that_is_no_number() -> None:
    def make() -> Network:
        network = build()
        network.projection.weight.data.fill_(3e38)
        return network

    with pytest.raises(TrainingError, match="not a finite number"):
        trained(make)


def test_the_highest_learning_rate_allowed_still_ends_in_finite_weights() -> None:
    epochs = trained(learning_rate=1.0, clip=1e9)
    assert all(value.isfinite().all() for value in weights(epochs[-1].network).values())


class Hungry(Network):
    """Runs out of memory above a size of batch."""

    most = 64
    says: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        if ids.numel() > self.most:
            raise self.says
        return super().forward(ids, lengths)


@pytest.mark.parametrize(
    "says",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ],
)
def test_a_full_memory_is_met_by_half_the_batch(
    says: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hungry, "says", says)
    with caplog.at_level(logging.WARNING, "nightshift"):
        epochs = trained(lambda: Hungry(MODEL, 20, 2), batch_tokens=256)
    assert len(epochs) == 2
    assert [record.message for record in caplog.records] == [
        f"train: too little memory on cpu for batches of {tokens} tokens; "
        f"starting again with batch_tokens = {tokens // 2}"
        for tokens in (256, 128)
    ]


def test_a_memory_that_stays_full_ends_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "most", 1)
    with pytest.raises(TrainingError, match=r"too little memory on cpu .* Set train.batch_tokens"):
        trained(lambda: Hungry(MODEL, 20, 2), batch_tokens=4096)


def test_any_other_fault_is_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "says", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        trained(lambda: Hungry(MODEL, 20, 2), batch_tokens=256)


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


# --- passing forward ------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_documents_whatever_the_batches() -> None:
    torch.manual_seed(1)
    network = build()
    scores, vectors = forward(network, VALIDATION, 4096, CPU)
    assert (scores.shape, vectors.shape) == ((60, 2), (60, 6))
    assert scores.dtype == vectors.dtype == np.float32
    for tokens in (1, 30):
        again, others = forward(network, VALIDATION, tokens, CPU)
        np.testing.assert_allclose(again, scores, atol=1e-6)
        np.testing.assert_allclose(others, vectors, atol=1e-6)
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_allclose(
        forward(network, VALIDATION.take(order), 50, CPU)[0], scores[order], atol=1e-6
    )


def test_no_documents_have_no_answers() -> None:
    scores, vectors = forward(build(), VALIDATION.take(np.array([], np.int64)), 64, CPU)
    assert (scores.shape, vectors.shape) == ((0, 2), (0, 6))


def test_the_loss_is_the_mean_negative_log_of_the_right_class() -> None:
    torch.manual_seed(1)
    network = build()
    scores = forward(network, VALIDATION, 4096, CPU)[0].astype(float)
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = VALIDATION.labels
    assert labels is not None
    expected = -np.log(probabilities[np.arange(60), labels]).mean()
    loss, accuracy = evaluate(network, VALIDATION, 64, CPU)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == np.mean(probabilities.argmax(1) == labels)


# --- temperature ----------------------------------------------------------------------------


def test_the_temperature_makes_confidence_match_how_often_it_is_right() -> None:
    # Scores say (4, 0) in every row, and three rows of four agree: 4 / T = ln 3, T = 3.6410.
    scores = np.array([[4.0, 0.0]] * 4, np.float32)
    assert temperature(scores, np.array([0, 0, 0, 1])) == pytest.approx(4 / math.log(3), rel=1e-3)


def test_scores_that_are_calibrated_keep_their_temperature() -> None:
    scores = np.array([[math.log(3), 0.0]] * 4, np.float32)
    assert temperature(scores, np.array([0, 0, 0, 1])) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("label", "bound"), [(0, math.exp(-2.5)), (1, math.exp(2.5))])
def test_the_temperature_stays_in_its_bounds_where_all_is_right_or_wrong(
    label: int, bound: float
) -> None:
    scores = np.array([[1.0, 0.0]] * 4, np.float32)
    assert temperature(scores, np.array([label] * 4)) == pytest.approx(bound, rel=0.01)
