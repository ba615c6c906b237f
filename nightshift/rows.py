"""One record of a source file, and what counts as a text, a label, an id, a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from .cleaning import NO_TEXT
from .lines import RAW_CHARACTERS, shorten

UNDECODABLE = "undecodable"
WRONG_FIELDS = "wrong_fields"
UNREADABLE_LINE = "unreadable_line"
LINE_TOO_LONG = "line_too_long"
LABEL_TYPE = "label_type"
TEXT_TYPE = "text_type"

INTEGRAL = re.compile(r"-?\d+\.0+")
EPOCH = re.compile(r"-?\d{9,}(\.\d+)?")
# Above 2**53 a float no longer tells neighbouring integers apart.
EXACT_FLOAT = 2**53
COLUMN_CHARACTERS = 200
"""Of a further column's value; it names a slice, and is no text of its own."""


@dataclass(slots=True)
class Row:
    """One record of a file: usable, or with the problem that it is rejected for."""

    number: int
    """The record's place in its file, from 1; a CSV header is not counted."""
    text: str | None = None
    label: str | None = None
    """None: unlabelled."""
    id: str | None = None
    split: str | None = None
    time: datetime | None = None
    """In UTC. A time that cannot be parsed is None, not a reject: it only places the document
    in reports, and a text that can be learned from is worth more than its date."""
    columns: dict[str, str] = field(default_factory=dict)
    """The declared further columns that have a value."""
    problem: str | None = None
    raw: str = ""
    """The beginning of what was found, where there is a problem."""


class Undecodable:
    """Stands for a value whose bytes are not text."""

    def __repr__(self) -> str:
        return "undecodable bytes"


def make_row(
    number: int, text: Any, label: Any, id_: Any, split: Any, time: Any, *, untyped: bool = False
) -> Row:
    """Judge a record's values; `untyped` where everything is a string, as in CSV."""
    row = Row(number)
    if isinstance(text, str) and text and not text.isspace():
        row.text = text
    else:
        row.problem, row.raw = _text_problem(text)
    if label is not None:
        row.label, known = as_name(label, untyped)
        if not known and not row.problem:
            row.problem = UNDECODABLE if isinstance(label, Undecodable) else LABEL_TYPE
            row.raw = shorten(repr(label))
    if id_ is not None:
        row.id = as_name(id_, untyped)[0]
    if split is not None:
        row.split = as_name(split, untyped)[0]
    if time is not None:
        row.time = as_time(time)
    return row


def _text_problem(text: Any) -> tuple[str, str]:
    # A float that is not a number is how pandas writes a missing text.
    if text is None or isinstance(text, str) or text != text:
        return NO_TEXT, shorten(text or "") if isinstance(text, str) else ""
    problem = UNDECODABLE if isinstance(text, Undecodable) else TEXT_TYPE
    return problem, shorten(repr(text))


def as_name(value: Any, untyped: bool) -> tuple[str | None, bool]:
    """A label, id or split as a string (None: not given), and whether its type is one of them.

    Integral floats lose their fraction: pandas makes 3.0 of the integer 3 as soon as one value
    of its column is missing, and the class must be the same on both nights.
    """
    if isinstance(value, str):
        name = value.strip()
        if untyped and name in ("nan", "NaN"):
            return None, True
        if untyped and INTEGRAL.fullmatch(name):
            name = name.partition(".")[0]
        return name or None, True
    if value is None or value != value:
        return None, True
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), True
    if isinstance(value, float | Decimal) and abs(value) < EXACT_FLOAT and value == int(value):
        return str(int(value)), True
    return None, False


def as_columns(values: Mapping[str, Any], untyped: bool) -> dict[str, str]:
    """Further columns by name, as text; without those that are empty or neither text nor number."""
    found: dict[str, str] = {}
    for name, value in values.items():
        said = str(value).lower() if isinstance(value, bool) else as_name(value, untyped)[0]
        if said is None and isinstance(value, float | Decimal) and value == value:
            said = f"{value:g}"
        elif said is None and isinstance(value, date):
            said = value.isoformat()
        if said:
            # Half a surrogate pair, as JSON may spell it, is no text that a table takes.
            found[name] = said[:COLUMN_CHARACTERS].encode("utf-8", "replace").decode()
    return found


def as_time(value: Any) -> datetime | None:
    """A moment in UTC from ISO 8601, epoch seconds or milliseconds; else None.

    A time without a zone is taken for UTC; a date for its first moment.
    """
    try:
        if isinstance(value, str):
            value = value.strip()
            value = float(value) if EPOCH.fullmatch(value) else datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, date):
            return datetime.combine(value, time(), UTC)
        # Below 1973 it is hardly a moment: rather a year, or a number of something else.
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) < 1e8:
            return None
        return datetime.fromtimestamp(value / 1000 if abs(value) >= 1e11 else value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def rejected(number: int, problem: str, raw: str | bytes) -> Row:
    """A record that could not even be taken apart."""
    return Row(number, problem=problem, raw=shorten(raw[: 4 * RAW_CHARACTERS]))
