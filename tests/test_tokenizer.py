"""Tokens: subwords, words and characters, in scripts with and without spaces."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer as HuggingFace

from nightshift.errors import BundleError
from nightshift.tokenizer import MARK, PADDING, SPECIAL, UNKNOWN, Tokenizer, TokenizerConfig, words

ENGLISH = ["the cat sat", "the hat sat", "a cat and a hat", "The Cat and the hat"]
CHINESE = ["我来到北京清华大学", "北京的清华大学很大", "我的大学在北京"]
UNITS = ["bpe", "word", "character"]


def learn(texts: list[str], **options: Any) -> Tokenizer:
    return Tokenizer.learn(texts, TokenizerConfig(**{"vocabulary": 200, "min_count": 1, **options}))


def cut(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.tokens(tokenizer.encode([text])[0])


def unknown_share(tokenizer: Tokenizer, text: str) -> float:
    [ids] = tokenizer.encode([text])
    return ids.count(UNKNOWN) / len(ids)


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, it's here!", ["The", "cat", "it's", "here"]),
        ("don’t 3D naïve", ["don’t", "3D", "naïve"]),
        ("我来到北京清华大学", ["我", "来到", "北京", "清华大学"]),
        ("我爱北京abc天安门", ["我", "爱", "北京", "abc", "天安门"]),
        ("Привет, мир", ["Привет", "мир"]),
        ("... 👍 !?", []),
        ("", []),
    ],
)
def test_words_are_cut_by_spaces_and_chinese_by_its_dictionary(
    text: str, expected: list[str]
) -> None:
    assert words(text) == expected


def test_cutting_chinese_leaves_python_what_it_knows_of_its_loggers() -> None:
    words("机器学习")  # the dictionary's own logger is told to be quiet, once
    heard = logging.getLogger("nightshift")
    heard.isEnabledFor(logging.DEBUG)
    words("机器学习")
    assert vars(heard)["_cache"]


def test_the_dictionary_is_loaded_without_a_word_on_the_terminal() -> None:
    code = "from nightshift.tokenizer import words; print(words('清华大学'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("['清华大学']", "")


# --- learning -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_padding_is_zero_and_the_unknown_is_one(unit: str) -> None:
    tokenizer = learn(ENGLISH, unit=unit)
    assert tokenizer.tokens([PADDING, UNKNOWN]) == SPECIAL == ["[PAD]", "[UNK]"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_same_texts_give_the_same_digest_and_others_another(unit: str) -> None:
    one, two = (learn(ENGLISH + CHINESE, unit=unit) for _ in range(2))
    assert one.digest == two.digest
    assert one.serialized == two.serialized
    assert learn([*ENGLISH, "something else"], unit=unit).digest != one.digest


def test_the_digest_tells_units_apart() -> None:
    assert len({learn(ENGLISH, unit=unit).digest for unit in UNITS}) == 3


def test_words_are_numbered_by_how_often_they_come() -> None:
    tokenizer = learn(["b b b", "a a", "c c c c"], unit="word")
    assert tokenizer.tokens(range(tokenizer.size)) == ["[PAD]", "[UNK]", "c", "b", "a"]
    assert tokenizer.encode(["a b c d"]) == [[4, 3, 2, UNKNOWN]]


def test_a_word_seen_too_rarely_is_no_entry() -> None:
    tokenizer = learn(["twice twice once"], unit="word", min_count=2)
    assert cut(tokenizer, "twice once") == ["twice", "[UNK]"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_vocabulary_never_exceeds_its_limit(unit: str) -> None:
    texts = [f"word{number} 第{number}个词" for number in range(200)]
    assert learn(texts, unit=unit, vocabulary=20).size <= 20


def test_only_the_first_documents_are_learned_from_and_the_rest_not_even_read() -> None:
    read: list[int] = []

    def texts() -> Any:
        for number in range(1000):
            read.append(number)
            yield "early" if number < 100 else "late"

    config = TokenizerConfig(unit="word", min_count=1, learn_from=100)
    tokenizer = Tokenizer.learn(texts(), config)
    assert len(read) == 100
    assert cut(tokenizer, "early late") == ["early", "[UNK]"]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_at_all_gives_a_tokenizer_that_knows_nothing(unit: str) -> None:
    tokenizer = learn([], unit=unit)
    assert tokenizer.size == 2
    assert set(tokenizer.encode(["abc"])[0]) == {UNKNOWN}


# --- encoding -------------------------------------------------------------------------------


def test_subwords_carry_a_mark_where_a_word_starts() -> None:
    tokenizer = learn(["the hat"] * 9)
    assert cut(tokenizer, "the hat") == [f"{MARK}the", f"{MARK}hat"]
    # Inside a word "the" is not the article.
    assert f"{MARK}the" not in cut(tokenizer, "hathe")


def test_subwords_spell_out_a_word_that_was_never_seen() -> None:
    tokenizer = learn(ENGLISH)
    found = cut(tokenizer, "shades")
    assert UNKNOWN not in tokenizer.encode(["shades"])[0]
    assert "".join(found) == f"{MARK}shades"


def test_punctuation_stands_alone() -> None:
    tokenizer = learn(["cat, cat. cat!"] * 9)
    assert cut(tokenizer, "cat, cat!") == [f"{MARK}cat", ",", f"{MARK}cat", "!"]


def test_chinese_is_cut_without_marks_and_its_words_are_found() -> None:
    subwords = learn(CHINESE)
    assert all(MARK not in token for token in cut(subwords, "北京的大学"))
    assert "".join(cut(subwords, "北京的大学")) == "北京的大学"
    by_word = learn(CHINESE, unit="word")
    assert cut(by_word, "我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]
    assert cut(learn(CHINESE, unit="character"), "北京") == ["北", "京"]


@pytest.mark.parametrize("unit", UNITS)
def test_case_is_folded_only_where_it_is_declared(unit: str) -> None:
    folded, kept = learn(ENGLISH, unit=unit), learn(ENGLISH, unit=unit, lowercase=False)
    assert folded.encode(["The Cat"]) == folded.encode(["the cat"])
    assert kept.encode(["The Cat"]) != kept.encode(["the cat"])


def test_full_width_letters_are_the_letters_they_show() -> None:
    for unit in ("bpe", "character"):
        tokenizer = learn(ENGLISH, unit=unit)
        assert tokenizer.encode(["ｃａｔ"]) == tokenizer.encode(["cat"])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_a_text_without_any_token_is_one_unknown(unit: str, text: str) -> None:
    assert learn(ENGLISH, unit=unit).encode([text, "cat", text])[::2] == [[UNKNOWN]] * 2


@pytest.mark.parametrize("unit", UNITS)
def test_a_text_is_encoded_alike_alone_and_among_others(unit: str) -> None:
    tokenizer = learn(ENGLISH + CHINESE, unit=unit)
    texts = [*ENGLISH, *CHINESE, "", "中 a"]
    assert tokenizer.encode(texts) == [tokenizer.encode([text])[0] for text in texts]


def test_texts_that_are_long_together_are_encoded_in_pieces_and_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned = learn(["the cat sat on the mat"], unit="word")
    texts = ["the cat", "", "sat " * 20, "the mat", "on", "cat"]
    whole = learned.encode(texts)
    monkeypatch.setattr("nightshift.tokenizer.PIECE", 12)
    assert [len(one) for one in learned.pieces(texts)] == [2, 1, 3]
    assert learned.encode(texts) == whole
    assert learned.encode([]) == []


@pytest.mark.parametrize("unit", UNITS)
def test_a_long_text_is_read_in_parts_and_to_the_same(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(ENGLISH * 9), "，".join(CHINESE * 9), "the\tcat's\nhat。我的 cat" * 9, "cat"]
    learned = learn(texts, unit=unit)
    whole = learned.encode(texts)
    monkeypatch.setattr("nightshift.tokenizer.PART", 13)
    monkeypatch.setattr("nightshift.tokenizer.PIECE", 40)
    assert learn(texts, unit=unit).digest == learned.digest
    assert learned.encode(texts) == whole


def test_a_long_text_without_a_place_to_cut_is_cut_anywhere_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned = learn(["abcdefgh"], unit="character")
    monkeypatch.setattr("nightshift.tokenizer.PART", 5)
    marks = cut(learned, "abcdefghabcdefgh")
    assert "".join(marks).replace(MARK, "") == "abcdefghabcdefgh"
    assert cut(learned, "     ") == [SPECIAL[UNKNOWN]]


@pytest.mark.parametrize("unit", UNITS)
def test_spaces_and_line_ends_between_words_count_alike(unit: str) -> None:
    tokenizer = learn(["a cat", "the hat"], unit=unit)
    assert tokenizer.encode([" the \n\n cat\t"]) == tokenizer.encode(["the cat"])
    assert UNKNOWN not in tokenizer.encode(["the \n cat "])[0]


def test_a_mark_stands_where_a_word_begins_among_characters() -> None:
    tokenizer = learn(["ab a", "ab a", "猫猫"], unit="character")
    assert cut(tokenizer, "ab a") == ["▁", "a", "b", "▁", "a"]
    assert cut(tokenizer, "猫猫") == ["猫", "猫"]


@pytest.mark.parametrize(
    ("unit", "text", "share"),
    [
        ("word", "the dog sat down", 2 / 4),
        ("word", "猫 cat", 1 / 2),
        ("character", "the猫", 1 / 5),  # with the mark in front
        ("bpe", "猫猫", 1.0),
        ("bpe", "the cat", 0.0),
    ],
)
def test_the_share_of_unknown_tokens_is_countable(unit: str, text: str, share: float) -> None:
    assert unknown_share(learn(ENGLISH, unit=unit), text) == share


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_text_is_encoded_like_any_other(unit: str) -> None:
    tokenizer = learn(ENGLISH, unit=unit)
    texts = ["[PAD] [UNK]", "\u0000", "👩‍👩‍👧", "ש" * 5000, "a\u0301", "▁the", "x" * 100_000]
    found = tokenizer.encode(texts)
    assert all(found)
    assert all(0 < one < tokenizer.size for ids in found for one in ids)


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_a_tokenizer_survives_its_file(unit: str) -> None:
    one = learn(ENGLISH + CHINESE, unit=unit)
    two = Tokenizer(one.serialized, one.unit)
    assert (two.digest, two.size, two.unit) == (one.digest, one.size, one.unit)
    assert two.encode(["the cat 北京", ""]) == one.encode(["the cat 北京", ""])


def test_the_file_is_readable_by_hugging_face_tokenizers() -> None:
    tokenizer = learn(ENGLISH)
    other = HuggingFace.from_str(tokenizer.serialized)
    encoded = other.encode("the Cat!", add_special_tokens=False)
    assert encoded.ids == tokenizer.encode(["the Cat!"])[0]
    assert json.loads(tokenizer.serialized)["model"]["unk_token"] == "[UNK]"


def test_a_file_of_another_making_is_refused() -> None:
    foreign = json.loads(learn(ENGLISH, unit="word").serialized)
    vocabulary = foreign["model"]["vocab"]
    vocabulary["[UNK]"], vocabulary["the"] = vocabulary["the"], UNKNOWN
    foreign["added_tokens"] = []
    with pytest.raises(BundleError, match=r"found '\[UNK\]' at id 2, expected 1"):
        Tokenizer(json.dumps(foreign), "word")
