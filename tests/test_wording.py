"""The page's words: each in both languages, each filled in alike, each used."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from nightshift.phrases import NOUNS, WORDS
from nightshift.wording import EN, ZH, Both, marked, signed_points, text_of, words_of

ROOT = Path(__file__).parent.parent / "nightshift"


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("key", WORDS)
def test_both_languages_are_filled_in_with_the_same(key: str) -> None:
    one, two = WORDS[key]
    assert one.strip()
    assert two.strip()
    # English alone conjugates.
    assert fields(one) - {"are"} == fields(two)


def test_every_phrase_is_used_and_every_used_one_is_there() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for kind in ("*.py", "*.html", "*.js")
                        for path in [*ROOT.glob(kind), *(ROOT.parent / "tasks").glob(kind)]
                        if path.name != "phrases.py")  # fmt: skip
    made = ("event_", "measure_", "short_", "kind_", "theme_", "p_")
    unused = [key for key in WORDS
              if not re.search(rf"[\"']{key}[\"']", sources) and not key.startswith(made)
              and key.removesuffix("_note") == key]  # fmt: skip
    assert unused == []
    asked = set(re.findall(r"\bt\(\"(\w+)\"[,)]", sources))
    assert asked - set(WORDS) == set()


def test_counts_have_a_singular_in_english_and_none_in_chinese() -> None:
    assert (EN.count("document", 1), EN.count("document", 1200)) == (
        "1 document",
        "1,200 documents",
    )
    assert ZH.count("document", 1) == "1 篇文档"
    assert all(len(one) == 3 for one in NOUNS.values())


def test_what_is_filled_in_is_escaped_and_the_phrases_own_markup_stays() -> None:
    said = text_of("reject_table")
    assert "<code>rejects</code>" in said
    said = text_of("against", name="<b>\x00")
    assert said.count("&lt;b&gt;") == 2
    assert "<b>" not in said
    assert "\x00" not in said
    assert marked(Both("<", "<")) == "&lt;"
    assert marked(words_of("map")) == (
        '<span class="en" lang="en">Map</span><span class="zh" lang="zh-Hans">地图</span>'
    )


def test_points_have_a_sign_unless_they_are_none() -> None:
    assert [signed_points(one) for one in (0.0214, -0.5, 0.0001, None)] == [
        "+2.1",
        "−50.0",
        "0.0",
        "–",
    ]
