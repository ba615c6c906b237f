"""Commands about nights that run themselves: deployments, a server for one machine, the watcher."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import DEFAULT_CONFIG, Config, app, settings_of


@app.command()
def up(
    port: Annotated[
        int, typer.Option(min=0, max=65_534, help="Of Prefect's page; 0 takes one that is free.")
    ] = 4200,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Run everything on this machine: Prefect's server and page, schedules, a worker, triggers.

    Reachable from this machine alone. With PREFECT_API_URL set, that server is used instead of an
    own one. Ctrl-C or SIGTERM ends all of it; nights at work are finished by the next `up`.

    Example: nightshift up --port 4200
    """
    import os

    given = os.environ.get("PREFECT_API_URL")
    settings = settings_of(config)
    home = Path(settings.reports).parent / ".prefect"
    if given is None:
        os.environ.pop("PREFECT_API_URL", None)  # that of another `up`, which is refused next
    from flows.up import up as serve

    serve(settings, config.resolve(), home, port)


@app.command()
def deploy(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove deployments of pipelines that left the file.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take over deployments of another pipelines file.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Make Prefect's deployments those of pipelines.yaml: schedules, forms, the parts of a night.

    They run on the work pool of `schedule.work_pool`, which is made where there is none. The path
    given by --config must be the file's path for the workers, too. What is paused on Prefect's page
    stays so; the switch of its schedule follows `schedule.paused`.

    Example: nightshift deploy --dry-run
    """
    settings = settings_of(config)
    from flows.deploying import deploy as make

    steps = make(settings, str(config.resolve()), dry_run, prune, force=force)
    for one in steps:
        typer.echo(f"{one.what:<10} {one.title}{': ' if one.why else ''}{'; '.join(one.why)}")
    counts = {what: sum(one.what == what for one in steps) for what in dict.fromkeys(
        one.what for one in steps)}  # fmt: skip
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    typer.echo(f"{len(steps)} deployments: {told}{'; nothing was done' if dry_run else ''}")
    if counts.get("gone"):
        typer.echo("Remove what is gone: nightshift deploy --prune")


@app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Look for what `triggers` of each pipeline name, and start the runs that they ask for.

    New files, new labels, drift, an alias moved in the registry; have nights finished whose process
    died; and tell of nights that are late. `nightshift up` does the same.

    Example: nightshift watch --once
    """
    settings = settings_of(config)
    from flows.watching import keep_looking, look

    if once:
        found = look(settings)
        typer.echo("\n".join(found) or "nothing new")
        return
    watched = [name for name, one in settings.pipelines.items() if one.is_watched]
    words = ", ".join(watched) or (
        f"nothing, for no pipeline of {config} has `triggers` or a `schedule`; the file is read "
        "again every minute"
    )
    typer.echo(f"watching {words}. Ctrl-C ends it.")
    stop = threading.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: stop.set())
    keep_looking(config, stop)
