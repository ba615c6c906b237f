"""The lake: one Delta table per name, written a night at a time, read as published.

A write replaces the rows of its night in one atomic commit, so a stage may be repeated. Readers
outside the night see only the versions that a row of `nights` names: that row is publication.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from .chunks import each
from .errors import BusyError, ConfigError, NightError, PassingError
from .stores import S3, arrow_files, safe, told

NIGHT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SCHEMA_VERSION, SCHEMA_PROPERTY = 6, "nightshift.schema"
"""The version of SCHEMAS, and the property of every table that names it. A column that is added
raises it, and gets a step in `migrations`."""

_TEXT = pa.string()
_WHEN = pa.timestamp("us", tz="UTC")
_NIGHT = ("night", _TEXT)
_COUNTS = [(name, pa.int64()) for name in ("rows", "kept", "duplicates", "rejects")]

SCHEMAS: dict[str, pa.Schema] = {
    # one row per ingested file, or file that could not be opened (then with a problem)
    "batches": pa.schema([
        ("uri", _TEXT), ("digest", _TEXT), ("bytes", pa.int64()), ("modified", pa.float64()),
        *_COUNTS, ("problem", _TEXT), _NIGHT,
    ]),
    # one row per document; columns is a JSON object of the declared columns' values, or null
    "documents": pa.schema([
        ("doc_id", _TEXT), ("text", _TEXT), ("label", _TEXT), ("lang", _TEXT),
        ("event_time", _WHEN), ("source_file", _TEXT), ("row", pa.int64()),
        ("content_digest", _TEXT), ("split", _TEXT), ("columns", _TEXT), _NIGHT,
    ]),
    # one row per input row whose text was known already
    "duplicates": pa.schema([
        ("doc_id", _TEXT), ("source_id", _TEXT), ("source_file", _TEXT), ("row", pa.int64()),
        _NIGHT,
    ]),
    # one row per refused input row
    "rejects": pa.schema([
        ("source_file", _TEXT), ("row", pa.int64()), ("reason", _TEXT), ("raw", _TEXT), _NIGHT,
    ]),
    # one row per label given after its document; the newest wins, over the document's own
    "labels": pa.schema([
        ("doc_id", _TEXT), ("label", _TEXT), ("by", _TEXT), ("at", _WHEN), _NIGHT,
    ]),
    # one row per tokenizer ever learned; serialized is its JSON file
    "tokenizers": pa.schema([
        ("digest", _TEXT), ("unit", _TEXT), ("config_digest", _TEXT), ("serialized", _TEXT), _NIGHT,
    ]),
    # one row per document and tokenizer
    "tokens": pa.schema([
        ("doc_id", _TEXT), ("ids", pa.list_(pa.int32())), ("n_tokens", pa.int32()),
        ("n_unknown", pa.int32()), ("tokenizer", _TEXT), _NIGHT,
    ]),
    # one row per document and model_id
    "predictions": pa.schema([
        ("doc_id", _TEXT), ("label", _TEXT), ("probability", pa.float32()),
        ("margin", pa.float32()), ("abstained", pa.bool_()), ("model_id", _TEXT), _NIGHT,
    ]),
    # one row per document and model_id; unit length
    "embeddings": pa.schema([
        ("doc_id", _TEXT), ("vector", pa.list_(pa.float32())), ("model_id", _TEXT), _NIGHT,
    ]),
    # one row per cluster and night it lives in, and one, of size 0, for the night it ends in;
    # named_by is null while keywords name it, born the night of its birth, parents whom it split
    # from or took in tonight, heirs where its documents went when it ended
    "clusters": pa.schema([
        ("cluster_id", _TEXT), ("name", _TEXT), ("named_by", _TEXT), ("event", _TEXT),
        ("born", _TEXT), ("parents", pa.list_(_TEXT)), ("heirs", pa.list_(_TEXT)),
        ("size", pa.int64()), ("cohesion", pa.float32()), ("keywords", pa.list_(_TEXT)),
        ("exemplars", pa.list_(_TEXT)), ("centroid", pa.list_(pa.float32())),
        ("scale", pa.float32()), ("radius", pa.float32()), ("model_id", _TEXT), _NIGHT,
    ]),
    # one row per document and change of cluster; far from every centroid: UNASSIGNED
    "assignments": pa.schema([
        ("doc_id", _TEXT), ("cluster_id", _TEXT), ("distance", pa.float32()), _NIGHT,
    ]),
    # one row per decision: promoted, kept, waiting for a person, rolled_back. What is compared is
    # null where it was not; per_class and slices are JSON: scores of both, and rows
    "promotions": pa.schema([
        ("champion", _TEXT), ("challenger", _TEXT), ("policy", _TEXT), ("rows", pa.int64()),
        ("rows_digest", _TEXT), ("metric", _TEXT), ("champion_score", pa.float64()),
        ("challenger_score", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("wins", pa.int64()), ("losses", pa.int64()), ("p_value", pa.float64()),
        ("per_class", _TEXT), ("slices", _TEXT), ("champion_ms", pa.float64()),
        ("challenger_ms", pa.float64()), ("decision", _TEXT), ("reason", _TEXT), ("by", _TEXT),
        ("at", _WHEN), _NIGHT,
    ]),
    # one row per night and finished stage; outputs and figures are JSON
    "stages": pa.schema([
        ("stage", _TEXT), ("digest", _TEXT), ("outputs", _TEXT), ("figures", _TEXT),
        ("seconds", pa.float64()), ("at", _WHEN), _NIGHT,
    ]),
    # one row per document that was forgotten, in the partition of the newest night there was:
    # doc_id's own digest, its text's, the document's night, the number of the newest night that
    # was published then (0: none). Written between nights, by `nightshift forget` alone
    "tombstones": pa.schema([
        ("doc_digest", _TEXT), ("content_digest", _TEXT), ("document_night", _TEXT),
        ("after", pa.int64()), ("by", _TEXT), ("at", _WHEN), _NIGHT,
    ]),
    # one row per thing that retention removed: rows of a table, a version of the registry, files
    # of a run, a page, versions of tables that a night named. of_night is whose it was, size
    # its rows or files; because names the rule. In the partition of the night that was newest then
    "prunings": pa.schema([
        ("kind", _TEXT), ("subject", _TEXT), ("of_night", _TEXT), ("size", pa.int64()),
        ("bytes", pa.int64()), ("because", _TEXT), ("at", _WHEN), _NIGHT,
    ]),
    # one row per night; versions, figures and manifest (what it was worked with) are JSON
    "nights": pa.schema([
        ("number", pa.int64()), ("state", _TEXT), ("started", _WHEN), ("finished", _WHEN),
        ("versions", _TEXT), ("config_digest", _TEXT), ("code_version", _TEXT),
        ("model_id", _TEXT), ("model_uri", _TEXT), ("registry_version", pa.int64()),
        ("figures", _TEXT), ("mlflow_run", _TEXT), ("prefect_run", _TEXT), ("process", _TEXT),
        ("error", _TEXT), ("manifest", _TEXT), _NIGHT,
    ]),
}  # fmt: skip

ROW_GROUP, GROUP_BYTES, AHEAD = 65_536, 32 << 20, 2
"""Rows of a file that are written together, and bytes of them; batches that are read ahead."""
_JSON = {"nights": ("versions", "figures", "manifest"), "stages": ("outputs", "figures")}
"""Columns that are parsed when read."""

VOLATILE = {
    "at",
    "champion_ms",
    "challenger_ms",
    "modified",
    "seconds",
    "started",
    "finished",
    "mlflow_run",
    "prefect_run",
    "process",
}
"""Columns that differ between two equal nights; digests leave them out."""

_TOKENS: dict[str, int] = {}
"""The lease that this process writes under, by the root of its lake."""
_OPENED: dict[str, dict[tuple[str, int | None], Any]] = {}
"""What this process opened while it holds the lease, by the root of its lake: opening a table means
reading its whole log, in an object store in as many requests, and asking what is new is one. Nobody
else may replace a table then."""
_PARSED: dict[tuple[str, str], dict[str, tuple[list[str], list[dict[str, Any]]]]] = {}
"""Rows of the tables with JSON columns, by root and table, then by night: its files, whose names
are never given twice, and what stands in them. A night asks for all nights two dozen times."""
APP, LOST = "nightshift.night", -1
TAKEN_OVER = (
    "this process was silent for so long that another took its night over; it stops here and "
    "writes nothing more. The other one finishes the night, after `lease_seconds` of silence."
)


@dataclass(frozen=True)
class TableRef:
    """What one stage hands to the next: a night's rows in a table, without the rows."""

    table: str
    version: int
    rows: int
    digest: str

    def as_json(self) -> dict[str, Any]:
        """A plain mapping, for the `stages` row."""
        return asdict(self)


@dataclass(frozen=True)
class Stretch:
    """Rows of one row group of one file of a table's version: what a shard is read from."""

    version: int
    path: str
    group: int
    first: int
    rows: int
    cut: int
    """Rows of a batch of it, at most."""


class Lake:
    """The tables of one pipeline, at `<uri>/<pipeline>/<table>`.

    Args: any URI delta-rs opens; its storage options (credentials) for object stores.
    """

    def __init__(self, uri: str, pipeline: str, storage: dict[str, str] | None = None):
        self.root = f"{uri.rstrip('/')}/{pipeline}"
        self._storage = safe(uri, storage or {}) or None
        self._is_local = "://" not in self.root.removeprefix("file://")

    @property
    def storage(self) -> dict[str, str] | None:
        """The object store's options, with their secrets in the open."""
        return self._storage

    def hold(self, token: int, fence: bool = False) -> None:
        """Write under a lease from here on, in this process, whoever opens the lake.

        Args: the lease's token; `fence` to refuse what an earlier holder may still write.
        """
        _TOKENS[self.root] = token
        _OPENED[self.root] = {}
        for table in SCHEMAS if fence else ():
            with passing(f"fencing table '{table}' at {self._at(table)}"):
                # Those that are not there yet, too: the earlier holder would make them.
                opened = self._open(table, None) or self._create(table)
                # Its own schema: an older table is migrated later.
                opened.create_write_transaction(
                    [], "append", opened.schema(), ["night"],
                    commit_properties=self.commit_properties(opened),
                )  # fmt: skip

    def lose(self) -> None:
        """Write no more: another has taken the lease over."""
        _TOKENS[self.root] = LOST
        _OPENED.pop(self.root, None)

    def let_go(self) -> None:
        """Write without a lease again."""
        _TOKENS.pop(self.root, None)
        _OPENED.pop(self.root, None)

    def forget(self, table: str) -> None:
        """Open a table afresh from here on: its log is another."""
        kept = _OPENED.get(self.root, {})
        for key in [one for one in kept if one[0] == table]:
            del kept[key]

    def newest_token(self) -> int:
        """The highest token that any commit to these tables carries; 0 where none does."""
        opened = (self._open(table, None) for table in SCHEMAS)
        return max((one.transaction_version(APP) or 0 for one in opened if one), default=0)

    def check_held(self) -> None:
        """Raise BusyError where another has taken the lease over."""
        if _TOKENS.get(self.root) == LOST:
            raise BusyError(TAKEN_OVER)

    def commit_properties(self, opened: Any) -> Any:
        """What a commit carries to be refused once another holds the lease; None without one.

        Raises: BusyError where another holds it already.
        """
        from deltalake import CommitProperties, Transaction

        token = _TOKENS.get(self.root)
        if token is None:
            return None
        if token < (opened.transaction_version(APP) or 0):
            raise BusyError(TAKEN_OVER)
        return CommitProperties(app_transactions=[Transaction(APP, token)])

    def version(self, table: str) -> int | None:
        """The newest version, or None while the table does not exist."""
        opened = self._open(table, None)
        return None if opened is None else opened.version()

    def handle(self, table: str, version: int | None = None) -> Any:
        """delta-rs' own view of a table, for its upkeep; None while the table does not exist."""
        return self._open(table, version)

    def store(self, table: str) -> Any:
        """The table's folder as Arrow's file system; paths in it begin there."""
        import pyarrow.fs as fs
        from deltalake.fs import DeltaStorageHandler

        # Not Arrow's own for S3: where it deletes the last file it leaves an empty object.
        if self._is_local:
            return self._files(table)
        return fs.PyFileSystem(DeltaStorageHandler.from_table(self._open(table, None)._table))

    def guarded(self, doing: str) -> Any:
        """A context in which faults of the store become the one error that is worth a retry."""
        return passing(f"{doing} of {self.root}")

    def set_properties(self, table: str, properties: dict[str, str]) -> None:
        """Set properties of a table, in one commit."""
        with passing(f"changing table '{table}' at {self._at(table)}"):
            opened = self._open(table, None)
            opened.alter.set_table_properties(
                properties, raise_if_not_exists=False,
                commit_properties=self.commit_properties(opened),
            )  # fmt: skip

    def add_columns(self, table: str, columns: list[str]) -> None:
        """Add columns of the table's schema that it lacks; they are null in rows that are there."""
        from deltalake import Schema

        whole = Schema.from_arrow(SCHEMAS[table])
        with passing(f"changing table '{table}' at {self._at(table)}"):
            fields = [one for one in whole.fields if one.name in columns]
            opened = self._open(table, None)
            opened.alter.add_columns(fields, commit_properties=self.commit_properties(opened))

    def replace(self, table: str, night: str, batches: Iterable[pa.RecordBatch]) -> TableRef:
        """Replace a night's rows in one commit; repeating it changes nothing.

        Args: `batches` in the columns of the table's schema; `night` is filled in here.
        """
        with self.writer(table, night) as writer:
            for batch in batches:
                writer.write(batch)
        return writer.ref

    def writer(self, table: str, night: str) -> NightWriter:
        """The same for rows that come while other tables are written: commits when closed."""
        opened = self._open(table, None) or self._create(table)
        return NightWriter(opened, table, valid_night(night), self.commit_properties)

    def _create(self, table: str) -> Any:
        from deltalake import DeltaTable

        with passing(f"creating table '{table}' at {self._at(table)}"):
            return DeltaTable.create(
                self._at(table), SCHEMAS[table], mode="ignore", name=table,
                partition_by=["night"], storage_options=self._storage,
                # By default the log forgets after 30 days: nights name versions for longer.
                configuration={
                    "delta.enableExpiredLogCleanup": "false",
                    SCHEMA_PROPERTY: str(SCHEMA_VERSION),
                    # Between checkpoints each entry of the log is a request of its own.
                    **({} if self._is_local else {"delta.checkpointInterval": "10"}),
                },
                raise_if_key_not_exists=False,
            )  # fmt: skip

    def scan(
        self,
        table: str,
        columns: list[str] | None = None,
        where: pc.Expression | None = None,
        version: int | None = None,
        rows: int = 8192,
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows in the order they were written, nights in the order of their names.

        A table that does not exist yet has no rows.
        """
        import pyarrow.dataset as ds

        whole = self._dataset(table, version)
        if whole is None:
            return
        with passing(f"reading table '{table}' at {self._at(table)}"):
            pieces = _in_order(whole, where)
            if not pieces:
                return
            read = partial(
                _batches, columns=columns, filter=where, schema=whole.schema,
                batch_size=min(rows, _fitting(pieces)), batch_readahead=AHEAD,
                fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=not self._is_local),
            )  # fmt: skip
            groups = (
                one for piece in pieces for one in piece.split_by_row_group(where, whole.schema)
            )
            # One scan of all would read on, up to a gigabyte, while whoever reads it is at work.
            for batches in each(read, groups, AHEAD):
                yield from batches

    def _dataset(self, table: str, version: int | None) -> Any:
        """A table as Arrow reads it; None while it does not exist."""
        opened = self._open(table, version)
        if opened is None:
            return None
        with passing(f"reading table '{table}' at {self._at(table)}"):
            return self._as_dataset(table, opened)

    def stretches(
        self, table: str, rows: int, where: pc.Expression | None = None, cut: int = 8192
    ) -> list[Stretch]:
        """What `scan` reads, in its order and with its cuts, as references that others may read.

        Args: rows of a stretch, of one batch at least; those whose file or row group can hold none
        are left out; rows of a batch, at most, as `scan` takes them.
        """
        opened = self._open(table, None)
        if opened is None:
            return []
        with passing(f"reading table '{table}' at {self._at(table)}"):
            pieces = _in_order(self._as_dataset(table, opened), where)
            cut = min(cut, _fitting(pieces))
            rows = max(1, rows // cut) * cut
            return [
                Stretch(
                    opened.version(), piece.path, group.id, first, min(rows, count - first), cut
                )
                for piece in pieces
                for part in piece.split_by_row_group(where, SCHEMAS[table])
                for group in part.row_groups
                for count in [group.num_rows]
                for first in range(0, count, rows)
            ]

    def read_stretch(
        self,
        table: str,
        stretch: Stretch,
        columns: list[str],
        where: pc.Expression | None = None,
        of: tuple[str, ...] = (),
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a stretch that fit, as `scan` yields them, from any process.

        Args: the condition, and the columns that it is `of`, beside `columns` and the night.
        Raises: ConfigError where the table, or its file, is not to be seen from here.
        """
        import pyarrow.dataset as ds

        opened = self._open(table, stretch.version)
        with passing(f"reading table '{table}' at {self._at(table)}"):
            files = [] if opened is None else _in_order(self._as_dataset(table, opened))
            found = next((one for one in files if one.path == stretch.path), None)
            if found is None:
                raise ConfigError(
                    f"table '{table}' at {self._at(table)}: found none on {platform.node()}, "
                    "though the night has it. Machines that share a lake need an object store, or "
                    "a folder that all mount at the same place. Change `lake`, or write "
                    "`compute: {engine: local}`."
                )
            needed = list(dict.fromkeys([*columns, *of, "night"]))
            group = found.subset(row_group_ids=[stretch.group])
            whole = group.to_table(schema=SCHEMAS[table], columns=needed, use_threads=False)
            whole = whole.slice(stretch.first, stretch.rows)
            for first in range(0, whole.num_rows, stretch.cut):
                # First cut, then filtered, as a scan does it: chunks are the same then.
                part = whole.slice(first, stretch.cut)
                if where is not None:
                    part = ds.dataset(part).to_table(filter=where)
                yield from part.select(columns).combine_chunks().to_batches()

    def read(
        self,
        table: str,
        columns: list[str] | None = None,
        where: pc.Expression | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """The rows of `scan`, in memory."""
        names = columns or SCHEMAS[table].names
        schema = pa.schema([SCHEMAS[table].field(name) for name in names])
        return pa.Table.from_batches(self.scan(table, columns, where, version), schema=schema)

    def read_of(
        self,
        table: str,
        columns: list[str],
        doc_ids: pa.Array,
        where: pc.Expression | None = None,
        shorten: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None,
    ) -> pa.Table:
        """The rows of some documents, in memory; `columns` begin with doc_id.

        The rest of the table passes by, a batch at a time. Args: what makes of the rows found in a
        batch what is kept of them.
        """
        wanted = pc.SetLookupOptions(value_set=doc_ids)
        found: list[pa.RecordBatch] = []
        for batch in self.scan(table, columns, where, rows=ROW_GROUP) if len(doc_ids) else ():
            mine = pc.call_function("is_in", [batch.column(0)], wanted)
            if mine.true_count:
                rows = batch.filter(mine)
                found.append(shorten(rows) if shorten else rows)
        schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
        return pa.Table.from_batches(found, schema=schema)

    def count(self, table: str, where: pc.Expression | None = None) -> int:
        """How many rows there are; the files themselves say it where the condition allows."""
        whole = self._dataset(table, None)
        if whole is None:
            return 0
        with passing(f"reading table '{table}' at {self._at(table)}"):
            return whole.count_rows(filter=where)

    def nights(self) -> list[dict[str, Any]]:
        """Every night that ever started, oldest first; JSON columns are parsed, and not to be
        changed in place."""
        return sorted(self._parsed("nights"), key=lambda row: row["number"])

    def _parsed(self, table: str, night: str | None = None) -> list[dict[str, Any]]:
        """Rows of a table with JSON columns, of one night or of all; a file is read only once."""
        opened = self._open(table, None)
        if opened is None:
            return []
        now: dict[str, list[str]] = {}
        with passing(f"reading table '{table}' at {self._at(table)}"):
            files = pa.table(opened.get_add_actions(flatten=True))
            for path, of in zip(files["path"].to_pylist(), files["partition.night"].to_pylist(),
                                strict=True):  # fmt: skip
                if night in (None, of):
                    now.setdefault(of, []).append(path)
        known = _PARSED.setdefault((self.root, table), {})
        new = [of for of, paths in now.items() if known.get(of, ([], []))[0] != paths]
        found: dict[str, list[dict[str, Any]]] = {of: [] for of in new}
        for row in self._rows_of(table, opened, new) if new else ():
            for name in _JSON[table]:
                row[name] = json.loads(row[name] or "{}")
            found[row["night"]].append(row)
        known.update({of: (now[of], found[of]) for of in new})
        return [dict(row) for of in now for row in known[of][1]]

    def _rows_of(self, table: str, opened: Any, nights: list[str]) -> list[dict[str, Any]]:
        """Rows of some nights as the version that was opened has them, none of a later one."""
        where = pc.field("night").isin(pa.array(nights, pa.string()))
        with passing(f"reading table '{table}' at {self._at(table)}"):
            found = self._as_dataset(table, opened).to_table(filter=where, use_threads=False)
        return found.select(SCHEMAS[table].names).to_pylist()

    def write_night(self, row: dict[str, Any]) -> None:
        """Write a night's row; with state `published` this commit is the publication."""
        self.replace("nights", row["night"], rows_of("nights", [_packed(row)]))

    def published(self) -> dict[str, Any] | None:
        """The newest published night, whose `versions` are what readers may see."""
        done = [row for row in self.nights() if row["state"] == "published"]
        return done[-1] if done else None

    def write_nights(self, rows: list[dict[str, Any]]) -> None:
        """Replace all rows of `nights` in one commit: a reader sees either all old or all new."""
        opened, actions = self._open("nights", None), []
        for row in rows:
            batches = rows_of("nights", [_packed(row)])
            actions += NightWriter(opened, "nights", row["night"]).lay_down(batches)
        with passing(f"writing table 'nights' at {self._at('nights')}"):
            opened.create_write_transaction(
                actions, "overwrite", SCHEMAS["nights"], ["night"],
                commit_properties=self.commit_properties(opened),
            )  # fmt: skip

    def rewrite(
        self,
        table: str,
        base: int,
        order: list[str],
        edited: dict[str, Callable[[], Iterator[pa.RecordBatch]]],
    ) -> dict[str, int]:
        """Write the history of a table anew from the first edited night on, as if its rows had
        always been these.

        Each later night gets a version in which the table ends with that night, as it did before;
        the newest has everything. Until the last commit the table is short of its newest nights.

        Args: the version that holds all rows; every night, in order; what replaces the rows of some
        nights. Returns: from the first of these on, the version as of each night.
        """
        whole = self._open(table, base)
        files = files_by_night(whole)
        new = {
            night: NightWriter(whole, table, night).lay_down(batches())
            for night, batches in edited.items()
        }
        later = order[min(order.index(night) for night in edited) :]
        opened, versions = self._open(table, None), dict[str, int]()
        with passing(f"writing table '{table}' at {self._at(table)}"):
            there = {*later} & files_by_night(opened).keys()
            if there:
                opened.delete(
                    " or ".join(f"night = '{night}'" for night in sorted(there)),
                    commit_properties=self.commit_properties(opened),
                )
            for night in later:
                actions = new.get(night, files.get(night, []))
                if actions:
                    opened.create_write_transaction(
                        actions, "append", SCHEMAS[table], ["night"],
                        commit_properties=self.commit_properties(opened),
                    )  # fmt: skip
                opened.update_incremental()
                versions[night] = opened.version()
        return versions

    def vacuum(self) -> None:
        """Delete every file that the newest version of its table does not name, at once."""
        for table in SCHEMAS:
            opened = self._open(table, None)
            if opened is not None:
                with passing(f"cleaning table '{table}' at {self._at(table)}"):
                    opened.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)

    def write_stage(self, night: str, row: dict[str, Any]) -> None:
        """Note that a stage of the night is done, in place of what was noted for it before."""
        others = [one for name, one in self.stages(night).items() if name != row["stage"]]
        self.write_stages(night, [*others, row])

    def write_stages(self, night: str, rows: list[dict[str, Any]]) -> None:
        """Note which stages of the night are done, in place of all that was noted before."""
        packed = [
            {
                **one,
                "outputs": json.dumps(one["outputs"], sort_keys=True),
                "figures": json.dumps(one["figures"], sort_keys=True),
            }
            for one in rows
        ]
        self.replace("stages", night, rows_of("stages", packed))

    def stages(self, night: str) -> dict[str, dict[str, Any]]:
        """The finished stages of a night by name; outputs and figures are parsed."""
        rows = self._parsed("stages", night)
        return {row["stage"]: row for row in sorted(rows, key=lambda row: row["at"])}

    def _as_dataset(self, table: str, opened: Any) -> Any:
        return opened.to_pyarrow_dataset(schema=SCHEMAS[table], filesystem=self._files(table))

    def _files(self, table: str) -> Any:
        """Arrow's own view of the folder; None leaves other stores to delta-rs.

        A file system that is written in Python may still be held by a thread of Arrow's when the
        interpreter ends, and the process then aborts after its work is done.
        """
        from pyarrow import fs

        folder = self._at(table)
        if S3.match(folder):
            return arrow_files(folder, self._storage or {})
        if not self._is_local:
            return None
        return fs.SubTreeFileSystem(folder.removeprefix("file://"), fs.LocalFileSystem())

    def _at(self, table: str) -> str:
        return f"{self.root}/{table}"

    def _open(self, table: str, version: int | None) -> Any:
        from deltalake.exceptions import TableNotFoundError

        with passing(f"opening table '{table}' at {self._at(table)}"):
            try:
                opened = self._opened(table, version)
            except TableNotFoundError:
                if version is None or self._open(table, None) is None:
                    return None
                raise NightError(
                    f"table '{table}' at {self._at(table)}: version {version} cannot be opened any "
                    "more; its log was trimmed (keep.table_versions). Ask for a newer night."
                ) from None
        if (found := schema_of(opened)) > SCHEMA_VERSION:
            raise ConfigError(
                f"table '{table}' at {self._at(table)}: found a schema of version {found}, and "
                f"this Nightshift knows {SCHEMA_VERSION}: a newer one wrote it. Upgrade "
                "Nightshift; nothing was changed."
            )
        return opened

    def _opened(self, table: str, version: int | None) -> Any:
        """The table, opened now or, while the lease is held, before; then with what came since."""
        from deltalake import DeltaTable

        kept, key = _OPENED.get(self.root), (table, version)
        found = kept.pop(key, None) if kept is not None else None
        if found is None:
            found = DeltaTable(self._at(table), version, self._storage)
        elif version is None:
            found.update_incremental()
        # Kept only now: one that failed is opened afresh.
        if kept is not None:
            kept[key] = found
        return found


def _batches(group: Any, **how: Any) -> list[pa.RecordBatch]:
    return [one for one in group.to_batches(**how) if one.num_rows]


def _in_order(whole: Any, where: pc.Expression | None = None) -> list[Any]:
    """Its files. One a night: by folder, so that nights come in the order of their names."""
    return sorted(whole.get_fragments(filter=where), key=lambda one: one.path)


class NightWriter:
    """Streams one night's rows of one table; they appear together, when it closes without error.

    Rows go into a Parquet file of our own, which a transaction then names: delta-rs' own writer
    shuffles batches, and a night could not be compared with its repetition.
    """

    ref: TableRef

    def __init__(
        self,
        opened: Any,
        table: str,
        night: str,
        commit_properties: Callable[[Any], Any] = lambda opened: None,
    ):
        self._opened, self._table, self._night = opened, table, night
        self._commit_properties = commit_properties
        self._schema = pa.schema([one for one in SCHEMAS[table] if one.name != "night"])
        self._path = f"night={night}/part-{uuid4()}.parquet"
        self._digest = Digest()
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file: Any = None
        self._stream: Any = None

    def __enter__(self) -> NightWriter:
        import pyarrow.fs as fs
        from deltalake.fs import DeltaStorageHandler

        self._store = fs.PyFileSystem(DeltaStorageHandler.from_table(self._opened._table))
        return self

    def write(self, batch: pa.RecordBatch | list[dict[str, Any]]) -> None:
        """Add rows: a batch in any order of columns, or mappings in which null may be left out."""
        if isinstance(batch, list):
            for one in pa.Table.from_pylist(batch, schema=self._schema).to_batches():
                self.write(one)
            return
        columns = [batch.column(field.name).cast(field.type) for field in self._schema]
        self._held.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._digest.feed(self._held[-1])
        # Small batches are gathered, since each becomes a row group of the file.
        self._bytes += self._held[-1].nbytes
        rows = sum(one.num_rows for one in self._held)
        if rows >= ROW_GROUP or self._bytes >= GROUP_BYTES:
            self._flush()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
                    self._stream.close()
                    self._store.delete_file(self._path)
            return
        self._flush()
        with passing(f"writing table '{self._table}' at {self._opened.table_uri}"):
            self._commit()
        rows, digest = self._digest.rows, self._digest.hexdigest()
        self.ref = TableRef(self._table, self._opened.version(), rows, digest)

    @property
    def digest(self) -> str:
        """Of the rows so far."""
        return self._digest.hexdigest()

    def lay_down(self, batches: Iterable[pa.RecordBatch]) -> list[Any]:
        """Write a file that no version names yet; returns the action that adds it, if any."""
        self.__enter__()
        for batch in batches:
            self.write(batch)
        self._flush()
        with passing(f"writing table '{self._table}' at {self._opened.table_uri}"):
            return self._added()

    def _flush(self) -> None:
        import pyarrow.parquet as pq

        rows = pa.Table.from_batches(self._held, self._schema)
        self._held, self._bytes = [], 0
        if not rows.num_rows:
            return
        with passing(f"writing table '{self._table}' at {self._opened.table_uri}"):
            if self._file is None:
                self._stream = self._store.open_output_stream(self._path)
                self._file = pq.ParquetWriter(
                    self._stream, _dense(self._schema), **_compression(self._schema)
                )
            self._file.write_table(rows.cast(self._file.schema), row_group_size=ROW_GROUP)

    def _added(self) -> list[Any]:
        if self._file is None:
            return []
        self._file.close()
        size = self._stream.tell()
        self._stream.close()
        return [_add(self._path, size, self._night, self._digest.rows, int(time.time() * 1000))]

    def _commit(self) -> None:
        actions = self._added()
        # Asked for afresh: the table may have moved on while these rows were made.
        self._opened.update_incremental()
        replaced = [("night", "=", self._night)]
        self._opened.create_write_transaction(
            actions, "overwrite", SCHEMAS[self._table], ["night"], replaced,
            commit_properties=self._commit_properties(self._opened),
        )  # fmt: skip
        self._opened.update_incremental()


def _fitting(pieces: list[Any]) -> int:
    """Rows of files that take no more than a row group does: a batch would else join several."""
    groups = [group for one in pieces for group in one.row_groups]
    widest = max((one.total_byte_size / max(1, one.num_rows) for one in groups), default=1.0)
    return max(1, int(GROUP_BYTES / max(1.0, widest)))


def _add(path: str, size: int, night: str, rows: int, modified: int) -> Any:
    from deltalake.transaction import AddAction

    stats = json.dumps({"numRecords": rows})
    return AddAction(path, size, {"night": night}, modified, True, stats)


def files_by_night(opened: Any) -> dict[str, list[Any]]:
    """The files of a table's version, as actions that add them."""
    found: dict[str, list[Any]] = {}
    for one in pa.table(opened.get_add_actions(flatten=True)).to_pylist():
        night = one["partition.night"]
        about = (one["size_bytes"], night, one["num_records"], one["modification_time"])
        found.setdefault(night, []).append(_add(one["path"], *about))
    return found


class passing:  # noqa: N801 - a context manager, read as a verb
    """Turn the lake's input and output faults into the one error that is worth a retry."""

    def __init__(self, doing: str):
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from deltalake.exceptions import DeltaError

        if isinstance(error, OSError | DeltaError):
            words, next_step = told(error)
            if next_step:
                raise ConfigError(f"{self._doing}: {words}. {next_step}") from error
            raise PassingError(
                f"{self._doing}: {words}. The night stays unfinished and yesterday's tables stay "
                "published; run it again when the store answers."
            ) from error


def schema_of(opened: Any) -> int:
    """The version of a table's schema; 0 of one that is older than the property."""
    return int(opened.metadata().configuration.get(SCHEMA_PROPERTY) or 0)


def valid_night(name: str) -> str:
    """The name itself, when it is fit for a folder and a condition.

    Raises: ConfigError otherwise.
    """
    if not NIGHT_NAME.fullmatch(name):
        raise ConfigError(
            f"--night: found {name!r}, expected up to 64 letters, digits, dots, dashes and "
            "underscores, such as 2026-11-22. Choose another name."
        )
    return name


def _dense(schema: pa.Schema) -> pa.Schema:
    """As files have it: no number of a list is null. Such lists are read in half the time."""
    fields = [
        one.with_type(pa.list_(pa.field("element", one.type.value_type, nullable=False)))
        if _holds_numbers(one)
        else one
        for one in schema
    ]
    return pa.schema(fields)


def _compression(schema: pa.Schema) -> dict[str, Any]:
    """How a file is compressed: vectors are not, they would become a tenth smaller and be read in
    twice the time."""
    column = {
        f"{one.name}.list.element" if pa.types.is_list(one.type) else one.name: one
        for one in schema
    }
    vectors = {
        name for name, one in column.items()
        if _holds_numbers(one) and pa.types.is_floating(one.type.value_type)
    }  # fmt: skip
    return {
        "compression": {name: "none" if name in vectors else "zstd" for name in column},
        "use_dictionary": [name for name in column if name not in vectors],
    }


def _holds_numbers(field: pa.Field) -> bool:
    return pa.types.is_list(field.type) and pa.types.is_primitive(field.type.value_type)


def _packed(night: dict[str, Any]) -> dict[str, Any]:
    said = {name: json.dumps(night.get(name) or {}, sort_keys=True) for name in _JSON["nights"]}
    return {**night, **said}


def rows_of(table: str, rows: list[dict[str, Any]]) -> list[pa.RecordBatch]:
    """Rows as mappings -> batches of the table's schema; what a row lacks is null."""
    return pa.Table.from_pylist(rows, schema=SCHEMAS[table]).to_batches()


class Digest:
    """A digest of rows that does not depend on how they were cut into batches."""

    def __init__(self) -> None:
        self.rows = 0
        self._parts: dict[str, Any] = {}

    def feed(self, batch: pa.RecordBatch) -> None:
        """Add a batch, column by column, without the volatile ones."""
        self.rows += batch.num_rows
        for name in batch.schema.names:
            if name not in VOLATILE:
                self._feed(name, batch.column(name))

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        parts = [f"{name}:{one.hexdigest()}" for name, one in sorted(self._parts.items())]
        return digest_of([self.rows, parts])

    def _feed(self, name: str, array: pa.Array) -> None:
        """Nulls, lengths and values each into a digest of their own, so that cuts do not show."""
        self._part(f"{name}.valid").update(array.is_valid().cast(pa.uint8()).to_numpy())
        if pa.types.is_list(array.type):
            self._part(f"{name}.length").update(array.value_lengths().fill_null(-1).to_numpy())
            self._feed(f"{name}.item", array.flatten())
        elif pa.types.is_string(array.type):
            lengths = pc.call_function("binary_length", [array])
            self._part(f"{name}.length").update(lengths.fill_null(-1).to_numpy())
            self._part(name).update("".join(array.drop_null().to_pylist()).encode())
        elif pa.types.is_boolean(array.type):
            self._part(name).update(array.fill_null(False).cast(pa.uint8()).to_numpy())
        else:
            plain = array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array
            self._part(name).update(plain.fill_null(0).to_numpy())

    def _part(self, name: str) -> Any:
        return self._parts.setdefault(name, blake2b(digest_size=16))


def digest_of(value: Any) -> str:
    """32 hexadecimal digits of anything JSON can say, whatever the order of its keys."""
    said = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return blake2b(said.encode(), digest_size=16).hexdigest()
