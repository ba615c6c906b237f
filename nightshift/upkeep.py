"""The upkeep of a lake's files: small ones are joined, those that nobody can need any more go.

Readers pin a version, the one that the newest published night names. Its files stay as long as the
versions that are kept name them, and for a grace period after that, so that a reader who began
before is never left without. Writers hold the pipeline's lock, and so does whoever calls these.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .errors import AccountError
from .tables import Digest, Lake, files_by_night

LOG = "_delta_log"
KINDS = ("add", "remove")
"""Entries of a log that name a file; a removed one is its vacuum's, after the grace period."""


def compact(lake: Lake, table: str) -> int:
    """Join the files of every night that has several, rows in the order in which they are read.

    A night writes one file a table, so that its rows keep their order; only other tools leave more.
    Returns: files that were joined. Raises: AccountError when the digest would change.
    """
    opened = lake.handle(table)
    if opened is None:
        return 0
    several = {night: len(its) for night, its in files_by_night(opened).items() if len(its) > 1}
    for night in sorted(several):
        before = _digest(lake, table, night)
        with lake.writer(table, night) as writer:
            for batch in _of_night(lake, table, night, opened.version()):
                writer.write(batch)
            if writer.digest != before:
                raise AccountError(
                    f"table '{table}', night {night}: joining its files would change its rows from "
                    f"{before[:8]} to {writer.digest[:8]}. They are left as they were; please "
                    "report this."
                )
    return sum(several.values())


def split_nights(lake: Lake, table: str) -> int:
    """Nights whose rows of a table lie in several files."""
    opened = lake.handle(table)
    return 0 if opened is None else sum(len(one) > 1 for one in files_by_night(opened).values())


def vacuum(
    lake: Lake, table: str, versions: set[int], grace_hours: int, dry_run: bool = False
) -> tuple[int, int]:
    """Delete files that neither the newest version nor any of `versions` names.

    Files stay that were made or replaced within the grace period. Versions whose log is gone are
    passed over. Returns: files deleted, or that would be, and their bytes.
    """
    opened = lake.handle(table)
    if opened is None:
        return 0, 0
    first = first_version(lake, table)
    kept = sorted(one for one in {*versions, opened.version()} if one >= first)
    rules: dict[str, Any] = {
        "enforce_retention_duration": False, "full": True, "keep_versions": kept,
    }  # fmt: skip
    sizes = {one.path: one.size for one in _listed(lake, table, "")}
    # A file that went with an earlier vacuum stands in the log for a while.
    with lake.guarded(f"cleaning table '{table}'"):
        gone = [one for one in opened.vacuum(grace_hours, dry_run=True, **rules) if one in sizes]
        if gone and not dry_run:
            holder = lake.commit_properties(opened)
            opened.vacuum(grace_hours, dry_run=False, commit_properties=holder, **rules)
    return len(gone), sum(sizes[one] for one in gone)


def trim_log(lake: Lake, table: str, oldest: int) -> int:
    """Forget how the table came to its oldest version that is kept; returns log files deleted.

    A checkpoint of that version is written first: versions from it on open as they did.
    """
    opened = lake.handle(table)
    if opened is None or oldest <= first_version(lake, table):
        return 0
    store = lake.store(table)
    with lake.guarded(f"trimming the log of table '{table}'"):
        checkpoints = {_number(one.base_name) for one in _listed(lake, table, LOG)
                       if ".checkpoint" in one.base_name}  # fmt: skip
        if oldest not in checkpoints:
            lake.handle(table, oldest).create_checkpoint()
        older = [
            one for one in _listed(lake, table, LOG)
            if (number := _number(one.base_name)) is not None and number < oldest
        ]  # fmt: skip
        # The oldest first: killed half-way, the log begins later and has no hole.
        for one in sorted(older, key=lambda one: one.base_name):
            store.delete_file(one.path)
    lake.forget(table)
    return len(older)


def first_version(lake: Lake, table: str) -> int:
    """The oldest version of a table that its log can still open."""
    names = [one.base_name for one in _listed(lake, table, LOG)]
    checkpoints = [n for one in names if ".checkpoint" in one and (n := _number(one)) is not None]
    commits = {n for one in names if one.endswith(".json") and (n := _number(one)) is not None}
    return 0 if 0 in commits else min(checkpoints, default=0)


def orphans(lake: Lake, table: str, grace_hours: int) -> list[tuple[str, int]]:
    """Files that no entry of the table's log ever named, as a killed night leaves them.

    Returns: path inside the table and bytes of those older than the grace period.
    """
    opened = lake.handle(table)
    if opened is None:
        return []
    # What the newest version names is asked of delta-rs as well: these files are to be deleted.
    newest = pa.table(opened.get_add_actions(flatten=True))["path"].to_pylist()
    named, before = {*newest} | _ever_named(lake, table), time.time() - 3600 * grace_hours
    return [
        (one.path, one.size)
        for one in _listed(lake, table, "")
        if one.path.endswith(".parquet")
        and one.path not in named
        and one.mtime is not None
        and one.mtime.timestamp() < before
    ]


def delete(lake: Lake, table: str, paths: list[str]) -> None:
    """Delete files of a table; one that is gone already is no error."""
    store = lake.store(table)
    with lake.guarded(f"cleaning table '{table}'"):
        for path in paths:
            if store.get_file_info(path).is_file:
                store.delete_file(path)


def _ever_named(lake: Lake, table: str) -> set[str]:
    """Paths of all files that any entry of the log adds or removes."""
    import pyarrow.parquet as pq

    store, named = lake.store(table), set[str]()
    with lake.guarded(f"reading the log of table '{table}'"):
        for one in [*_listed(lake, table, LOG), *_listed(lake, table, f"{LOG}/_sidecars")]:
            if one.base_name.endswith(".json"):
                with store.open_input_stream(one.path) as stream:
                    entries = [json.loads(line) for line in stream.read().splitlines() if line]
                named |= {
                    entry[kind]["path"] for entry in entries for kind in KINDS if kind in entry
                }
            elif one.base_name.endswith(".parquet"):
                # Not `add.path` alone: Arrow may return it as a column of another name.
                read = pq.read_table(one.path, columns=[*KINDS], filesystem=store)
                rows = (row for column in read.columns for row in column.to_pylist())
                named |= {row["path"] for row in rows if row and row["path"]}
    return named


def _listed(lake: Lake, table: str, folder: str) -> list[Any]:
    """The files below a folder of the table, its log apart unless that is the folder."""
    from pyarrow import fs

    with lake.guarded(f"listing table '{table}'"):
        chosen = fs.FileSelector(folder, recursive=not folder, allow_not_found=True)
        found = lake.store(table).get_file_info(chosen)
    return [one for one in found if one.is_file and (folder or not one.path.startswith(LOG))]


def _number(name: str) -> int | None:
    head = name.split(".")[0]
    return int(head) if head.isdigit() else None


def _of_night(lake: Lake, table: str, night: str, version: int) -> Iterator[pa.RecordBatch]:
    return lake.scan(table, None, pc.field("night") == night, version)


def _digest(lake: Lake, table: str, night: str) -> str:
    digest = Digest()
    for batch in _of_night(lake, table, night, lake.handle(table).version()):
        digest.feed(batch.drop_columns(["night"]))
    return digest.hexdigest()
