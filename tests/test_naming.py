"""What clusters are called: keywords, phrases, near-duplicates, exemplars, a namer of one's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from nightshift.errors import ConfigError
from nightshift.naming import (
    LONGEST,
    NAME,
    NAMERS,
    PATIENCE,
    Described,
    NamingConfig,
    _counted,
    _scores,
    describe,
    exemplars,
    fold,
    is_term,
    keywords,
    load_namer,
    stem,
    stop_words,
)

FRUIT = ["apple fruit", "apple", "fruit pear", "pear pear"]
HALVES = [0, 0, 1, 1]


def named(texts: list[str], places: list[int], k: int, **options: object) -> list[str]:
    found = describe(texts, places, k, NamingConfig.model_validate(options))
    return [one.name for one in found]


# --- keywords -------------------------------------------------------------------------------


def test_keywords_tell_a_cluster_from_the_others_in_english_and_chinese() -> None:
    texts = [
        "The cat purrs, and every pet sleeps",
        "My cat and his mouse: a pet story",
        "The dog barks at a pet",
        "A dog runs, a dog is a pet",
        "股票市场今天上涨",
        "我们的股票下跌",
    ]
    cats, dogs, shares = keywords(texts, [0, 0, 1, 1, 2, 2], 3, 3)
    assert cats[0] == "cat"
    assert dogs[0] == "dog"
    assert "股票" in "".join(shares)
    assert len(cats) == len(dogs) == 3
    assert not {"the", "and", "my", "我们", "的"} & {*cats, *dogs, *shares}


def test_keywords_are_in_the_order_of_scores_worked_by_hand() -> None:
    # Words of place 0: oak in 2 texts, elm 2, ash 1; of place 1: ash 2, fir 2, oak 1. Ten in all,
    # 5 for a mean cluster. Place 0: elm 2/5 ln(1 + 5/2) = 0.50, oak 2/5 ln(1 + 5/3) = 0.39; ash
    # stands in more of the others' texts. Place 1: fir 2/5 ln(1 + 5/2), then ash as oak there.
    texts = ["oak, elm", "elm, oak, ash", "ash, fir", "fir, ash, oak"]
    assert keywords(texts, HALVES, 2, 5) == [["elm", "oak"], ["fir", "ash"]]
    counted = _counted(texts)  # terms by the alphabet: ash, elm, fir, oak
    one, other = _scores(counted, [counted.documents[:2], counted.documents[2:]])
    assert one.tolist() == pytest.approx([0, 0.5011, 0, 0.3923], abs=1e-4)
    assert other.tolist() == pytest.approx([0.3923, 0, 0.5011, 0], abs=1e-4)


def test_a_word_counts_once_per_document_however_often_it_is_said() -> None:
    texts = ["oak " * 50, "elm", "elm", "fir", "fir"]
    assert keywords(texts, [0, 0, 0, 1, 1], 2, 5)[0] == ["elm", "oak"]


def test_a_word_as_common_elsewhere_is_no_keyword_unless_there_is_no_other() -> None:
    texts = ["le chat", "le chat", "le train", "le train"]
    assert keywords(texts, HALVES, 2, 5) == [["chat"], ["train"]]
    assert keywords(["wood", "wood"], [0, 1], 2, 5) == [["wood"], ["wood"]]


def test_keywords_of_equal_weight_are_in_the_order_of_the_alphabet() -> None:
    assert keywords(["zebra apple mango"], [0], 1, 2) == [["apple", "mango"]]


def test_a_cluster_without_words_has_no_keywords() -> None:
    assert keywords(["!!!", "word"], [0, 1], 3, 5) == [[], ["word"], []]
    assert keywords([], [], 2, 5) == [[], []]
    assert keywords(["word"], [-1], 1, 5) == [[]]


def test_documents_without_a_cluster_say_nothing() -> None:
    without = keywords(FRUIT, HALVES, 2, 5)
    assert keywords([*FRUIT, "apple apple", "quince"], [*HALVES, -1, -1], 2, 5) == without


def test_one_long_document_of_words_said_once_still_has_keywords() -> None:
    letters = "abcdefghijklmnopqrst"
    text = " ".join(one + two + "x" for one in letters for two in letters)
    assert keywords([text, "other"], [0, 1], 2, 3)[0] == ["aax", "abx", "acx"]


def test_of_a_long_document_the_first_4000_characters_are_read() -> None:
    assert keywords([". " * 1990 + "oak." + ". " * 20 + "elm"], [0], 1, 5) == [["oak"]]


def test_the_order_of_the_documents_does_not_matter() -> None:
    texts = [*FRUIT, "pear cake recipe", "pear cake"]
    places = [*HALVES, 1, 1]
    turned = keywords(texts[::-1], places[::-1], 2, 9)
    assert turned == keywords(texts, np.array(places), 2, 9)


# --- phrases --------------------------------------------------------------------------------


def test_a_phrase_takes_the_place_of_the_words_it_carries() -> None:
    texts = ["credit card lost", "my credit card", "a credit card", "pay the rent", "rent paid"]
    assert keywords(texts, [0, 0, 0, 1, 1], 2, 5)[0] == ["credit card", "lost"]


def test_a_word_that_mostly_stands_alone_is_not_replaced() -> None:
    # "new pin" holds two of five pins: pin stays, and new is no reason to say pin twice.
    pins = ["new pin", "new pin", "pin", "pin", "pin"]
    found = keywords([*pins, "rent", "rent"], [0] * 5 + [1, 1], 2, 5)[0]
    assert found == ["pin", "new"]


def test_phrases_that_share_a_word_carry_it_together() -> None:
    # Acid stands in four texts, in two with amino, in two with citric: each phrase carries half.
    texts = ["amino acid", "amino acid", "citric acid", "citric acid", "wood", "wood"]
    found = keywords(texts, [0] * 4 + [1] * 2, 2, 5)[0]
    assert found == ["amino acid", "citric acid"]


def test_a_phrase_that_does_not_stay_carries_nothing_for_others() -> None:
    # Cup stands in five texts, three with world, which stands in eight: "world cup" cannot stay,
    # and "cup germany" alone holds two of five.
    texts = ["world"] * 5 + ["world cup"] * 3 + ["cup germany"] * 2 + ["wood"] * 9
    found = keywords(texts, [0] * 10 + [1] * 9, 2, 5)[0]
    assert found == ["world", "cup", "germany"]


def test_of_phrases_inside_one_another_the_longest_that_carries_is_kept() -> None:
    texts = ["foot and mouth disease", "a foot and mouth disease", "wood", "wood"]
    assert "foot and mouth" in keywords(texts, HALVES, 2, 5)[0]
    city = ["New York City", "in new york city!", "wood", "wood"]
    assert keywords(city, HALVES, 2, 5)[0] == ["new york city"]


def test_a_phrase_may_end_in_a_particle_but_not_begin_with_one() -> None:
    texts = ["please top up", "a top up failed", "up north", "up north"]
    assert keywords(texts, HALVES, 2, 5) == [["top up", "failed"], ["north"]]


@pytest.mark.parametrize("between", [", ", ". ", " the ", " 2026 ", " - ", "; "])
def test_no_phrase_goes_across_punctuation_stop_words_or_numbers(between: str) -> None:
    texts = [f"oak{between}elm", f"oak{between}elm", "wood", "wood"]
    assert keywords(texts, HALVES, 2, 5)[0] == ["elm", "oak"]


def test_no_phrase_goes_from_one_document_to_the_next() -> None:
    assert keywords(["elm oak", "elm", "oak", "elm", "oak"], [0] * 5, 1, 5) == [["elm", "oak"]]


def test_a_phrase_of_one_document_alone_is_none() -> None:
    assert keywords(["oak elm"], [0], 1, 5) == [["elm", "oak"]]


def test_chinese_phrases_are_joined_without_a_space_and_end_at_one() -> None:
    texts = ["大宗商品上涨", "大宗商品 下跌", "高考招生", "高考志愿"]
    commodities, exams = keywords(texts, HALVES, 2, 5)
    assert commodities[0] == "大宗商品"
    assert exams[0] == "高考"
    apart = keywords(["股票 上涨", "股票 上涨", "高考", "高考"], HALVES, 2, 5)[0]
    assert sorted(apart) == sorted(["股票", "上涨"])


def test_a_keyword_is_never_longer_than_a_table_bears() -> None:
    wordy = "x" * (LONGEST + 1)
    assert keywords([f"{wordy} short", wordy], [0, 0], 1, 5) == [["short"]]


# --- near-duplicates ------------------------------------------------------------------------


def test_singular_and_plural_are_counted_as_one_and_shown_as_mostly_written() -> None:
    texts = ["lost cards", "cards", "card", "city's park", "cities", "cities"]
    cards, cities = keywords(texts, [0] * 3 + [1] * 3, 2, 5)
    assert cards == ["cards", "lost"]
    assert cities == ["cities", "park"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("transfer", "transferring"), ("refund", "refunded"), ("stop", "stopped"), ("pay", "payment")],
)
def test_forms_of_one_word_are_one_keyword(one: str, other: str) -> None:
    texts = [one, one, f"{other}, bank", "wood", "wood"]
    assert keywords(texts, [0, 0, 0, 1, 1], 2, 5)[0] == [one, "bank"]


@pytest.mark.parametrize(("one", "other"), [("car", "card"), ("form", "information")])
def test_words_that_only_share_letters_are_two_keywords(one: str, other: str) -> None:
    texts = [one, one, other, "wood", "wood"]
    assert keywords(texts, [0, 0, 0, 1, 1], 2, 5)[0] == [one, other]


def test_a_chinese_word_inside_another_is_not_said_again() -> None:
    texts = ["大学生", "大学生", "大学", "篮球", "篮球"]
    assert keywords(texts, [0, 0, 0, 1, 1], 2, 5)[0] == ["大学生"]


def test_words_that_always_meet_are_still_different_words() -> None:
    assert keywords(["oak, elm"] * 3 + ["fir"], [0, 0, 0, 1], 2, 5)[0] == ["elm", "oak"]


# --- words that name nothing ----------------------------------------------------------------


def test_stop_words_numbers_and_single_letters_name_nothing() -> None:
    nothing = ["the", "2026", "3rd", "12.5", "a", "it's", "we'll", "shouldn’t", "ai", "的", "我们"]
    assert [one for one in nothing if is_term(one)] == []
    named = ["report", "gpus", "women's", "股票", "상어", "system", "bill"]
    assert [one for one in named if not is_term(one)] == []
    assert {"the", "我们"} <= stop_words()


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("cards", "card"), ("cities", "city"), ("boxes", "box"), ("ties", "tie"), ("bus", "bus"),
        ("class", "class"), ("virus", "virus"), ("news", "news"), ("bank's", "bank"),
    ],
)  # fmt: skip
def test_plurals_and_possessives_are_folded_by_rule(word: str, folded: str) -> None:
    assert fold(word) == folded


def test_a_stem_is_the_same_for_the_forms_of_a_word() -> None:
    assert {stem(one) for one in ("stop", "stops", "stopped", "stopping")} == {"stop"}
    assert {stem(one) for one in ("transfer", "transfers", "transferred")} == {"transfer"}
    assert stem("ring") == "ring"  # not every ing is an ending


# --- names ----------------------------------------------------------------------------------


def test_a_name_is_the_three_best_keywords() -> None:
    texts = ["oak, elm, fir, ash"] * 2 + ["fir, ash"] + ["wood"]
    found = describe(texts, [0, 0, 0, 1], 2, NamingConfig(keywords=4))
    assert found[0] == Described("ash, fir, elm", ["ash", "fir", "elm", "oak"])
    assert found[1] == Described("wood", ["wood"])


def test_a_name_is_as_long_as_a_table_bears_and_words_stay_whole() -> None:
    parts = ["extraordinarily", "incomprehensible", "counterintuitive"]
    (name,) = named([", ".join(parts)], [0], 1)
    assert name == "counterintuitive, extraordinarily"
    assert len(name) <= NAME < len(", ".join(parts))


def test_no_two_clusters_have_the_same_name() -> None:
    # Both of the first would be "ash, elm, fir"; the next keyword tells the second apart.
    texts = ["oak, elm, fir, ash", "oak, elm, fir, ash", "wood", "wood", "wood"]
    assert named(texts, [0, 1, 2, 2, 2], 3) == ["ash, elm, fir", "ash, elm, oak", "wood"]
    assert named(["oak", "oak", "oak"], [0, 1, 2], 3) == ["oak", "oak (2)", "oak (3)"]


def test_a_cluster_without_keywords_is_called_by_how_its_first_text_begins() -> None:
    long = "what is it that we are to do with this and that"
    assert named(["???", "???", long], [0, 1, 2], 4) == [
        "???",
        "??? (2)",
        "what is it that we are to do with this",
        "without words",
    ]


# --- a namer of one's own -------------------------------------------------------------------

SOME = {0: ["apple pie"], 1: ["pear pie"]}


@pytest.fixture
def namer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module of that source where the command runs; answers its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = iter(range(9))

    def write(source: str) -> str:
        name = f"own_naming_{tmp_path.name}_{next(written)}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv(NAMERS, f"json,{name},{name}x")
        return name

    return write


def asked(name: str) -> list[Described]:
    return describe(FRUIT, HALVES, 2, NamingConfig(namer=name), SOME)


def test_a_namer_names_what_it_is_shown(namer: Callable[[str], str]) -> None:
    module = namer(
        "def name(keywords, exemplars):\n    return f' {keywords[0]}:\\n{exemplars[0]} '"
    )
    found = asked(f"{module}:name")
    assert [one.name for one in found] == ["apple: apple pie", "pear: pear pie"]
    assert [one.named_by for one in found] == [f"{module}:name"] * 2
    only = describe(FRUIT, HALVES, 2, NamingConfig(namer=f"{module}:name"), {1: ["x"]})
    assert [(one.name, one.named_by is None) for one in only] == [
        ("apple", True), ("pear: x", False),
    ]  # fmt: skip


def test_the_same_answer_twice_is_told_apart_by_a_keyword(namer: Callable[[str], str]) -> None:
    module = namer("name = lambda keywords, exemplars: 'Fruit'")
    assert [one.name for one in asked(f"{module}:name")] == ["Fruit", "Fruit, pear"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ValueError('no answer')", "ValueError: no answer"),
        ("return '  '", "it answered 0 characters"),
        ("return 'x' * 81", "it answered 81 characters, expected 1 to 80"),
        ("return None", "it answered NoneType"),
    ],
)
def test_a_namer_that_fails_leaves_the_keywords_and_one_warning(
    body: str, told: str, namer: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    module = namer(f"def name(keywords, exemplars):\n    {body}")
    with caplog.at_level(logging.WARNING):
        found = asked(f"{module}:name")
    assert found == describe(FRUIT, HALVES, 2, NamingConfig())
    assert len(caplog.records) == 1
    assert told in caplog.text
    assert "0 of 2 clusters" in caplog.text


def test_a_namer_that_keeps_failing_is_not_asked_for_ever(namer: Callable[[str], str]) -> None:
    module = namer("calls = []\ndef name(one, two):\n    calls.append(1)\n    raise OSError")
    texts = [f"word{place}x" for place in range(9)]
    shown = {place: ["x"] for place in range(9)}
    describe(texts, list(range(9)), 9, NamingConfig(namer=f"{module}:name"), shown)
    assert len(import_module(module).calls) == PATIENCE


def test_a_namer_that_hangs_costs_no_night(
    namer: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    module = namer("import threading\nname = lambda one, two: threading.Event().wait()")
    config = NamingConfig(namer=f"{module}:name", namer_seconds=0.05)
    with caplog.at_level(logging.WARNING):
        assert describe(FRUIT, HALVES, 2, config, SOME) == describe(
            FRUIT, HALVES, 2, NamingConfig()
        )
    assert "no answer within 0.05 s (clusters.namer_seconds)" in caplog.text


def test_a_namer_cannot_change_the_keywords(namer: Callable[[str], str]) -> None:
    module = namer("def name(one, two):\n    one.clear()\n    return str(len(two))")
    assert [one.keywords for one in asked(f"{module}:name")] == keywords(FRUIT, HALVES, 2, 8)


@pytest.mark.parametrize(
    ("source", "suffix", "told"),
    [
        ("def name(a, b): ...", "", 'expected "module:function"'),
        ("def name(a, b): ...", ":nam", "did you mean 'name'?"),
        ("name = 3", ":name", "is of type int, and is no function"),
        ("def name(a): ...", ":name", "cannot be called with two lists: too many positional"),
        ("import surely_not_installed", ":name", "it needs 'surely_not_installed'"),
        ("1 / 0", ":name", "importing it raises ZeroDivisionError: division by zero"),
        ("def", ":name", "importing it raises SyntaxError"),
        ("raise SystemExit(3)", ":name", "importing it raises SystemExit: 3"),
    ],
)
def test_a_namer_that_cannot_be_loaded_says_why(
    source: str, suffix: str, told: str, namer: Callable[[str], str]
) -> None:
    module = namer(source)
    with pytest.raises(ConfigError) as error:
        load_namer(f"{module}{suffix}")
    assert f"clusters.namer: found '{module}{suffix}'" in str(error.value)
    assert told in str(error.value)


def test_a_misspelt_module_is_told_the_nearest_in_the_folder(namer: Callable[[str], str]) -> None:
    module = namer("def name(a, b): ...")
    with pytest.raises(ConfigError, match=f"there is no module.*did you mean '{module}'"):
        load_namer(f"{module}x:name")


def test_a_wrong_namer_is_refused_though_no_exemplars_are_shown() -> None:
    with pytest.raises(ConfigError, match="not_a_module_of_ours"):
        describe(FRUIT, HALVES, 2, NamingConfig(namer="not_a_module_of_ours:name"))


def test_the_number_of_keywords_has_bounds() -> None:
    for keywords_ in (0, 51):
        with pytest.raises(ValidationError):
            NamingConfig(keywords=keywords_)


# --- exemplars ------------------------------------------------------------------------------


def test_exemplars_are_the_nearest_documents_and_the_same_words_stand_once() -> None:
    vectors = np.array([[3, 0], [1, 0], [1, 0], [2, 0], [9, 0]], np.float32)
    texts = ["third one", "My card is lost!", "my card: is lost", "where is my refund", "far away"]
    assert exemplars(vectors, np.zeros(2, np.float32), texts, 3) == [1, 3, 0]


def test_nearly_the_same_text_is_the_same_exemplar() -> None:
    # Three of four different words are shared: 3/4 alike is the same, 2/4 is not.
    vectors = np.zeros((3, 2), np.float32)
    texts = ["red blue green", "red blue green pink", "red blue pink"]
    assert exemplars(vectors, np.zeros(2), texts, 9) == [0, 2]


def test_there_are_no_more_exemplars_than_different_documents() -> None:
    vectors = np.zeros((40, 2), np.float32)
    assert exemplars(vectors, np.zeros(2), ["same"] * 40, 5) == [0]
    assert exemplars(vectors[:0], np.zeros(2), [], 5) == []
    assert len(exemplars(vectors, np.zeros(2), [f"text{one}" for one in range(40)], 5)) == 5


@pytest.mark.parametrize("texts", [[], ["the"], ["", "a"], ["wind"]])
def test_hardly_any_words_are_no_reason_to_stop(texts: list[str]) -> None:
    found = describe(texts, [0] * len(texts), 1, NamingConfig())
    assert len(found) == 1
    assert found[0].name
