"""Cleaning: what stays of a text, what it is refused for, which language it is in."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
import unicodedata

import pytest

from nightshift.cleaning import (
    CleaningConfig,
    clean,
    content_digest,
    detect_languages,
    reject_reason,
)
from nightshift.errors import ConfigError

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


# --- case, width, script --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "half", "full"),
    [
        ("plain, A~!", "plain, A~!", "ｐｌａｉｎ，\u3000Ａ～！"),
        ("ＡＢｃ！\u3000１２", "ABc! 12", "ＡＢｃ！\u3000１２"),
        ("カード・ガパヴ", "ｶｰﾄﾞ･ｶﾞﾊﾟｳﾞ", "カード・ガパヴ"),
        ("ヮヰヱ。、「中」", "ヮヰヱ。、「中」", "ヮヰヱ。、「中」"),
        ("a\nb\tc", "a\nb\tc", "ａ\nｂ\tｃ"),
        ("１\uff1d\u03382", "1≠2", "１\uff1d\u0338２"),
        ("café", "café", "ｃａｆé"),
        ("￥５", "￥5", "￥５"),
    ],
)
@pytest.mark.parametrize("unicode", ["NFC", "NFKC"])
def test_widths_are_folded_either_way_and_not_undone_by_the_unicode_form(
    text: str, half: str, full: str, unicode: str
) -> None:
    if unicode == "NFKC":  # it has its own mind about these two
        half, full = half.replace("￥", "¥"), full.replace("￥", "¥")
        full = full.replace("\uff1d\u0338", "≠")
    for width, expected in (("half", half), ("full", full)):
        config = CleaningConfig.model_validate({"unicode": unicode, "width": width})
        assert clean(text, config) == expected


def test_every_half_width_katakana_comes_from_the_letter_that_unicode_names_alike() -> None:
    for code in [*range(0xFF66, 0xFF70), *range(0xFF71, 0xFF9E)]:
        name = unicodedata.name(chr(code)).removeprefix("HALFWIDTH ")
        assert clean(unicodedata.lookup(name), CleaningConfig(width="half")) == chr(code)


def test_letters_become_small_on_the_fast_path_and_off_it() -> None:
    config = CleaningConfig(case="lower")
    assert clean(" Where IS It? ", config) == "where is it?"
    assert clean("ÉTÉ ＡＢ ΟΔΟΣ Straße\nİ", config) == "été ａｂ οδος straße\ni\u0307"
    assert clean("T\u0308", config) == "ẗ"


@pytest.mark.parametrize(
    ("text", "simplified", "traditional"),
    [
        ("汉字简体，头发发现", "汉字简体，头发发现", "漢字簡體，頭髮發現"),
        ("漢字簡體，頭髮發現", "汉字简体，头发发现", "漢字簡體，頭髮發現"),
        ("乾隆皇后吃饼干", "乾隆皇后吃饼干", "乾隆皇后喫餅乾"),
        ("English only", "English only", "English only"),
        ("先週の漢字は東京で学ぶ", "先週の漢字は東京で学ぶ", "先週の漢字は東京で学ぶ"),
    ],
)
def test_chinese_is_written_in_one_script_and_japanese_left_alone(
    text: str, simplified: str, traditional: str
) -> None:
    assert clean(text, CleaningConfig(chinese="simplified")) == simplified
    assert clean(text, CleaningConfig(chinese="traditional")) == traditional


def test_a_word_that_only_its_simplified_form_explains_is_not_converted_again() -> None:
    # 于 is a surname here. Alone OpenCC's dictionary would now take it for the preposition 於.
    config = CleaningConfig(chinese="traditional")
    assert clean("于大宝：感谢救命球", config) == "于大寶：感謝救命球"
    assert clean("于大寶：感謝救命球", config) == "于大寶：感謝救命球"


# Where one folding prepares another: letters that compose only once they are small, narrow or
# wide; that become ASCII; that one Unicode form takes back; whose conversion goes two steps.
HARD = [
    "İ", "T\u0308", "\U0001d5b6\u20eb\u030a", "\uff1d\u0338", "=\u0338", "K\u030a",
    "カ\u309a", "ﾊ\u3099", "ﾊﾞ", "ヷヸ", "ア゛", "\u3000 a \u3000", "¨ｑ\u0301", "℡①ﬁ", "ΑΣ",
    "苎麻", "薴", "乾闥婆", "大目乾連", "贸易伙伴", "于世成课后复习于伟国", "占问", "\uf900",
    "\ufeff于", "艳后の",
]  # fmt: skip


@pytest.mark.parametrize("unicode", ["NFC", "NFKC"])
@pytest.mark.parametrize("width", ["keep", "half", "full"])
@pytest.mark.parametrize("chinese", ["keep", "simplified", "traditional"])
def test_cleaning_twice_changes_nothing(unicode: str, width: str, chinese: str) -> None:
    draw = random.Random(1)
    joined = ["".join(draw.choices(HARD, k=3)) for _ in range(300)]
    for case, text in itertools.product(("keep", "lower"), HARD + joined):
        config = CleaningConfig.model_validate(
            {"unicode": unicode, "case": case, "width": width, "chinese": chinese}
        )
        once = clean(text, config)
        assert clean(once, config) == once, ascii(text)


def test_texts_that_differ_in_a_folded_trait_alone_are_duplicates() -> None:
    config = CleaningConfig(case="lower", width="half", chinese="simplified")
    digests = {content_digest(clean(text, config)) for text in ("ＡＢ漢字", "ab汉字", "Ａb漢字 ")}
    assert len(digests) == 1
    assert content_digest(clean("ＡＢ漢字", PLAIN)) not in digests


def test_a_missing_opencc_is_asked_for_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nightshift import cleaning

    monkeypatch.setitem(sys.modules, "opencc", None)
    cleaning._converters.cache_clear()
    config = CleaningConfig(chinese="simplified")
    assert clean("no Chinese: été", config) == "no Chinese: été"
    with pytest.raises(ConfigError, match=r"found no opencc.*pip install opencc.*chinese: keep"):
        clean("漢字", config)


def test_plain_ascii_costs_less_than_half_of_other_text() -> None:
    # Measured: 0.6 against 5 microseconds for 220 characters.
    def seconds(text: str, config: CleaningConfig) -> float:
        begun = time.process_time()
        for _ in range(5_000):
            clean(text, config)
        return time.process_time() - begun

    text = "Where is the card that I ordered last week? " * 5
    for config in (PLAIN, CleaningConfig(case="lower", width="half", chinese="traditional")):
        fast, slow = (min(seconds(one, config) for _ in range(3)) for one in (text, text + "é"))
        assert fast < slow / 2


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
        "heavy = {'py3langid', 'numpy', 'pandas', 'pyarrow', 'opencc'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
