"""Commands about people's labels: the page where they are given, and files that carry them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import DEFAULT_CONFIG, By, Config, PipelineName, app, settings_of


class Way(StrEnum):
    """Which way labels go."""

    OUT = "export"
    IN = "import"


class Form(StrEnum):
    """How a file holds labels."""

    CSV = "csv"
    JSONL = "jsonl"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"


@app.command()
def review(
    pipeline: PipelineName,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond 127.0.0.1 people must sign in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes one that is free.")] = 8100,
    users: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who may sign in; else NIGHTSHIFT_REVIEW_USERS."),
    ] = None,
    add_user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask for a password, write it to --users, and end."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="The page's address, where a server with TLS stands in front of it."),
    ] = None,
    by: By = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Serve a page where people correct labels, and name, merge and split clusters.

    Queues of what deserves a look, search, keys for everything, several people at once. Each word
    lands at once in the journal; the next night learns from it.

    Example: nightshift review headlines
    """
    settings = settings_of(config, prefect=False)
    settings.pipeline(pipeline)
    from flows.access import add_user as write_user
    from flows.access import door_of
    from nightshift.errors import ConfigError
    from nightshift.journal import login, person

    if add_user is not None:
        if users is None:
            raise ConfigError("--add-user: expected a file with --users FILE as well.")
        write_user(users, add_user, typer.prompt("password", hide_input=True,
                                                 confirmation_prompt=True))  # fmt: skip
        typer.echo(f"{users}: {add_user} may sign in.")
        return
    from flows.review_pages import serve_review
    from nightshift.queues import index_folder

    keep = index_folder(settings.lake, pipeline, settings.reports) / "review.key"
    door = door_of(host, url, users, person(by or login()), pipeline, keep)
    serve_review(settings, pipeline, config.resolve(), door, host, port)


@app.command()
def labels(
    way: Annotated[Way, typer.Argument(metavar="export|import", help="Which way they go.")],
    pipeline: PipelineName,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Else export writes to the terminal.")
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="Else what the file's ending says; csv in the terminal."),
    ] = None,
    by: By = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Write people's labels to a file, or read them from one: CSV, JSONL, Label Studio, Argilla.

    What is read stands in the journal at once, all or nothing; the next night learns it. A row
    without a label says nothing; a document of no class has the label `(no class)`. Rows of
    documents that are not there are told, and kept in a file beside.

    Example: nightshift labels export headlines --format label-studio
    """
    settings = settings_of(config, prefect=False)
    settings.pipeline(pipeline)
    from flows.labelling import export_labels, import_labels
    from nightshift.errors import ConfigError

    if way is Way.IN:
        if file is None:
            raise ConfigError("labels import: expected a file.")
        for line in import_labels(settings, pipeline, file, form, by):
            typer.echo(line)
        return
    ending = file.suffix[1:].lower() if file else "csv"
    chosen = form or (ending if ending in ("csv", "jsonl") else None)
    if chosen is None:
        raise ConfigError(f"labels export: say --format; {file} could be of several.")
    pieces = export_labels(settings, pipeline, chosen)
    if file is None:
        for piece in pieces:
            typer.echo(piece, nl=False)
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(pieces)
    typer.echo(f"{file}: written")
