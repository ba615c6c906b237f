"""Cleaning: what stays of a text, what it is refused for, which language it is in."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from nightshift.cleaning import (
    CleaningConfig,
    clean,
    content_digest,
    detect_languages,
    reject_reason,
)

PLAIN = CleaningConfig()
HTML = CleaningConfig(html=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  plain  ", "plain"),
        ("cafe\u0301", "café"),
        ("one\r\ntwo\rthree\ttab", "one\ntwo\nthree\ttab"),
        ("page\x0cnext\u2028line", "page\nnext\nline"),
        ("\ufeffbell\x07 and \x00zero\x9f", "bell and zero"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("e\u202a\u0301", "é"),
        ("file\u202egpj.exe \u2066a\u2069", "filegpj.exe a"),
        ("ﬁve", "ﬁve"),
        ("", ""),
    ],
)
def test_text_is_normalised(text: str, expected: str) -> None:
    assert clean(text, PLAIN) == expected
    assert clean(clean(text, PLAIN), PLAIN) == expected


@pytest.mark.parametrize(
    "text", ["👩‍👩‍👧 ❤️ 🇩🇪", "\u200fשלום (abc)\u200e", "می‌خواهم", "ไทย\u200bไทย"]
)
def test_emoji_and_right_to_left_text_keep_their_joiners_and_marks(text: str) -> None:
    assert clean(text, PLAIN) == text


def test_nfkc_folds_compatible_characters_where_it_is_declared() -> None:
    assert clean("ﬁve ＡＢＣ\u00a0", CleaningConfig(unicode="NFKC")) == "five ABC"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one<br />two", "one two"),
        ("H<sub>2</sub>O is <b>wet</b>", "H2O is wet"),
        ("fish &amp; chips&nbsp;&#8211; &lt;b&gt;", "fish & chips – <b>"),
        ("<p class='x'>a</p><script>if (a<b) {}</script><!-- no -->b", "a  b"),
        ("1 < 2 and 3 > 2, a <- b", "1 < 2 and 3 > 2, a <- b"),
        ("cut <!-- off", "cut"),
    ],
)
def test_html_is_read_as_a_browser_shows_it_where_it_is_declared(text: str, expected: str) -> None:
    shown = clean(text, HTML)
    assert " ".join(shown.split()) == " ".join(expected.split())
    assert clean(text, PLAIN) == text


def test_hostile_html_costs_linear_time() -> None:
    begun = time.process_time()
    for part in ("<!--", "<script", "<a ", "<", "&#", "<p"):
        clean(part * 100_000, HTML)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("text", ["", "\u200b\u200d", "\u2060"])
def test_a_text_without_a_visible_character_is_no_text(text: str) -> None:
    assert reject_reason(text, PLAIN) == "no_text"


def test_a_text_past_the_limit_is_too_long_and_one_at_it_is_not() -> None:
    short = CleaningConfig(max_characters=3)
    assert reject_reason("abcd", short) == "too_long"
    assert reject_reason("abc", short) is None
    assert reject_reason("👍", short) is None


def test_the_digest_tells_texts_apart_and_never_changes() -> None:
    assert content_digest("a") == content_digest("a") != content_digest("b")
    assert content_digest("café") == "9883c13e4279980fe3f262ea93047f84"


# --- language -------------------------------------------------------------------------------

SPOKEN = {
    "en": "Where is the card that I ordered last week?",
    "de": "Wo ist die Karte, die ich letzte Woche bestellt habe?",
    "fr": "Où est la carte que j'ai commandée la semaine dernière ?",
    "es": "¿Dónde está la tarjeta que pedí la semana pasada?",
    "pl": "Gdzie jest karta, którą zamówiłem w zeszłym tygodniu?",
    "ru": "Где карта, которую я заказал на прошлой неделе?",
    "ar": "أين البطاقة التي طلبتها الأسبوع الماضي؟",
    "hi": "पिछले हफ्ते मैंने जो कार्ड मंगवाया था वह कहाँ है?",
    "zh": "我上周订的卡片在哪里？",
    "ja": "先週注文したカードはどこですか。",
    "ko": "지난주에 주문한 카드는 어디에 있나요?",
    "th": "บัตรที่ฉันสั่งเมื่อสัปดาห์ที่แล้วอยู่ที่ไหน",
}


def test_languages_are_told_apart_in_one_chunk_and_alone() -> None:
    texts = list(SPOKEN.values())
    assert detect_languages(texts) == list(SPOKEN)
    assert [detect_languages([text])[0] for text in texts] == list(SPOKEN)
    assert detect_languages([]) == []


def test_a_text_without_letters_is_in_no_language() -> None:
    assert detect_languages(["", "12:30", "👍👍", "!?"]) == ["und"] * 4


def test_an_unclear_text_is_read_in_the_light_of_its_company() -> None:
    unclear = "alkaline haematin and nitrogenous ligands"
    assert detect_languages([unclear]) != ["en"]
    assert detect_languages([unclear] + [SPOKEN["en"]] * 50)[0] == "en"


def test_a_foreign_text_is_not_swallowed_by_its_company() -> None:
    texts = [SPOKEN["en"]] * 200 + ["Die Überweisung ist noch nicht angekommen."]
    assert detect_languages(texts)[-1] == "de"


def test_a_han_only_text_is_japanese_among_japanese_and_chinese_elsewhere() -> None:
    assert detect_languages(["東京都庁"]) == ["zh"]
    assert detect_languages(["東京都庁"] + [SPOKEN["ja"]] * 100)[0] == "ja"
    assert (
        detect_languages(["东京新闻"] + [SPOKEN["ja"], "国乒公布世乒赛名单王励勤入围"] * 50)[0]
        == "zh"
    )


def test_a_chinese_headline_full_of_product_names_is_chinese_and_a_quoted_word_is_not() -> None:
    assert detect_languages(
        ["Intel Core i7处理器评测", "What does the word 你好 mean in English?"]
    ) == [
        "zh",
        "en",
    ]


def test_cleaning_imports_neither_the_detector_nor_a_table_library() -> None:
    code = (
        "import sys, nightshift.cleaning;"
        "print([m for m in ('py3langid', 'numpy', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
