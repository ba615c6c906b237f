"""What reviewers are asked and what they say, without any HTTP.

    newest published night -> its index (made by a process of its own) -+
    journal: words about documents, as they are said -------------------+-> the next question

Nobody is asked twice: what a person said, here or in another process, is seen before each question.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nightshift.errors import ConfigError, NightshiftError
from nightshift.journal import Journal, Said, holding
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

LOAN_MINUTES = 10.0
"""How long a document that is shown to one person is not given to another."""
LOOK_SECONDS = 10.0
"""Between looks at whether a newer night is published."""
MOST_ASKED = 1_000
"""Documents of a queue among which one is looked for that is free."""
MOST_FOUND = 500
"""Documents that a search finds."""


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
        self._journal, self._lock, self._last = journal, threading.Lock(), 0
        self._about: dict[str, list[Said]] = {}
        self.holds: dict[str, Said] = {}
        """The label that stands, by document."""
        self._skipped: dict[str, set[str]] = {}

    def read_on(self) -> None:
        """Take in what was said since the last call, by anybody."""
        with self._lock:
            fresh = self._journal.said(self._last)
            for word in fresh:
                self._about.setdefault(word.doc_id, []).append(word)
                self._last = word.number
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
        return sorted({one.label for one in list(self.holds.values()) if one.label})


# --- the desk ---------------------------------------------------------------------------------


class Review:
    """One pipeline's questions and answers."""

    def __init__(self, settings: Settings, pipeline: str, config: Path):
        self.pipeline, self.journal = pipeline, settings.journal_of(pipeline)
        self.shelf = Shelf(settings, pipeline, config)
        self.words = Words(self.journal)

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
        raise ConfigError(f"queue: found {queue[:60]!r}, expected {', '.join(QUEUES)}, "
                          "`cluster ID` or `search WORDS`.")  # fmt: skip

    def open_in(self, queue: str, by: str) -> Iterator[str]:
        """Ids of a queue's documents about which a person may be asked."""
        self.words.read_on()
        return (one for one in self.members(queue) if self.words.is_open(one, by))

    def next(self, queue: str, by: str) -> Doc | None:
        """The next document of a queue that nobody else looks at, which is now this person's."""
        found = self.journal.lend(islice(self.open_in(queue, by), MOST_ASKED), by, LOAN_MINUTES)
        return None if found is None else self.index.doc(found)

    def doc(self, doc_id: str) -> Doc:
        """A document by its id. Raises: ConfigError for one that the night had not."""
        self.words.read_on()
        found = self.index.doc(doc_id)
        if found is None:
            raise ConfigError(f"document: {self.pipeline} has none with the id {doc_id[:80]!r}.")
        return found

    def left(self, queue: str, by: str) -> int:
        """Documents of one of QUEUES that are still open to a person."""
        return sum(1 for _ in self.open_in(queue, by))

    def say(self, doc_id: str, label: str | None, queue: str, by: str) -> Said:
        """Label a document; None: of no class. Raises: ConfigError."""
        doc = self.doc(doc_id)
        before, _ = self.words.label(doc)
        return self.journal.say_label(doc.doc_id, label, before, queue, by)

    def skip(self, doc_id: str, queue: str, by: str) -> Said:
        """Pass a document over; others may still be asked."""
        return self.journal.skip(self.doc(doc_id).doc_id, queue, by)

    def classes(self) -> list[str]:
        """Every class, the most frequent first, then those that people made since."""
        known = self.index.about["classes"]
        given = [one.class_name for one in self.journal.names().values() if one.class_name]
        return list(dict.fromkeys([*known, *self.words.classes(), *given]))

    # --- clusters ---------------------------------------------------------------------------

    def clusters(self) -> list[dict[str, Any]]:
        """Tonight's clusters, with what people said of them since: `word`, `shape`."""
        names = self.journal.names()
        shapes = {one.cluster_id: one for one in self.journal.shapes(self.index.about["words"])}
        return [
            {**row, "word": names.get(one), "shape": shapes.get(one)}
            for one, row in self.index.clusters.items()
        ]

    def living(self, cluster_id: str) -> str:
        """The id of a living cluster itself. Raises: ConfigError for any other."""
        if cluster_id not in self.index.clusters:
            raise ConfigError(f"cluster: {cluster_id[:40]!r} does not live; it may have ended.")
        return cluster_id

    def name(self, cluster_id: str, name: str, class_name: str | None, by: str) -> None:
        """Name a living cluster; with a class, its documents become examples of it.

        Without one the class said before stays, as with `nightshift name`.
        """
        before = self.journal.names().get(self.living(cluster_id))
        kept = before.class_name if before and class_name is None else class_name
        self.journal.say_name(cluster_id, name, kept, by)
