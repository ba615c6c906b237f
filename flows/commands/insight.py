"""Commands about one document: why it is called so, and what is like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import DEFAULT_CONFIG, Config, PipelineName, app, settings_of, stop


@app.command()
def explain(
    pipeline: PipelineName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")],
    label: Annotated[
        str | None, typer.Option(help="What speaks for this class, instead of for the answer.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw it: .svg or .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Which words carried the champion's answer to a text, by each of its two paths.

    Integrated gradients of the network, the linear path's contributions, and the attention weights
    beside them, which are no reason. Colours are shown in a terminal only.

    Example: nightshift explain headlines "Shares fell after the bank's warning" --picture why.svg
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    if picture is not None and as_json:
        stop("explain: say either --picture or --json.")
    import sys

    from flows.explaining import as_lines, explained, write_picture

    given = sys.stdin.read() if text == "-" else text
    number, found = explained(settings, pipeline, given, label)
    if picture is not None:
        typer.echo(write_picture(found, picture))
    elif as_json:
        whole = {"pipeline": pipeline, "model_version": number, **found.as_json()}
        typer.echo(json.dumps(whole, ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
        for line in as_lines(found, number, pipeline):
            console.print(line, soft_wrap=not sys.stdout.isatty())


@app.command()
def similar(
    pipeline: PipelineName,
    asked: Annotated[
        str | None, typer.Argument(metavar="TEXT|DOC_ID", help="A document's id, else a text.")
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(help="Instead: the newest night's documents for this reader."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """The documents nearest to a document or a text, by the cosine of the champion's vectors.

    With --reader, tonight's documents by the clusters which that reader follows, and how well such
    lists find what is read, beside plain popularity. It takes a column: source: {reader: COLUMN}.

    Example: nightshift similar headlines "interest rates rise again" --top 5
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    if (asked is None) == (reader is None):
        stop("similar: say either a text or a document's id, or --reader NAME.")
    from flows.explaining import for_reader, similar_lines
    from flows.explaining import similar as nearest

    found = (
        for_reader(settings, pipeline, reader, top)
        if reader is not None
        else nearest(settings, pipeline, asked or "", top)
    )
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for line in similar_lines(found):
        typer.echo(line)
