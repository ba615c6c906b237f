"""The night: which one is due, its stages in order, and what happens when one fails.

files -> ingest -> tokens -> train -> evaluate -> promote -> embed -> cluster -> report -> publish
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.runtime import flow_run

from flows import forgetting
from flows.locking import alone
from nightshift.errors import ConfigError
from nightshift.pipeline import Pipeline, Settings, config_digest, load_settings
from nightshift.tables import Lake, valid_night
from tasks.cluster import recluster
from tasks.embed import embed
from tasks.evaluate import evaluate
from tasks.ingest import freeze, ingest
from tasks.promote import promote
from tasks.publish import follow, publish
from tasks.report import report
from tasks.rollback import roll_back
from tasks.stage import STAGES, Night, Turn, code_version, manifest
from tasks.tokens import tokenize
from tasks.tracking import Tracking, open_run, open_store
from tasks.train import train

log = logging.getLogger(__name__)

WARM = ("sklearn.cluster", "sklearn.feature_extraction.text", "sklearn.manifold", "sklearn.svm")
"""Slow imports of the later stages."""


@dataclass(frozen=True)
class Finished:
    """A night that is published: tonight, or before."""

    name: str
    new: bool
    """False where it was published before, and nothing was done."""
    report: str
    digest_text: str
    lake: str
    mlflow: str
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
    if row and row["state"] == "published" and "publish" in lake.stages(wanted):
        _settle(settings, pipeline, lake)
        return _closed(settings, lake, row, redo)
    threading.Thread(target=_warm_up, args=(settings.mlflow,), daemon=True).start()
    return night(pipeline, wanted, config, retry_from)


def _warm_up(mlflow: str) -> None:
    """What every night waits for, done while the embedded Prefect server starts on another core.

    Whatever fails here is met again, and told, where it is needed.
    """
    with suppress(Exception):
        for module in WARM:
            import_module(module)
        open_store(mlflow)


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
    turn: dict[str, Any] | None = None,
) -> Finished:
    """Work one night of a pipeline.

    Args: a pipeline of the config file; the night's name, by default today's local date; a stage
    from which on everything is done again; a person's decision that this night carries out.
    """
    settings = load_settings(Path(config))
    declared = settings.pipeline(pipeline)
    name = _named(night)
    redo = _from(retry_from)
    said = Turn.model_validate(turn) if turn else None
    with alone(settings, pipeline, declared):
        forgetting.finish(settings, pipeline)
        lake = Lake(settings.lake, pipeline, settings.storage_options())
        if said is not None and said.kind == "rollback":
            # Who goes back does not wait for a night that fails: that one follows.
            _make_room(lake)
            return _work(settings, pipeline, declared, lake, name, redo, said)
        for earlier in _unfinished(lake, name):
            log.info("night     finishing %s first, which was left unfinished", earlier)
            _work(settings, pipeline, declared, lake, earlier, frozenset())
        return _work(settings, pipeline, declared, lake, name, redo, said)


def turn_name(lake: Lake, turn: Turn) -> str:
    """A name for the night that carries a person's decision out."""
    taken = {row["night"] for row in lake.nights()}
    name = f"{date.today().isoformat()}-{turn.kind}-{turn.version}"
    more = (f"{name}-{count}" for count in range(2, len(taken) + 3))
    return next(one for one in (name, *more) if one not in taken)


def _make_room(lake: Lake) -> None:
    """Let unfinished nights count as later ones, latest first, so that one fits before them."""
    unfinished = [row for row in lake.nights() if row["state"] != "published"]
    for row in reversed(unfinished):
        lake.write_night({**row, "number": row["number"] + 1})


def _run_name(given: dict[str, Any]) -> str:
    return f"{given['pipeline']}-{_named(given.get('night'))}"


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
) -> Finished:
    """One night from where it stands to its publication, or to a failure that is written down."""
    rows = {row["night"]: row for row in lake.nights()}
    previous = lake.published()
    _settle(settings, pipeline, lake)
    row = rows.get(name)
    if row and row["state"] == "published":
        if "publish" not in lake.stages(name):
            _bury(row["prefect_run"])
            _note_published(lake, row)
        return _closed(settings, lake, row, redo)
    log.info("night     %s of %s begins", name, pipeline)
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
        _bury(row["prefect_run"])
    tracking = open_run(
        settings, pipeline, name, row["mlflow_run"] if row else None, tags
    )  # fmt: skip
    if row and row["figures"].get("turn"):
        turn = Turn.model_validate(row["figures"]["turn"])
    begun: dict[str, Any] = {
        "night": name,
        "number": row["number"] if row else _next_number([*rows.values()], turn),
        "state": "running",
        "started": row["started"] if row else datetime.now(UTC),
        "config_digest": config_digest(declared),
        "code_version": code_version(),
        "manifest": manifest(declared),
        "mlflow_run": tracking.run_id,
        "prefect_run": prefect_run,
        "process": f"{socket.gethostname()}:{os.getpid()}",
        "figures": {"turn": turn.model_dump()} if turn else {},
    }
    lake.write_night(begun)
    # On the flow run from its first minute, even if no report is ever written.
    log.info("night     MLflow: %s", tracking.link())
    one = Night(pipeline, declared, settings, name, begun["number"], tracking, previous, redo, turn)
    try:
        finished = _rolled_back(one) if turn and turn.kind == "rollback" else _stages(one)
    except BaseException as error:
        _fail(one, begun, error)
        raise
    tracking.finish("FINISHED")
    return finished


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
    one.tracking.params(one.pipeline.model_dump(mode="json", exclude={"webhook"}))
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


def _bury(prefect_run: str | None) -> None:
    """Mark the flow run of a killed process as crashed; Prefect would show it running for ever."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.states import Crashed

    with suppress(PrefectException, OSError, ValueError), get_client(sync_client=True) as api:
        state = api.read_flow_run(UUID(prefect_run)).state
        if state is not None and state.is_running():
            words = "its process died; another run finishes the night"
            api.set_flow_run_state(UUID(prefect_run), Crashed(message=words), force=True)


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


def _fail(one: Night, begun: dict[str, Any], error: BaseException) -> None:
    """Write the failure down where people look: the table, MLflow, a webhook."""
    stopped = isinstance(error, KeyboardInterrupt | SystemExit)
    words = "interrupted" if stopped else str(error) or type(error).__name__
    # Each on its own: the store that failed the night may refuse this as well.
    with suppress(Exception):
        one.lake.write_night(
            {**begun, "state": "failed", "finished": datetime.now(UTC), "error": words}
        )
    with suppress(Exception):
        one.tracking.finish("KILLED" if stopped else "FAILED")
    if not stopped:
        tell_webhook(one.pipeline, one.pipeline_name, one.name, words)


def tell_webhook(pipeline: Pipeline, name: str, night: str, words: str) -> None:
    """Say that a night failed; a webhook that fails too is only logged."""
    import urllib.request

    if pipeline.webhook is None:
        return
    message = {
        "text": f"Nightshift: night {night} of {name} failed. {words}",
        "pipeline": name,
        "night": night,
        "state": "failed",
        "error": words,
    }
    url = pipeline.webhook.get_secret_value()
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected an http or https URL")
        request = urllib.request.Request(
            url, json.dumps(message).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10):
            pass
    except (OSError, ValueError) as error:
        # The URL is a secret; it stays out of the log.
        log.warning("webhook   did not take the message: %s", type(error).__name__)
