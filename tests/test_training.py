"""Training: it repeats, learns by every option, stops in time, and meets what goes wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from nightshift import training
from nightshift.batches import Documents
from nightshift.encoders import Mix, Network, Reading
from nightshift.errors import TrainingError
from nightshift.inference import forward, padded
from nightshift.recipe import ModelConfig, TrainConfig
from nightshift.tokenizer import PADDING
from nightshift.training import Epoch, evaluate, fit, refit

CPU = torch.device("cpu")
MODEL = ModelConfig(
    hidden=8, embedding=8, vector=6, stride=1, max_tokens=16, dropout=0.1, word_dropout=0.0
)


def config(**options: Any) -> TrainConfig:
    quick = {
        "epochs": 2, "batch_tokens": 128, "learning_rate": 0.02, "weight_decay": 0.01,
        "device": "cpu",
    }  # fmt: skip
    return TrainConfig.model_validate({**quick, **options})


def build(**options: Any) -> Network:
    return Network(MODEL.model_copy(update=options), 20, 2)


def toy(rows: int, seed: int, turned: bool = False) -> Documents:
    """Documents of 2 to 8 tokens; the label says whether token 3 or token 4 is among them."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    texts = [random.integers(5, 20, random.integers(2, 9)) for _ in range(rows)]
    for text, label in zip(texts, labels, strict=True):
        text[random.integers(len(text))] = 3 + label
    documents = Documents.from_lists([text.tolist() for text in texts])
    return documents.labelled(1 - labels if turned else labels)


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"averaging": "swa"},
        {"averaging": "ema"},
        {"learning_rate": "range_test"},
        {"schedule": "plateau", "learning_rate": 0.3, "epochs": 12, "patience": 6},
    ],
)
def test_training_again_for_as_many_passes_ends_in_the_very_same_weights(
    options: dict[str, Any],
) -> None:
    settings = config(**{"epochs": 4, **options})
    epochs = list(fit(build, TRAIN, VALIDATION, settings))
    best = min(epochs, key=lambda one: one.validation_loss).index
    losses = [one.validation_loss for one in epochs]
    again = refit(build, TRAIN, epochs[-1].config, losses[:best])
    other = refit(build, TRAIN, epochs[-1].config, losses[: best % 4 + 1])
    assert again is not None
    assert other is not None
    # The last epoch hands out the best weights.
    assert equal(weights(again), weights(epochs[-1].network))
    assert not equal(weights(again), weights(other))


def test_training_again_lowers_the_rate_where_it_was_lowered_before() -> None:
    settings = config(schedule="plateau", learning_rate=0.3, epochs=4, patience=4)
    rising, falling = (
        refit(build, TRAIN, settings, losses) for losses in ([1, 2, 3, 4], [4, 3, 2, 1])
    )
    assert rising is not None
    assert falling is not None
    assert not equal(weights(rising), weights(falling))


def test_epochs_tell_the_rate_that_a_second_start_was_given() -> None:
    make, _ = broken(times=1)
    epochs = list(fit(make, TRAIN, VALIDATION, config(learning_rate=0.02)))
    assert [one.config.learning_rate for one in epochs] == [0.005] * len(epochs)


def test_training_again_gives_nothing_where_the_loss_is_no_number_or_the_memory_full() -> None:
    make, built = broken(times=9)
    assert refit(make, TRAIN, config(), [1.0]) is None
    assert len(built) == 1
    settings = config(batch_tokens=4096)
    assert refit(lambda: Hungry(MODEL, 20, 2), TRAIN, settings, [1.0]) is None


def test_a_single_document_still_trains() -> None:
    one = TRAIN.take(np.array([0]))
    [epoch] = fit(build, one, one, config(epochs=1))
    assert epoch.best


# --- every option ---------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    *({"optimizer": one} for one in ("adam", "nadam")),
    # The others take larger or smaller steps at the same rate.
    {"optimizer": "radam", "learning_rate": 0.2, "epochs": 8},
    {"optimizer": "adagrad", "learning_rate": 0.1},
    {"optimizer": "rmsprop", "learning_rate": 0.005},
    {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "schedule": "constant",
        "batch_tokens": 32,
        "epochs": 12,
    },
    *({"schedule": one} for one in ("cosine", "plateau", "constant")),
    {"learning_rate": "range_test"},
    *({"averaging": one} for one in ("ema", "swa")),
    {"mixup": 0.5},
    *({name: 0.2} for name in ("deletion", "swap", "synonym", "confidence_penalty")),
    {"activation": 0.5, "temporal": 0.5},
    {"l1": 1e-4},
    {"class_weights": "balanced"},
    {"label_smoothing": 0.0},
    {"layer_decay": 0.8},
    {"deletion": 0.1, "swap": 0.1, "mixup": 0.2, "averaging": "ema", "schedule": "cosine"},
]
MODELS: list[dict[str, Any]] = [
    *({"encoder": one} for one in ("gru", "rnn", "mingru", "minlstm", "transformer", "tdnn")),
    *({"padding": one} for one in ("post", "pre")),
    {"stride": 2, "layers": 2},
    {"bidirectional": False, "pooling": ["last"]},
    {"state_dropout": 0.1, "weight_dropout": 0.1, "word_dropout": 0.05},
    {"freeze_embeddings": True, "hidden": 32},
]


def _name(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def learned(make: Callable[[], Network] = build, **options: Any) -> float:
    """Accuracy on documents never seen, of the last epoch's network."""
    epochs = trained(make, **{"epochs": 6, "patience": 6, **options})
    return evaluate(epochs[-1].network, toy(200, 3), 1024, CPU)[1]


@pytest.mark.parametrize("options", OPTIONS, ids=_name)
def test_every_way_of_training_learns_the_problem(options: dict[str, Any]) -> None:
    assert learned(**options) >= 0.95


@pytest.mark.parametrize("options", MODELS, ids=_name)
def test_every_network_learns_the_problem(options: dict[str, Any]) -> None:
    assert learned(lambda: build(**options)) >= 0.95


def test_documents_of_several_chunks_are_learned_from() -> None:
    def long(seed: int) -> Documents:
        """Documents of 40 tokens; the one that tells stands at step 20, in the second chunk."""
        random = np.random.default_rng(seed)
        texts, labels = random.integers(5, 20, (150, 40)), random.integers(0, 2, 150)
        texts[:, 20] = 3 + labels
        return Documents.from_lists(texts.tolist()).labelled(labels)

    def make() -> Network:
        return build(chunk_tokens=16, max_tokens=40, encoder="mingru")

    settings = config(epochs=8, batch_tokens=640, patience=8)
    epochs = list(fit(make, long(1), long(2), settings))
    assert epochs[-1].network.chunk == 16
    assert evaluate(epochs[-1].network, long(3), 4096, CPU)[1] >= 0.98


def test_frozen_embeddings_stay_as_they_start_and_all_else_moves() -> None:
    torch.manual_seed(1)
    before = weights(build(freeze_embeddings=True))
    after = weights(trained(lambda: build(freeze_embeddings=True))[-1].network)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"embedding.weight"}


@pytest.mark.parametrize(
    "options",
    [{}, {"l1": 0.01, "weight_decay": 0.5}, {"mixup": 0.5, "averaging": "swa"}, {"deletion": 0.3}],
    ids=_name,
)
@pytest.mark.parametrize("way", ["bucket", "post", "pre"])
def test_the_vector_of_padding_stays_zero(way: str, options: dict[str, Any]) -> None:
    [epoch] = trained(lambda: build(padding=way), epochs=1, **options)
    moved = epoch.network.embedding.weight
    assert not moved[PADDING].any()
    assert moved[PADDING + 1 :].any(1).all()


def test_training_rows_come_sorted_by_length_only_where_padding_is_by_bucket() -> None:
    for way, sorted_by_length in (("bucket", True), ("post", False), ("pre", False)):
        random = np.random.default_rng(1)
        spread = [
            np.ptp(TRAIN.lengths[rows])
            for rows in training._batches(build(padding=way), TRAIN, 128, random)
        ]
        assert (np.mean(spread) < 1) == sorted_by_length


# --- the loss of one batch ------------------------------------------------------------------

STILL = {"dropout": 0.0, "word_dropout": 0.0}
ROWS = np.array([3, 0, 7, 12, 9, 5])


def loss_of(documents: Documents = TRAIN, **options: Any) -> tuple[float, Network]:
    """The loss of a batch by the recipe (without smoothing unless asked), and its network."""
    torch.manual_seed(1)
    network = build(**STILL)
    settings = config(**{"label_smoothing": 0.0, **options})
    loss = training._Loss(network, documents, settings, CPU)(ROWS)
    return loss.detach().item(), network


def logs(network: Network, mix: Mix | None = None) -> np.ndarray:
    """Log probabilities of the rows, float64, computed apart from the loss."""
    with torch.no_grad():
        scores = network(*padded(network, TRAIN, ROWS), mix)[0].double().numpy()
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def truth() -> np.ndarray:
    assert TRAIN.labels is not None
    return TRAIN.labels[ROWS]


def picked(found: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return found[np.arange(len(labels)), labels]


def plain(network: Network) -> float:
    return float(-picked(logs(network), truth()).mean())


def test_the_plain_loss_is_the_mean_negative_log_of_the_right_class() -> None:
    loss, network = loss_of()
    assert loss == pytest.approx(plain(network), rel=1e-5)


def test_smoothing_gives_every_class_its_part_of_the_mass() -> None:
    loss, network = loss_of(label_smoothing=0.2)
    # Of two classes each gets 0.1, the right one 0.8 more.
    found = logs(network)
    expected = -(0.8 * picked(found, truth()) + 0.1 * found.sum(1)).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_confidence_penalty_is_the_negative_entropy() -> None:
    loss, network = loss_of(confidence_penalty=0.3)
    found = logs(network)
    entropy = -(np.exp(found) * found).sum(1).mean()
    assert 0 < entropy <= math.log(2)
    assert loss == pytest.approx(plain(network) - 0.3 * entropy, rel=1e-5)


def test_l1_is_the_sum_of_absolute_weights_and_spares_biases() -> None:
    loss, network = loss_of(l1=0.01)
    total = sum(
        np.abs(value.detach().double().numpy()).sum()
        for name, value in network.named_parameters()
        if "bias" not in name
    )
    assert loss == pytest.approx(plain(network) + 0.01 * total, rel=1e-5)


def test_balanced_classes_weigh_by_how_rare_they_are() -> None:
    # One row of class 0 in four: 4 / (2 x 1) = 2 times its loss, 4 / (2 x 3) = 2/3 of the others.
    few = TRAIN.labelled(np.resize([0, 1, 1, 1], len(TRAIN)))
    loss, network = loss_of(few, class_weights="balanced")
    labels = np.resize([0, 1, 1, 1], len(TRAIN))[ROWS]
    weight = np.where(labels == 0, 2.0, 2 / 3)
    assert loss == pytest.approx(-(weight * picked(logs(network), labels)).mean(), rel=1e-5)


def test_a_mixture_is_judged_by_both_labels_in_its_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    other, share = np.array([1, 2, 0, 5, 4, 3]), np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.5])
    mix = torch.from_numpy(other), torch.from_numpy(share).float()
    monkeypatch.setattr(training, "_mixture", lambda *_: mix)
    loss, network = loss_of(mixup=0.4)
    found, labels = logs(network, mix), truth()
    assert (labels != labels[other]).any()
    expected = share * picked(found, labels) + (1 - share) * picked(found, labels[other])
    assert loss == pytest.approx(-expected.mean(), rel=1e-5)


def test_every_row_is_mixed_once_and_keeps_at_least_half_of_itself() -> None:
    torch.manual_seed(1)
    other, share = training._mixture(1000, 0.4, CPU)
    assert sorted(other.tolist()) == list(range(1000))
    assert other.tolist() != list(range(1000))
    assert 0.5 <= float(share.min()) < 0.51
    # A drawn share of 1/4 to 3/4 is folded to less than 3/4; Beta(0.4, 0.4) has 0.2873 there.
    assert float((share < 0.75).float().mean()) == pytest.approx(0.2873, abs=0.04)


@pytest.mark.parametrize("name", ["activation", "temporal"])
def test_states_are_weighed_by_their_squares_or_those_of_their_change(name: str) -> None:
    loss, network = loss_of(TRAIN, **{name: 0.7})
    ids, lengths = padded(network, TRAIN, ROWS)
    with torch.no_grad():
        states = network.states(ids, lengths, [None])[0].double().numpy()
    total = 0.0
    for one, length in zip(states, lengths.tolist(), strict=True):
        inside = one[:length] if name == "activation" else np.diff(one[:length], axis=0)
        total += (inside**2).mean(1).sum()
    expected = plain(network) + 0.7 * total / int(lengths.sum())
    assert loss == pytest.approx(expected, rel=1e-5)


def test_documents_are_changed_in_training_and_never_in_validation() -> None:
    for name in ("deletion", "swap", "synonym"):
        network = build(**STILL)
        loss = training._Loss(network, TRAIN, config(**{name: 0.5}), CPU)
        assert loss(ROWS).item() != loss(ROWS).item(), name
        assert evaluate(network, TRAIN, 64, CPU) == evaluate(network, TRAIN, 64, CPU)


def test_the_norm_of_the_gradient_is_clipped() -> None:
    network = build(**STILL)
    loss = training._Loss(network, TRAIN, config(), CPU)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = weights(network)
    training._step(network, loss, ROWS, optimizer, 0.01)
    after = weights(network)
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert moved == pytest.approx(0.01, rel=1e-3)


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

    def read(self, ids: torch.Tensor, lengths: torch.Tensor, mix: Mix | None = None) -> Reading:
        if ids.numel() > self.most:
            raise self.says
        return super().read(ids, lengths, mix)


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


def test_a_range_test_that_is_no_number_still_ends_in_a_trained_network(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The network of the range test is broken, and the first one that is trained.
    make, built = broken(times=2)
    with caplog.at_level(logging.INFO, "nightshift"):
        epochs = trained(make, learning_rate="range_test")
    assert len(built) == 3
    assert all(math.isfinite(one.validation_loss) for one in epochs)
    # A fifth of the lowest rate there is, and a quarter of that.
    assert "learning rate 2e-06, from a range test" in caplog.text
    assert "learning_rate = 5e-07" in caplog.text


def test_a_memory_that_is_full_in_the_range_test_is_met_by_half_the_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "nightshift"):
        epochs = trained(
            lambda: Hungry(MODEL, 20, 2), batch_tokens=128, learning_rate="range_test", epochs=1
        )
    assert len(epochs) == 1
    [record] = caplog.records
    assert "for batches of 128 tokens; starting again with batch_tokens = 64" in record.message


def test_any_other_fault_is_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "says", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        trained(lambda: Hungry(MODEL, 20, 2), batch_tokens=256)


# --- evaluation -----------------------------------------------------------------------------


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
