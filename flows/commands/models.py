"""Commands about models: who is champion and why, its answers, where they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal import (
    DEFAULT_CONFIG,
    By,
    Config,
    PipelineName,
    Reason,
    app,
    as_text,
    settings_of,
)

if TYPE_CHECKING:
    from nightshift.pipeline import Settings


@app.command()
def champion(
    pipeline: PipelineName,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="WHEN", help="A date, or a moment such as 2026-11-03T08:00."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Which version answers, or answered then: since when, trained on what, chosen by whom and why.

    Example: nightshift champion headlines --at 2026-11-03
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.champions import as_lines, champion_at

    found = champion_at(settings, pipeline, at)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for line in as_lines(found):
        typer.echo(line)


@app.command()
def promote(
    pipeline: PipelineName,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="Of the registry.")],
    reason: Reason,
    by: By = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Make a registered version's model champion: documents are labelled and grouped by it, now.

    For a challenger that waits (promotion.policy: manual), or was refused.

    Example: nightshift promote headlines 7 --reason "the new labels are better"
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.champions import promote as make_champion

    _show_turn(make_champion(pipeline, version, reason, by, str(config.resolve())))


@app.command()
def rollback(
    pipeline: PipelineName,
    reason: Reason,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="VERSION", help="One that was champion; else the last model."),
    ] = None,
    by: By = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Let an earlier champion answer again, at once: weights, thresholds, clusters and names.

    The tables follow with the next night, which labels what that model has not read. A night that
    runs is waited for: stop it first to go back at once, and run it again later.

    Example: nightshift rollback headlines --reason "sports became politics"
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.champions import roll_back

    _show_turn(roll_back(pipeline, to, reason, by, str(config.resolve())))


@app.command()
def predict(
    pipeline: PipelineName,
    file: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="Texts; - or nothing reads lines of text.")
    ] = "-",
    top: Annotated[int, typer.Option(min=1, max=1000, help="Likeliest labels to show.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the file again in .parquet, .csv or .jsonl, predictions beside."),
    ] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Label texts with the champion: one JSON line per text, in order.

    A .csv, .tsv, .jsonl or .parquet file is read like the pipeline's source; any other, and
    standard input, one text per line. With --out all columns are kept, whatever the file's size.

    Example: echo 'My card was stolen' | nightshift predict questions
    """
    settings = settings_of(config)
    declared = settings.pipeline(pipeline)
    if out is not None:
        _score(settings, pipeline, file, out, top)
        return
    from flows.reading import predictions, texts_of_file, texts_of_lines

    texts = (
        texts_of_lines(sys.stdin.buffer) if file == "-" else texts_of_file(file, declared.source)
    )
    for answer in predictions(settings, pipeline, texts, top):
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()


@app.command()
def serve(
    pipeline: PipelineName,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine, with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes one that is free.")] = 8000,
    every: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between looks at the champion.")
    ] = 2.0,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Ask for the token in this file, else for that in NIGHTSHIFT_SERVE_TOKEN.",
        ),
    ] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Answer over HTTP with the champion, and with the next one as soon as it is champion.

    POST /predict and /invocations (as `mlflow models serve`); GET /ready, /health, /version,
    /metrics. Example of a request: {"texts": ["My card was stolen"], "top_k": 3}

    With a token, all but /health and /ready ask for `Authorization: Bearer TOKEN`; it travels as
    plain text, so put a proxy with TLS before it. When 10,000 texts wait, a request gets a 503.

    Example: nightshift serve questions --port 8000
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.serving import serve as answer

    answer(settings, pipeline, host, port, every, token_file)


@app.command()
def lineage(
    pipeline: PipelineName,
    doc_id: Annotated[str, typer.Argument(metavar="DOC_ID", help="As in `documents`.")],
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="WHEN", help="What was said then, as `champion --at`."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL_ID", help="What another model said; its beginning."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Where a document came from, what is said of it, by which model, learned from what and when.

    After a rollback --at or --model leads to what another model said.

    Example: nightshift lineage reviews r-1041 --json
    """
    settings = settings_of(config)
    settings.pipeline(pipeline)
    from flows.lineage import as_lines
    from flows.lineage import lineage as trace

    found = trace(settings, pipeline, as_text(doc_id), at, model)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for line in as_lines(found):
        typer.echo(line)


def _show_turn(finished: Any) -> None:
    if finished.digest_text:
        typer.echo(f"{finished.digest_text}\n\nreport   {finished.report}")
    typer.echo(f"Night {finished.name} is published; the champion is another.")


def _score(settings: Settings, pipeline: str, file: str, out: Path, top: int) -> None:
    """`predict --out`."""
    from flows.predicting import check_places, score_file
    from flows.reading import champion

    check_places(file, out)
    number, bundle = champion(settings, pipeline)
    source = settings.pipeline(pipeline).source
    rows, renamed = score_file(bundle, number, file, source, out, top)
    typer.echo(f"{out}: {rows} rows, by version {number} of {pipeline}")
    for old, new in renamed.items():
        typer.echo(f"the file has a column {old}; the prediction is in {new}")
