"""What the text did to the labels, what the model did, and what chance alone would have done."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nightshift.drift import (
    Sample,
    compare,
    differ,
    flat,
    mix,
    separation,
    split_shift,
    stability,
    terms,
    vocabulary_drift,
)

# --- labels ---------------------------------------------------------------------------------


def test_a_shift_is_split_into_data_and_model_that_sum_to_it() -> None:
    # Old model: 20% complaints last night, 40% of tonight's documents. New model: 30% and 60%.
    [row, other] = split_shift(
        {"complaint": 0.2, "praise": 0.8},
        {"complaint": 0.6, "praise": 0.4},
        {"complaint": 0.4, "praise": 0.6},
        {"complaint": 0.3, "praise": 0.7},
    )
    assert row["label"] == "complaint"
    # The text alone does 0.2, the model alone 0.1; what is left of 0.4, 0.1, is shared.
    assert row["interaction"] == pytest.approx(0.1)
    assert row["data"] == pytest.approx(0.25)
    assert row["model"] == pytest.approx(0.15)
    assert row["data"] + row["model"] == pytest.approx(row["shift"]) == pytest.approx(0.4)
    assert other["data"] + other["model"] == pytest.approx(-0.4)


def test_with_the_same_model_the_whole_shift_is_the_datas() -> None:
    before, after = {"a": 0.5, "b": 0.5}, {"a": 0.9, "c": 0.1}
    for row in split_shift(before, after, after, before):
        assert row["model"] == pytest.approx(0)
        assert row["data"] == pytest.approx(row["shift"])
    assert {row["label"] for row in split_shift(before, after, after, before)} == {"a", "b", "c"}


def test_with_the_same_documents_the_whole_shift_is_the_models() -> None:
    before, after = {"a": 0.5, "b": 0.5}, {"a": 0.75, "b": 0.25}
    for row in split_shift(before, after, before, after):
        assert row["data"] == pytest.approx(0)
        assert row["model"] == pytest.approx(row["shift"])


def test_any_four_mixes_sum() -> None:
    random = np.random.default_rng(1)
    mixes = [dict(zip("abcde", random.dirichlet(np.ones(5)), strict=True)) for _ in range(4)]
    for row in split_shift(*mixes):
        assert row["data"] + row["model"] == pytest.approx(row["shift"], abs=1e-12)


def test_stability_of_two_mixes_is_what_the_formula_says() -> None:
    # Counts 9 and 29 of 38, and 19 of 38 each; with half a document: 9.5/39, 29.5/39, 19.5/39.
    value, noise = stability(["a"] * 9 + ["b"] * 29, ["a"] * 19 + ["b"] * 19)
    p, q = 9.5 / 39, 19.5 / 39
    expected = (q - p) * math.log(q / p) + (p - q) * math.log((1 - q) / (1 - p))
    assert value == pytest.approx(expected)
    # The 99% quantile of a chi-square with one degree of freedom is 6.635.
    assert noise == pytest.approx(6.635 * (2 / 38), rel=1e-3)
    assert stability(["a"] * 5, ["a"] * 9) == (0.0, 0.0)


def test_two_samples_of_one_mix_rarely_pass_for_drift() -> None:
    random = np.random.default_rng(3)
    above = 0
    for _ in range(200):
        one, two = (random.choice(list("abcd"), 150).tolist() for _ in range(2))
        value, noise = stability(one, two)
        above += value > noise
    assert above <= 8


# --- words and numbers ------------------------------------------------------------------------


def test_words_that_arrive_and_vanish_are_named() -> None:
    before = [f"the anchor and the harbour number {n}" for n in range(60)]
    after = [f"the pawn and the harbour number {n}" for n in range(60)]
    found = vocabulary_drift(before, after)
    assert found["arrived"] == [{"name": "pawn", "documents": 60}]
    assert found["vanished"] == [{"name": "anchor", "documents": 60}]
    # Of pawn, harbour and number, one of three was never seen.
    assert found["unseen"] == pytest.approx(1 / 3)
    assert found["usual"] == 0


def test_a_rare_word_whose_absence_is_chance_did_not_arrive() -> None:
    before = [f"harbour {n}" for n in range(40)]
    after = ["pawn harbour"] * 3 + [f"harbour {n}" for n in range(400)]
    # In 40 documents, three in 400 would be missing by chance three times in four.
    assert vocabulary_drift(before, after)["arrived"] == []


def test_chinese_words_are_counted_like_any_other() -> None:
    assert "北京大学" in terms("我们去北京大学吧")
    found = vocabulary_drift(["股票市场"] * 40, ["足球比赛"] * 40)
    assert {one["name"] for one in found["arrived"]} == {"足球比赛"} or len(found["arrived"]) == 2


def test_a_difference_is_told_in_standard_errors() -> None:
    # Variances 1 over 2 rows each: the error is 1, the difference 3.
    one, two = np.array([0.0, math.sqrt(2)]), np.array([3.0, 3 + math.sqrt(2)])
    assert differ(one, two) == (pytest.approx(3.0), pytest.approx(3.0))
    assert differ(np.ones(5), np.ones(5)) == (0.0, 0.0)
    assert differ(np.ones(1), np.ones(5)) == (0.0, 0.0)


def test_vectors_that_moved_are_told_apart_and_others_are_not() -> None:
    random = np.random.default_rng(1)
    one, two = (random.normal(size=(200, 8)).astype(np.float32) for _ in range(2))
    area, error = separation(one, two)
    assert area < 0.5 + 3 * error
    assert separation(one, two + 10)[0] == 1.0
    # By hand: of the other halves, 1 of 4 pairs is the wrong way round.
    old = np.array([[0], [1], [0], [3]], np.float32)
    new = np.array([[4], [2], [4], [5]], np.float32)
    assert separation(old, new)[0] == pytest.approx(0.75)


# --- verdict ----------------------------------------------------------------------------------


def sample(count: int, word: str, label: str, far: float = 0.0, sure: float = 0.9) -> Sample:
    random = np.random.default_rng(count)
    return Sample(
        doc_ids=[f"{word}-{n}" for n in range(count)],
        texts=[f"{word} harbour tide number{n % 7}" for n in range(count)],
        labels=[label if n % 2 else "other" for n in range(count)],
        probability=(sure + 0.02 * random.normal(size=count)).astype(np.float32),
        abstained=np.zeros(count, bool),
        vectors=(far + random.normal(size=(count, 4))).astype(np.float32),
        tokens=np.full(count, 5),
        unknown=np.zeros(count, np.int64),
    )


def test_nothing_drifts_where_nothing_changed() -> None:
    found = compare(sample(100, "wind", "a"), sample(120, "wind", "a"))
    assert found["drifts"] == []
    assert [one["kind"] for one in found["evidence"]] == [
        "labels", "words", "unknown", "vectors", "confidence",
    ]  # fmt: skip
    assert flat(found, "last_night")["drift_last_night"] == 0


def test_everything_that_drifts_is_named_with_its_evidence() -> None:
    found = compare(sample(100, "wind", "a"), sample(100, "pawn", "b", far=2.0, sure=0.6))
    assert found["drifts"] == ["labels", "words", "vectors", "confidence"]
    by_kind = {one["kind"]: one for one in found["evidence"]}
    assert by_kind["confidence"]["before"] == pytest.approx(0.9, abs=0.01)
    assert by_kind["confidence"]["after"] == pytest.approx(0.6, abs=0.01)
    assert [one["name"] for one in found["arrived"]] == ["pawn"]
    figures = flat(found, "training")
    assert figures["drift_training"] == 4
    assert figures["drift_training_labels"] > 0.25


def test_few_documents_tell_nothing() -> None:
    found = compare(sample(29, "wind", "a"), sample(100, "pawn", "b"))
    assert (found["evidence"], found["drifts"], flat(found, "x")) == ([], [], {})


def test_without_a_classifier_words_and_vectors_still_tell() -> None:
    one, two = sample(50, "wind", "a"), sample(50, "pawn", "a", far=3.0)
    bare = [Sample(s.doc_ids, s.texts, vectors=s.vectors, tokens=s.tokens, unknown=s.unknown)
            for s in (one, two)]  # fmt: skip
    found = compare(*bare)
    assert [one["kind"] for one in found["evidence"]] == ["words", "unknown", "vectors"]
    assert found["drifts"] == ["words", "vectors"]


def test_a_mix_is_shares() -> None:
    assert mix(["a", "b", "a", "a"]) == {"a": 0.75, "b": 0.25}
