"""The network: its cells against their papers' equations, its padding against itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nightshift.encoders import Network, Recurrent, Shorten, reversed_steps
from nightshift.recipe import ModelConfig
from nightshift.tokenizer import PADDING, UNKNOWN

CELLS = ["lstm", "gru", "rnn"]
POOLINGS = [["attention", "max", "mean"], ["last"], ["mean"], ["max"], ["attention"]]


def network(**options: Any) -> Network:
    torch.manual_seed(3)
    small: dict[str, Any] = {"hidden": 4, "embedding": 6, "vector": 5, "stride": 1}
    return Network(ModelConfig(**{**small, "max_tokens": 64, **options}), 30, 3).eval()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- cells ----------------------------------------------------------------------------------


def lstm(x: np.ndarray, w: Any, u: Any, b: Any, hidden: int) -> np.ndarray:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000."""
    h, c = np.zeros(hidden), np.zeros(hidden)
    states = []
    for step in x:
        i, f, g, o = np.split(w @ step + u @ h + b[0] + b[1], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def gru(x: np.ndarray, w: Any, u: Any, b: Any, hidden: int) -> np.ndarray:
    """Cho et al. 2014, the reset gate after the product (as cuDNN has it)."""
    h = np.zeros(hidden)
    states = []
    for step in x:
        (wr, wz, wn), (ur, uz, un) = np.split(w @ step + b[0], 3), np.split(u @ h + b[1], 3)
        z, n = sigmoid(wz + uz), np.tanh(wn + sigmoid(wr + ur) * un)
        h = (1 - z) * n + z * h
        states.append(h)
    return np.array(states)


def rnn(x: np.ndarray, w: Any, u: Any, b: Any, hidden: int) -> np.ndarray:
    """Elman 1990."""
    h = np.zeros(hidden)
    states = []
    for step in x:
        h = np.tanh(w @ step + u @ h + b[0] + b[1])
        states.append(h)
    return np.array(states)


EQUATIONS = {"lstm": lstm, "gru": gru, "rnn": rnn}


def by_hand(kind: str, cell: torch.nn.RNNBase, x: np.ndarray) -> np.ndarray:
    w, u, one, two = (value.detach().double().numpy() for value in cell.parameters())
    return EQUATIONS[kind](x, w, u, (one, two), cell.hidden_size)


def shaken(layer: Recurrent) -> Recurrent:
    """Biases are zero at first: give each a value, so that one left out would be seen."""
    torch.manual_seed(5)
    for value in layer.parameters():
        value.data += 0.3 * torch.randn_like(value)
    return layer


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_computes_the_equations_of_its_paper(kind: str) -> None:
    layer = shaken(Recurrent(kind, 3, 2, bidirectional=False))
    x = np.random.default_rng(0).normal(size=(4, 3))
    states = layer(torch.from_numpy(x[None]).float(), torch.tensor([4]))[0].detach().numpy()
    np.testing.assert_allclose(states, by_hand(kind, layer.forwards, x), atol=1e-6)


def set_all(cell: torch.nn.RNNBase, **values: float) -> None:
    for name, weight in cell.named_parameters():
        weight.data.fill_(values.get(name.removesuffix("_l0"), 0.0))


def test_one_gru_step_by_hand() -> None:
    layer = Recurrent("gru", 1, 1, bidirectional=False)
    set_all(layer.forwards, weight_ih=1.0, weight_hh=1.0)
    states = layer(torch.tensor([[[1.0], [0.0]]]), torch.tensor([2]))[0, :, 0].tolist()
    # z = s(1) = 0.731059, n = tanh(1) = 0.761594: h1 = (1 - z) n = 0.204824. Then
    # r = z = s(0.204824) = 0.551028, n = tanh(r h1) = 0.112387: h2 = 0.448972 n + z h1 = 0.163322.
    assert states == pytest.approx([0.204824, 0.163322], abs=2e-6)


def test_one_lstm_step_by_hand() -> None:
    layer = Recurrent("lstm", 1, 1, bidirectional=False)
    set_all(layer.forwards, weight_ih=1.0)
    states = layer(torch.tensor([[[1.0], [0.0]]]), torch.tensor([2]))[0, :, 0].tolist()
    # c1 = s(1) tanh(1) = 0.556770, h1 = s(1) tanh(c1) = 0.369606. Then all gates are 0.5:
    # c2 = 0.5 c1 = 0.278385, h2 = 0.5 tanh(c2) = 0.135705.
    assert states == pytest.approx([0.369606, 0.135705], abs=2e-6)


def test_one_rnn_step_by_hand() -> None:
    layer = Recurrent("rnn", 1, 1, bidirectional=False)
    set_all(layer.forwards, weight_ih=1.0, weight_hh=0.5)
    states = layer(torch.tensor([[[1.0], [1.0]]]), torch.tensor([2]))[0, :, 0].tolist()
    # tanh(1) = 0.761594, tanh(1 + 0.380797) = 0.881130.
    assert states == pytest.approx([0.761594, 0.881130], abs=2e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_weights_start_orthogonal_and_an_lstm_remembers(kind: str) -> None:
    cell = Recurrent(kind, 5, 4, bidirectional=False).forwards
    named = dict(cell.named_parameters())
    for block in named["weight_hh_l0"].split(4):
        torch.testing.assert_close(block @ block.T, torch.eye(4), atol=1e-5, rtol=0)
    bias = (named["bias_ih_l0"] + named["bias_hh_l0"]).tolist()
    assert bias == ([0] * 4 + [1] * 4 + [0] * 8 if kind == "lstm" else [0] * len(bias))


# --- directions -----------------------------------------------------------------------------


def test_steps_are_reversed_inside_each_document_and_padding_stays() -> None:
    found = reversed_steps(torch.tensor([3, 1, 4]), 4)
    assert found.tolist() == [[2, 1, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]
    assert found.gather(1, found).tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("kind", CELLS)
def test_backwards_reads_each_document_from_its_own_end(kind: str) -> None:
    layer = shaken(Recurrent(kind, 3, 2, bidirectional=True))
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    found = layer(torch.from_numpy(x).float(), torch.tensor([3, 5])).detach().numpy()
    assert layer.backwards is not None
    for row, length in enumerate([3, 5]):
        own = x[row, :length]
        np.testing.assert_allclose(
            found[row, :length, :2], by_hand(kind, layer.forwards, own), atol=1e-6
        )
        np.testing.assert_allclose(
            found[row, :length, 2:], by_hand(kind, layer.backwards, own[::-1])[::-1], atol=1e-6
        )


# --- shortening -----------------------------------------------------------------------------


def test_shortening_takes_the_largest_of_every_four_steps_inside_a_document() -> None:
    shorten = Shorten(1, 4)
    # The middle of the three weights alone: the convolution passes every step on.
    shorten.convolution.weight.data = torch.tensor([[[0.0, 1.0, 0.0]]])
    shorten.convolution.bias.data.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    states = torch.tensor([[1.0, 5, 2, 3, -4, 9, 9], [1, 2, 3, 4, 5, 6, 7]])[:, :, None]
    short, lengths = shorten(states, torch.tensor([5, 7]))
    # The first document ends at -4, which the rectifier sets to 0; its padding (9, 9) is not seen.
    assert short[:, :, 0].tolist() == [[5, 0], [4, 7]]
    assert lengths.tolist() == [2, 2]


def test_the_convolution_sees_zeros_beyond_both_ends_of_a_document() -> None:
    shorten = Shorten(1, 2)
    shorten.convolution.weight.data = torch.tensor([[[10.0, 1.0, 100.0]]])
    shorten.convolution.bias.data.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    short, lengths = shorten(torch.tensor([[[1.0], [2.0], [3.0], [7.0]]]), torch.tensor([3]))
    # 1 + 200 = 201; 10 + 2 + 300 = 312; 20 + 3 + 0 = 23.
    assert short[0, :, 0].tolist() == [312, 23]
    assert lengths.tolist() == [2]


# --- pooling --------------------------------------------------------------------------------

STATES = torch.tensor([[[1.0, -2], [3, -4], [9, 9]], [[5, 6], [9, 9], [9, 9]]])
LENGTHS = torch.tensor([2, 1])


def pooled(way: str, states: Tensor = STATES, **options: Any) -> list[list[float]]:
    one = network(**{"pooling": [way], "hidden": 4, "bidirectional": False, **options})
    if one.attention is not None:
        torch.manual_seed(0)
        one.attention = torch.nn.Linear(2, 1, bias=False)
        one.attention.weight.data = torch.tensor([[1.0, 0.0]])
    return one._pool(states, LENGTHS).detach().tolist()


def test_mean_pooling_divides_by_the_length_of_the_document() -> None:
    assert pooled("mean") == [[2, -3], [5, 6]]


def test_max_pooling_sees_no_padding() -> None:
    assert pooled("max") == [[3, -2], [5, 6]]


def test_last_pooling_takes_the_step_before_the_padding() -> None:
    assert pooled("last") == [[3, -4], [5, 6]]


def test_last_pooling_takes_the_first_step_of_the_backward_direction() -> None:
    states = torch.arange(2 * 3 * 8).reshape(2, 3, 8).float()
    found = pooled("last", states, bidirectional=True)
    # Rows start at 0 and 24, steps are 8 wide: forward half at step 1 and 0, backward at step 0.
    assert found == [[8, 9, 10, 11, 4, 5, 6, 7], [24, 25, 26, 27, 28, 29, 30, 31]]


def test_attention_weighs_steps_by_the_softmax_of_their_scores() -> None:
    # Scores are the first value: 1 and 3. Weights 1 / (1 + e^2) = 0.119203 and 0.880797.
    first, second = pooled("attention")
    assert first == pytest.approx([0.119203 * 1 + 0.880797 * 3, -0.119203 * 2 - 0.880797 * 4])
    assert second == [5, 6]


def test_several_poolings_stand_side_by_side_in_the_order_declared() -> None:
    one = network(pooling=["max", "mean"], bidirectional=False)
    assert one._pool(STATES, LENGTHS).tolist() == [[3, -2, 2, -3], [5, 6, 5, 6]]


# --- padding --------------------------------------------------------------------------------

TEXTS = [[2, 3, 4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [15, 16, 17, 18], [UNKNOWN] * 17]
EVERY = [
    {"encoder": cell, "stride": stride, "bidirectional": both, "pooling": pooling, "layers": layers}
    for cell, stride, both, pooling, layers in product(
        CELLS, [1, 4], [True, False], POOLINGS, [1, 2]
    )
]


def _name(options: dict[str, Any]) -> str:
    return "-".join(
        "+".join(one) if isinstance(one, list) else str(one) for one in options.values()
    )


def batch(texts: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor]:
    time = max(map(len, texts)) + extra
    ids = torch.full((len(texts), time), PADDING)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    return ids, torch.tensor([len(text) for text in texts])


@torch.inference_mode()
def said(one: Network, texts: list[list[int]], extra: int = 0) -> Tensor:
    return torch.cat(one(*batch(texts, extra)), dim=1)


@pytest.mark.parametrize("options", EVERY, ids=_name)
def test_a_document_gets_the_same_answer_alone_padded_and_in_company(
    options: dict[str, Any],
) -> None:
    one = network(**options)
    alone = torch.cat([said(one, [text]) for text in TEXTS])
    assert alone.isfinite().all()
    padded = torch.cat([said(one, [text], extra=50) for text in TEXTS])
    together = said(one, TEXTS)
    backwards = said(one, TEXTS[::-1], extra=3).flip(0)
    for other in (padded, together, backwards):
        torch.testing.assert_close(other, alone, atol=2e-6, rtol=1e-5)


def test_what_stands_in_the_padding_reaches_nothing() -> None:
    one = network(stride=4)
    ids, lengths = batch([TEXTS[0]], extra=7)
    ids[0, len(TEXTS[0]) :] = 23
    with torch.inference_mode():
        polluted = torch.cat(one(ids, lengths), dim=1)
    torch.testing.assert_close(polluted, said(one, [TEXTS[0]]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 4])
def test_padding_gets_no_gradient(stride: int) -> None:
    one = network(stride=stride, word_dropout=0.0, dropout=0.0).train()
    scores, _ = one(*batch(TEXTS))
    scores.sum().backward()
    assert one.embedding.weight.grad is not None
    assert not one.embedding.weight.grad[PADDING].any()
    assert all(value.grad is not None for value in one.parameters())
    assert all(value.grad.isfinite().all() for value in one.parameters() if value.grad is not None)


# --- the whole ------------------------------------------------------------------------------


def test_shapes_are_those_of_the_config() -> None:
    scores, vectors = network(layers=2, pooling=["last", "max"])(*batch(TEXTS))
    assert (tuple(scores.shape), tuple(vectors.shape)) == ((5, 3), (5, 5))


def test_a_document_of_one_unknown_token_has_an_answer() -> None:
    for stride in (1, 4):
        assert said(network(stride=stride), [[UNKNOWN]]).isfinite().all()


def test_dropped_words_become_unknown_and_padding_stays_padding() -> None:
    one = network(word_dropout=0.999999, dropout=0.0).train()
    unknown = torch.cat(one(*batch([[UNKNOWN] * len(text) for text in TEXTS])), dim=1)
    torch.testing.assert_close(torch.cat(one(*batch(TEXTS)), dim=1), unknown)


def test_answers_are_repeatable_and_training_is_not() -> None:
    one = network(dropout=0.5)
    assert torch.equal(said(one, TEXTS), said(one, TEXTS))
    one.train()
    assert not torch.equal(said(one, TEXTS), said(one, TEXTS))


def test_the_order_of_tokens_matters() -> None:
    one = network()
    assert not torch.allclose(said(one, [[2, 3, 4]]), said(one, [[4, 3, 2]]), atol=1e-4)
