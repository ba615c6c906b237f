"""Batches: documents end to end in one array, cut, padded and bucketed by length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from nightshift.batches import Documents, batches, buckets
from nightshift.tokenizer import PADDING

ROWS = [[5, 6, 7], [8], [], [9, 10]]


def documents() -> Documents:
    return Documents.from_lists(ROWS)


def bucketed(lengths: list[int], tokens: int, seed: int | None = None) -> list[list[int]]:
    random = None if seed is None else np.random.default_rng(seed)
    return [rows.tolist() for rows in buckets(np.array(lengths, np.int64), tokens, random)]


def test_documents_lie_end_to_end() -> None:
    found = documents()
    assert found.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert found.starts.tolist() == [0, 3, 4, 4]
    assert found.lengths.tolist() == [3, 1, 0, 2]
    assert len(found) == 4


def test_a_batch_is_padded_on_the_right_to_its_longest_document() -> None:
    ids, lengths = documents().pad(np.array([3, 0, 1]))
    assert ids.tolist() == [[9, 10, PADDING], [5, 6, 7], [8, PADDING, PADDING]]
    assert lengths.tolist() == [2, 3, 1]
    assert str(ids.dtype) == str(lengths.dtype) == "torch.int64"


def test_an_empty_document_is_padding_alone() -> None:
    ids, lengths = documents().pad(np.array([2]))
    assert (ids.tolist(), lengths.tolist()) == ([[PADDING]], [0])
    behind = Documents.from_lists([[5], []])
    assert behind.pad(np.array([1, 0]))[0].tolist() == [[PADDING], [5]]
    nothing = Documents.from_lists([[]])
    assert nothing.pad(np.array([0]))[0].tolist() == [[PADDING]]


def test_arrow_in_chunks_and_slices_gives_the_same_documents() -> None:
    kind = pa.list_(pa.int32())
    whole = pa.array(ROWS, kind)
    chunked = pa.chunked_array([whole.slice(0, 1), whole.slice(1)])
    for given in (whole, chunked, pa.array([[1, 2], *ROWS], kind).slice(1)):
        found = Documents.from_arrow(given)
        ids, lengths = found.pad(np.arange(4))
        assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0], [9, 10, 0]]
        assert lengths.tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("chunks", [[], [pa.array([], pa.list_(pa.int32()))]])
def test_no_rows_are_no_documents(chunks: list[pa.Array]) -> None:
    found = Documents.from_arrow(pa.chunked_array(chunks, pa.list_(pa.int32())))
    assert len(found) == 0
    assert list(buckets(found.lengths, 64)) == []


def test_a_selection_shares_the_ids_and_keeps_its_labels() -> None:
    labelled = replace(documents(), labels=np.array([0, 1, 2, 3]))
    found = labelled.take(np.array([3, 1]))
    assert found.ids is labelled.ids
    assert found.labels is not None
    assert found.labels.tolist() == [3, 1]
    assert found.pad(np.array([0]))[0].tolist() == [[9, 10]]
    assert documents().take(np.array([0])).labels is None


def test_labels_are_given_and_taken_away_without_touching_the_documents() -> None:
    found = documents().labelled(np.array([3, 2, 1, 0]))
    assert found.labels is not None
    assert found.labels.tolist() == [3, 2, 1, 0]
    assert found.ids is found.labelled(None).ids
    assert found.labelled(None).labels is None


# --- cutting --------------------------------------------------------------------------------

TEN = list(range(2, 12))


def read(found: Documents) -> list[list[int]]:
    """What is read of every document."""
    ids, lengths = found.pad(np.arange(len(found)))
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize(
    ("truncation", "most", "expected"),
    [
        ("head", 4, [2, 3, 4, 5]),
        ("tail", 4, [8, 9, 10, 11]),
        ("both", 4, [2, 3, 10, 11]),
        ("head", 5, [2, 3, 4, 5, 6]),
        ("tail", 5, [7, 8, 9, 10, 11]),
        # Of an odd number the head has one more.
        ("both", 5, [2, 3, 4, 10, 11]),
        ("both", 1, [2]),
        ("tail", 1, [11]),
        ("both", 9, [2, 3, 4, 5, 6, 8, 9, 10, 11]),
        ("both", 10, TEN),
        ("tail", 99, TEN),
    ],
)
def test_of_a_long_document_its_head_its_tail_or_both_ends_are_read(
    truncation: str, most: int, expected: list[int]
) -> None:
    cut = Documents.from_lists([[7], TEN, []]).cut(most, truncation)
    assert read(cut) == [[7], expected, []]
    assert cut.lengths.tolist() == [1, len(expected), 0]


@pytest.mark.parametrize("truncation", ["head", "tail", "both"])
def test_cut_twice_is_cut_once(truncation: str) -> None:
    once = Documents.from_lists([TEN, TEN[:6], TEN[:2]]).cut(5, truncation)
    assert read(once.cut(5, truncation)) == read(once)


def test_a_selection_of_cut_documents_is_the_cut_of_the_selection() -> None:
    whole = Documents.from_lists([TEN[:3], TEN, TEN[2:8]])
    rows = np.array([2, 0, 1])
    assert read(whole.cut(4, "both").take(rows)) == read(whole.take(rows).cut(4, "both"))
    assert read(whole.cut(4, "both").take(rows)) == [[4, 5, 8, 9], [2, 3, 4], [2, 3, 10, 11]]


def test_cutting_copies_no_ids_and_leaves_the_whole_documents_alone() -> None:
    whole = Documents.from_lists([TEN])
    for truncation in ("head", "tail", "both"):
        assert whole.cut(3, truncation).ids is whole.ids
    assert read(whole) == [TEN]


def test_joined_documents_come_one_after_the_other_each_cut_as_it_was() -> None:
    one = Documents.from_lists([TEN, [7]]).labelled(np.array([0, 1]))
    two = Documents.from_lists([[5, 6], TEN[::-1]]).labelled(np.array([1, 0]))
    found = one.cut(3, "both").join(two.cut(4, "tail"))
    assert read(found) == [[2, 3, 11], [7], [5, 6], [5, 4, 3, 2]]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert read(two.join(one.cut(3, "both"))) == [[5, 6], TEN[::-1], [2, 3, 11], [7]]
    assert read(one.join(two)) == [TEN, [7], [5, 6], TEN[::-1]]


# --- padding to a width -----------------------------------------------------------------------


def test_all_can_be_padded_to_one_width_behind_the_text() -> None:
    ids, lengths = documents().pad(np.array([1, 3, 2]), width=4)
    assert ids.tolist() == [[8, 0, 0, 0], [9, 10, 0, 0], [0, 0, 0, 0]]
    assert lengths.tolist() == [1, 2, 0]


def test_padding_before_the_text_counts_as_text() -> None:
    ids, lengths = documents().pad(np.array([1, 3, 0]), width=4, before=True)
    assert ids.tolist() == [[0, 0, 0, 8], [0, 0, 9, 10], [0, 5, 6, 7]]
    assert lengths.tolist() == [4, 4, 4]
    ids, lengths = documents().pad(np.array([0, 3]), before=True)
    assert ids.tolist() == [[5, 6, 7], [0, 9, 10]]
    assert lengths.tolist() == [3, 3]


def test_a_document_read_at_both_ends_is_padded_before_them() -> None:
    cut = Documents.from_lists([TEN, [7]]).cut(3, "both")
    ids, _ = cut.pad(np.array([0, 1]), width=5, before=True)
    assert ids.tolist() == [[0, 0, 2, 3, 11], [0, 0, 0, 0, 7]]


def test_lengths_given_out_are_copies() -> None:
    found = documents()
    found.pad(np.arange(4))[1][0] = 99
    assert found.lengths.tolist() == [3, 1, 0, 2]


# --- without regard to length -----------------------------------------------------------------


def test_unsorted_batches_hold_every_row_once_and_as_many_as_buckets_on_average() -> None:
    # Mean length 4: a budget of 20 is five documents a batch, and the last has what is left.
    lengths = np.array([1, 7] * 11 + [4])
    found = [rows.tolist() for rows in batches(lengths, 20, np.random.default_rng(1))]
    assert [len(rows) for rows in found] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate(found).tolist()) == list(range(23))
    again = [rows.tolist() for rows in batches(lengths, 20, np.random.default_rng(1))]
    other = [rows.tolist() for rows in batches(lengths, 20, np.random.default_rng(2))]
    assert found == again != other


def test_unsorted_batches_have_a_document_however_small_the_budget() -> None:
    lengths = np.array([30, 50])
    found = [rows.tolist() for rows in batches(lengths, 1, np.random.default_rng(1))]
    assert sorted(found) == [[0], [1]]
    assert list(batches(np.array([], np.int64), 64, np.random.default_rng(1))) == []


# --- buckets --------------------------------------------------------------------------------


def test_documents_are_sorted_by_length_and_cut_where_the_budget_ends() -> None:
    # Sorted: 1 (row 1), 2 (row 3), 2 (row 4), 3 (row 2), 6 (row 0). Budget 6 with padding:
    # [1, 2, 2] is 3 x 2 = 6; a fourth would be 4 x 3 = 12. [3] alone, for 2 x 6 is too much.
    assert bucketed([6, 1, 3, 2, 2], 6) == [[1, 3, 4], [2], [0]]


def test_a_document_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert bucketed([100, 1, 1], 8) == [[1, 2], [0]]
    assert bucketed([100, 200], 8) == [[0], [1]]


def test_equally_long_documents_keep_their_order() -> None:
    assert bucketed([2, 2, 2, 2], 4) == [[0, 1], [2, 3]]


def test_empty_documents_cost_nothing_and_are_not_lost() -> None:
    assert bucketed([0, 0, 4], 4) == [[0, 1], [2]]


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("tokens", [1, 16, 10_000])
def test_every_document_comes_once_and_within_the_budget(tokens: int, seed: int | None) -> None:
    lengths = np.random.default_rng(0).integers(0, 30, 500)
    found = bucketed(lengths.tolist(), tokens, seed)
    assert sorted(row for rows in found for row in rows) == list(range(500))
    for rows in found:
        assert rows
        assert len(rows) == 1 or len(rows) * max(lengths[rows]) <= tokens


def test_shuffled_batches_repeat_with_their_seed_and_differ_with_another() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500).tolist()
    assert bucketed(lengths, 64, 1) == bucketed(lengths, 64, 1)
    assert bucketed(lengths, 64, 1) != bucketed(lengths, 64, 2)


def test_shuffled_batches_come_neither_short_first_nor_much_padded() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    found = bucketed(lengths.tolist(), 1000, 1)
    longest = [int(max(lengths[rows])) for rows in found]
    assert longest != sorted(longest)
    padded = sum(len(rows) * long for rows, long in zip(found, longest, strict=True))
    assert padded < 1.15 * lengths.sum()
