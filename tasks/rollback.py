"""rollback: an earlier champion answers again, at once; the next night labels what it must."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from nightshift.corpus import current_assignments
from nightshift.identity import Fate, given_back
from nightshift.nearest import UNASSIGNED
from nightshift.tables import Lake, TableRef, rows_of

from .cluster import ending, living
from .publish import follow
from .stage import Night, code_version
from .tracking import Registry, bundle_of

if TYPE_CHECKING:
    from nightshift.bundle import Clusters

log = logging.getLogger(__name__)

Places = dict[str, tuple[str, float | None]]
"""By document its cluster's id and the distance to it."""


def roll_back(night: Night) -> None:
    """Publish a night in which only the model and its clusters are others; harmless to repeat.

    Weights, vocabulary, thresholds, centroids and names go back together: they are one version. The
    tables follow it, so that the next night starts from them and, without new text, keeps it.
    """
    from nightshift.bundle import Bundle

    turn, previous = night.turn, night.previous
    assert turn is not None
    assert previous is not None
    lake, replaced = night.lake, previous["registry_version"]
    then = _last_published_with(night, turn.version)
    words = (
        f"{turn.by} rolled back from version {replaced} to version {turn.version}: {turn.reason}"
    )
    decision: dict[str, Any] = {
        "champion": previous["model_id"],
        "challenger": turn.model.model_id,
        "policy": night.pipeline.promotion.policy,
        "decision": "rolled_back",
        "reason": words,
        "by": turn.by,
        "at": datetime.now(UTC),
    }
    clusters = Bundle.load(
        bundle_of(night.settings.mlflow, night.pipeline_name, turn.version)
    ).clusters
    written = [
        *_clusters_of_then(night, clusters, then),
        lake.replace("promotions", night.name, rows_of("promotions", [decision])),
    ]
    Registry(night.settings.mlflow).tag(night.pipeline_name, replaced, {"rolled_back": words})
    row = next(one for one in lake.nights() if one["night"] == night.name)
    lake.write_night(
        {
            **row,
            "state": "published",
            "finished": datetime.now(UTC),
            "versions": previous["versions"] | {one.table: one.version for one in written},
            "config_digest": previous["config_digest"],
            "code_version": code_version(),
            "model_id": turn.model.model_id,
            "model_uri": turn.model.uri,
            "registry_version": turn.version,
            "error": None,
            "figures": {
                **previous["figures"],
                **dict.fromkeys(("rows", "documents", "duplicates", "rejects"), 0),
                "quality": then["figures"].get("quality"),
                "baseline": then["figures"].get("baseline"),
                "clusters": len(clusters.ids) if clusters else 0,
                "cluster_quality": then["figures"].get("cluster_quality", {}),
                "loose": then["figures"].get("loose", []),
                # Names that people gave since then went back, too: the next night leaves them.
                "words_undone": previous["figures"].get("words", 0),
                "bundle_code": then["figures"].get("bundle_code") or then["code_version"],
                "trained": False,
                "promoted": False,
                "outcome": words,
                "model": turn.model.model_dump(),
                "challenger_version": replaced,
                "report": "",
                "turn": turn.model_dump(),
                "asked": None,
            },
        }
    )
    # From here on the earlier version is champion; whatever follows is repaired by the next start.
    follow(night.settings.mlflow, night.pipeline_name, turn.version, replaced)
    log.info("rollback  %s", words)


def _last_published_with(night: Night, version: int) -> dict[str, Any]:
    done = [row for row in night.lake.nights() if row["state"] == "published"]
    return [row for row in done if row["registry_version"] == version][-1]


# --- the clusters of then -----------------------------------------------------------------------


def _clusters_of_then(
    night: Night, clusters: Clusters | None, then: dict[str, Any]
) -> list[TableRef]:
    """The clusters that the version answers with live again, and their documents are theirs."""
    assert night.previous is not None
    lake, ids = night.lake, clusters.ids if clusters else []
    last = {row["cluster_id"]: row for row in living(lake, night.previous["night"])}
    # A night that failed, and is worked again later, may have left some of its own.
    now: Places = {**current_assignments(lake, until=night.previous["number"])}
    back = _places(night, clusters, then, now)
    place = {one: index for index, one in enumerate(ids)}
    doc_ids = sorted(back)
    places = np.array([place.get(back[one][0], -1) for one in doc_ids], np.int64)
    before = {one: cluster_id for one, (cluster_id, _) in now.items()}
    tonight, ended = given_back(ids, places, doc_ids, before, last)
    sizes = np.bincount(places[places >= 0], minlength=len(ids)).tolist()
    known = _known(lake, then)
    rows = [
        *(_living_again(clusters, known[one.cluster_id], then, one) | {"size": size}
          for one, size in zip(tonight, sizes, strict=True) if clusters),
        *(ending(one, last) for one in ended if one.cluster_id in last),
    ]  # fmt: skip
    moved = [
        {"doc_id": one, "cluster_id": back[one][0], "distance": back[one][1]}
        for one in doc_ids
        if before.get(one) != back[one][0]
    ]
    return [
        lake.replace("clusters", night.name, rows_of("clusters", rows)),
        lake.replace("assignments", night.name, rows_of("assignments", moved)),
    ]


def _places(night: Night, clusters: Clusters | None, then: dict[str, Any], now: Places) -> Places:
    """Where every document is once the version answers again.

    Those of then are where they were. Later ones are with the nearest centroid where its model has
    read them; others stay in their cluster if it lives, until the next night.
    """
    if clusters is None:
        return dict.fromkeys(now, (UNASSIGNED, None))
    old = current_assignments(night.lake, until=then["number"])
    near = _nearest(night.lake, then["model_id"], clusters, {*now} - {*old})
    living_then = {*clusters.ids}
    kept = {one: there for one, there in now.items() if there[0] in living_then}
    return dict.fromkeys(now, (UNASSIGNED, None)) | kept | near | old


def _nearest(lake: Lake, model_id: str, clusters: Clusters, wanted: set[str]) -> Places:
    """The clusters of some documents, of which the model has vectors."""
    found: Places = {}
    of_model = pc.field("model_id") == model_id
    for batch in lake.scan("embeddings", ["doc_id", "vector"], of_model) if wanted else ():
        doc_ids = batch.column("doc_id").to_pylist()
        rows = [row for row, one in enumerate(doc_ids) if one in wanted]
        if rows:
            vectors = np.array(batch.column("vector").take(rows).to_pylist(), np.float32)
            given = zip(
                rows, *(one.tolist() for one in clusters.cells.assign(vectors)), strict=True
            )
            found |= {doc_ids[row]: (clusters.ids[one] if one >= 0 else UNASSIGNED, far)
                      for row, one, far in given}  # fmt: skip
    return found


def _known(lake: Lake, then: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The newest row of each cluster up to then; retention may have removed quiet nights' rows."""
    number = {row["night"]: row["number"] for row in lake.nights()}
    rows = [row for row in lake.read("clusters").to_pylist()
            if row["event"] != "ended" and number[row["night"]] <= then["number"]]  # fmt: skip
    return {row["cluster_id"]: row for row in sorted(rows, key=lambda row: number[row["night"]])}


def _living_again(
    clusters: Clusters, known: dict[str, Any], then: dict[str, Any], fate: Fate
) -> dict[str, Any]:
    """A row of `clusters`: what answers is the bundle's, what is told of it the table's.

    Words of a night that is still told are the table's, too: some may have been forgotten since.
    """
    place, cells = clusters.ids.index(fate.cluster_id), clusters.cells
    words = {"name": clusters.names[place], "keywords": clusters.keywords[place]}
    return {
        **known,
        **(words if known["night"] != then["night"] else {}),
        "event": fate.event,
        "parents": fate.parents,
        "heirs": [],
        "centroid": cells.centroids[place].tolist(),
        "scale": float(cells.scales[place]),
        "radius": cells.radius,
        "model_id": then["model_id"],
    }
