"""The terminal's manners, shared by all commands: their options, their settings, their errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from nightshift.showing import masked, plain, plain_logs

if TYPE_CHECKING:
    from nightshift.pipeline import Settings

app = typer.Typer(
    name="nightshift",
    help="Works the night shift on a team's text: ingests what is new, trains a recurrent "
    "classifier, promotes it only if it is better, reclassifies, clusters, reports.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # Only where NIGHTSHIFT_DEBUG asks for a traceback; values could be secrets.
    pretty_exceptions_show_locals=False,
)

Config = Annotated[
    Path, typer.Option("--config", envvar="NIGHTSHIFT_CONFIG", help="The pipelines file.")
]
PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline of the file.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever asks later.")]
By = Annotated[str | None, typer.Option(help="Who says so; else the login name.")]
DEFAULT_CONFIG = Path("pipelines.yaml")
INTERRUPTED = 130


def settings_of(config: Path, prefect: bool = True) -> Settings:
    """The pipelines file; from here on Prefect and MLflow may be imported.

    Args: whether the command needs Prefect, whose folder is then made.
    """
    from nightshift.pipeline import load_settings

    settings = load_settings(config)
    if prefect:
        from flows.environment import prepare

        prepare(Path(settings.reports).parent / ".prefect")
    return settings


def as_text(argument: str) -> str:
    """An argument as a table would hold it: bytes that are no UTF-8 are marked."""
    return os.fsencode(argument).decode("utf-8", "replace")


def stop(message: str) -> None:
    """End the command as bad input: one message, exit code 2."""
    typer.echo(message, err=True)
    raise typer.Exit(2)


class Plain:
    """A standard stream through which nothing steers the terminal that it is shown on.

    Args: the stream; whether addresses lose their passwords, too, as on standard error, which is
    for words, and not for data.
    """

    def __init__(self, stream: TextIO, mask: bool):
        self.stream, self._mask = stream, mask

    def write(self, text: str) -> int:
        """Write it with controls spelled out."""
        self.stream.write(plain(masked(text) if self._mask else text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def plain_streams() -> None:
    """Let texts, labels and file names reach the terminal as text only."""
    sys.stdout, sys.stderr = Plain(sys.stdout, False), Plain(sys.stderr, True)  # type: ignore


class _Lines(logging.Formatter):
    """A record that has several lines: those after the first are indented, and pass for no
    record of their own."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n  ")


def log_lines() -> None:
    """The night's own lines on standard error; a time in front where no person watches."""
    terminal = sys.stderr.isatty()
    plain_logs()
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Lines("%(message)s" if terminal else "%(asctime)s %(message)s", "%H:%M:%S")
    )
    for name in ("nightshift", "tasks", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


@contextmanager
def spoken_errors() -> Iterator[None]:
    """Errors a person can act on are one message; the rest says how to see where it came from."""
    from nightshift.errors import NightshiftError

    try:
        yield
    except NightshiftError as error:
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer makes a silent exit of Ctrl-C, with the code that shells give it.
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        typer.echo("interrupted; run the same command again to go on from here.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("NIGHTSHIFT_DEBUG"):
            raise
        typer.echo(
            f"unexpected {type(error).__name__}: {error}\nThis is a fault of Nightshift, or of "
            "something below it. Set NIGHTSHIFT_DEBUG=1 to see where it happened.",
            err=True,
        )
        sys.exit(1)
