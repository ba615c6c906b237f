"""Fit a network: `fit` yields epochs, callers log them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .augmentation import augment, neighbours
from .batches import Documents, Watch, batches, buckets, unwatched
from .deciding import class_weights
from .encoders import Network
from .errors import TrainingError
from .inference import forward, padded, pick_device
from .optimisation import Average, Schedule, groups_of, make_optimizer, range_test
from .recipe import TrainConfig

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Starts allowed before a loss that is not finite, or a full memory, ends the training."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows, and where it led."""

    index: int
    epochs: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    best: bool
    learning_rate: float
    tokens_per_second: float
    seconds: float
    network: Network = field(repr=False)
    """The network as this epoch left it; after the last epoch, with the best weights."""
    config: TrainConfig = field(repr=False)
    """What it was trained with: after a start that failed, not all of what was declared."""

    def __str__(self) -> str:
        return (
            f"epoch {self.index} of {self.epochs}: loss {self.train_loss:.4f}, validation loss "
            f"{self.validation_loss:.4f}, accuracy {self.validation_accuracy:.4f}"
            f"{' (best)' if self.best else ''}"
        )

    def figures(self) -> dict[str, float]:
        """What is worth a curve."""
        return {
            "train_loss": self.train_loss,
            "validation_loss": self.validation_loss,
            "validation_accuracy": self.validation_accuracy,
            "learning_rate": self.learning_rate,
            "train_tokens_per_second": self.tokens_per_second,
        }


class _NotFiniteError(Exception):
    pass


def fit(
    build: Callable[[], Network],
    train: Documents,
    validation: Documents,
    config: TrainConfig,
    watch: Watch = unwatched,
    passes: Passes | None = None,
) -> Iterator[Epoch]:
    """Train until the validation loss stops falling; the last epoch's network is the best one.

    A loss that is not finite starts again at a quarter of the learning rate; a full memory at
    half the batch.

    Args: `build` makes an untrained network, called after seeding; both document sets carry
    labels; a resolved config; how passes are made, unless `alone`.
    Raises: TrainingError after `ATTEMPTS` starts.
    """
    device, passes = pick_device(config.device), passes or alone
    for attempt in range(1, ATTEMPTS + 1):
        try:
            config = _with_rate(build, train, config, device)
            yield from _fit_once(build, train, validation, config, device, watch, passes)
            return
        except _NotFiniteError:
            found = f"a loss that is not a finite number at learning rate {config.learning_rate:g}"
            change = {"learning_rate": float(config.learning_rate) / 4}
        except (RuntimeError, MemoryError) as error:
            if not _memory_is_full(error):
                raise
            found = f"too little memory on {device} for batches of {config.batch_tokens} tokens"
            change = {"batch_tokens": max(64, int(config.batch_tokens) // 2)}
        if attempt == ATTEMPTS:
            raise TrainingError(
                f"train: {found}, after {ATTEMPTS} starts with smaller ones. Set "
                f"train.{next(iter(change))} below {next(iter(change.values())):g} in "
                "pipelines.yaml, or look for damaged texts."
            )
        [(name, value)] = change.items()
        log.warning("train: %s; starting again with %s = %g", found, name, value)
        config = config.model_copy(update=change)


def _memory_is_full(error: Exception) -> bool:
    # Without a GPU, torch says so in words only.
    by_kind = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_kind or "can't allocate memory" in str(error)


def refit(
    build: Callable[[], Network],
    documents: Documents,
    config: TrainConfig,
    losses: list[float],
    watch: Watch = unwatched,
    passes: Passes | None = None,
) -> Network | None:
    """Train as `fit` does, without looking at validation.

    Args: `config` as the epochs of `fit` tell it; their validation losses up to the best one: a
    pass is made for each, and the learning rate follows them as it did then.
    Returns: the last weights; None where the loss left the numbers or the memory was full.
    """
    device, passes = pick_device(config.device), passes or alone
    try:
        torch.manual_seed(config.seed)
        network = answering = build().to(device)
        done = passes(network, documents, config, device, watch)
        for then, (loss, average, schedule) in zip(losses, done, strict=False):
            if not math.isfinite(loss):
                return None
            schedule.epoch(then)
            answering = average
    except (RuntimeError, MemoryError) as error:
        if not _memory_is_full(error):
            raise
        return None
    network.load_state_dict(_copy(answering))
    return network


def _fit_once(
    build: Callable[[], Network],
    train: Documents,
    validation: Documents,
    config: TrainConfig,
    device: torch.device,
    watch: Watch,
    passes: Passes,
) -> Iterator[Epoch]:
    torch.manual_seed(config.seed)
    network = build().to(device)
    best_loss, best_weights, since_best = math.inf, _copy(network), 0
    started, epochs = time.perf_counter(), int(config.epochs)
    done = passes(network, train, config, device, watch)
    for index, (train_loss, answering, schedule) in enumerate(done):
        loss, accuracy = evaluate(answering, validation, int(config.batch_tokens), device)
        if not (math.isfinite(train_loss) and math.isfinite(loss)):
            raise _NotFiniteError
        rate = schedule.rate
        schedule.epoch(loss)
        seconds = time.perf_counter() - started
        since_best = 0 if loss < best_loss else since_best + 1
        if since_best == 0:
            best_loss, best_weights = loss, _copy(answering)
        stop = since_best >= config.patience or index + 1 == epochs
        if stop:
            network.load_state_dict(best_weights)
        yield Epoch(
            index=index + 1,
            epochs=epochs,
            train_loss=train_loss,
            validation_loss=loss,
            validation_accuracy=accuracy,
            best=since_best == 0,
            learning_rate=rate,
            tokens_per_second=float(train.lengths.sum()) / seconds,
            seconds=seconds,
            network=network,
            config=config,
        )
        if stop:
            return
        started = time.perf_counter()


def alone(
    network: Network, train: Documents, config: TrainConfig, device: torch.device, watch: Watch
) -> Iterator[tuple[float, Network, Schedule]]:
    """Pass after pass, in this process: its mean loss, the network that answers after it, and the
    schedule, which wants to be told the validation loss."""
    run = Run(network, train, config, device)
    for index in range(len(run.passes)):
        yield run.one_pass(index, watch), run.answering, run.schedule


Passes = Callable[
    [Network, Documents, TrainConfig, torch.device, Watch],
    Iterator[tuple[float, Network, Any]],
]
"""How the passes over the training rows are made: `alone`, or together with other machines."""


class Team:
    """Processes that take every step together; this is one alone."""

    rank, size = 0, 1

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Of a batch's rows, this process's own."""
        return rows[self.rank :: self.size]

    def add_up(self, network: nn.Module) -> None:
        """Make every process's gradients the sum of all."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a number over all processes."""
        return value


ALONE = Team()


class Run:
    """One training from its first pass to its last, in one process or a team of them.

    Args: a network on the device, which is trained in place; labelled documents; a config with a
    learning rate.
    """

    def __init__(
        self,
        network: Network,
        train: Documents,
        config: TrainConfig,
        device: torch.device,
        team: Team = ALONE,
    ):
        random = np.random.default_rng(config.seed)
        self._network, self._clip, self._team = network, config.clip, team
        self._loss_of = _Loss(network, train, config, device)
        groups = groups_of(network, config, config.layer_decay)
        self._optimizer = make_optimizer(groups, config.optimizer, float(config.learning_rate))
        self.passes = [
            _batches(network, train, int(config.batch_tokens), random)
            for _ in range(int(config.epochs))
        ]
        steps = sum(map(len, self.passes))
        self.schedule = Schedule(self._optimizer, config, steps)
        self._average = Average(network, config.averaging, steps)

    @property
    def answering(self) -> Network:
        """The network that answers: the trained one, or the average of its weights."""
        return self._average.of(self._network)

    def one_pass(self, index: int, watch: Watch = unwatched) -> float:
        """Train on every batch of a pass; returns its mean loss."""
        parts, losses = self.passes[index], []
        for rows in watch(parts, len(parts)):
            losses.append(
                _step(self._network, self._loss_of, rows, self._optimizer, self._clip, self._team)
            )
            self.schedule.step()
            self._average.step(self._network)
        # One look at the end of the pass: asking after every step would stop the device each time.
        return float(self._team.total(torch.stack(losses).mean()))

    def state(self) -> dict[str, Any]:
        """What `load` goes on from, between two passes."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "average": self._average.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from where another run of the same arguments was."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.schedule.load(state["schedule"])
        self._average.load(state["average"])


def _batches(
    network: Network, documents: Documents, batch_tokens: int, random: np.random.Generator
) -> list[np.ndarray]:
    cut = buckets if network.config.padding == "bucket" else batches
    return list(cut(documents.lengths, batch_tokens, random))


class _Loss:
    """The loss of a batch: cross-entropy and whatever the recipe adds to it."""

    def __init__(
        self, network: Network, documents: Documents, config: TrainConfig, device: torch.device
    ):
        assert documents.labels is not None
        self.network, self.documents, self.config, self.device = network, documents, config, device
        self.labels = torch.from_numpy(documents.labels)
        classes = network.head.out_features
        network.penalised = bool(config.activation or config.temporal)
        self.weights = (
            torch.from_numpy(class_weights(documents.labels, classes)).to(device)
            if config.class_weights == "balanced"
            else None
        )
        self.neighbours = (
            neighbours(network.embedding.weight.detach()).to(device) if config.synonym else None
        )

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        config, device = self.config, self.device
        ids, lengths = padded(self.network, self.documents, rows)
        ids, lengths, labels = ids.to(device), lengths.to(device), self.labels[rows].to(device)
        if config.deletion or config.swap or config.synonym:
            ids, lengths = augment(ids, lengths, config, self.neighbours, None)
        mix = _mixture(len(rows), config.mixup, device) if config.mixup else None
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            reading = self.network.read(ids, lengths, mix)
            scores = self.network.classify(reading.pooled)[0].float()
        loss = self._cross_entropy(scores, labels)
        if mix is not None:
            other, share = mix
            loss = share * loss + (1 - share) * self._cross_entropy(scores, labels[other])
        total = loss.mean()
        if config.confidence_penalty:
            logs = scores.log_softmax(1)
            total = total + config.confidence_penalty * (logs.exp() * logs).sum(1).mean()
        if config.activation or config.temporal:
            total = total + config.activation * reading.activation.float()
            total = total + config.temporal * reading.temporal.float()
        if config.l1:
            weights = (w for w in self.network.parameters() if w.ndim >= 2 and w.requires_grad)
            total = total + config.l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        return total

    def _cross_entropy(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            scores, labels, self.weights, reduction="none",
            label_smoothing=self.config.label_smoothing,
        )  # fmt: skip


def _mixture(rows: int, alpha: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Whom each row is mixed with, and its own share, at least half."""
    share = torch.distributions.Beta(alpha, alpha).sample((rows,)).to(device)
    return torch.randperm(rows, device=device), torch.maximum(share, 1 - share)


def _step(
    network: Network,
    loss_of: Callable[[np.ndarray], torch.Tensor],
    rows: np.ndarray,
    optimizer: torch.optim.Optimizer,
    clip: float,
    team: Team = ALONE,
) -> torch.Tensor:
    """One batch forwards and backwards; returns its mean loss, or this process's part of it, still
    on the device."""
    network.train()
    own = team.share(rows)
    # A mean over the batch is the sum of the shares' means, each by how large its share is.
    loss = loss_of(own) * (len(own) / len(rows)) if len(own) else None
    optimizer.zero_grad(set_to_none=True)
    if loss is None:
        loss = torch.zeros((), device=next(network.parameters()).device)
    else:
        loss.backward()
    team.add_up(network)
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.detach()


def _with_rate(
    build: Callable[[], Network], train: Documents, config: TrainConfig, device: torch.device
) -> TrainConfig:
    """The config with a learning rate; a range test finds it on a network of its own."""
    if config.learning_rate != "range_test":
        return config
    torch.manual_seed(config.seed)
    network = build().to(device)
    loss_of = _Loss(network, train, config, device)
    groups = groups_of(network, config.model_copy(update={"learning_rate": 1.0}), 1.0)
    optimizer = make_optimizer(groups, config.optimizer, 1.0)

    def step(rows: np.ndarray, rate: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate
        return float(_step(network, loss_of, rows, optimizer, config.clip))

    random = np.random.default_rng(config.seed)
    found = range_test(step, _batches(network, train, int(config.batch_tokens), random))
    log.info("train     learning rate %.2g, from a range test", found)
    return config.model_copy(update={"learning_rate": found})


def evaluate(
    network: Network, documents: Documents, batch_tokens: int, device: torch.device
) -> tuple[float, float]:
    """Mean log loss (nats) and accuracy on labelled documents."""
    assert documents.labels is not None
    scores, _ = forward(network, documents, batch_tokens, device)
    labels = torch.from_numpy(documents.labels)
    loss = F.cross_entropy(torch.from_numpy(scores), labels)
    return float(loss), float((scores.argmax(1) == documents.labels).mean())


def _copy(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
