"""The command line. Heavy modules are imported inside commands, so that `--help` is fast."""

from __future__ import annotations

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

app.registered_commands.sort(
    key=lambda one: SUBJECTS.index(one.callback.__module__) if one.callback else 0
)


def main() -> None:
    """Entry point of the command `nightshift`."""
    calm_threads()
    plain_streams()
    log_lines()
    with spoken_errors():
        keep_private()
        app()


if __name__ == "__main__":
    main()
