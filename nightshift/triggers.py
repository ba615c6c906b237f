"""What may start a night between two nights, and how far it has come."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from .config import Config
from .journal import Journal
from .sources import FoundFile, SourceConfig, is_settled, list_files
from .tables import Lake

LEAST_SHARE = 1e-4
"""A label that nobody has counts as this share, so that its logarithm is a number."""
LEAST_DOCUMENTS = 50
"""A night of fewer new documents tells nothing about drift."""


class TriggersConfig(Config):
    """What starts a run by itself, beside the schedule; `nightshift up` and `watch` look."""

    new_files: Literal["off", "night", "ingest"] = "off"
    """A new file in the source starts a whole night, or only takes it in."""
    new_labels: int | None = Field(default=None, ge=1)
    """So many labels that no model has learned from start a training."""
    drift: float | None = Field(default=None, gt=0, le=10)
    """A population stability index above this between the labels predicted for two nights' new
    documents starts a training; 0.1 is usually called small, 0.25 large."""
    registry: Literal["off", "adopt", "restore"] = "off"
    """Somebody moves the alias `champion` in MLflow: adopt writes it down as a promotion or a
    rollback by a night of its own, restore puts the alias back."""
    every_seconds: int = Field(default=60, ge=5, le=86_400)
    """Seconds between two looks."""

    @property
    def is_set(self) -> bool:
        """Whether there is anything to look at."""
        return (self.new_files, self.registry) != ("off", "off") or bool(
            self.new_labels or self.drift
        )


def fresh_files(lake: Lake, source: SourceConfig, now: float) -> list[FoundFile]:
    """Files that are wholly written, and that no night has met yet."""
    rows = lake.read("batches", ["uri", "bytes", "modified"]).to_pylist()
    seen = {(row["uri"], row["bytes"], row["modified"]) for row in rows}
    return [
        file
        for file in list_files(source)
        if (file.uri, file.bytes, file.modified) not in seen and is_settled(file, source, now)
    ]


def labels_waiting(lake: Lake, journal: Journal) -> int:
    """Labels that came after the newest training: in the tables, and said in the journal."""
    published = lake.published()
    if published is None:
        return 0
    basis = published["figures"].get("basis") or {}
    since = basis.get("night", 0)
    nights = [row["night"] for row in lake.nights() if row["number"] > since]
    later = pa.array(nights, pa.string())  # an empty list has no type
    version = published["versions"].get("labels")
    given = lake.read("labels", ["label"], pc.field("night").isin(later), version).num_rows
    own = pc.field("label").is_valid() & pc.field("night").isin(later)
    version = published["versions"].get("documents")
    given += lake.read("documents", ["doc_id"], own, version).num_rows
    read = int(published["figures"].get("words", 0))
    given += len(journal.labels(read))
    words = journal.since(read)
    classes = {one.cluster_id for one in words if one.class_name is not None}
    if classes:
        from .corpus import current_assignments  # which brings torch; the config is read by all

        sizes = Counter(cluster for cluster, _ in current_assignments(lake).values())
        given += sum(sizes[one] for one in classes)
    return given


def drift(lake: Lake) -> tuple[str, float] | None:
    """The newest published night with enough new documents, and how far the labels predicted for
    them lie from those of the one before; None while there are no two such nights."""
    mixes: list[tuple[str, Mapping[str, int]]] = []
    for row in reversed(lake.nights()):
        if row["state"] == "published" and row["figures"].get("documents", 0) >= LEAST_DOCUMENTS:
            mix = label_mix(lake, row)
            if sum(mix.values()) >= LEAST_DOCUMENTS:
                mixes.append((row["night"], mix))
        if len(mixes) == 2:
            return mixes[0][0], stability_index(mixes[1][1], mixes[0][1])
    return None


def label_mix(lake: Lake, row: dict[str, Any]) -> Mapping[str, int]:
    """How often each label was predicted for a night's new documents, by that night."""
    its = pc.field("night") == row["night"]
    new = lake.read("documents", ["doc_id"], its, row["versions"].get("documents"))["doc_id"]
    said = its & pc.field("doc_id").isin(new.unique())
    found = lake.read("predictions", ["label"], said, row["versions"].get("predictions"))
    return Counter(found["label"].to_pylist())


def stability_index(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Population stability index of two counts: the sum of (a - b) ln(a / b) over shares.

    Symmetric, 0 for equal shares (Siddiqi 2006, Credit Risk Scorecards).
    """
    sums = sum(before.values()), sum(after.values())
    shares = (
        [max(counts.get(label, 0) / total, LEAST_SHARE) for counts, total in
         zip((before, after), sums, strict=True)]
        for label in sorted(before.keys() | after.keys())
    )  # fmt: skip
    return sum((b - a) * math.log(b / a) for a, b in shares)
