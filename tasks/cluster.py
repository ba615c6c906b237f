"""cluster: KMeans on all of the winner's embeddings, with ids that last."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nightshift.bundle import Clusters
from nightshift.clustering import (
    Clustering,
    Identity,
    carried_over,
    cluster,
    identify,
    keywords,
)
from nightshift.corpus import texts_of
from nightshift.tables import Lake, TableRef, digest_of, rows_of

from .embed import Embedded
from .stage import Night, Outcome, stage
from .tracking import scratch
from .train import champion_of

log = logging.getLogger(__name__)

KEYWORD_SAMPLE = 20_000
"""Documents whose words name the clusters, at most."""


class Clustered(Outcome):
    """Tonight's clusters, and the documents that changed theirs."""

    clusters: TableRef
    assignments: TableRef
    ended: list[str]


@stage("cluster", "clusters")
def recluster(night: Night, embedded: Embedded) -> Clustered:
    """Group all documents by the winner's vectors, starting from last night's clusters."""
    lake = night.lake
    if _nothing_changed(night, embedded):
        return _as_before(night)
    doc_ids, vectors = _vectors(lake, embedded)
    if not doc_ids:
        log.info("cluster   nothing to group yet")
        return Clustered(
            clusters=lake.replace("clusters", night.name, []),
            assignments=lake.replace("assignments", night.name, []),
            ended=[],
        )
    config = night.pipeline.clusters
    before = current_assignments(lake, but=night.name)
    old_ids, start = carried_over(vectors, doc_ids, before)
    found = cluster(vectors, config, start)
    ever = lake.read("clusters", ["cluster_id"], pc.field("night") != night.name)
    identity = identify(
        found.places, len(found.centroids), doc_ids, before,
        [*old_ids, *ever["cluster_id"].to_pylist()],
    )  # fmt: skip
    rows = _rows(night, embedded, doc_ids, vectors, found, identity)
    clusters = lake.replace("clusters", night.name, rows_of("clusters", rows))
    moved = [
        {"doc_id": doc_id, "cluster_id": identity.ids[place], "distance": float(distance)}
        for doc_id, place, distance in zip(doc_ids, found.places, found.distances, strict=True)
        if before.get(doc_id) != identity.ids[place]
    ]
    assignments = lake.replace("assignments", night.name, rows_of("assignments", moved))
    _keep(night)
    born = identity.events.count("born")
    log.info("cluster   %d clusters (%d born, %d ended), %d documents new or moved",
             len(rows), born, len(identity.ended), len(moved))  # fmt: skip
    return Clustered(
        clusters=clusters,
        assignments=assignments,
        ended=identity.ended,
        figures={"clusters": len(rows), "born": born, "ended": len(identity.ended),
                 "moved": len(moved)}
        | ({} if found.silhouette is None else {"silhouette": found.silhouette}),
    )  # fmt: skip


def _keep(night: Night) -> None:
    """The clusterer, as an artifact of the night."""
    found = clusters_of(night)
    if found is not None:
        with scratch() as folder:
            found.save(Path(folder))
            night.tracking.keep(Path(folder), "clusters")


def _nothing_changed(night: Night, embedded: Embedded) -> bool:
    """Same model, same documents, same declaration: another fit would only make noise."""
    return (
        embedded.winner is not None
        and embedded.winner == champion_of(night)
        and not embedded.embeddings.rows
        and night.before.get("clusters_config") == clusters_config(night)
    )


def clusters_of(night: Night) -> Clusters | None:
    """Tonight's clusters as a bundle holds them; None where there are none."""
    rows = night.lake.read("clusters", where=pc.field("night") == night.name).to_pylist()
    if not rows:
        return None
    return Clusters(
        np.array([row["centroid"] for row in rows], np.float32),
        [row["cluster_id"] for row in rows],
        [row["name"] for row in rows],
        [row["keywords"] for row in rows],
    )


def clusters_config(night: Night) -> str:
    """Digest of what is declared about clusters."""
    return digest_of(night.pipeline.clusters.model_dump())


def _as_before(night: Night) -> Clustered:
    """Last night's clusters, carried on unchanged."""
    assert night.previous is not None
    where = pc.field("night") == night.previous["night"]
    rows = night.lake.read("clusters", where=where).to_pylist()
    for row in rows:
        row["event"] = "continued"
    log.info("cluster   %d clusters, nothing changed", len(rows))
    figures = {"clusters": len(rows), "born": 0, "ended": 0, "moved": 0}
    silhouette = night.before.get("silhouette")
    return Clustered(
        clusters=night.lake.replace("clusters", night.name, rows_of("clusters", rows)),
        assignments=night.lake.replace("assignments", night.name, []),
        ended=[],
        figures=figures | ({"silhouette": silhouette} if silhouette is not None else {}),
    )


def current_assignments(lake: Lake, but: str | None = None) -> dict[str, str]:
    """Cluster id by document: the newest change of each. Nights count by their number.

    Args: `but`, a night whose rows are about to be replaced.
    """
    order = {row["night"]: row["number"] for row in lake.nights()}
    changes = lake.read("assignments", ["doc_id", "cluster_id", "night"]).to_pydict()
    rows = sorted(
        zip(changes["night"], changes["doc_id"], changes["cluster_id"], strict=True),
        key=lambda row: order.get(row[0], 0),
    )
    return {doc_id: cluster_id for of_night, doc_id, cluster_id in rows if of_night != but}


def _vectors(lake: Lake, embedded: Embedded) -> tuple[list[str], np.ndarray]:
    """All documents' ids and vectors float32 (documents, width) of the winning model."""
    doc_ids: list[str] = []
    parts: list[np.ndarray] = []
    if embedded.winner is not None:
        of_winner = pc.field("model_id") == embedded.winner.model_id
        for batch in lake.scan("embeddings", ["doc_id", "vector"], of_winner):
            doc_ids.extend(batch.column("doc_id").to_pylist())
            flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            parts.append(flat.reshape(batch.num_rows, -1))
    return doc_ids, np.concatenate(parts) if parts else np.empty((0, 1), np.float32)


def _rows(
    night: Night,
    embedded: Embedded,
    doc_ids: list[str],
    vectors: np.ndarray,
    found: Clustering,
    identity: Identity,
) -> list[dict[str, Any]]:
    """Rows of `clusters`: sizes, cohesion, keywords, exemplars."""
    config, k = night.pipeline.clusters, len(found.centroids)
    sample = np.sort(np.random.default_rng(config.seed).permutation(len(doc_ids))[:KEYWORD_SAMPLE])
    texts = texts_of(night.lake, [doc_ids[row] for row in sample])
    words = keywords(
        [texts[doc_ids[row]] for row in sample],
        [int(found.places[row]) for row in sample],
        k,
        config.keywords,
    )
    cosines = _cosines(vectors, found)
    nearest = np.argsort(found.distances, kind="stable")
    assert embedded.winner is not None
    rows: list[dict[str, Any]] = []
    for place in range(k):
        members = nearest[found.places[nearest] == place]
        rows.append({
            "cluster_id": identity.ids[place],
            "name": ", ".join(words[place][:3]) or identity.ids[place],
            "event": identity.events[place],
            "parents": [],
            "size": len(members),
            "cohesion": float(cosines[members].mean()),
            "keywords": words[place],
            "exemplars": [doc_ids[row] for row in members[: config.exemplars]],
            "centroid": found.centroids[place].tolist(),
            "model_id": embedded.winner.model_id,
        })  # fmt: skip
    return rows


def _cosines(vectors: np.ndarray, found: Clustering) -> np.ndarray:
    """Cosine of each document's unit vector to its centroid."""
    own = found.centroids[found.places]
    return (vectors * own).sum(1) / np.maximum(np.linalg.norm(own, axis=1), 1e-12)
