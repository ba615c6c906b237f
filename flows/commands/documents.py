"""Commands about documents: their groups, their export, their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import DEFAULT_CONFIG, By, Config, PipelineName, app, as_text, settings_of, stop


@app.command()
def clusters(
    pipeline: PipelineName,
    history: Annotated[
        str | None,
        typer.Option("--history", metavar="CLUSTER", help="Only this one, with all its past."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.svg", help="Draw how documents flowed instead."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """What the newest night's clusters are: name, size, what happened to them, their words.

    A name of a person has a *; one that waits for the next night has a ~.

    Example: nightshift clusters questions --history c-0007
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    if picture is not None and (history is not None or as_json):
        stop("clusters: --picture draws all clusters; call it without --history and --json.")
    from flows.clusters import as_lines, as_passport, passport_of, past_of, table_of, write_picture

    past = past_of(settings, pipeline)
    if picture is not None:
        typer.echo(write_picture(past, picture))
        return
    found = table_of(past) if history is None else passport_of(past, history)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for line in as_lines(found) if history is None else as_passport(found):
        typer.echo(line)


@app.command()
def name(
    pipeline: PipelineName,
    cluster: Annotated[str, typer.Argument(metavar="CLUSTER", help="Its id, such as c-0007.")],
    words: Annotated[str | None, typer.Argument(metavar="NAME", help="1 to 80 characters.")] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Its documents are examples of this class."),
    ] = None,
    by: By = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take name and class back.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Give a cluster a name that keywords never replace, from the next night on.

    With --class, its documents become examples of a class, which the next model learns.

    Example: nightshift name questions c-0007 "Lost cards" --class lost_card
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    if forget == (words is not None) or (forget and class_name is not None):
        stop("name: say either a name, with --class or without, or --forget alone.")
    from flows.clusters import forget_name, journal_of, past_of, say_name

    past, journal = past_of(settings, pipeline), journal_of(settings, pipeline)
    said = (
        forget_name(past, journal, cluster, by)
        if words is None
        else say_name(past, journal, cluster, words, class_name, by)
    )
    for line in said:
        typer.echo(line)


@app.command()
def export(
    pipeline: PipelineName,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="documents, predictions, ...")],
    out: Annotated[Path | None, typer.Option(help="File; without it, CSV to the terminal.")] = None,
    history: Annotated[
        bool, typer.Option(help="All rows, not only what stands for each document today.")
    ] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Write a published table as CSV or Parquet, by the ending of --out.

    In CSV, a cell that a spreadsheet would take for a formula gets an apostrophe in front, numbers
    aside: take one away from '= '+ '- '@ and the text is as it was. Parquet has it unchanged.

    Example: nightshift export headlines predictions --out predictions.parquet
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.reading import export_table

    rows = export_table(settings, pipeline, table, out, history)
    if out is not None:
        typer.echo(f"{out}: {rows} rows")


@app.command()
def forget(
    pipeline: PipelineName,
    doc_ids: Annotated[list[str], typer.Argument(metavar="DOC_ID...", help="As in `documents`.")],
    reason: Annotated[str, typer.Option(help="Why, for the receipt.")],
    by: Annotated[str | None, typer.Option(help="Who says so; else the login name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Remove documents for good: from all tables, their old versions, the reports and MLflow.

    They do not come back with another file. The receipt, as JSON, names the models that learned
    from them and the source files that still hold them. Killed, the same command finishes it.

    Example: nightshift forget reviews r-1041 --reason "request of 3 March" --yes
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.forgetting import as_lines, preview
    from flows.forgetting import forget as remove

    doc_ids = [as_text(one) for one in doc_ids]
    if not yes:
        for line in preview(settings, pipeline, doc_ids):
            typer.echo(line, err=True)
        if not typer.confirm("Forget them?", err=True):
            stop("forget: nothing was changed.")
    receipt = remove(settings, pipeline, doc_ids, reason, by)
    typer.echo(json.dumps(receipt, ensure_ascii=False, indent=2))
    for line in as_lines(receipt):
        typer.echo(line, err=True)
