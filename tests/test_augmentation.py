"""Changed documents: every change by hand with given luck, then its bounds and shares by chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nightshift import augmentation
from nightshift.augmentation import augment, delete, neighbours, replace, swap
from nightshift.recipe import TrainConfig
from nightshift.tokenizer import PADDING, UNKNOWN

IDS = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0], [4, 0, 0, 0]])
LENGTHS = torch.tensor([4, 2, 1])

Given = Callable[..., None]


@pytest.fixture
def luck(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Random numbers in the order in which they are asked for."""

    def give(*numbers: list[list[float]]) -> None:
        waiting = [torch.tensor(one) for one in numbers]
        monkeypatch.setattr(augmentation, "_uniform", lambda *_: waiting.pop(0))

    return give


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(rows: int = 400, time: int = 12) -> tuple[Tensor, Tensor]:
    """Documents of 1 to `time` tokens; every token of a document differs, none is special."""
    lengths = torch.arange(rows) % time + 1
    steps = torch.arange(time)[None, :]
    ids = 10 + steps + (torch.arange(rows)[:, None] % 7)
    return ids.masked_fill(steps >= lengths[:, None], PADDING), lengths


def inside(ids: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])[None, :] < lengths[:, None]


# --- deletion -------------------------------------------------------------------------------


def test_deleted_tokens_leave_no_gap_by_hand(luck: Given) -> None:
    luck([[0.1, 0.9, 0.2, 0.5], [0.4, 0.6, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]])
    ids, lengths = delete(IDS, LENGTHS, 0.5)
    # 5 and 7 are below 0.5, and 9; a number of exactly the share stays.
    assert ids.tolist() == [[6, 8, 0, 0], [3, 0, 0, 0], [4, 0, 0, 0]]
    assert lengths.tolist() == [2, 1, 1]


def test_where_all_would_be_deleted_the_luckiest_token_stays(luck: Given) -> None:
    luck([[0.1, 0.2, 0.4, 0.3], [0.4, 0.3, 0.9, 0.9], [0.0, 0.9, 0.9, 0.9]])
    ids, lengths = delete(IDS, LENGTHS, 0.5)
    assert ids.tolist() == [[7, 0, 0, 0], [9, 0, 0, 0], [4, 0, 0, 0]]
    assert lengths.tolist() == [1, 1, 1]


def test_a_document_without_tokens_stays_without() -> None:
    ids, lengths = delete(torch.tensor([[0, 0], [5, 6]]), torch.tensor([0, 2]), 0.5, seeded())
    assert (ids[0].tolist(), int(lengths[0])) == ([0, 0], 0)
    assert int(lengths[1]) >= 1


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_what_deletion_leaves_is_in_order_and_padded_on_the_right(share: float) -> None:
    before, counts = batch()
    after, lengths = delete(before, counts, share, seeded())
    assert (lengths.dtype, after.shape) == (torch.int64, before.shape)
    assert ((lengths >= 1) & (lengths <= counts)).all()
    for old, new, length in zip(before.tolist(), after.tolist(), lengths.tolist(), strict=True):
        assert new[length:] == [PADDING] * (len(new) - length)
        # Ids of a document grow, and differ.
        assert new[:length] == sorted(set(new[:length]) & (set(old) - {PADDING}))


def test_the_share_deleted_is_the_one_asked_for() -> None:
    ids = torch.full((2000, 20), 5)
    _, lengths = delete(ids, torch.full((2000,), 20), 0.3, seeded())
    assert float(lengths.float().mean()) == pytest.approx(14, abs=0.2)


# --- swaps ----------------------------------------------------------------------------------


def test_neighbours_change_places_by_hand(luck: Given) -> None:
    first = [[0.9], [0.9], [0.9]]  # 0.5 and more: pairs begin at the first token
    luck(first, [[0.1, 0.9, 0.9, 0.1], [0.1, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]])
    # (5, 6) swaps by the 0.1 of its left one, (7, 8) does not; a single token has no neighbour.
    assert swap(IDS, LENGTHS, 0.5).tolist() == [[6, 5, 7, 8], [3, 9, 0, 0], [4, 0, 0, 0]]


def test_pairs_may_begin_at_the_second_token_by_hand(luck: Given) -> None:
    second = [[0.1], [0.1], [0.1]]
    luck(second, [[0.1, 0.1, 0.9, 0.1]] * 3)
    # 5 and 8 are left without a partner, and so is a document's last token before padding.
    assert swap(IDS, LENGTHS, 0.5).tolist() == [[5, 7, 6, 8], [9, 3, 0, 0], [4, 0, 0, 0]]


def test_swapping_keeps_all_tokens_and_moves_none_further_than_one_place() -> None:
    before, lengths = batch()
    after = swap(before, lengths, 0.5, seeded())
    assert torch.equal(before.sort(1).values, after.sort(1).values)
    assert (after[~inside(after, lengths)] == PADDING).all()
    # Ids of a document are consecutive: a place is an id's distance to the first.
    assert (after - before)[inside(before, lengths)].abs().max() == 1


def test_the_share_swapped_is_the_one_promised() -> None:
    ids = torch.arange(10, 15)[None, :].repeat(8000, 1)
    after = swap(ids, torch.full((8000,), 5), 0.5, seeded())
    # Of five tokens, four have a partner either way: 0.5 * 4 / 5.
    assert float((after != ids).float().mean()) == pytest.approx(0.4, abs=0.01)


# --- synonyms -------------------------------------------------------------------------------

TABLE = torch.arange(10)[:, None] * 10 + torch.arange(4)[None, :]  # token 5 -> 50, 51, 52, 53


def test_tokens_are_replaced_by_hand(luck: Given) -> None:
    choices = [[0.0, 0.3, 0.99, 0.5], [0.26, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    luck(choices, [[0.1, 0.1, 0.1, 0.5], [0.1, 0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]])
    found = replace(IDS, LENGTHS, 0.5, TABLE)
    assert found.tolist() == [[50, 61, 73, 8], [91, 3, 0, 0], [4, 0, 0, 0]]


def test_the_unknown_token_and_padding_have_no_synonyms() -> None:
    ids = torch.tensor([[UNKNOWN, 5, UNKNOWN, PADDING]] * 50)
    found = replace(ids, torch.full((50,), 3), 0.999, TABLE, seeded())
    assert (found[:, [0, 2]] == UNKNOWN).all()
    assert (found[:, 3] == PADDING).all()
    assert set(found[:, 1].tolist()) == {50, 51, 52, 53}


def test_what_lies_behind_a_document_is_not_replaced() -> None:
    ids = torch.full((50, 4), 5)
    found = replace(ids, torch.full((50,), 2), 0.999, TABLE, seeded())
    assert (found[:, 2:] == 5).all()


def test_the_share_replaced_is_the_one_asked_for() -> None:
    ids = torch.full((2000, 20), 5)
    found = replace(ids, torch.full((2000,), 20), 0.2, TABLE, seeded())
    assert float((found != 5).float().mean()) == pytest.approx(0.2, abs=0.01)
    shares = torch.bincount(found[found != 5] - 50) / (found != 5).sum()
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.03)


# --- neighbours -----------------------------------------------------------------------------

# Angles of tokens 2 to 5: 0, 10, 30 and 90 degrees; lengths differ and do not matter.
ANGLES = np.deg2rad([0, 10, 30, 90])
PLANE = np.vstack([[[1, 0], [1, 0]], np.c_[np.cos(ANGLES), np.sin(ANGLES)] * [[1], [9], [2], [5]]])


def test_neighbours_are_nearest_by_angle_by_hand() -> None:
    found = neighbours(torch.tensor(PLANE), k=2)
    assert found.tolist() == [[0, 0], [1, 1], [3, 4], [2, 4], [3, 2], [4, 3]]


def test_few_tokens_have_few_neighbours() -> None:
    assert neighbours(torch.tensor(PLANE), k=8)[2].tolist() == [3, 4, 5]
    assert neighbours(torch.tensor(PLANE[:3])).tolist() == [[0], [1], [2]]
    assert neighbours(torch.tensor(PLANE[:2])).tolist() == [[0], [1]]


def test_noise_and_zero_vectors_are_nobodys_neighbours() -> None:
    matrix = torch.tensor(PLANE)
    covered = torch.tensor([True, True, True, False, True, True])
    assert neighbours(matrix, 2, covered).tolist() == [
        [0, 0], [1, 1], [4, 5], [3, 3], [2, 5], [4, 2]
    ]  # fmt: skip
    matrix[4] = 0
    assert neighbours(matrix, 2, covered).tolist() == [[0], [1], [5], [3], [4], [2]]


def test_neighbours_are_the_same_in_chunks_and_in_plain_numpy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = np.random.default_rng(1).normal(size=(60, 7))
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    cosines[:, :2] = -2
    expected = np.argsort(-cosines, axis=1)[2:, :5]
    assert neighbours(torch.tensor(matrix), 5)[2:].tolist() == expected.tolist()
    monkeypatch.setattr(augmentation, "CELLS", 58 * 11)
    assert neighbours(torch.tensor(matrix), 5)[2:].tolist() == expected.tolist()


# --- together -------------------------------------------------------------------------------


def config(synonym: float = 0, exchange: float = 0, deletion: float = 0) -> TrainConfig:
    return TrainConfig(synonym=synonym, swap=exchange, deletion=deletion)


def test_where_nothing_is_asked_the_batch_is_the_same() -> None:
    ids, lengths = augment(IDS, LENGTHS, config())
    assert ids is IDS
    assert lengths is LENGTHS


def test_synonyms_swaps_and_deletions_follow_one_another(luck: Given) -> None:
    rows = IDS[:1], LENGTHS[:1]
    choice, chosen = [[0.0, 0.0, 0.0, 0.0]], [[0.1, 0.9, 0.9, 0.9]]  # 5 -> 50
    begin, pairs = [[0.9]], [[0.1, 0.9, 0.9, 0.9]]  # 50 <-> 6
    gone = [[0.9, 0.9, 0.1, 0.9]]  # 7
    luck(choice, chosen, begin, pairs, gone)
    ids, lengths = augment(*rows, config(0.5, 0.5, 0.5), TABLE)
    assert (ids.tolist(), lengths.tolist()) == ([[6, 50, 8, 0]], [3])
    assert rows[0].tolist() == [[5, 6, 7, 8]]


def test_the_same_generator_gives_the_same_batch_and_the_next_batch_differs() -> None:
    ids, lengths = batch()
    table = torch.arange(40)[:, None].repeat(1, 3) + 1
    again = seeded(4)
    one, two, three = (
        augment(ids, lengths, config(0.2, 0.2, 0.2), table, generator)[0]
        for generator in [seeded(4), again, again]
    )
    assert torch.equal(one, two)
    assert not torch.equal(two, three)


def test_without_a_generator_the_global_seed_decides() -> None:
    ids, lengths = batch()
    torch.manual_seed(3)
    one = augment(ids, lengths, config(deletion=0.3))[1]
    torch.manual_seed(3)
    assert torch.equal(one, augment(ids, lengths, config(deletion=0.3))[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_on_a_gpu_is_changed_as_on_the_cpu() -> None:
    ids, lengths = batch()
    table = torch.arange(40)[:, None].repeat(1, 3) + 1
    here = augment(ids, lengths, config(0.2, 0.2, 0.2), table, seeded())
    there = augment(ids.cuda(), lengths.cuda(), config(0.2, 0.2, 0.2), table.cuda(), seeded())
    assert all(torch.equal(one, two.cpu()) for one, two in zip(here, there, strict=True))
