"""Make text comparable: normalise it, recognise its language, refuse it with a reason.

Travels in served bundles, so that a text meets the same rules at night and when it is asked
about: nothing but the standard library is imported before a language is asked for.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from pydantic import Field

from .config import Config
from .errors import ConfigError

NO_TEXT = "no_text"
TOO_LONG = "too_long"

# Vertical tab, form feed, NEL and the Unicode separators end a line just as LF does; dropping
# them would glue the last word of a page to the first of the next.
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters, byte order marks, and bidi overrides and isolates, which can make a text
# read differently from what it says. Marks that right-to-left text and emoji need are not here.
DROPPED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\u202a-\u202e\u2066-\u2069]")
SURROGATES = re.compile("[\ud800-\udfff]")
VISIBLE = re.compile("[^\\s\u200b-\u200f\u2060-\u2064]")

# An unclosed comment or script runs to the end, as in a browser (and so costs linear time).
UNSHOWN = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)", re.S | re.I)
INLINE = re.compile(
    r"</?(?:a|abbr|b|bdi|code|em|font|i|mark|s|small|span|strong|sub|sup|u|wbr)\b[^<>]*>", re.I
)
TAG = re.compile(r"</?[a-z][^<>]*>", re.I)

HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
JAPANESE = 0.1
"""From this many kana per Han character on, Han is Japanese and not to be converted."""


class CleaningConfig(Config):
    """How a document's text is normalised before anything else looks at it."""

    unicode: Literal["NFC", "NFKC"] = "NFC"
    """Unicode form. NFKC also folds full-width letters, ligatures and the like."""
    case: Literal["keep", "lower"] = "keep"
    """lower: every letter becomes small, so that texts that differ in case alone are duplicates."""
    width: Literal["keep", "half", "full"] = "keep"
    """half: full-width ASCII and katakana become half-width; full: ASCII becomes full-width; both
    after the Unicode form, which may be either."""
    chinese: Literal["keep", "simplified", "traditional"] = "keep"
    """Write Chinese in one script, by the words of OpenCC; Japanese stays as it is."""
    html: bool = False
    """Read the text as HTML: tags go (`<br>` leaves a space, `<b>` nothing), entities become
    characters, scripts and comments vanish."""
    max_characters: int = Field(default=1_000_000, ge=1, le=100_000_000)
    """A longer text is rejected as `too_long`."""


def clean(text: str, config: CleaningConfig) -> str:
    """The text as every later stage sees it; cleaning twice changes nothing (unless HTML).

    Lone surrogates become U+FFFD, so the answer can always be encoded.
    """
    if config.html:
        text = _as_shown(text)
    if text.isascii() and text.isprintable() and config.width != "full":
        # Nothing else below could change it.
        return (text.lower() if config.case == "lower" else text).strip()
    text = LINE_ENDS.sub("\n", text)
    text = SURROGATES.sub("\ufffd", DROPPED.sub("", text))
    # After dropping: a control character between a letter and its accent would keep them apart.
    text = unicodedata.normalize(config.unicode, text)
    return _folded(text, config).strip()


def reject_reason(cleaned: str, config: CleaningConfig) -> str | None:
    """`no_text` where nothing is visible, `too_long` past the limit, else None."""
    if not VISIBLE.search(cleaned):
        return NO_TEXT
    return TOO_LONG if len(cleaned) > config.max_characters else None


def content_digest(cleaned: str) -> str:
    """What tells a text from every other: blake2b of its UTF-8, 32 hex digits."""
    return hashlib.blake2b(cleaned.encode(), digest_size=16).hexdigest()


def _as_shown(text: str) -> str:
    if "<" in text:
        # Tags before entities: `&lt;b&gt;` is text about a tag.
        text = TAG.sub(" ", INLINE.sub("", UNSHOWN.sub(" ", text)))
    return html.unescape(text).replace("\xa0", " ") if "&" in text else text


# --- case, width, script --------------------------------------------------------------------

# The ideographic space is the space's full-width form.
TO_FULL = {ascii_code: ascii_code + 0xFEE0 for ascii_code in range(0x21, 0x7F)} | {0x20: 0x3000}


@cache
def _to_half() -> dict[int, str]:
    """Full-width ASCII and katakana -> half-width; a voiced kana becomes two characters."""
    half = {full: chr(ascii_code) for ascii_code, full in TO_FULL.items()}
    for code in range(0xFF65, 0xFF9E):
        if "KATAKANA" in unicodedata.name(chr(code)):
            half[ord(unicodedata.normalize("NFKC", chr(code)))] = chr(code)
    marks = {"\u3099": "\uff9e", "\u309a": "\uff9f"}
    for code in range(0x30A1, 0x30FB):
        base, *mark = unicodedata.normalize("NFD", chr(code))
        if mark and ord(base) in half:
            half[code] = half[ord(base)] + marks[mark[0]]
    return half


def _folded(text: str, config: CleaningConfig) -> str:
    """Case, then width, then script."""
    # A letter may now compose with the mark behind it: T and a diaeresis only once small, a
    # full-width equals sign and a stroke only once half. NFC even after NFKC, which would fold the
    # widths just chosen.
    if config.case == "lower":
        text = unicodedata.normalize("NFC", text.lower())
    if config.width != "keep":
        table = _to_half() if config.width == "half" else TO_FULL
        text = unicodedata.normalize("NFC", text.translate(table))
    if config.chinese != "keep" and HAN.search(text) and not _is_japanese(text):
        text = _in_script(text, config.chinese)
    return text


def _is_japanese(text: str) -> bool:
    return len(KANA.findall(text)) >= JAPANESE * len(HAN.findall(text))


# Converting to traditional twice is not converting once: the words by which OpenCC tells 于 the
# surname from 於 are written in simplified characters. A text that its own simplified form leads
# back to is therefore left alone. Measured on 53,590 headlines: the same as one pass on each, and
# a second cleaning changes none, where a second plain pass changed 431.
PASSES = 8


def _in_script(text: str, script: Literal["simplified", "traditional"]) -> str:
    simplified, traditional = _converters()
    wanted = simplified if script == "simplified" else traditional
    for _ in range(PASSES):  # on everything tried, two are enough
        if script == "traditional" and traditional(simplified(text)) == text:
            break
        before, text = text, wanted(text)
        if text == before:
            break
    return text


@cache
def _converters() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """To simplified and to traditional Chinese; loads in 0.1 s."""
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise ConfigError(
            "cleaning.chinese: found no opencc, by which Chinese is converted. Install it with "
            "`pip install opencc==1.4.2`, or write `chinese: keep`."
        ) from error
    return OpenCC("t2s").convert, OpenCC("s2t").convert


# --- language -------------------------------------------------------------------------------

# Measured on imdb's long reviews (2 cores, py3langid 0.4), by how much of each is looked at:
#   first 100, 200, 300 characters: 0.998, 0.998, 1.000 English, at 60, 90, 120 microseconds.
# Questions and titles are shorter than 200. With all that follows, 50,000 banking77 questions
# take 3 s, titles, news or snippets 6 to 7 s, Chinese headlines 0.3 s.
LANGUAGE_CHARACTERS = 200

# Below SURE, the detector's probabilities are multiplied by how common each language is among
# the sure texts of the same chunk (plus SMOOTHING texts of every language, so that a lone text
# keeps the detector's own answer). Measured, alone -> in company: biomedical titles 0.958 ->
# 0.999 (the rest was "Latin"), search snippets 0.976 -> 0.999, banking77 0.999 -> 1.000; and 36
# one-line questions in 20 other languages hidden among 1,500 English ones stayed at 35 right.
SURE = 0.9
SMOOTHING = 10

LETTER = re.compile(r"[^\W\d_]")
# Scripts that one language owns. The detector is not asked here: it takes a quarter of Chinese
# headlines for Wu, and these are certain at a hundredth of its cost.
OWN_SCRIPTS = {
    "ja": KANA,
    "ko": re.compile("[\u1100-\u11ff\uac00-\ud7a3]"),
    "th": re.compile("[\u0e01-\u0e4e]"),
}
# A Han character says about as much as three Latin letters: a headline full of product names is
# still Chinese, an English sentence about one Chinese word is not.
OWN_SHARE = 0.25
# Japanese sentences hardly ever do without kana for this long; shorter ones may.
LONG_HAN = 10

Guess = dict[str, float]


def detect_languages(texts: list[str]) -> list[str]:
    """One ISO 639-1 code per text; `und` where no letter tells anything.

    Chinese in every variety is `zh`. Give a whole chunk: texts that are unclear alone are read
    in the light of the clear ones beside them, so company can change the answer for a short text.
    """
    heads = [text[:LANGUAGE_CHARACTERS] for text in texts]
    guesses = [_by_script(head) or _by_detector(head) for head in heads]
    clear = Counter(language for language, share in map(_best, guesses) if share >= SURE)
    return [_in_company(head, guess, clear) for head, guess in zip(heads, guesses, strict=True)]


def _by_script(text: str) -> Guess | None:
    """What the letters alone prove; None where the detector has to be asked."""
    if not LETTER.search(text):
        return {"und": 1.0}
    if text.isascii():
        return None
    enough = OWN_SHARE * len(LETTER.findall(text))
    han = len(HAN.findall(text))
    for language, script in OWN_SCRIPTS.items():
        found = len(script.findall(text))
        # Kana count together with the Han characters they inflect.
        if found and found + (han if language == "ja" else 0) >= enough:
            return {language: 1.0}
    if han and han >= enough:
        return {"zh": 1.0} if han >= LONG_HAN else {"zh": 0.85, "ja": 0.15}
    return None


def _by_detector(text: str) -> Guess:
    language, probability = _detector().classify(text)
    return {language: probability}


def _in_company(text: str, guess: Guess, clear: Counter[str]) -> str:
    language, share = _best(guess)
    if share >= SURE or not clear:
        return language
    if len(guess) == 1:
        guess = dict(_detector().rank(text))
    return max(guess, key=lambda code: guess[code] * (clear[code] + SMOOTHING))


def _best(guess: Guess) -> tuple[str, float]:
    return max(guess.items(), key=lambda item: item[1])


@cache
def _detector() -> Any:
    """The detector, restricted to languages that have an ISO 639-1 code; loads in 0.7 s."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages([label for label in detector.labels if len(label) == 2])
    return detector
