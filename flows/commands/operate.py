"""Commands for whoever keeps it running: its health, its alerts, its backups."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.terminal import DEFAULT_CONFIG, Config, PipelineName, app, settings_of, stop

if TYPE_CHECKING:
    from nightshift.pipeline import Settings


@app.command()
def doctor(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="[PIPELINE]", help="Only this one; else all.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also what `keep` no longer wants: show, or remove.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Find what kills, full disks and hands left behind; without --repair nothing is changed.

    Exit code 0: healthy, or repaired; 1: something is left; 2: wrong input.

    Example: nightshift doctor headlines --repair
    """
    settings = settings_of(config)
    names = [*settings.pipelines] if pipeline is None else [pipeline]
    for name in names:
        settings.pipeline(name)
    from flows.doctor import as_lines, examine, healthy

    found = {name: examine(settings, name, repair) for name in names}
    pruned = {name: _pruned(settings, name, repair) for name in names} if prune else {}
    if as_json:
        whole = {"pipelines": found, "pruned": pruned} if prune else {"pipelines": found}
        typer.echo(json.dumps(whole, ensure_ascii=False, indent=2))
    else:
        for name in names:
            for line in [*as_lines(name, found[name]), *pruned.get(name, [])]:
                typer.echo(line)
    if not all(healthy(one) for one in found.values()):
        raise typer.Exit(1)


def _pruned(settings: Settings, name: str, repair: bool) -> list[str]:
    """What `keep` no longer wants: what would go, or went."""
    from flows.locking import alone
    from tasks.keep import as_lines, plan, prune

    declared = settings.pipeline(name)
    if not repair:
        lines = as_lines(plan(settings, name, declared).found, "would remove")
    else:
        with alone(settings, name, declared):
            lines = as_lines(prune(settings, name, declared))
    return [f"{name:<16} {line}" for line in lines] or [f"{name:<16} nothing to prune"]


@app.command()
def alert(
    pipeline: PipelineName,
    due: Annotated[
        list[datetime] | None,
        typer.Option("--due", help="When a night was due, local time; tell if none came since."),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a test message.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Send a test message by every declared channel, or tell people that a due night did not come.

    Exit code 0: nothing is late, or the test arrived; 1: late, or a channel did not take it.

    Example: nightshift alert headlines --due 2026-11-22T02:00
    """
    settings = settings_of(config, prefect=False)
    declared = settings.pipeline(pipeline)
    if test == bool(due):
        stop("alert: say either --test, or --due WHEN.")
    from flows.alerts import say_test, tell_late

    if due:
        said = tell_late(settings, pipeline, [one.astimezone() for one in due])
        typer.echo(said.words if said else f"{pipeline}: nothing new is late")
        if said:
            raise typer.Exit(1)
        return
    took = say_test(declared, pipeline)
    for channel, fine in took.items():
        typer.echo(f"{channel:<8} {'took it' if fine else 'did not take it'}")
    if not took:
        stop(f"alert: {pipeline} declares neither `webhook` nor `alerts.email`.")
    if not all(took.values()):
        raise typer.Exit(1)


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", help="New folder or archive.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Copy tables, models, journals, pages, runs and settings, without secrets, when no night runs.

    For state in folders of this machine. What lies in inboxes is not in it.

    Example: nightshift backup /mnt/backup/2026-11-22.tar.gz
    """
    settings_of(config, prefect=False)
    from flows.backup import as_lines
    from flows.backup import backup as write

    for line in as_lines(write(config.resolve(), to)):
        typer.echo(line)
    typer.echo(f"written to {to}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `backup` wrote.")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
) -> None:
    """Lay a backup out in a new folder, every file verified; nights go on there.

    Example: nightshift restore /mnt/backup/2026-11-22.tar.gz /srv/nightshift
    """
    from flows.backup import as_lines
    from flows.backup import restore as lay_out

    found = lay_out(source, to)
    for line in as_lines(found):
        typer.echo(line)
    typer.echo(f"restored to {to}\nNext:    nightshift doctor --config {to / 'pipelines.yaml'}")
