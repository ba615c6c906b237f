"""What people said of clusters and documents since last night, as this night reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from nightshift.cleaning import content_digest
from nightshift.corpus import current_assignments, current_labels
from nightshift.erasure import forgotten_digests
from nightshift.journal import Journal, Name, Shape

from .stage import Night

CONFIDENT = 0.8
"""Share of a cluster's documents, the nearest ones, that become examples of its class: who stands
at the edge may belong to a neighbour (Rakib et al. 2020 keep as many)."""


def journal_of(night: Night) -> Journal:
    """The pipeline's journal."""
    return night.settings.journal_of(night.pipeline_name)


def named(night: Night, until: int) -> dict[str, Name]:
    """The newest word about each cluster, of those that this night reads.

    What had been said when a person rolled back went back with the version: its clusters have the
    names that they had then.
    """
    undone = int(night.before.get("words_undone", 0))
    words = journal_of(night).names(until)
    return {one: word for one, word in words.items() if word.number > undone}


def shapes(night: Night, until: int) -> list[Shape]:
    """What people said of the shape of clusters since last night: mergers and splits to make."""
    return journal_of(night).shapes(_read(night), until)


def ever_shaped(night: Night, until: int) -> set[str]:
    """Every cluster that a person merged or split up to tonight."""
    words = journal_of(night).shapes(0, until)
    return {one for word in words for one in (word.cluster_id, word.other) if one}


def _read(night: Night) -> int:
    """The last word that the newest published night read."""
    return int(night.before.get("words", 0))


def spoken(night: Night, until: int) -> list[dict[str, Any]]:
    """Rows of `labels`: what people said of documents since last night, each document once.

    A night that is worked again reads the same words, and replaces the same rows.
    """
    gone = forgotten_digests(night.lake)
    # Later than what last night wrote: its rows may be younger than a word it did not read.
    least = night.previous["finished"] if night.previous else None
    return [
        {"doc_id": one.doc_id, "label": one.label, "by": one.by,
         "at": max(one.at, least) if least else one.at}
        for one in journal_of(night).labels(_read(night), until)
        if content_digest(one.doc_id) not in gone
    ]  # fmt: skip


def examples(night: Night, until: int, spoken_of: set[str]) -> list[dict[str, Any]]:
    """Rows of `labels`: documents of clusters that were said to be a class since last night.

    A document that has a label, or of which a person spoke tonight, keeps that. Where a class is
    taken back, so are its examples: their new label is null. Documents of the test and the gate are
    examples, too, so what is measured of such a class is how well the model finds the cluster
    again.
    """
    words = [one for one in named(night, until).values() if one.number > _read(night)]
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
            if taken.get(one) != word.class_name and one not in spoken_of
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
