"""What a network learns from text alone, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nightshift.batches import Documents
from nightshift.encoders import Network
from nightshift.errors import TrainingError
from nightshift.pretraining import (
    Contrastive,
    Denoise,
    NextToken,
    Vocabulary,
    pretrain,
    windows,
)
from nightshift.recipe import ModelConfig, PretrainConfig
from nightshift.tokenizer import PADDING, UNKNOWN

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Stands where the vocabulary stands, and remembers what was to be predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[int]] = []

    def forward(self, queries: list[Tensor], targets: list[Tensor]) -> Tensor:
        assert [len(one) for one in queries] == [len(one) for one in targets]
        self.asked = [one.tolist() for one in targets]
        return torch.zeros(())


def network(**changes: Any) -> Network:
    torch.manual_seed(3)
    given = {"hidden": 8, "embedding": 6, "vector": 4, "max_tokens": 64, "stride": 1, **changes}
    return Network(ModelConfig(**given), 30, 2)


def recorded(task: Any, ids: list[list[int]], lengths: list[int]) -> list[list[int]]:
    task.vocabulary = Recorder()
    task(torch.tensor(ids), torch.tensor(lengths))
    return task.vocabulary.asked


def config(**changes: Any) -> PretrainConfig:
    given = {"objective": "next_token", "epochs": 2, "negatives": 20, "learning_rate": 3e-3}
    given |= changes
    return PretrainConfig(**given)


def counting(documents: int = 40) -> Documents:
    """Texts that count upwards from 2, so that every token is sure from its neighbour."""
    random = np.random.default_rng(4)
    rows = [
        [2 + (start + step) % 20 for step in range(12)]
        for start in random.integers(0, 20, documents)
    ]
    return Documents.from_lists(rows)


# --- what is predicted ------------------------------------------------------------------------


def test_a_state_predicts_the_next_token_forwards_and_the_one_before_backwards() -> None:
    asked = recorded(NextToken(network(), 5), [[5, 6, 7, 8], [9, 10, 0, 0]], [4, 2])
    assert asked == [[6, 7, 8, 10], [5, 6, 7, 9]]


def test_one_direction_is_asked_forwards_only() -> None:
    asked = recorded(NextToken(network(bidirectional=False), 5), [[5, 6, 7]], [3])
    assert asked == [[6, 7]]


def test_unknown_tokens_are_not_to_be_predicted() -> None:
    asked = recorded(NextToken(network(), 5), [[5, UNKNOWN, 7]], [3])
    assert asked == [[7], [5]]


def test_with_a_stride_the_tokens_of_the_next_step_are_predicted_but_for_the_one_seen() -> None:
    # Steps of 0-3, 4-7 and 8-11; the convolution sees one token past each, which is not asked.
    asked = recorded(NextToken(network(stride=4), 5), [list(range(10, 22))], [12])
    assert asked == [[15, 19], [16, 20], [17, 21], [12, 16], [11, 15], [10, 14]]


@pytest.mark.parametrize("place", [5, 6, 7, 8])
def test_a_strided_state_has_not_seen_what_it_predicts(place: int) -> None:
    built = network(stride=4).eval()
    ids = torch.arange(10, 22)[None]
    other = ids.clone()
    other[0, place] = 25
    lengths = torch.tensor([12])
    one, two = (built.states(given, lengths, [None], depth=1)[0] for given in (ids, other))
    assert torch.equal(one[0, 0, :8], two[0, 0, :8])


def test_the_token_that_is_not_asked_has_been_seen() -> None:
    built = network(stride=4).eval()
    ids = torch.arange(10, 22)[None]
    other = ids.clone()
    other[0, 4] = 25
    lengths = torch.tensor([12])
    one, two = (built.states(given, lengths, [None], depth=1)[0] for given in (ids, other))
    assert not torch.equal(one[0, 0, :8], two[0, 0, :8])


def test_denoising_asks_for_hidden_tokens_only_and_hides_about_fifteen_in_a_hundred() -> None:
    torch.manual_seed(1)
    ids = torch.randint(2, 30, (50, 40))
    asked = recorded(Denoise(network(), 5), ids.tolist(), [40] * 50)[0]
    assert 0.12 < len(asked) / 2000 < 0.18
    assert PADDING not in asked
    assert UNKNOWN not in asked


def test_the_sampled_softmax_with_every_token_as_candidate_is_the_softmax() -> None:
    torch.manual_seed(2)
    embedding = nn.Embedding(9, 3)
    vocabulary = Vocabulary(embedding, negatives=500)
    with torch.no_grad():
        vocabulary.bias.normal_()
    queries, targets = torch.randn(7, 3), torch.tensor([2, 3, 4, 5, 6, 7, 8])
    # Padding and the unknown token are no candidates.
    logits = (queries @ embedding.weight.T + vocabulary.bias)[:, 2:]
    wanted = F.cross_entropy(logits, targets - 2).item()
    assert vocabulary([queries], [targets]).item() == pytest.approx(wanted, rel=1e-5)


def test_contrast_is_near_zero_where_both_dropouts_agree_and_documents_differ() -> None:
    built = network(dropout=0.0, word_dropout=0.0)
    ids = torch.tensor([[2, 3, 4], [10, 11, 12], [20, 21, 22]])
    with torch.no_grad():
        built.projection.weight.mul_(20)
    alike = Contrastive(built)(torch.stack([ids[0]] * 3), torch.tensor([3, 3, 3]))
    assert alike.item() == pytest.approx(np.log(3), abs=1e-4)
    assert Contrastive(built)(ids, torch.tensor([3, 3, 3])) < alike


# --- windows ----------------------------------------------------------------------------------


def test_long_documents_are_cut_into_stretches() -> None:
    found = windows(Documents.from_lists([[2, 3, 4, 5, 6], [7, 8], [9, 10, 11]]), 2)
    rows = [found.pad(np.array([row]))[0][0].tolist() for row in range(len(found))]
    assert rows == [[2, 3], [4, 5], [6], [7, 8], [9, 10], [11]]


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["next_token", "denoise", "contrastive"])
@pytest.mark.parametrize("stride", [1, 4])
def test_every_objective_lowers_its_loss(objective: Any, stride: int) -> None:
    built = network(stride=stride, hidden=16, embedding=16, dropout=0.0, word_dropout=0.0)
    wanted = config(objective=objective, epochs=30, learning_rate=0.02)
    losses = [one.loss for one in pretrain(built, counting(400), wanted, CPU)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("encoder", ["transformer", "tdnn"])
def test_what_reads_all_at_once_is_pretrained_by_denoising(encoder: Any) -> None:
    built = network(encoder=encoder, hidden=8, dropout=0.0, word_dropout=0.0)
    wanted = config(objective="denoise", epochs=30, learning_rate=0.01)
    losses = [one.loss for one in pretrain(built, counting(400), wanted, CPU)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_head_is_not_touched_and_padding_stays_zero() -> None:
    built = network()
    before = built.head.weight.clone()
    list(pretrain(built, counting(), config(), CPU))
    assert torch.equal(built.head.weight, before)
    assert not built.embedding.weight[PADDING].any()


def test_the_same_seed_learns_the_same() -> None:
    one, two = network(), network()
    for built in (one, two):
        list(pretrain(built, counting(), config(), CPU, seed=5))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_documents_of_one_token_have_nothing_to_predict() -> None:
    assert list(pretrain(network(), Documents.from_lists([[5], [6]]), config(), CPU)) == []


def test_a_loss_that_leaves_the_numbers_says_what_to_lower() -> None:
    built = network()
    with torch.no_grad():
        built.embedding.weight[2:].fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"pretrain.learning_rate below 0.003"):
        list(pretrain(built, counting(), config(), CPU))
