"""Settings that Prefect, MLflow and tokenizers read once, at import: call before importing them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nightshift.errors import ConfigError

THREADS = {
    # Threads that spin long while they wait for one another made training 7 to 16 times slower
    # when a second process was busy on two cores. This many turns: 1.6 times, and 5% when idle.
    "GOMP_SPINCOUNT": "2000",
    # NumPy's spin for 30 ms after a product (2 to the 26th cycles), on the core that torch's second
    # thread needs: answers to 64 texts and more took 1.6 to 2 times as long, and twice the power.
    "OPENBLAS_THREAD_TIMEOUT": "4",
}
"""How long threads wait awake: read when NumPy and torch are imported."""


def calm_threads() -> None:
    """Threads that wait sleep soon, unless the environment says otherwise."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)


def prepare(home: Path) -> None:
    """Embedded, quiet and without telemetry, wherever the environment does not say otherwise.

    Args: the folder where an embedded Prefect keeps its database.
    """
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # A first start on a busy machine took 18 s; Prefect's own patience is 20.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # Two minutes instead of one, and also while the server's own database is away.
        "PREFECT_CLIENT_MAX_RETRIES": "6",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        # Prefect records everything; the terminal belongs to the night's own lines.
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nightshift,tasks,flows",
        # The same lines of the library also come from processes that run no flow.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "true",
        **THREADS,
    }
    # Two servers on one database would be in each other's way.
    defaults |= environment_of_up(home)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    home.mkdir(parents=True, exist_ok=True)


def environment_of_up(home: Path) -> dict[str, str]:
    """Where the server and the pages of a `nightshift up` are that runs on this folder, if any."""
    try:
        with (home / "up.lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return {}  # nobody holds it: what is written down was left by a kill
    except BlockingIOError:
        with suppress(OSError, ValueError):
            return json.loads((home / "up.json").read_text(encoding="utf-8"))["environment"]
    except OSError:
        pass
    return {}


def keep_private() -> None:
    """Files and folders made from here on are their owner's alone; harmless to repeat.

    All that a night writes holds texts, or what was learned from them: tables, pages, models,
    journals, exports. The umask is never widened, unless NIGHTSHIFT_UMASK says which it shall be.
    """
    said = os.environ.get("NIGHTSHIFT_UMASK")
    before = os.umask(0o077)
    try:
        os.umask(before | 0o077 if said is None else int(said, 8) & 0o777)
    except ValueError:
        raise ConfigError(
            f"NIGHTSHIFT_UMASK: found {said!r}, expected octal digits, such as 0027 for a group "
            "that may read. Correct it, or unset it."
        ) from None


@contextmanager
def apart(home: Path) -> Iterator[None]:
    """An embedded Prefect of its own, whatever server the environment names.

    Args: its folder. Only what has not imported Prefect yet is told.
    """
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("PREFECT_"):
            del os.environ[name]
    prepare(home)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
