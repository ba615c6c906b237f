"""One night of a pipeline at a time: a lock that goes with the process that holds it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nightshift.errors import BusyError
from nightshift.pipeline import Pipeline, Settings

log = logging.getLogger(__name__)


@contextmanager
def alone(settings: Settings, name: str, pipeline: Pipeline) -> Iterator[None]:
    """Only one night of a pipeline runs at a time; the lock goes with the process that holds it.

    Raises: BusyError when another runs and `when_busy` is `leave`.
    """
    path = lock_path(settings, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            if pipeline.when_busy == "leave":
                raise BusyError(
                    f"a night of {name} is running already ({holder}). This one leaves, as "
                    "`when_busy: leave` says; nothing was changed."
                ) from None
            log.info("night     another one of %s is running (%s); waiting for it", name, holder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def lock_path(settings: Settings, name: str) -> Path:
    """The file whose lock means: a night of this pipeline is running."""
    return Path(settings.reports) / name / ".night.lock"


def is_running(settings: Settings, name: str) -> bool:
    """Whether some process on this machine holds the pipeline's lock."""
    try:
        with lock_path(settings, name).open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
