"""Commands about nights: work one, look back, work it again, look for a better recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import DEFAULT_CONFIG, Config, PipelineName, app, settings_of, stop


@app.command()
def run(
    pipeline: PipelineName,
    night: Annotated[
        str | None, typer.Option(help="The night's name; by default today's local date.")
    ] = None,
    retry_from: Annotated[
        str | None,
        typer.Option("--retry-from", metavar="STAGE", help="Do this stage and all after it again."),
    ] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Work a night: finish it where it was left, or do nothing when it is published.

    Example: nightshift run headlines --night 2026-11-22
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.night import work

    finished = work(pipeline, night, str(config.resolve()), retry_from)
    if not finished.new:
        typer.echo(f"Night {finished.name} of {pipeline} is published already; nothing to do.")
        return
    typer.echo(finished.digest_text)
    from nightshift.pipeline import masked

    store = masked(finished.mlflow)
    shown = f" --config {config}" if config != DEFAULT_CONFIG else ""
    if finished.waiting:
        typer.echo(
            f"\nwaiting  version {finished.waiting}, for a person: "
            f"nightshift promote {pipeline} {finished.waiting} --reason ...{shown}"
        )
    typer.echo(
        f"\nreport   {finished.report}\ntables   {masked(finished.lake)}\nmlflow   {store}\n\n"
        f"Next:    nightshift status {pipeline}{shown}\n"
        f"         echo 'some text' | nightshift predict {pipeline}{shown}\n"
        f"         mlflow ui --backend-store-uri {store}"
    )


@app.command()
def status(
    pipeline: PipelineName,
    night: Annotated[str | None, typer.Option(help="Only this night.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON array.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """What every night did: documents, model, scores, clusters, seconds per stage.

    Example: nightshift status headlines --json
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.reading import nights

    rows = nights(settings, pipeline)
    if night is not None:
        rows = [row for row in rows if row["night"] == night]
        if not rows:
            stop(f"status: {pipeline} has no night {night!r}. See `nightshift status {pipeline}`.")
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    from flows.reading import as_lines

    for line in as_lines(pipeline, rows, detailed=night is not None):
        typer.echo(line)


@app.command()
def tune(
    pipeline: PipelineName,
    trials: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Recipes to try in all; else `tune.trials`."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Trials at the same time; else `tune.processes`."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget the trials of earlier calls.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Try recipes on the stored train and validation rows, and write the best one as YAML.

    What is tried stands under `tune.space` of the pipeline, else the usual values are. Poor trials
    are stopped early. The same command goes on where it was stopped or killed, and with more
    --trials, where it had ended. Trials do not pretrain, unless the space has a `pretrain.` key.

    Example: nightshift tune headlines --trials 50 --processes 2
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.tuning import tune as search

    found = search(settings, pipeline, trials, processes, restart)
    typer.echo(found.text)


@app.command()
def replay(
    pipeline: PipelineName,
    night: Annotated[str, typer.Argument(metavar="NIGHT", help="A published night.")],
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FOLDER", help="Keep the replay's tables and page here."),
    ] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Work a past night again beside the lake, and compare every table, the model and the bundle.

    Says which stage is the first that differs, and what has changed since: code, libraries,
    machine, config. Exit code 0: all is the same; 1: something differs; 2: it cannot be replayed.

    Example: nightshift replay headlines 2026-11-22 --json
    """
    settings = settings_of(config, prefect=False)
    settings.pipeline(pipeline)
    from flows.replaying import as_lines
    from flows.replaying import replay as work_again

    found = work_again(settings, pipeline, night, keep)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        for line in as_lines(found):
            typer.echo(line)
    if not found["same"]:
        raise typer.Exit(1)
