"""Fit a network: `fit` yields epochs, callers log them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .batches import Documents, buckets
from .encoders import Network
from .errors import TrainingError
from .recipe import TrainConfig

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Starts allowed before a loss that is not finite, or a full memory, ends the training."""

Watch = Callable[[Iterable[np.ndarray], int], Iterable[np.ndarray]]
"""Wraps the batches of one pass, with their number, so that a caller can show progress."""


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


def pick_device(wanted: str) -> torch.device:
    """`auto` -> cuda, mps or cpu, the first that is there.

    Raises: TrainingError when a device is asked for by name and missing.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next((name for name, yes in there.items() if yes), "cpu"))
    if not there.get(wanted, True):
        raise TrainingError(
            f"train.device: found no {wanted} device, though pipelines.yaml asks for it. "
            "Write `device: auto`, or run on a machine that has one."
        )
    return torch.device(wanted)


def unwatched(batches: Iterable[np.ndarray], total: int) -> Iterable[np.ndarray]:
    """Show no progress."""
    return batches


def fit(
    build: Callable[[], Network],
    train: Documents,
    validation: Documents,
    config: TrainConfig,
    watch: Watch = unwatched,
) -> Iterator[Epoch]:
    """Train until the validation loss stops falling; the last epoch's network is the best one.

    A loss that is not finite starts again at a quarter of the learning rate; a full memory at
    half the batch.

    Args: `build` makes an untrained network, called after seeding; both document sets carry
    labels; a resolved config.
    Raises: TrainingError after `ATTEMPTS` starts.
    """
    device = pick_device(config.device)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            yield from _fit_once(build, train, validation, config, device, watch)
            return
        except _NotFiniteError:
            found = f"a loss that is not a finite number at learning rate {config.learning_rate:g}"
            change = {"learning_rate": config.learning_rate / 4}
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


def _fit_once(
    build: Callable[[], Network],
    train: Documents,
    validation: Documents,
    config: TrainConfig,
    device: torch.device,
    watch: Watch,
) -> Iterator[Epoch]:
    torch.manual_seed(config.seed)
    random = np.random.default_rng(config.seed)
    network = build().to(device)
    epochs, batch_tokens = int(config.epochs), int(config.batch_tokens)
    optimizer = torch.optim.AdamW(
        _decayed(network, config.weight_decay), lr=config.learning_rate, fused=device.type == "cuda"
    )
    passes = [list(buckets(train.lengths, batch_tokens, random)) for _ in range(epochs)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, sum(map(len, passes)), pct_start=0.15
    )
    best_loss, best_weights, since_best = math.inf, _copy(network), 0
    for index, batches in enumerate(passes):
        started = time.perf_counter()
        losses = [
            _step(network, train, rows, optimizer, schedule, config, device)
            for rows in watch(batches, len(batches))
        ]
        # One look at the end of the pass: asking after every step would stop the device each time.
        train_loss = float(torch.stack(losses).mean())
        loss, accuracy = evaluate(network, validation, batch_tokens, device)
        if not (math.isfinite(train_loss) and math.isfinite(loss)):
            raise _NotFiniteError
        seconds = time.perf_counter() - started
        since_best = 0 if loss < best_loss else since_best + 1
        if since_best == 0:
            best_loss, best_weights = loss, _copy(network)
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
            learning_rate=float(schedule.get_last_lr()[0]),
            tokens_per_second=float(train.lengths.sum()) / seconds,
            seconds=seconds,
            network=network,
        )
        if stop:
            return


def _step(
    network: Network,
    documents: Documents,
    rows: np.ndarray,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    config: TrainConfig,
    device: torch.device,
) -> torch.Tensor:
    """One batch forwards and backwards; returns its mean loss, still on the device."""
    assert documents.labels is not None
    network.train()
    ids, lengths = documents.pad(rows)
    labels = torch.from_numpy(documents.labels[rows]).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        scores, _ = network(ids.to(device), lengths.to(device))
    loss = F.cross_entropy(scores.float(), labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    optimizer.step()
    schedule.step()
    return loss.detach()


def evaluate(
    network: Network, documents: Documents, batch_tokens: int, device: torch.device
) -> tuple[float, float]:
    """Mean log loss (nats) and accuracy on labelled documents."""
    assert documents.labels is not None
    scores, _ = forward(network, documents, batch_tokens, device)
    labels = torch.from_numpy(documents.labels)
    loss = F.cross_entropy(torch.from_numpy(scores), labels)
    return float(loss), float((scores.argmax(1) == documents.labels).mean())


@torch.inference_mode()
def forward(
    network: Network,
    documents: Documents,
    batch_tokens: int,
    device: torch.device,
    watch: Watch = unwatched,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores before softmax (documents, classes) and vectors (documents, width), both float32."""
    network.eval()
    scores = np.empty((len(documents), network.head.out_features), np.float32)
    vectors = np.empty((len(documents), network.head.in_features), np.float32)
    batches = list(buckets(documents.lengths, batch_tokens))
    for rows in watch(batches, len(batches)):
        ids, lengths = documents.pad(rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            one, two = network(ids.to(device), lengths.to(device))
        scores[rows], vectors[rows] = one.float().cpu().numpy(), two.float().cpu().numpy()
    return scores, vectors


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of the scores that makes validation's log loss least (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    given, wanted = torch.from_numpy(scores).double(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(given / math.exp(log_temperature), wanted))

    found: Any = minimize_scalar(loss, bounds=(-2.5, 2.5), method="bounded")
    return float(math.exp(found.x))


def _decayed(network: Network, decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and embeddings do not, or rare words would fade."""
    kept = [p for n, p in network.named_parameters() if p.ndim < 2 or n == "embedding.weight"]
    rest = [p for n, p in network.named_parameters() if p.ndim >= 2 and n != "embedding.weight"]
    return [{"params": rest, "weight_decay": decay}, {"params": kept, "weight_decay": 0.0}]


def _copy(network: Network) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
