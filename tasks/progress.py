"""Progress a person can see: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

log = logging.getLogger("nightshift.progress")
Item = TypeVar("Item")

SAY_EVERY_SECONDS = 15.0


def track(items: Iterable[Item], total: int | None, doing: str) -> Iterator[Item]:
    """Pass items through, telling how far they are; short work stays silent off a terminal."""
    if sys.stderr.isatty():
        yield from _bar(items, total, doing)
        return
    said = time.monotonic()
    for number, item in enumerate(items):
        yield item
        if time.monotonic() - said >= SAY_EVERY_SECONDS:
            said = time.monotonic()
            log.info("%s: %d%s", doing, number + 1, f" of {total}" if total else "")


def _bar(items: Iterable[Any], total: int | None, doing: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(
        items, f"  {doing}", total, console=Console(stderr=True), transient=True, show_speed=False
    )
