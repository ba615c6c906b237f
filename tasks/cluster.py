"""cluster: KMeans on all of the winner's embeddings, with ids that last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nightshift.chunks import CHUNK, Spooled, Vectors, each
from nightshift.clustering import (
    Assign,
    Clustering,
    carried_over,
    cluster,
    distinct,
    fit_centroids,
    reshaped,
)
from nightshift.clustering import assigned as assigned_here
from nightshift.compute import spread
from nightshift.corpus import assigned, current_labels, texts_of
from nightshift.identity import Fate, fates_of
from nightshift.ids import index_in
from nightshift.journal import Name, Shape
from nightshift.naming import HEAD, Described, describe, exemplars
from nightshift.nearest import UNASSIGNED, Cells, nearest_centroids, unit
from nightshift.scoring import quality_with_labels
from nightshift.shards import ModelVectors, Place
from nightshift.tables import Lake, TableRef, digest_of, rows_of

from .discover import Topics, held_out
from .embed import Embedded
from .ingest import Files
from .said import ever_shaped, named, shapes
from .stage import ModelRef, Night, Outcome, stage
from .tracking import scratch
from .train import Trained

if TYPE_CHECKING:
    from nightshift.bundle import Clusters

log = logging.getLogger(__name__)

KEYWORD_SAMPLE = 20_000
"""Documents whose words name the clusters, at most."""
LOOSE_SAMPLE = 5_000
"""Unassigned documents that are grouped, at most: for a dozen groups."""
SPREAD_FROM = 250
"""Clusters from which on documents are assigned on the nodes of a Ray cluster: with fewer, four
nodes take longer to read their vectors than this machine to compare them. Reckoned from what shards
cost with 8 and with 80 clusters (benchmarks/engine.py)."""
CANDIDATES = 4
"""Documents among which an exemplar is chosen: the nearest, but not one text five times."""


PER_GROUP, MOST_GROUPS = 15, 12
"""Documents to a group of the unassigned, on average, and groups of them at most."""
QUALITY = (
    "silhouette", "davies_bouldin", "stability", "cluster_accuracy", "cluster_purity",
    "cluster_nmi", "cluster_ari", "cluster_homogeneity", "cluster_completeness",
    "cluster_v_measure",
)  # fmt: skip


class Clustered(Outcome):
    """Tonight's clusters, and the documents that changed theirs."""

    clusters: TableRef
    assignments: TableRef
    ended: list[str]
    words: int
    """How much of what people said these names follow."""
    loose: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    """The unassigned in groups of their own, the tightest first: size, cohesion, keywords and
    exemplars (ids) of each."""


@stage("cluster", "clusters")
def recluster(night: Night, files: Files, trained: Trained, embedded: Embedded) -> Clustered:
    """Group all documents by the winner's vectors, starting from last night's clusters."""
    lake, words = night.lake, named(night, files.words)
    last = {row["cluster_id"]: row for row in _last(night)}
    into, parts = _by_hand(shapes(night, files.words), last)
    quiet = _nothing_changed(night, embedded) and not into and not parts
    if quiet and not _forgotten(night, words):
        return _as_before(night, files.words, words)
    doc_ids, vectors = _vectors(lake, embedded)
    if not len(doc_ids):
        log.info("cluster   nothing to group yet")
        return Clustered(
            clusters=lake.replace("clusters", night.name, []),
            assignments=lake.replace("assignments", night.name, []),
            ended=[],
            words=files.words,
        )
    assert embedded.winner is not None
    before = assigned(lake, but=night.name)
    there = before.rows_of(doc_ids)
    places, fresh = before.places_at(there), there < 0
    old, start = _start(vectors, places, before.names, last, embedded.winner.model_id)
    owners, shaped = old, start
    if start is None:
        shaped = _learned(night, embedded.winner)
    elif into or parts:
        joined = {one: other for one, other in into.items() if one in old and other in old}
        members = {one: np.flatnonzero(places == place) for place, one in enumerate(before.names)}
        owners, shaped = reshaped(
            vectors, members, old, start, joined, parts, night.pipeline.clusters.seed
        )
        log.info("cluster   people merged %d clusters and split %d", len(joined), len(parts))
    found = cluster(
        vectors, night.pipeline.clusters, shaped, fresh, _rows_of(trained.topics, doc_ids),
        index_in(doc_ids, held_out(night)) >= 0,
        _held(night, files.words, owners), _assign(night, embedded.winner.model_id),
    )  # fmt: skip
    ever = lake.read("clusters", ["cluster_id"], pc.field("night") != night.name)
    alive, columns = _living(before.names, places)
    tonight, ended = fates_of(
        found.places, len(found.cells), columns, alive, ever["cluster_id"].to_pylist(),
        _likeness(old, start, found.cells), into,
    )  # fmt: skip
    rows = [
        *_rows(night, embedded.winner.model_id, doc_ids, vectors, found, tonight, last, words),
        *(ending(one, last) for one in ended if one.cluster_id in last),
    ]
    moved = list(_moved(doc_ids, found, [one.cluster_id for one in tonight], before.names, places))
    changed = sum(one.num_rows for one in moved)
    figures = _figures(found, tonight, ended, changed) | _with_labels(lake, doc_ids, found)
    clusters = lake.replace("clusters", night.name, rows_of("clusters", rows))
    assignments = lake.replace("assignments", night.name, moved)
    _keep(night)
    told = (figures[name] for name in ("clusters", "born", "ended", "moved", "unassigned"))
    log.info("cluster   %d clusters (%d born, %d ended), %d documents new or moved, %d unassigned",
             *told)  # fmt: skip
    return Clustered(
        clusters=clusters,
        assignments=assignments,
        ended=[one.cluster_id for one in ended],
        words=files.words,
        loose=_loose(night, doc_ids, vectors, found),
        figures=figures,
    )


def _assign(night: Night, model_id: str) -> Assign:
    """What gives all vectors their places: the nodes of a Ray cluster, where there are any."""
    source, compute = ModelVectors(model_id, CHUNK), night.pipeline.compute

    def there(vectors: Vectors, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        if len(cells) < SPREAD_FROM:
            return assigned_here(vectors, cells)
        shards = source.shards(night.lake)
        # Where a document stands there twice, the rows of the table are not those of `vectors`.
        if len(shards) < 2 or sum(one.rows for one in shards) != len(vectors):
            return assigned_here(vectors, cells)
        made = [one["places"] for one in spread(compute, night.lake, source, Place(cells))]
        places, distances = pa.Table.from_batches(made).columns
        return places.to_numpy(), distances.to_numpy()

    return assigned_here if compute.engine == "local" else there


def _living(names: list[str], places: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Last night's clusters that have documents, and each document's place among them or -1."""
    alive = [one for one in names if one != UNASSIGNED]
    place = {one: n for n, one in enumerate(alive)}
    return alive, np.array([*(place.get(one, -1) for one in names), -1], np.int64)[places]


def _moved(
    doc_ids: pa.Array, found: Clustering, ids: list[str], names: list[str], before: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """Rows of `assignments`: the documents whose cluster is another than last night's."""
    place = {one: n for n, one in enumerate(names)}
    # A cluster that is new tonight is -2: nobody was there.
    now = np.array([*(place.get(one, -2) for one in [*ids, UNASSIGNED])], np.int64)[found.places]
    rows = np.flatnonzero(now != before)
    told = pa.array([*ids, UNASSIGNED], pa.string())
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        places = np.where(found.places[some] < 0, len(ids), found.places[some])
        yield pa.RecordBatch.from_pydict({
            "doc_id": doc_ids.take(pa.array(some)),
            "cluster_id": told.take(pa.array(places)),
            "distance": pa.array(found.distances[some], pa.float32()),
        })  # fmt: skip


def _by_hand(
    words: list[Shape], last: dict[str, dict[str, Any]]
) -> tuple[dict[str, str], dict[str, int]]:
    """Which living clusters people merge into which others, and into how many they split some."""
    into: dict[str, str] = {}
    parts: dict[str, int] = {}
    for word in words:
        if word.cluster_id not in last:
            continue
        if word.verb == "split" and word.parts:
            parts[word.cluster_id] = word.parts
        elif word.other in last:
            other = word.other
            while other in into:
                other = into[other]
            if other != word.cluster_id:  # two that were each merged into the other
                into = {one: other if to == word.cluster_id else to for one, to in into.items()}
                into[word.cluster_id] = other
    return into, {one: k for one, k in parts.items() if one not in into}


def _held(night: Night, until: int, owners: list[str]) -> np.ndarray | None:
    """Which clusters people shaped, with what came of those they split; None without any."""
    touched = ever_shaped(night, until)
    if not touched or not owners:
        return None
    where = (pc.field("event") == "split") & (pc.field("night") != night.name)
    for row in night.lake.read("clusters", ["cluster_id", "parents"], where).to_pylist():
        if touched & {*(row["parents"] or [])}:
            touched.add(row["cluster_id"])
    return np.array([one in touched for one in owners])


def _rows_of(topics: Topics, doc_ids: pa.Array) -> list[np.ndarray]:
    """Where the documents of each topic stand."""
    found = (index_in(pa.array(topic, pa.string()), doc_ids) for topic in topics)
    there = (rows[rows >= 0] for rows in found)
    return [rows for rows in there if len(rows)]


def _loose(
    night: Night, doc_ids: pa.Array, vectors: Vectors, found: Clustering
) -> list[dict[str, Any]]:
    """The unassigned, clustered on their own: there a topic is seen before it is large enough."""
    config = night.pipeline.clusters.model_copy(update={"namer": None})
    rows = np.flatnonzero(found.places < 0)
    random = np.random.default_rng(config.seed)
    rows = np.sort(random.permutation(rows)[:LOOSE_SAMPLE])
    k = min(MOST_GROUPS, len(rows) // PER_GROUP)
    if k < 1:
        return []
    some, ids = vectors.take(rows), doc_ids.take(pa.array(rows)).to_pylist()
    centroids = fit_centroids(some, min(k, distinct(some, k)), config.seed, 3)
    places, _ = nearest_centroids(some, centroids)
    by_id = texts_of(night.lake, ids, HEAD)
    texts = [by_id[one] for one in ids]
    groups: list[dict[str, Any]] = []
    for place, own in enumerate(describe(texts, places, len(centroids), config)):
        inside = np.flatnonzero(places == place)
        if not len(inside):
            continue  # of equal ones, another place took all
        shown = exemplars(
            some[inside], centroids[place], [texts[row] for row in inside], config.exemplars
        )
        groups.append({
            "size": len(inside),
            # Of unit vectors: the mean cosine to a mean is that mean's length.
            "cohesion": float(np.linalg.norm(some[inside].mean(0))),
            "keywords": own.keywords,
            "exemplars": [ids[inside[row]] for row in shown],
        })  # fmt: skip
    return sorted(groups, key=lambda one: -one["cohesion"])


def _figures(
    found: Clustering, tonight: list[Fate], ended: list[Fate], moved: int
) -> dict[str, float]:
    happened = Counter(one.event for one in tonight)
    return {
        "clusters": len(tonight),
        "born": happened["born"] + happened["split"],
        "merged": happened["merged"],
        "ended": len(ended),
        "moved": moved,
        "unassigned": int((found.places < 0).sum()),
        **found.figures,
    }


def _with_labels(lake: Lake, doc_ids: pa.Array, found: Clustering) -> dict[str, float]:
    """How well the clusters agree with labels, where there are two classes of them at least."""
    labels = current_labels(lake)
    rows = np.flatnonzero(index_in(doc_ids, pa.array(labels, pa.string())) >= 0)
    known = [labels[one] for one in doc_ids.take(pa.array(rows)).to_pylist()]
    if len(set(known)) < 2:
        return {}
    figures = quality_with_labels(known, found.places[rows])
    return {f"cluster_{name}": value for name, value in figures.items()}


def quality_of(clustered: Clustered) -> dict[str, float]:
    """Of a night's figures, those that say how good its clusters are."""
    return {key: value for key, value in clustered.figures.items() if key in QUALITY}


def _last(night: Night) -> list[dict[str, Any]]:
    """The clusters that lived at the end of last night."""
    if night.previous is None:
        return []
    return living(night.lake, night.previous["night"])


def living(lake: Lake, night: str) -> list[dict[str, Any]]:
    """Rows of the clusters that live at the end of a night."""
    rows = lake.read("clusters", where=pc.field("night") == night).to_pylist()
    return [row for row in rows if row["event"] != "ended"]


def _start(
    vectors: Vectors,
    places: np.ndarray,
    names: list[str],
    last: dict[str, dict[str, Any]],
    model_id: str,
) -> tuple[list[str], Cells | None]:
    """Last night's clusters in tonight's space: where they were, or where their documents are."""
    same = [row for row in last.values() if row["model_id"] == model_id]
    if same and len(same) == len(last):
        ids, centroids = [*last], np.array([row["centroid"] for row in same], np.float32)
    else:
        ids, centroids = carried_over(vectors, places, names)
    if centroids is None:
        return [], None
    scales = [last[one]["scale"] or 1.0 if one in last else 1.0 for one in ids]
    return ids, Cells(centroids, np.array(scales, np.float32))


def _learned(night: Night, winner: ModelRef) -> Cells | None:
    """The groups that a network learned to tell apart, where no cluster lives yet."""
    if winner.kind != "encoder":
        return None
    groups = night.load(winner).groups
    return None if groups is None else Cells.of(groups)


def _likeness(old: list[str], start: Cells | None, cells: Cells) -> dict[str, np.ndarray]:
    """Cosines of last night's centroids to tonight's, by id."""
    if start is None or not old:
        return {}
    cosines = unit(start.centroids) @ unit(cells.centroids).T
    return dict(zip(old, cosines, strict=True))


def ending(fate: Fate, last: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last row of a cluster: nobody is left, and where its documents went."""
    gone = {"size": 0, "event": "ended", "parents": [], "heirs": fate.heirs, "exemplars": []}
    return {**last[fate.cluster_id], **gone}


def _keep(night: Night) -> None:
    """The clusterer, as an artifact of the night."""
    found = clusters_of(night.lake, night.name)
    if found is not None:
        with scratch() as folder:
            found.save(Path(folder))
            night.tracking.keep(Path(folder), "clusters")


def _nothing_changed(night: Night, embedded: Embedded) -> bool:
    """Same model, same documents, same declaration: another fit would only make noise."""
    return (
        night.asked.part != "recluster"
        and embedded.winner is not None
        and night.champion is not None
        and embedded.winner.model_id == night.champion.model_id
        and not embedded.embeddings.rows
        and night.before.get("clusters_config") == clusters_config(night)
        # After a rollback they are where another model put them.
        and all(row["model_id"] == embedded.winner.model_id for row in _last(night))
    )


def clusters_of(lake: Lake, night: str) -> Clusters | None:
    """A night's clusters as a bundle holds them; None where there are none."""
    from nightshift.bundle import Clusters

    rows = living(lake, night)
    if not rows:
        return None
    return Clusters(
        Cells(
            np.array([row["centroid"] for row in rows], np.float32),
            np.array([row["scale"] for row in rows], np.float32),
            float(rows[0]["radius"]),
        ),
        [row["cluster_id"] for row in rows],
        [row["name"] for row in rows],
        [row["keywords"] for row in rows],
    )


def clusters_config(night: Night) -> str:
    """Digest of what is declared about clusters."""
    return digest_of(night.pipeline.clusters.model_dump())


def _forgotten(night: Night, words: dict[str, Name]) -> bool:
    """Whether a person took back a name that still stands: keywords must be found anew."""
    return any(
        row["named_by"] and row["cluster_id"] in words and words[row["cluster_id"]].name is None
        for row in _last(night)
    )


def _as_before(night: Night, read: int, words: dict[str, Name]) -> Clustered:
    """Last night's clusters, carried on unchanged."""
    rows = _last(night)
    for row in rows:
        row |= {"event": "continued", "parents": [], **_said(words.get(row["cluster_id"]))}
    log.info("cluster   %d clusters, nothing changed", len(rows))
    figures: dict[str, float] = {"clusters": len(rows), "born": 0, "ended": 0, "moved": 0}
    kept: dict[str, float] = night.before.get("cluster_quality", {})
    return Clustered(
        clusters=night.lake.replace("clusters", night.name, rows_of("clusters", rows)),
        assignments=night.lake.replace("assignments", night.name, []),
        ended=[],
        words=read,
        loose=night.before.get("loose", []),
        figures=figures | kept,
    )


def _vectors(lake: Lake, embedded: Embedded) -> tuple[pa.Array, Vectors]:
    """All documents' ids and vectors float32 (documents, width) of the winning model."""
    parts: list[pa.Array] = []

    def read() -> Iterator[np.ndarray]:
        of_winner = pc.field("model_id") == (embedded.winner.model_id if embedded.winner else "")
        for batch in lake.scan("embeddings", ["doc_id", "vector"], of_winner):
            parts.append(batch.column("doc_id"))
            flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            yield flat.reshape(batch.num_rows, -1)

    vectors = Spooled(read())
    doc_ids = pa.concat_arrays([pa.array([], pa.string()), *parts])
    rows = pa.table([doc_ids, pa.array(np.arange(len(doc_ids)))], ["doc_id", "row"])
    last = rows.group_by("doc_id").aggregate([("row", "max")])["row_max"].to_numpy()
    if len(last) < len(doc_ids):  # a model that was champion before had embedded some already
        kept = np.sort(last)
        doc_ids = doc_ids.take(pa.array(kept))
        pieces = (kept[start : start + CHUNK] for start in range(0, len(kept), CHUNK))
        vectors = Spooled(vectors.take(piece) for piece in pieces)
    return doc_ids, vectors


def _rows(
    night: Night,
    model_id: str,
    doc_ids: pa.Array,
    vectors: Vectors,
    found: Clustering,
    tonight: list[Fate],
    last: dict[str, dict[str, Any]],
    words: dict[str, Name],
) -> list[dict[str, Any]]:
    """Rows of `clusters`: fates, sizes, cohesion, names, exemplars."""
    config, cells = night.pipeline.clusters, found.cells
    sample = np.sort(np.random.default_rng(config.seed).permutation(len(doc_ids))[:KEYWORD_SAMPLE])
    near = [_nearest(found, place, CANDIDATES * config.exemplars) for place in range(len(cells))]
    wanted = np.unique(np.concatenate([sample, *near]))
    names = dict(zip(wanted.tolist(), doc_ids.take(pa.array(wanted)).to_pylist(), strict=True))
    texts = texts_of(night.lake, names.values(), HEAD)
    shown = {
        place: [names[int(rows[one])] for one in exemplars(
            vectors.take(rows), cells.centroids[place], [texts[names[int(row)]] for row in rows],
            config.exemplars,
        )]
        for place, rows in enumerate(near)
    }  # fmt: skip
    described = describe(
        [texts[names[int(row)]] for row in sample],
        [int(found.places[row]) for row in sample],
        len(cells),
        config,
        {
            place: [texts[one] for one in chosen]
            for place, chosen in shown.items()
            if tonight[place].cluster_id not in last
        },
    )
    sizes, cohesion = _cohesion(vectors, found)
    told = _names(tonight, described, last, words)
    return [
        {
            "cluster_id": fate.cluster_id,
            "event": fate.event,
            "born": last[fate.cluster_id]["born"] if fate.cluster_id in last else night.name,
            "parents": fate.parents,
            "heirs": [],
            "size": int(sizes[place]),
            "cohesion": float(cohesion[place]),
            "keywords": described[place].keywords,
            "exemplars": shown[place],
            "centroid": cells.centroids[place].tolist(),
            "scale": float(cells.scales[place]),
            "radius": cells.radius,
            "model_id": model_id,
            **told[place],
        }
        for place, fate in enumerate(tonight)
    ]


def _names(
    tonight: list[Fate],
    described: list[Described],
    last: dict[str, dict[str, Any]],
    words: dict[str, Name],
) -> list[dict[str, Any]]:
    """Each cluster's name and who gave it: a person's, else last night's while it holds, or new."""
    pairs = list(zip((fate.cluster_id for fate in tonight), described, strict=True))
    kept = [_kept(one, last.get(own), words.get(own)) for own, one in pairs]
    taken = {row["name"].casefold() for row in kept if row}
    names: list[dict[str, Any]] = []
    for (own, one), row in zip(pairs, kept, strict=True):
        name = one.name if one.name.casefold() not in taken else f"{one.name} ({own})"
        names.append(row or {"name": name, "named_by": one.named_by})
    return names


def _kept(described: Described, before: dict[str, Any] | None, word: Name | None) -> dict[str, Any]:
    """A name that stands: a person's, or last night's while a word in it still tells something."""
    if word is not None and word.name is not None:
        return _said(word)
    if before is None or (word is not None and before["named_by"]):
        return {}
    if before["named_by"] or any(one in before["name"] for one in described.keywords):
        return {"name": before["name"], "named_by": before["named_by"]}
    return {}


def _said(word: Name | None) -> dict[str, Any]:
    return {"name": word.name, "named_by": word.by} if word and word.name else {}


def _nearest(found: Clustering, place: int, most: int) -> np.ndarray:
    """The rows that lie nearest to a cluster's centroid, the nearest first."""
    rows = np.flatnonzero(found.places == place)
    distances = found.distances[rows]
    if len(rows) > most:
        close = distances <= np.partition(distances, most - 1)[most - 1]
        rows, distances = rows[close], distances[close]
    return rows[np.argsort(distances, kind="stable")][:most]


def _cohesion(vectors: Vectors, found: Clustering) -> tuple[np.ndarray, np.ndarray]:
    """Each cluster's size, and the mean cosine of its documents' unit vectors to its centroid."""
    centroids, k = unit(found.cells.centroids), len(found.cells)

    def of_chunk(given: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        chunk, places = given
        held = places >= 0
        chunk, places = chunk[held], places[held]
        cosines = np.einsum("ij,ij->i", chunk, centroids[places])
        return np.bincount(places, minlength=k), np.bincount(places, cosines, k)

    starts = range(CHUNK, len(found.places), CHUNK)
    pairs = zip(vectors.chunks(CHUNK), np.split(found.places, starts), strict=True)
    sizes, sums = (np.sum(parts, axis=0) for parts in zip(*each(of_chunk, pairs), strict=True))
    return sizes, sums / np.maximum(sizes, 1)
