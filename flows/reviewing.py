"""What reviewers are asked and what they say, without any HTTP.

    newest published night -> its index (made by a process of its own) -+
    journal: words about documents, as they are said -------------------+-> the next question

Nobody is asked twice: what a person said, here or in another process, is seen before each question.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from nightshift.errors import ConfigError, NightshiftError
from nightshift.journal import Journal, Name, Said, Shape, holding, label_of, standing
from nightshift.pipeline import Settings, load_settings
from nightshift.queues import (
    QUEUES,
    Doc,
    Index,
    build_index,
    index_folder,
    index_path,
    remove_indexes,
)
from nightshift.tables import Lake

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "review"
LANGUAGES = ("en", "zh")
LOAN_MINUTES = 10.0
"""How long a document that is shown to one person is not given to another."""
LOOK_SECONDS = 10.0
"""Between looks at whether a newer night is published."""
MOST_ASKED = 1_000
"""Documents of a queue among which one is looked for that is free."""
MOST_FOUND = 500
"""Documents that a search finds."""
LEAST_ALIKE = 4
"""Characters from which on names that differ in one may be one name: `cat` and `car` are two."""
QUEUE = re.compile(rf"{'|'.join(QUEUES)}|cluster [\w-]{{1,40}}|search .{{0,200}}", re.DOTALL)
"""What may be noted as the place where a person met a document."""


@cache
def strings() -> dict[str, dict[str, str]]:
    """All words of the interface by language."""
    table = json.loads((FOLDER / "strings.json").read_text(encoding="utf-8"))
    return {
        language: {key: row[place] for key, row in table.items()}
        for place, language in enumerate(LANGUAGES)
    }


class NotDoneError(ConfigError):
    """What a person asked for cannot be done; told in their language.

    Args: which of `strings`, and what stands in its braces; the status of the answer.
    """

    def __init__(self, key: str, status: int = 400, **values: object):
        self.key, self.status, self.values = key, status, values
        super().__init__(self.told("en"))

    def told(self, language: str) -> str:
        """The message."""
        return strings()[language][self.key].format(**self.values)


# --- the index --------------------------------------------------------------------------------


def make(config: str, pipeline: str) -> None:
    """Make the newest night's index in this process, and print how far it is."""
    settings = load_settings(Path(config))
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    try:
        build_index(
            lake,
            index_folder(settings.lake, pipeline, settings.reports),
            lambda done, of: print(done, of, flush=True),
        )
    except NightshiftError as error:
        print(json.dumps(str(error)), flush=True)
        sys.exit(1)


class Shelf:
    """Holds the index of the newest published night; a thread looks for newer ones."""

    def __init__(self, settings: Settings, pipeline: str, config: Path):
        self._settings, self._pipeline, self._config = settings, pipeline, config
        self._lake = Lake(settings.lake, pipeline, settings.storage_options())
        self.folder = index_folder(settings.lake, pipeline, settings.reports)
        self.index: Index | None = None
        self.progress: tuple[int, int] | None = None
        """Documents done and in all, while a newer index is made."""
        self.problem: str | None = None
        self._made: subprocess.Popen[str] | None = None

    def watch(self, stopped: threading.Event) -> None:
        """Look every few seconds, until stopped."""
        while not stopped.is_set():
            self.look()
            stopped.wait(LOOK_SECONDS)

    def stop(self) -> None:
        """Do not wait for an index that is being made."""
        if self._made is not None:
            self._made.terminate()

    def look(self) -> None:
        """Take the newest night's index up, and make it first where it is not there."""
        try:
            published = self._lake.published()
            if published is None:
                self.problem = (
                    f"{self._pipeline} has no published night yet: nightshift run {self._pipeline}"
                )
                return
            path = index_path(self.folder, published)
            if not path.exists():
                self._make()
            if path.exists() and (self.index is None or self.index.path != path):
                fresh = Index(path)
                _ = fresh.queues, fresh.clusters  # read once, before anybody asks
                self.index = fresh
                remove_indexes(self.folder, but=path)
                log.info("review    night %s, %d documents", published["night"],
                         fresh.about["documents"])  # fmt: skip
            self.problem = None
        except Exception as error:
            # A store that is away may be back at the next look; what is shown until then stays.
            if str(error) != self.problem:
                log.warning("review    %s", error)
            self.problem = str(error)

    def _make(self) -> None:
        """In a process of its own: making it would take turns with every answer in this one."""
        code = "import sys; from flows.reviewing import make; make(*sys.argv[1:])"
        words = [sys.executable, "-c", code, str(self._config), self._pipeline]
        self.progress = (0, 0)
        try:
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as made:
                self._made = made
                assert made.stdout is not None
                said = ""
                for line in made.stdout:
                    said = line.strip()
                    if said[:1].isdigit():
                        done, total = said.split()
                        self.progress = (int(done), int(total))
            if made.returncode:
                told = f"the index could not be made: exit code {made.returncode}"
                raise NightshiftError(json.loads(said) if said.startswith('"') else told)
        finally:
            self.progress, self._made = None, None


# --- what was said ----------------------------------------------------------------------------


class Words:
    """What people said of documents, as the journal has it; read on before each question."""

    def __init__(self, journal: Journal):
        self._journal, self._lock = journal, threading.Lock()
        self._about: dict[str, list[Said]] = {}
        self.last = 0
        """The number of the newest word that was read."""
        self.holds: dict[str, Said] = {}
        """The label that stands, by document."""
        self.names: dict[str, Name] = {}
        """The newest word about each cluster's name; a name of None was taken back."""
        self._shapes: list[Shape] = []
        self._classes: tuple[int, list[str]] = (0, [])
        self._skipped: dict[str, set[str]] = {}

    def read_on(self) -> None:
        """Take in what was said since the last call, by anybody."""
        with self._lock:
            self._journal.store.hold()
            names, fresh, shapes = self._journal.news(self.last)
            if not (names or fresh or shapes):
                return
            self.names = {**self.names, **{one.cluster_id: one for one in names}}
            self._shapes = [*self._shapes, *shapes]
            for word in fresh:
                self._about.setdefault(word.doc_id, []).append(word)
            self.last = max([self.last, *(one.number for one in (*names, *fresh, *shapes))])
            for doc_id in {one.doc_id for one in fresh}:
                words = self._about[doc_id]
                held = holding(words).get(doc_id)
                if held is None:
                    self.holds.pop(doc_id, None)
                else:
                    self.holds[doc_id] = held
                undone = {one.undoes for one in words}
                for one in words:
                    if one.kind == "skip":
                        skipped = self._skipped.setdefault(one.by, set())
                        (skipped.discard if one.number in undone else skipped.add)(doc_id)

    def shapes(self, after: int) -> dict[str, Shape]:
        """What will become of clusters, as was said after a number."""
        words = standing(one for one in self._shapes if one.number > after)
        return {one.cluster_id: one for one in words}

    def is_open(self, doc_id: str, by: str) -> bool:
        """Whether a person may still be asked: nobody has labelled it, and they did not skip it."""
        return doc_id not in self.holds and doc_id not in self._skipped.get(by, ())

    def label(self, doc: Doc) -> tuple[str | None, str | None]:
        """A document's label now, and which person gave it, or None."""
        held = self.holds.get(doc.doc_id)
        if held is not None:
            return held.label, held.by
        taken_back = [one for one in self._about.get(doc.doc_id, []) if one.kind == "label"]
        if doc.of_person and taken_back:
            return taken_back[0].before, None
        return doc.label, doc.by if doc.of_person else None

    def since(self, number: int) -> Counter[str]:
        """Documents that each person labelled after a number, and the labels still stand."""
        return Counter(one.by for one in list(self.holds.values()) if one.number > number)

    def classes(self) -> list[str]:
        """Classes that people gave, which the index may not know yet."""
        last, found = self._classes
        if last != self.last:
            last, holds = self.last, list(self.holds.values())
            found = sorted({one.label for one in holds if one.label})
            self._classes = (last, found)
        return found


# --- the desk ---------------------------------------------------------------------------------


class Review:
    """One pipeline's questions and answers."""

    def __init__(self, settings: Settings, pipeline: str, config: Path):
        self.pipeline, self.journal = pipeline, settings.journal_of(pipeline)
        self.shelf = Shelf(settings, pipeline, config)
        self.words = Words(self.journal)
        self._reports = Path(settings.reports)

    @property
    def longest(self) -> int:
        """Characters of the longest class that the night knew; its source may have long ones."""
        if self.shelf.index is None:
            return 0
        return max(map(len, self.shelf.index.about["classes"]), default=0)

    @property
    def report(self) -> Path | None:
        """The newest night's page, where there is one."""
        if self.shelf.index is None:
            return None
        path = self._reports / self.pipeline / f"{self.index.about['night']}.html"
        return path if path.exists() else None

    @property
    def index(self) -> Index:
        """The newest night's. Raises: NightshiftError before there is one."""
        if self.shelf.index is None:
            raise NightshiftError(self.shelf.problem or "the index is being made")
        return self.shelf.index

    def members(self, queue: str) -> Iterable[str]:
        """Ids of a queue's documents in their order: one of QUEUES, `cluster c-0001`, or `search
        words`.

        Raises: ConfigError for another.
        """
        kind, _, rest = queue.partition(" ")
        if queue in QUEUES:
            return self.index.queues[queue]
        if kind == "cluster" and rest in self.index.clusters:
            return self.index.of_cluster(rest)
        if kind == "search":
            return self.index.search(rest, MOST_FOUND)
        raise NotDoneError("no_queue", found=queue[:60], expected=", ".join(QUEUES))

    def is_queue(self, queue: str) -> bool:
        """Whether there is such a queue tonight: a cluster's ends with the cluster."""
        kind, _, rest = queue.partition(" ")
        return queue in QUEUES or kind == "search" or (
            kind == "cluster" and rest in self.index.clusters
        )  # fmt: skip

    def open_in(self, queue: str, by: str) -> Iterator[str]:
        """Ids of a queue's documents about which a person may be asked."""
        self.words.read_on()
        return (one for one in self.members(queue) if self.words.is_open(one, by))

    def next(self, queue: str, by: str, reader: str | None = None) -> Doc | None:
        """The next document of a queue that nobody else looks at, which is now this reader's: a
        browser's, for two people may have one name.
        """
        asked = islice(self.open_in(queue, by), MOST_ASKED)
        found = self.journal.lend(asked, reader or by, LOAN_MINUTES)
        return None if found is None else self.index.doc(found)

    def doc(self, doc_id: str) -> Doc:
        """A document by its id. Raises: ConfigError for one that the night had not."""
        self.words.read_on()
        found = self.index.doc(doc_id)
        if found is None:
            raise NotDoneError("no_document", pipeline=self.pipeline, found=doc_id[:80])
        return found

    def left(self, queue: str, by: str) -> int:
        """Documents of one of QUEUES that are still open to a person."""
        return sum(1 for _ in self.open_in(queue, by))

    def say(self, doc_id: str, label: str | None, queue: str, by: str) -> Said:
        """Label a document; None: of no class. Raises: ConfigError."""
        doc = self.doc(doc_id)
        before, _ = self.words.label(doc)
        known = {*self.classes(), *(one for one in (doc.label, doc.said) if one)}
        return self.journal.say_label(doc.doc_id, label, before, _met_in(queue), by, known)

    def skip(self, doc_id: str, queue: str, by: str) -> Said:
        """Pass a document over; others may still be asked."""
        return self.journal.skip(self.doc(doc_id).doc_id, _met_in(queue), by)

    def meant(self, said: str, what: str = "label") -> str | None:
        """The class that a new name may be a slip of the pen for; None where it is none, or there.

        Raises: ConfigError for a name that cannot be one.
        """
        self.words.read_on()
        known = self.classes()
        label = label_of(said, known, what)
        return None if label in known else alike(label, known)

    def classes(self) -> list[str]:
        """Every class, the most frequent first, then those that people made since."""
        known = self.index.about["classes"]
        given = [one.class_name for one in list(self.words.names.values()) if one.class_name]
        return list(dict.fromkeys([*known, *self.words.classes(), *given]))

    # --- clusters ---------------------------------------------------------------------------

    def clusters(self) -> list[dict[str, Any]]:
        """Tonight's clusters, with what people said of them since: `word`, `shape`."""
        self.words.read_on()
        names, shapes = self.words.names, self.words.shapes(self.index.about["words"])
        return [
            {**row, "word": names.get(one), "shape": shapes.get(one)}
            for one, row in self.index.clusters.items()
        ]

    def living(self, cluster_id: str) -> str:
        """The id of a living cluster itself. Raises: ConfigError for any other."""
        if cluster_id not in self.index.clusters:
            raise NotDoneError("no_cluster", found=cluster_id[:40])
        return cluster_id

    def name(self, cluster_id: str, name: str, class_name: str | None, by: str) -> None:
        """Name a living cluster; with a class, its documents become examples of it.

        Args: the class; None keeps what was said before, as `nightshift name` does, and an empty
        one takes it back.
        """
        self.words.read_on()
        before = self.words.names.get(self.living(cluster_id))
        kept = before.class_name if before and class_name is None else class_name
        self.journal.say_name(cluster_id, name, kept or None, by, self.classes())

    def merge(self, cluster_id: str, other: str, by: str) -> None:
        """Let the next night take a living cluster into another. Raises: ConfigError."""
        if cluster_id == other:
            raise NotDoneError("merge_twice", found=cluster_id)
        after = self.index.about["words"]
        self.journal.merge(self.living(cluster_id), self.living(other), by, after)


def _met_in(queue: str) -> str:
    """A queue as it is noted; it may have ended meanwhile, which must not cost the word."""
    return queue if QUEUE.fullmatch(queue) else QUEUES[0]


def alike(label: str, known: Iterable[str]) -> str | None:
    """The known name that differs in capitals or width alone, else in one character; or None."""
    said, near = _folded(label), None
    for one in known:
        other = _folded(one)
        if other == said:
            return one
        if near is None and max(len(said), len(other)) >= LEAST_ALIKE and _one_edit(said, other):
            near = one
    return near


def _folded(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _one_edit(one: str, other: str) -> bool:
    """Whether a character more, less, or other, or two that changed places, are all the difference
    (Damerau 1964)."""
    if abs(len(one) - len(other)) > 1:
        return False
    pairs = zip(one, other, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    left, right = one[at:], other[at:]
    return (
        left[1:] == right
        or left == right[1:]
        or left[1:] == right[1:]
        or (left[:2] == right[:2][::-1] and left[2:] == right[2:])
    )
