"""Where a journal is kept: a SQLite file on a local disk, or a schema of a Postgres database.

Both give one number to every word, of whatever kind, and no later one may appear before an earlier:
a night reads up to a number, and what came after it under a smaller one would be lost. SQLite has
one writer at a time anyway; in Postgres a word waits until the one before it is committed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from .errors import ConfigError, PassingError

BUSY_SECONDS = 5.0
"""How long a word waits for another process to finish its own, which takes milliseconds."""
LONGEST_SCHEMA = 63
"""Characters of a name in Postgres; longer ones are cut without a word."""

# One table per kind of word, and one of what is shown to whom, which is no word.
TABLES = {
    "names": """create table if not exists names (
        number integer primary key autoincrement, cluster_id text not null, name text,
        class_name text, by text not null, at text not null) strict""",
    "labels": """create table if not exists labels (
        number integer primary key autoincrement, doc_id text not null, kind text not null,
        label text, before text, queue text not null, undoes integer, by text not null,
        at text not null) strict""",
    "shapes": """create table if not exists shapes (
        number integer primary key autoincrement, cluster_id text not null, verb text not null,
        other text, parts integer, by text not null, at text not null) strict""",
    "loans": """create table if not exists loans (
        doc_id text primary key, by text not null, until text not null) strict""",
    "labels_of": "create index if not exists labels_of on labels (doc_id)",
}
WORDS = ("names", "labels", "shapes")
"""Tables whose rows are numbered."""

Row = tuple[Any, ...]


class Connection(Protocol):
    """One transaction: committed when its block ends without an error."""

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query, whose values stand at its question marks."""
        ...

    def run(self, query: str, values: Sequence[Any] = ()) -> int:
        """Do something to rows; returns how many there were."""
        ...

    def number(self) -> int:
        """The number of the next word; from 1, never given twice."""
        ...


class _Sqlite:
    def __init__(self, opened: sqlite3.Connection):
        self._opened = opened

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        return self._opened.execute(query, tuple(values)).fetchall()

    def run(self, query: str, values: Sequence[Any] = ()) -> int:
        return self._opened.execute(query, tuple(values)).rowcount

    def number(self) -> int:
        [(last,)] = self.rows("select coalesce(max(seq), 0) from sqlite_sequence")
        return last + 1


class SqliteStore:
    """A file that appears with the first word, and belongs on a local disk: SQLite's write-ahead
    log needs memory that its readers and writers share."""

    def __init__(self, path: Path):
        self.path = path
        self._held: sqlite3.Connection | None = None

    def there(self) -> bool:
        """Whether anything was ever written."""
        return self.path.exists()

    def hold(self) -> None:
        """Keep the file open, for a process that asks often.

        Whoever closes a file last writes its log back and removes it, and the next to open it makes
        it anew: a hundred times the work of reading.
        """
        if self._held is None and self.there():
            with suppress(sqlite3.Error):  # whoever reads it next says what is wrong
                held = sqlite3.connect(self.path, check_same_thread=False)
                held.execute("select count(*) from sqlite_schema").fetchone()
                self._held = held

    def last(self) -> int:
        """The number of the newest word, 0 before any."""
        if not self.there():
            return 0
        with self.reading() as opened:
            return opened.number() - 1

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._opened() as opened:
            yield _Sqlite(opened)

    @contextmanager
    def writing(self, durable: bool = True) -> Iterator[Connection]:
        """A transaction that nobody else writes beside; makes the file where there is none.

        Args: whether it must outlive a power cut; the disk is not waited for where it need not.
        """
        self._create()
        with self._opened() as opened, opened:
            if not durable:
                opened.execute("pragma synchronous = normal")
            opened.execute("begin immediate")
            yield _Sqlite(opened)

    def erase(self, doc_ids: Iterable[str]) -> int:
        """Remove every row about some documents, from the file's free pages and log as well."""
        if not self.there():
            return 0
        gone, wanted = 0, [(one,) for one in doc_ids]
        with self._opened() as opened:
            opened.execute("pragma secure_delete = on")
            tables = [name for (name,) in opened.execute("select name from sqlite_schema "
                      "where type = 'table'")]  # fmt: skip
            for table in tables:
                table = table.replace('"', '""')
                columns = {row[1] for row in opened.execute(f'pragma table_info("{table}")')}
                if "doc_id" in columns:
                    before = opened.total_changes
                    with opened:
                        opened.executemany(f'delete from "{table}" where doc_id = ?', wanted)
                    gone += opened.total_changes - before
            opened.execute("vacuum")
            opened.execute("pragma wal_checkpoint(truncate)")
        return gone

    def copy(self, to: Path) -> None:
        """Write all as it is now to another file; without a word nothing is written."""
        if not self.there():
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as here, closing(sqlite3.connect(to)) as there:
            here.backup(there)

    def _create(self) -> None:
        """Make the file where there is none, all at once.

        SQLite cannot wait while two processes turn one new file to write-ahead logging, so each
        makes its own, and the first to link it to the name has made the journal.
        """
        if self.path.exists():
            return
        fresh = self.path.with_name(f".{self.path.name}-{uuid4().hex}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(fresh)) as opened:
                opened.execute("pragma journal_mode = wal")
            with suppress(FileExistsError):
                os.link(fresh, self.path)
        except (OSError, sqlite3.Error) as error:
            raise PassingError(
                f"journal {self.path}: could not be made ({error}). Nothing was noted. Make its "
                "folder writable, then say it again."
            ) from error
        finally:
            with suppress(OSError):
                fresh.unlink()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection; every table of this version is there."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as opened:
                there = {name for (name,) in opened.execute("select name from sqlite_schema")}
                for table, create in TABLES.items():
                    if table not in there:
                        opened.execute(create)
                yield opened
        except sqlite3.OperationalError as error:
            raise PassingError(
                f"journal {self.path}: {error}. Another process may hold it (waited "
                f"{BUSY_SECONDS:.0f} s), or its disk is full or read-only. A word said just now "
                "is not noted; run the same command again."
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # names that are no text
            raise self.damaged(str(error)) from error

    def damaged(self, problem: str) -> ConfigError:
        """What to raise where a word cannot be read."""
        return ConfigError(
            f"journal {self.path}: {problem}; expected the SQLite file that `nightshift name` "
            "writes. Put a copy of it back, or move this file away to start an empty one."
        )


class _Postgres:
    def __init__(self, cursor: Any):
        self._cursor = cursor

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        self.run(query, values)
        return self._cursor.fetchall()

    def run(self, query: str, values: Sequence[Any] = ()) -> int:
        self._cursor.execute(query.replace("%", "%%").replace("?", "%s"), tuple(values))
        return self._cursor.rowcount

    def number(self) -> int:
        return self.rows("select nextval('words')")[0][0]


class PostgresStore:
    """A schema of a Postgres database, for reviewers and nights on several machines.

    Args: a URL such as postgresql://user:password@host/database; the pipeline, each of which has a
    schema of its own.
    """

    def __init__(self, url: str, pipeline: str):
        self._url = url
        name = f"journal_{pipeline}"
        short = f"journal_{blake2b(pipeline.encode(), digest_size=16).hexdigest()}"
        self._schema = name if len(name) <= LONGEST_SCHEMA else short
        # A connection costs ten times what a word does, so one is kept, for one thread at a time.
        self._lock = threading.RLock()
        self._kept: Any = None

    def there(self) -> bool:
        """The schema is made with the first connection."""
        return True

    def hold(self) -> None:
        """A connection is kept anyway."""

    def last(self) -> int:
        """The number of the newest word, 0 before any."""
        with self.reading() as opened:
            # A number is taken before its word can be seen: a night must not read past it.
            opened.run("select pg_advisory_xact_lock_shared(hashtext(?))", [self._schema])
            [(last, called)] = opened.rows("select last_value, is_called from words")
        return last if called else 0

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._opened() as cursor:
            yield _Postgres(cursor)

    @contextmanager
    def writing(self, durable: bool = True) -> Iterator[Connection]:
        """A transaction that nobody else writes beside; as of a SQLite file."""
        with self._opened() as cursor:
            opened = _Postgres(cursor)
            if not durable:
                opened.run("set local synchronous_commit to off")
            opened.run("select pg_advisory_xact_lock(hashtext(?))", [self._schema])
            yield opened

    def erase(self, doc_ids: Iterable[str]) -> int:
        """Remove every row about some documents, and the space where they stood."""
        gone = 0
        tables = ("labels", "loans")
        with self.writing() as opened:
            for one in doc_ids:
                gone += sum(opened.run(f"delete from {name} where doc_id = ?", [one])
                            for name in tables)  # fmt: skip
        with self._lock, self._failures():
            opened = self._connected()
            opened.autocommit = True
            try:
                for name in tables:
                    opened.cursor().execute(f"vacuum full {name}")
            finally:
                opened.autocommit = False
        return gone

    def damaged(self, problem: str) -> ConfigError:
        """What to raise where a word cannot be read."""
        return ConfigError(
            f"journal in Postgres, schema {self._schema}: {problem}; expected words that "
            "Nightshift wrote. Restore the schema from a backup."
        )

    def copy(self, to: Path) -> None:
        """Write all as it is now to a SQLite file."""
        there = SqliteStore(to)
        with self.reading() as here, there.writing() as other:
            for table in WORDS:
                for row in here.rows(f"select * from {table}"):
                    marks = ", ".join("?" * len(row))
                    other.run(f"insert into {table} values ({marks})", row)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with self._lock, self._failures():
            opened = self._connected()
            with opened, opened.cursor() as cursor:
                yield cursor

    def _connected(self) -> Any:
        import psycopg2  # pyright: ignore[reportMissingModuleSource]

        if self._kept is not None and not self._kept.closed:
            try:  # a server that was restarted meanwhile closed it without a word
                self._kept.cursor().execute("select 1")
                self._kept.rollback()
                return self._kept
            except psycopg2.Error:
                self._kept.close()
        kept = psycopg2.connect(self._url, connect_timeout=int(BUSY_SECONDS))
        with kept, kept.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext(%s))", [self._schema])
            cursor.execute(f'create schema if not exists "{self._schema}"')
            cursor.execute(f'set search_path to "{self._schema}"')
            cursor.execute(f"set lock_timeout to '{int(BUSY_SECONDS * 1000)}ms'")
            cursor.execute("create sequence if not exists words")
            for create in TABLES.values():
                cursor.execute(
                    create.replace("integer primary key autoincrement", "bigint primary key")
                    .replace("undoes integer", "undoes bigint")
                    .removesuffix(" strict")
                )
        self._kept = kept
        return kept

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            import psycopg2  # pyright: ignore[reportMissingModuleSource]
        except ImportError as error:
            raise ConfigError(
                "journal: a Postgres URL needs psycopg2, which is not installed. Install it: "
                "pip install 'nightshift[postgres]'."
            ) from error
        try:
            yield
        except psycopg2.Error as error:
            said = " ".join(str(error).split())
            raise PassingError(
                f"journal in Postgres, schema {self._schema}: {said}. A word said just now is not "
                "noted. See that the server of `journal:` answers, then say it again."
            ) from error


Store = SqliteStore | PostgresStore
