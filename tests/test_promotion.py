"""Two models on the same rows: hand-worked numbers, and what each policy makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from nightshift.promotion import (
    Comparison,
    Judged,
    PromotionConfig,
    Verdict,
    compare,
    judge,
    mcnemar,
    paired_interval,
)

# --- in pairs -------------------------------------------------------------------------------

ROWS = ["a", "b"] * 50


def test_equal_answers_have_no_difference_in_any_resample() -> None:
    assert paired_interval(ROWS, ROWS, ROWS, "accuracy", 100) == (1, 1, 0, 0)
    wrong = ["b", "b"] * 50
    assert paired_interval(ROWS, wrong, wrong, "macro_f1", 100)[2:] == (0, 0)


def test_a_better_challenger_has_an_interval_above_nothing() -> None:
    champion = ["b" if row < 20 else label for row, label in enumerate(ROWS)]
    one, two, low, high = paired_interval(ROWS, champion, ROWS, "accuracy", 1000)
    # 10 of 100 rows were wrong; a binomial share of 0.1 of 100 rows has a deviation of 0.03.
    assert (one, two) == (0.9, 1)
    assert 0.03 <= low < 0.07
    assert 0.13 < high <= 0.17
    _, _, other_low, other_high = paired_interval(ROWS, ROWS, champion, "accuracy", 1000)
    assert (other_low, other_high) == (pytest.approx(-high), pytest.approx(-low))


def test_the_interval_of_four_rows_is_worked_by_hand() -> None:
    # Three of four rows are won. A resample draws four, each a win by 3/4: none are with 1/256,
    # at most one with 13/256, all four with 81/256. So a fortieth is cut off at one, and at four.
    truth, champion = ["a"] * 4, ["a", "b", "b", "b"]
    found = paired_interval(truth, champion, truth, "accuracy", 20_000)
    assert found == (0.25, 1, 0.25, 1)
    # One of two: no win in a quarter of the resamples, two in another.
    assert paired_interval(["a"] * 2, ["a", "b"], ["a"] * 2, "accuracy", 1000) == (0.5, 1, 0, 1)


def test_the_interval_repeats_with_its_seed() -> None:
    champion = ["b" if row < 20 else label for row, label in enumerate(ROWS)]
    one, two = (paired_interval(ROWS, champion, ROWS, "macro_f1", 100, seed=7) for _ in range(2))
    assert one == two
    assert one != paired_interval(ROWS, champion, ROWS, "macro_f1", 100, seed=8)


def test_macro_f1_of_a_pair_is_that_of_the_scores() -> None:
    random = np.random.default_rng(0)
    truth, one, two = (
        [str(value) for value in random.integers(0, 4 + more, 60)] for more in (0, 1, 2)
    )
    first, second, _, _ = paired_interval(truth, one, two, "macro_f1", 100)
    assert first == pytest.approx(metrics.f1_score(truth, one, average="macro"))
    assert second == pytest.approx(metrics.f1_score(truth, two, average="macro"))


def test_a_class_that_only_an_answer_knows_can_be_compared() -> None:
    found = paired_interval(["a"] * 9, ["z"] * 9, ["a"] * 9, "macro_f1", 100)
    assert found == (0, 1, 1, 1)


def test_mcnemar_is_the_binomial_of_the_rows_on_which_they_differ() -> None:
    # Of four rows one model wins all: 2 x (1/2)^4.
    assert mcnemar(4, 0) == mcnemar(0, 4) == pytest.approx(0.125)
    # 1 of 6: twice the sum of one way with none and six ways with one, of 64.
    assert mcnemar(5, 1) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(3, 3) == 1
    assert mcnemar(0, 0) == 1


# --- comparisons ----------------------------------------------------------------------------


def said(answers: list[str], classes: str = "ab", milliseconds: float = 1.0) -> Judged:
    return Judged(answers, [*classes], milliseconds)


def wrong_on(rows: range | list[int], truth: list[str] = ROWS) -> list[str]:
    """The truth, but for some rows."""
    other = {"a": "b", "b": "a"}
    return [other[label] if row in rows else label for row, label in enumerate(truth)]


def verdict(
    champion: list[str], challenger: list[str], truth: list[str] = ROWS, **declared: Any
) -> Verdict:
    config = PromotionConfig(**declared)
    return judge(compare(truth, said(champion), said(challenger), config), config)


def test_a_comparison_counts_what_only_one_of_the_two_has_right() -> None:
    truth = ["a", "a", "b", "b"]
    champion, challenger = ["a", "b", "a", "a"], ["b", "a", "b", "a"]
    found = compare(truth, said(champion), said(challenger), PromotionConfig())
    assert (found.wins, found.losses) == (2, 1)
    assert found.p_value == mcnemar(2, 1) == 1
    assert (found.whole.champion, found.whole.challenger) == (0.25, 0.5)
    # The champion says a three times, once rightly: F1 2 / (3 + 2). b never rightly.
    assert found.per_class["a"] == (pytest.approx(0.4), 0.5, 2)
    assert found.per_class["b"] == (0, 0.5, 2)
    assert found.known is None
    row = found.as_row()
    assert row["per_class"] == '{"a": [0.4, 0.5, 2], "b": [0.0, 0.5, 2]}'
    assert {"low", "high", "wins", "losses", "p_value", "champion_ms"} <= {*row}


def test_only_a_lead_that_chance_does_not_explain_is_better() -> None:
    clear = verdict(wrong_on(range(20)), ROWS)
    assert clear.decision == "promoted"
    assert "proved better: accuracy 1.0000 against 0.8000 on 100 gate rows" in clear.reason
    assert "20 rows won, 0 lost, p 0.000" in clear.reason
    # Two rows of a hundred: many resamples have neither.
    slight = verdict(wrong_on([3, 50]), ROWS)
    assert slight.decision == "kept"
    assert "not proved better" in slight.reason
    assert verdict(ROWS, ROWS).decision == "kept"


def test_not_worse_allows_what_the_margin_allows() -> None:
    same = {"policy": "not_worse"}
    assert verdict(ROWS, ROWS, **same).decision == "promoted"
    worse = wrong_on([3, 50])
    assert verdict(ROWS, worse, **same).decision == "kept"
    assert verdict(ROWS, worse, margin=0.2, **same).decision == "promoted"


def test_always_promotes_and_manual_leaves_it_to_a_person_with_advice() -> None:
    assert verdict(ROWS, wrong_on(range(50)), policy="always").decision == "promoted"
    better = verdict(wrong_on(range(20)), ROWS, policy="manual")
    assert better.decision == "waiting"
    assert "it would be promoted: the challenger is proved better" in better.reason
    worse = verdict(ROWS, wrong_on(range(20)), policy="manual")
    assert worse.decision == "waiting"
    assert "it would be refused" in worse.reason


THREE = ["a"] * 200 + ["b"] * 200 + ["c"] * 20


def test_a_better_challenger_that_ruins_one_class_is_refused() -> None:
    champion = ["b"] * 60 + THREE[60:]
    challenger = THREE[:400] + ["a"] * 20
    found = verdict(champion, challenger, THREE)
    assert found.decision == "kept"
    assert "proved better: accuracy 0.9524 against 0.8571" in found.reason
    assert "class 'c' falls from F1 1.00 to 0.00 on 20 rows" in found.reason
    assert verdict(champion, challenger, THREE, class_margin=None).decision == "promoted"
    # Of so few rows nothing is made.
    assert verdict(champion, challenger, THREE, min_rows=21).decision == "promoted"


def test_a_floor_of_a_slice_refuses_who_loses_there() -> None:
    # Better by 30 of the English rows, worse by 10 of the 20 German ones.
    language = ["en"] * 80 + ["de"] * 20
    champion, challenger = wrong_on(range(30)), wrong_on(range(80, 90))
    for floors, decision in (({}, "promoted"), ({"language": 0.6}, "promoted"),
                             ({"language": 0.1}, "kept")):  # fmt: skip
        config = PromotionConfig(floors=floors)
        found = compare(ROWS, said(champion), said(challenger), config, {"language": language})
        assert found.slices["language"]["de"] == (1, 0.5, 20)
        told = judge(found, config)
        assert told.decision == decision
    assert "language 'de' falls from accuracy 1.00 to 0.50 on 20 rows" in told.reason


def test_a_challenger_that_is_much_slower_is_refused_where_that_is_declared() -> None:
    one, two = said(wrong_on(range(20)), milliseconds=2.0), said(ROWS, milliseconds=7.0)
    for slower, decision in ((None, "promoted"), (4, "promoted"), (3, "kept")):
        config = PromotionConfig(slower=slower)
        told = judge(compare(ROWS, one, two, config), config)
        assert told.decision == decision
    assert "a document takes 7.00 ms, and took 2.00" in told.reason


# --- classes that appeared since ------------------------------------------------------------

NEW = ROWS + ["c"] * 3


def compared(
    champion: list[str], challenger: list[str], truth: list[str] = NEW, **declared: Any
) -> tuple[Comparison, Verdict]:
    config = PromotionConfig(**declared)
    found = compare(truth, said(champion, "ab"), said(challenger, "abc"), config)
    return found, judge(found, config)


def test_a_class_the_champion_cannot_know_need_not_be_proved_by_many_rows() -> None:
    # Three rows of the new class: far too few for an interval above zero.
    found, told = compared([*wrong_on([1]), "a", "a", "b"], [*wrong_on([1]), "c", "c", "a"])
    assert found.more_classes == ["c"]
    assert found.more_right == (2, 3)
    assert found.known is not None
    assert (found.known.rows, found.known.champion, found.known.challenger) == (100, 0.99, 0.99)
    assert told.decision == "promoted"
    assert told.reason.startswith("the challenger is not worse on the 100 gate rows of classes")
    assert "knows c, which the champion does not (right on 2 of 3 gate rows of them)" in told.reason


def test_a_new_class_does_not_excuse_being_worse_on_the_others() -> None:
    _, told = compared([*ROWS, "a", "a", "b"], [*wrong_on(range(20)), "c", "c", "c"])
    assert told.decision == "kept"
    assert "worse on the 100 gate rows of classes that both know (lead -0.2000" in told.reason


def test_a_worse_challenger_is_not_promoted_because_chance_might_explain_its_loss() -> None:
    # Four rows lost, one won: a lead of -0.03 whose interval reaches above zero.
    found, told = compared([*wrong_on([9]), "a", "a", "b"], [*wrong_on(range(4)), "c", "c", "c"])
    assert found.known is not None
    assert found.known.high >= 0 > found.known.lead
    assert told.decision == "kept"
    assert "better" not in told.reason
    assert "worse on the 100 gate rows" in told.reason


def test_equal_scores_on_few_rows_do_not_prove_that_it_is_not_worse() -> None:
    # One row won and one lost: chance alone makes this interval reach beyond the margin.
    found, told = compared([*wrong_on([1]), "a", "a", "b"], [*wrong_on([7]), "c", "c", "a"])
    assert found.known is not None
    assert (found.known.lead, found.known.low < -0.01) == (0, True)
    assert told.decision == "kept"
    assert "not proved to be no worse on the 100 gate rows" in told.reason
    # A margin that such chance stays within, or rows enough of the new class, say that it is.
    _, told = compared([*wrong_on([1]), "a", "a", "b"], [*wrong_on([7]), "c", "c", "a"], margin=0.1)
    assert told.decision == "promoted"
    many = ROWS + ["c"] * 20
    _, told = compared([*wrong_on([1]), *"ab" * 10], [*wrong_on([7]), *"c" * 20], many)
    assert told.decision == "promoted"
    assert "proved better, and knows c" in told.reason


def test_a_new_class_must_be_met_by_one_right_row_unless_no_row_can_tell() -> None:
    _, told = compared([*ROWS, "a", "a", "b"], [*ROWS, "a", "b", "b"])
    assert told.decision == "kept"
    assert "said to know c, but right on 0 of 3 gate rows of them" in told.reason
    _, told = compared(ROWS, ROWS, ROWS)
    assert told.decision == "promoted"
    assert "knows c, which the champion does not (no gate row tells how well)" in told.reason


def test_too_few_rows_of_known_classes_prefer_nobody() -> None:
    # Nine equal answers have an interval without any width, which proves nothing.
    truth = [*ROWS[:9], "c"]
    _, told = compared([*ROWS[:9], "a"], [*ROWS[:9], "c"], truth)
    assert told.decision == "kept"
    assert "not proved better" in told.reason
    _, told = compared([*ROWS[:9], "a"], [*ROWS[:9], "c"], truth, min_rows=9)
    assert told.decision == "promoted"


def test_a_class_that_the_challenger_does_not_know_counts_against_it() -> None:
    config = PromotionConfig()
    found = compare(
        NEW, said([*ROWS, "c", "c", "c"], "abc"), said([*ROWS, "a", "a", "a"], "ab"), config
    )
    assert (found.wins, found.losses) == (0, 3)
    assert judge(found, config).decision == "kept"
