"""Commands that come before the first night: data, the pipelines file, its check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.terminal import DEFAULT_CONFIG, Config, app, settings_of


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the batches.")],
) -> None:
    """Write three nights of real text: docstrings of the installed packages, labelled by package.

    One CSV, one JSONL and one Parquet file; in the last one a package arrives that was never seen.

    Example: nightshift sample data/sample
    """
    from nightshift.samples import write_sample

    for file in write_sample(folder):
        shown = ", ".join(f"{name} {count}" for name, count in sorted(file.labels.items()))
        typer.echo(f"{file.path}: {file.documents} documents, {file.labelled} labelled ({shown})")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A data file to look at.")],
    name: Annotated[str | None, typer.Option(help="The pipeline's name; else the file's.")] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Look at a data file, guess what its columns are, show the parsed rows, write a pipeline.

    Example: nightshift init reviews.csv --name reviews
    """
    from nightshift.guessing import add_pipeline, guess_source, pipeline_block

    guess = guess_source(str(file))
    name = name or _pipeline_name(file)
    _show_guess(guess)
    block = pipeline_block(name, guess, _from_folder(file, config))
    existing = config.read_text(encoding="utf-8") if config.exists() else None
    config.write_text(add_pipeline(existing, name, block), encoding="utf-8")
    typer.echo(f"\nWritten to {config}:\n\n{block}")
    typer.echo(f"Next: nightshift check --config {config}, then nightshift run {name}")


@app.command()
def check(config: Config = DEFAULT_CONFIG) -> None:
    """Validate the pipelines file and reach every store it names; say what is there.

    Example: nightshift check --config pipelines.yaml
    """
    settings = settings_of(config)
    from flows.checking import check as look

    typer.echo(f"{config}: valid, {len(settings.pipelines)} pipelines")
    problems = 0
    for name, found, fine in look(settings):
        problems += not fine
        typer.echo(f"{'ok' if fine else 'PROBLEM':<8} {name:<22} {found}")
    if problems:
        typer.echo(f"{problems} problems; nothing was changed.", err=True)
        raise typer.Exit(2)


@app.command()
def schema(
    page: Annotated[bool, typer.Option("--page", help="The reference page instead.")] = False,
) -> None:
    """Print the JSON Schema of pipelines.yaml, for editors.

    Example: nightshift schema > pipelines.schema.json
    """
    from nightshift.pipeline import json_schema, reference

    if page:
        typer.echo(reference(), nl=False)
    else:
        typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _pipeline_name(file: Path) -> str:
    import re

    plain = re.sub(r"[^a-z0-9_-]+", "-", file.name.split(".")[0].lower()).strip("-_")
    return plain[:63] or "texts"


def _from_folder(file: Path, config: Path) -> str:
    """The file as the pipelines file would name it."""
    folder = config.resolve().parent
    there = file.resolve()
    return str(there.relative_to(folder)) if there.is_relative_to(folder) else str(there)


def _show_guess(guess: Any) -> None:
    for column, why in guess.columns.items():
        typer.echo(f"{column:<20} {why}")
    typer.echo("")
    for row in guess.rows:
        cells = (f"{key}={_cut(value)}" for key, value in row.items())
        typer.echo("  " + "  ".join(cells))
    typer.echo("")
    if guess.languages:
        shown = ", ".join(f"{name} {count}" for name, count in guess.languages.items())
        typer.echo(f"languages: {shown}")
    for note in guess.notes:
        typer.echo(f"note: {note}")


def _cut(value: Any, most: int = 60) -> str:
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= most else shown[: most - 3] + "..."
