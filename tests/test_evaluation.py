"""Slices, calibration, mistakes, label errors, near duplicates: by hand, and on planted cases."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import TOPICS, rows
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from nightshift.evaluation import (
    MISTAKES,
    label_errors,
    near_duplicates,
    reliability,
    slice_scores,
    surest_mistakes,
    wilson,
)
from nightshift.scoring import calibration_error

# --- slices ---------------------------------------------------------------------------------


def test_an_interval_of_eight_right_in_ten_is_that_of_the_textbook() -> None:
    # (0.8 + 1.96**2 / 20 ± 1.96 sqrt(0.016 + 1.96**2 / 400)) / (1 + 1.96**2 / 10)
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)


def test_an_interval_stays_within_zero_and_one() -> None:
    assert wilson(5, 5) == (pytest.approx(0.56551, abs=1e-5), 1.0)
    assert wilson(0, 5) == (0.0, pytest.approx(0.43449, abs=1e-5))
    assert wilson(0, 0) == (0.0, 1.0)


def test_each_slice_is_scored_on_its_own_rows() -> None:
    truth = ["a", "a", "b", "b", "a"]
    said = ["a", "b", "b", "b", "b"]
    found = slice_scores(truth, said, {"region": ["north", "north", "north", "south", "south"]})
    assert [(one["name"], one["rows"]) for one in found] == [("north", 3), ("south", 2)]
    assert [one["accuracy"] for one in found] == [pytest.approx(2 / 3), 0.5]
    # North: a is right in 1 of 1 said and 2 there, b in 1 of 2 said and 1 there: F1 2/3 each.
    # South: b is right in 1 of 2 said and 1 there, F1 2/3; a is never said, F1 0.
    assert [one["macro_f1"] for one in found] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert (found[1]["low"], found[1]["high"]) == pytest.approx(wilson(1, 2))


def test_a_kind_that_does_not_part_the_rows_is_left_out() -> None:
    assert slice_scores(["a", "b"], ["a", "b"], {"language": ["en", "en"]}) == []


def test_lengths_are_told_from_short_to_long() -> None:
    names = ["10 to 12 tokens", "2 to 9 tokens", "10 to 12 tokens"]
    found = slice_scores(["a"] * 3, ["a"] * 3, {"length": names})
    assert [one["name"] for one in found] == ["2 to 9 tokens", "10 to 12 tokens"]


# --- calibration and mistakes ---------------------------------------------------------------


def test_the_gaps_of_the_reliability_picture_add_up_to_the_calibration_error() -> None:
    # Two rows in the bin of 8/15 to 9/15, one right; one of 14/15 to 1, right.
    confidence, correct = np.array([0.55, 0.59, 0.95]), np.array([True, False, True])
    found = reliability(confidence, correct)
    assert [(one["rows"], one["accuracy"]) for one in found] == [(2, 0.5), (1, 1.0)]
    assert [one["confidence"] for one in found] == [pytest.approx(0.57), pytest.approx(0.95)]
    gap = (2 * (0.57 - 0.5) + (1 - 0.95)) / 3
    assert calibration_error(confidence, correct) == pytest.approx(gap)


def test_the_surest_mistakes_come_first_and_right_answers_not_at_all() -> None:
    confidence = np.array([0.99, 0.6, 0.9, 0.7])
    assert surest_mistakes([*"aabb"], [*"abba"], confidence).tolist() == [3, 1]
    many = surest_mistakes(["a"] * 300, ["b"] * 300, np.linspace(0, 1, 300))
    assert many.tolist() == list(range(299, 299 - MISTAKES, -1))


# --- label errors ---------------------------------------------------------------------------


def test_confident_learning_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    labels = np.array([0, 0, 0, 1, 1])
    # Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6; class 1 (0.8 + 0.7) / 2 = 0.75.
    # Row 2 bears label 0, and is 0.9 >= 0.75 sure of class 1; row 4 reaches neither threshold.
    found = label_errors(labels, probabilities)
    assert (found.rows.tolist(), found.suggested.tolist()) == ([2], [1])
    assert found.margins.tolist() == [pytest.approx(0.1 - 0.9)]
    # Confident joint [[2, 1], [0, 1]], its rows raised to 3 and 2: 1 of 5 is off the diagonal.
    assert found.share == pytest.approx(1 / 5)


def test_suspects_are_ranked_by_their_margin() -> None:
    probabilities = np.array([[0.3, 0.7], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    found = label_errors(np.array([0, 0, 0, 0, 1]), probabilities)
    assert found.rows.tolist() == [1, 0]


def test_a_class_that_labels_no_row_is_never_suggested() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]])
    found = label_errors(np.array([0, 1]), probabilities)
    assert not len(found.rows)
    assert label_errors(np.empty(0, np.int64), np.empty((0, 3))).share == 0


def test_flipped_labels_are_found_among_held_out_rows() -> None:
    chance = random.Random(1)
    given = rows(200)
    names = sorted(TOPICS)
    true = np.array([names.index(row["label"]) for row in given])
    flipped = np.array([chance.random() < 0.1 for _ in given])
    labels = np.where(flipped, (true + np.array([chance.choice([1, 2]) for _ in given])) % 3, true)
    order = np.random.default_rng(1).permutation(len(given))
    taught, held = order[:400], order[400:]
    features = TfidfVectorizer().fit([given[row]["text"] for row in taught])
    vectors = [features.transform([given[row]["text"] for row in side]) for side in (taught, held)]
    model = LogisticRegression().fit(vectors[0], labels[taught])
    found = label_errors(labels[held], model.predict_proba(vectors[1]))
    right = flipped[held][found.rows]
    # By chance one in ten would be.
    assert right.mean() > 0.8
    assert right.sum() > 0.8 * flipped[held].sum()
    agree = found.suggested[right] == true[held][found.rows][right]
    assert agree.mean() > 0.9
    assert found.share == pytest.approx(flipped[held].mean(), abs=0.05)


# --- near duplicates ------------------------------------------------------------------------


def runs(text: str) -> set[str]:
    """The same sets, without hashes: every character with two on either side."""
    whole = "\n\n" + " ".join(text.casefold().split()) + "\n\n"
    return {whole[place : place + 5] for place in range(len(whole) - 4)}


def likeness(one: str, two: str) -> float:
    return len(runs(one) & runs(two)) / len(runs(one) | runs(two))


def test_a_changed_character_in_twenty_makes_a_near_duplicate_by_hand() -> None:
    # Twenty characters have twenty runs; one in the middle stands in five of them: 15 of 25.
    found = near_duplicates(["abcdefghijklmnopqrst"], ["0123", "abcdefghiXklmnopqrst"], 0.6)
    assert (found.rows.tolist(), found.partners.tolist()) == ([0], [1])
    assert found.similarity.tolist() == [0.6]
    assert not len(near_duplicates(["abcdefghijklmnopqrst"], ["abcdefghiXklmnopqrst"], 0.61).rows)


def test_case_and_spaces_make_no_difference_and_the_likest_is_told() -> None:
    train = ["an other text altogether", "The  CAT sat on a mat.", "the cat sat on a mat!"]
    found = near_duplicates(["the cat sat on a mat."], train, 0.6)
    assert (found.partners.tolist(), found.similarity.tolist()) == ([1], [1.0])


def test_chinese_and_very_short_texts_have_near_duplicates_too() -> None:
    test = ["天津师范大学2010年高考录取结果查询系统开通", "是", "不是"]
    found = near_duplicates(test, ["山西师范大学2010年高考录取结果查询系统开通", "是"], 0.6)
    assert found.rows.tolist() == [0, 1]
    assert found.similarity[0] == pytest.approx(likeness(test[0], "山西" + test[0][2:]))


def test_every_near_duplicate_among_short_texts_is_found_with_its_likeness() -> None:
    chance = random.Random(3)
    train = [row["text"] for row in rows(100)]
    test = [row["text"] for row in rows(30, seed=9)]
    for text in train[::7]:
        words = text.split()
        words[chance.randrange(len(words))] = "marmalade"
        test.append(" ".join(words))
    best = np.array([max(likeness(one, other) for other in train) for one in test])
    found = near_duplicates(test, train, 0.6)
    assert found.rows.tolist() == np.flatnonzero(best >= 0.6).tolist()
    assert len(found.rows) > 30
    np.testing.assert_allclose(found.similarity, best[found.rows])


def test_a_long_text_with_a_new_paragraph_is_found_by_a_sample_of_it() -> None:
    chance = random.Random(5)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 9)))
             for _ in range(3000)]  # fmt: skip
    texts = [" ".join(chance.choices(words, k=1500)) for _ in range(20)]
    changed = texts[7] + " " + " ".join(chance.choices(words, k=150))
    found = near_duplicates([changed, " ".join(chance.choices(words, k=1500))], texts, 0.6)
    assert (found.rows.tolist(), found.partners.tolist()) == ([0], [7])
    assert found.similarity[0] == pytest.approx(likeness(changed, texts[7]), abs=0.12)


def test_a_template_that_everybody_fills_in_is_found_without_comparing_all_with_all() -> None:
    train = [f"Your order {number} has left our house and will be with you soon." for number in
             range(10_000, 12_000)]  # fmt: skip
    test = [f"Your order {number} has left our house and will be with you soon." for number in
            range(20_000, 20_200)]  # fmt: skip
    assert len(near_duplicates(test, train, 0.6).rows) == 200


@pytest.mark.parametrize(("test", "train"), [([], ["a"]), (["a"], []), ([], []), ([""], [""])])
def test_without_texts_there_are_no_near_duplicates(test: list[str], train: list[str]) -> None:
    assert not len(near_duplicates(test, train, 0.6).rows)
