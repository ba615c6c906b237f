"""The first rows of a file of unknown shape: its format, delimiter and encoding are found out.

The same readers as at night take the rows apart, so that what is shown is what will be read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .delimited import DELIMITERS, read_records, sniff_delimiter
from .errors import SourceError
from .files import by_extension
from .lines import DamagedError, OpenText, TooLong, decode, open_bytes, open_text, split_lines
from .parquet import open_parquet

HEAD_ROWS = 1_000
HEAD_CHARACTERS = 4_000_000  # rows of whole books need not all be read
ROW_BYTES = 16 << 20


@dataclass
class Head:
    """The first rows of a file, and how they were read; values are strings, numbers or None."""

    rows: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    """What a source has to declare to read them so."""
    notes: list[str] = field(default_factory=list)


def read_head(path: str) -> Head:
    """Parse the first rows of a CSV, TSV, JSON lines, Parquet or text file, .gz or .zst or neither.

    Raises: SourceError for a file that cannot be opened or is in no known format.
    """
    if Path(path).is_dir():
        raise SourceError(
            f"{path}: is a folder. Name one file in it; the pipeline's paths can then be a glob."
        )
    kind, compression = by_extension(path)
    if kind == "parquet":
        with open_parquet(path, compression) as file:
            first = next(file.iter_batches(batch_size=HEAD_ROWS), None) if file else None
        return Head(first.to_pylist() if first is not None else [])
    with open_bytes(path) as stream:
        text = open_text(stream, path, compression, "auto")
        head = _text_head(text, path, kind)
    if text.encoding != "utf-8":
        head.config["encoding"] = text.encoding
        head.notes.append(f"the encoding was detected as {text.encoding}: look at the rows.")
    return head


def _text_head(text: OpenText, path: str, kind: str | None) -> Head:
    shown = decode(text.head, text.encoding)[0].lstrip()
    if kind == "jsonl" or (kind is None and shown.startswith(("{", "["))):
        head, found = _json_head(text, path, shown), "jsonl"
    else:
        # Prose has commas too: only tabs make a table of a .txt file.
        if kind == "text" and share_alike(shown, "\t") < 0.9:
            return _document_head(shown)
        delimiter = "\t" if kind in ("tsv", "text") else find_delimiter(shown)
        head, found = _csv_head(text, shown, delimiter, kind), "csv"
    if kind in (None, "text"):
        head.config = {"format": found, **head.config}
    return head


def _document_head(shown: str) -> Head:
    notes = [
        "a .txt file is one document: put its folder or a glob into paths. `label: folder` takes "
        "the folders' names as labels."
    ]
    return Head([{"text": shown}] if shown else [], notes=notes)


def _json_head(text: OpenText, path: str, shown: str) -> Head:
    if shown.startswith("["):
        raise SourceError(
            f"{path}: is one JSON array. Expected JSON lines, one object per line: "
            f"`jq -c '.[]' {PurePosixPath(path).name}` makes them."
        )
    head = Head([])
    unreadable = 0
    for line in _until_enough(split_lines(text, ROW_BYTES), head):
        if not line.strip():
            continue
        try:
            row = None if isinstance(line, TooLong) else json.loads(decode(line, text.encoding)[0])
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            head.rows.append(row)
        else:
            unreadable += 1
    if unreadable and not head.rows:
        raise SourceError(f"{path}: no line is a JSON object. Expected one object per line.")
    if unreadable:
        head.notes.append(f"{unreadable:,} lines are no JSON objects: they will be rejects.")
    return head


def _csv_head(text: OpenText, shown: str, delimiter: str, kind: str | None) -> Head:
    head = Head([])
    by_default = "\t" if kind == "tsv" else sniff_delimiter(shown.partition("\n")[0])
    if delimiter != by_default:
        head.config["delimiter"] = delimiter
    records = read_records(split_lines(text, ROW_BYTES), text.encoding, delimiter, ROW_BYTES)
    header: list[str] = []
    unusable = 0
    for fields, problem, _ in _until_enough(records, head):
        if not header:
            header = [name.strip() for name in fields]
        elif problem or len(fields) != len(header):
            unusable += 1
        else:
            head.rows.append(dict(zip(header, fields, strict=True)))
    if unusable:
        head.notes.append(
            f"{unusable:,} of the first {len(head.rows) + unusable:,} rows are broken or have not "
            f"{len(header)} fields as the first line does: they will be rejects."
        )
    if len(set(header)) < len(header):
        head.notes.append("two columns have the same name: one of them cannot be used.")
    if any(len(name) > 60 or re.fullmatch(r"[\d.,-]+", name) for name in header):
        head.notes.append("the first line looks like a row, but should hold the columns' names.")
    return head


def _until_enough(items: Iterator[Any], head: Head) -> Iterator[Any]:
    """Lines or records until the head has its rows, with a note where the file breaks off."""
    characters = 0
    try:
        for item in items:
            yield item
            characters += len(item) if isinstance(item, bytes) else len(item[2])
            if len(head.rows) == HEAD_ROWS or characters > HEAD_CHARACTERS:
                return
    except DamagedError as error:
        head.notes.append(f"the file is damaged after {len(head.rows):,} rows: {error}.")


def find_delimiter(text: str) -> str:
    """The delimiter that gives most rows as many fields as the first line, else a comma."""
    return max(DELIMITERS, key=lambda delimiter: share_alike(text, delimiter))


def share_alike(text: str, delimiter: str) -> float:
    """The share of records with as many fields as the first line; 0 if that has only one."""
    counts = _field_counts(text, delimiter)
    if not counts or counts[0] < 2:
        return 0.0
    return sum(count == counts[0] for count in counts) / len(counts)


def _field_counts(text: str, delimiter: str, limit: int = 200) -> list[int]:
    """Fields per record, for the first records."""
    counts: list[int] = []
    try:
        for fields in csv.reader(text.splitlines(keepends=True), delimiter=delimiter):
            if fields:
                counts.append(len(fields))
            if len(counts) == limit:
                break
    except csv.Error:
        pass  # a giant field: what was counted so far has to do
    return counts
