"""Behavioural checks: texts whose answer a person knows, declared in pipelines.yaml.

After CheckList (Ribeiro et al. 2020): expected labels (minimum functionality) and swaps of words
that must not change the label (invariance). A `must` that fails keeps a challenger from becoming
champion, whatever its scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from .config import Config
from .tokenizer import HAN

if TYPE_CHECKING:
    from .bundle import Model

SHOWN = 80
"""Characters of a text in a sentence."""


class Example(Config):
    """A text and the label it is to get."""

    text: str = Field(min_length=1)
    """The text, as it would stand in a file."""
    label: str = Field(min_length=1)
    """Its label."""


class Invariance(Config):
    """Texts whose label stays the same when words are swapped, such as one name for another."""

    texts: list[str] = Field(min_length=1, max_length=1_000)
    """The texts; their labels do not matter."""
    swap: list[tuple[str, str]] = Field(min_length=1, max_length=100)
    """Pairs of words: each is put in place of the other wherever it stands."""
    must: bool = False
    """Whether a challenger that fails is refused."""

    @model_validator(mode="after")
    def _swaps_something(self) -> Invariance:
        for one, other in self.swap:
            if not one or not other or one == other:
                raise ValueError(f"swap: expected two different words, found {one!r}, {other!r}")
            if all(swapped(text, one, other) == text for text in self.texts):
                raise ValueError(f"swap: none of the texts holds the word {one!r} or {other!r}")
        return self


class ChecksConfig(Config):
    """What the model is expected to say, whatever its scores."""

    must: list[Example] = Field(default=[], max_length=1_000)
    """Texts whose label must be right, each `{text: ..., label: ...}`; a challenger that fails one
    is refused."""
    should: list[Example] = Field(default=[], max_length=1_000)
    """The same, but failures are only told."""
    invariances: list[Invariance] = Field(default=[], max_length=1_000)
    """Words that may be swapped without changing the label, each
    `{texts: [...], swap: [[one, other], ...], must: false}`."""


@dataclass(frozen=True)
class Failure:
    """One check that failed: in a sentence, and whether it had to hold."""

    must: bool
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """A plain mapping."""
        return asdict(self)


def swapped(text: str, one: str, other: str) -> str:
    """The text with each of two words in place of the other; words of letters are taken whole."""
    places = {one: other, other: one}
    # The longer first, lest a word hide another that begins with it.
    words = sorted(places, key=len, reverse=True)
    pattern = "|".join(_whole(word) for word in words)
    return re.sub(pattern, lambda found: places[found[0]], text)


def _whole(word: str) -> str:
    """A pattern of the word, but not inside another one; Chinese has no space between words."""
    escaped = re.escape(word)
    if HAN.search(word):
        return escaped
    before = r"(?<!\w)" if word[0].isalnum() else ""
    return before + escaped + (r"(?!\w)" if word[-1].isalnum() else "")


def count_checks(checks: ChecksConfig) -> int:
    """How many answers are judged: one for each text, and for each text that a swap changes."""
    return len(checks.must) + len(checks.should) + sum(1 for _ in _pairs(checks))


def failures(model: Model, checks: ChecksConfig) -> list[Failure]:
    """Ask a classifier, and tell every check that it fails; the labels of abstentions count, too.

    A check that cannot be judged (a label the model does not know, a text it cannot use) fails.
    """
    # The configuration is read where nobody waits for torch.
    from .bundle import Bundle

    pairs = list(_pairs(checks))
    texts = [one.text for one in (*checks.must, *checks.should)]
    texts += [text for _, text, other in pairs for text in (text, other)]
    answers = iter(Bundle(model, None).answer(texts, top=0) if texts else [])
    found: list[Failure] = []
    for must, examples in ((True, checks.must), (False, checks.should)):
        for example in examples:
            problem = _judged(example, next(answers), model.labels)
            if problem:
                found.append(Failure(must, f"{_short(example.text)} {problem}"))
    for must, text, other in pairs:
        problem = _compared(other, next(answers), next(answers))
        if problem:
            found.append(Failure(must, f"{_short(text)} {problem}"))
    return found


def _pairs(checks: ChecksConfig) -> Iterator[tuple[bool, str, str]]:
    """Whether it must hold, a text, and the same with words swapped."""
    for one in checks.invariances:
        for text in one.texts:
            for pair in one.swap:
                other = swapped(text, *pair)
                if other != text:
                    yield one.must, text, other


def _judged(example: Example, answer: dict[str, Any], known: list[str]) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if "error" in answer:
        return f"cannot be judged: the text is refused as {answer['error']}"
    if example.label not in known:
        return f"cannot be judged: the model does not know the label '{example.label}'"
    if answer["label"] == example.label:
        return ""
    return f"is taken for '{answer['label']}' instead of '{example.label}'"


def _compared(other: str, answer: dict[str, Any], after: dict[str, Any]) -> str:
    for one in (answer, after):
        if "error" in one:
            return f"cannot be judged: the text is refused as {one['error']}"
    if answer["label"] == after["label"]:
        return ""
    return f"is '{answer['label']}', but {_short(other)} is '{after['label']}'"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return f"'{line if len(line) <= SHOWN else line[: SHOWN - 1].rstrip() + '…'}'"
