"""The watcher: looks now and then at what may start a run, and starts it once; has nights finished
whose process died; tells of nights that are late.

What was acted on stands in a small file beside the reports, and each cause has a key of its own, so
that neither a restart nor a second watcher starts two runs for one cause.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.exceptions import ObjectNotFound

from flows.alerts import tell_late
from flows.locking import is_running
from flows.night import speak_up
from flows.reaching import Cause, is_over, server, start
from nightshift.errors import NightshiftError
from nightshift.pipeline import Settings, load_settings
from nightshift.schedule import due, slots
from nightshift.tables import Lake, digest_of
from nightshift.triggers import drift, fresh_files, labels_waiting

log = logging.getLogger(__name__)

State = dict[str, Any]
KINDS: dict[str, type] = {
    "runs": dict, "files": list, "labels": int, "drift": int, "drifted": str, "registry": list,
    "since": str, "unfinished": dict,
}  # fmt: skip
"""What stands in a state."""
GRACE = timedelta(seconds=150)
"""Before a night whose process died is given to another run: on servers Prefect does so by itself
after 90 seconds of silence (docker/steps.py), and a worker that is started again begins soon."""
MOST_ATTEMPTS = 3
"""Runs that are started for one night that dies again and again, as where memory is short."""


@flow(name="watch", flow_run_name="watch", persist_result=False)
def watch(config: str = "pipelines.yaml") -> list[str]:
    """Look once for new files, new labels, drift and a moved alias, as `triggers` of each pipeline
    says, and start what they ask for; finish nights whose process died; tell of late nights.
    `nightshift watch` keeps looking."""
    speak_up()
    return look(load_settings(Path(config)))


def keep_looking(config: Path, stop: threading.Event) -> None:
    """Look until told to stop; the file is read afresh each time, and a look that fails is told."""
    while True:
        pause = 60.0
        try:
            settings = load_settings(config)
            triggers = [one.triggers for one in settings.pipelines.values()]
            pause = min(one.every_seconds for one in triggers)
            look(settings)
        except Exception as error:
            _say("", error)
        if stop.wait(pause):
            return


def look(settings: Settings) -> list[str]:
    """One look at every pipeline; returns what was started, in words. What goes wrong with one is
    logged, and stops no other."""
    told = list[str]()
    for name, pipeline in settings.pipelines.items():
        try:
            told += _finish_dead(settings, name)
            if pipeline.triggers.is_set:
                told += _look_at(settings, name)
            if pipeline.tells_late:
                told += _late(settings, name)
        except Exception as error:
            _say(f"{name}: ", error)
    return told


def _say(where: str, error: Exception) -> None:
    """Log what went wrong; where it is none of our errors, with the place."""
    ours = isinstance(error, NightshiftError)
    words = str(error) if ours else f"unexpected {type(error).__name__}: {error}"
    log.warning("watch     %s%s", where, words, exc_info=None if ours else error)


def _finish_dead(settings: Settings, name: str) -> list[str]:
    """Start a run for a night whose process was killed, once for each death, and no more than a
    few times; returns it in words."""
    left = next(_unfinished(settings, name, interrupted=False), None)
    if left is None:
        return []
    now = datetime.now(UTC)
    with _memory(settings, name) as state:
        before = state.get("unfinished", {})
        if before.get("key") != left.key:
            attempts = before.get("attempts", 0) if before.get("words") == left.words else 0
            before = {"key": left.key, "words": left.words, "since": now.isoformat(),
                      "attempts": attempts, "started": False}  # fmt: skip
            state["unfinished"] = before
        since = datetime.fromisoformat(before["since"])
        if before["started"] or now - since < GRACE:
            return []
        if before["attempts"] >= MOST_ATTEMPTS:
            before["started"] = True
            log.error("watch     %s: %s; its process died %d times more, so it is left. Is there "
                      "memory enough? Then: nightshift run %s --night %s", name, left.words,
                      before["attempts"], name, left.parameters["night"])  # fmt: skip
            return []
        with server() as api:
            if _is_given_on(api, settings, name, left.parameters["night"]):
                return []
            start(api, left)
        before |= {"started": True, "attempts": before["attempts"] + 1}
    log.warning("watch     %s: %s", name, left.words)
    return [f"{name}: {left.words}"]


def _is_given_on(api: Any, settings: Settings, name: str, night: str) -> bool:
    """Whether the dead night's own run waits for another worker, or was begun by one."""
    rows = Lake(settings.lake, name, settings.storage_options()).nights()
    run = next((row["prefect_run"] for row in rows if row["night"] == night), None)
    try:
        state = api.read_flow_run(UUID(run)).state if run else None
    except (ObjectNotFound, ValueError):
        return False  # of an embedded server, or forgotten
    return state is not None and (state.is_scheduled() or state.is_pending())


def _look_at(settings: Settings, name: str) -> list[str]:
    told = list[str]()
    with _memory(settings, name) as state:
        for cause, after in _causes(settings, name, state):
            with server() as api:
                before = state.get("runs", {}).get(cause.kind)
                if before and not is_over(api, UUID(before)):
                    continue  # it may see to this as well; the next look will tell
                run = start(api, cause)
            # Noted after: a kill between the two starts nothing new, for the key is the same.
            state |= after
            state["runs"] = {**state.get("runs", {}), cause.kind: str(run)}
            log.info("watch     %s: %s; started %s", name, cause.words, cause.flow)
            told.append(f"{name}: {cause.words}; started {cause.flow}")
    return told


def _late(settings: Settings, name: str) -> list[str]:
    """Tell, once, of a night that was due and did not come; returns it in words."""
    now = datetime.now(UTC)
    with _memory(settings, name) as state:
        # Of a pipeline without nights nothing is known but since when somebody looks.
        since = datetime.fromisoformat(state.setdefault("since", now.isoformat()))
    rows = Lake(settings.lake, name, settings.storage_options()).nights()
    begun = min((row["started"] for row in rows), default=since)
    # A week says it well enough, of a pipeline that was forgotten for years.
    first = max(begun, now - timedelta(days=7))
    moments = list(slots(settings.pipeline(name).schedule, first, now))
    alert = tell_late(settings, name, moments, now)
    return [f"{name}: {alert.words}"] if alert else []


@contextmanager
def _memory(settings: Settings, name: str) -> Iterator[State]:
    """What this and earlier watchers acted on; one of them at a time."""
    path = Path(settings.reports) / name / ".watch.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = _read(path)
        try:
            yield state
        finally:
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(state), encoding="utf-8")
            beside.replace(path)


def _read(path: Path) -> State:
    """What stands in a file of the watcher; what cannot be, by a hand or a full disk, is begun
    anew: each cause has a key, so that nothing starts twice."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fitting = {key: one for key, one in found.items() if isinstance(one, KINDS[key])}
        datetime.fromisoformat(fitting.get("since", "2026-01-01T00:00+00:00")).astimezone()
    except (OSError, ValueError, AttributeError, KeyError, RecursionError) as error:
        log.warning("watch     %s is not what a watcher wrote (%s); it is begun anew",
                    path, type(error).__name__)  # fmt: skip
        return {}
    return fitting


def _causes(settings: Settings, name: str, state: State) -> Iterator[tuple[Cause, State]]:
    """Every cause that was not acted on, and what to remember once it is."""
    triggers = settings.pipeline(name).triggers
    lake = Lake(settings.lake, name, settings.storage_options())
    if triggers.new_files != "off":
        yield from _of_files(settings, name, lake, state)
    if triggers.new_labels is not None:
        yield from _of_labels(settings, name, lake, state)
    if triggers.drift is not None:
        yield from _of_drift(settings, name, lake, state)
    if triggers.registry != "off":
        yield from _of_registry(settings, name, lake, state)


def _of_files(
    settings: Settings, name: str, lake: Lake, state: State
) -> Iterator[tuple[Cause, State]]:
    pipeline = settings.pipeline(name)
    found = fresh_files(lake, pipeline.source, time.time())
    fresh = [[one.uri, one.bytes, one.modified] for one in found]
    acted = [one for one in state.get("files", []) if one in fresh]
    new = [one for one in fresh if one not in acted]
    if not new:
        return
    words = f"{len(new)} new files" if len(new) > 1 else f"a new file, {Path(new[0][0]).name}"
    which = pipeline.triggers.new_files
    given = {"asked": {"cause": words}} if which == "night" else {"cause": words}
    cause = Cause(name, "new_files", which, _key(name, "files", new), words, given)
    yield cause, {"files": [*acted, *new]}


def _of_labels(
    settings: Settings, name: str, lake: Lake, state: State
) -> Iterator[tuple[Cause, State]]:
    waiting, acted = labels_waiting(lake, settings.journal_of(name)), int(state.get("labels", 0))
    # Fewer than were acted on: a training has come in between.
    since = 0 if waiting < acted else acted
    if waiting - since < (settings.pipeline(name).triggers.new_labels or 1):
        if since != acted:
            state["labels"] = since
        return
    published = lake.published()
    key = _key(name, "labels", [published and published["number"], waiting])
    words = f"{waiting} labels that no model has learned from"
    yield Cause(name, "new_labels", "train", key, words, {"cause": words}), {"labels": waiting}


def _of_drift(
    settings: Settings, name: str, lake: Lake, state: State
) -> Iterator[tuple[Cause, State]]:
    newest = lake.published()
    if newest is None or newest["number"] == state.get("drift"):
        return
    found = drift(lake)
    limit = settings.pipeline(name).triggers.drift or 0.0
    if found is None or found[1] <= limit or found[0] == state.get("drifted"):
        state["drift"] = newest["number"]
        return
    words = f"predicted labels of night {found[0]} drifted by {found[1]:.3f}, above {limit:g}"
    cause = Cause(name, "drift", "train", _key(name, "drift", found[0]), words, {"cause": words})
    yield cause, {"drift": newest["number"], "drifted": found[0]}


def _of_registry(
    settings: Settings, name: str, lake: Lake, state: State
) -> Iterator[tuple[Cause, State]]:
    from tasks.publish import follow
    from tasks.tracking import MODEL_REF_TAG, MODEL_TAG, Registry, be_brief, champion_version

    rows = lake.nights()
    published = next((row for row in reversed(rows) if row["state"] == "published"), None)
    if published is None or published["registry_version"] is None:
        return
    working = is_running(settings, name) or rows[-1]["state"] == "running"
    if working or "publish" not in lake.stages(published["night"]):
        return  # a night at work, or one killed in mid-publication, sets the aliases itself
    be_brief()
    version, ours = champion_version(settings.mlflow, name), published["registry_version"]
    if version == ours or [published["number"], version] == state.get("registry"):
        return
    tags = Registry(settings.mlflow).tags(name, version) if version is not None else None
    known = tags is not None and MODEL_REF_TAG in tags
    same = known and tags is not None and tags.get(MODEL_TAG) == published["model_id"]
    if settings.pipeline(name).triggers.registry == "restore" or not known or same:
        follow(settings.mlflow, name, ours, published["figures"].get("challenger_version"))
        where = f"version {version}" if version is not None else "nowhere"
        why = (
            "as triggers.registry says" if known and not same else "which is no other model of ours"
        )
        log.warning("watch     %s: the alias champion pointed to %s, %s; put back to version %s",
                    name, where, why, ours)  # fmt: skip
        return
    words = f"the alias champion was moved to version {version} in MLflow"
    champions = {row["registry_version"] for row in rows if row["state"] == "published"}
    back = version in champions
    given = {"to" if back else "version": version, "reason": words, "by": "MLflow registry"}
    key = _key(name, "registry", [published["number"], version])
    which = "rollback" if back else "promote"
    yield (
        Cause(name, "registry", which, key, words, given),
        {"registry": [published["number"], version]},
    )


def _key(name: str, kind: str, what: Any) -> str:
    return f"nightshift-{name}-{kind}-{digest_of(what)}"


def catch_up(settings: Settings) -> list[str]:
    """Start what nobody else would after everything was down: the night that was being worked, and
    the newest one that is due and has not begun; returns it in words."""
    causes = [one for name in settings.pipelines
              for one in [*_unfinished(settings, name)] or _missed(settings, name)]  # fmt: skip
    if causes:
        with server() as api:
            for one in causes:
                start(api, one)
    return [f"{one.pipeline}: {one.words}" for one in causes]


def _unfinished(settings: Settings, name: str, interrupted: bool = True) -> Iterator[Cause]:
    """The night that somebody worked who is gone: killed, or also told to end, as by Ctrl-C."""
    rows = Lake(settings.lake, name, settings.storage_options()).nights()
    open_ones = [row for row in rows if row["state"] != "published"]
    if not open_ones or is_running(settings, name):
        return
    for row in open_ones:
        if row["state"] == "running" or (interrupted and row["error"] == "interrupted"):
            key = _key(name, "unfinished", [row["night"], row["process"], row["prefect_run"]])
            words = f"night {row['night']} was interrupted; it is finished"
            yield Cause(name, "unfinished", "night", key, words, {"night": row["night"]})
            return  # and a run finishes all that is unfinished, in order


def _missed(settings: Settings, name: str) -> Iterator[Cause]:
    """The newest night that is due and has not begun."""
    rows = Lake(settings.lake, name, settings.storage_options()).nights()
    schedule = settings.pipeline(name).schedule
    if not rows or is_running(settings, name) or not schedule.is_set or schedule.paused:
        return
    began = {row["night"] for row in rows}
    first = min(row["started"] for row in rows)
    late = due(schedule, began, first, datetime.now(UTC))
    if late and late[-1].name not in began and late[-1].at > first:
        key = _key(name, "missed", late[-1].name)
        words = f"night {late[-1].name} is late; it is worked now"
        yield Cause(name, "missed", "night", key, words, {"scheduled": True})
