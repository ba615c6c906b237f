"""The network: token ids -> states -> one vector per document -> class scores.

Padding never reaches a state: the forward direction reads padding only after a document's end,
the backward direction reads each document reversed by its own length, pooling is masked. A
document therefore gets the same answer whatever shares its batch.

A document longer than `chunk_tokens` is read in chunks: the forward direction carries its state
on, the gradient stops between chunks (truncated back-propagation, Williams & Peng 1990), and the
pooling runs over all of them. In training a chunk is computed a second time on the way back, so
that memory holds the states of one chunk, however long the document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .cells import Shorten, inside, make_layer
from .recipe import ModelConfig
from .tokenizer import PADDING, UNKNOWN

NOWHERE = -1e30
"""Attention outside a document: nothing, yet a number, so that an empty chunk stays one too."""

RECURRENT = ("lstm", "gru", "rnn", "mingru", "minlstm")

Mix = tuple[Tensor, Tensor]
"""The row each row is mixed with, int64 (batch,), and its own share of the mixture (batch,)."""


@dataclass(frozen=True)
class Reading:
    """Documents read: pooled (batch, width); mean squared states, and their change by step, both 0
    where the network is not `penalised`."""

    pooled: Tensor
    activation: Tensor
    temporal: Tensor


class Network(nn.Module):
    """Embedding, optional strided convolution, encoder layers, pooling, projection, head.

    Args: a resolved config (no `auto`), entries of the vocabulary, number of classes; for an
    encoder of Hugging Face the layers themselves.
    """

    def __init__(
        self, config: ModelConfig, vocabulary: int, classes: int, pretrained: Any | None = None
    ):
        super().__init__()
        self.config = config
        self.pretrained = pretrained
        self.penalised = False
        """Whether `read` tells how large states are and how they change: a tenth of a step."""
        if pretrained is None:
            self.embedding = nn.Embedding(vocabulary, config.embedding, padding_idx=PADDING)
            nn.init.normal_(self.embedding.weight, std=0.1)
            with torch.no_grad():
                self.embedding.weight[PADDING].zero_()
            self.embedding.weight.requires_grad_(not config.freeze_embeddings)
        elif config.freeze_embeddings:
            pretrained.freeze_embeddings()
        stride = int(config.stride) if pretrained is None else 1
        self.shorten = Shorten(config.embedding, stride) if stride != 1 else None
        self.layers, width = nn.ModuleList(), config.embedding
        self.widths: list[int] = []
        for _ in range(config.layers if pretrained is None else 0):
            layer = make_layer(config, width)
            self.layers.append(layer)
            width = layer.width
            self.widths.append(width)
        width = width if pretrained is None else pretrained.width
        # A pre-norm Transformer, and a sum of residual blocks, grow with every block.
        self.norm = nn.LayerNorm(width) if config.encoder in ("transformer", "tdnn") else None
        # Of two directions, the first half of a state has read forwards, the second backwards.
        self.directions = 2 if config.bidirectional and config.encoder in RECURRENT else 1
        self.forward_width = width // self.directions
        self.attention: nn.Module | None = (
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
            if "attention" in config.pooling
            else None
        )
        self.projection = nn.Linear(width * len(config.pooling), config.vector)
        self.head = nn.Linear(config.vector, classes)
        self.dropout = nn.Dropout(config.dropout)
        chunk = config.chunk_tokens
        if pretrained is not None:
            # It has no positions beyond these; what is longer is read as texts of their own.
            chunk = min(chunk, pretrained.room)
        self.chunk = max(1, chunk // stride) * stride

    def forward(
        self, ids: Tensor, lengths: Tensor, mix: Mix | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify padded documents.

        Args: ids int64 (batch, time), padded on the right; lengths int64 (batch,), at least 1.
        Returns: scores (batch, classes) before softmax, document vectors (batch, vector).
        """
        return self.classify(self.read(ids, lengths, mix).pooled)

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` pooled -> scores (batch, classes), document vectors (batch, vector)."""
        vectors = self.projection(self.dropout(pooled))
        return self.head(self.dropout(F.gelu(vectors))), vectors

    def read(self, ids: Tensor, lengths: Tensor, mix: Mix | None = None) -> Reading:
        """Read documents chunk by chunk; with `mix`, mixtures of two embedded documents."""
        if mix is not None:
            lengths = torch.maximum(lengths, lengths[mix[0]])
        carried: list[Any] = [None] * len(self.layers)
        found: dict[str, Tensor] = {}
        for start in range(0, ids.shape[1], self.chunk):
            part = ids[:, start : start + self.chunk]
            left = (lengths - start).clamp(0, part.shape[1])
            again = self.training and ids.shape[1] > self.chunk
            run = self._chunk_again if again else self._chunk
            more, carried = run(part, left, lengths - start, mix, carried)
            found = _merged(found, more) if found else more
        pooled = [self._pooled(way, found) for way in self.config.pooling]
        steps = found["steps"].sum().clamp(min=1)
        zero = steps.new_zeros((), dtype=pooled[0].dtype)
        return Reading(
            torch.cat(pooled, dim=1),
            found.get("activation", zero) / steps,
            found.get("temporal", zero) / steps,
        )

    def states(
        self,
        ids: Tensor,
        lengths: Tensor,
        carried: list[Any],
        mix: Mix | None = None,
        depth: int | None = None,
    ) -> tuple[Tensor, Tensor, list[Any]]:
        """States (batch, steps, width) of one chunk, its lengths in steps, what is carried on.

        With `depth`, those of that layer, from 1.
        """
        if self.pretrained is not None:
            return self.pretrained(ids, lengths), lengths, carried
        states = self._embedded(ids)
        if mix is not None:
            other, share = mix
            share = share[:, None, None].to(states.dtype)
            states = share * states + (1 - share) * states[other]
        states = self.dropout(states)
        if self.shorten is not None:
            states, lengths = self.shorten(states, lengths)
        after: list[Any] = []
        for index, layer in enumerate(self.layers[:depth]):
            states = self._same_dropped(self.dropout(states) if index else states)
            states, state = layer(states, lengths, carried[index])
            after.append(state)
        if self.norm is not None:
            states = self.norm(states)
        return self._same_dropped(states), lengths, after

    def _embedded(self, ids: Tensor) -> Tensor:
        if self.training and self.config.word_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.config.word_dropout
            ids = ids.masked_fill(dropped & (ids != PADDING), UNKNOWN)
        return self.embedding(ids)

    def _same_dropped(self, states: Tensor) -> Tensor:
        """Drop the same values at every step of a document."""
        share = self.config.state_dropout
        if not (self.training and share):
            return states
        mask = torch.rand(len(states), 1, states.shape[2], device=states.device) >= share
        return states * mask.to(states.dtype) / (1 - share)

    def _chunk(
        self, ids: Tensor, lengths: Tensor, remaining: Tensor, mix: Mix | None, carried: list[Any]
    ) -> tuple[dict[str, Tensor], list[Any]]:
        """What one chunk adds to the pooling; `remaining` counts from its start, unclamped."""
        states, steps, carried = self.states(ids, lengths, carried, mix)
        here = inside(states, steps)
        found = {"steps": steps}
        if self.penalised:
            plain = states.masked_fill(~here, 0)
            found["activation"] = plain.square().mean(2).sum()
            change = (plain[:, 1:] - plain[:, :-1]) * here[:, 1:]
            found["temporal"] = change.square().mean(2).sum()
        if "mean" in self.config.pooling:
            found["sum"] = _weighed(here, states)
        if "max" in self.config.pooling:
            found["max"] = states.masked_fill(~here, float("-inf")).amax(1)
        if "last" in self.config.pooling:
            found |= self._ends(states, steps, (remaining == lengths) & (lengths > 0))
        if self.attention is not None:
            weights = self.attention(states).float().masked_fill(~here, NOWHERE)
            top = weights.amax(1)
            shares = (weights - top[:, None]).exp()
            found |= {"top": top, "mass": shares.sum(1), "attended": _weighed(shares, states)}
        return found, [_detached(one) for one in carried]

    def _chunk_again(self, ids: Tensor, *given: Any) -> tuple[dict[str, Tensor], list[Any]]:
        """`_chunk`, of which nothing but the result is kept until the way back."""
        names: list[str] = []
        after: list[Any] = []

        def run(_: Tensor) -> tuple[Tensor, ...]:
            found, after[:] = self._chunk(ids, *given)
            names[:] = found
            return tuple(found.values())

        # Reentrant, for the other kind keeps a node for every step of a CPU's recurrence. It runs
        # backwards only if an argument wants a gradient, and looks there for the device.
        spark = torch.zeros((), device=ids.device, requires_grad=True)
        values = checkpoint(run, spark, use_reentrant=True)
        assert isinstance(values, tuple)
        return dict(zip(names, values, strict=True)), after

    def _ends(self, states: Tensor, steps: Tensor, ended: Tensor) -> dict[str, Tensor]:
        """The forward state where a document ends, and the backward one of its first chunk."""
        rows = torch.arange(len(states), device=states.device)
        last = states[rows, (steps - 1).clamp(min=0)][:, : self.forward_width]
        return {
            "last": last * ended[:, None].to(last.dtype),
            "first": states[:, 0, self.forward_width :],
        }

    def _pooled(self, way: str, found: dict[str, Tensor]) -> Tensor:
        if way == "mean":
            return found["sum"] / found["steps"][:, None].clamp(min=1).to(found["sum"].dtype)
        if way == "max":
            return found["max"]
        if way == "last":
            return torch.cat([found["last"], found["first"]], dim=1)
        return (found["attended"] / found["mass"]).to(found["attended"].dtype)


def _weighed(weights: Tensor, states: Tensor) -> Tensor:
    """Weights (batch, time, 1) by states (batch, time, width), added up: (batch, width).

    A product of matrices: their product, step by step, would be as large as the states.
    """
    return torch.bmm(weights.transpose(1, 2).to(states.dtype), states)[:, 0]


def _merged(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pooling over two stretches from the pooling over each."""
    added = ("steps", "sum", "activation", "temporal", "last")
    found = {name: one[name] + two[name] for name in added if name in one}
    if "max" in one:
        found["max"] = torch.maximum(one["max"], two["max"])
    if "first" in one:
        found["first"] = one["first"]
    if "top" in one:
        # A softmax over both: each sum is brought to the larger of the two greatest weights.
        found["top"] = torch.maximum(one["top"], two["top"])
        scales = [(part["top"] - found["top"]).exp() for part in (one, two)]
        for name in ("mass", "attended"):
            found[name] = one[name] * scales[0] + two[name] * scales[1]
    return found


def _detached(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(_detached(one) for one in state)
    return None if state is None else state.detach()


def grow_head(network: Network, known: list[str], wanted: list[str]) -> None:
    """Give the head the classes `wanted`; those of `known` keep their weights, others start small.

    Args: names of the head's classes in their order, and of the classes it shall have.
    """
    place = {name: index for index, name in enumerate(known)}
    old = network.head
    new = nn.Linear(old.in_features, len(wanted)).to(old.weight.device)
    with torch.no_grad():
        # A new class must not shout down the old ones before it has learned anything.
        new.weight.mul_(0.1)
        new.bias.fill_(float(old.bias.min()))
        for index, name in enumerate(wanted):
            if name in place:
                new.weight[index] = old.weight[place[name]]
                new.bias[index] = old.bias[place[name]]
    network.head = new
