"""Parquet columns as Python values, a bounded batch at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .errors import SourceError
from .lines import DamagedError, decompressed, open_bytes, opening_error, stored_blocks
from .rows import Undecodable

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BATCH_BYTES = 16 << 20


@contextmanager
def open_parquet(uri: str, compression: str) -> Iterator[pq.ParquetFile | None]:
    """The file, its columns still unread; None if it has not a single byte.

    Raises: SourceError if it is not a readable Parquet file.
    """
    import pyarrow.parquet as pq

    with open_bytes(uri) as stored, tempfile.TemporaryFile() as spool:
        stream = stored
        try:
            if compression:
                # Parquet is read from its end: on disk, not in memory, it can be.
                spool.writelines(decompressed(stored_blocks(stored, uri), compression))
                stream = spool
            file = pq.ParquetFile(stream, buffer_size=1 << 20) if stream.seek(0, 2) else None
        except (ConnectionError, TimeoutError) as error:
            raise opening_error(uri, error) from error
        except (pa.ArrowException, OSError, DamagedError) as error:
            raise SourceError(
                f"{uri}: not a readable Parquet file ({error}). Write it again, or correct its "
                "extension or source.format."
            ) from error
        yield file


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
    try:
        yield from file.iter_batches(batch_size=rows, columns=list(dict.fromkeys(names)))
    except (ConnectionError, TimeoutError) as error:
        raise opening_error(uri, error) from error
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(str(error)) from error


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
