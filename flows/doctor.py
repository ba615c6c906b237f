"""The doctor: what a kill, a full disk or a hand may have left, found and where possible repaired.

Each check is a function that yields what it found; one more is one more in `CHECKS`. A finding that
has a repair is repaired with `--repair`, under the pipeline's lock; without it nothing is changed.
"""

from __future__ import annotations

import getpass
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flows import forgetting
from flows.locking import alone, is_running, stale
from nightshift.errors import NightshiftError
from nightshift.integrity import verify
from nightshift.journal import journal_path
from nightshift.leases import Entry
from nightshift.migrations import migrate, outdated
from nightshift.pipeline import Pipeline, Settings
from nightshift.tables import SCHEMA_VERSION, SCHEMAS, Lake
from nightshift.upkeep import compact, delete, orphans, split_nights
from tasks.publish import follow
from tasks.tracking import CHALLENGER, CHAMPION, Attic, bundle_of

STALE_HOURS = 24
"""Age from which a temporary folder belongs to a process that is dead."""
SCRATCH = "nightshift-*"


@dataclass(frozen=True)
class Found:
    """Something that is not as it should be; `repair` is None where a person must look."""

    what: str
    repair: Callable[[], object] | None = None
    next_step: str = ""
    """What the person does, where there is no repair."""


@dataclass(frozen=True)
class House:
    """What the checks look at: one pipeline, while no night of it runs."""

    settings: Settings
    name: str
    pipeline: Pipeline
    lake: Lake = field(init=False)
    attic: Attic = field(init=False)

    def __post_init__(self) -> None:
        lake = Lake(self.settings.lake, self.name, self.settings.storage_options())
        object.__setattr__(self, "lake", lake)
        object.__setattr__(self, "attic", Attic(self.settings.mlflow, self.name))

    @property
    def reports(self) -> Path:
        """The pipeline's folder of pages."""
        return Path(self.settings.reports) / self.name


def examine(settings: Settings, name: str, repair: bool) -> list[dict[str, Any]]:
    """Every check on one pipeline; returns what was found: check, found, state, next_step.

    state: repaired, repairable, left (a person must look), or failed (the repair did not work).
    Raises: BusyError as `alone` does, with repair.
    """
    house = House(settings, name, settings.pipeline(name))
    if repair:
        with alone(settings, name, house.pipeline) as before:
            taken = [_told("lease", _lease(before), "repaired")] if before else []
            return taken + [one for check in CHECKS for one in _checked(house, check, True)]
    if is_running(settings, name):
        words = "a night is running; what it leaves can be told when it is done"
        return [_told("night", Found(words), "running")]
    left = stale(settings, name)
    told = [_told("lease", _lease(left), "repairable")] if left else []
    return told + [one for check in CHECKS for one in _checked(house, check, False)]


def _lease(left: Entry) -> Found:
    return Found(f"the lease of {left.holder}, which is gone; the next night takes it over")


def _checked(house: House, check: Check, repair: bool) -> Iterator[dict[str, Any]]:
    """A check that cannot look says so; it stops no other."""
    name = check.__name__.strip("_")
    try:
        for found in check(house):
            if found.repair is None:
                yield _told(name, found, "left")
            elif not repair:
                yield _told(name, found, "repairable")
            else:
                yield _repaired(name, found)
    except (NightshiftError, OSError) as error:
        yield _told(name, Found(f"could not be looked at: {error}"), "left")


def _repaired(name: str, found: Found) -> dict[str, Any]:
    assert found.repair is not None
    try:
        found.repair()
    except (NightshiftError, OSError, sqlite3.Error) as error:
        return _told(name, Found(found.what, next_step=str(error)), "failed")
    return _told(name, found, "repaired")


def _told(name: str, found: Found, state: str) -> dict[str, Any]:
    return {"check": name, "found": found.what, "state": state, "next_step": found.next_step}


def healthy(found: list[dict[str, Any]]) -> bool:
    """Whether nothing is left to do."""
    return all(one["state"] in ("repaired", "running") for one in found)


def as_lines(name: str, found: list[dict[str, Any]]) -> Iterator[str]:
    """The same for a terminal."""
    if not found:
        yield f"{name:<16} healthy: {len(CHECKS)} checks"
    for one in found:
        more = f" {one['next_step']}" if one["next_step"] else ""
        yield f"{name:<16} {one['state']:<10} {one['check']:<10} {one['found']}{more}"


# --- the checks -------------------------------------------------------------------------------


def _schema(house: House) -> Iterator[Found]:
    """Tables of an older code."""
    older = outdated(house.lake)
    if older:
        shown = ", ".join(f"{table} {version}" for table, version in older.items())
        words = f"tables of an earlier schema than {SCHEMA_VERSION}: {shown}"
        yield Found(words, lambda: [*migrate(house.lake)])


def _forget(house: House) -> Iterator[Found]:
    """A forgetting that was killed: its documents are not gone yet."""
    if forgetting.is_unfinished(house.settings, house.name):
        yield Found(
            "a `forget` was not finished: documents that should be gone are not",
            lambda: forgetting.finish(house.settings, house.name),
        )


def _nights(house: House) -> Iterator[Found]:
    """Nights that say they run, while nobody holds the lock."""
    for row in house.lake.nights():
        if row["state"] == "running":
            words = {"state": "failed", "error": "its process died; the next night finishes it"}
            yield Found(
                f"night {row['night']} says it runs, and its process ({row['process']}) does not",
                partial(_died, house, {**row, **words}),
            )


def _died(house: House, row: dict[str, Any]) -> None:
    from flows.takeover import bury

    bury(row["prefect_run"])
    house.lake.write_night(row)


def _prefect(house: House) -> Iterator[Found]:
    """Flow runs of the night and its parts that Prefect shows open, and that nobody works."""
    from flows.takeover import bury, left_running

    for run_id, name, state in left_running(house.name):
        words = f"Prefect shows the run {name} as {state}, and nobody works it"
        yield Found(words, partial(bury, run_id))


def _mlflow(house: House) -> Iterator[Found]:
    """Runs that MLflow shows running."""
    done = {row["mlflow_run"] for row in house.lake.nights() if row["state"] == "published"}
    for run_id, name in house.attic.open_runs().items():
        if name.startswith("tune"):
            continue  # a study may be at work, and goes on after a kill
        state = "FINISHED" if run_id in done else "KILLED"
        yield Found(
            f"MLflow shows the run {name} ({run_id[:8]}) as running",
            partial(house.attic.close_run, run_id, state),
        )


def _aliases(house: House) -> Iterator[Found]:
    """Aliases that say something else than the table of nights."""
    last = house.lake.published()
    if last is None:
        return
    versions = (last["registry_version"], last["figures"].get("challenger_version"))
    there = house.attic.aliases()
    for alias, version in zip((CHAMPION, CHALLENGER), versions, strict=True):
        if version is not None and there.get(alias) != version:
            yield Found(
                f"the alias {alias} points at version {there.get(alias)}, and night "
                f"{last['night']} says {version}",
                lambda: follow(house.settings.mlflow, house.name, *versions),
            )


def _champion(house: House) -> Iterator[Found]:
    """The champion's files, one by one."""
    last = house.lake.published()
    if last is None or last["registry_version"] is None:
        return
    try:
        verify(bundle_of(house.settings.mlflow, house.name, last["registry_version"]))
    except NightshiftError as error:
        hint = f"A night renews one of earlier code; else: nightshift rollback {house.name}."
        yield Found(str(error), next_step=hint)


def _files(house: House) -> Iterator[Found]:
    """Files of tables that nobody ever named, and nights in several files."""
    for table in SCHEMAS:
        found = orphans(house.lake, table, house.pipeline.keep.grace_hours)
        if found:
            size = sum(bytes_ for _, bytes_ in found)
            yield Found(
                f"table {table}: {len(found)} files that no version names, {size / 1e6:.1f} MB",
                partial(delete, house.lake, table, [path for path, _ in found]),
            )
        several = split_nights(house.lake, table)
        if several:
            yield Found(
                f"table {table}: {several} nights in several files",
                partial(compact, house.lake, table),
            )


def _pages(house: House) -> Iterator[Found]:
    """The newest night's page, which a full disk may have cut."""
    last = house.lake.published()
    if last is None or not last["figures"].get("report"):
        return
    page = house.reports / f"{last['night']}.html"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    if text.rstrip().endswith("</html>"):
        return
    words = f"the page {page} is {'cut' if text else 'missing'}"
    kept = house.attic.page(last["mlflow_run"], "report.html")
    if kept is None:
        hint = "MLflow does not have it either; the next night writes its own."
        yield Found(words, next_step=hint)
    else:
        yield Found(words, lambda: _write(page, kept))


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    beside = page.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(page)


def _journal(house: House) -> Iterator[Found]:
    """What people said, in a file that must be whole, or on a server that must answer."""
    if house.settings.journal.get_secret_value():
        try:
            house.settings.journal_of(house.name).last()
        except NightshiftError as error:
            yield Found(str(error), next_step="See that the server of `journal:` answers.")
        return
    path = journal_path(house.settings.lake, house.name, house.settings.reports)
    for fresh in path.parent.glob(f".{path.name}-*"):
        if _age_hours(fresh) > 1:
            yield Found(f"{fresh.name}: a journal that was not made to the end", fresh.unlink)
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
            [said] = opened.execute("pragma integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        hint = "Put a copy back from a backup, or move it away to begin an empty one."
        yield Found(f"journal {path}: {said}", next_step=hint)


def _leftovers(house: House) -> Iterator[Found]:
    """Temporary files and folders of processes that are dead."""
    for path in house.reports.rglob("*"):
        half = path.suffix == ".part" or (path.name.startswith(".") and path.suffix == ".new")
        if half and path.is_file():
            yield Found(f"{path}: was not written to the end", path.unlink)
    for folder in Path(tempfile.gettempdir()).glob(SCRATCH):
        mine = folder.is_dir() and not folder.is_symlink() and folder.owner() == _me()
        if mine and _age_hours(folder) > STALE_HOURS:
            yield Found(f"{folder}: {_age_hours(folder):.0f} hours old", partial(_drop, folder))


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _age_hours(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / 3600


Check = Callable[[House], Iterator[Found]]
CHECKS: tuple[Check, ...] = (
    _schema, _forget, _nights, _prefect, _mlflow, _aliases, _champion, _files, _pages, _journal,
    _leftovers,
)  # fmt: skip
"""In this order: what stands later may need what was repaired before."""
