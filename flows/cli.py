"""The command line. Heavy modules are imported inside commands, so that `--help` is fast."""

from __future__ import annotations

import atexit
import gc
import sys
from importlib.abc import MetaPathFinder

from flows.commands import (
    documents,
    insight,
    models,
    nights,
    operate,
    parts,
    review,
    schedules,
    setup,
)  # fmt: skip
from flows.environment import calm_threads, keep_private
from flows.terminal import app, log_lines, plain_streams, spoken_errors

SUBJECTS = [
    one.__name__
    for one in (setup, nights, schedules, parts, models, insight, review, documents, operate)
]
"""Their commands stand in `--help` in this order; imports are in that of the alphabet."""

WITHOUT_PANDAS = {"status", "clusters"}
"""Commands that print a few rows and end. Arrow imports pandas with its first table, if it can:
that takes nearly as long as all else they do, and they need none of it."""

app.registered_commands.sort(
    key=lambda one: SUBJECTS.index(one.callback.__module__) if one.callback else 0
)


class _Hide(MetaPathFinder):
    """Importing a package fails as if it were not installed."""

    def __init__(self, package: str):
        self._package = package

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == self._package:
            raise ModuleNotFoundError(f"{fullname} is not used by this command", name=fullname)


def main() -> None:
    """Entry point of the command `nightshift`."""
    if WITHOUT_PANDAS & {*sys.argv[1:2]}:
        sys.meta_path.insert(0, _Hide("pandas"))
    # Prefect and MLflow make half a million objects as they are imported, which Python's collector
    # would look through 700 at a time, and find no rubbish: a fifth of their import.
    gc.set_threshold(10_000)
    # And once more, for a second, as the process ends.
    atexit.register(gc.freeze)
    calm_threads()
    plain_streams()
    log_lines()
    with spoken_errors():
        keep_private()
        app()


if __name__ == "__main__":
    main()
