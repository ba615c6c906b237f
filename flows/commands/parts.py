"""Commands for parts of a night: take in, train, classify again, group anew, write the page."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from flows.terminal import DEFAULT_CONFIG, Config, PipelineName, app, settings_of

Day = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="A day of a window, such as 2026-11-22."),
]


class Which(StrEnum):
    """Documents that are classified again."""

    NEW = "new"
    ALL = "all"
    WINDOW = "window"


@app.command()
def ingest(pipeline: PipelineName, config: Config = DEFAULT_CONFIG) -> None:
    """Take new files and labels into the tables, now; nothing is trained, labelled or grouped.

    The next night labels and groups what came, as does `reclassify`.

    Example: nightshift ingest headlines
    """
    settings_of(config).pipeline(pipeline)
    from flows.parts import ingest as work

    _show(work(pipeline, str(config.resolve())))


@app.command()
def train(
    pipeline: PipelineName,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Only where `train.when` sees a reason.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Train a challenger on the labels that are there, judge it, and go on with who wins.

    Example: nightshift train headlines
    """
    settings_of(config).pipeline(pipeline)
    from flows.parts import train as work

    _show(work(pipeline, not if_due, config=str(config.resolve())))


@app.command()
def reclassify(
    pipeline: PipelineName,
    which: Annotated[
        Which, typer.Argument(help="What the champion has not read, all, or some days.")
    ] = Which.NEW,
    first: Day = None,
    last: Day = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Let the champion answer again: what it has not read yet, everything, or a window of days.

    Example: nightshift reclassify headlines window --first 2026-11-01 --last 2026-11-07
    """
    settings_of(config).pipeline(pipeline)
    from flows.parts import reclassify as work

    days = (None if one is None else one.date() for one in (first, last))
    _show(work(pipeline, which.value, *days, config=str(config.resolve())))


@app.command()
def recluster(pipeline: PipelineName, config: Config = DEFAULT_CONFIG) -> None:
    """Group all documents anew, from the clusters there are, also where nothing has changed.

    Example: nightshift recluster headlines
    """
    settings_of(config).pipeline(pipeline)
    from flows.parts import recluster as work

    _show(work(pipeline, config=str(config.resolve())))


@app.command()
def report(pipeline: PipelineName, config: Config = DEFAULT_CONFIG) -> None:
    """Write the page of the newest night again: after an update, or when it was lost.

    Example: nightshift report headlines
    """
    settings_of(config).pipeline(pipeline)
    from flows.parts import report as work

    typer.echo(f"report   {work(pipeline, str(config.resolve())).report}")


@app.command()
def backfill(
    pipeline: PipelineName,
    first: Annotated[
        datetime, typer.Argument(metavar="FROM", formats=["%Y-%m-%d"], help="The first day.")
    ],
    last: Annotated[
        datetime, typer.Argument(metavar="TO", formats=["%Y-%m-%d"], help="The last day.")
    ],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Work the nights of some days in order, each on the files that were there by then.

    Published nights stay as they are. Without a schedule there is one a day, at its end.

    Example: nightshift backfill headlines 2026-11-20 2026-11-23
    """
    settings_of(config).pipeline(pipeline)
    from flows.parts import backfill as work

    for one in work(pipeline, first.date(), last.date(), config=str(config.resolve())):
        typer.echo(f"{one.name}  {'published' if one.new else 'was published before'}")


def _show(finished: Any) -> None:
    typer.echo(f"{finished.digest_text}\n\nreport   {finished.report}")
    typer.echo(f"Night {finished.name} is published.")
