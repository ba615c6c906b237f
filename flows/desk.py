"""One thread answers what `nightshift serve` is asked, several requests in a pass where it can.

Torch uses the cores within a pass: passes beside one another only wait for each other.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.asked import Asked, RefusedError
from flows.predicting import ANSWERED

if TYPE_CHECKING:
    from nightshift.bundle import Bundle

TOGETHER = 256
"""Texts of waiting requests that are answered in one pass."""
MOST_WAITING = 10_000
"""Texts that may wait; who comes then is told to come again, before all wait for minutes."""


@dataclass(frozen=True)
class Champion:
    """A loaded bundle and the version it is."""

    version: int
    bundle: Bundle


@dataclass
class Job:
    """A request's texts, the champion of the moment it came, and where its answers go."""

    champion: Champion
    asked: Asked
    rows: Future[list[dict[str, Any]]] = field(default_factory=Future)

    def fits(self, other: Job) -> bool:
        """Whether one pass can answer both."""
        return other.champion is self.champion and other.asked.vectors == self.asked.vectors


class Desk:
    """Takes all that came meanwhile into its next pass."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.texts = 0
        """How many wait."""

    def ask(self, job: Job) -> Future[list[dict[str, Any]]]:
        """Put a request behind those that wait.

        Raises: RefusedError where too many do.
        """
        new = len(job.asked.texts)
        with self._changed:
            if self._waiting and self.texts + new > MOST_WAITING:
                expected = f"at most {MOST_WAITING}; ask again later"
                raise RefusedError("server", f"{self.texts + new} texts waiting", expected, 503)
            self._waiting.append(job)
            self.texts += new
            self._changed.notify()
        return job.rows

    def close(self) -> None:
        """Let the thread end when nothing waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def work(self) -> None:
        """Answer until closed."""
        while jobs := self._take():
            jobs = [job for job in jobs if job.rows.set_running_or_notify_cancel()]
            try:
                _answer(jobs)
            except Exception:
                # One text must not cost the others their answers.
                for job in jobs:
                    try:
                        _answer([job])
                    except Exception as error:
                        job.rows.set_exception(error)

    def _take(self) -> list[Job]:
        """The oldest request and those behind it that fit into its pass; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            jobs: list[Job] = []
            texts = 0
            while self._waiting and (not jobs or jobs[0].fits(self._waiting[0])):
                texts += len(self._waiting[0].asked.texts)
                if jobs and texts > TOGETHER:
                    break
                jobs.append(self._waiting.popleft())
                self.texts -= len(jobs[-1].asked.texts)
            return jobs


def _answer(jobs: list[Job]) -> None:
    """Answer requests of one champion in one pass."""
    if not jobs:
        return
    texts = [text for job in jobs for text in job.asked.texts]
    top = max(job.asked.top for job in jobs)
    rows = iter(jobs[0].champion.bundle.answer(texts, top, jobs[0].asked.vectors))
    answers = [[_row(next(rows), job.asked) for _ in job.asked.texts] for job in jobs]
    for job, answer in zip(jobs, answers, strict=True):
        job.rows.set_result(answer)


def _row(answer: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """All keys, whatever the model and the text; as many labels as this request wants."""
    row = {**ANSWERED, **({"vector": None} if asked.vectors else {}), **answer}
    return {**row, "top": row["top"][: asked.top]} if row["top"] else row
