"""The network: token ids -> states -> one vector per document -> class scores.

Padding never reaches a state: the forward direction reads padding only after a document's end,
the backward direction reads each document reversed by its own length, pooling is masked. A
document therefore gets the same answer whatever shares its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipe import ModelConfig
from .tokenizer import PADDING, UNKNOWN

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Network(nn.Module):
    """Embedding, optional strided convolution, recurrent layers, pooling, projection, head.

    Args: a resolved config (no `auto`), entries of the vocabulary, number of classes.
    """

    def __init__(self, config: ModelConfig, vocabulary: int, classes: int):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.embedding, padding_idx=PADDING)
        self.shorten = Shorten(config.embedding, int(config.stride)) if config.stride != 1 else None
        directions = 2 if config.bidirectional else 1
        width = directions * config.hidden
        self.layers = nn.ModuleList(
            Recurrent(config.encoder, config.embedding if layer == 0 else width, config.hidden,
                      config.bidirectional)
            for layer in range(config.layers)
        )  # fmt: skip
        self.attention: nn.Module | None = (
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
            if "attention" in config.pooling
            else None
        )
        self.projection = nn.Linear(width * len(config.pooling), config.vector)
        self.head = nn.Linear(config.vector, classes)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Classify padded documents.

        Args: ids int64 (batch, time), padded on the right; lengths int64 (batch,), at least 1.
        Returns: scores (batch, classes) before softmax, document vectors (batch, vector).
        """
        if self.training and self.config.word_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.config.word_dropout
            ids = ids.masked_fill(dropped & (ids != PADDING), UNKNOWN)
        states = self.dropout(self.embedding(ids))
        if self.shorten is not None:
            states, lengths = self.shorten(states, lengths)
        for index, layer in enumerate(self.layers):
            states = layer(self.dropout(states) if index else states, lengths)
        vectors = self.projection(self.dropout(self._pool(states, lengths)))
        return self.head(self.dropout(F.gelu(vectors))), vectors

    def _pool(self, states: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time, width) -> (batch, width x poolings), over the steps inside a document."""
        inside, attention = _inside(states, lengths), self.attention
        pooled: list[Tensor] = []
        for way in self.config.pooling:
            if way == "mean":
                total = states.masked_fill(~inside, 0).sum(1)
                pooled.append(total / lengths[:, None].to(states.dtype))
            elif way == "max":
                pooled.append(states.masked_fill(~inside, float("-inf")).amax(1))
            elif way == "last":
                pooled.append(self._last(states, lengths))
            elif attention is not None:
                scores = attention(states).masked_fill(~inside, float("-inf"))
                pooled.append((scores.softmax(1) * states).sum(1))
        return torch.cat(pooled, dim=1)

    def _last(self, states: Tensor, lengths: Tensor) -> Tensor:
        """The state each direction ends in: at the last step forwards, at the first backwards."""
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        if not self.config.bidirectional:
            return last
        hidden = self.config.hidden
        return torch.cat([last[:, :hidden], states[:, 0, hidden:]], dim=1)


class Recurrent(nn.Module):
    """One recurrent layer in one or both directions; states come back in reading order."""

    def __init__(self, cell: str, inputs: int, hidden: int, bidirectional: bool):
        super().__init__()
        self.forwards = _cell(cell, inputs, hidden)
        self.backwards = _cell(cell, inputs, hidden) if bidirectional else None

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time, inputs) -> (batch, time, hidden x directions)."""
        ahead = self.forwards(inputs)[0]
        if self.backwards is None:
            return ahead
        order = reversed_steps(lengths, inputs.shape[1])
        behind = self.backwards(_reorder(inputs, order))[0]
        return torch.cat([ahead, _reorder(behind, order)], dim=2)


class Shorten(nn.Module):
    """Fold `stride` steps into one: a convolution over three tokens, then the largest of each."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, width), (batch,) -> (batch, ceil(time / stride), width), new lengths."""
        inside = _inside(states, lengths)
        mixed = self.convolution(states.masked_fill(~inside, 0).transpose(1, 2)).transpose(1, 2)
        mixed = mixed.masked_fill(~inside, float("-inf"))
        short = -(-states.shape[1] // self.stride)
        mixed = F.pad(mixed, (0, 0, 0, short * self.stride - states.shape[1]), value=float("-inf"))
        folded = mixed.reshape(len(mixed), short, self.stride, -1).amax(2)
        lengths = -(-lengths // self.stride)
        # Steps wholly outside a document are minus infinity by now; the recurrence must not see it.
        return folded.masked_fill(~_inside(folded, lengths), 0).relu(), lengths


def reversed_steps(lengths: Tensor, time: int) -> Tensor:
    """For each document, its own steps backwards and then its padding where it was.

    Lengths int64 (batch,) -> positions int64 (batch, time); its own inverse.
    """
    steps = torch.arange(time, device=lengths.device)[None, :]
    return torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)


def _reorder(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[:, :, None].expand_as(states))


def _inside(states: Tensor, lengths: Tensor) -> Tensor:
    """True where a step belongs to its document, (batch, time, 1)."""
    steps = torch.arange(states.shape[1], device=lengths.device)
    return (steps[None, :] < lengths[:, None])[:, :, None]


def _cell(kind: str, inputs: int, hidden: int) -> nn.RNNBase:
    """A cell; orthogonal recurrent weights (Saxe et al. 2014), forget bias 1 (Gers et al. 2000)."""
    cell = CELLS[kind](inputs, hidden, batch_first=True)
    for name, weight in cell.named_parameters():
        if name.startswith("weight_hh"):
            for block in weight.data.split(hidden):
                nn.init.orthogonal_(block)
        elif name.startswith("weight_ih"):
            for block in weight.data.split(hidden):
                nn.init.xavier_uniform_(block)
        else:
            nn.init.zeros_(weight.data)
            if kind == "lstm" and name.startswith("bias_ih"):
                weight.data[hidden : 2 * hidden] = 1.0  # input, forget, cell, output
    return cell
