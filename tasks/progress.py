"""Progress a person can see: a bar in a terminal, a line now and then elsewhere, and on Prefect's
page of the run."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from uuid import UUID

from prefect.context import TaskRunContext

log = logging.getLogger("nightshift.progress")
Item = TypeVar("Item")

SAY_EVERY_SECONDS = 15.0
SHOW_AFTER_SECONDS, SHOW_EVERY_SECONDS = 3.0, 2.0
"""Prefect's page is told of what takes longer than the first, as often as the second."""


class Shown:
    """A progress artifact of the task run there is; outside one, and while Prefect does not answer,
    nothing is shown."""

    def __init__(self, doing: str, after: float = SHOW_AFTER_SECONDS):
        self._doing = doing
        self._next = time.monotonic() + after
        self._artifact: UUID | None = None
        self._silent = TaskRunContext.get() is None

    def at(self, share: float, words: str = "") -> None:
        """Show how far it is.

        Args: a share from 0 to 1; what was reached.
        """
        now, done = time.monotonic(), share >= 1
        if self._silent or (now < self._next and not (done and self._artifact)):
            return
        self._next = now + SHOW_EVERY_SECONDS
        try:
            self._tell(100 * min(share, 1.0), f"{self._doing}: {words}" if words else self._doing)
        except Exception as error:  # what is only shown must not end a night
            self._silent = True
            log.info("%s: progress is no longer shown (%s)", self._doing, type(error).__name__)

    def _tell(self, percent: float, words: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._artifact is None:
            key = "progress-" + re.sub(r"[^a-z0-9]+", "-", self._doing.lower()).strip("-")
            made: Any = create_progress_artifact(percent, key, words)
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, percent, words)


def track(
    items: Iterable[Item], total: int | None, doing: str, shown: bool = True
) -> Iterator[Item]:
    """Pass items through, telling how far they are; short work stays silent off a terminal.

    Args: `shown` is false for what is part of something longer whose progress is shown.
    """
    if sys.stderr.isatty():
        items = _bar(items, total, doing)
    page = Shown(doing) if shown and total else None
    said = time.monotonic()
    for number, item in enumerate(items):
        yield item
        if page is not None and total:
            page.at((number + 1) / total, f"{number + 1} of {total}")
        if time.monotonic() - said >= SAY_EVERY_SECONDS and not sys.stderr.isatty():
            said = time.monotonic()
            log.info("%s: %d%s", doing, number + 1, f" of {total}" if total else "")


def _bar(items: Iterable[Any], total: int | None, doing: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track as bar

    # Past the command line's plain stream: a bar steers the terminal, and its words are our own.
    console = Console(file=getattr(sys.stderr, "stream", sys.stderr))
    yield from bar(items, f"  {doing}", total, console=console, transient=True, show_speed=False)
