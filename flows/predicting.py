"""`nightshift predict FILE --out`: a whole file again, with a prediction beside every row.

A chunk at a time, so that memory does not grow with the file; under another name until it is whole.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from flows.reading import cell, new_csv, texts_alone, texts_of_lines
from nightshift.errors import ConfigError, SourceError
from nightshift.files import by_extension
from nightshift.lines import DamagedError, open_bytes
from nightshift.parquet import open_parquet, read_batches, values_of
from nightshift.rows import make_row
from nightshift.sources import whole_columns, whole_records

if TYPE_CHECKING:
    from nightshift.bundle import Bundle
    from nightshift.sources import SourceConfig

ADDED = pa.schema([
    ("label", pa.string()), ("probability", pa.float64()), ("abstained", pa.bool_()),
    ("top", pa.string()), ("cluster_id", pa.string()), ("cluster_name", pa.string()),
    ("distance", pa.float64()), ("error", pa.string()), ("model_version", pa.int64()),
])  # fmt: skip
"""The columns beside the file's own; `top` is JSON."""
ANSWERED: dict[str, Any] = dict.fromkeys(ADDED.names[:-1])
"""What every answer has, whatever the model and the text."""
ENDINGS = (".parquet", ".csv", ".jsonl")
STORE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How an address begins; a path has lost one of its two slashes."""
CHUNK = 1_000
GROUP_BYTES = 16 << 20
"""About so much of a Parquet file is written at once: chunks would be very small row groups."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file: of Parquet as they are stored, of others as mappings."""

    rows: pa.RecordBatch | list[dict[str, Any]]
    texts: list[str]
    problems: list[str | None]
    """Why a row has no text to ask about, where it has none."""

    def as_mappings(self) -> list[dict[str, Any]]:
        """The rows as mappings; a date that Python does not know is the number it is stored as."""
        if isinstance(self.rows, list):
            return self.rows
        try:
            return self.rows.to_pylist()
        except (ValueError, OverflowError):
            columns = [[_known(one) for one in column] for column in self.rows.columns]
            names = self.rows.schema.names
            return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Opened:
    """A file that is going to be read."""

    columns: pa.Schema
    """Its own; of CSV and JSONL as text."""
    rows: int | None
    """How many, where the file says so."""
    chunks: Iterator[Chunk]


def _known(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return getattr(scalar, "value", None)


Write = Callable[[Chunk, list[dict[str, Any]]], None]


def score_file(
    bundle: Bundle, version: int, file: str, source: SourceConfig, out: Path, top: int
) -> tuple[int, dict[str, str]]:
    """Write the rows of a file again, in order, each with its prediction.

    Args: a path, or - for lines of standard input.
    Returns: the rows, and the added columns that got another name since the file has theirs.
    Raises: ConfigError for a place that cannot be written, SourceError; `out` is then untouched.
    """
    from nightshift.inference import spare_memory
    from tasks.progress import track

    check_places(file, out)
    spare_memory()
    with _opened(file, source) as opened:
        names = _free_names(opened.columns.names)
        schema = pa.schema([
            *opened.columns, *(one.with_name(names[one.name]) for one in ADDED)
        ])  # fmt: skip

        def written(write: Write) -> Iterator[str]:
            for chunk in opened.chunks:
                write(chunk, _answers(bundle, version, chunk, top, names))
                yield from chunk.texts

        with _finished_file(out) as part, WRITERS[out.suffix](part, schema) as write:
            rows = sum(1 for _ in track(written(write), opened.rows, "predict, rows"))
    return rows, {old: new for old, new in names.items() if old != new}


def check_places(file: str, out: Path) -> None:
    """Raises: ConfigError where the file is not there, or `out` is not a place for the answers."""
    if STORE.match(str(out)):
        raise ConfigError(
            f"predict: found --out {out}, expected a path on this machine, not an address. Write "
            "it here, and copy it there when it is whole."
        )
    if out.suffix not in ENDINGS:
        raise ConfigError(f"predict: found --out {out.name}, expected a name in "
                          f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")  # fmt: skip
    if out.is_dir():
        raise ConfigError(f"predict: --out {out} is a folder. Give the name of a file.")
    path = file.removeprefix("file://")
    if file != "-" and "://" not in path:
        if not Path(path).is_file():
            raise ConfigError(f"predict: no file {file}. Give another, or - for standard input.")
        if out.exists() and out.samefile(path):
            raise ConfigError(f"predict: --out is {file} itself. Give another name.")


def _free_names(columns: list[str]) -> dict[str, str]:
    """Added column -> the name that no column of the file has."""
    names = {}
    for name in ADDED.names:
        free = name
        while free in columns:
            free = f"predicted_{free}"
        names[name] = free
    return names


def _answers(
    bundle: Bundle, version: int, chunk: Chunk, top: int, names: dict[str, str]
) -> list[dict[str, Any]]:
    """What is added to each row, by its final name."""
    said = bundle.answer(chunk.texts, top)
    return [
        {
            names[key]: value
            for key, value in (
                ANSWERED | ({"error": problem} if problem else answer) | {"model_version": version}
            ).items()
        }
        for answer, problem in zip(said, chunk.problems, strict=True)
    ]


# --- reading --------------------------------------------------------------------------------


@contextmanager
def _opened(file: str, source: SourceConfig) -> Iterator[Opened]:
    kind, compression = by_extension(file)
    if file == "-" or kind in (None, "text"):
        with nullcontext(sys.stdin.buffer) if file == "-" else open_bytes(file) as stream:
            lines = (({"text": line}, None) for line in texts_of_lines(stream))
            yield Opened(pa.schema([("text", pa.string())]), None, _of_records(lines, "text"))
        return
    alone = texts_alone(file, source)
    columns = whole_columns(file, alone)
    if kind == "parquet":
        with open_parquet(file, compression) as stored:
            schema = stored.schema_arrow.remove_metadata() if stored else pa.schema([])
            rows = stored.metadata.num_rows if stored else 0
            chunks = _of_parquet(file, stored, columns, alone.text) if stored else iter(())
            yield Opened(schema, rows, chunks)
        return
    schema = pa.schema([(name, pa.string()) for name in columns])
    yield Opened(schema, None, _of_records(whole_records(file, alone), alone.text))


def _of_parquet(file: str, stored: Any, columns: list[str], text: str) -> Iterator[Chunk]:
    try:
        for batch in read_batches(file, stored, columns, CHUNK):
            yield _chunk(batch, values_of(batch.column(columns.index(text))), [])
    except DamagedError as error:
        raise SourceError(f"{file}: breaks off ({error}). Write it again.") from error


def _of_records(records: Iterator[tuple[dict[str, Any], str | None]], text: str) -> Iterator[Chunk]:
    while some := list(islice(records, CHUNK)):
        rows = [record for record, _ in some]
        yield _chunk(rows, [row.get(text) for row in rows], [problem for _, problem in some])


def _chunk(rows: Any, values: list[Any], problems: list[str | None]) -> Chunk:
    """Judge the texts as a night does."""
    judged = [make_row(0, value, None, None, None, None) for value in values]
    found = [row.problem for row in judged]
    worst = [one or two for one, two in zip(problems, found, strict=True)] if problems else found
    return Chunk(rows, [row.text or "" for row in judged], worst)


# --- writing --------------------------------------------------------------------------------


@contextmanager
def _finished_file(out: Path) -> Iterator[Path]:
    """A file beside `out` that takes its place when all went well, and else is gone."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(out)
    except OSError as error:
        raise ConfigError(
            f"predict: --out {out} cannot be written ({error.strerror or error}). Give another "
            "place, or make room."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def _as_parquet(part: Path, schema: pa.Schema) -> Iterator[Write]:
    import pyarrow.parquet as pq

    held: list[pa.RecordBatch] = []
    own = pa.schema(list(schema)[: -len(ADDED)])
    added = pa.schema(list(schema)[-len(ADDED) :])

    def write(chunk: Chunk, answers: list[dict[str, Any]]) -> None:
        rows = chunk.rows
        if isinstance(rows, list):
            rows = pa.RecordBatch.from_pylist([_as_text(row, own.names) for row in rows], own)
        beside = pa.RecordBatch.from_pylist([_top_as_text(one, added) for one in answers], added)
        held.append(pa.RecordBatch.from_arrays([*rows.columns, *beside.columns], schema=schema))
        if sum(one.nbytes for one in held) >= GROUP_BYTES:
            flush()

    def flush() -> None:
        if held:
            writer.write_table(pa.Table.from_batches(held))
            held.clear()

    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        yield write
        flush()


@contextmanager
def _as_csv(part: Path, schema: pa.Schema) -> Iterator[Write]:
    own = schema.names[: -len(ADDED)]
    added = pa.schema(list(schema)[-len(ADDED) :])

    def write(chunk: Chunk, answers: list[dict[str, Any]]) -> None:
        for row, answer in zip(chunk.as_mappings(), answers, strict=True):
            whole = _as_text(row, own, typed=True) | _top_as_text(answer, added)
            writer.writerow([cell(whole.get(name)) for name in schema.names])

    with new_csv(part) as stream:
        writer = csv.writer(stream)
        writer.writerow([cell(name) for name in schema.names])
        yield write


@contextmanager
def _as_lines(part: Path, schema: pa.Schema) -> Iterator[Write]:
    def write(chunk: Chunk, answers: list[dict[str, Any]]) -> None:
        for row, answer in zip(chunk.as_mappings(), answers, strict=True):
            line = json.dumps({**row, **answer}, ensure_ascii=False, default=str)
            stream.write(line.encode("utf-8", "replace") + b"\n")

    with part.open("wb") as stream:
        yield write


WRITERS: dict[str, Callable[[Path, pa.Schema], AbstractContextManager[Write]]] = {
    ".parquet": _as_parquet, ".csv": _as_csv, ".jsonl": _as_lines,
}  # fmt: skip


def _as_text(row: dict[str, Any], columns: list[str], typed: bool = False) -> dict[str, Any]:
    """A row whose nested values, and with `typed` off its numbers too, are text.

    Raises: SourceError for a key that is not among the columns.
    """
    late = row.keys() - set(columns)
    if late:
        raise SourceError(
            f"predict: found the key '{min(late)}', which the first objects of the file do not "
            "have, and a table has its columns from the start. Give --out a name in .jsonl."
        )
    return {
        key: value if typed and isinstance(value, int | float) else _said(value)
        for key, value in row.items()
    }


def _said(value: Any) -> str | None:
    if value is None:
        return None
    plain = isinstance(value, int | float | list | dict)
    said = json.dumps(value, default=str, ensure_ascii=False) if plain else str(value)
    # Half a character, which JSON allows, cannot be encoded.
    return said.encode("utf-8", "replace").decode()


def _top_as_text(answer: dict[str, Any], added: pa.Schema) -> dict[str, Any]:
    name = added.names[ADDED.names.index("top")]
    top = answer[name]
    return {**answer, name: json.dumps(top, ensure_ascii=False) if top is not None else None}
