"""The night: which one is due, its stages in order, and what happens when one fails.

files -> ingest -> tokens -> train -> evaluate -> promote -> embed -> cluster -> report -> publish
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from httpx import HTTPError
from prefect import flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows import forgetting, takeover
from flows.alerts import tell_failed, tell_published
from flows.environment import keep_private
from flows.locking import alone, stale
from nightshift.errors import BusyError, ConfigError, NightshiftError, PassingError
from nightshift.machine import OF_TORCH
from nightshift.migrations import migrate
from nightshift.pipeline import (
    Pipeline,
    Settings,
    changed,
    config_digest,
    config_to_keep,
    load_settings,
    masked,
)
from nightshift.schedule import due
from nightshift.showing import plain_logs
from nightshift.tables import Lake, valid_night
from tasks.cluster import recluster
from tasks.embed import embed
from tasks.evaluate import evaluate
from tasks.ingest import freeze, ingest
from tasks.keep import keep
from tasks.promote import promote
from tasks.publish import follow, publish
from tasks.report import report
from tasks.rollback import roll_back
from tasks.stage import STAGES, Asked, Night, Turn, code_version, manifest, patiently
from tasks.tokens import tokenize
from tasks.tracking import Tracking, open_run, open_store, put_away
from tasks.train import train

log = logging.getLogger(__name__)

WARM = (
    "captum.attr",
    "mlflow.pyfunc",
    "torch",
    "sklearn.cluster",
    "sklearn.feature_extraction.text",
    "sklearn.manifold",
    "sklearn.svm",
)
"""Slow imports of the later stages."""


@dataclass(frozen=True)
class Finished:
    """A night that is published: tonight, or before."""

    name: str
    new: bool
    """False where it was published before, and nothing was done."""
    report: str
    digest_text: str
    lake: str = field(repr=False)
    mlflow: str = field(repr=False)
    waiting: int | None = None
    """The version of a challenger that waits for a person."""


def work(
    pipeline: str,
    name: str | None = None,
    config: str = "pipelines.yaml",
    retry_from: str | None = None,
) -> Finished:
    """Work a night as a flow run; one that is published already starts no Prefect.

    Args: as `night`, which this calls.
    """
    settings = load_settings(Path(config))
    settings.pipeline(pipeline)
    wanted, redo = _named(name), _from(retry_from)
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    row = next((one for one in lake.nights() if one["night"] == wanted), None)
    done = row is not None and row["state"] == "published" and "publish" in lake.stages(wanted)
    if row and done and stale(settings, pipeline) is None:
        _settle(settings, pipeline, lake)
        return _closed(settings, lake, row, redo)
    threading.Thread(target=_warm_up, args=(settings.mlflow,), daemon=True).start()
    try:
        with _unobserved():
            return night(pipeline, wanted, config, retry_from)
    except (HTTPError, RuntimeError) as error:
        return _without_prefect(settings, lake, wanted, error)


@contextmanager
def _unobserved() -> Iterator[None]:
    """Without heartbeats where Prefect is embedded: nobody would miss one, and a flow run waits for
    the thread that sends them, which sleeps a second at a time."""
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _without_prefect(settings: Settings, lake: Lake, name: str, error: Exception) -> Finished:
    """What a night came to whose flow run could not be closed, since Prefect did not answer."""
    if isinstance(error, RuntimeError) and "reach API" not in str(error):
        raise error
    own = error.__context__
    while own is not None and not isinstance(own, NightshiftError):
        own = own.__context__
    if own is not None:
        raise own
    said = f"Prefect at {os.environ.get('PREFECT_API_URL', 'its embedded server')} did not answer"
    row = next((one for one in lake.nights() if one["night"] == name), None)
    if row is None or row["state"] != "published":
        raise PassingError(
            f"{said} ({error or type(error).__name__}). Yesterday stays published; run the night "
            "again when it does, and it goes on where it was left."
        ) from error
    log.warning("night     published, but %s: it shows the run as running until the next start",
                said)  # fmt: skip
    return replace(_closed(settings, lake, row, frozenset()), new=True)


def _warm_up(mlflow: str) -> None:
    """Imports that nights wait for, done while the embedded Prefect server starts on another core.

    Whatever fails here is met again, and told, where it is needed.
    """
    with suppress(Exception):
        if os.environ.get("PREFECT_API_URL"):
            # A server that runs already gives no time for imports, and many a night needs none.
            open_store(mlflow)
            return
        # Not the store: as it is imported, SQLAlchemy looks at all tables there are, also at those
        # of Prefect's embedded server, which may be half imported, and fails from then on.
        for module in WARM:
            import_module(module)


@flow(
    name="night",
    flow_run_name=lambda: _run_name(flow_run.parameters),
    validate_parameters=True,
    persist_result=False,
)
def night(
    pipeline: str,
    night: str | None = None,
    config: str = "pipelines.yaml",
    retry_from: str | None = None,
    changes: dict[str, Any] | None = None,
    scheduled: bool = False,
    turn: dict[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
) -> Finished:
    """Work one night of a pipeline.

    Args: a pipeline of the config file; the night's name, by default today's local date; a stage
    from which on everything is done again; keys of the pipeline's config that are other for this
    night alone; whether the schedule says which nights are due, instead of `night`; a person's
    decision that this night carries out; a part of a night, or what else is other.
    """
    speak_up()
    if scheduled and night is None:
        return work_due(pipeline, config, changes)
    settings = load_settings(Path(config))
    declared = settings.pipeline(pipeline)
    redo = _from(retry_from)
    run = str(flow_run.get_id() or "")
    said = _by(Turn.model_validate(turn), [run]) if turn else None
    given = _by(Asked.model_validate({"changes": changes or {}, **(asked or {})}), [run])
    changed(declared, given.changes)
    takeover.begin(run)
    with alone(settings, pipeline, declared, run) as before:
        takeover.after(before)
        forgetting.finish(settings, pipeline)
        lake = Lake(settings.lake, pipeline, settings.storage_options())
        for words in migrate(lake):
            log.info("night     %s", words)
        name = _named(night) if night is not None else _name_of(lake, given, run)
        if said is not None and said.kind == "rollback":
            # Who goes back does not wait for a night that fails: that one follows.
            _make_room(lake, name)
            return _work(settings, pipeline, declared, lake, name, redo, said, given)
        for earlier in _unfinished(lake, name):
            log.info("night     finishing %s first, which was left unfinished", earlier)
            _work(settings, pipeline, declared, lake, earlier, frozenset())
        if said is not None:
            _not_yet(lake, name, said)
        return _work(settings, pipeline, declared, lake, name, redo, said, given)


def speak_up() -> None:
    """Where a worker of Prefect begins, not the command line: files are private, lines are plain,
    and Prefect hears those of the house, which such a process would drop as too quiet."""
    keep_private()
    plain_logs()
    for name in ("nightshift", "tasks", "flows"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def work_due(pipeline: str, config: str, changes: dict[str, Any] | None = None) -> Finished:
    """Work the nights that the schedule asks for, as part of the flow run there is.

    Raises: ConfigError without a schedule.
    """
    settings = load_settings(Path(config))
    schedule = settings.pipeline(pipeline).schedule
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    rows = lake.nights()
    worked = {row["night"] for row in rows if row["state"] == "published"}
    began = min((row["started"] for row in rows), default=None)
    # Prefect's clock and this machine's may differ by a second, and the slot is by Prefect's.
    planned = flow_run.get_scheduled_start_time()
    nights = due(schedule, worked, began, max(datetime.now(UTC), planned.astimezone(UTC)))
    if not nights:
        raise ConfigError(
            f"{pipeline}: no night is due, for `schedule` names none. Add `schedule: {{cron: "
            "'0 2 * * *'}}` to the pipeline, or name the night: --night NAME."
        )
    if len(nights) > 1:
        log.info("night     %d nights of %s were missed; they are worked in order",
                 len(nights) - 1, pipeline)  # fmt: skip
    for one in nights[:-1]:
        asked = Asked(until=one.at, changes=changes or {}, cause="the schedule, late")
        night.fn(pipeline, one.name, config, asked=asked.model_dump(mode="json"))
    return night.fn(pipeline, nights[-1].name, config, changes=changes)


def _name_of(lake: Lake, asked: Asked, run: str) -> str:
    """The night that a flow run works whose night nobody named."""
    before = asked_before(lake, run)
    if before is not None:
        return before["night"]
    return asked_name(lake, asked) if asked.part != "night" or asked.cause else _named(None)


def asked_before(lake: Lake, run: str) -> dict[str, Any] | None:
    """The night that a flow run began when it was first started: its process was killed, perhaps
    after all was done, and it was given to another worker."""
    for row in lake.nights():
        asked = (row["figures"].get(key) or {} for key in ("turn", "asked"))
        if run and any(run in one.get("runs", []) for one in asked):
            return row
    return None


Said = TypeVar("Said", Turn, Asked)


def _by(said: Said, runs: list[str]) -> Said:
    """The same, asked for by these flow runs as well."""
    both = dict.fromkeys([*said.runs, *(one for one in runs if one)])
    return said.model_copy(update={"runs": [*both]})


def asked_name(lake: Lake, asked: Asked) -> str:
    """A name for a night of a part, or that something started; one left unfinished is gone on with.

    Call it while no other night runs.
    """
    rows = lake.nights()
    for row in rows:
        before = Asked.model_validate(row["figures"].get("asked") or {})
        same = before.model_copy(update={"runs": asked.runs}) == asked
        if same and row["state"] != "published":
            return row["night"]
    taken = {row["night"] for row in rows}
    name = f"{date.today().isoformat()}-{'extra' if asked.part == 'night' else asked.part}"
    more = (f"{name}-{count}" for count in range(2, len(taken) + 3))
    return next(one for one in (name, *more) if one not in taken)


def turn_name(lake: Lake, turn: Turn) -> str:
    """A name for the night that carries a person's decision out."""
    taken = {row["night"] for row in lake.nights()}
    name = f"{date.today().isoformat()}-{turn.kind}-{turn.version}"
    more = (f"{name}-{count}" for count in range(2, len(taken) + 3))
    return next(one for one in (name, *more) if one not in taken)


def _not_yet(lake: Lake, name: str, turn: Turn) -> None:
    """A person's promotion that a night finished just now has made is not made again.

    Raises: ConfigError.
    """
    rows, last = {row["night"] for row in lake.nights()}, lake.published()
    if name not in rows and last is not None and last["model_id"] == turn.model.model_id:
        raise ConfigError(
            f"promote: the model of version {turn.version} is champion by now, as version "
            f"{last['registry_version']}: night {last['night']}, which was left unfinished, made "
            "it. Nothing else was changed."
        )


def _make_room(lake: Lake, name: str) -> None:
    """Let unfinished nights count as later ones, latest first, so that one fits before them."""
    rows = lake.nights()
    if any(row["night"] == name for row in rows):
        return  # it has its place: who began it was killed
    for row in reversed([row for row in rows if row["state"] != "published"]):
        lake.write_night({**row, "number": row["number"] + 1})


def _run_name(given: dict[str, Any]) -> str:
    """The name a run begins with; one whose night is not known yet gets another when it is."""
    if given.get("night") is None and (given.get("scheduled") or given.get("asked")):
        return str(given["pipeline"])
    return f"{given['pipeline']}-{_named(given.get('night'))}"


def tell_run(pipeline: str, name: str) -> None:
    """Name and tag the flow run by its night; a server that does not answer now costs nothing."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    run = flow_run.get_id()
    kind = flow_run.get_flow_name()
    what = name if kind == "night" else f"{kind}-{name}"
    tags = {*flow_run.get_tags(), pipeline, name}
    with (
        suppress(PrefectException, HTTPError, OSError, ValueError),
        get_client(sync_client=True) as api,
    ):
        api.update_flow_run(UUID(str(run)), name=f"{pipeline}-{what}", tags=sorted(tags))


def _named(night: str | None) -> str:
    return valid_night(night or date.today().isoformat())


def _from(stage: str | None) -> frozenset[str]:
    if stage is None:
        return frozenset()
    if stage not in STAGES:
        raise ConfigError(
            f"--retry-from: found {stage!r}, expected one of {', '.join(STAGES[1:])}."
        )
    return frozenset(STAGES[max(1, STAGES.index(stage)) :])


def _unfinished(lake: Lake, but: str) -> list[str]:
    """Nights that began and were never published, oldest first."""
    return [
        row["night"] for row in lake.nights() if row["state"] != "published" and row["night"] != but
    ]


def _work(
    settings: Settings,
    pipeline: str,
    declared: Pipeline,
    lake: Lake,
    name: str,
    redo: frozenset[str],
    turn: Turn | None = None,
    asked: Asked = Asked(),  # noqa: B008 - it does not change
) -> Finished:
    """One night from where it stands to its publication, or to a failure that is written down."""
    rows = {row["night"]: row for row in lake.nights()}
    previous = lake.published()
    patiently(lambda: _settle(settings, pipeline, lake))
    row = rows.get(name)
    if row and row["state"] == "published":
        if "publish" not in lake.stages(name):
            takeover.bury(row["prefect_run"])
            _note_published(lake, row)
        return _closed(settings, lake, row, redo)
    log.info("night     %s of %s begins", name, pipeline)
    tell_run(pipeline, name)
    if row and row["figures"].get("asked"):
        asked = _by(Asked.model_validate(row["figures"]["asked"]), asked.runs)
    declared = changed(declared, asked.changes)
    tags = {
        "nightshift.night": name,
        "nightshift.pipeline": pipeline,
        "nightshift.code": code_version(),
    }
    prefect_run = str(flow_run.get_id() or "")
    tags |= {"prefect.flow_run_id": prefect_run}
    if os.environ.get("PREFECT_API_URL"):  # an embedded server shows no pages
        tags |= {"prefect.flow_run_url": flow_run.get_flow_run_ui_url() or ""}
    if row and row["state"] == "running":
        # We hold the lock, so whoever wrote that is dead.
        takeover.bury(row["prefect_run"])
    known_run = row["mlflow_run"] if row else None
    tracking = patiently(lambda: open_run(settings, pipeline, name, known_run, tags))
    if row and row["figures"].get("turn"):
        turn = _by(Turn.model_validate(row["figures"]["turn"]), turn.runs if turn else [])
    made = manifest(declared)
    if row:
        # What it was computed with before it was cut short.
        had = row["manifest"].get("machine", {})
        made["machine"] |= {key: had[key] for key in OF_TORCH if key in had}
    begun: dict[str, Any] = {
        "night": name,
        "number": row["number"] if row else _next_number([*rows.values()], turn),
        "state": "running",
        "started": row["started"] if row else datetime.now(UTC),
        "config_digest": config_digest(declared),
        "code_version": code_version(),
        "manifest": made,
        "mlflow_run": tracking.run_id,
        "prefect_run": prefect_run,
        "process": f"{socket.gethostname()}:{os.getpid()}",
        "figures": {"turn": turn and turn.model_dump(), "asked": asked.model_dump(mode="json")},
    }
    patiently(lambda: lake.write_night(begun))
    # On the flow run from its first minute, even if no report is ever written.
    log.info("night     MLflow: %s", tracking.link())
    one = Night(pipeline, declared, settings, name, begun["number"], tracking, previous, redo, turn,
                asked)  # fmt: skip
    try:
        finished = _rolled_back(one) if turn and turn.kind == "rollback" else _stages(one)
    except BaseException as error:
        _fail(one, error)
        raise
    finally:
        put_away()
    _finish(tracking)
    _afterwards(one)
    return finished


def _finish(tracking: Tracking) -> None:
    """Close the run of a published night; where MLflow is away, the next start does."""
    try:
        patiently(lambda: tracking.finish("FINISHED"))
    except PassingError as error:
        log.warning("night     published; its MLflow run is closed by the next start. %s", error)


def _next_number(rows: list[dict[str, Any]], turn: Turn | None) -> int:
    """After all others; a rollback goes before the nights that are unfinished."""
    before = [
        row["number"]
        for row in rows
        if turn is None or turn.kind != "rollback" or row["state"] == "published"
    ]
    return max(before, default=0) + 1


def _rolled_back(one: Night) -> Finished:
    """A night in which only the model is another."""
    roll_back(one)
    _note_published(one.lake, next(row for row in one.lake.nights() if row["night"] == one.name))
    return Finished(one.name, True, "", "", one.lake.root, one.settings.mlflow)


def _stages(one: Night) -> Finished:
    """The story of a night. Each call is a Prefect task, and skipped where it is done."""
    one.tracking.params(config_to_keep(one.pipeline))
    files = freeze(one)
    ingested = ingest(one, files)
    tokens = tokenize(one, ingested)
    trained = train(one, tokens)
    evaluated = evaluate(one, trained)
    promoted = promote(one, trained, evaluated)
    embedded = embed(one, tokens, promoted)
    clustered = recluster(one, files, trained, embedded)
    reported = report(
        one, files, ingested, tokens, trained, evaluated, promoted, embedded, clustered
    )
    published = publish(one, ingested, trained, evaluated, promoted, embedded, clustered, reported)
    waiting = published.challenger_version if promoted.decision == "waiting" else None
    return Finished(
        one.name, True, reported.path, reported.digest_text, one.lake.root, one.settings.mlflow,
        waiting,
    )  # fmt: skip


def _settle(settings: Settings, pipeline: str, lake: Lake) -> None:
    """Finish what a kill right after the last publication left undone; harmless to repeat.

    The aliases and the MLflow run follow the `nights` table, never the other way round.
    """
    last = lake.published()
    if last is not None:
        challenger = last["figures"].get("challenger_version")
        follow(settings.mlflow, pipeline, last["registry_version"], challenger)
        Tracking(settings.mlflow, last["mlflow_run"]).finish_if_open()


def _note_published(lake: Lake, row: dict[str, Any]) -> None:
    """Write the stage that a kill after the publication left unwritten."""
    outputs = {
        "figures": {},
        "registry_version": row["registry_version"],
        "challenger_version": row["figures"].get("challenger_version"),
    }
    noted = {"stage": "publish", "digest": "", "outputs": outputs, "figures": {}, "seconds": 0.0}
    lake.write_stage(row["night"], {**noted, "at": datetime.now(UTC)})


def _closed(settings: Settings, lake: Lake, row: dict[str, Any], redo: frozenset[str]) -> Finished:
    """A published night is closed: nothing is done, and nothing may be done again."""
    if redo:
        raise ConfigError(
            f"--retry-from: night {row['night']} is published, and a published night is closed. "
            "Run a new night: --night NAME."
        )
    path = row["figures"].get("report", "")
    return Finished(row["night"], False, path, "", lake.root, settings.mlflow)


def _afterwards(one: Night) -> None:
    """What follows a publication, and can fail no night: alerts, and what need not be kept."""
    for what in (
        lambda: tell_published(one.pipeline, one.pipeline_name, one.lake),
        lambda: keep(one) if one.pipeline.keep.declared else None,
    ):
        try:
            what()
        except Exception as error:
            log.warning("night     %s is published; after it: %s", one.name, error)


def _fail(one: Night, error: BaseException) -> None:
    """Write the failure down where people look: the table, MLflow, a webhook."""
    if isinstance(error, BusyError):
        return  # the night belongs to another, and so do its row and its run
    # Not a fault: Ctrl-C, or a worker that ends, whose SIGTERM Prefect raises as one of its own.
    stopped = not isinstance(error, Exception)
    words = "interrupted" if stopped else masked(str(error)) or type(error).__name__
    # Each on its own: the store that failed the night may refuse this as well.
    with suppress(Exception):
        row = next(row for row in one.lake.nights() if row["night"] == one.name)
        if row["state"] == "published":
            return  # what failed came after; the next start repairs it
        one.lake.write_night(
            {**row, "state": "failed", "finished": datetime.now(UTC), "error": words}
        )
    with suppress(Exception):
        one.tracking.finish("KILLED" if stopped else "FAILED")
    if not stopped:
        tell_failed(one.pipeline, one.pipeline_name, one.name, words)
