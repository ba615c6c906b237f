"""The command line. Heavy modules are imported inside commands, so that `--help` is fast."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
)

Config = Annotated[
    Path, typer.Option("--config", envvar="NIGHTSHIFT_CONFIG", help="The pipelines file.")
]
PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline of the file.")]
DEFAULT_CONFIG = Path("pipelines.yaml")
INTERRUPTED = 130


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
    settings = _settings(config)
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
    settings = _settings(config)
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
    typer.echo(
        f"\nreport   {finished.report}\ntables   {finished.lake}\nmlflow   {store}\n\n"
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
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.reading import nights

    rows = nights(settings, pipeline)
    if night is not None:
        rows = [row for row in rows if row["night"] == night]
        if not rows:
            _stop(f"status: {pipeline} has no night {night!r}. See `nightshift status {pipeline}`.")
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    from flows.reading import as_lines

    for line in as_lines(pipeline, rows, detailed=night is not None):
        typer.echo(line)


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
    settings = _settings(config)
    settings.pipeline(pipeline)
    if picture is not None and (history is not None or as_json):
        _stop("clusters: --picture draws all clusters; call it without --history and --json.")
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
    by: Annotated[str | None, typer.Option(help="Who says so; else the login name.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take name and class back.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Give a cluster a name that keywords never replace, from the next night on.

    With --class, its documents become examples of a class, which the next model learns.

    Example: nightshift name questions c-0007 "Lost cards" --class lost_card
    """
    settings = _settings(config)
    settings.pipeline(pipeline)
    if forget == (words is not None) or (forget and class_name is not None):
        _stop("name: say either a name, with --class or without, or --forget alone.")
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
    settings = _settings(config)
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
        str, typer.Option(help="Address to listen on. There is no password: mind who reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes one that is free.")] = 8000,
    every: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between looks at the champion.")
    ] = 2.0,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Answer over HTTP with the champion, and with the next one as soon as it is champion.

    POST /predict and /invocations (as `mlflow models serve`); GET /ready, /health, /version,
    /metrics. Example of a request: {"texts": ["My card was stolen"], "top_k": 3}

    Example: nightshift serve questions --port 8000
    """
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.serving import serve as answer

    answer(settings, pipeline, host, port, every)


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
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.tuning import tune as search

    found = search(settings, pipeline, trials, processes, restart)
    typer.echo(found.text)


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

    In CSV, a cell that a spreadsheet would take for a formula gets an apostrophe in front.

    Example: nightshift export headlines predictions --out predictions.parquet
    """
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.reading import export_table

    rows = export_table(settings, pipeline, table, out, history)
    if out is not None:
        typer.echo(f"{out}: {rows} rows")


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


def _settings(config: Path) -> Settings:
    from nightshift.pipeline import load_settings

    settings = load_settings(config)
    from flows.environment import prepare

    prepare(Path(settings.reports).parent / ".prefect")
    return settings


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


def _stop(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _log_lines() -> None:
    """The night's own lines on standard error; a time in front where no person watches."""
    terminal = sys.stderr.isatty()
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(message)s" if terminal else "%(asctime)s %(message)s", "%H:%M:%S")
    )
    for name in ("nightshift", "tasks", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


@contextmanager
def _spoken_errors() -> Iterator[None]:
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


def main() -> None:
    """Entry point of the command `nightshift`."""
    _log_lines()
    with _spoken_errors():
        app()


if __name__ == "__main__":
    main()
