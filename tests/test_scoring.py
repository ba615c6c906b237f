"""Scores by hand and against scikit-learn, comparison in pairs, and the linear model to beat."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from nightshift.scoring import (
    calibration_error,
    confusion,
    f1_by_class,
    linear_baseline,
    quality_with_labels,
    score,
)

CLASSES = ["cat", "dog"]
# Answers: cat, cat, dog, dog; the truth: cat, dog, dog, cat.
PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], np.float32)
TRUTH = ["cat", "dog", "dog", "cat"]


def test_confusion_counts_truth_by_answer_in_the_order_of_the_names() -> None:
    names, table = confusion(["b", "a", "b", "b"], ["b", "b", "a", "c"])
    assert names == ["a", "b", "c"]
    assert table.tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_scores_by_hand() -> None:
    found = score(TRUTH, PROBABILITIES, CLASSES)
    assert (found.rows, found.accuracy, found.macro_f1) == (4, 0.5, 0.5)
    assert found.confusion == [[1, 1], [1, 1]]
    expected = -(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.3)) / 4
    assert found.log_loss == pytest.approx(expected, rel=1e-6)
    # Each row is in a bin of its own: |0.9 - 1|, |0.6 - 0|, |0.8 - 1|, |0.7 - 0|, of four.
    assert found.calibration_error == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4, rel=1e-6)
    assert found.per_class[0] == {
        "label": "cat",
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "support": 2,
    }


def test_precision_recall_and_f1_by_hand() -> None:
    # cat: 2 right of 3 said and 2 there; dog: 1 right of 1 said and 2 there.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], np.float32)
    found = score(["cat", "cat", "dog", "dog"], probabilities, CLASSES)
    cat, dog = found.per_class
    assert (cat["precision"], cat["recall"], cat["support"]) == (2 / 3, 1, 2)
    assert (dog["precision"], dog["recall"], dog["support"]) == (1, 1 / 2, 2)
    assert (cat["f1"], dog["f1"]) == (pytest.approx(4 / 5), pytest.approx(2 / 3))
    assert found.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_an_unknown_label_is_wrong_at_the_smallest_probability() -> None:
    found = score(["cat", "bird"], np.array([[0.8, 0.2], [0.9, 0.1]], np.float32), CLASSES)
    assert found.labels == ["bird", "cat"]
    assert found.accuracy == 0.5
    assert found.log_loss == pytest.approx(-(math.log(0.8) + math.log(1e-6)) / 2, rel=1e-6)
    assert found.per_class[0]["recall"] == 0
    # bird 0; cat: 1 right of 2 said and 1 there, so 2 / 3.
    assert found.macro_f1 == pytest.approx(1 / 3)


def test_a_certain_mistake_costs_no_more_than_the_smallest_probability() -> None:
    found = score(["dog"], np.array([[1.0, 0.0]], np.float32), CLASSES)
    assert found.log_loss == pytest.approx(-math.log(1e-6))


def test_scores_are_plain_values() -> None:
    found = score(TRUTH, PROBABILITIES, CLASSES)
    assert set(found.figures()) == {
        "rows", "accuracy", "macro_f1", "log_loss", "calibration_error",
    }  # fmt: skip
    assert type(found.as_json()["confusion"][0][0]) is int
    assert all(type(value) in (int, float) for value in found.figures().values())


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(1)
    names = ["a", "b", "c", "d"]
    logits = random.normal(size=(300, 4)) * 2
    exact = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probabilities = exact.astype(np.float32)
    truth = [names[one] for one in random.integers(0, 4, 300)]
    answers = [names[one] for one in probabilities.argmax(1)]
    found = score(truth, probabilities, names)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, answers))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, answers, average="macro"))
    assert found.log_loss == pytest.approx(metrics.log_loss(truth, exact, labels=names), rel=1e-5)
    assert found.confusion == metrics.confusion_matrix(truth, answers).tolist()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, answers)
    for index, row in enumerate(found.per_class):
        assert row["precision"] == pytest.approx(precision[index])
        assert row["recall"] == pytest.approx(recall[index])
        assert row["f1"] == pytest.approx(f1[index])
        assert row["support"] == support[index]


def test_a_class_neither_there_nor_said_scores_nothing() -> None:
    assert f1_by_class(np.array([[2, 0], [0, 0]])).tolist() == [1, 0]


def test_calibration_error_is_the_mean_gap_of_its_bins() -> None:
    # Two bins: 0.2 and 0.4 with one of two right: |0.6 - 1| = 0.4; 0.9 right: 0.1; of three rows.
    found = calibration_error(np.array([0.2, 0.4, 0.9]), np.array([True, False, True]), bins=2)
    assert found == pytest.approx((0.4 + 0.1) / 3)


def test_full_confidence_is_in_the_last_bin() -> None:
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert calibration_error(np.array([]), np.array([], bool)) == 0


# --- the linear baseline --------------------------------------------------------------------

ENGLISH = ["the cat purrs", "a cat sleeps", "the dog barks", "a dog runs"]
CHINESE = ["足球比赛今晚开始", "球队赢得足球联赛", "股票市场今天下跌", "银行股票价格上涨"]
TWO = ["one", "one", "two", "two"]


@pytest.mark.parametrize(
    ("texts", "tests"),
    [(ENGLISH, ["my cat", "your dog"]), (CHINESE, ["足球赛", "股票"])],
    ids=["english", "chinese"],
)
def test_the_baseline_learns_words_and_chinese_characters(
    texts: list[str], tests: list[str]
) -> None:
    found = linear_baseline(texts, TWO, tests, ["one", "two"])
    assert found == {"accuracy": 1, "macro_f1": 1}


def test_the_baseline_is_scored_by_hand() -> None:
    found = linear_baseline(ENGLISH, TWO, ["cat", "cat", "dog", "dog"], ["one", "two", "two", "?"])
    # Answers: one, one, two, two. F1: one 2/3, two 1/2, ? 0.
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3)}


@pytest.mark.parametrize(
    ("texts", "labels", "tests"),
    [
        ([], [], []),
        (["a text"], ["one"], ["a text"]),
        (["text one", "text two"], ["same", "same"], ["a text"]),
        (["good text", "bad text"], ["one", "two"], []),
        (["!!!", "..."], ["one", "two"], ["?"]),
        (["a", "b"], ["one", "two"], ["c"]),
        ([f"unique{i}" for i in range(300)], ["one", "two"] * 150, ["other"]),
    ],
)
def test_there_is_no_baseline_where_there_is_nothing_to_learn(
    texts: list[str], labels: list[str], tests: list[str]
) -> None:
    assert linear_baseline(texts, labels, tests, ["one"] * len(tests)) is None


def test_the_baseline_answers_texts_without_a_known_word() -> None:
    found = linear_baseline(ENGLISH, TWO, ["", "!?", "zebra"], ["one"] * 3)
    assert found is not None
    assert found["accuracy"] in (0, 1)


def test_the_baseline_does_not_depend_on_what_was_drawn_before() -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{one}" for one in random.integers(0, 60, 6)) for _ in range(120)]
    labels = [str(one) for one in random.integers(0, 3, 120)]
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        found.append(linear_baseline(texts[:60], labels[:60], texts[60:], labels[60:]))
    assert found[0] == found[1]


def test_clusters_against_classes_by_hand() -> None:
    found = quality_with_labels(["a", "a", "a", "b", "b"], np.array([0, 0, 1, 1, 1]))
    # Cluster 0 stands for a (two of its three), cluster 1 for b (both): four of five.
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["purity"] == pytest.approx(4 / 5)
    # Pairs together: 2 in both, 4 in classes, 4 in clusters, of 10; 4 * 4 / 10 by chance.
    assert found["ari"] == pytest.approx((2 - 1.6) / (4 - 1.6))
    assert found["v_measure"] == pytest.approx(found["nmi"])
    # All in one cluster: nothing is told apart, and one class of two is matched.
    one = quality_with_labels(["a", "a", "b"], np.array([0, 0, 0]))
    assert (one["accuracy"], one["nmi"], one["homogeneity"]) == (pytest.approx(2 / 3), 0, 0)
