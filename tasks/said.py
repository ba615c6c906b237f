"""What people said of clusters since last night, as this night reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from nightshift.corpus import current_assignments, current_labels
from nightshift.journal import Journal, Name, journal_path

from .stage import Night

CONFIDENT = 0.8
"""Share of a cluster's documents, the nearest ones, that become examples of its class: who stands
at the edge may belong to a neighbour (Rakib et al. 2020 keep as many)."""


def journal_of(night: Night) -> Journal:
    """The pipeline's journal."""
    return Journal(journal_path(night.settings.lake, night.pipeline_name, night.settings.reports))


def named(night: Night, until: int) -> dict[str, Name]:
    """The newest word about each cluster, of those that this night reads."""
    return journal_of(night).names(until)


def examples(night: Night, until: int) -> list[dict[str, Any]]:
    """Rows of `labels`: documents of clusters that were said to be a class since last night.

    A document that has a label keeps it. Where a class is taken back, so are its examples: their
    new label is null. Documents of the test and the gate are examples, too, so what is measured of
    such a class is how well the model finds the cluster again.
    """
    read = int(night.before.get("words", 0))
    words = [one for one in journal_of(night).names(until).values() if one.number > read]
    if not words:
        return []
    assigned = current_assignments(night.lake, but=night.name)
    labels = current_labels(night.lake, but=night.name)
    rows: list[dict[str, Any]] = []
    for word in words:
        by = f"cluster {word.cluster_id}"
        taken = _given(night, by, labels)
        if word.class_name is None:
            chosen = list(taken)
        else:
            free = {one for one in assigned if one not in labels or one in taken}
            chosen = _nearest(assigned, word.cluster_id, free)
        at = datetime.now(UTC)
        rows.extend(
            {"doc_id": one, "label": word.class_name, "by": by, "at": at}
            for one in chosen
            if taken.get(one) != word.class_name
        )
    return rows


def _given(night: Night, by: str, labels: dict[str, str]) -> dict[str, str]:
    """Labels that were given in a cluster's name and still stand."""
    where = (pc.field("by") == by) & (pc.field("night") != night.name)
    rows = night.lake.read("labels", ["doc_id", "label"], where).to_pylist()
    given = {row["doc_id"]: row["label"] for row in rows}
    return {one: label for one, label in given.items() if label and labels.get(one) == label}


def _nearest(assigned: dict[str, tuple[str, float]], cluster_id: str, free: set[str]) -> list[str]:
    """The documents nearest to a cluster's centroid, without those that have a label."""
    members = sorted((far, one) for one, (where, far) in assigned.items() if where == cluster_id)
    near = [one for _, one in members[: max(1, round(CONFIDENT * len(members)))]]
    return [one for one in near if one in free]
