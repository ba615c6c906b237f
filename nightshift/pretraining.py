"""Learn from text alone, before any label: `pretrain` yields passes, callers log them.

next_token   the forward direction predicts the token after each state, the backward one the token
             before (as ELMo, Peters et al. 2018), over tied embeddings and a sampled softmax
             (Jean et al. 2015)
denoise      some tokens are hidden and predicted from the states at their places (Devlin et al.
             2019)
contrastive  two dropouts of one document are told from those of others (Gao et al. 2021)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import Documents, Watch, buckets, unwatched
from .cells import inside
from .encoders import Network
from .errors import TrainingError
from .recipe import PretrainConfig
from .tokenizer import PADDING, UNKNOWN

WINDOW = 256
"""Longest stretch read at once; longer documents are learned from in several."""
BATCH_TOKENS = 1024
HIDDEN_SHARE = 0.15
"""Tokens that denoising hides."""
CONTRAST_TEMPERATURE = 0.05
CLIP, WARMUP = 1.0, 0.1


@dataclass(frozen=True)
class Pass:
    """One pass over the text; the loss is nats per prediction among its candidates."""

    index: int
    passes: int
    loss: float
    tokens_per_second: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"pretraining, pass {self.index} of {self.passes}: loss {self.loss:.4f}, "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )

    def figures(self) -> dict[str, float]:
        """What is worth a curve."""
        return {"pretrain_loss": self.loss, "pretrain_tokens_per_second": self.tokens_per_second}


def pretrain(
    network: Network,
    documents: Documents,
    config: PretrainConfig,
    device: torch.device,
    seed: int = 1,
    watch: Watch = unwatched,
) -> Iterator[Pass]:
    """Train the network's embedding and encoder in place; its head is not touched.

    Args: documents without labels; a resolved config whose objective is not none.
    Raises: TrainingError when the loss is not finite.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network.to(device)
    documents = windows(documents, min(WINDOW, network.chunk))
    # A document of one token has nothing to predict.
    documents = documents.take(np.flatnonzero(documents.lengths > 1))
    task = _task(network, config).to(device)
    weights = {id(one): one for part in (network, task) for one in part.parameters()}
    rate = float(config.learning_rate)
    optimizer = torch.optim.AdamW(list(weights.values()), rate, weight_decay=0.0)
    passes = [
        list(buckets(documents.lengths, BATCH_TOKENS, random)) for _ in range(int(config.epochs))
    ]
    steps = sum(map(len, passes))
    if not steps:
        return
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=WARMUP)
    for index, batches in enumerate(passes):
        started, losses = time.perf_counter(), []
        network.train()
        for rows in watch(batches, len(batches)):
            ids, lengths = documents.pad(rows)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = task(ids.to(device), lengths.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(list(weights.values()), CLIP)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrainingError(
                f"pretrain: found a loss that is not a finite number in pass {index + 1}. Set "
                f"pretrain.learning_rate below {rate:g}, or pretrain.objective: "
                "none, in pipelines.yaml."
            )
        seconds = time.perf_counter() - started
        yield Pass(index + 1, len(passes), mean, float(documents.lengths.sum()) / seconds, seconds)


def windows(documents: Documents, size: int) -> Documents:
    """Cut every document into stretches of at most `size` tokens, each a document of its own."""
    parts = -(-documents.lengths // size)
    owner = np.repeat(np.arange(len(documents)), parts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = documents.places(owner, number * size)
    lengths = np.minimum(size, documents.lengths[owner] - number * size)
    return replace(documents, starts=starts, lengths=lengths, labels=None, skips=None)


def _task(network: Network, config: PretrainConfig) -> nn.Module:
    tasks: dict[str, Callable[[], nn.Module]] = {
        "next_token": lambda: NextToken(network, config.negatives),
        "denoise": lambda: Denoise(network, config.negatives),
        "contrastive": lambda: Contrastive(network),
    }
    return tasks[config.objective]()


class Vocabulary(nn.Module):
    """Predict tokens with the embedding's own vectors, among the batch's tokens and some others."""

    def __init__(self, embedding: nn.Embedding, negatives: int):
        super().__init__()
        self.embedding, self.negatives = embedding, negatives
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, queries: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean loss of float (tokens, embedding) against int64 (tokens,), list by list."""
        size = self.embedding.num_embeddings
        # Padding and the unknown token are never the answer; padding must stay zero besides.
        others = torch.randint(UNKNOWN + 1, size, (self.negatives,), device=targets[0].device)
        drawn = torch.cat([*targets, others])
        candidates, places = drawn.unique(return_inverse=True)
        weights, bias = self.embedding.weight[candidates], self.bias[candidates]
        losses, start = [], 0
        for asked, wanted in zip(queries, targets, strict=True):
            place = places[start : start + len(wanted)]
            start += len(wanted)
            scores = torch.addmm(bias, asked, weights.T)
            losses.append(F.cross_entropy(scores.float(), place, reduction="sum"))
        return torch.stack(losses).sum() / max(start, 1)


class NextToken(nn.Module):
    """What comes next forwards, and what came before backwards.

    With a stride, a state stands for several tokens and predicts those of the next step, but for
    the one that the convolution before it has already seen.
    """

    def __init__(self, network: Network, negatives: int):
        super().__init__()
        self.network, self.stride = network, int(network.config.stride)
        self.ahead = max(1, self.stride - 1)
        width = network.config.embedding
        self.vocabulary = Vocabulary(network.embedding, negatives)
        one = network.widths[0]
        forward = one // 2 if network.directions == 2 else one
        self.after = nn.Linear(forward, width * self.ahead)
        self.before = nn.Linear(forward, width * self.ahead) if network.directions == 2 else None
        self.forward_width = forward

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time), (batch,) -> mean loss."""
        states, steps, _ = self.network.states(ids, lengths, [None], depth=1)
        seen = int(self.stride > 1)
        first = torch.arange(states.shape[1], device=ids.device) * self.stride
        there = inside(states, steps)[..., 0]
        queries: list[Tensor] = []
        targets: list[Tensor] = []
        for head, part, edge, way in (
            (self.after, states[..., : self.forward_width], first + self.stride - 1 + seen, 1),
            (self.before, states[..., self.forward_width :], first - seen, -1),
        ):
            if head is None:
                continue
            asked = head(part).unflatten(2, (self.ahead, -1))
            for offset in range(self.ahead):
                place = (edge + way * (offset + 1)).expand(len(ids), -1)
                good = there & (place >= 0) & (place < lengths[:, None])
                wanted = ids.gather(1, place.clamp(0, ids.shape[1] - 1))
                good &= wanted != UNKNOWN
                queries.append(asked[:, :, offset][good])
                targets.append(wanted[good])
        return self.vocabulary(queries, targets)


class Denoise(nn.Module):
    """Hide some tokens and predict them from the states where they stood."""

    def __init__(self, network: Network, negatives: int):
        super().__init__()
        self.network, self.stride = network, int(network.config.stride)
        width = network.config.embedding
        self.vocabulary = Vocabulary(network.embedding, negatives)
        self.head = nn.Linear(network.widths[-1], width * self.stride)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time), (batch,) -> mean loss."""
        network = self.network
        known = (ids != PADDING) & (ids != UNKNOWN)
        hidden = (torch.rand(ids.shape, device=ids.device) < HIDDEN_SHARE) & known
        given = ids.masked_fill(hidden, UNKNOWN)
        states, _, _ = network.states(given, lengths, [None] * len(network.layers))
        asked = self.head(states).unflatten(2, (self.stride, -1)).flatten(1, 2)[:, : ids.shape[1]]
        return self.vocabulary([asked[hidden]], [ids[hidden]])


class Contrastive(nn.Module):
    """Find a document's other dropout among those of the batch."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time), (batch,) -> mean loss."""
        one, two = (F.normalize(self.network(ids, lengths)[1].float()) for _ in range(2))
        wanted = torch.arange(len(ids), device=ids.device)
        return F.cross_entropy(one @ two.T / CONTRAST_TEMPERATURE, wanted)
