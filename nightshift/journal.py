"""The journal: what people say between nights, kept at once in a small SQLite file or Postgres.

A lake's tables are written by nights alone. A person's word cannot wait for one and must not meet
one half-way, so it lands here, with who and when; the next night reads it and makes it public. Each
kind of word has a table of its own, and all kinds are numbered together: a night remembers one
number, how far it has read. Words are only ever added: the newest about a thing holds, and a word
that takes back is a word too.
"""

from __future__ import annotations

import getpass
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import ConfigError
from .journal_stores import Connection, PostgresStore, SqliteStore, Store
from .pictures import clean

LONGEST = 80
"""Characters of a name."""
LONGEST_REASON = 500
NO_PERSON = ("source", "cluster ")
"""How labels are signed that no person gave: by their source, and in the name of a cluster."""
MOST_PARTS = 20
"""Parts that a cluster may be split into by hand."""
IMPORT = "import"
"""The queue of labels that came in a file."""


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


@dataclass(frozen=True)
class Said:
    """One row of `labels`: what somebody said of a document.

    kind: `label` gives a label, null for none of the classes; `skip` says nothing but that this
    person was asked; `undo` takes back the word of the number `undoes`.
    """

    number: int
    doc_id: str
    kind: Literal["label", "skip", "undo"]
    label: str | None
    before: str | None
    """The label that the document had when it was said."""
    queue: str
    """Where the person met it."""
    undoes: int | None
    by: str
    at: datetime
    """UTC; never before that of an earlier word, whatever the clock says."""


@dataclass(frozen=True)
class Shape:
    """One row of `shapes`: a cluster to merge into another or to split, or to leave as it is."""

    number: int
    cluster_id: str
    verb: Literal["merge", "split", "leave"]
    other: str | None
    """Into whom, of a merger."""
    parts: int | None
    by: str
    at: datetime


class WordsError(ConfigError):
    """A name, class or label that cannot be one; `what` it was meant to be, and its `length`."""

    def __init__(self, what: str, line: str, most: int):
        shown = f"{line[:24]!r}... ({len(line)} characters)" if line else "nothing"
        super().__init__(
            f"{what}: found {shown}, expected 1 to {most} characters on one line. Say it again "
            f"{'shorter' if line else 'with words'}."
        )
        self.what, self.length, self.most = what, len(line), most


class CircleError(ConfigError):
    """A merger that would close a circle: `word` is the one that stands in its way."""

    def __init__(self, cluster_id: str, other: str, word: Shape):
        super().__init__(
            f"merge: found {cluster_id} into {other}, but {word.cluster_id} goes into {cluster_id} "
            f"already (said by {word.by}); expected no circle. Leave {word.cluster_id} as it is "
            "first, then say it again."
        )
        self.word = word


Word = TypeVar("Word", Name, Said, Shape)


class Journal:
    """A pipeline's journal; any number of processes may read and write it at the same time."""

    def __init__(self, place: Path | Store):
        self.store: Store = SqliteStore(place) if isinstance(place, Path) else place

    @property
    def path(self) -> Path:
        """The SQLite file; it appears with the first word."""
        assert isinstance(self.store, SqliteStore)
        return self.store.path

    # --- clusters ---------------------------------------------------------------------------

    def say_name(
        self,
        cluster_id: str,
        name: str,
        class_name: str | None = None,
        by: str | None = None,
        known: Collection[str] = (),
    ) -> Name:
        """Call a cluster by a name, from the next night on; `by` is the login name unless given.

        Args: classes that there are, which are taken as they are.
        Raises: ConfigError for a name that cannot be one, PassingError while the file is busy.
        """
        said = cleaned(name, "name")
        of_class = None if class_name is None else label_of(class_name, known, "class")
        return self._write(Name, [cluster_id, said, of_class], by)

    def forget_name(self, cluster_id: str, by: str | None = None) -> Name:
        """Take a cluster's name and class back: from the next night on keywords name it again."""
        return self._write(Name, [cluster_id, None, None], by)

    def names(self, until: int | None = None) -> dict[str, Name]:
        """The newest word about each cluster, by id; a name of None was taken back.

        Args: the last number that counts, so that a repeated night reads what it read before.
        """
        words = self.since(0)
        return {one.cluster_id: one for one in words if until is None or one.number <= until}

    def since(self, number: int) -> list[Name]:
        """Every word about names after a number, oldest first."""
        return self._read(Name, number)

    def merge(self, cluster_id: str, other: str, by: str | None = None, after: int = 0) -> Shape:
        """Let the next night take a cluster into another, which keeps its id.

        Args: the last number that a night has read: mergers up to it are made, and bind no more.
        Raises: ConfigError where both are one, or mergers would go round in a circle.
        """
        if cluster_id == other:
            raise ConfigError(f"merge: found {cluster_id} twice, expected two clusters.")
        who = cleaned(by or login(), "by")
        with self.store.writing() as opened:
            # Two people may say it at the same moment, so it is looked at where nobody else writes.
            said = {one.cluster_id: one for one in standing(_rows(opened, Shape, after))}
            word = said.pop(other, None)
            while word is not None and word.other is not None:
                if word.other == cluster_id:
                    raise CircleError(cluster_id, other, word)
                word = said.pop(word.other, None)
            return _add(opened, Shape, [cluster_id, "merge", other, None], who)

    def split(self, cluster_id: str, parts: int = 2, by: str | None = None) -> Shape:
        """Let the next night split a cluster; the part with the most documents keeps its id.

        Raises: ConfigError for a number of parts that cannot be.
        """
        if not 2 <= parts <= MOST_PARTS:
            raise ConfigError(f"split: found {parts} parts, expected 2 to {MOST_PARTS}.")
        return self._write(Shape, [cluster_id, "split", None, parts], by)

    def leave(self, cluster_id: str, by: str | None = None) -> Shape:
        """Take back a merger or a split that no night has carried out yet."""
        return self._write(Shape, [cluster_id, "leave", None, None], by)

    def shapes(self, after: int = 0, until: int | None = None) -> list[Shape]:
        """The newest word about each cluster's shape, in their order; without those taken back."""
        return standing(self._read(Shape, after, until))

    # --- labels -----------------------------------------------------------------------------

    def say_label(
        self,
        doc_id: str,
        label: str | None,
        before: str | None,
        queue: str,
        by: str,
        known: Collection[str] = (),
    ) -> Said:
        """Label a document; null says that it is of no class. The same said twice is one word.

        Args: the label it has had until now; the queue it was met in; who says so; labels that
        there are, which are taken as they are.
        Raises: ConfigError for a new label that cannot be one.
        """
        said = label if label is None or label == before else label_of(label, known)
        return self.say_labels([(doc_id, said, before)], queue, by)[0]

    def say_labels(
        self, given: Sequence[tuple[str, str | None, str | None]], queue: str, by: str
    ) -> list[Said]:
        """Many labels at once, all or none: (doc_id, label, label before) of each."""
        who = person(by)
        with self.store.writing() as opened:
            held = holding(self._about(opened, {one for one, _, _ in given}))
            found: list[Said] = []
            for doc_id, label, before in given:
                word = held.get(doc_id)
                if word is None or word.label != label or word.by != who:
                    values = [doc_id, "label", label, before, queue, None]
                    word = held[doc_id] = _add(opened, Said, values, who)
                found.append(word)
            self._return(opened, [one for one, _, _ in given])
        return found

    def skip(self, doc_id: str, queue: str, by: str) -> Said:
        """Note that somebody was asked and did not say; others may."""
        with self.store.writing() as opened:
            word = _add(opened, Said, [doc_id, "skip", None, None, queue, None], person(by))
            self._return(opened, [doc_id])
        return word

    def undo(self, by: str) -> Said | None:
        """Take back a person's newest word about a document that still stands; None without one.

        What others said of the document stands, and so does what came in a file, which is thousands
        of words at once.
        """
        who = person(by)
        with self.store.writing() as opened:
            columns = ", ".join(one.name for one in fields(Said))
            query = (
                f"select {columns} from labels where by = ? and kind <> 'undo' and queue <> ? and "
                "number not in (select undoes from labels where undoes is not null) "
                "order by number desc limit 1"
            )
            rows = opened.rows(query, [who, IMPORT])
            if not rows:
                return None
            word = _word(Said, rows[0])
            return _add(
                opened, Said, [word.doc_id, "undo", word.label, word.before, word.queue,
                               word.number], who
            )  # fmt: skip

    def said(self, after: int = 0, until: int | None = None) -> list[Said]:
        """Every word about documents after a number, oldest first."""
        return self._read(Said, after, until)

    def labels(self, after: int, until: int | None = None) -> list[Said]:
        """What people's words change: for each document of which something was said after one
        number and until another, what holds now where it is not what held at the first.

        The word that holds, with the time of the newest one about its document. Where all was taken
        back, the word that takes back, with the label that was there before anybody spoke.
        """
        fresh = {one.doc_id for one in self.said(after, until)}
        if not fresh:
            return []
        with self.store.reading() as opened:
            words = self._about(opened, fresh, until)
        then = holding([one for one in words if one.number <= after])
        now, newest = holding(words), {one.doc_id: one for one in words}
        first = {one.doc_id: one for one in reversed(words) if one.kind == "label"}
        found: list[Said] = []
        for doc_id in sorted(fresh):
            holds, held, last = now.get(doc_id), then.get(doc_id), newest[doc_id]
            if holds is not None:
                if held is None or held.label != holds.label:
                    found.append(_with(holds, at=last.at))
            elif held is not None:
                found.append(_with(last, label=first[doc_id].before))
        return found

    def _about(
        self, opened: Connection, doc_ids: Collection[str], until: int | None = None
    ) -> list[Said]:
        """Every word about some documents, oldest first."""
        columns = ", ".join(one.name for one in fields(Said))
        query = f"select {columns} from labels"
        if len(doc_ids) == 1:  # a person's own word must not cost what all have said
            rows = opened.rows(f"{query} where doc_id = ? order by number", [*doc_ids])
        else:
            rows = opened.rows(f"{query} order by number")
        words = (_word(Said, row) for row in rows)
        return [
            one for one in words if one.doc_id in doc_ids and (until is None or one.number <= until)
        ]

    # --- who is shown what ------------------------------------------------------------------

    def lend(self, doc_ids: Iterable[str], by: str, minutes: float) -> str | None:
        """The first of some documents that is shown to nobody else, which is this reader's for some
        minutes; None without one. What was lent to them before is free again.

        Args: `by`, a browser rather than a person: two people may have one name, or one two.
        """
        now, seen = datetime.now(UTC), list[str]()
        fresh = (seen.append(one) or one for one in doc_ids)
        if self.store.there():
            # Whoever loads a page again need not wait for a disk.
            with self.store.reading() as opened:
                own, others = _lent(opened, by, now)
            found = next((one for one in fresh if one not in others), None)
            soon = (now + timedelta(minutes=minutes / 2)).isoformat()
            if own.get(found or "", "") > soon or (found is None and not own):
                return found
        with self.store.writing(durable=False) as opened:
            _, others = _lent(opened, by, now)
            found = next((one for one in chain([*seen], fresh) if one not in others), None)
            opened.run("delete from loans where by = ? or until <= ?", [by, now.isoformat()])
            if found is not None:
                until = (now + timedelta(minutes=minutes)).isoformat()
                opened.run("delete from loans where doc_id = ?", [found])
                opened.run("insert into loans values (?, ?, ?)", [found, by, until])
        return found

    def _return(self, opened: Connection, doc_ids: Iterable[str]) -> None:
        for one in doc_ids:
            opened.run("delete from loans where doc_id = ?", [one])

    # --- all kinds --------------------------------------------------------------------------

    def last(self) -> int:
        """The number of the newest word of any kind, 0 before any: how far a night has read."""
        return self.store.last()

    def erase(self, doc_ids: Iterable[str]) -> int:
        """Remove every word about some documents, and all traces of it. Returns: words removed."""
        return self.store.erase([*doc_ids])

    def copy(self, to: Path) -> None:
        """Write the journal as it is now to a SQLite file; an empty one writes nothing."""
        self.store.copy(to)

    def news(self, after: int) -> tuple[list[Name], list[Said], list[Shape]]:
        """Every word of each kind after a number, oldest first, all of one moment."""
        if not self.store.there():
            return [], [], []
        try:
            with self.store.reading() as opened:
                return (
                    _rows(opened, Name, after), _rows(opened, Said, after),
                    _rows(opened, Shape, after),
                )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise self.store.damaged(str(error)) from error

    def _read(self, kind: type[Word], after: int, until: int | None = None) -> list[Word]:
        if not self.store.there():
            return []
        try:
            with self.store.reading() as opened:
                words = _rows(opened, kind, after)
        except (ValueError, TypeError) as error:
            raise self.store.damaged(str(error)) from error
        return [one for one in words if until is None or one.number <= until]

    def _write(self, kind: type[Word], values: list[Any], by: str | None) -> Word:
        who = cleaned(by or login(), "by")
        with self.store.writing() as opened:
            return _add(opened, kind, values, who)


_TABLE: dict[type[Any], str] = {Name: "names", Said: "labels", Shape: "shapes"}


def _word(kind: type[Word], row: Sequence[Any]) -> Word:
    *values, at = row
    return kind(*values, at=datetime.fromisoformat(at))


def _rows(opened: Connection, kind: type[Word], after: int) -> list[Word]:
    columns = ", ".join(one.name for one in fields(kind))
    query = f"select {columns} from {_TABLE[kind]} where number > ? order by number"
    return [_word(kind, row) for row in opened.rows(query, [after])]


def _lent(opened: Connection, by: str, now: datetime) -> tuple[dict[str, str], set[str]]:
    """Until when a reader has which documents, and those that others have."""
    query = "select doc_id, by, until from loans where until > ?"
    rows = opened.rows(query, [now.isoformat()])
    own = {doc_id: until for doc_id, who, until in rows if who == by}
    return own, {doc_id for doc_id, who, _ in rows if who != by}


def standing(words: Iterable[Shape]) -> list[Shape]:
    """The newest word about each cluster's shape, without those taken back."""
    newest = {one.cluster_id: one for one in words}
    kept = (one for one in newest.values() if one.verb != "leave")
    return sorted(kept, key=lambda one: one.number)


def _add(opened: Connection, kind: type[Word], values: list[Any], by: str) -> Word:
    """Write a word; its time is after that of the word before it."""
    table, number, at = _TABLE[kind], opened.number(), datetime.now(UTC)
    for (newest,) in opened.rows(f"select at from {table} order by number desc limit 1"):
        at = max(at, datetime.fromisoformat(newest) + timedelta(microseconds=1))
    row = [number, *values, by, at.isoformat()]
    marks = ", ".join("?" * len(row))
    columns = ", ".join(one.name for one in fields(kind))
    opened.run(f"insert into {table} ({columns}) values ({marks})", row)
    return _word(kind, row)


def holding(words: Iterable[Said]) -> dict[str, Said]:
    """The newest label of each document that was not taken back, by id."""
    words = list(words)
    undone = {one.undoes for one in words if one.kind == "undo"}
    return {one.doc_id: one for one in words if one.kind == "label" and one.number not in undone}


def _with(word: Said, **changes: Any) -> Said:
    return Said(**{**{one.name: getattr(word, one.name) for one in fields(Said)}, **changes})


def open_journal(url: str, lake: str, pipeline: str, reports: str) -> Journal:
    """A pipeline's journal: in Postgres where a URL is given, else in a file.

    Args: `journal` of the pipelines file; else as `journal_path`.
    Raises: ConfigError for another URL.
    """
    if not url:
        return Journal(journal_path(lake, pipeline, reports))
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError(
            f"journal: found a URL of {url.split('://')[0]!r}, expected postgresql://... or "
            "nothing, for a SQLite file beside the tables."
        )
    return Journal(PostgresStore(url, pipeline))


def journal_path(lake: str, pipeline: str, reports: str) -> Path:
    """Where a pipeline's journal lies: beside its tables where they are in a local folder.

    Args: the lake's resolved URI; the folder of the reports, which holds the journals of a lake
    elsewhere.
    """
    local = lake.removeprefix("file://")
    root = Path(reports) / "journals" if "://" in local else Path(local)
    return root / pipeline / "journal.sqlite"


def cleaned(text: str, what: str, most: int = LONGEST) -> str:
    """Words on one line, without blanks around them or characters that cannot be shown.

    Raises: ConfigError unless 1 to `most` characters are left; `what` says which words were meant.
    """
    line = " ".join(clean(text).split())
    if not 1 <= len(line) <= most:
        raise WordsError(what, line, most)
    return line


def label_of(said: str, known: Collection[str], what: str = "label") -> str:
    """A label as a person says it: one that is there as it is there, a new one cleaned.

    A source may bring labels that no person would be let give, longer or with two blanks in a row;
    who accepts one must not make another of it. A form changes how lines end, and blanks are easily
    lost on the way, so those make no difference where only one label is meant.
    Raises: ConfigError for a new label that cannot be one.
    """
    if said in known:
        return said
    line = " ".join(clean(said).split())
    alike = [one for one in known if " ".join(clean(one).split()) == line] if line else []
    return alike[0] if len(alike) == 1 else cleaned(said, what)


def person(by: str) -> str:
    """The name of a person who labels.

    Raises: ConfigError for one that cannot be told from a source or a cluster.
    """
    name = cleaned(by, "by")
    if is_person(name):
        return name
    raise ConfigError(f"by: found {name!r}, which is no person's name here. Give another.")


def is_person(by: str) -> bool:
    """Whether a label that is signed so was given by a person."""
    return by != NO_PERSON[0] and not by.startswith(NO_PERSON[1])


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
