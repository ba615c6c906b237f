"""Deciding: blended probabilities, answers kept back, thresholds for a rare class."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from nightshift.deciding import (
    WIDEST,
    Blend,
    Gaussians,
    Reject,
    Spaces,
    Threshold,
    apply_threshold,
    average_precision,
    class_weights,
    fit_blend,
    fit_near,
    fit_reject,
    keep_threshold,
    positive_class,
    recall_at_precision,
    sample,
    softmax,
    temperature,
    threshold_for,
)
from nightshift.errors import ConfigError
from nightshift.recipe import AnswerConfig

LN3 = math.log(3)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def drawn(rows: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels that were drawn from exactly their softmax; 4 classes."""
    random = np.random.default_rng(seed)
    scores = strength * random.normal(size=(rows, 4))
    steps = softmax(scores).cumsum(1)
    return scores, (random.random((rows, 1)) > steps[:, :3]).sum(1)


# --- temperature ----------------------------------------------------------------------------


def test_the_temperature_makes_confidence_match_how_often_it_is_right() -> None:
    # Scores say (4, 0) in every row, and three rows of four agree: 4 / T = ln 3, T = 3.6410.
    scores = np.array([[4.0, 0.0]] * 4, np.float32)
    assert temperature(scores, np.array([0, 0, 0, 1])) == pytest.approx(4 / LN3, rel=1e-6)


def test_scores_that_are_calibrated_keep_their_temperature() -> None:
    scores = np.array([[LN3, 0.0]] * 4)
    assert temperature(scores, np.array([0, 0, 0, 1])) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("label", "bound"), [(0, math.exp(-2.5)), (1, math.exp(2.5))])
def test_the_temperature_stays_in_its_bounds_where_all_is_right_or_wrong(
    label: int, bound: float
) -> None:
    scores = np.array([[1.0, 0.0]] * 4)
    assert temperature(scores, np.array([label] * 4)) == pytest.approx(bound, rel=1e-6)


def test_a_row_of_unknown_class_keeps_few_right_answers_from_being_certain() -> None:
    # Four of four right and one row that is half right: 4.5 of 5, 4 / T = ln 9.
    scores = np.array([[4.0, 0.0]] * 4)
    assert temperature(scores, np.zeros(4, int), 1.0) == pytest.approx(4 / (2 * LN3), rel=1e-6)


def test_the_temperature_is_one_without_a_row_and_untouched_by_a_shift_of_all_scores() -> None:
    scores, labels = drawn(200, 3.0, 1)
    assert temperature(np.empty((0, 3)), np.empty(0, int)) == 1
    assert temperature(scores + 700, labels) == pytest.approx(temperature(scores, labels))


# --- blend ----------------------------------------------------------------------------------


def test_a_blend_mixes_the_softened_paths_by_its_weight() -> None:
    # Network (ln 9, 0) / 2 -> (3/4, 1/4), wide (0, 0) -> (1/2, 1/2); 0.2 and 0.8 of them: 0.55.
    blend = Blend(2.0, 1.0, 0.2)
    network, wide = np.array([[2 * LN3, 0.0]], np.float32), np.zeros((1, 2), np.float32)
    found = blend.probabilities(network, wide)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx([0.55, 0.45], abs=1e-6)


def test_the_last_temperature_sharpens_the_blend() -> None:
    # (3/4, 1/4) at temperature 1/2: squares, 9 to 1.
    found = Blend(1.0, 1.0, 1.0, 0.5).probabilities(np.array([[LN3, 0.0]]), None)
    assert found[0] == pytest.approx([0.9, 0.1], abs=1e-6)


def test_the_weight_solves_its_equation_with_ten_rows_added() -> None:
    # The network says 4 to 1 for class 0 and the wide path 2 to 3, of 20 rows of it and 10 others.
    # Ten more rows, half of them explained by one path alone: the best weight, on a fine grid.
    labels = np.array([0] * 20 + [1] * 10)
    network = np.log(np.tile([0.8, 0.2], (30, 1)))
    wide = np.log(np.tile([0.4, 0.6], (30, 1)))
    grid = np.linspace(0.0005, 0.9995, 999)
    fitted = fit_blend(network, wide, labels)
    softened = [
        softmax(path / t)[0, 0]
        for path, t in ((network, fitted.network_temperature), (wide, fitted.wide_temperature))
    ]
    one, two = (a * grid + b * (1 - grid) for a, b in (softened, [1 - s for s in softened]))
    gain = 20 * np.log(one) + 10 * np.log(two) + 5 * np.log(grid) + 5 * np.log(1 - grid)
    assert fitted.weight == pytest.approx(grid[gain.argmax()], abs=0.002)


def test_the_path_that_knows_more_gets_the_weight_and_few_rows_share_it() -> None:
    scores, labels = drawn(4000, 3.0, 2)
    noise = np.random.default_rng(3).normal(size=scores.shape)
    many = fit_blend(scores, noise, labels)
    few = fit_blend(scores[:12], noise[:12], labels[:12])
    assert many.weight > 0.98
    assert fit_blend(noise, scores, labels).weight == pytest.approx(1 - many.weight, abs=1e-6)
    assert 0.5 < few.weight < 0.8
    none = fit_blend(scores[:0], noise[:0], labels[:0])
    assert list(none.as_json().values()) == pytest.approx([1, 1, 0.5, 1])


def test_a_blend_of_two_halves_of_the_evidence_beats_both_and_is_calibrated() -> None:
    scores, labels = drawn(8000, 3.0, 4)
    other = np.random.default_rng(5).normal(size=scores.shape) * 2
    network, wide = 2 * (scores + other), 0.5 * (scores - other)
    fitted = fit_blend(network[:4000], wide[:4000], labels[:4000])
    found = fitted.probabilities(network[4000:], wide[4000:])
    rest = labels[4000:]
    alone = [
        fit_blend(a, b, labels[:4000]) for a, b in ((network[:4000], None), (None, wide[:4000]))
    ]
    losses = [
        log_loss(alone[0].probabilities(network[4000:], None), rest),
        log_loss(alone[1].probabilities(None, wide[4000:]), rest),
    ]
    assert log_loss(found, rest) < min(losses) - 0.05
    right = found.argmax(1) == rest
    assert abs(float(found.max(1).mean() - right.mean())) < 0.03


def test_a_path_that_is_always_right_on_few_rows_is_not_made_certain() -> None:
    # As above: 4.5 of 5 right is 9 to 1, now through the blend and its last temperature.
    found = fit_blend(np.array([[4.0, 0.0]] * 4), None, np.zeros(4, np.int64))
    assert found.probabilities(np.array([[4.0, 0.0]]), None)[0, 0] == pytest.approx(0.9, abs=1e-4)


def test_a_missing_path_weighs_nothing_and_hopeless_scores_stay_numbers() -> None:
    scores = np.array([[5e4, -5e4], [-5e4, 5e4]], np.float32)
    alone = fit_blend(None, scores, np.array([1, 0]))
    assert alone.weight == 0
    assert fit_blend(scores, None, np.array([0, 1])).weight == 1
    for blend in (alone, fit_blend(scores, -scores, np.array([0, 1]))):
        found = blend.probabilities(None if blend is alone else scores, scores)
        assert np.isfinite(found).all()
        assert found.sum(1) == pytest.approx([1, 1])


def test_a_blend_survives_json() -> None:
    blend = fit_blend(*drawn(100, 2.0, 6)[:1], None, drawn(100, 2.0, 6)[1])
    assert Blend(**json.loads(json.dumps(blend.as_json()))) == blend


# --- reject ---------------------------------------------------------------------------------


def test_the_distance_is_that_to_the_nearest_class_in_units_of_their_common_spread() -> None:
    # Two classes round (0, 0) and (10, 0), each two apart along x and four along y: variances 1, 4.
    cross = np.array([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    there = Gaussians.of(np.vstack([cross, cross + np.array([10, 0])]), np.repeat([3, 5], 4))
    # A share of 0.3 of the covariance is the mean variance 2.5: 0.7 + 0.75 and 2.8 + 0.75.
    wanted = [0, 3 / np.sqrt(1.45), 6 / np.sqrt(3.55), 2 / np.sqrt(1.45)]
    found = there.distance(np.array([[0.0, 0], [3, 0], [0, 6], [8, 0]]))
    assert found.dtype == np.float32
    assert found == pytest.approx(wanted, abs=1e-3)


def test_one_row_or_equal_rows_still_give_a_distance() -> None:
    for rows in (1, 4):
        there = Gaussians.of(np.ones((rows, 3)), np.zeros(rows, np.int64))
        near, far = there.distance(np.array([[1.0, 1, 1], [2, 1, 1]]))
        assert near < 1e-2 < far < np.inf


def test_a_distance_does_not_depend_on_what_shares_its_chunk() -> None:
    random = np.random.default_rng(7)
    there = Gaussians.of(random.normal(size=(50, 8)), np.arange(50) % 3)
    vectors = random.normal(size=(2500, 8))
    whole = there.distance(vectors)
    assert there.distance(vectors[2040:2050]) == pytest.approx(whole[2040:2050], abs=1e-4)


def test_spaces_that_are_too_wide_or_not_asked_for_are_left_out() -> None:
    given = {"network": np.eye(4), "wide": np.zeros((4, WIDEST + 1))}
    labels = np.arange(4)
    assert list(fit_near(given, labels, AnswerConfig())) == ["network"]
    assert fit_near(given, labels, AnswerConfig(reject_score="probability")) == {}
    assert fit_near({"network": np.empty((0, 4))}, labels[:0], AnswerConfig()) == {}


def test_rows_are_sampled_alike_from_every_class_and_small_classes_stay_whole() -> None:
    labels = np.array([0] * 100 + [1] * 100 + [2] * 4)
    kept = sample(labels, 1, limit=34)
    assert np.bincount(labels[kept]).tolist() == [15, 15, 4]
    assert sample(labels, 1, limit=34).tolist() == kept.tolist() == sorted(kept)
    assert sample(labels, 2, limit=34).tolist() != kept.tolist()


@pytest.mark.parametrize(
    ("rows", "keep", "expected"),
    [(19, 0.95, 0), (39, 0.95, 1), (100, 0.9, 9), (9, 0.9, 0), (18, 0.95, None), (500, 1, None)],
)
def test_the_threshold_is_the_conformal_quantile(
    rows: int, keep: float, expected: int | None
) -> None:
    # k = floor((1 - keep) (rows + 1)): the k-th smallest of 0 to rows - 1 is k - 1.
    scores = np.random.default_rng(1).permutation(rows).astype(np.float32)
    assert keep_threshold(scores, keep) == (-math.inf if expected is None else expected)


def test_new_documents_like_validation_are_kept_as_often_as_promised() -> None:
    random = np.random.default_rng(8)
    kept = [
        float((random.normal(size=2000) >= keep_threshold(random.normal(size=59), 0.9)).mean())
        for _ in range(400)
    ]
    assert 0.9 <= np.mean(kept) + 0.01 < 0.925


def sides(rows: int) -> tuple[np.ndarray, Spaces, dict[str, Gaussians]]:
    random = np.random.default_rng(9)
    given = {name: random.normal(size=(rows, 6)).astype(np.float32) + 2 for name in ("a", "b")}
    surest = random.uniform(0.5, 1, rows)
    probabilities = np.column_stack([surest, 1 - surest]).astype(np.float32)
    train = {name: random.normal(size=(300, 6)) + 2 for name in ("a", "b")}
    return probabilities, given, fit_near(train, np.arange(300) % 2, AnswerConfig())


def kept_back(reject: Reject, probabilities: np.ndarray, given: Spaces) -> np.ndarray:
    return reject.scores(probabilities, given) < reject.threshold


def entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(probabilities)).sum(1).astype(float)


@pytest.mark.parametrize("score", ["blend", "probability", "distance"])
def test_a_far_and_unsure_document_is_kept_back_and_a_near_and_sure_one_answered(
    score: str,
) -> None:
    probabilities, given, near = sides(400)
    reject = fit_reject(AnswerConfig(reject_score=score), probabilities, given, near)  # pyright: ignore[reportArgumentType]
    said = np.array([[0.45, 0.55], [0.99, 0.01]], np.float32)
    where = np.array([[-2.0] * 6, [2.0] * 6], np.float32)
    there = {"a": where, "b": where}
    assert kept_back(reject, said * [[0.8], [1]], there).tolist() == [True, False]
    assert 0.95 <= 1 - kept_back(reject, probabilities, given).mean() < 0.96


def test_the_blend_adds_entropy_and_distances_in_units_of_their_spread_on_validation() -> None:
    probabilities, given, near = sides(100)
    reject = fit_reject(AnswerConfig(), probabilities, given, near)
    distances = [near[name].distance(given[name]).astype(float) for name in ("a", "b")]
    wanted = -sum((one - one.mean()) / one.std() for one in [*distances, entropy(probabilities)])
    assert reject.scores(probabilities, given) == pytest.approx(wanted, abs=1e-3)


def test_with_no_space_to_be_far_in_the_probability_decides_whatever_was_declared() -> None:
    probabilities, _, _ = sides(100)
    for config in (AnswerConfig(reject_score="distance"), AnswerConfig(reject_score="blend")):
        reject = fit_reject(config, probabilities, {}, {})
        assert reject.scores(probabilities, {}).tolist() == probabilities.max(1).tolist()
        assert (reject.score, reject.tensors()) == ("probability", {})


def test_with_few_or_equal_rows_scores_are_added_plainly_and_stay_numbers() -> None:
    probabilities, given, near = sides(30)
    some = probabilities[:19], {name: one[:19] for name, one in given.items()}
    few = fit_reject(AnswerConfig(), *some, near)
    wanted = -entropy(probabilities) - sum(near[one].distance(given[one]) for one in given)
    assert few.scores(probabilities, given) == pytest.approx(wanted, abs=1e-5)
    assert few.threshold == pytest.approx(few.scores(*some).min())
    same = (
        np.tile(probabilities[:1], (30, 1)),
        {n: np.tile(v[:1], (30, 1)) for n, v in given.items()},
    )
    equal = fit_reject(AnswerConfig(), *same, near)
    assert np.isfinite(equal.scores(probabilities, given)).all()
    assert not kept_back(equal, *same).any()
    none = {name: one[:0] for name, one in given.items()}
    empty = fit_reject(AnswerConfig(), probabilities[:0], none, near)
    assert not kept_back(empty, probabilities, given).any()


@pytest.mark.parametrize("keep", [0.9, 1.0])
def test_a_reject_survives_json_and_tensors(keep: float) -> None:
    probabilities, given, near = sides(100)
    reject = fit_reject(AnswerConfig(keep=keep), probabilities, given, near)
    text = json.dumps(reject.as_json(), allow_nan=False)
    kept = [f"reject.{space}.{name}" for space in ("a", "b") for name in ("means", "whitener")]
    assert list(reject.tensors()) == kept
    again = Reject.from_json(json.loads(text), reject.tensors())
    assert again.threshold == reject.threshold
    found = kept_back(again, probabilities, given)
    assert found.tolist() == kept_back(reject, probabilities, given).tolist()
    # floor(0.1 x 101) = 10: nine scores are smaller than the tenth.
    assert found.sum() == (9 if keep == 0.9 else 0)


# --- imbalance ------------------------------------------------------------------------------


def test_balanced_weights_let_every_class_count_alike() -> None:
    # 6 rows, 3 classes that have any: 6 / (3 x 1), 6 / (3 x 2), 6 / (3 x 3); the absent class 1.
    found = class_weights(np.array([0, 1, 1, 2, 2, 2]), 4)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([2, 1, 2 / 3, 1])
    assert class_weights(np.empty(0, np.int64), 2).tolist() == [1, 1]


# From high to low: 10 positives, 2 negatives, 8 positives, 20 negatives, 2 positives.
RANKED = np.repeat([True, False, True, False, True], [10, 2, 8, 20, 2])
FALLING = np.linspace(0.99, 0.17, 42).astype(np.float32)  # steps of 0.02


def test_the_lowest_threshold_of_the_precision_is_taken_half_way_to_the_next_score() -> None:
    # 18 of the first 20 are positive: 0.9. The 20th stands at 0.61, the 21st at 0.59.
    found = threshold_for(FALLING, RANKED, precision=0.9)
    assert found.value == pytest.approx(0.60)
    assert (found.precision, found.recall, found.rows) == (0.9, 0.9, 20)
    assert found.note == ""
    strict = threshold_for(FALLING, RANKED, precision=0.95)
    assert (strict.precision, strict.recall, strict.rows) == (1.0, 0.5, 10)


def test_a_precision_on_fewer_than_ten_rows_promises_nothing() -> None:
    truth = np.repeat([True, False, True], [9, 1, 20])
    found = threshold_for(FALLING[:30], truth, precision=0.99)
    assert found.rows == 30
    assert "0.967 at most, not 0.99" in found.note


def test_where_no_threshold_reaches_the_precision_the_best_is_taken_and_it_says_so() -> None:
    found = threshold_for(FALLING, ~RANKED, precision=0.99)
    # Best of the reverse: 22 of the first 40.
    assert (found.precision, found.recall, found.rows) == (0.55, 1.0, 40)
    assert found.note == "validation reaches a precision of 0.550 at most, not 0.99"


@pytest.mark.parametrize(
    ("cost", "rows"),
    # Cost of saying it of the first 10, 20, all 42: 10 misses; 2 false + 2 misses; 22 false.
    [(5.0, 10), (1.0, 20), (0.01, 42)],
)
def test_a_cost_moves_the_threshold_to_where_it_is_least(cost: float, rows: int) -> None:
    assert threshold_for(FALLING, RANKED, cost=cost).rows == rows


def test_where_every_answer_costs_more_than_silence_nothing_is_said() -> None:
    found = threshold_for(np.array([0.9, 0.8, 0.7]), np.array([False, False, True]), cost=3.0)
    assert found.rows == 0
    assert "never" in found.note
    assert apply_threshold(np.array([[0.0, 1.0]], np.float32), 1, found.value).tolist() == [0]


def test_equal_scores_are_never_parted() -> None:
    scores = np.full(20, 0.5, np.float32)
    truth = np.arange(20) < 12
    found = threshold_for(scores, truth, precision=0.9)
    assert (found.rows, found.precision, found.value) == (20, 0.6, 0.25)


def test_without_a_positive_row_there_is_a_threshold_and_a_note() -> None:
    for wish in ({"precision": 0.9}, {"cost": 2.0}):
        found = threshold_for(FALLING, np.zeros(42, bool), **wish)
        assert (found.value, found.note) == (0.5, "validation has no row of the positive class")


def test_a_threshold_survives_json() -> None:
    found = threshold_for(FALLING, RANKED, precision=0.9)
    assert Threshold(**json.loads(json.dumps(found.as_json()))) == found


def test_the_positive_class_is_said_from_its_threshold_on_and_else_the_best_other() -> None:
    probabilities = np.array(
        [[0.25, 0.5, 0.25], [0.6, 0.1, 0.3], [0.1, 0.24, 0.66], [0.3, 0.25, 0.45]], np.float32
    )
    answers = apply_threshold(probabilities, 1, 0.25)
    assert answers.dtype == np.int64
    assert answers.tolist() == [1, 0, 2, 1]
    assert apply_threshold(probabilities, 1, 0.6).tolist() == [0, 0, 2, 2]


def test_the_average_precision_is_the_mean_precision_at_every_hit() -> None:
    # Hits on ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True])
    assert average_precision(scores, truth) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # All tied: one step of precision 3/4.
    assert average_precision(np.zeros(4), truth) == pytest.approx(0.75)
    assert average_precision(scores, np.zeros(4, bool)) == 0


def test_the_recall_at_a_precision_is_the_most_that_any_threshold_finds() -> None:
    # 0.9 holds at the first 10 and again at the first 20: 18 of 20 positives.
    assert recall_at_precision(FALLING, RANKED, 0.9) == pytest.approx(0.9)
    assert recall_at_precision(FALLING, RANKED, 0.99) == pytest.approx(0.5)
    assert recall_at_precision(FALLING, ~RANKED, 0.99) == 0
    assert recall_at_precision(FALLING, np.zeros(42, bool), 0.99) == 0


def test_the_positive_class_is_found_by_its_name() -> None:
    assert positive_class(AnswerConfig(positive="spam", precision=0.9), ["ham", "spam"]) == 1
    assert positive_class(AnswerConfig(), ["ham", "spam"]) is None


@pytest.mark.parametrize(
    ("config", "classes", "said"),
    [
        ({"positive": "spma"}, ["ham", "spam"], "'spma'.*did you mean 'spam'"),
        ({"positive": "ham"}, ["ham"], "one class only, 'ham'; expected two"),
        ({"precision": 0.9}, ["ham", "spam"], "Add `positive:`.*ham, spam"),
        ({"positive": "ham", "precision": 0.9, "cost": 2}, ["ham", "spam"], "Keep one"),
    ],
)
def test_a_positive_class_that_cannot_be_meant_is_refused(
    config: dict[str, object], classes: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        positive_class(AnswerConfig.model_validate(config), classes)


def test_deciding_imports_nothing_heavier_than_numpy() -> None:
    code = (
        "import sys, nightshift.deciding;"
        "print([m for m in ('scipy', 'sklearn', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
