"""The network: pooling by hand, chunks against the whole, padding against itself."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nightshift import encoders
from nightshift.encoders import Mix, Network, grow_head
from nightshift.recipe import ModelConfig
from nightshift.tokenizer import PADDING, UNKNOWN

ROOT = Path(__file__).parent.parent
CARRYING = ["lstm", "gru", "rnn", "mingru", "minlstm"]
CELLS = [*CARRYING, "transformer", "tdnn"]
POOLINGS = [["attention", "max", "mean"], ["last"], ["mean"], ["max"], ["attention"]]
STILL: dict[str, Any] = {"dropout": 0.0, "word_dropout": 0.0}
"""Training without any chance in it."""


def network(**options: Any) -> Network:
    torch.manual_seed(3)
    small: dict[str, Any] = {"hidden": 4, "embedding": 6, "vector": 5, "stride": 1, "heads": 2}
    return Network(ModelConfig(**{**small, "max_tokens": 64, **options}), 30, 3).eval()


def batch(texts: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor]:
    time = max(map(len, texts)) + extra
    ids = torch.full((len(texts), time), PADDING)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    return ids, torch.tensor([len(text) for text in texts])


@torch.inference_mode()
def said(one: Network, texts: list[list[int]], extra: int = 0) -> Tensor:
    return torch.cat(one(*batch(texts, extra)), dim=1)


def text(length: int, seed: int = 0) -> list[int]:
    chance = torch.Generator().manual_seed(100 * seed + length)
    return torch.randint(2, 30, (length,), generator=chance).tolist()


# --- pooling --------------------------------------------------------------------------------

STATES = [[[1.0, -2], [3, -4], [9, 9]], [[5, 6], [9, 9], [9, 9]]]
LENGTHS = [2, 1]


class Given(Network):
    """Its states are looked up: id n of the batch has the n-th of `table`."""

    table = torch.empty(0)

    def states(
        self,
        ids: Tensor,
        lengths: Tensor,
        carried: list[Any],
        mix: Mix | None = None,
        depth: int | None = None,
    ) -> tuple[Tensor, Tensor, list[Any]]:
        return self.table[ids], lengths, carried


def given(states: Any, **options: Any) -> tuple[Given, Tensor]:
    """A network with these states (batch, time, width), and the ids that stand for them."""
    values = torch.tensor(states, dtype=torch.float32)
    rows, time, width = values.shape
    both = options.get("bidirectional", False)
    one = Given(ModelConfig(**{"hidden": 4, "bidirectional": False, "stride": 1, **options}), 30, 3)
    one.forward_width = width // 2 if both else width
    one.table = values.flatten(0, 1)
    if one.attention is not None:
        one.attention = nn.Linear(width, 1, bias=False)
        one.attention.weight.data = torch.eye(width)[:1]
    return one.eval(), torch.arange(rows * time).view(rows, time)


def pooled(way: list[str], chunk: int, states: Any = STATES, **options: Any) -> list[list[float]]:
    one, ids = given(states, pooling=way, **options)
    one.chunk = chunk
    return one.read(ids, torch.tensor(LENGTHS)).pooled.tolist()


in_chunks = pytest.mark.parametrize("chunk", [1, 2, 3])


@in_chunks
def test_mean_pooling_divides_by_the_length_of_the_document(chunk: int) -> None:
    assert pooled(["mean"], chunk) == [[2, -3], [5, 6]]


@in_chunks
def test_max_pooling_sees_no_padding(chunk: int) -> None:
    assert pooled(["max"], chunk) == [[3, -2], [5, 6]]


@in_chunks
def test_last_pooling_takes_the_step_before_the_padding(chunk: int) -> None:
    assert pooled(["last"], chunk) == [[3, -4], [5, 6]]


@in_chunks
def test_last_pooling_takes_the_first_step_of_the_backward_direction(chunk: int) -> None:
    states = torch.arange(2 * 3 * 8).reshape(2, 3, 8).tolist()
    found = pooled(["last"], chunk, states, bidirectional=True)
    # Rows start at 0 and 24, steps are 8 wide: forward half at step 1 and 0, backward at step 0.
    assert found == [[8, 9, 10, 11, 4, 5, 6, 7], [24, 25, 26, 27, 28, 29, 30, 31]]


@in_chunks
def test_attention_weighs_steps_by_the_softmax_of_their_scores(chunk: int) -> None:
    # Scores are the first value: 1 and 3. Weights 1 / (1 + e^2) = 0.119203 and 0.880797.
    first, second = pooled(["attention"], chunk)
    assert first == pytest.approx([0.119203 * 1 + 0.880797 * 3, -0.119203 * 2 - 0.880797 * 4])
    assert second == [5, 6]


@in_chunks
@pytest.mark.parametrize("ahead", [-1000.0, 0.0, 1000.0])
def test_attention_over_chunks_is_the_softmax_over_the_whole_however_large_the_scores(
    chunk: int, ahead: float
) -> None:
    # Scores ahead + 2, + 0 and + 1: weights e^2, 1 and e over 11.107338.
    states = [[[ahead + 2, 1], [ahead, 2], [ahead + 1, 4]]]
    one, ids = given(states, pooling=["attention"])
    one.chunk = chunk
    [[_, found]] = one.read(ids, torch.tensor([3])).pooled.tolist()
    assert found == pytest.approx((7.389056 * 1 + 1 * 2 + 2.718282 * 4) / 11.107338, rel=1e-5)


@in_chunks
def test_several_poolings_stand_side_by_side_in_the_order_declared(chunk: int) -> None:
    assert pooled(["max", "mean"], chunk) == [[3, -2, 2, -3], [5, 6, 5, 6]]


def test_squared_states_and_their_change_are_means_over_the_steps_of_documents() -> None:
    one, ids = given(STATES, pooling=["mean"])
    assert not float(one.read(ids, torch.tensor(LENGTHS)).activation)
    one.penalised = True
    reading = one.read(ids, torch.tensor(LENGTHS))
    # Squares: (1 + 4) / 2, (9 + 16) / 2 and (25 + 36) / 2, over three steps.
    assert float(reading.activation) == pytest.approx((2.5 + 12.5 + 30.5) / 3)
    # The one change is (2, -2), squared and averaged 4, over three steps.
    assert float(reading.temporal) == pytest.approx(4 / 3)


# --- padding --------------------------------------------------------------------------------

TEXTS = [
    [2, 3, 4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [15, 16, 17, 18], [UNKNOWN] * 17, text(40)
]  # fmt: skip
EVERY = [
    {"encoder": cell, "stride": stride, "bidirectional": both, "pooling": way, "chunk_tokens": most}
    for cell, stride, both, way, most in product(
        CELLS, [1, 4], [True, False], POOLINGS[:2], [16, 512]
    )
]


def _name(options: dict[str, Any]) -> str:
    return "-".join(
        "+".join(one) if isinstance(one, list) else str(one) for one in options.values()
    )


@pytest.mark.parametrize("options", EVERY, ids=_name)
def test_a_document_gets_the_same_answer_alone_padded_and_in_company(
    options: dict[str, Any],
) -> None:
    one = network(**options, layers=2)
    alone = torch.cat([said(one, [text]) for text in TEXTS])
    assert alone.isfinite().all()
    padded = torch.cat([said(one, [text], extra=50) for text in TEXTS])
    together = said(one, TEXTS)
    backwards = said(one, TEXTS[::-1], extra=3).flip(0)
    for other in (padded, together, backwards):
        torch.testing.assert_close(other, alone, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("chunk_tokens", [16, 512])
def test_what_stands_in_the_padding_reaches_nothing(cell: str, chunk_tokens: int) -> None:
    one = network(stride=4, encoder=cell, chunk_tokens=chunk_tokens)
    ids, lengths = batch([TEXTS[0]], extra=17)
    ids[0, len(TEXTS[0]) :] = 23
    with torch.inference_mode():
        polluted = torch.cat(one(ids, lengths), dim=1)
    torch.testing.assert_close(polluted, said(one, [TEXTS[0]]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("stride", [1, 4])
def test_padding_gets_no_gradient_and_every_parameter_gets_one(cell: str, stride: int) -> None:
    one = network(encoder=cell, stride=stride, chunk_tokens=16, **STILL).train()
    scores, _ = one(*batch(TEXTS))
    scores.square().sum().backward()
    assert one.embedding.weight.grad is not None
    assert not one.embedding.weight.grad[PADDING].any()
    for name, value in one.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.any(), name


# --- chunks ---------------------------------------------------------------------------------

LONG = [text(40, 1), text(1), text(16), text(17), text(33), text(48)]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CARRYING)
@pytest.mark.parametrize("pooling", [*POOLINGS, ["last", "max"]], ids="+".join)
def test_one_direction_in_chunks_gives_the_answer_of_the_whole(
    cell: str, pooling: list[str], layers: int
) -> None:
    options: dict[str, Any] = {"encoder": cell, "pooling": pooling, "layers": layers}
    whole = network(bidirectional=False, **options)
    cut = network(bidirectional=False, chunk_tokens=16, **options)
    assert (whole.chunk, cut.chunk) == (512, 16)
    torch.testing.assert_close(said(cut, LONG), said(whole, LONG), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", [*CARRYING, "transformer"])
def test_two_directions_or_attention_see_no_further_than_their_chunk(cell: str) -> None:
    # What the chunk before the change says is the same; a whole reading would tell.
    one, other = text(40), text(40)
    other[-1] = 31 - other[-1]
    for most, same in ((16, True), (512, False)):
        reader = network(encoder=cell, chunk_tokens=most)
        found = [
            reader.states(ids[:, : reader.chunk], left.clamp(max=reader.chunk), [None])[0][:, :16]
            for ids, left in (batch([one]), batch([other]))
        ]
        assert torch.equal(*found) == same


def test_a_chunk_is_a_whole_number_of_strides() -> None:
    for tokens, stride, expected in ((16, 1, 16), (18, 4, 16), (19, 5, 15), (16, 20, 20)):
        assert network(chunk_tokens=tokens, stride=stride).chunk == expected


def graded(one: Network, seed: int = 0) -> list[Tensor]:
    """Gradients of a loss on documents of several chunks, in the order of the parameters."""
    torch.manual_seed(seed)
    one.zero_grad()
    scores, _ = one.train()(*batch(LONG))
    scores.square().sum().backward()
    return [value.grad.clone() for value in one.parameters() if value.grad is not None]


def test_computing_a_chunk_again_on_the_way_back_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With every kind of chance, which must fall alike both times.
    chance = {"dropout": 0.3, "word_dropout": 0.2, "state_dropout": 0.2, "weight_dropout": 0.2}
    one = network(chunk_tokens=16, layers=2, **chance)
    twice = graded(one)

    def once(run: Any, *arguments: Any, use_reentrant: bool) -> Any:
        return run(*arguments)

    monkeypatch.setattr(encoders, "checkpoint", once)
    for one_way, other in zip(twice, graded(one), strict=True):
        torch.testing.assert_close(one_way, other)
        assert one_way.any()
    assert not all(map(torch.equal, twice, graded(one, seed=1)))


@pytest.mark.parametrize("cell", CARRYING)
def test_the_gradient_stops_between_chunks(cell: str) -> None:
    # The answer hangs on the last state alone; ids 2 to 17 stand in the first chunk, the others
    # in the second.
    texts = [[*range(2, 18), *range(18, 25)]]
    for most, reached in ((16, range(18, 25)), (512, range(2, 25))):
        options: dict[str, Any] = {"encoder": cell, "bidirectional": False, "pooling": ["last"]}
        one = network(chunk_tokens=most, **options, **STILL).train()
        one(*batch(texts))[0].sum().backward()
        assert one.embedding.weight.grad is not None
        assert one.embedding.weight.grad.any(1).nonzero()[:, 0].tolist() == list(reached)


def test_the_gradient_of_a_mean_is_that_of_chunks_read_by_hand() -> None:
    one = network(bidirectional=False, pooling=["mean"], chunk_tokens=16, **STILL).train()
    ids, lengths = batch([text(40)])
    one(ids, lengths)[0].sum().backward()
    found = [value.grad.clone() for value in one.parameters() if value.grad is not None]
    one.zero_grad()
    total, state = torch.zeros(1, 4), None
    for start in (0, 16, 32):
        part = ids[:, start : start + 16]
        states, state = one.layers[0](one.embedding(part), torch.tensor([part.shape[1]]), state)
        state = tuple(value.detach() for value in state)
        total = total + states.sum(1)
    one.classify(total / 40)[0].sum().backward()
    expected = [value.grad for value in one.parameters() if value.grad is not None]
    torch.testing.assert_close(found, expected)


MEMORY = """
import resource, sys, torch
from nightshift.encoders import Network
from nightshift.recipe import ModelConfig

torch.set_num_threads(1)
train, chunk = sys.argv[1] == "train", int(sys.argv[2])
network = Network(
    ModelConfig(encoder="gru", hidden=64, embedding=64, bidirectional=False, stride=16,
                chunk_tokens=chunk),
    200, 2,
).train(train)

def peak(tokens):
    with torch.set_grad_enabled(train):
        scores, _ = network(torch.randint(2, 200, (1, tokens)), torch.tensor([tokens]))
        if train:
            scores.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(peak(10_000), peak(100_000))
"""
ALLOWANCE = 32
"""MiB that the longer document may add: its ids, what each of its 196 chunks hands on, and what the
allocator does not give back. Measured: 1 answering and 6 training; read as a whole the same two
documents differ by 119 and 361."""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize("doing", ["answer", "train"])
def test_memory_does_not_grow_with_the_length_of_a_document(doing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, doing, "512"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())
    assert (long - short) / 1024 < ALLOWANCE


# --- mixtures -------------------------------------------------------------------------------


def test_mixed_documents_are_mixtures_of_their_embeddings_read_to_the_longer_end() -> None:
    one = network(pooling=["mean"])
    ids, lengths = batch([[2, 3, 4], [5], [6, 7]])
    other, share = torch.tensor([1, 0, 2]), torch.tensor([0.75, 0.5, 1.0])
    with torch.inference_mode():
        found = one.read(ids, lengths, (other, share)).pooled
        embedded = one.embedding.weight[ids]
        mixed = torch.stack([
            0.75 * embedded[0] + 0.25 * embedded[1],
            0.5 * embedded[1] + 0.5 * embedded[0],
            embedded[2],
        ])  # fmt: skip
        states, _ = one.layers[0](mixed, torch.tensor([3, 3, 2]))
    expected = [states[0].mean(0), states[1].mean(0), states[2, :2].mean(0)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_mixture_of_a_document_with_itself_is_the_document() -> None:
    one = network(chunk_tokens=16)
    ids, lengths = batch(LONG)
    own, share = torch.arange(len(LONG)), torch.full((len(LONG),), 0.6)
    with torch.inference_mode():
        found = torch.cat(one(ids, lengths, (own, share)), dim=1)
    torch.testing.assert_close(found, said(one, LONG), atol=2e-6, rtol=1e-5)


# --- dropout --------------------------------------------------------------------------------


def test_state_dropout_drops_the_same_values_at_every_step_of_a_document() -> None:
    one = network(state_dropout=0.25).train()
    found = one._same_dropped(torch.ones(200, 7, 8))
    assert torch.equal(found, found[:, :1].expand_as(found))
    # What is left makes up for what is gone, and no two documents share a mask for long.
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert len(found[:, 0].unique(dim=0)) > 50
    assert torch.equal(one.eval()._same_dropped(torch.ones(2, 3, 8)), torch.ones(2, 3, 8))


def test_state_dropout_reaches_the_states_of_every_layer_in_training_alone() -> None:
    one = network(layers=2, state_dropout=0.5, **STILL)
    ids, lengths = batch([TEXTS[0]])
    states, _, _ = one.train().states(ids, lengths, [None, None])
    dropped = states[0] == 0
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert 0 < int(dropped[0].sum()) < 8
    assert not (one.eval().states(ids, lengths, [None, None])[0] == 0).any()


def test_dropped_words_become_unknown_and_padding_stays_padding() -> None:
    one = network(word_dropout=0.999999, dropout=0.0).train()
    unknown = torch.cat(one(*batch([[UNKNOWN] * len(text) for text in TEXTS])), dim=1)
    torch.testing.assert_close(torch.cat(one(*batch(TEXTS)), dim=1), unknown)


def test_answers_are_repeatable_and_training_is_not() -> None:
    for chance in ("dropout", "state_dropout", "weight_dropout", "word_dropout"):
        one = network(**{**STILL, chance: 0.5})
        assert torch.equal(said(one, TEXTS), said(one, TEXTS))
        one.train()
        assert not torch.equal(said(one, TEXTS), said(one, TEXTS)), chance


# --- the head -------------------------------------------------------------------------------


def test_a_grown_head_keeps_the_old_classes_and_adds_small_ones_in_the_order_wanted() -> None:
    one = network()
    vectors = torch.randn(4, 5)
    one.head.bias.data = torch.tensor([0.3, -0.7, 0.1])
    weight, before = one.head.weight.clone(), one.head(vectors)
    grow_head(one, ["b", "d", "f"], ["a", "b", "c", "f"])
    # The class d is gone; a and c are new: the least of the biases, and a tenth of the weights
    # that a layer starts with, whose largest is 1 / sqrt(5).
    assert (one.head.out_features, one.head.in_features) == (4, 5)
    assert one.head.bias.tolist() == pytest.approx([-0.7, 0.3, -0.7, 0.1])
    assert torch.equal(one.head.weight[1], weight[0])
    assert torch.equal(one.head.weight[3], weight[2])
    new = one.head.weight.detach()[[0, 2]].abs()
    assert 0 < float(new.max()) <= 0.1 / 5**0.5
    torch.testing.assert_close(one.head(vectors)[:, [1, 3]], before[:, [0, 2]])
    assert all(value.requires_grad for value in one.head.parameters())


def test_a_head_that_knows_all_it_should_says_the_same() -> None:
    one = network()
    before = said(one, TEXTS)
    grow_head(one, ["a", "b", "c"], ["a", "b", "c"])
    assert torch.equal(said(one, TEXTS), before)


# --- the whole ------------------------------------------------------------------------------


def test_shapes_are_those_of_the_config() -> None:
    scores, vectors = network(layers=2, pooling=["last", "max"])(*batch(TEXTS))
    assert (tuple(scores.shape), tuple(vectors.shape)) == ((6, 3), (6, 5))


def test_a_document_of_one_unknown_token_has_an_answer() -> None:
    for cell, stride in product(CELLS, (1, 4)):
        assert said(network(encoder=cell, stride=stride), [[UNKNOWN]]).isfinite().all()


def test_the_order_of_tokens_matters() -> None:
    for cell in CELLS:
        one = network(encoder=cell)
        assert not torch.allclose(said(one, [[2, 3, 4]]), said(one, [[4, 3, 2]]), atol=1e-4)


def test_frozen_embeddings_ask_for_no_gradient() -> None:
    one = network(freeze_embeddings=True, **STILL).train()
    one(*batch(TEXTS))[0].sum().backward()
    asking = {name for name, value in one.named_parameters() if value.grad is not None}
    assert asking == {name for name, _ in one.named_parameters()} - {"embedding.weight"}
