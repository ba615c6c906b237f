"""Batches: documents end to end in one array, padded on the right, bucketed by length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from nightshift.batches import Documents, buckets
from nightshift.tokenizer import PADDING

ROWS = [[5, 6, 7], [8], [], [9, 10]]


def documents(max_tokens: int = 10) -> Documents:
    return Documents.from_lists(ROWS, max_tokens)


def batches(lengths: list[int], tokens: int, seed: int | None = None) -> list[list[int]]:
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


def test_a_long_document_is_read_from_its_head() -> None:
    ids, lengths = documents(max_tokens=2).pad(np.array([0, 3]))
    assert ids.tolist() == [[5, 6], [9, 10]]
    assert lengths.tolist() == [2, 2]


def test_an_empty_document_is_padding_alone() -> None:
    ids, lengths = documents().pad(np.array([2]))
    assert (ids.tolist(), lengths.tolist()) == ([[PADDING]], [0])
    nothing = Documents.from_lists([[]], 10)
    assert nothing.pad(np.array([0]))[0].tolist() == [[PADDING]]


def test_arrow_in_chunks_and_slices_gives_the_same_documents() -> None:
    kind = pa.list_(pa.int32())
    whole = pa.array(ROWS, kind)
    chunked = pa.chunked_array([whole.slice(0, 1), whole.slice(1)])
    for given in (whole, chunked, pa.array([[1, 2], *ROWS], kind).slice(1)):
        found = Documents.from_arrow(given, 10)
        ids, lengths = found.pad(np.arange(4))
        assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0], [9, 10, 0]]
        assert lengths.tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("chunks", [[], [pa.array([], pa.list_(pa.int32()))]])
def test_no_rows_are_no_documents(chunks: list[pa.Array]) -> None:
    found = Documents.from_arrow(pa.chunked_array(chunks, pa.list_(pa.int32())), 10)
    assert len(found) == 0
    assert list(buckets(found.lengths, 64)) == []


def test_a_selection_shares_the_ids_and_keeps_its_labels() -> None:
    labelled = replace(documents(), labels=np.array([0, 1, 2, 3]))
    found = labelled.take(np.array([3, 1]))
    assert found.ids is labelled.ids
    assert found.labels is not None
    assert found.labels.tolist() == [3, 1]
    assert found.pad(np.array([0]))[0].tolist() == [[9, 10]]
    other = labelled.take(np.array([3]), np.array([7]))
    assert other.labels is not None
    assert other.labels.tolist() == [7]
    assert documents().take(np.array([0])).labels is None


# --- buckets --------------------------------------------------------------------------------


def test_documents_are_sorted_by_length_and_cut_where_the_budget_ends() -> None:
    # Sorted: 1 (row 1), 2 (row 3), 2 (row 4), 3 (row 2), 6 (row 0). Budget 6 with padding:
    # [1, 2, 2] is 3 x 2 = 6; a fourth would be 4 x 3 = 12. [3] alone, for 2 x 6 is too much.
    assert batches([6, 1, 3, 2, 2], 6) == [[1, 3, 4], [2], [0]]


def test_a_document_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert batches([100, 1, 1], 8) == [[1, 2], [0]]
    assert batches([100, 200], 8) == [[0], [1]]


def test_equally_long_documents_keep_their_order() -> None:
    assert batches([2, 2, 2, 2], 4) == [[0, 1], [2, 3]]


def test_empty_documents_cost_nothing_and_are_not_lost() -> None:
    assert batches([0, 0, 4], 4) == [[0, 1], [2]]


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("tokens", [1, 16, 10_000])
def test_every_document_comes_once_and_within_the_budget(tokens: int, seed: int | None) -> None:
    lengths = np.random.default_rng(0).integers(0, 30, 500)
    found = batches(lengths.tolist(), tokens, seed)
    assert sorted(row for rows in found for row in rows) == list(range(500))
    for rows in found:
        assert rows
        assert len(rows) == 1 or len(rows) * max(lengths[rows]) <= tokens


def test_shuffled_batches_repeat_with_their_seed_and_differ_with_another() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500).tolist()
    assert batches(lengths, 64, 1) == batches(lengths, 64, 1)
    assert batches(lengths, 64, 1) != batches(lengths, 64, 2)


def test_shuffled_batches_come_neither_short_first_nor_much_padded() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    found = batches(lengths.tolist(), 1000, 1)
    longest = [int(max(lengths[rows])) for rows in found]
    assert longest != sorted(longest)
    padded = sum(len(rows) * long for rows, long in zip(found, longest, strict=True))
    assert padded < 1.15 * lengths.sum()
