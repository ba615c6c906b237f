"""keep: after the publication, what the policy no longer wants goes; files are looked after.

    ledger -> rows -> models and artifacts -> pages -> files joined, old versions vacuumed

The ledger, the table `prunings`, is written first: killed at any point, the next night finds again
what is left to remove, and whoever asks for what is gone is told so.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from nightshift.pipeline import Pipeline, Settings
from nightshift.retention import (
    KeepConfig,
    Pruned,
    beyond,
    gone_models,
    gone_versions,
    note,
    old_nights,
    prunings,
    remove_rows,
    rows_to_go,
    versions_to_keep,
)
from nightshift.tables import SCHEMAS, Lake
from nightshift.upkeep import compact, trim_log, vacuum

from .stage import Night
from .tracking import Attic, versions_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What would go now, and the models that go with it."""

    found: list[Pruned]
    models: frozenset[str]

    def of(self, kind: str) -> list[Pruned]:
        """What goes of one kind."""
        return [one for one in self.found if one.kind == kind]


@task(name="keep", task_run_name="keep", cache_policy=NO_CACHE, persist_result=False)
def keep(night: Night) -> None:
    """Remove what the policy does not keep, and say how much it was."""
    found = prune(night.settings, night.pipeline_name, night.pipeline)
    figures = {f"keep/{kind}": float(size) for kind, (size, _) in totals(found).items()}
    if figures:
        night.tracking.figures(figures | {"keep/bytes": float(sum(one.bytes for one in found))})
    for line in as_lines(found):
        log.info("keep      %s", line)


def plan(settings: Settings, name: str, pipeline: Pipeline) -> Plan:
    """What the policy no longer keeps; nothing is changed."""
    lake, policy = Lake(settings.lake, name, settings.storage_options()), pipeline.keep
    nights = lake.nights()
    versions = versions_of(settings.mlflow, name) if policy.models else []
    gone = gone_versions(nights, versions, policy)
    models = gone_models(nights, versions, gone) if policy.models else set[str]()
    old = old_nights(nights, policy, datetime.now(UTC))
    attic = Attic(settings.mlflow, name)
    found = [
        *rows_to_go(lake, old, models, policy),
        *_models(attic, gone, models, policy),
        *_artifacts(attic, nights, policy),
        *_pages(settings, name, nights, policy),
        *_versions(lake, nights, policy),
    ]
    return Plan(found, frozenset(models))


def prune(settings: Settings, name: str, pipeline: Pipeline) -> list[Pruned]:
    """Remove what `plan` finds, then join and vacuum the tables; returns all that went.

    The caller holds the pipeline's lock.
    """
    lake = Lake(settings.lake, name, settings.storage_options())
    attic = Attic(settings.mlflow, name)
    planned = plan(settings, name, pipeline)
    note(lake, planned.found)
    remove_rows(lake, planned.found, planned.models)
    for one in planned.of("model"):
        attic.remove_version(int(one.subject), planned.models)
    for one in planned.of("artifacts"):
        attic.empty_run(one.subject)
    for one in planned.of("page"):
        (Path(settings.reports) / name / one.subject).unlink(missing_ok=True)
    return [*planned.found, *look_after(lake, pipeline.keep)]


def look_after(lake: Lake, policy: KeepConfig) -> list[Pruned]:
    """Join the files of a night, and let go of versions that no kept night names."""
    found: list[Pruned] = []
    kept = versions_to_keep(lake.nights(), policy.table_versions or 0)
    for table in SCHEMAS:
        joined = compact(lake, table)
        if joined:
            log.info("keep      table %s: %d files joined", table, joined)
        if policy.table_versions is None or lake.version(table) is None:
            continue
        named = kept.get(table, set())
        files, size = vacuum(lake, table, named, policy.grace_hours)
        trim_log(lake, table, min(named, default=lake.version(table) or 0))
        if files:
            found.append(Pruned("files", table, "", files, size, policy.because("table_versions")))
    return found


# --- what there is to remove ------------------------------------------------------------------


def _models(
    attic: Attic, gone: list[dict[str, Any]], models: Collection[str], policy: KeepConfig
) -> Iterator[Pruned]:
    """Versions of the registry; with the last one of a model goes what its training kept."""
    for one in gone:
        files, size = attic.size_of_version(one["version"], one["model_id"] in models)
        yield Pruned(
            "model", str(one["version"]), one["night"] or "", files, size, policy.because("models")
        )


def _artifacts(attic: Attic, nights: list[dict[str, Any]], policy: KeepConfig) -> Iterator[Pruned]:
    """Runs of old nights that still have files beside their models."""
    old = {row["mlflow_run"]: row["night"] for row in beyond(nights, policy.artifacts)}
    for run_id in attic.full_runs() & old.keys() if old else ():
        files, size = attic.size_of_run(run_id)
        yield Pruned("artifacts", run_id, old[run_id], files, size, policy.because("artifacts"))


def _pages(
    settings: Settings, name: str, nights: list[dict[str, Any]], policy: KeepConfig
) -> Iterator[Pruned]:
    for row in beyond(nights, policy.pages):
        page = Path(settings.reports) / name / f"{row['night']}.html"
        if page.is_file():
            size = page.stat().st_size
            yield Pruned("page", page.name, row["night"], 1, size, policy.because("pages"))


def _versions(lake: Lake, nights: list[dict[str, Any]], policy: KeepConfig) -> Iterator[Pruned]:
    """Nights whose tables can no longer be opened as they were, from now on."""
    noted = {row["of_night"] for row in prunings(lake, kind="versions")}
    for row in beyond(nights, policy.table_versions):
        if row["night"] not in noted:
            because = policy.because("table_versions")
            yield Pruned("versions", "tables", row["night"], len(row["versions"]), 0, because)


# --- what is told -----------------------------------------------------------------------------

UNITS = {
    "rows": "rows", "model": "models", "artifacts": "runs' artifacts", "page": "pages",
    "versions": "nights' table versions", "files": "table files",
}  # fmt: skip


def totals(found: Collection[Pruned]) -> dict[str, tuple[int, int]]:
    """By kind, how many (rows, files, or things) and their bytes."""
    summed: dict[str, tuple[int, int]] = {}
    for one in found:
        size, bytes_ = summed.get(one.kind, (0, 0))
        more = one.size if one.kind in ("rows", "files") else 1
        summed[one.kind] = (size + more, bytes_ + one.bytes)
    return summed


def as_lines(found: Collection[Pruned], verb: str = "removed") -> Iterator[str]:
    """The same for a terminal."""
    for kind, (size, bytes_) in totals(found).items():
        of = sorted({one.subject for one in found if one.kind == kind})
        which = f" of {', '.join(of)}" if kind in ("rows", "files") else ""
        weight = f", {bytes_ / 1e6:.1f} MB" if bytes_ else ""
        rules = ", ".join(sorted({one.because for one in found if one.kind == kind}))
        yield f"{verb} {size:,} {UNITS[kind]}{which}{weight} ({rules})"
