"""How weights move: optimizers by name, learning-rate schedules, averages of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from .encoders import Network
from .recipe import TrainConfig

OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam, "rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}  # fmt: skip
FUSED = {"adamw", "adam", "sgd", "adagrad"}

EMA_DECAY = 0.999
SWA_SHARE = 0.25
"""The last share of the steps whose weights swa averages."""
PLATEAU_FACTOR, PLATEAU_PATIENCE = 1 / 3, 1

LOWEST_RATE, HIGHEST_RATE, TEST_STEPS = 1e-5, 1.0, 100


def make_optimizer(
    groups: list[dict[str, Any]], name: str, learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer of torch by its name in lower case."""
    more: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    kinds = {weight.device.type for group in groups for weight in group["params"]}
    if name in FUSED and kinds <= {"cpu", "cuda"}:
        # One pass over the weights: on a processor, too, a fifth of the time.
        more["fused"] = True
    return OPTIMIZERS[name](groups, lr=learning_rate, **more)


def groups_of(network: Network, config: TrainConfig, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters by depth, each with its learning rate and decay.

    Weights decay; biases and embeddings do not, or rare words would fade. Counted from the head,
    every layer further down learns `layer_decay` times as fast as the one above it.
    """
    layers = len(network.layers) if network.pretrained is None else network.pretrained.layers
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            decays = weight.ndim >= 2 and name != "embedding.weight"
            groups.setdefault((_depth(name, layers), decays), []).append(weight)
    return [
        {
            "params": weights,
            "lr": float(config.learning_rate) * layer_decay**depth,
            "weight_decay": float(config.weight_decay) if decays else 0.0,
        }
        for (depth, decays), weights in groups.items()
    ]


def _depth(name: str, layers: int) -> int:
    """0 at the head, 1 at the last layer, one more for each below it, most at the embedding."""
    part, _, rest = name.partition(".")
    if part == "layers":
        return layers - int(rest.split(".", 1)[0])
    if part == "pretrained":
        # Layers of transformers are a numbered list too, under as many names as there are models.
        number = re.search(r"\.(\d+)\.", rest)
        return layers - int(number[1]) if number else layers + 1 if "embed" in rest else 1
    return {"embedding": layers + 1, "shorten": layers + 1}.get(part, 0)


class Schedule:
    """The learning rate, step by step; `plateau` also listens to the validation loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int):
        self._plateau: Any = None
        self._optimizer, self._steps, self._done = optimizer, max(steps, 1), 0
        self._warm = max(1, round(config.warmup * self._steps))
        rates = [group["lr"] for group in optimizer.param_groups]
        if config.schedule == "one_cycle":
            self._each: Any = lr_scheduler.OneCycleLR(
                # A little more: torch divides by zero where the warm-up is exactly one step.
                optimizer, rates, self._steps, pct_start=config.warmup + 1e-9,
                cycle_momentum=config.optimizer in ("adamw", "adam", "nadam", "radam", "sgd"),
            )  # fmt: skip
        else:
            shapes: dict[str, Callable[[int], float]] = {
                "cosine": self._cosine, "constant": self._constant, "plateau": self._constant,
            }  # fmt: skip
            self._each = lr_scheduler.LambdaLR(optimizer, shapes[config.schedule])
        if config.schedule == "plateau":
            self._plateau = _Plateau(self._each)

    @property
    def rate(self) -> float:
        """The learning rate of the head."""
        # Every layer below it learns as fast or slower.
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def step(self) -> None:
        """After every batch."""
        self._done += 1
        if self._done < self._steps:
            self._each.step()

    def epoch(self, validation_loss: float) -> None:
        """After every pass."""
        if self._plateau is not None and self._done >= self._warm:
            self._plateau.step(validation_loss)

    def state(self) -> dict[str, Any]:
        """What `load` goes on from, in a schedule of the same declaration."""
        return {
            "done": self._done,
            "each": self._each.state_dict(),
            "plateau": self._plateau and self._plateau.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from where another one was; the optimizer's rates are its own to load."""
        self._done = state["done"]
        self._each.load_state_dict(state["each"])
        if self._plateau is not None:
            self._plateau.load(state["plateau"])

    def _constant(self, step: int) -> float:
        return min(1.0, (step + 1) / self._warm)

    def _cosine(self, step: int) -> float:
        if step < self._warm:
            return self._constant(step)
        share = (step - self._warm) / max(1, self._steps - self._warm)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class _Plateau:
    """A third of the learning rate whenever the loss has stood still for a pass."""

    def __init__(self, schedule: Any):
        self._schedule, self._best, self._bad = schedule, math.inf, 0

    def step(self, loss: float) -> None:
        self._bad = 0 if loss < self._best else self._bad + 1
        self._best = min(self._best, loss)
        if self._bad >= PLATEAU_PATIENCE:
            self._bad = 0
            self._schedule.base_lrs = [PLATEAU_FACTOR * one for one in self._schedule.base_lrs]

    def state(self) -> tuple[float, int]:
        return self._best, self._bad

    def load(self, state: tuple[float, int]) -> None:
        self._best, self._bad = state


class Average:
    """Averaged weights: none, an exponential mean (Polyak), or of the last steps (SWA)."""

    def __init__(self, network: Network, kind: str, steps: int):
        self._kind, self._steps, self._done = kind, steps, 0
        self._model: Any = None
        if kind == "ema":
            self._model = AveragedModel(network, avg_fn=_ema)
        elif kind == "swa":
            self._model = AveragedModel(network)

    def step(self, network: Network) -> None:
        """After every batch."""
        self._done += 1
        if self._kind == "ema" or (
            self._kind == "swa" and self._done > (1 - SWA_SHARE) * self._steps
        ):
            self._model.update_parameters(network)

    def state(self) -> dict[str, Any]:
        """What `load` goes on from."""
        return {"done": self._done, "model": self._model and self._model.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from where another one was."""
        self._done = state["done"]
        if self._model is not None:
            self._model.load_state_dict(state["model"])

    def of(self, network: Network) -> Network:
        """What answers: the average where there is one by now, else the network itself."""
        if self._model is None or int(self._model.n_averaged) == 0:
            return network
        return self._model.module


def _ema(average: torch.Tensor, now: torch.Tensor, count: Any) -> torch.Tensor:
    # Young averages forget fast, or the random start would stay in them.
    decay = min(EMA_DECAY, (1 + float(count)) / (10 + float(count)))
    return average + (1 - decay) * (now - average)


def range_test(
    step: Callable[[Any, float], float], batches: Iterable[Any], steps: int = TEST_STEPS
) -> float:
    """A learning rate from one short run in which it grows until the loss diverges (Smith 2017).

    Args: `step` trains on one batch at a learning rate and returns the loss; batches, at least one.
    Returns: a fifth of the rate at which the smoothed loss was least.
    """
    growth = (HIGHEST_RATE / LOWEST_RATE) ** (1 / max(1, steps - 1))
    rate, smooth, best, found = LOWEST_RATE, 0.0, math.inf, LOWEST_RATE
    for index, batch in zip(range(steps), _again(batches), strict=False):
        loss = step(batch, rate)
        if not math.isfinite(loss):
            break
        smooth = 0.9 * smooth + 0.1 * loss
        level = smooth / (1 - 0.9 ** (index + 1))
        if level > 3 * best:
            break
        if level < best:
            best, found = level, rate
        rate *= growth
    return found / 5


def _again(batches: Iterable[Any]) -> Iterable[Any]:
    kept = list(batches)
    while kept:
        yield from kept
