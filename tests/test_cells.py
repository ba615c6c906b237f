"""The encoder's layers: their papers' equations in numpy, and padding that reaches nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from nightshift.cells import (
    Recurrent,
    Shorten,
    Tdnn,
    Transformer,
    inside,
    make_cell,
    make_layer,
    reversed_steps,
    scan_at_once,
    scan_in_turn,
    sinusoids,
)
from nightshift.recipe import ModelConfig

TORCH = ["lstm", "gru", "rnn"]
CARRYING = [*TORCH, "mingru", "minlstm"]
KINDS = [*CARRYING, "transformer", "tdnn"]
SCANS = [scan_in_turn, scan_at_once]
LENGTHS = [9, 4, 1, 20, 7]

every = pytest.mark.parametrize("kind", KINDS)
carrying = pytest.mark.parametrize("kind", CARRYING)
directions = pytest.mark.parametrize("both", [True, False], ids=["both", "one"])


def new_layer(
    kind: str, both: bool = False, width_in: int = 3, hidden: int = 4, **options: Any
) -> Any:
    """A layer in evaluation, every weight and bias shaken so that one left out would be seen."""
    # Not validated, for that hidden may be 1 where numbers are worked by hand.
    config = ModelConfig.model_construct(
        encoder=kind, bidirectional=both, hidden=hidden, **{"heads": 2, **options}
    )
    torch.manual_seed(5)
    layer = make_layer(config, width_in)
    for value in layer.parameters():
        value.data += 0.3 * torch.randn_like(value)
    return layer.eval()


def documents(lengths: list[int] = LENGTHS, width: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(length, width, generator=generator) for length in lengths]


def batch(texts: list[Tensor], extra: int = 0, junk: float = 0.0) -> tuple[Tensor, Tensor]:
    lengths = [len(text) for text in texts]
    padded = torch.full((len(texts), max(lengths) + extra, texts[0].shape[1]), junk)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    return padded, torch.tensor(lengths)


@torch.no_grad()
def read(layer: Any, texts: list[Tensor], extra: int = 0, junk: float = 0.0) -> list[Tensor]:
    """Each document's own states."""
    inputs, lengths = batch(texts, extra, junk)
    states, _ = layer(inputs, lengths)
    return [row[:length] for row, length in zip(states, lengths.tolist(), strict=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# --- equations --------------------------------------------------------------------------------


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def lstm(x: np.ndarray, w: Any, u: Any, b: Any, d: Any) -> np.ndarray:
    h = c = np.zeros(u.shape[1])
    states = []
    for step in x:
        i, f, g, o = np.split(w @ step + u @ h + b + d, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def gru(x: np.ndarray, w: Any, u: Any, b: Any, d: Any) -> np.ndarray:
    h = np.zeros(u.shape[1])
    states = []
    for step in x:
        (wr, wz, wn), (ur, uz, un) = np.split(w @ step + b, 3), np.split(u @ h + d, 3)
        z, n = sigmoid(wz + uz), np.tanh(wn + sigmoid(wr + ur) * un)
        h = (1 - z) * n + z * h
        states.append(h)
    return np.array(states)


def rnn(x: np.ndarray, w: Any, u: Any, b: Any, d: Any) -> np.ndarray:
    h = np.zeros(u.shape[1])
    states = []
    for step in x:
        h = np.tanh(w @ step + u @ h + b + d)
        states.append(h)
    return np.array(states)


def mingru(x: np.ndarray, w: Any, b: Any) -> np.ndarray:
    h = np.zeros(len(b) // 2)
    states = []
    for step in x:
        z, c = np.split(w @ step + b, 2)
        h = (1 - sigmoid(z)) * h + sigmoid(z) * c
        states.append(h)
    return np.array(states)


def minlstm(x: np.ndarray, w: Any, b: Any) -> np.ndarray:
    h = np.zeros(len(b) // 3)
    states = []
    for step in x:
        f, i, c = np.split(w @ step + b, 3)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * c
        states.append(h)
    return np.array(states)


EQUATIONS: dict[str, Callable[..., np.ndarray]] = {
    "lstm": lstm, "gru": gru, "rnn": rnn, "mingru": mingru, "minlstm": minlstm,
}  # fmt: skip


def by_equations(kind: str, cell: nn.Module, text: Tensor) -> Tensor:
    weights = [value.detach().double().numpy() for value in cell.parameters()]
    return torch.from_numpy(EQUATIONS[kind](text.double().numpy(), *weights)).float()


@carrying
def test_a_cell_computes_the_equations_of_its_paper(kind: str) -> None:
    layer, texts = new_layer(kind), documents()
    assert_same(read(layer, texts), [by_equations(kind, layer.forwards, text) for text in texts])


@carrying
def test_backwards_reads_each_document_from_its_own_end(kind: str) -> None:
    layer, texts = new_layer(kind, both=True), documents()
    expected = [
        torch.cat(
            [
                by_equations(kind, layer.forwards, text),
                by_equations(kind, layer.backwards, text.flip(0)).flip(0),
            ],
            dim=1,
        )
        for text in texts
    ]
    assert_same(read(layer, texts), expected)


@pytest.mark.parametrize("kind", TORCH)
def test_a_cell_equals_that_of_torch_in_states_and_in_what_it_carries(kind: str) -> None:
    layer, texts = new_layer(kind), documents()
    _, carried = layer(*batch(texts))
    for row, text in enumerate(texts):
        states, last = layer.forwards(text[None])
        assert_same(read(layer, [text]), [states[0]])
        last = last if kind == "lstm" else (last,)
        assert_same([one[row] for one in carried], [one[0, 0] for one in last])


def set_all(cell: nn.Module, **values: Any) -> None:
    for name, weight in cell.named_parameters():
        given = torch.tensor(values.get(name.removesuffix("_l0"), 0.0))
        weight.data = (given[:, None] if given.dim() else given).expand_as(weight).clone()


HAND: dict[str, tuple[dict[str, Any], list[float], list[float]]] = {
    # c1 = s(1) tanh(1) = 0.556770, h1 = s(1) tanh(c1) = 0.369606. Then all gates are 0.5:
    # c2 = 0.5 c1 = 0.278385, h2 = 0.5 tanh(c2) = 0.135705.
    "lstm": ({"weight_ih": 1.0}, [1, 0], [0.369606, 0.135705]),
    # z = s(1) = 0.731059, n = tanh(1) = 0.761594: h1 = (1 - z) n = 0.204824. Then
    # r = z = s(0.204824) = 0.551028, n = tanh(r h1) = 0.112387: h2 = 0.448972 n + z h1 = 0.163322.
    "gru": ({"weight_ih": 1.0, "weight_hh": 1.0}, [1, 0], [0.204824, 0.163322]),
    # tanh(1) = 0.761594, tanh(1 + 0.380797) = 0.881130.
    "rnn": ({"weight_ih": 1.0, "weight_hh": 0.5}, [1, 1], [0.761594, 0.881130]),
    # z = s(1) = 0.731059, c = 2: h1 = 1.462117. z = s(-1) = 0.268941, c = -2:
    # h2 = 0.731059 h1 - 0.268941 x 2 = 1.068893 - 0.537883 = 0.531011.
    "mingru": ({"weight": [1.0, 2.0]}, [1, -1], [1.462117, 0.531011]),
    # f = s(1) = 0.731059, i = 0.5: i' = 0.5 / 1.231059 = 0.406155, h1 = 2 i' = 0.812309. Then
    # f = s(-1) = 0.268941: f' = 0.268941 / 0.768941 = 0.349755, h2 = f' h1 - 2 (1 - f')
    # = -1.016380.
    "minlstm": ({"weight": [1.0, 0.0, 2.0]}, [1, -1], [0.812309, -1.016380]),
}


@carrying
def test_two_steps_of_a_cell_by_hand(kind: str) -> None:
    weights, steps, expected = HAND[kind]
    layer = new_layer(kind, width_in=1, hidden=1)
    set_all(layer.forwards, **weights)
    found = read(layer, [torch.tensor(steps).float()[:, None]])[0]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("shut", [1e2, 1e4])
def test_a_minlstm_whose_gates_are_both_shut_halves_and_is_finite(shut: float) -> None:
    layer = new_layer("minlstm", width_in=1, hidden=1)
    set_all(layer.forwards, weight=[-shut, -shut, 2.0])
    inputs = torch.ones(1, 2, 1, requires_grad=True)
    states, _ = layer(inputs, torch.tensor([2]))
    # Equal gates weigh equally, however small: 0 + 2 / 2 = 1, then 1 / 2 + 2 / 2 = 1.5.
    assert states[0, :, 0].tolist() == pytest.approx([1, 1.5])
    states.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()


@pytest.mark.parametrize("kind", TORCH)
def test_recurrent_weights_start_orthogonal(kind: str) -> None:
    cell: Any = make_layer(ModelConfig(encoder=kind, hidden=4), 5).forwards
    for block in cell.weight_hh_l0.split(4):
        torch.testing.assert_close(block @ block.T, torch.eye(4), atol=1e-5, rtol=0)


def test_an_lstm_and_a_minlstm_start_by_remembering() -> None:
    cell: Any = make_layer(ModelConfig(encoder="lstm", hidden=4), 5).forwards
    # input, forget, cell, output
    assert (cell.bias_ih_l0 + cell.bias_hh_l0).tolist() == [0] * 4 + [1] * 4 + [0] * 8
    cell = make_layer(ModelConfig(encoder="minlstm", hidden=4), 5).forwards
    assert cell.bias.tolist() == [1] * 4 + [0] * 8  # forget, input, candidate


# --- the scan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_by_hand(scan: Callable[..., Tensor]) -> None:
    keep = torch.tensor([0.5, 0.25, 0.0, 1.0, 2.0])
    added = torch.tensor([1.0, 2.0, 5.0, 0.0, -3.0])
    found = scan(keep[None, :, None], added[None, :, None], torch.tensor([[4.0]]))
    # 4 / 2 + 1 = 3; 3 / 4 + 2 = 2.75; forgotten, 5; kept, 5; 2 x 5 - 3 = 7.
    assert found[0, :, 0].tolist() == [3, 2.75, 5, 5, 7]


@pytest.mark.parametrize("time", [1, 2, 3, 8, 100])
def test_both_scans_agree_in_states_and_in_gradients(time: int) -> None:
    torch.manual_seed(0)
    given = (torch.rand(3, time, 4), torch.randn(3, time, 4), torch.randn(3, 4))
    weights = torch.randn(3, time, 4)
    results = []
    for scan in SCANS:
        own = [value.clone().requires_grad_() for value in given]
        states = scan(*own)
        (states * weights).sum().backward()
        results.append([states.detach(), *(value.grad for value in own)])
    assert_same(results[0], results[1])


# --- transformer and tdnn ---------------------------------------------------------------------


def test_positions_by_hand() -> None:
    # Wavelengths 2 pi and 100 x 2 pi: sin 0, cos 0; then sin 1, cos 1, sin 0.01, cos 0.01.
    found = sinusoids(2, 4, torch.device("cpu"))
    assert found[0].tolist() == [0, 1, 0, 1]
    assert found[1].tolist() == pytest.approx([0.841471, 0.540302, 0.01, 0.99995], abs=1e-6)
    # An odd width ends in a sine, here of 10,000 ** (-2 / 3) = 0.00215443.
    odd = sinusoids(2, 3, torch.device("cpu"))[1].tolist()
    assert odd == pytest.approx([0.841471, 0.540302, 0.002154], abs=1e-6)


def arrays(layer: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in layer.named_parameters()}


def linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def normed(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def transformer_by_equations(layer: Transformer, text: Tensor) -> Tensor:
    w, time = arrays(layer), len(text)
    x = linear(w, "enter", text.double().numpy())
    read = normed(w, "norms.0", x) + sinusoids(time, layer.width, text.device).numpy()
    q, k, v = np.split(read @ w["queries_keys_values.weight"].T, 3, axis=1)
    mixed = []
    for head in np.split(np.arange(layer.width), layer.heads):
        scores = q[:, head] @ k[:, head].T / math.sqrt(len(head))
        if layer.causal:
            scores[np.triu_indices(time, 1)] = -np.inf
        shares = np.exp(scores - scores.max(1, keepdims=True))
        mixed.append(shares / shares.sum(1, keepdims=True) @ v[:, head])
    x = x + linear(w, "attended", np.concatenate(mixed, axis=1))
    x = x + linear(w, "feed.2", gelu(linear(w, "feed.0", normed(w, "norms.1", x))))
    return torch.from_numpy(x).float()


def tdnn_by_equations(layer: Tdnn, text: Tensor) -> Tensor:
    w, time = arrays(layer), len(text)
    x = linear(w, "enter", text.double().numpy())
    for index, dilation in enumerate([1, 2, 4, 8]):
        read, kernel = normed(w, f"norms.{index}", x), w[f"convolutions.{index}.weight"]
        mixed = np.tile(w[f"convolutions.{index}.bias"], (time, 1))
        for step in range(time):
            for tap, where in enumerate([-1, 0, 1]):
                seen = step + dilation * (where - 1 if layer.causal else where)
                if 0 <= seen < time:
                    mixed[step] += kernel[:, :, tap] @ read[seen]
        x = x + gelu(mixed)
    return torch.from_numpy(x).float()


@directions
def test_a_transformer_layer_computes_its_equations(both: bool) -> None:
    layer, texts = new_layer("transformer", both), documents()
    assert_same(read(layer, texts), [transformer_by_equations(layer, text) for text in texts])


@directions
def test_a_tdnn_layer_computes_its_equations(both: bool) -> None:
    layer, texts = new_layer("tdnn", both), documents()
    assert_same(read(layer, texts), [tdnn_by_equations(layer, text) for text in texts])


def reached(layer: nn.Module, step: int, time: int = 60) -> list[int]:
    """The steps whose state changes with that step's input."""
    text = documents([time])[0]
    other = text.clone()
    other[step] += 1
    changed = (read(layer, [text])[0] - read(layer, [other])[0]).abs().amax(1) > 0
    return changed.nonzero()[:, 0].tolist()


def test_a_tdnn_sees_15_steps_to_both_sides_or_30_back() -> None:
    assert reached(new_layer("tdnn", both=True), 25) == list(range(10, 41))
    assert reached(new_layer("tdnn", both=False), 25) == list(range(25, 56))


@every
def test_one_direction_reads_nothing_ahead_and_two_directions_do(kind: str) -> None:
    assert min(reached(new_layer(kind, both=False), 9, time=12)) == 9
    assert min(reached(new_layer(kind, both=True), 9, time=12)) == 0


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do() -> None:
    said = (
        r"heads: 4 do not divide a transformer layer of width 10 \(hidden 5 x 2 directions\)\. "
        r"Set heads to one of 1, 2, 5, 10, or choose another hidden\."
    )
    with pytest.raises(ValidationError, match=said):
        ModelConfig(encoder="transformer", hidden=5, heads=4)


# --- padding, batches, chunks -----------------------------------------------------------------


@every
@directions
def test_a_document_has_the_same_states_alone_padded_and_in_any_company(
    kind: str, both: bool
) -> None:
    layer, texts = new_layer(kind, both), documents()
    alone = [read(layer, [text])[0] for text in texts]
    assert alone[0].shape == (9, layer.width) == (9, 8 if both else 4)
    assert_same([read(layer, [text], extra=30)[0] for text in texts], alone)
    assert_same(read(layer, texts, extra=3, junk=50.0), alone)
    assert_same(read(layer, texts[::-1])[::-1], alone)


@every
@directions
def test_gradients_reach_every_parameter_and_no_padding(kind: str, both: bool) -> None:
    layer, (inputs, lengths) = new_layer(kind, both).train(), batch(documents(), extra=2)
    inputs.requires_grad_()
    states, _ = layer(inputs, lengths)
    within = inside(inputs, lengths)
    (states * torch.randn_like(states) * within).sum().backward()
    for name, value in layer.named_parameters():
        assert value.grad.isfinite().all(), name
        assert (value.grad.abs() > 1e-4).float().mean() > 0.5, name
    assert inputs.grad is not None
    assert not inputs.grad.masked_fill(within, 0).any()
    assert inputs.grad.masked_select(within).all()


CUTS = {
    "at one step, some ended before it": [5, 4, 1, 5, 5],
    "each where it will, one not begun": [3, 4, 0, 19, 1],
}


@carrying
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_two_chunks_with_the_state_carried_on_read_as_the_whole(kind: str, cut: list[int]) -> None:
    layer, texts = new_layer(kind), documents()
    whole, carried_whole = layer(*batch(texts))
    heads = [text[:at] for text, at in zip(texts, cut, strict=True)]
    tails = [text[at:] for text, at in zip(texts, cut, strict=True)]
    first, state = layer(*batch(heads))
    second, carried = layer(*batch(tails, extra=2, junk=50.0), state)
    for row, (at, text) in enumerate(zip(cut, texts, strict=True)):
        found = torch.cat([first[row, :at], second[row, : len(text) - at]])
        assert_same([found], [whole[row, : len(text)]])
    assert_same(list(carried), list(carried_whole))


@carrying
def test_the_gradient_goes_through_a_carried_state(kind: str) -> None:
    layer, (inputs, lengths) = new_layer(kind), batch(documents([6, 6]))
    gradients = []
    for chunks in ([6], [4, 2]):
        own, state, states = inputs.clone().requires_grad_(), None, []
        for chunk, length in zip(own.split(chunks, dim=1), chunks, strict=True):
            one, state = layer(chunk, torch.full_like(lengths, length), state)
            states.append(one)
        torch.cat(states, dim=1).square().sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@carrying
def test_the_backward_direction_starts_anew_in_every_chunk(kind: str) -> None:
    layer, texts = new_layer(kind, both=True), documents([6])
    _, state = layer(*batch(texts))
    again, _ = layer(*batch(texts), state)
    fresh = read(layer, texts)[0]
    assert_same([again[0, :, 4:]], [fresh[:, 4:]])
    assert (again[0, :, :4] - fresh[:, :4]).abs().max() > 1e-3


@every
@directions
@pytest.mark.parametrize("lengths", [[0, 3], [0, 0]], ids=["one empty", "all empty"])
def test_an_empty_document_is_finite_and_keeps_its_state(
    kind: str, both: bool, lengths: list[int]
) -> None:
    layer, inputs = new_layer(kind, both), torch.randn(2, 3, 3, requires_grad=True)
    before = tuple(torch.rand(2, 4) for _ in range(2 if kind == "lstm" else 1))
    carried_in = before if kind in CARRYING else None
    states, carried = layer(inputs, torch.tensor(lengths), carried_in)
    states.sum().backward()
    assert states.isfinite().all()
    assert all(value.grad.isfinite().all() for value in [inputs, *layer.parameters()])
    if kind in CARRYING:
        assert_same([one[0] for one in carried], [one[0] for one in before])
    else:
        assert carried is None


@carrying
def test_an_empty_document_without_a_state_carries_zeros(kind: str) -> None:
    _, carried = new_layer(kind)(torch.ones(1, 2, 3), torch.tensor([0]))
    assert [one.tolist() for one in carried] == [[[0.0] * 4]] * (2 if kind == "lstm" else 1)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@every
@directions
def test_bfloat16_autocast_stays_near_the_full_precision(kind: str, both: bool) -> None:
    layer, above = new_layer(kind, both), new_layer(kind, both, width_in=8 if both else 4)
    inputs, lengths = batch(documents())
    expected = above(layer(inputs, lengths)[0], lengths)[0].detach()
    # torch's own steps: oneDNN has such an LSTM only for processors that know bfloat16.
    plain = torch.backends.mkldnn.flags(enabled=False)
    with plain, torch.autocast("cpu", dtype=torch.bfloat16):
        states, state = layer(inputs, lengths)
        found, _ = above(states, lengths)
        layer(inputs, lengths, state)
        found.float().square().mean().backward()
    within = inside(inputs, lengths)
    error = ((found - expected) * within).square().mean() / (expected * within).square().mean()
    assert error < 0.02**2
    assert all(value.grad.isfinite().all() for value in layer.parameters())


@pytest.mark.parametrize("kind", ["mingru", "minlstm"])
def test_bfloat16_autocast_forgets_no_faster(kind: str) -> None:
    layer = new_layer(kind, width_in=1, hidden=1)
    set_all(layer.forwards, weight=[-7.0, 0.0] if kind == "mingru" else [0.0, -7.6875, 0.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states, _ = layer(torch.ones(1, 100, 1), torch.tensor([100]), (torch.ones(1, 1),))
    # A minGRU keeps s(7) = 0.9990889 of its state, ** 100 = 0.912884; a minLSTM keeps
    # 0.5 / (0.5 + s(-7.6875)) = 0.9990842, ** 100 = 0.912451. In bfloat16 both are 1, for ever.
    expected = 0.912884 if kind == "mingru" else 0.912451
    assert states[0, -1, 0].item() == pytest.approx(expected, abs=1e-4)


# --- weight dropout ---------------------------------------------------------------------------


def test_one_mask_serves_every_step_and_document_of_a_call() -> None:
    layer = new_layer("rnn", width_in=1, hidden=8, weight_dropout=0.5).train()
    set_all(layer.forwards, weight_ih=1.0)
    layer.forwards.weight_hh_l0.data = 0.5 * torch.eye(8)
    states, _ = layer(torch.ones(2, 3, 1), torch.tensor([3, 3]))
    # A unit's own weight is either dropped or, as half of them are, doubled to 1: tanh(1) every
    # time, or tanh(1) = 0.761594, tanh(1.761594) = 0.942663, tanh(1.942663) = 0.959781.
    dropped, kept = [0.761594] * 3, [0.761594, 0.942663, 0.959781]
    units = states.transpose(1, 2).tolist()
    assert units[0] == units[1]
    both = [[unit == pytest.approx(one, abs=1e-4) for unit in units[0]] for one in (dropped, kept)]
    assert all(one != other for one, other in zip(*both, strict=True))
    assert any(both[0])
    assert any(both[1])


@carrying
def test_weights_are_dropped_anew_in_each_call_of_training_and_never_in_evaluation(
    kind: str,
) -> None:
    plain, layer = new_layer(kind, both=True), new_layer(kind, both=True, weight_dropout=0.5)
    texts = documents([5, 5])
    assert_same(read(layer, texts), read(plain, texts))
    layer.train()
    first, second, unchanged = read(layer, texts)[0], read(layer, texts)[0], read(plain, texts)[0]
    for half in (slice(0, 4), slice(4, 8)):
        assert (first[:, half] - second[:, half]).abs().max() > 1e-3
        assert (first[:, half] - unchanged[:, half]).abs().max() > 1e-3
    assert_same(read(layer.eval(), texts), read(plain, texts))


@pytest.mark.parametrize("kind", TORCH)
def test_only_recurrent_weights_are_dropped(kind: str) -> None:
    layer, texts = new_layer(kind, weight_dropout=0.9), documents([5])
    layer.forwards.weight_hh_l0.data.zero_()
    assert_same(read(layer.train(), texts), read(layer.eval(), texts))


@pytest.mark.parametrize("kind", ["transformer", "tdnn"])
def test_weight_dropout_leaves_what_is_not_recurrent_alone(kind: str) -> None:
    layer, texts = new_layer(kind, weight_dropout=0.9), documents([5])
    assert_same(read(layer.train(), texts), read(layer.eval(), texts))


@carrying
def test_gradients_reach_every_weight_through_the_dropped_ones(kind: str) -> None:
    layer = new_layer(kind, both=True, weight_dropout=0.2).train()
    layer(*batch(documents()))[0].square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in layer.parameters())


# --- masks, orders, shortening ----------------------------------------------------------------


def test_a_step_is_inside_its_document_up_to_its_length() -> None:
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    for given in (3, torch.zeros(3, 3, 7)):
        found = inside(given, torch.tensor([2, 0, 3]))
        assert found.shape == (3, 3, 1)
        assert found[:, :, 0].tolist() == expected


def test_steps_are_reversed_inside_each_document_and_padding_stays() -> None:
    found = reversed_steps(torch.tensor([3, 0, 4]), 4)
    assert found.tolist() == [[2, 1, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]
    assert found.gather(1, found).tolist() == [[0, 1, 2, 3]] * 3


def shorten_with(weights: list[float], stride: int) -> Shorten:
    shorten = Shorten(1, stride)
    shorten.convolution.weight.data = torch.tensor([[weights]])
    nn.init.zeros_(shorten.convolution.bias)  # pyright: ignore[reportArgumentType]
    return shorten


def test_shortening_takes_the_largest_of_every_four_steps_inside_a_document() -> None:
    states = torch.tensor([[1.0, 5, 2, 3, -4, 9, 9], [1, 2, 3, 4, 5, 6, 7]])[:, :, None]
    # The middle weight alone passes every step on. The first document ends at -4, which the
    # rectifier sets to 0; its padding, 9, is not seen.
    short, lengths = shorten_with([0.0, 1.0, 0.0], 4)(states, torch.tensor([5, 7]))
    assert short[:, :, 0].tolist() == [[5, 0], [4, 7]]
    assert lengths.tolist() == [2, 2]


def test_the_convolution_sees_zeros_beyond_both_ends_of_a_document() -> None:
    states = torch.tensor([[[1.0], [2.0], [3.0], [7.0]]])
    short, lengths = shorten_with([10.0, 1.0, 100.0], 2)(states, torch.tensor([3]))
    # 1 + 200 = 201; 10 + 2 + 300 = 312; 20 + 3 + 0 = 23.
    assert short[0, :, 0].tolist() == [312, 23]
    assert lengths.tolist() == [2]


def test_an_empty_document_stays_empty_when_shortened() -> None:
    states = torch.randn(2, 5, 1, requires_grad=True)
    short, lengths = shorten_with([1.0, 1.0, 1.0], 4)(states, torch.tensor([0, 5]))
    assert lengths.tolist() == [0, 2]
    assert short[0, :, 0].tolist() == [0, 0]
    short.sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert not states.grad[0].any()


@every
def test_make_layer_builds_the_kind_it_is_asked_for(kind: str) -> None:
    layer = make_layer(ModelConfig(encoder=kind, hidden=8), 6)
    assert isinstance(layer, {"transformer": Transformer, "tdnn": Tdnn}.get(kind, Recurrent))
    assert layer.width == 16


# --- memory ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lstm", "gru", "mingru", "minlstm"])
def test_memories_are_spread_up_to_the_length_that_is_declared(kind: str) -> None:
    # Chrono initialisation: a unit that forgets 1 / T a step remembers T steps; T - 1 is drawn
    # evenly from 1 to 99, so that it keeps between 1 / 2 and 99 / 100, half of them above 50 / 51.
    torch.manual_seed(3)
    cell = make_cell(ModelConfig(encoder=kind, hidden=400, memory=100), 2)
    for name, weight in cell.named_parameters():
        if name.startswith("weight"):
            weight.zero_()
    ones, nothing = torch.ones(1, 400), torch.zeros(1, 1, 2)
    if isinstance(cell, nn.LSTM):
        kept = cell(nothing, (torch.zeros(1, 1, 400), ones[None]))[1][1].flatten()
    elif isinstance(cell, nn.GRU):
        kept = cell(nothing, ones[None])[1].flatten()
    else:
        kept = cell(nothing, ones, cell.weight, cell.bias).flatten()
    assert 0.5 <= kept.min() < 0.75
    assert 0.985 < kept.max() <= 0.99
    assert kept.median() == pytest.approx(50 / 51, abs=0.004)
