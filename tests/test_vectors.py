"""Vectors from the corpus itself: counts, mutual information and weights by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nightshift.batches import Documents
from nightshift.tokenizer import UNKNOWN
from nightshift.vectors import SIF, SMOOTHING, CorpusVectors, _information, count, learn

# Words 2, 3 and 4 on documents: {2, 3}, {2, 3}, {3, 4}.
THREE = [[2, 3], [2, 3, 3], [3, 4]]


def documents(rows: list[list[int]], most: int = 50) -> Documents:
    return Documents.from_lists(rows).cut(most)


def topics(rows: int, seed: int = 1) -> list[list[int]]:
    """Documents in turn of four topics: two words of all (2 to 5), four of ten of their own."""
    random = np.random.default_rng(seed)
    return [
        [*random.integers(2, 6, 2).tolist(), *random.integers(6 + 10 * topic, 16 + 10 * topic, 4)]
        for topic in np.arange(rows) % 4
    ]


def test_tokens_are_counted_by_document() -> None:
    found = count(documents([[2, 3, 2], [], [4]]), 5)
    assert found.toarray().tolist() == [[0, 0, 2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert count(documents([]), 5).shape == (0, 5)


def test_counting_respects_selections_and_cut_documents() -> None:
    some = documents([[2, 3, 4], [3, 3, 2], [4, 4, 4]], most=2).take(np.array([2, 0]))
    assert count(some, 5).toarray().tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 1, 0]]


def test_what_is_left_out_of_the_middle_is_neither_counted_nor_embedded() -> None:
    whole = Documents.from_lists([[2, 3, 3, 3, 4], [], [3]])
    ends = whole.cut(2, "both")
    assert count(ends, 5).toarray().tolist() == [[0, 0, 1, 0, 1], [0] * 5, [0, 0, 0, 1, 0]]
    words = np.array([[0, 0], [0, 0], [3, 0], [9, 9], [0, 4]], np.float32)
    found = CorpusVectors(words, np.zeros(2, np.float32)).embed(ends)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0.5**0.5] * 2], atol=1e-6)


def test_mutual_information_by_hand() -> None:
    found = _information(count(documents(THREE), 5)).toarray()
    # Pairs sharing documents: (2, 3) twice, (3, 4) once. Row sums: 2 -> 2, 3 -> 3, 4 -> 1.
    # Context shares with power 0.75: 2^.75, 3^.75 and 1 over their sum 4.961300.
    contexts = {2: 2**SMOOTHING, 3: 3**SMOOTHING, 4: 1.0}
    total = sum(contexts.values())
    assert total == pytest.approx(4.961300, abs=1e-5)

    def by_hand(pairs: int, row_sum: int, context: int) -> float:
        return math.log(pairs / (row_sum * contexts[context] / total))

    expected = np.zeros((5, 5))
    expected[2, 3] = by_hand(2, 2, 3)  # ln 2.1765 = 0.7777
    expected[3, 2] = by_hand(2, 3, 2)  # ln 1.9667 = 0.6763
    expected[3, 4] = by_hand(1, 3, 4)  # ln 1.6538 = 0.5031
    expected[4, 3] = by_hand(1, 1, 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[2, 3] == pytest.approx(0.7777, abs=1e-4)


def test_less_than_chance_is_no_information() -> None:
    # Word 2 meets 3 once, though both are everywhere else: below chance, so nothing.
    rows = [[2, 4]] * 9 + [[3, 5]] * 9 + [[2, 3]]
    found = _information(count(documents(rows), 6)).toarray()
    assert found[2, 3] == found[3, 2] == 0
    assert found[2, 4] > 0


def test_a_frequent_word_weighs_less_by_smooth_inverse_frequency() -> None:
    # Word 3 is 4 of 7 tokens. A word's vector is its direction times SIF / (SIF + share).
    found = learn(documents(THREE), 5, width=2).words
    information = _information(count(documents(THREE), 5)).toarray()
    left, strength, _ = np.linalg.svd(information)
    for word, share in {2: 2 / 7, 3: 4 / 7, 4: 1 / 7}.items():
        plain = np.linalg.norm(left[word, :2] * np.sqrt(strength[:2]))
        expected = plain * SIF / (SIF + share)
        assert np.linalg.norm(found[word]) == pytest.approx(expected, rel=1e-4)


def test_a_document_is_the_mean_of_its_words_without_what_is_common() -> None:
    words = np.array([[0, 0], [0, 0], [3, 0], [0, 4], [1, 0]], np.float32)
    vectors = CorpusVectors(words, np.zeros(2, np.float32))
    # (3, 0) + (0, 4) is at 0.6, 0.8; a word twice counts twice: (6, 4).
    found = vectors.embed(documents([[2, 3], [2, 2, 3]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [6 / 52**0.5, 4 / 52**0.5]], atol=1e-6)
    without_first = CorpusVectors(words, np.array([1, 0], np.float32))
    np.testing.assert_allclose(without_first.embed(documents([[2, 3]])), [[0, 1]], atol=1e-6)


@pytest.mark.parametrize("rows", [[[UNKNOWN, UNKNOWN]], [[UNKNOWN]], [[]]])
def test_a_document_of_unknown_words_alone_is_zero(rows: list[list[int]]) -> None:
    vectors = learn(documents(topics(40)), 46, width=5)
    found = vectors.embed(documents(rows))
    assert found.shape == (1, 5)
    assert not found.any()


def test_unknown_words_turn_no_document() -> None:
    vectors = learn(documents(topics(40)), 46, width=5)
    one, two = vectors.embed(documents([[2, 3], [2, UNKNOWN, 3, UNKNOWN]]))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_vectors_have_unit_length_and_tell_topics_apart() -> None:
    rows = topics(200)
    vectors = learn(documents(rows), 46, width=10)
    found = vectors.embed(documents(rows))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    likeness = np.array(
        [[(found[i::4] @ found[j::4].T).mean() for j in range(4)] for i in range(4)]
    )
    assert (likeness > 0.5).tolist() == np.eye(4, dtype=bool).tolist()


def test_the_same_documents_give_the_same_vectors() -> None:
    one, two = (learn(documents(topics(60)), 46, width=5) for _ in range(2))
    assert np.array_equal(one.words, two.words)
    assert np.array_equal(one.common, two.common)


def test_a_document_gets_the_same_vector_alone_and_among_many() -> None:
    rows = topics(60)
    vectors = learn(documents(rows), 46, width=5)
    together = vectors.embed(documents(rows))
    for row in (0, 7, 59):
        np.testing.assert_allclose(
            vectors.embed(documents([rows[row]]))[0], together[row], atol=1e-6
        )
    assert vectors.embed(documents([])).shape == (0, 5)


@pytest.mark.parametrize(
    "rows", [[[2, 3]], [[2, 3], [4, 5]], [[2, 3, 4]] * 5, [[2], [3], [4]], [[UNKNOWN]] * 3]
)
def test_a_corpus_in_which_nothing_differs_gives_zeros_and_not_noise(rows: list[list[int]]) -> None:
    found = learn(documents(rows), 8).embed(documents(rows))
    assert not found.any()


def test_the_width_is_that_of_a_small_corpus() -> None:
    assert learn(documents(THREE), 5).words.shape == (5, 2)
    assert learn(documents(topics(200)), 46).words.shape == (46, 45)
    assert learn(documents(topics(200)), 46, width=7).common.shape == (7,)
