"""CSV and TSV records from physical lines, through quotes that nobody closed.

The standard csv module parses, strictly. Where it stumbles over several lines (an open quote
that swallowed them), those lines are read again one by one, so that one bad line costs one row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from .lines import TooLong, decode
from .rows import LINE_TOO_LONG, UNDECODABLE, UNREADABLE_LINE

DELIMITERS = ",;\t|"

Record = tuple[list[str], str | None, str]
"""The fields, what is wrong with the record (None: nothing), and its text."""


def sniff_delimiter(header: str) -> str:
    """The most frequent of comma, semicolon, tab and bar; a comma where there is none."""
    return max(DELIMITERS, key=header.count)


def read_records(
    lines: Iterator[bytes], encoding: str, delimiter: str, max_bytes: int
) -> Iterator[Record]:
    """Every record that is not blank, the header included.

    Raises: lines.DamagedError where the lines do.
    """
    # The one setting is the whole process's, so it is never lowered: other readers rely on it.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    feed = _Feed(lines, encoding, max_bytes)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield from _line_by_line(feed.held, delimiter)
        except _LineTooLong as error:
            yield from _line_by_line(feed.held, delimiter)
            yield [], LINE_TOO_LONG, error.args[0].decode("utf-8", "replace")
        else:
            if fields:
                raw = feed.held[0] if len(feed.held) == 1 else "\n".join(feed.held)
                yield fields, None if feed.decoded else UNDECODABLE, raw
        feed.begin_record()


class _LineTooLong(Exception):  # noqa: N818 - caught a few lines above, never an error of its own
    """A physical line above the limit came up, perhaps in the middle of a record."""


class _Feed:
    """Decoded lines for csv.reader; remembers those of the record being read."""

    def __init__(self, lines: Iterator[bytes], encoding: str, max_bytes: int) -> None:
        self.lines = lines
        self.encoding = encoding
        self.max_bytes = max_bytes
        self.begin_record()

    def begin_record(self) -> None:
        self.held: list[str] = []
        self.bytes = 0
        self.decoded = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if isinstance(line, TooLong):
            raise _LineTooLong(line)
        text, decoded = decode(line, self.encoding)
        self.decoded &= decoded
        self.held.append(text)
        self.bytes += len(line)
        if self.bytes > self.max_bytes:
            raise csv.Error("an open quote swallowed more than a row may hold")
        return text + "\n"


def _line_by_line(lines: list[str], delimiter: str) -> Iterator[Record]:
    """Each line as a record of its own, leniently; one that leaves a quote open is unreadable."""
    for line in lines:
        if not line.strip():
            continue
        try:
            # Lenient parsing does not tell of an open quote: it swallows the next line, a blank.
            records = list(csv.reader([line + "\n", "\n"], delimiter=delimiter))
        except csv.Error:
            records = []
        if len(records) < 2:
            yield [], UNREADABLE_LINE, line
        else:
            broken = any("\udc80" <= char <= "\udcff" for char in line)
            yield records[0], UNDECODABLE if broken else None, line
