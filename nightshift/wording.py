"""What the morning page says, in either language or both, and how numbers are written.

The words are in phrases.py. A sentence that meets the page in two languages is two spans, of which
the style sheet shows one: no script is needed to read either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from .phrases import NOUNS, WORDS
from .pictures import clean

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True)
class Both:
    """The same words in both languages."""

    en: str
    zh: str

    def of(self, language: Language) -> str:
        """In one of them."""
        return self.zh if language == "zh" else self.en

    def __str__(self) -> str:
        return self.en


@dataclass(frozen=True)
class Say:
    """One language: `say("key", n=3)`."""

    language: Language = "en"

    def __call__(self, key: str, **values: Any) -> str:
        """The words of a key with values filled in; a value may be of both languages."""
        given = {name: self.said(one) for name, one in values.items()}
        return WORDS[key][LANGUAGES.index(self.language)].format(**given)

    def said(self, value: Any) -> Any:
        """A value as this language has it."""
        return value.of(self.language) if isinstance(value, Both) else value

    def count(self, noun: str, number: int) -> str:
        """`1 document`, `4,512 documents`."""
        one, many, chinese = NOUNS[noun]
        words = chinese if self.language == "zh" else one if number == 1 else many
        return words.format(n=f"{number:,}")

    def listed(self, parts: list[str]) -> str:
        """Parts as a sentence has them."""
        return ("、" if self.language == "zh" else ", ").join(parts)

    def points(self, change: float) -> str:
        """0.021 -> `2.1 points`."""
        written = f"{abs(change) * 100:.1f}"
        return self("points_one" if written == "1.0" else "points", n=written)


EN, ZH = Say("en"), Say("zh")


def both(sentence: Callable[[Say], str]) -> Both:
    """A sentence in both languages."""
    return Both(sentence(EN), sentence(ZH))


def counts(noun: str, number: int) -> Both:
    """A count in both languages."""
    return both(lambda say: say.count(noun, number))


def words_of(key: str, **values: Any) -> Both:
    """The words of a key in both languages."""
    return both(lambda say: say(key, **values))


def marked(value: Both | str) -> Markup:
    """Words for the page, escaped; both languages where they differ, of which it shows one."""
    if isinstance(value, str):
        value = Both(value, value)
    one, two = (Markup.escape(clean(part)) for part in (value.en, value.zh))
    return _spans(one, two)


def text_of(key: str, **values: Any) -> Markup:
    """The words of a key for the page: their own markup stays, what is filled in is escaped."""
    found = []
    for say, words in zip((EN, ZH), WORDS[key], strict=True):
        given = {name: say.said(one) for name, one in values.items()}
        given = {name: clean(one) if isinstance(one, str) and not isinstance(one, Markup) else one
                 for name, one in given.items()}  # fmt: skip
        found.append(Markup(words).format(**given))
    return _spans(*found)


def _spans(one: Markup, two: Markup) -> Markup:
    if one == two:
        return one
    return Markup(
        '<span class="en" lang="en">{}</span><span class="zh" lang="zh-Hans">{}</span>'
    ).format(one, two)


# --- numbers --------------------------------------------------------------------------------


def counted(number: int, noun: str = "") -> str:
    """`4,512`, in English with a noun."""
    return EN.count(noun, number) if noun else f"{number:,}"


def share(value: float | None) -> str:
    """0.8912 -> `89.1%`; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def plain(value: float | None) -> str:
    """Three decimals; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def signed_points(change: float | None) -> str:
    """0.021 -> `+2.1`, in points."""
    if change is None or not math.isfinite(change):
        return "–"
    written = f"{change * 100:+.1f}".replace("-", "\u2212")
    return written if re.search("[1-9]", written) else "0.0"
