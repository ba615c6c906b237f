"""One night of a pipeline at a time: on this machine by a lock, across machines by a lease.

The lock goes with the process that holds it, so that a night that was killed is taken over at once.
The lease (`nightshift/leases.py`) is what counts: it also tells of other machines, and of a process
that holds the lock and does nothing any more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nightshift.errors import BusyError
from nightshift.leases import Entry, Lease, Watch, this_process
from nightshift.pipeline import Pipeline, Settings
from nightshift.tables import Lake

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@contextmanager
def alone(
    settings: Settings, name: str, pipeline: Pipeline, run: str = ""
) -> Iterator[Entry | None]:
    """Only one night of a pipeline runs at a time; yields whom it was taken over from, if anyone.

    Args: `run`, the flow run that holds it, which whoever takes it over will bury.
    Raises: BusyError when another runs and `when_busy` is `leave`.
    """
    path = lock_path(settings, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease(lake_of(settings, name), settings.lease_seconds, this_process(), run)
    with path.open("a+") as handle:
        seen = _wait_for(lease, handle, name, pipeline, settings.lease_seconds)
        handle.seek(0)
        handle.truncate()
        handle.write(this_process())
        handle.flush()
        try:
            yield seen if seen is not None and not seen.free else None
        finally:
            lease.release()


def _wait_for(
    lease: Lease, handle: IO[str], name: str, pipeline: Pipeline, seconds: float
) -> Entry | None:
    """Take the lease as soon as it may be taken; returns the entry that it replaces."""
    place, watch, locked, told = _place(handle), Watch(seconds), False, False
    while True:
        locked = locked or _locked(handle)
        seen = lease.look()
        # Who has the lock knows that whoever had the lease with it is dead.
        mine = locked and (seen is None or seen.free or seen.place == place)
        if (mine or watch.expired(seen)) and lease.take(seen, place if locked else ""):
            return seen
        handle.seek(0)
        holder = (seen.holder if seen else "") or handle.read().strip() or "another process"
        alive = seen is not None and not seen.free and (watch.moved or seen.fresh)
        if pipeline.when_busy == "leave" and alive:
            raise BusyError(
                f"a night of {name} is running already ({holder}). This one leaves, as "
                "`when_busy: leave` says; nothing was changed."
            )
        if not told:
            log.info("night     another one of %s is running (%s); waiting for it", name, holder)
            told = True
        time.sleep(min(POLL_SECONDS, seconds / 10))


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(handle: IO[str]) -> str:
    """This machine's lock file, the same for containers that share its folder."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        machine = f"{uuid.getnode():x}"
    found = os.fstat(handle.fileno())
    return f"{machine}:{found.st_dev}:{found.st_ino}"


def lake_of(settings: Settings, name: str) -> Lake:
    """The pipeline's tables."""
    return Lake(settings.lake, name, settings.storage_options())


def lock_path(settings: Settings, name: str) -> Path:
    """The file whose lock means: a night of this pipeline is running on this machine."""
    return Path(settings.reports) / name / ".night.lock"


def is_running(settings: Settings, name: str) -> bool:
    """Whether some process, here or elsewhere, works on the pipeline."""
    entry, dead = _look(settings, name)
    return not dead if entry is not None else _held_here(settings, name)


def stale(settings: Settings, name: str) -> Entry | None:
    """The lease of a process that is gone, or was silent for too long; None where all is well.

    The next night takes it over by itself.
    """
    entry, dead = _look(settings, name)
    return entry if dead else None


def clear(settings: Settings, name: str) -> bool:
    """Free a stale lease; what its holder may still write is refused. False: there was none."""
    entry = stale(settings, name)
    return entry is not None and Lease(lake_of(settings, name), entry.seconds).clear(entry)


def _look(settings: Settings, name: str) -> tuple[Entry | None, bool]:
    """The lease somebody holds, and whether that one is dead or silent for too long."""
    entry = Lease(lake_of(settings, name), settings.lease_seconds).look()
    if entry is None or entry.free:
        return None, False
    if not entry.fresh:
        return entry, True
    try:
        with lock_path(settings, name).open("a+") as handle:
            return entry, entry.place == _place(handle) and _locked(handle)
    except FileNotFoundError:
        return entry, False


def _held_here(settings: Settings, name: str) -> bool:
    try:
        with lock_path(settings, name).open("a+") as handle:
            return not _locked(handle)
    except FileNotFoundError:
        return False
