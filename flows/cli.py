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
Reason = Annotated[str, typer.Option(help="Why, for whoever asks later.")]
By = Annotated[str | None, typer.Option(help="Who says so; else the login name.")]
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
    if finished.waiting:
        typer.echo(
            f"\nwaiting  version {finished.waiting}, for a person: "
            f"nightshift promote {pipeline} {finished.waiting} --reason ...{shown}"
        )
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
    settings = _settings(config)
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
    settings = _settings(config)
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

    The tables follow with the next night, which labels what that model has not read.

    Example: nightshift rollback headlines --reason "sports became politics"
    """
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.champions import roll_back

    _show_turn(roll_back(pipeline, to, reason, by, str(config.resolve())))


def _show_turn(finished: Any) -> None:
    if finished.digest_text:
        typer.echo(f"{finished.digest_text}\n\nreport   {finished.report}")
    typer.echo(f"Night {finished.name} is published; the champion is another.")


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
    by: By = None,
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
    settings = _settings(config, prefect=False)
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


@app.command()
def lineage(
    pipeline: PipelineName,
    doc_id: Annotated[str, typer.Argument(metavar="DOC_ID", help="As in `documents`.")],
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Where a document came from, what is said of it, by which model, learned from what and when.

    Example: nightshift lineage reviews r-1041 --json
    """
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.lineage import as_lines
    from flows.lineage import lineage as trace

    found = trace(settings, pipeline, doc_id)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for line in as_lines(found):
        typer.echo(line)


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
    settings = _settings(config)
    settings.pipeline(pipeline)
    from flows.forgetting import as_lines, preview
    from flows.forgetting import forget as remove

    if not yes:
        for line in preview(settings, pipeline, doc_ids):
            typer.echo(line, err=True)
        if not typer.confirm("Forget them?", err=True):
            _stop("forget: nothing was changed.")
    receipt = remove(settings, pipeline, doc_ids, reason, by)
    typer.echo(json.dumps(receipt, ensure_ascii=False, indent=2))
    for line in as_lines(receipt):
        typer.echo(line, err=True)


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


def _settings(config: Path, prefect: bool = True) -> Settings:
    from nightshift.pipeline import load_settings

    settings = load_settings(config)
    from flows.environment import prepare

    if prefect:
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
