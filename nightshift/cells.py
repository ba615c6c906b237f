"""The layers of the encoder: each reads a batch of padded documents and answers with states.

Every layer is called the same way and has its states' width in `width`:

    states, carried = layer(inputs, lengths, state)

inputs float (batch, time, width_in); lengths int64 (batch,), the steps of each document inside
this chunk, 0 for one that ended in a chunk before; state what the forward direction carried over
from the chunk before, None at the start. States are (batch, time, width) in reading order, [forward
| backward] where a layer has two directions, and mean nothing beyond a document's end. `carried` is
the forward direction's state after each document's last step in this chunk (a document of length 0
keeps its old one), None from the kinds that carry nothing. No state depends on padding, which may
hold any finite number, or on other documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipe import ModelConfig

State = tuple[Tensor, ...]
"""Each (batch, hidden): an LSTM's output and cell, the output alone of every other cell."""

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
STEPS = {nn.LSTM: torch.lstm, nn.GRU: torch.gru, nn.RNN: torch.rnn_tanh}

HOLD = 1000.0
"""What closes or opens a gate for good, and that float16 can still hold."""

DILATIONS = (1, 2, 4, 8)


def make_layer(config: ModelConfig, width_in: int) -> Recurrent | Transformer | Tdnn:
    """The layer that `config.encoder` names, not a pretrained one, over inputs of this width."""
    if config.encoder == "transformer":
        return Transformer(config, width_in)
    if config.encoder == "tdnn":
        return Tdnn(config, width_in)
    return Recurrent(config, width_in)


class Recurrent(nn.Module):
    """One recurrent layer in one or both directions.

    The backward direction reads each document reversed by its own length, within the chunk. In
    training a share of the recurrent weights is dropped, one mask per direction and call
    (DropConnect, Merity et al. 2018); a minGRU's and a minLSTM's only weights are meant as well.
    """

    def __init__(self, config: ModelConfig, width_in: int):
        super().__init__()
        self.forwards = make_cell(config, width_in)
        self.backwards = make_cell(config, width_in) if config.bidirectional else None
        self.weight_dropout = config.weight_dropout
        self.width = _width(config)

    def forward(
        self, inputs: Tensor, lengths: Tensor, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """States of both directions, and the forward one's own to carry on."""
        ahead, carried = self._read(self.forwards, inputs, lengths, state)
        if self.backwards is None:
            return ahead, carried
        order = reversed_steps(lengths, inputs.shape[1])
        behind, _ = self._read(self.backwards, _reorder(inputs, order), lengths, None)
        return torch.cat([ahead, _reorder(behind, order)], dim=2), carried

    def _read(
        self, cell: nn.RNNBase | MinCell, inputs: Tensor, lengths: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Run one direction; its states and the state after each document's last step.

        Only the forward direction's state is carried on: of a backward LSTM the cell is not each
        document's own.
        """
        weights = _dropped(cell, self.weight_dropout if self.training else 0.0)
        if state is None:
            zeros = weights[0].new_zeros(len(inputs), cell.hidden_size)
            state = (zeros, zeros) if isinstance(cell, nn.LSTM) else (zeros,)
        if isinstance(cell, MinCell):
            states = cell(inputs, state[0], *weights)
            return states, (_last(states, lengths, state[0]),)
        if isinstance(cell, nn.LSTM) and cell is self.forwards:
            inputs, weights = _held(inputs, lengths, weights)
        states, *memory = _run(cell, inputs, state, weights)
        return states, (_last(states, lengths, state[0]), *memory)


class MinCell(nn.Module):
    """minGRU or minLSTM (Feng et al. 2024): gates and candidates see the input alone.

    minGRU: h_t = (1 - z) h_(t-1) + z c. minLSTM: h_t = f' h_(t-1) + i' c, where f' and i' are the
    forget and input gates divided by their sum. The candidate c stays linear: the paper's g keeps
    states positive so that the scan may be taken in logarithms, which the one here does not need,
    and states of both signs say more to the poolings.
    """

    def __init__(self, kind: str, inputs: int, hidden: int):
        super().__init__()
        blocks = {"mingru": 2, "minlstm": 3}[kind]
        self.hidden_size = hidden
        self.weight = nn.Parameter(torch.empty(blocks * hidden, inputs))
        self.bias = nn.Parameter(torch.zeros(blocks * hidden))

    def forward(self, inputs: Tensor, start: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(batch, time, inputs) and the state before, (batch, hidden) -> (batch, time, hidden)."""
        # What lasts for many steps is lost in bfloat16, 8 bits: autocast ends at the product.
        blocks = F.linear(inputs, weight, bias).to(weight.dtype)
        *gates, candidate = blocks.split(self.hidden_size, dim=2)
        if len(gates) == 1:
            keep = torch.sigmoid(-gates[0])
        else:
            # f / (f + i), without dividing 0 by 0 where both gates are shut.
            keep = torch.sigmoid(F.softplus(-gates[1]) - F.softplus(-gates[0]))
        scan = scan_at_once if inputs.is_cuda else scan_in_turn
        return scan(keep, (1 - keep) * candidate, start.to(weight.dtype))


def scan_in_turn(keep: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """h_t = keep_t h_(t-1) + added_t, step by step: the least work, best on a CPU.

    keep and added (batch, time, hidden), start (batch, hidden) -> h (batch, time, hidden).
    """
    states = [start]
    for kept, new in zip(keep.unbind(1), added.unbind(1), strict=True):
        states.append(torch.addcmul(new, kept, states[-1]))
    return torch.stack(states[1:], dim=1)


def scan_at_once(keep: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """The same in log2(time) steps over whole tensors (Hillis & Steele 1986), best on a GPU."""
    keep, states = F.pad(keep, (0, 0, 1, 0)), torch.cat([start[:, None], added], dim=1)
    reach = 1
    while reach < states.shape[1]:
        # Every step now holds the sum over `reach` steps, and takes in that of the ones before.
        more = torch.addcmul(states[:, reach:], keep[:, reach:], states[:, :-reach])
        states = torch.cat([states[:, :reach], more], dim=1)
        keep = torch.cat([keep[:, :reach], keep[:, reach:] * keep[:, :-reach]], dim=1)
        reach *= 2
    return states[:, 1:]


class Transformer(nn.Module):
    """One encoder layer (Vaswani et al. 2017), normed before its parts (Xiong et al. 2020).

    As wide as a recurrent layer of both directions would be. Positions are added to what attention
    reads, in every layer (Dehghani et al. 2019): in the sum that is passed on they would drown
    embeddings that start small. With one direction a step attends to the steps before it.

    Raises: ConfigError if `heads` does not divide the width.
    """

    def __init__(self, config: ModelConfig, width_in: int):
        super().__init__()
        self.width = width = _width(config)
        self.heads, self.causal = config.heads, not config.bidirectional
        self.enter = nn.Linear(width_in, width) if width_in != width else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        # Without biases: that of the keys would cancel in the softmax.
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, inputs: Tensor, lengths: Tensor, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """States; nothing is carried."""
        states = self.enter(inputs)
        states = states + self._attend(self.norms[0](states), lengths)
        return states + self.feed(self.norms[1](states)), None

    def _attend(self, normed: Tensor, lengths: Tensor) -> Tensor:
        batch, time, width = normed.shape
        normed = normed + sinusoids(time, width, normed.device)
        queries, keys, values = (
            part.view(batch, time, self.heads, -1).transpose(1, 2)
            for part in self.queries_keys_values(normed).chunk(3, dim=2)
        )
        # The steps before one are never padding. An empty document attends to its first step: not
        # every kernel survives a softmax over nothing.
        seen = None if self.causal else inside(time, lengths.clamp(min=1)).view(batch, 1, 1, time)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, is_causal=self.causal
        )
        return self.attended(mixed.transpose(1, 2).reshape(batch, time, width))


def sinusoids(time: int, width: int, device: torch.device) -> Tensor:
    """Positions (time, width): sine, cosine and so on, of wavelengths 2 pi to 10,000 x 2 pi."""
    exponents = torch.arange(0, width, 2, device=device) / width
    angles = torch.arange(time, device=device)[:, None] / 10_000**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


class Tdnn(nn.Module):
    """Time-delay network (Waibel et al. 1989): a stack of dilated convolutions over three steps.

    Each adds to what it reads (He et al. 2016) and is normed before; with dilations 1, 2, 4 and 8 a
    state sees 15 steps to both sides, with one direction 30 steps back.
    """

    def __init__(self, config: ModelConfig, width_in: int):
        super().__init__()
        self.width = width = _width(config)
        self.causal = not config.bidirectional
        self.enter = nn.Linear(width_in, width) if width_in != width else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in DILATIONS)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, kernel_size=3, dilation=dilation) for dilation in DILATIONS
        )

    def forward(
        self, inputs: Tensor, lengths: Tensor, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """States; nothing is carried."""
        outside, states = ~inside(inputs, lengths), self.enter(inputs)
        for dilation, norm, convolution in zip(
            DILATIONS, self.norms, self.convolutions, strict=True
        ):
            around = (2 * dilation, 0) if self.causal else (dilation, dilation)
            # Masked anew every time: norms and biases wake the padding.
            normed = norm(states).masked_fill(outside, 0).transpose(1, 2)
            states = states + F.gelu(convolution(F.pad(normed, around))).transpose(1, 2)
        return states, None


class Shorten(nn.Module):
    """Fold `stride` steps into one: a convolution over three tokens, then the largest of each."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, width), (batch,) -> (batch, ceil(time / stride), width), new lengths."""
        within = inside(states, lengths)
        mixed = self.convolution(states.masked_fill(~within, 0).transpose(1, 2)).transpose(1, 2)
        mixed = mixed.masked_fill(~within, float("-inf"))
        short = -(-states.shape[1] // self.stride)
        mixed = F.pad(mixed, (0, 0, 0, short * self.stride - states.shape[1]), value=float("-inf"))
        folded = mixed.reshape(len(mixed), short, self.stride, -1).amax(2)
        lengths = -(-lengths // self.stride)
        # Steps wholly outside a document are minus infinity by now; the recurrence must not see it.
        return folded.masked_fill(~inside(folded, lengths), 0).relu(), lengths


def inside(states: Tensor | int, lengths: Tensor) -> Tensor:
    """True where a step belongs to its document.

    Args: states (batch, time, ...) or time itself; lengths int64 (batch,).
    Returns: bool (batch, time, 1).
    """
    time = states if isinstance(states, int) else states.shape[1]
    return (torch.arange(time, device=lengths.device)[None, :] < lengths[:, None])[:, :, None]


def reversed_steps(lengths: Tensor, time: int) -> Tensor:
    """For each document, its own steps backwards and then its padding where it was.

    Lengths int64 (batch,) -> positions int64 (batch, time); its own inverse.
    """
    steps = torch.arange(time, device=lengths.device)[None, :]
    return torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)


class _Reorder(torch.autograd.Function):
    """Steps of each document in another order that is its own inverse: the gradient takes the same
    way back, where that of torch's own indexing is added up place by place."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, order: Tensor) -> Tensor:
        """(batch, time, width), int64 (batch, time)."""
        batch, time, width = states.shape
        rows = torch.arange(batch, device=order.device)[:, None] * time + order
        ctx.save_for_backward(order)
        return states.reshape(-1, width).index_select(0, rows.flatten()).view(batch, time, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The same order again."""
        return _Reorder.apply(gradients[0], *ctx.saved_tensors), None  # pyright: ignore


def _reorder(states: Tensor, order: Tensor) -> Tensor:
    found = _Reorder.apply(states, order)
    assert isinstance(found, Tensor)
    return found


def _last(states: Tensor, lengths: Tensor, before: Tensor) -> Tensor:
    """Each document's state at its last step, or the one before if it has none, (batch, hidden)."""
    last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
    return torch.where(lengths[:, None] > 0, last, before)


def _width(config: ModelConfig) -> int:
    return config.hidden * (2 if config.bidirectional else 1)


def _dropped(cell: nn.RNNBase | MinCell, share: float) -> list[Tensor]:
    """The cell's parameters in their order, its recurrent weights with a share of them at zero."""
    meant = "weight" if isinstance(cell, MinCell) else "weight_hh"
    return [
        F.dropout(value, share) if share and name.startswith(meant) else value
        for name, value in cell.named_parameters()
    ]


def _held(inputs: Tensor, lengths: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Give an LSTM one more input, 1 in padding, that shuts its input and opens its forget gate.

    The cell then comes through padding unchanged, so that the one after the last step is each
    document's own; torch hands out no other, and its packed sequences are up to 5 times slower.
    """
    # Asking a GPU would stop it.
    if not lengths.is_cuda and bool((lengths == inputs.shape[1]).all()):
        return inputs, weights
    outside = (~inside(inputs, lengths)).to(inputs.dtype)
    hidden = weights[1].shape[1]
    hold = weights[0].new_zeros(4 * hidden, 1)  # input, forget, cell, output
    hold[:hidden], hold[hidden : 2 * hidden] = -HOLD, HOLD
    held = torch.cat([weights[0], hold], dim=1)
    return torch.cat([inputs, outside], dim=2), [held, *weights[1:]]


def _run(
    cell: nn.RNNBase, inputs: Tensor, state: State, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """States and, of an LSTM, the last cell, computed with other weights than the cell's own."""
    # Not functional_call: on a GPU it has the module lay its parameters out anew at every call.
    if inputs.is_cuda:
        # cuDNN wants its weights in one piece.
        sizes = [weight.numel() for weight in weights]
        pieces = torch.cat([weight.flatten() for weight in weights]).split(sizes)
        weights = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
    before = tuple(one[None].to(inputs.dtype) for one in state)
    start = before if isinstance(cell, nn.LSTM) else before[0]
    states, _, *memory = STEPS[type(cell)](
        inputs, start, weights, True, 1, 0.0, cell.training, False, True
    )
    return states, *(one[0] for one in memory)


def make_cell(config: ModelConfig, inputs: int) -> nn.RNNBase | MinCell:
    """A cell; orthogonal recurrent weights (Saxe et al. 2014), forget bias 1 (Gers et al. 2000)."""
    kind, hidden = config.encoder, config.hidden
    cell = (
        CELLS[kind](inputs, hidden, batch_first=True)
        if kind in CELLS
        else MinCell(kind, inputs, hidden)
    )
    for name, weight in cell.named_parameters():
        for block in weight.data.split(hidden):
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(block)
            elif name.startswith("weight"):
                nn.init.xavier_uniform_(block)
            else:
                nn.init.zeros_(block)
    bias = cell.bias.data if isinstance(cell, MinCell) else cell.bias_ih_l0.data
    blocks = bias.split(hidden)
    hold = torch.ones(hidden)
    if config.memory is not None:
        hold = torch.empty(hidden).uniform_(1, max(2, config.memory - 1)).log()
    if kind in ("lstm", "minlstm"):
        write, keep = (blocks[0], blocks[1]) if kind == "lstm" else (blocks[1], blocks[0])
        keep.copy_(hold)
        if config.memory is not None:
            write.copy_(-hold)
    elif config.memory is not None and kind != "rnn":
        # A GRU's gate keeps (reset, update, new); a minGRU's writes.
        (blocks[1] if kind == "gru" else blocks[0]).copy_(hold if kind == "gru" else -hold)
    return cell
