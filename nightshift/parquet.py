"""Parquet columns as Python values, a bounded batch at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .errors import SourceError
from .lines import (
    BOMB_BYTES,
    BOMB_RATIO,
    DamagedError,
    bomb,
    decompressed,
    open_bytes,
    opening_error,
    stored_blocks,
)
from .rows import Undecodable

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BATCH_BYTES = 16 << 20
REPEATED_BYTES = 256 << 20
"""So much a batch may hold at most where a value that is stored once is repeated in its rows."""
BOMB_ROWS = 10_000_000
"""A file that declares more rows than this, and more than a hundred for each of its bytes, has
nothing in them."""


@contextmanager
def open_parquet(
    uri: str, compression: str, places: Sequence[str] = ()
) -> Iterator[pq.ParquetFile | None]:
    """The file, its columns still unread; None if it has not a single byte.

    Raises: SourceError if it is not a readable Parquet file.
    """
    import pyarrow.parquet as pq

    with open_bytes(uri, places) as stored, tempfile.TemporaryFile() as spool:
        stream = stored
        try:
            if compression:
                # Parquet is read from its end: on disk, not in memory, it can be.
                spool.writelines(decompressed(stored_blocks(stored, uri), compression, uri))
                stream = spool
            stored_bytes = stream.seek(0, 2)
            file = pq.ParquetFile(stream, buffer_size=1 << 20) if stored_bytes else None
            if file:
                _refuse_a_bomb(uri, file, stored_bytes)
        except (ConnectionError, TimeoutError) as error:
            raise opening_error(uri, error) from error
        except (pa.ArrowException, OSError, DamagedError) as error:
            raise SourceError(
                f"{uri}: not a readable Parquet file ({error}). Write it again, or correct its "
                "extension or source.format."
            ) from error
        yield file


def _refuse_a_bomb(uri: str, file: pq.ParquetFile, stored_bytes: int) -> None:
    """Raises: SourceError for a file that declares far more than it can hold."""
    about = file.metadata
    declared = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
    if declared > max(BOMB_BYTES, BOMB_RATIO * stored_bytes):
        raise SourceError(bomb(uri, declared, stored_bytes))
    if about.num_rows > max(BOMB_ROWS, 100 * stored_bytes):
        raise SourceError(
            f"{uri}: found {about.num_rows} rows declared in {stored_bytes} bytes, expected at "
            f"most {BOMB_ROWS}, or 100 for each byte. Write it again."
        )


def read_values(
    uri: str, file: pq.ParquetFile, names: list[str | None], max_rows: int
) -> Iterator[tuple[Any, ...]]:
    """One tuple per row, a value per name (None for a name that is None).

    Raises: lines.DamagedError after the last readable batch of a corrupt file.
    """
    for batch in read_batches(uri, file, [name for name in names if name], max_rows):
        found = batch.schema.names
        columns = [
            values_of(batch.column(found.index(name))) if name else repeat(None, batch.num_rows)
            for name in names
        ]
        yield from zip(*columns, strict=True)


def read_batches(
    uri: str, file: pq.ParquetFile, names: list[str], max_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of the named columns, few enough rows at a time that long documents fit.

    Raises: lines.DamagedError after the last readable batch of a corrupt file.
    """
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    rows = min(max_rows, 1 + int(BATCH_BYTES / max(row_bytes, 1)))
    largest = max((_repeatable(group, names) for group in groups), default=0)
    rows = min(rows, 1 + int(REPEATED_BYTES / max(largest, 1)))
    try:
        yield from file.iter_batches(batch_size=rows, columns=list(dict.fromkeys(names)))
    except (ConnectionError, TimeoutError) as error:
        raise opening_error(uri, error) from error
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(str(error)) from error


def _repeatable(group: pq.RowGroupMetaData, names: list[str]) -> int:
    """Bytes that a single value may have and every row repeat at no cost: a dictionary's, or a
    prefix's."""
    most = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.partition(".")[0] not in names:
            continue
        whole = max(column.total_uncompressed_size, 0)
        if "DELTA_BYTE_ARRAY" in column.encodings:
            most = max(most, whole)
        elif column.has_dictionary_page:
            stored = column.data_page_offset - (column.dictionary_page_offset or 0)
            unpacked = stored * whole / max(column.total_compressed_size, 1)
            most = max(most, min(whole, int(unpacked)))
    return most


def values_of(column: pa.Array) -> list[Any]:
    """Python values; bytes are decoded, and what is not text becomes Undecodable."""
    if pa.types.is_timestamp(column.type):
        # Nanoseconds would come as pandas objects, other zones as zone names to look up.
        column = column.cast(pa.timestamp("us", "UTC"), safe=False)
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(scalar) for scalar in column]
    return [_decoded(value) if isinstance(value, bytes) else value for value in values]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return Undecodable()


def _decoded(value: bytes) -> str | Undecodable:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Undecodable()
