"""Files by path, folder, glob or fsspec URL: which there are, their names, their digests."""

from __future__ import annotations

import hashlib
import os.path
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from .lines import BOMB_BYTES, BOMB_RATIO, bomb, open_bytes, opening_error, stored_blocks
from .showing import masked, one_line

EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
TEMPORARY = (".part", ".tmp", ".crdownload", ".swp", "~")
WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class FoundFile:
    """A source file: where it is, its size as stored, when it last changed (epoch seconds)."""

    uri: str
    """To be shown and stored: a password or token in it is masked."""
    bytes: int
    modified: float | None
    problem: str | None = None
    """Why it is not going to be read."""


def file_digest(uri: str, places: Sequence[str] = ()) -> str:
    """What tells this file's content from any other's: blake2b as stored, 32 hex digits.

    Args: the declared places, where the URI was listed from one.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_bytes(uri, places) as stream:
        for block in stored_blocks(stream, uri):
            digest.update(block)
    return digest.hexdigest()


def files_at(path: str, kind: str) -> Iterator[FoundFile]:
    """The visible files behind one path; of a folder, those of the kind (`auto`: any known).

    Raises: SourceError for a protocol that is not known, PassingError if a store is away.
    """
    try:
        fs, root = _store(path)
        details, base = _matches(fs, root)
    except (OSError, ValueError, ImportError) as error:
        raise opening_error(path, error) from error
    # What stands inside an archive (zip://*.csv::s3://...) is only found again through it.
    inside = path[path.index("::") :] if "://" in path.partition("::")[0] and "::" in path else ""
    for name, info in details.items():
        problem = _problem(name, info)
        if (info["type"] != "file" and not problem) or _is_hidden(name, base):
            continue
        if base == root and not _belongs(name, kind):
            continue
        uri = name if "file" in _protocols(fs) else fs.unstrip_protocol(name) + inside
        if one_line(uri) != uri:
            # Neither a table nor a terminal takes such a name as it is.
            uri = one_line(uri)
            problem = (
                f"{uri}: has characters in its name that are no text (shown as \\u...): controls, "
                "line ends, or bytes that are not UTF-8. Rename it."
            )
        yield FoundFile(masked(uri), int(info.get("size") or 0), _modified(info), problem)


def _store(path: str) -> tuple[Any, str]:
    """The file system that a path or URL is of, and the path in it."""
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if "://" in path:
        return url_to_fs(path)
    local = LocalFileSystem()
    return local, local._strip_protocol(path)


def _problem(name: str, info: dict[str, Any]) -> str | None:
    """Why a file that was found, not named, is left alone."""
    if info.get("islink") and info["type"] == "other" and not os.path.isdir(name):
        # Whoever may write into an inbox could else have any file of this machine read, and shown.
        return (
            f"{name}: is a symbolic link, and those are not followed. Name the file that it leads "
            "to in source.paths, or copy it here."
        )
    packed, size = info.get("compress_size"), info.get("file_size")
    if packed is not None and size and size > max(BOMB_BYTES, BOMB_RATIO * packed):
        return bomb(name, size, packed)
    return None


def _matches(fs: Any, root: str) -> tuple[dict[str, Any], str]:
    """The entries behind a file, folder or glob, and the folder that the search began at."""
    if fs.isfile(root):  # first: a name may hold brackets
        return {root: fs.info(root)}, str(PurePosixPath(root).parent)
    if fs.isdir(root):
        return fs.find(root, detail=True), root
    if WILDCARD.search(root):
        return fs.glob(root, detail=True), _before_wildcard(root)
    return {}, root


def _before_wildcard(path: str) -> str:
    match = WILDCARD.search(path)
    return path[: match.start()].rpartition("/")[0] if match else path


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _is_hidden(name: str, base: str) -> bool:
    parts = name.removeprefix(base).strip("/").split("/")
    return any(part.startswith((".", "_")) for part in parts) or name.lower().endswith(TEMPORARY)


def _belongs(name: str, kind: str) -> bool:
    """Whether a file in a folder is meant: of the declared kind, or of any known one."""
    known = by_extension(name)[0]
    return known is not None and kind in ("auto", known)


def by_extension(uri: str) -> tuple[str | None, str]:
    """A file's format (None: unknown) and compression, by its name."""
    first = uri.partition("::")[0].lower()
    name = PurePosixPath(first.partition("?")[0] if "://" in first else first)
    compression = COMPRESSIONS.get(name.suffix, "")
    if compression:
        name = name.with_suffix("")
    return EXTENSIONS.get(name.suffix), compression


def _modified(info: dict[str, Any]) -> float | None:
    keys = ("mtime", "LastModified", "last_modified", "updated", "created")
    value = next((info[key] for key in keys if info.get(key) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) else None


def name_within(uri: str, paths: list[str]) -> str:
    """A file's path below the folder that all of `paths` share, `/` between its parts."""
    name = _store(uri)[1]
    roots = [_before_wildcard(_store(path)[1]) for path in paths]
    # One folder for all paths: two of them may hold a file of the same name.
    roots = [str(PurePosixPath(name).parent) if root == name else root for root in roots]
    try:
        base = os.path.commonpath(roots).rstrip("/") + "/"
    except ValueError:  # different stores
        return name
    return name.removeprefix(base).lstrip("/")
