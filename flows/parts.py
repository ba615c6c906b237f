"""Parts of a night that can be started on their own: from Prefect's page, its API, a command.

Each is a flow of its own name. One that changes tables is a night with a derived name, under the
same lock as any other: it ends published, or yesterday stays.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows import champions, takeover
from flows.locking import alone
from flows.night import Finished, night, speak_up, tell_run
from nightshift.errors import ConfigError, NightError
from nightshift.pipeline import changed, load_settings
from nightshift.schedule import ScheduleConfig, Slot, between
from nightshift.tables import Lake
from tasks.report import write_again
from tasks.stage import Asked, Night
from tasks.tracking import Tracking

log = logging.getLogger(__name__)

CONFIG = "pipelines.yaml"
EARLIEST = date(1970, 1, 2)
MOST_NIGHTS = 1_000
"""Nights of one backfill."""


@flow(name="ingest", flow_run_name="{pipeline}-ingest", persist_result=False)
def ingest(pipeline: str, config: str = CONFIG, cause: str = "") -> Finished:
    """Take new files and labels into the tables; no model learns or answers. The next night labels
    and groups what came, as does `reclassify`."""
    return _part(pipeline, config, Asked(part="ingest", cause=cause))


@flow(name="train", flow_run_name="{pipeline}-train", persist_result=False)
def train(
    pipeline: str,
    force: bool = True,
    changes: dict[str, Any] | None = None,
    config: str = CONFIG,
    cause: str = "",
) -> Finished:
    """Train a challenger on the labels that are there, judge it, and go on with who wins.

    Args: `force`, also when `train.when` sees no reason; keys that are other this time.
    """
    asked = Asked(part="train", force=force, changes=changes or {}, cause=cause)
    return _part(pipeline, config, asked)


@flow(name="reclassify", flow_run_name="{pipeline}-reclassify", persist_result=False)
def reclassify(
    pipeline: str,
    which: Literal["new", "all", "window"] = "new",
    first: date | None = None,
    last: date | None = None,
    config: str = CONFIG,
) -> Finished:
    """Let the champion answer again: what it has not read, everything, or some days' documents.

    Args: the first and last day of a window, by event time, else by when a document came in.
    """
    if which != "window" and (first or last):
        raise ConfigError("reclassify: found first or last, which belong to `window` alone.")
    if which == "window" and not (first or last):
        raise ConfigError("reclassify: a window needs a first day, a last day, or both.")
    if first and last and last < first:
        raise ConfigError(f"reclassify: found a window from {first} to {last}, which is before it.")
    asked = Asked(part="reclassify", which=which, first=first, last=last)
    return _part(pipeline, config, asked)


@flow(name="recluster", flow_run_name="{pipeline}-recluster", persist_result=False)
def recluster(
    pipeline: str, changes: dict[str, Any] | None = None, config: str = CONFIG
) -> Finished:
    """Group all documents anew, from the clusters there are, also where nothing has changed."""
    return _part(pipeline, config, Asked(part="recluster", changes=changes or {}))


@flow(name="report", flow_run_name="{pipeline}-report", persist_result=False)
def report(pipeline: str, config: str = CONFIG) -> Finished:
    """Write the page of the newest night again: after an update, or when it was lost."""
    speak_up()
    settings = load_settings(Path(config))
    declared = settings.pipeline(pipeline)
    run = str(flow_run.get_id() or "")
    takeover.begin(run)
    with alone(settings, pipeline, declared, run) as before:
        takeover.after(before)
        lake = Lake(settings.lake, pipeline, settings.storage_options())
        done = [row for row in lake.nights() if row["state"] == "published"]
        paged = [row for row in done if row["figures"].get("report")]
        if not paged:
            raise NightError(
                f"report: {pipeline} has no published night with a page yet. Run one: "
                f"nightshift run {pipeline}"
            )
        row = paged[-1]
        tell_run(pipeline, row["night"])
        asked = Asked.model_validate(row["figures"].get("asked") or {})
        before = [one for one in done if one["number"] < row["number"]]
        one = Night(
            pipeline, changed(declared, asked.changes), settings, row["night"], row["number"],
            Tracking(settings.mlflow, row["mlflow_run"]), before[-1] if before else None,
            asked=asked,
        )  # fmt: skip
        written = write_again(one)
    return Finished(one.name, True, written.path, written.digest_text, lake.root, settings.mlflow)


@flow(name="backfill", flow_run_name="{pipeline}-backfill-{first}-{last}", persist_result=False)
def backfill(
    pipeline: str,
    first: date,
    last: date,
    changes: dict[str, Any] | None = None,
    config: str = CONFIG,
) -> list[Finished]:
    """Work the nights of some dates in order, each on the files that were there by then.

    Published ones stay as they are. Without a schedule there is one night a day, at its end.
    """
    speak_up()
    settings = load_settings(Path(config))
    nights = _nights(settings.pipeline(pipeline).schedule, first, last)
    if not nights:
        raise ConfigError(
            f"backfill: no night of {pipeline} is due from {first} to {last}. Give an earlier and "
            "a later date, or see `schedule` of the pipeline."
        )
    finished = list[Finished]()
    for place, one in enumerate(nights):
        log.info("backfill  %s, %d of %d", one.name, place + 1, len(nights))
        asked = Asked(until=one.at, changes=changes or {}, cause=f"a backfill, {first} to {last}")
        finished.append(
            night.fn(pipeline, one.name, config, asked=asked.model_dump(mode="json"))
        )  # fmt: skip
    new = sum(one.new for one in finished)
    words = "\n".join(
        f"| {one.name} | {'worked' if one.new else 'published before'} |" for one in finished
    )
    _tell(pipeline, "backfill", f"{new} of {len(finished)} nights worked\n\n| night | |\n|---|---|"
                                f"\n{words}")  # fmt: skip
    return finished


@flow(name="tune", flow_run_name="{pipeline}-tune", persist_result=False)
def tune(
    pipeline: str,
    trials: int | None = None,
    processes: int | None = None,
    restart: bool = False,
    config: str = CONFIG,
) -> str:
    """Search for a better recipe, and tell it as YAML to paste; no table changes.

    Args: recipes to try in all, at the same time; whether earlier trials are forgotten.
    """
    from flows.tuning import tune as search

    speak_up()
    takeover.begin(str(flow_run.get_id() or ""))
    settings = load_settings(Path(config))
    settings.pipeline(pipeline)
    found = search(settings, pipeline, trials, processes, restart)
    _tell(pipeline, "tune", _fenced(found.text))
    return found.text


@flow(name="replay", flow_run_name="{pipeline}-replay-{night}", persist_result=False)
def replay(pipeline: str, night: str, config: str = CONFIG) -> bool:
    """Work a past night again beside the lake: whether every output is what it was then."""
    from flows.replaying import as_lines

    speak_up()
    takeover.begin(str(flow_run.get_id() or ""))
    settings = load_settings(Path(config))
    settings.pipeline(pipeline)
    # In a process of its own: the replayed night has a Prefect of its own, told before it starts.
    words = [sys.executable, "-m", "flows.cli", "replay", "--json", f"--config={config}"]
    # A parameter may be anybody's: what begins with a dash is no option.
    words += ["--", pipeline, night]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout.lstrip().startswith("{"):
        problem = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise (ConfigError if done.returncode == 2 else NightError)(problem[0])
    found = json.loads(done.stdout)
    _tell(pipeline, "replay", _fenced("\n".join(as_lines(found))))
    for line in as_lines(found):
        log.info("%s", line)
    return bool(found["same"])


@flow(name="promote", flow_run_name="{pipeline}-promote-{version}", persist_result=False)
def promote(
    pipeline: str, version: int, reason: str, by: str | None = None, config: str = CONFIG
) -> Finished:
    """Make a registered version champion; all documents are labelled and grouped by it."""
    return champions.promote(pipeline, version, reason, by, config)


@flow(name="rollback", flow_run_name="{pipeline}-rollback", persist_result=False)
def rollback(
    pipeline: str,
    reason: str,
    to: int | None = None,
    by: str | None = None,
    config: str = CONFIG,
) -> Finished:
    """Let an earlier champion answer again, at once.

    Args: why; a version that was champion, by default the last other model; who says so.
    """
    finished = champions.roll_back(pipeline, to, reason, by, config)
    _tell(pipeline, "rollback", f"Night {finished.name} is published; the champion is another.")
    return finished


def _nights(schedule: ScheduleConfig, first: date, last: date) -> list[Slot]:
    """The nights of a backfill.

    Raises: ConfigError for days that have not come, lie before any file, or are too many.
    """
    today = datetime.now(schedule.zone).date()
    if last > today:
        raise ConfigError(
            f"backfill: found {last} as the last day, and today is {today}. Nights to come are "
            "worked when they come; give a last day up to today."
        )
    if first < EARLIEST:
        raise ConfigError(
            f"backfill: found {first} as the first day, expected {EARLIEST} or later: no file is "
            "older by its time of change."
        )
    found = list(islice(between(schedule, first, last), MOST_NIGHTS + 1)) if first <= last else []
    if len(found) > MOST_NIGHTS:
        raise ConfigError(
            f"backfill: more than {MOST_NIGHTS:,} nights are due from {first} to {last}. Nothing "
            f"was worked. Give fewer days, such as up to {found[MOST_NIGHTS - 1].at.date()}, then "
            "the others."
        )
    return found


def _part(pipeline: str, config: str, asked: Asked) -> Finished:
    return night.fn(pipeline, None, config, asked=asked.model_dump(mode="json"))


def _tell(pipeline: str, what: str, words: str) -> None:
    key = f"{pipeline}-{what}".replace("_", "-")
    create_markdown_artifact(words, key=key, description=f"{what} of {pipeline}")


def _fenced(text: str) -> str:
    return f"```\n{text.replace('`', chr(39))}\n```"
