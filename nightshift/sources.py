"""Where text comes from: files found by path, glob or URL, and read as rows, chunk by chunk.

    list_files(config) -> files        read_rows(uri, config) -> chunks of rows

Below it: `files.py` finds files, `lines.py` decompresses, decodes and bounds lines, `delimited.py`
knows quoting, `parquet.py` columns, `rows.py` what counts as a text or a label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from .cleaning import SURROGATES
from .config import Config, nearest
from .delimited import Record, read_records, sniff_delimiter
from .errors import SourceError
from .files import EXTENSIONS, FoundFile, by_extension, file_digest, files_at, name_within
from .lines import (
    DamagedError,
    OpenText,
    TooLong,
    decode,
    open_bytes,
    open_text,
    split_lines,
)
from .parquet import open_parquet, read_values
from .rows import (
    LINE_TOO_LONG,
    UNDECODABLE,
    UNREADABLE_LINE,
    WRONG_FIELDS,
    Row,
    as_columns,
    make_row,
    rejected,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = [
    "FoundFile",
    "Row",
    "SourceConfig",
    "columns_of",
    "file_digest",
    "is_settled",
    "list_files",
    "read_rows",
    "whole_columns",
    "whole_records",
]

CHUNK_ROWS = 2_000
CHUNK_CHARACTERS = 16_000_000
SLICES = ("language", "length", "age", "source_file")
"""What every document is told apart by, beside the declared columns."""


class SourceConfig(Config):
    """Which files a pipeline reads, and which of their columns mean what."""

    paths: list[str] = Field(min_length=1, max_length=1_000)
    """Files, folders, globs or fsspec URLs; relative ones start at the pipelines file."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "text"] = "auto"
    """The format of every file; `auto` goes by extension, below `.gz` or `.zst`."""
    text: str = Field(default="text", min_length=1)
    """The column that holds the document."""
    label: str | None = Field(default=None, min_length=1)
    """The column that holds its class; `folder` for text files: their folder's name."""
    id: str | None = Field(default=None, min_length=1)
    """The column that names a document for ever; without one, its content does."""
    split: str | None = Field(default=None, min_length=1)
    """The column that says train, validation or test."""
    time: str | None = Field(default=None, min_length=1)
    """The column that says when: ISO 8601, epoch seconds or milliseconds, a timestamp."""
    columns: list[str] = Field(default=[], max_length=20)
    """Further columns kept with the document, such as region or product: scores are also told for
    each of their most frequent values."""
    reader: str | None = Field(default=None, min_length=1)
    """The column that names who read a document, or several by `;`: `nightshift similar --reader`
    then brings each what they follow."""
    encoding: Literal["auto", "utf-8", "gb18030", "latin-1"] = "auto"
    """The encoding of text files; `auto` looks at the first MiB of each."""
    delimiter: str | None = Field(default=None, pattern=r'^[^"\r\n]$')
    """The character between CSV fields; by default the most frequent in the header."""
    max_row_bytes: int = Field(default=16 << 20, ge=1_000, le=1 << 30)
    """A longer row is rejected as `line_too_long`, without ever being held in memory."""
    settle_seconds: int = Field(default=60, ge=0, le=86_400)
    """A file changed less than this ago is still being written, and waits."""

    @field_validator("columns")
    @classmethod
    def _name_slices_of_their_own(cls, found: list[str]) -> list[str]:
        for name in found:
            if not name or name in SLICES or found.count(name) > 1:
                raise ValueError(
                    "expected different names of columns, none of them empty or "
                    f"{', '.join(SLICES)}, by which scores are told in any case"
                )
        return found

    @property
    def kept(self) -> list[str]:
        """Columns kept with the document: those declared, and the reader's."""
        more = [self.reader] if self.reader and self.reader not in self.columns else []
        return [*self.columns, *more]


# --- finding --------------------------------------------------------------------------------


def list_files(config: SourceConfig) -> list[FoundFile]:
    """Every file behind the configured paths, once each, in the order of their URIs.

    Hidden and temporary names are left out; a path that matches nothing is no file.
    Raises: SourceError for a protocol that is not known, PassingError if a store is away.
    """
    found = {file.uri: file for path in config.paths for file in files_at(path, config.format)}
    return [found[uri] for uri in sorted(found)]


def is_settled(file: FoundFile, config: SourceConfig, now: float) -> bool:
    """Whether the file has been left alone for `settle_seconds`, as far as its store can tell."""
    # A time far ahead comes from a wrong clock: waiting for it could take for ever.
    return file.modified is None or abs(now - file.modified) >= config.settle_seconds


# --- reading --------------------------------------------------------------------------------


def read_rows(uri: str, config: SourceConfig) -> Iterator[list[Row]]:
    """Every record of a file in its order, in chunks; one that cannot be used says why.

    Only a chunk is held in memory. Raises, from the first chunk: SourceError if the file cannot
    be opened, is not what its format says, or lacks a declared column.
    """
    kind, compression = _format_of(uri, config)
    if kind == "parquet":
        with open_parquet(uri, compression, config.paths) as file:
            if file:
                yield from _chunks(_until_damaged(_parquet_rows(uri, file, config)))
        return
    with open_bytes(uri, config.paths) as stream:
        text = open_text(stream, uri, compression, config.encoding)
        if text.head:
            read = {"jsonl": _json_rows, "text": _text_row}.get(kind, _csv_rows)
            yield from _chunks(_until_damaged(read(uri, text, config)))


def columns_of(uri: str, config: SourceConfig) -> list[str]:
    """The names that a file offers as columns: header, keys or schema; empty for an empty file.

    Raises: SourceError as `read_rows`, and where the file breaks off in its header.
    """
    kind, compression = _format_of(uri, config)
    if kind == "parquet":
        with open_parquet(uri, compression, config.paths) as file:
            return file.schema_arrow.names if file else []
    with open_bytes(uri, config.paths) as stream:
        text = open_text(stream, uri, compression, config.encoding)
        if kind == "text":
            return list(_file_values(uri, config))
        if kind == "jsonl":
            return _json_keys(text)
        try:
            return next(_csv_records(uri, text, config), ([], None, ""))[0]
        except DamagedError as error:
            raise SourceError(f"{uri}: breaks off ({error}). Write it again.") from error


def whole_columns(uri: str, config: SourceConfig) -> list[str]:
    """The columns of a table that has texts; empty for an empty file.

    Raises: SourceError without the declared text column, or where a name stands twice or is no
    text.
    """
    found = columns_of(uri, config)
    if found:
        _require(uri, "text", config.text, found)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise SourceError(
            f"{uri}: found column {', '.join(map(repr, twice))} twice, expected every name once. "
            "Rename one of them."
        )
    for name in found:
        if SURROGATES.search(name):
            raise SourceError(
                f"{uri}: found half a character in the name of the column {name!r}, which no table "
                "can have. Rename it."
            )
    return found


def whole_records(uri: str, config: SourceConfig) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Every record of a CSV or JSONL file with all that it holds, and what is wrong with it.

    Values are as the file has them, so text in CSV. A record that cannot be taken apart is empty.
    Raises: SourceError where the file breaks off, for then none of it should be used.
    """
    kind, compression = _format_of(uri, config)
    with open_bytes(uri, config.paths) as stream:
        text = open_text(stream, uri, compression, config.encoding)
        try:
            yield from (_json_records if kind == "jsonl" else _csv_mappings)(uri, text, config)
        except DamagedError as error:
            raise SourceError(f"{uri}: breaks off ({error}). Write it again.") from error


def _json_records(
    uri: str, text: OpenText, config: SourceConfig
) -> Iterator[tuple[dict[str, Any], str | None]]:
    for line in split_lines(text, config.max_row_bytes):
        if not line.strip():
            continue
        if isinstance(line, TooLong):
            yield {}, LINE_TOO_LONG
            continue
        decoded, whole = decode(line, text.encoding)
        record = _parse_json(decoded)
        problem = UNREADABLE_LINE if record is None else None
        yield record or {}, problem if whole else UNDECODABLE


def _csv_mappings(
    uri: str, text: OpenText, config: SourceConfig
) -> Iterator[tuple[dict[str, Any], str | None]]:
    records = _csv_records(uri, text, config)
    header = next(records, ([], None, ""))[0]
    for fields, problem, _ in records:
        if len(fields) != len(header):
            yield {}, problem or WRONG_FIELDS
        else:
            # What could not be decoded was escaped; nothing could encode that again.
            plain = (field.encode("utf-8", "replace").decode() for field in fields)
            yield dict(zip(header, plain, strict=True)), problem


def _format_of(uri: str, config: SourceConfig) -> tuple[str, str]:
    kind, compression = by_extension(uri)
    if config.format != "auto":
        kind = config.format
    if kind is None:
        raise SourceError(
            f"{uri}: unknown kind of file, expected one of {', '.join(EXTENSIONS)}, each also "
            ".gz or .zst. Rename it, or declare source.format."
        )
    return kind, compression


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text or "")
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _until_damaged(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows before a file breaks off, then one reject in place of all that is lost."""
    number = 0
    try:
        for row in rows:
            number = row.number
            yield row
    except DamagedError as error:
        yield rejected(number + 1, UNREADABLE_LINE, error.raw or str(error))


def _declared(config: SourceConfig) -> list[tuple[str, str | None]]:
    roles = ("text", "label", "id", "split", "time")
    named = [(role, getattr(config, role)) for role in roles]
    return [*named, *(("columns", name) for name in config.kept)]


def _row(number: int, values: Sequence[Any], config: SourceConfig, untyped: bool = False) -> Row:
    """A record's values, in the order they are declared in."""
    row = make_row(number, *values[:5], untyped=untyped)
    if config.kept:
        row.columns = as_columns(dict(zip(config.kept, values[5:], strict=True)), untyped)
    return row


def _require(uri: str, role: str, name: str, found: list[str]) -> None:
    if name not in found:
        shown = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
        raise SourceError(
            f"{uri}: no column '{name}' (declared as source.{role}), found: {shown or 'none'}; "
            f"{nearest(name, found)} Correct source.{role} in the pipelines file, or the file."
        )


# --- CSV and TSV ----------------------------------------------------------------------------


def _csv_records(uri: str, text: OpenText, config: SourceConfig) -> Iterator[Record]:
    """The header with stripped names, then every record."""
    first = decode(re.split(rb"[\r\n]", text.head.lstrip(b"\r\n"), maxsplit=1)[0], text.encoding)
    tabs = _format_of(uri, config)[0] == "tsv"
    delimiter = config.delimiter or ("\t" if tabs else sniff_delimiter(first[0]))
    lines = split_lines(text, config.max_row_bytes)
    records = read_records(lines, text.encoding, delimiter, config.max_row_bytes)
    for fields, problem, raw in islice(records, 1):
        if problem:
            raise SourceError(
                f"{uri}: the header is not usable ({problem}: {raw[:80]!r}), expected the names "
                "of the columns. Repair the file's first line."
            )
        yield [name.strip() for name in fields], None, raw
    yield from records


def _csv_rows(uri: str, text: OpenText, config: SourceConfig) -> Iterator[Row]:
    records = _csv_records(uri, text, config)
    header = next(records, ([], None, ""))[0]
    if not header:
        return
    for role, name in _declared(config):
        if name:
            _require(uri, role, name, header)
    places = [header.index(name) if name else None for _, name in _declared(config)]
    for number, (fields, problem, raw) in enumerate(records, 1):
        if not problem and len(fields) != len(header):
            problem = WRONG_FIELDS
        if problem:
            yield rejected(number, problem, raw)
            continue
        values = [None if place is None else fields[place] for place in places]
        yield _row(number, values, config, untyped=True)


# --- JSON lines -----------------------------------------------------------------------------


def _json_keys(text: OpenText) -> list[str]:
    """The keys of the objects in the file's head, in the order they appear."""
    keys: dict[str, None] = {}
    for line in text.head.splitlines()[:1_000]:
        decoded, whole = decode(line, text.encoding)
        # A line that cannot be decoded is going to be rejected.
        keys.update(dict.fromkeys(_parse_json(decoded) or () if whole else ()))
    return list(keys)


def _parse_json(line: str) -> dict[str, Any] | None:
    """The line's object; None if it is anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json_rows(uri: str, text: OpenText, config: SourceConfig) -> Iterator[Row]:
    _require_keys(uri, _json_keys(text), config)
    names = [name for _, name in _declared(config)]
    lines = (line for line in split_lines(text, config.max_row_bytes) if line.strip())
    for number, line in enumerate(lines, 1):
        yield _json_row(number, line, text.encoding, names, config)


def _require_keys(uri: str, keys: list[str], config: SourceConfig) -> None:
    """A text key that no object has is an error; another only if it is there, spelt otherwise.

    JSON leaves out what is not there: a file of unlabelled documents need not say so.
    """
    spelt = {key.lower().rstrip("s") for key in keys}
    for role, name in _declared(config):
        if keys and name and (role == "text" or name.lower().rstrip("s") in spelt):
            _require(uri, role, name, keys)


def _json_row(
    number: int, line: bytes, encoding: str, names: list[str | None], config: SourceConfig
) -> Row:
    if isinstance(line, TooLong):
        return rejected(number, LINE_TOO_LONG, line)
    decoded, whole = decode(line, encoding)
    if not whole:
        return rejected(number, UNDECODABLE, line)
    record = _parse_json(decoded)
    if record is None:
        return rejected(number, UNREADABLE_LINE, decoded)
    return _row(number, [record.get(name) if name else None for name in names], config)


# --- Parquet --------------------------------------------------------------------------------


def _parquet_rows(uri: str, file: pq.ParquetFile, config: SourceConfig) -> Iterator[Row]:
    declared = _declared(config)
    for role, name in declared:
        if name:
            _require(uri, role, name, file.schema_arrow.names)
    records = read_values(uri, file, [name for _, name in declared], CHUNK_ROWS)
    for number, values in enumerate(records, 1):
        row = _row(number, values, config)
        if row.text and len(row.text) > config.max_row_bytes:
            row = rejected(number, LINE_TOO_LONG, row.text)
        yield row


# --- text files -----------------------------------------------------------------------------


def _file_values(uri: str, config: SourceConfig) -> dict[str, str]:
    """What a text file tells beside its text: its path below the source, its folder's name."""
    path = name_within(uri, config.paths)
    return {"path": path, "folder": PurePosixPath(uri).parent.name}


def _text_row(uri: str, text: OpenText, config: SourceConfig) -> Iterator[Row]:
    """One document per file; with `id: path`, an edited file is refused as `id_reused`."""
    about = _file_values(uri, config)
    for role, name in _declared(config)[1:]:
        if name:
            _require(uri, role, name, list(about))
    parts: list[bytes] = []
    for block in text.blocks:
        parts.append(block)
        if sum(map(len, parts)) > config.max_row_bytes:
            yield rejected(1, LINE_TOO_LONG, parts[0])
            return
    document, whole = decode(b"".join(parts), text.encoding)
    if not whole:
        yield rejected(1, UNDECODABLE, parts[0])
        return
    values = [about.get(name or "") for _, name in _declared(config)[1:]]
    # A path or a folder's name is no moment.
    values[3] = None
    yield _row(1, [document, *values], config)
