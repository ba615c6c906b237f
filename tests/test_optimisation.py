"""Optimisation: steps as their papers have them, schedules, averages and the range test by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nightshift.encoders import Network
from nightshift.optimisation import (
    OPTIMIZERS,
    Average,
    Schedule,
    groups_of,
    make_optimizer,
    range_test,
)
from nightshift.recipe import ModelConfig, TrainConfig


def config(**options: Any) -> TrainConfig:
    return TrainConfig.model_validate({"learning_rate": 0.1, "weight_decay": 0.01, **options})


def network(**options: Any) -> Network:
    torch.manual_seed(1)
    small: dict[str, Any] = {"hidden": 4, "embedding": 4, "vector": 4, "stride": 1}
    return Network(ModelConfig(**{**small, "max_tokens": 16, **options}), 10, 2)


# --- optimizers -----------------------------------------------------------------------------


def moved(name: str, gradients: list[float], decay: float = 0.0, start: float = 1.0) -> float:
    """Where a weight stands after these gradients at a learning rate of 0.1."""
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make_optimizer([{"params": [weight], "weight_decay": decay}], name, 0.1)
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return weight.item()


def nadam(step: int) -> float:
    """Dozat 2016: the momentum at a step, with its decay of 0.004."""
    return 0.9 * (1 - 0.5 * 0.96 ** (step * 0.004))


STEPS = {
    # The first moment over the root of the second, both unbiased: the sign of the gradient.
    "adam": 1 - 0.1,
    "adamw": 1 - 0.1,
    # Momentum looks one step ahead: 0.1 of what Adam's first moment would be next.
    "nadam": 1 - 0.1 * (1 + 0.1 * nadam(2) / (1 - nadam(1) * nadam(2))),
    # Too early to know the variance: the plain gradient.
    "radam": 1 - 0.1 * 0.5,
    # The root of the mean square is a tenth of the gradient: 0.01 of its square.
    "rmsprop": 1 - 0.1 / 0.1,
    # The root of the sum of squares is the gradient's own size.
    "adagrad": 1 - 0.1,
    # Nesterov: the gradient and 0.9 of the momentum that it made.
    "sgd": 1 - 0.1 * 1.9 * 0.5,
}


def test_every_optimizer_of_the_recipe_has_its_step_here() -> None:
    declared = TrainConfig.model_fields["optimizer"].annotation
    assert set(STEPS) == set(OPTIMIZERS) == set(getattr(declared, "__args__", ()))


@pytest.mark.parametrize("name", STEPS)
def test_the_first_step_of_an_optimizer_is_that_of_its_paper(name: str) -> None:
    assert moved(name, [0.5]) == pytest.approx(STEPS[name], abs=1e-6)


def test_two_steps_of_sgd_gather_momentum() -> None:
    # v1 = 0.5, step 0.5 + 0.45 = 0.95; v2 = 0.9 x 0.5 + 1 = 1.45, step 1 + 1.305 = 2.305.
    assert moved("sgd", [0.5, 1.0]) == pytest.approx(1 - 0.095 - 0.2305, abs=1e-9)


def test_two_steps_of_adam_by_hand() -> None:
    # m = 0.9 x 0.05 + 0.1 x 1 = 0.145 over 1 - 0.81 = 0.763158; v = 0.999 x 0.00025 + 0.001
    # = 0.00124975 over 1 - 0.998001 = 0.625188, its root 0.790688: a step of 0.965182.
    assert moved("adam", [0.5, 1.0]) == pytest.approx(0.9 - 0.0965182, abs=1e-6)


def test_decay_is_apart_from_the_gradient_in_adamw_and_part_of_it_elsewhere() -> None:
    # Without a gradient AdamW takes 0.1 x 0.2 of the weight; Adam sees a gradient of 0.2 and
    # takes its sign; sgd takes 1.9 of it.
    assert moved("adamw", [0.0], decay=0.2) == pytest.approx(1 - 0.02, abs=1e-6)
    assert moved("adam", [0.0], decay=0.2) == pytest.approx(1 - 0.1, abs=1e-6)
    assert moved("sgd", [0.0], decay=0.2) == pytest.approx(1 - 0.1 * 1.9 * 0.2, abs=1e-6)


# --- groups ---------------------------------------------------------------------------------


def by_name(one: Network, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of every parameter that learns."""
    names = {id(value): name for name, value in one.named_parameters()}
    return {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in groups
        for value in group["params"]
    }


def test_matrices_decay_and_biases_and_embeddings_do_not() -> None:
    one = network(layers=2)
    found = by_name(one, groups_of(one, config(weight_decay=0.3), 1.0))
    assert found.keys() == dict(one.named_parameters()).keys()
    for name, value in one.named_parameters():
        decays = value.ndim > 1 and name != "embedding.weight"
        assert found[name] == (0.1, 0.3 if decays else 0.0), name


def test_each_layer_down_from_the_head_learns_slower() -> None:
    one = network(layers=2, stride=4)
    found = by_name(one, groups_of(one, config(), 0.5))
    rates = {
        "head.weight": 0.1, "projection.bias": 0.1, "attention.0.weight": 0.1,
        "layers.1.forwards.weight_ih_l0": 0.05, "layers.0.backwards.bias_hh_l0": 0.025,
        "embedding.weight": 0.0125, "shorten.convolution.weight": 0.0125,
    }  # fmt: skip
    assert {name: found[name][0] for name in rates} == pytest.approx(rates)


def test_frozen_embeddings_are_in_no_group() -> None:
    one = network(freeze_embeddings=True)
    found = by_name(one, groups_of(one, config(), 1.0))
    assert dict(one.named_parameters()).keys() - found.keys() == {"embedding.weight"}


# --- schedules ------------------------------------------------------------------------------


def schedule(
    steps: int, rates: tuple[float, ...] = (1.0,), **options: Any
) -> tuple[Schedule, torch.optim.Optimizer]:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    settings = config(**options)
    optimizer = make_optimizer(groups, settings.optimizer, rates[0])
    return Schedule(optimizer, settings, steps), optimizer


def rates(steps: int, **options: Any) -> list[float]:
    """The learning rate of every step."""
    one, optimizer = schedule(steps, **options)
    found = []
    for _ in range(steps):
        found.append(one.rate)
        optimizer.step()
        one.step()
    return found


def test_a_constant_rate_is_warmed_up_in_equal_steps() -> None:
    found = rates(10, schedule="constant", warmup=0.4)
    assert found == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])


def test_a_cosine_falls_from_the_peak_along_half_a_wave() -> None:
    # After two steps of warm-up, eight down: (1 + cos(pi k / 8)) / 2.
    found = rates(10, schedule="cosine", warmup=0.2)
    assert found[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert found[6] == pytest.approx(0.5)
    assert found[4] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert found[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_one_cycle_rises_from_a_25th_to_the_peak_and_falls_to_almost_nothing() -> None:
    # The warm-up ends at step 0.3 x 10 - 1 = 2, the fall at step 9; both are half cosines.
    found = rates(10, schedule="one_cycle", warmup=0.3)
    assert found[0] == pytest.approx(1 / 25)
    assert found[1] == pytest.approx((1 + 1 / 25) / 2)
    assert found[2] == pytest.approx(1.0)
    assert found[4] == pytest.approx(0.5 * (1 + math.cos(math.pi * 2 / 7)), abs=1e-5)
    assert found[9] == pytest.approx(1 / 25e4)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "plateau", "constant"])
def test_no_schedule_minds_how_few_or_many_steps_are_its_warm_up(name: str) -> None:
    # One cycle of torch divides by zero where the warm-up is exactly one step.
    for steps, warmup in [(1, 0.0), (1, 0.9), (2, 0.5), (4, 0.25), (5, 0.2), (10, 0.1), (10, 0.99)]:
        found = rates(steps, schedule=name, warmup=warmup)
        assert all(0 < rate <= 1 + 1e-9 for rate in found), (steps, warmup)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["one_cycle", "cosine", "plateau", "constant"])
def test_every_optimizer_follows_every_schedule(name: str, optimizer: str) -> None:
    found = rates(8, schedule=name, optimizer=optimizer, warmup=0.5)
    assert found[0] < found[2] <= found[3] <= 1
    assert found[3] == pytest.approx(1.0)


def test_a_plateau_takes_a_third_whenever_the_loss_stands_still() -> None:
    one, optimizer = schedule(100, schedule="plateau", warmup=0.02)
    found = []
    for loss in [3.0, 2.0, 2.0, 1.0, 1.5, 1.5]:
        for _ in range(3):
            optimizer.step()
            one.step()
        found.append(one.rate)
        one.epoch(loss)
    # Worse or equal after the third, fifth and sixth pass; seen from the pass after on.
    assert found == pytest.approx([1, 1, 1, 1 / 3, 1 / 3, 1 / 9])


def test_a_plateau_does_not_judge_the_warm_up_and_the_others_judge_nothing() -> None:
    for name, warmup in (("plateau", 0.9), ("constant", 0.0), ("cosine", 0.0)):
        one, optimizer = schedule(20, schedule=name, warmup=warmup)
        plain = rates(20, schedule=name, warmup=warmup)
        for step in range(16):
            assert one.rate == pytest.approx(plain[step])
            optimizer.step()
            one.step()
            one.epoch(5.0)


def test_the_rate_told_is_that_of_the_head_whatever_comes_first() -> None:
    one, _ = schedule(10, (0.1, 0.4, 0.2), schedule="constant", warmup=0.0)
    assert one.rate == pytest.approx(0.4)


# --- averages -------------------------------------------------------------------------------


def averaged(kind: str, values: list[list[float]]) -> tuple[Network, Network]:
    """A network whose bias of the head takes these values in turn, and what answers for it."""
    one = network()
    average = Average(one, kind, len(values))
    for value in values:
        one.head.bias.data = torch.tensor(value)
        average.step(one)
    return one, average.of(one)


VALUES = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)


def test_an_exponential_mean_forgets_fast_at_first() -> None:
    one, found = averaged("ema", VALUES.tolist())
    expected = VALUES[0].astype(float)
    for count, value in enumerate(VALUES[1:], start=1):
        decay = (1 + count) / (10 + count)
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(found.head.bias.detach(), expected, atol=1e-6)
    assert found is not one
    assert torch.equal(found.projection.weight, one.projection.weight)


def test_an_exponential_mean_that_is_old_keeps_999_of_1000() -> None:
    # (1 + n) / (10 + n) passes 0.999 at n = 8990.
    one = network()
    average = Average(one, "ema", 10)
    one.head.bias.data = torch.zeros(2)
    average.step(one)
    assert average._model is not None
    average._model.n_averaged += 20_000
    one.head.bias.data = torch.ones(2)
    average.step(one)
    assert average.of(one).head.bias.tolist() == pytest.approx([0.001, 0.001], rel=1e-3)


def test_swa_is_the_mean_of_the_last_quarter_of_the_steps() -> None:
    _, found = averaged("swa", VALUES.tolist())
    np.testing.assert_allclose(found.head.bias.detach(), VALUES[30:].mean(0), atol=1e-6)


def test_before_swa_begins_and_without_an_average_the_network_answers_itself() -> None:
    one = network()
    average = Average(one, "swa", 40)
    for _ in range(30):
        average.step(one)
    assert average.of(one) is one
    average.step(one)
    assert average.of(one) is not one
    plain, answering = averaged("none", VALUES.tolist())
    assert answering is plain


# --- range test -----------------------------------------------------------------------------


def descent(curvature: float) -> tuple[Any, list[float]]:
    """Steps of plain descent from w = 1, and the rates they were taken at.

    A batch says curvature x (w - its number)^2 / 2: above 2 / curvature this diverges.
    """
    seen: list[float] = []
    place = [1.0]

    def step(number: float, rate: float) -> float:
        apart = place[0] - number
        place[0] -= rate * curvature * apart
        seen.append(rate)
        return curvature * apart**2 / 2

    return step, seen


@pytest.mark.parametrize("curvature", [4.0, 40.0, 400.0])
def test_the_rate_found_lies_between_one_that_does_nothing_and_one_that_diverges(
    curvature: float,
) -> None:
    step, seen = descent(curvature)
    found = range_test(step, (0.1 * np.random.default_rng(1).normal(size=100)).tolist())
    assert 0.02 / curvature < found < 1 / curvature
    # It went on until the loss diverged, and not much further.
    assert seen[0] == pytest.approx(1e-5)
    assert min(2 / curvature, 0.99) < seen[-1] < 10 / curvature


def test_rates_grow_by_one_factor_and_batches_come_again() -> None:
    seen: list[tuple[int, float]] = []

    def step(batch: int, rate: float) -> float:
        seen.append((batch, rate))
        return 1.0 / (1 + len(seen))

    found = range_test(step, [7, 8, 9], steps=6)
    assert [batch for batch, _ in seen] == [7, 8, 9, 7, 8, 9]
    # From 1e-5 to 1 in six: factors of ten. The loss fell to the end: a fifth of the last.
    assert [rate for _, rate in seen] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert found == pytest.approx(0.2)


def test_a_loss_that_is_no_number_ends_the_range_test() -> None:
    losses = iter([1.0, 0.9, math.nan])
    # The second of rates 1e-5, 1e-4, ... was the best.
    assert range_test(lambda _, rate: next(losses), [0], steps=6) == pytest.approx(2e-5)
    assert range_test(lambda _, rate: math.nan, [0]) == pytest.approx(2e-6)
