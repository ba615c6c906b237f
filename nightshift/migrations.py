"""Lakes of earlier versions, brought forward in place.

Every table carries the version of its schema as the property `nightshift.schema`; a table without
one is older than that property. A step only ever adds: columns are null in rows that are there, or
get what a reader of that time took for granted. All steps may be repeated, and the property is
written last, so that a kill leaves a lake that is brought forward again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .tables import SCHEMA_PROPERTY, SCHEMA_VERSION, SCHEMAS, Lake, schema_of


@dataclass(frozen=True)
class Step:
    """What one version of the schema brought: columns by table, and values for rows that are there.

    A filled column holds this value where it is null and rows exist.
    """

    name: str
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    filled: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


STEPS: dict[int, Step] = {
    2: Step(
        "clusters live",
        {"clusters": ("named_by", "born", "heirs", "scale", "radius")},
        # Every document had a cluster, however far it was.
        {"clusters": {"scale": 1.0, "radius": float("inf")}},
    ),
    3: Step("further columns of the source", {"documents": ("columns",)}),
    4: Step(
        "promotions are proved",
        {"promotions": ("policy", "wins", "losses", "p_value", "slices", "champion_ms",
                        "challenger_ms")},
    ),
    5: Step("nights keep a manifest", {"nights": ("manifest",)}),
    6: Step("the schema carries a version"),
}  # fmt: skip
"""By the version that a step leads to; new tables need none, for they begin with their first row.
Adding a column: add it to `tables.SCHEMAS`, raise `tables.SCHEMA_VERSION`, add a step."""

LOG_PROPERTIES = {"delta.enableExpiredLogCleanup": "false"}
"""What new tables are created with; see `Lake.writer`."""


def outdated(lake: Lake) -> dict[str, int]:
    """Tables whose schema is of an earlier version, and which.

    Raises: ConfigError for a table that a newer Nightshift wrote.
    """
    found: dict[str, int] = {}
    for table in SCHEMAS:
        opened = lake.handle(table)
        if opened is not None and (version := schema_of(opened)) < SCHEMA_VERSION:
            found[table] = version or _guessed(opened, table)
    return found


def migrate(lake: Lake) -> Iterator[str]:
    """Bring every table to the schema of this code, oldest step first; tells what it did.

    The caller holds the pipeline's lock. Raises: as `outdated`.
    """
    for table, version in outdated(lake).items():
        for number in range(version + 1, SCHEMA_VERSION + 1):
            step = STEPS[number]
            added = _add(lake, table, step.columns.get(table, ()))
            rows = _fill(lake, table, step.filled.get(table, {}))
            if added:
                more = f", filled in {rows} rows" if rows else ""
                names = ", ".join(added)
                yield f"table '{table}', to version {number} ({step.name}): {names}{more}"
        lake.set_properties(table, {**LOG_PROPERTIES, SCHEMA_PROPERTY: str(SCHEMA_VERSION)})


def _guessed(opened: Any, table: str) -> int:
    """The version of a table without the property: that of the last step whose columns it has."""
    there = {one.name for one in opened.schema().fields}
    missing = [number for number, step in STEPS.items() if {*step.columns.get(table, ())} - there]
    return min(missing, default=SCHEMA_VERSION) - 1


def _add(lake: Lake, table: str, columns: tuple[str, ...]) -> list[str]:
    opened = lake.handle(table)
    there = {one.name for one in opened.schema().fields}
    missing = [one for one in columns if one not in there]
    if missing:
        lake.add_columns(table, missing)
    return missing


def _fill(lake: Lake, table: str, values: dict[str, Any]) -> int:
    """Give rows a value where they have none, night by night; returns how many rows."""
    if not values:
        return 0
    nights: dict[str, list[dict[str, Any]]] = {}
    for row in lake.read(table).to_pylist():
        nights.setdefault(row["night"], []).append(row)
    count = 0
    for night, rows in nights.items():
        lacking = [row for row in rows if any(row[name] is None for name in values)]
        if lacking:
            for row in lacking:
                row |= {name: one for name, one in values.items() if row[name] is None}
            with lake.writer(table, night) as writer:
                writer.write([{k: v for k, v in row.items() if k != "night"} for row in rows])
            count += len(lacking)
    return count
