"""Who may write: one holder per pipeline, across machines; one per GPU, on this one.

A pipeline's lease is the newest entry in the log of a Delta table without rows, `leases`, beside
its tables: a commit is atomic in every store that delta-rs opens, so of two that reach for it one
fails. The holder renews it. Who waits takes it over once it has not changed for as long as it
says, by the waiter's own clock, so that clocks need not agree. Each taking has a higher number, its
token. Every commit of the holder carries it, and a takeover first writes its own into every table:
the tables themselves refuse a holder that was only asleep (a fencing token, after Kleppmann 2016).
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import ConfigError, PassingError
from .tables import Lake, passing

log = logging.getLogger(__name__)

TABLE, APP = "leases", "nightshift.lease"
BEATS = 4
"""Renewals within the time after which a lease is taken over."""


@dataclass(frozen=True)
class Entry:
    """The newest entry of a pipeline's lease."""

    token: int
    """Higher than all before, and than any that a commit to the tables carries."""
    version: int
    """The newest renewal."""
    holder: str
    """Process and machine, in words; empty: the lease is free."""
    place: str
    """Machine and lock file: whoever locks the same file knows that the holder is dead. Empty where
    the holder has no lock."""
    run: str
    """The holder's flow run of Prefect."""
    seconds: float
    """After so long without a renewal another may take it."""
    at: datetime

    @property
    def free(self) -> bool:
        """Whether nobody holds it."""
        return not self.holder

    @property
    def fresh(self) -> bool:
        """Whether it was renewed in time, if the holder's clock is right."""
        return (datetime.now(UTC) - self.at).total_seconds() < self.seconds


class Lease:
    """A pipeline's lease, held or wanted.

    Args: the pipeline's tables; after how many seconds of silence another may take it; who holds it
    and in which flow run, for whoever waits.
    """

    def __init__(self, lake: Lake, seconds: float, holder: str = "", run: str = ""):
        self._lake, self._uri = lake, f"{lake.root}/{TABLE}"
        self._seconds, self._holder, self._run = seconds, holder, run
        self._table: Any = None
        self._place = ""
        self._token = 0
        self._done = threading.Event()
        self._beating: threading.Thread | None = None

    def look(self) -> Entry | None:
        """The newest entry; None where there never was one.

        Raises: PassingError when the store does not answer.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with passing(f"reading the lease at {self._uri}"):
            try:
                self._table = DeltaTable(self._uri, storage_options=self._lake.storage)
            except TableNotFoundError:
                return None
            return _entry(self._table)

    def take(self, seen: Entry | None, place: str) -> bool:
        """Take it from whom `seen` names; False where another was faster.

        One that was not free is fenced: what its holder may still write is refused.
        """
        if self._table is None:
            self._table = self._create()
            if self._table is None or _entry(self._table) is not None:
                return False  # another made it meanwhile
        number = self._table.version() + 1
        # A restored copy has tables that were written under a lease, and no lease.
        token = max(number, (self._lake.newest_token() if seen is None else seen.token) + 1)
        if not self._write(number, self._holder, place, token):
            return False
        self._token, self._place = token, place
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()
        try:
            self._lake.hold(token, fence=seen is not None and not seen.free)
        except BaseException:
            # Not given back: whoever takes it next has to fence again.
            self._done.set()
            self._lake.let_go()
            raise
        return True

    def release(self) -> None:
        """Give it back; where the store does not answer it expires."""
        self._done.set()
        if self._beating is not None:
            self._beating.join(5)
        with suppress(PassingError, ConfigError):
            self._renew(holder="")
        self._lake.let_go()

    def clear(self, seen: Entry) -> bool:
        """Free a lease whose holder is gone; False where it has moved on since `seen`."""
        now = self.look()
        if now is None or now.version != seen.version:
            return False
        token = max(now.version, now.token) + 1
        # Held for a moment, since only a holder may fence.
        if not self._write(now.version + 1, "clearing", "", token):
            return False
        self._token = token
        self._lake.hold(token, fence=True)
        self.release()
        return True

    def _beat(self) -> None:
        while not self._done.wait(self._seconds / BEATS):
            try:
                if not self._renew(self._holder):
                    self._lake.lose()
                    log.warning("night     silent for too long: another took this night over")
                    return
            except (PassingError, ConfigError) as error:
                log.warning("night     its lease could not be renewed: %s", error)

    def _renew(self, holder: str) -> bool:
        """Write another entry; False where the lease is no longer ours."""
        if self._write(self._table.version() + 1, holder, self._place, self._token):
            return True
        # A commit whose confirmation was lost looks like another's, so ask.
        now = self.look()
        if now is None or now.token != self._token:
            return False
        return self._write(now.version + 1, holder, self._place, self._token)

    def _write(self, number: int, holder: str, place: str, token: int) -> bool:
        from deltalake import CommitProperties, Transaction
        from deltalake.exceptions import CommitFailedError

        said = {
            "holder": holder,
            "place": place,
            "run": self._run,
            "token": str(token),
            "seconds": str(self._seconds),
            "at": datetime.now(UTC).isoformat(),
        }
        with passing(f"writing the lease at {self._uri}"):
            try:
                self._table.create_write_transaction(
                    [], "append", pa.schema([("night", pa.string())]),
                    # Of two commits by the same application the second one fails.
                    commit_properties=CommitProperties(
                        said, app_transactions=[Transaction(APP, number)]
                    ),
                )  # fmt: skip
            except CommitFailedError:
                return False
            self._table.update_incremental()
        return True

    def _create(self) -> Any:
        """The table, made now; None where another was faster by a moment."""
        from deltalake import DeltaTable
        from deltalake.exceptions import CommitFailedError

        with passing(f"creating the lease at {self._uri}"), suppress(CommitFailedError):
            return DeltaTable.create(
                self._uri, pa.schema([("night", pa.string())]), mode="ignore", name=TABLE,
                storage_options=self._lake.storage,
                # Nobody asks for old entries.
                configuration={
                    "delta.enableExpiredLogCleanup": "true",
                    "delta.logRetentionDuration": "interval 1 hours",
                },
            )  # fmt: skip
        return None


def _entry(table: Any) -> Entry | None:
    """The newest entry of its log; None where it was made, and never taken."""
    # delta-rs lets who lost a race for version 0 make the table once more, behind whoever took it.
    found = (one for some in (1, None) for one in table.history(some) if "token" in one)
    one = next(found, None)
    if one is None:
        return None
    return Entry(
        int(one["token"]), table.version(), one["holder"], one["place"], one["run"],
        float(one["seconds"]), datetime.fromisoformat(one["at"]),
    )  # fmt: skip


class Watch:
    """Tells when a lease has not changed for as long as it says, by our own clock."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._version: int | None = -1
        self._since = 0.0
        self.moved = False
        """Whether its holder was seen to renew it."""

    def expired(self, seen: Entry | None) -> bool:
        """Whether it has been like that for too long."""
        version = seen.version if seen else None
        if version != self._version:
            self.moved = self._version != -1 and seen is not None and not seen.free
            self._version, self._since = version, time.monotonic()
        # One that nobody holds belongs to whoever has the lock; they are given our own patience.
        patience = seen.seconds if seen and not seen.free else self._seconds
        return time.monotonic() - self._since > patience


# --- devices ----------------------------------------------------------------------------------


@contextmanager
def on_device(name: str | None, holder: str) -> Iterator[float]:
    """Hold a device of this machine, after so many seconds; None, a processor, is everybody's.

    Args: the device's name, such as a GPU's own id; who holds it, for whoever waits.
    """
    if name is None:
        yield 0.0
        return
    began = time.monotonic()
    handle = _open_for_all(device_path(name))
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("device    %s is held by %s; waiting for it", name, _said_in(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
            log.info("device    %s is free", name)
        handle.seek(0)
        handle.truncate()
        handle.write(f"{holder} ({this_process()})")
        handle.flush()
        yield time.monotonic() - began


def device_path(name: str) -> Path:
    """The file whose lock means: this device is in use. One for all users of the machine."""
    folder = os.environ.get("NIGHTSHIFT_DEVICE_LOCKS") or tempfile.gettempdir()
    safe = "".join(one if one.isalnum() or one in "-." else "-" for one in name)
    return Path(folder) / f"nightshift-device-{safe}.lock"


def _open_for_all(path: Path) -> Any:
    """A lock file that other users of the machine can lock, too; no link is followed."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # First without O_CREAT, which kernels refuse for another user's file in a shared folder.
        number = os.open(path, flags)
    except FileNotFoundError:
        number = os.open(path, flags | os.O_CREAT, 0o666)
        with suppress(PermissionError):
            os.fchmod(number, 0o666)
    return os.fdopen(number, "r+")


def _said_in(handle: Any) -> str:
    handle.seek(0)
    return handle.read().strip() or "another process"


def this_process() -> str:
    """This process, in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"
