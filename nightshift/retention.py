"""Retention: what of past nights may go, by a policy, and what must stay whatever it says.

Documents, labels, tokens, batches, tokenizers, tombstones, promotions, assignments and the rows of
`nights` are never touched: later nights need them. Of what goes, the table `prunings` keeps a row,
so that whoever asks for it later is told when it went and by which rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from .config import Config
from .tables import Lake, rows_of

OF_NIGHT = ("rejects", "duplicates", "stages", "clusters")
"""Tables of which an old night's rows may go."""
OF_MODEL = ("predictions", "embeddings")
"""Tables of which the rows of a model may go that is gone itself."""


class KeepConfig(Config):
    """What stays of past nights. A rule that is not declared keeps all; none of them touches
    documents, labels, decisions, the champion, a challenger, or the version to go back to."""

    nights: int | None = Field(default=None, ge=2)
    """Newest nights of which rejects, duplicates, what stages handed on, and rows of clusters to
    which nothing happened stay. With `days`, a night stays where either rule says so."""
    days: int | None = Field(default=None, ge=1)
    """The same by age in days, from the night's publication."""
    models: int | None = Field(default=None, ge=1)
    """Newest versions of the registry that stay. With a model go its predictions and vectors."""
    artifacts: int | None = Field(default=None, ge=1)
    """Newest nights whose MLflow run keeps its files. Figures and parameters stay."""
    pages: int | None = Field(default=None, ge=1)
    """Newest nights whose morning page stays."""
    table_versions: int | None = Field(default=None, ge=2)
    """Newest nights whose tables can be opened as they were; files of no other version go."""
    grace_hours: int = Field(default=24, ge=0, le=8760)
    """Files replaced or written within this time stay, for readers who began before."""

    @property
    def declared(self) -> bool:
        """Whether anything may go at all."""
        rules = self.model_dump(exclude={"grace_hours"})
        return any(one is not None for one in rules.values())

    def because(self, *rules: str) -> str:
        """The declared ones of some rules, as they stand in pipelines.yaml."""
        said = self.model_dump()
        return ", ".join(f"keep.{name}: {said[name]}" for name in rules if said[name] is not None)


@dataclass(frozen=True)
class Pruned:
    """One thing that goes.

    kind: rows, model, artifacts, page, versions or files; subject: the table, version, run or page;
    of_night: whose it was; size: rows or files.
    """

    kind: str
    subject: str
    of_night: str
    size: int
    bytes: int
    because: str


# --- what may go ------------------------------------------------------------------------------


def published(nights: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the nights that are published, oldest first."""
    return [row for row in nights if row["state"] == "published"]


def old_nights(nights: list[dict[str, Any]], keep: KeepConfig, now: datetime) -> list[str]:
    """Published nights that neither `nights` nor `days` keeps, oldest first; never the newest."""
    if keep.nights is None and keep.days is None:
        return []
    done = published(nights)
    newest = {row["night"] for row in done[-(keep.nights or 1) :]}
    since = now - timedelta(days=keep.days) if keep.days is not None else None
    return [
        row["night"]
        for row in done
        if row["night"] not in newest and (since is None or row["finished"] < since)
    ]


def beyond(nights: list[dict[str, Any]], newest: int | None) -> list[dict[str, Any]]:
    """Rows of the published nights before the newest so many; none where no number is given."""
    return [] if newest is None else published(nights)[:-newest]


def to_go_back_to(done: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The night whose version `rollback` goes to: the last with another model, of those that nobody
    went back from since they answered.

    Args: rows of the published nights, oldest first.
    """
    versions: set[int | None] = set()
    models: set[str | None] = set()
    for before, row in zip([None, *done], done, strict=False):
        if before is not None and (row["figures"].get("turn") or {}).get("kind") == "rollback":
            versions.add(before["registry_version"])
            models.add(before["model_id"])
        versions.discard(row["registry_version"])
        models.discard(row["model_id"])
    models |= {None, done[-1]["model_id"]}
    for row in reversed(done):
        if row["model_id"] not in models and row["registry_version"] not in versions:
            return row
    return None


def needed_versions(nights: list[dict[str, Any]]) -> set[int]:
    """Versions of the registry that stay whatever the policy: the champion, the challenger, the
    version that `rollback` goes to, and those that an unfinished night turns to."""
    done = published(nights)
    if not done:
        return set()
    now = done[-1]
    back = to_go_back_to(done)
    turns = [row["figures"].get("turn") or {} for row in nights if row["state"] != "published"]
    found = {
        now["registry_version"],
        now["figures"].get("challenger_version"),
        back["registry_version"] if back else None,
        *(turn.get("version") for turn in turns),
    }
    return {int(one) for one in found if one is not None}


def gone_versions(
    nights: list[dict[str, Any]], versions: list[dict[str, Any]], keep: KeepConfig
) -> list[dict[str, Any]]:
    """Of the registry's versions, oldest first, those that go."""
    if keep.models is None or not published(nights):
        return []
    stay = needed_versions(nights) | {one["version"] for one in versions[-keep.models :]}
    # A version of an unfinished night is registered and not yet named by its row.
    unfinished = {row["night"] for row in nights if row["state"] != "published"}
    return [
        one for one in versions if one["version"] not in stay and one["night"] not in unfinished
    ]


def gone_models(
    nights: list[dict[str, Any]], versions: list[dict[str, Any]], gone: list[dict[str, Any]]
) -> set[str]:
    """Models none of whose versions stays."""
    numbers = {one["version"] for one in gone}
    stay = {one["model_id"] for one in versions if one["version"] not in numbers}
    stay |= {row["model_id"] for row in published(nights)[-1:]}
    models = {one["model_id"] for one in gone} | {row["model_id"] for row in published(nights)}
    return {one for one in models - stay if one is not None}


def rows_to_go(
    lake: Lake, old: Collection[str], models: Collection[str], keep: KeepConfig
) -> Iterator[Pruned]:
    """Rows of old nights, and of models that are gone, by table and night."""
    for table in (*OF_NIGHT, *OF_MODEL):
        rule, edit = _rule(table, old, models)
        if rule is None or edit is None:
            continue
        counts = Counter[str]()
        wanted = ["night", *(name for name in _READ.get(table, ()))]
        for batch in lake.scan(table, wanted, rule):
            left = edit(batch)
            lost = batch.num_rows - left.num_rows if table != "stages" else _emptied(batch)
            if lost:
                counts.update({batch.column("night")[0].as_py(): lost})
        because = keep.because("models") if table in OF_MODEL else keep.because("nights", "days")
        yield from (Pruned("rows", table, night, n, 0, because) for night, n in counts.items())


def remove_rows(lake: Lake, found: Collection[Pruned], models: Collection[str]) -> None:
    """Take the rows of `rows_to_go` out, one commit per table and night; harmless to repeat."""
    for one in found:
        if one.kind == "rows":
            _, edit = _rule(one.subject, {one.of_night}, models)
            assert edit is not None
            where = pc.field("night") == one.of_night
            batches = list(lake.scan(one.subject, None, where))
            lake.replace(one.subject, one.of_night, (edit(batch) for batch in batches))


Edit = Callable[[pa.RecordBatch], pa.RecordBatch]
_READ = {"stages": ("outputs",), "clusters": ("event",), **dict.fromkeys(OF_MODEL, ("model_id",))}


def _rule(
    table: str, old: Collection[str], models: Collection[str]
) -> tuple[pc.Expression | None, Edit | None]:
    """Where a table's rows are that go, and what is left of a batch."""
    if table in OF_MODEL:
        gone = pa.array(sorted(models), pa.string())
        its = pc.field("model_id").isin(gone) if models else None
        return its, partial(_without, gone)
    where = pc.field("night").isin(pa.array(sorted(old), pa.string())) if old else None
    return where, {"stages": _outputs_emptied, "clusters": _happened}.get(table, _none)


def _none(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(0, 0)


def _without(models: pa.Array, batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(~pc.field("model_id").isin(models))


def _happened(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows in which a cluster was born, split, merged or ended: ids are never given again."""
    return batch.filter(pc.field("event") != "continued")


def _outputs_emptied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Stages without what they handed on; that they are done, and their figures, stay."""
    place = batch.schema.get_field_index("outputs")
    return batch.set_column(place, "outputs", pa.array(["{}"] * batch.num_rows, pa.string()))


def _emptied(batch: pa.RecordBatch) -> int:
    return sum(one != "{}" for one in batch.column("outputs").to_pylist())


# --- table versions ---------------------------------------------------------------------------


def versions_to_keep(nights: list[dict[str, Any]], newest: int) -> dict[str, set[int]]:
    """By table, the versions that the newest published nights name."""
    kept: dict[str, set[int]] = {}
    for row in published(nights)[-newest:]:
        for table, version in row["versions"].items():
            kept.setdefault(table, set()).add(version)
    return kept


# --- the record -------------------------------------------------------------------------------


def note(lake: Lake, found: Collection[Pruned], now: datetime | None = None) -> None:
    """Write down what goes, in one commit and before it goes; what was noted before stays noted."""
    done = published(lake.nights())
    if not found or not done:
        return
    night, at = done[-1]["night"], now or datetime.now(UTC)
    there = lake.read("prunings", where=pc.field("night") == night).to_pylist()
    rows = {_key(row): row for row in there}
    for one in found:
        row = {**asdict(one), "at": at}
        rows.setdefault(_key(row), row)
    lake.replace("prunings", night, rows_of("prunings", [*rows.values()]))


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["kind"], row["subject"], row["of_night"]


def prunings(lake: Lake, **wanted: str) -> list[dict[str, Any]]:
    """What was noted, oldest first; keywords are columns and the value they must have."""
    rows = lake.read("prunings").to_pylist()
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda row: row["at"])


def told(row: dict[str, Any]) -> str:
    """When something went, and why: `removed on 2026-11-24 (keep.models: 3)`."""
    return f"removed on {row['at'].astimezone():%Y-%m-%d} ({row['because']})"
