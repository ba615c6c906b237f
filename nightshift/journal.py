"""The journal: what people say between nights, kept at once in a small SQLite file.

A lake's tables are written by nights alone. A person's word cannot wait for one and must not meet
one half-way, so it lands here, with who and when; the next night reads it and makes it public. Each
kind of word has a table of its own. Words are only ever added: the newest about a thing holds, and
a word that takes back is a word too.
"""

from __future__ import annotations

import getpass
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from .errors import ConfigError, PassingError
from .pictures import clean

BUSY_SECONDS = 5.0
"""How long a word waits for another process to finish its own, which takes milliseconds."""
LONGEST = 80
"""Characters of a name."""

# One table per kind of word. Numbers order the words, since clocks of several machines do not.
TABLES = {
    "names": """create table if not exists names (
        number integer primary key autoincrement, cluster_id text not null, name text,
        class_name text, by text not null, at text not null) strict""",
}


@dataclass(frozen=True)
class Name:
    """One row of `names`: what somebody calls a cluster; a null name takes back what was said."""

    number: int
    """From 1, in the order in which the words were said."""
    cluster_id: str
    name: str | None
    class_name: str | None
    """The class that the cluster's documents become examples of."""
    by: str
    at: datetime
    """UTC."""


class Journal:
    """A pipeline's journal; any number of processes may read and write it at the same time.

    The file appears with the first word. It belongs on a local disk: SQLite's write-ahead log needs
    memory that its readers and writers share.
    """

    def __init__(self, path: Path):
        self.path = path

    def say_name(
        self, cluster_id: str, name: str, class_name: str | None = None, by: str | None = None
    ) -> Name:
        """Call a cluster by a name, from the next night on; `by` is the login name unless given.

        Raises: ConfigError for a name that cannot be one, PassingError while the file is busy.
        """
        said = cleaned(name, "name")
        of_class = None if class_name is None else cleaned(class_name, "class")
        return self._write_name(cluster_id, said, of_class, by)

    def forget_name(self, cluster_id: str, by: str | None = None) -> Name:
        """Take a cluster's name and class back: from the next night on keywords name it again."""
        return self._write_name(cluster_id, None, None, by)

    def names(self, until: int | None = None) -> dict[str, Name]:
        """The newest word about each cluster, by id; a name of None was taken back.

        Args: the last number that counts, so that a repeated night reads what it read before.
        """
        words = self.since(0)
        return {one.cluster_id: one for one in words if until is None or one.number <= until}

    def since(self, number: int) -> list[Name]:
        """Every word about names after a number, oldest first."""
        if not self.path.exists():
            return []
        columns = ", ".join(one.name for one in fields(Name))
        query = f"select {columns} from names where number > ? order by number"
        with self._opened() as opened:
            rows = opened.execute(query, (number,)).fetchall()
        return [Name(*row[:-1], at=datetime.fromisoformat(row[-1])) for row in rows]

    def last(self) -> int:
        """The number of the newest word about names, 0 before any: how far a night has read."""
        return max((one.number for one in self.since(0)), default=0)

    def erase(self, doc_ids: Iterable[str]) -> int:
        """Remove every word about some documents, from the file's free pages and log as well.

        Returns: words removed.
        """
        if not self.path.exists():
            return 0
        gone, wanted = 0, [(one,) for one in doc_ids]
        with self._opened() as opened:
            opened.execute("pragma secure_delete = on")
            tables = [name for (name,) in opened.execute("select name from sqlite_schema "
                      "where type = 'table'")]  # fmt: skip
            for table in tables:
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
        """Write the journal as it is now to another file; without one nothing is written."""
        if not self.path.exists():
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as here, closing(sqlite3.connect(to)) as there:
            here.backup(there)

    def _write_name(
        self, cluster_id: str, name: str | None, class_name: str | None, by: str | None
    ) -> Name:
        who, at = cleaned(by or login(), "by"), datetime.now(UTC).replace(microsecond=0)
        columns = (cluster_id, name, class_name, who, at.isoformat())
        self._create()
        with self._opened() as opened, opened:
            added = opened.execute(
                "insert into names (cluster_id, name, class_name, by, at) values (?, ?, ?, ?, ?)",
                columns,
            )
        assert added.lastrowid is not None
        return Name(added.lastrowid, cluster_id, name, class_name, who, at)

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
        """A connection for one transaction; every table of this version is there."""
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
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"journal {self.path}: {error}; expected the SQLite file that `nightshift name` "
                "writes. Put a copy of it back, or move this file away to start an empty one."
            ) from error


def journal_path(lake: str, pipeline: str, reports: str) -> Path:
    """Where a pipeline's journal lies: beside its tables where they are in a local folder.

    Args: the lake's resolved URI; the folder of the reports, which holds the journals of a lake
    elsewhere.
    """
    local = lake.removeprefix("file://")
    root = Path(reports) / "journals" if "://" in local else Path(local)
    return root / pipeline / "journal.sqlite"


def cleaned(text: str, what: str) -> str:
    """A name on one line, without blanks around it or characters that cannot be shown.

    Raises: ConfigError unless 1 to 80 characters are left; `what` says which name was meant.
    """
    line = " ".join(clean(text).split())
    if not 1 <= len(line) <= LONGEST:
        shown = f"{line[:24]!r}... ({len(line)} characters)" if line else "nothing"
        raise ConfigError(
            f"{what}: found {shown}, expected 1 to {LONGEST} characters on one line. Say it again "
            f"{'shorter' if line else 'with words'}."
        )
    return line


def login() -> str:
    """The name of whoever is logged in.

    Raises: ConfigError where the system knows none, as in some containers.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise ConfigError(
            "by: found no login name to note beside the word, expected one. Give it: --by NAME."
        ) from error
