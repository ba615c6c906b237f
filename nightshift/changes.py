"""What a night changed, and what of it deserves a look: read from its tables, a dozen each.

Only what the tables have is counted; no model is asked here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .ids import ids_of, index_in, numbers_of
from .nearest import UNASSIGNED
from .tables import ROW_GROUP, Lake

if TYPE_CHECKING:
    from .corpus import Assigned

DOZEN = 12
MOST_FILES, MOST_LABELS = 20, 5
"""Files listed, and labels told of each."""
ALIKE, MOST_ALIKE = 0.9, 2
"""The cosine from which texts are alike to the model, and how many such are worth a look."""
MOST_OF_CLUSTER, MOST_FAR = 3, 2_000
"""Surprises of one cluster, and documents among which they are looked for."""
PURE = 0.6
"""Share of a cluster's documents with its most frequent label, from which another label in it is
worth a look."""
MOST_GROWN = 3


def by_file(lake: Lake, night: str, model_id: str | None) -> dict[str, Any]:
    """Tonight's documents by source file, each with its labels: given where it came with one, else
    predicted.

    Returns: files (file, documents, labelled, labels as [name, documents], most first), and how
    many files are left out.
    """
    tonight = pc.field("night") == night
    rows = lake.read("documents", ["doc_id", "source_file", "label"], tonight)
    said = _said_of(ids_of(rows["doc_id"]), _predicted(lake, night, model_id))
    own = ids_of(rows["label"])
    counted = pa.table({
        "file": ids_of(rows["source_file"]).fill_null(""),
        "name": pc.call_function("coalesce", [own, said["label"], pa.scalar("")]),
        "labelled": own.is_valid().cast(pa.int64()),
    }).group_by(["file", "name"]).aggregate([("name", "count"), ("labelled", "sum")])  # fmt: skip
    of: dict[str, Counter[str]] = defaultdict(Counter)
    labelled = Counter[str]()
    for row in counted.to_pylist():
        labelled[row["file"]] += row["labelled_sum"]
        of[row["file"]][row["name"]] += row["name_count"]
    files = [
        {
            "file": file,
            "documents": counts.total(),
            "labelled": labelled[file],
            "labels": [[name, many] for name, many in _most(counts) if name][:MOST_LABELS],
            "more": max(0, len([name for name in counts if name]) - MOST_LABELS),
        }
        for file, counts in sorted(of.items(), key=lambda one: (-one[1].total(), one[0]))
    ]
    return {"files": files[:MOST_FILES], "left_out": max(0, len(files) - MOST_FILES)}


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _predicted(lake: Lake, night: str, model_id: str | None) -> pa.Table:
    """Label, probability and margin of the documents that were answered tonight."""
    where = (pc.field("night") == night) & (pc.field("model_id") == (model_id or ""))
    return lake.read("predictions", ["doc_id", "label", "probability", "margin"], where)


def _said_of(doc_ids: pa.Array, predicted: pa.Table) -> dict[str, pa.Array]:
    """Label, probability and margin of some documents, null where nothing was answered."""
    rows = index_in(doc_ids, ids_of(predicted["doc_id"]))
    places = pa.array(rows, mask=rows < 0)
    names = ("label", "probability", "margin")
    return {name: pa.concat_arrays(predicted[name].take(places).chunks) if len(rows) else
            pa.array([], predicted[name].type) for name in names}  # fmt: skip


def label_changes(lake: Lake, old: str | None, new: str | None) -> dict[str, Any]:
    """Documents that another model calls otherwise, and the largest flows from label to label.

    Args: model ids of the champion before and of tonight's.
    Returns: of (documents with both answers), documents (changed), flows (before, after, documents;
    the largest first), examples (doc_id, before, after, probability; the surest of each flow in
    turn). Empty where the model is the same, or one is missing.
    """
    if old is None or new is None or old == new:
        return {}
    columns, nights = ["night", "doc_id", "label", "probability"], lake.nights()
    before_it = lake.read("predictions", columns[:3], pc.field("model_id") == old)
    # A model that was asked for everything again, or came back, has answered some twice: its newest
    # answer counts, and `index_in` finds the first.
    numbers = numbers_of(ids_of(before_it["night"]), nights)
    before_it = before_it.take(np.argsort(numbers, kind="stable")[::-1])
    ids, words = ids_of(before_it["doc_id"]), ids_of(before_it["label"])
    newest = np.full(len(ids), -1)
    parts: list[pa.Table] = []
    for batch in lake.scan("predictions", columns, pc.field("model_id") == new, rows=ROW_GROUP):
        places = index_in(batch.column("doc_id"), ids)
        part = pa.Table.from_batches([batch]).filter(pa.array(places >= 0))
        places, answers = places[places >= 0], numbers_of(ids_of(part["night"]), nights)
        np.maximum.at(newest, places, answers)
        part = part.append_column("label_old", words.take(pa.array(places)))
        part = part.append_column("place", pa.array(places))
        part = part.append_column("answer", pa.array(answers))
        parts.append(part.filter(pc.field("label") != pc.field("label_old")))
    if not parts:
        return {"of": 0, "documents": 0, "flows": [], "examples": []}
    moved = pa.concat_tables(parts)
    moved = moved.filter(pa.array(newest[moved["place"].to_numpy()] == moved["answer"].to_numpy()))
    moved = moved.sort_by("doc_id")
    before, after = moved["label_old"].to_pylist(), moved["label"].to_pylist()
    flows = Counter(zip(before, after, strict=True))
    ordered = sorted(flows.items(), key=lambda one: (-one[1], one[0]))
    return {
        "of": int((newest >= 0).sum()),
        "documents": moved.num_rows,
        "flows": [{"before": one, "after": two, "documents": many}
                  for (one, two), many in ordered[:DOZEN]],
        "examples": _of_each(moved, ordered),
    }  # fmt: skip


def _of_each(
    moved: pa.Table, ordered: Sequence[tuple[tuple[str, str], int]]
) -> list[dict[str, Any]]:
    """The surest of the largest flow, of the next, and so on, until there are a dozen."""
    rows = moved.sort_by([("probability", "descending"), ("doc_id", "ascending")]).to_pylist()
    by_flow: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        mine = by_flow[row["label_old"], row["label"]]
        if len(mine) < DOZEN:
            sure = float(row["probability"])
            mine.append({"doc_id": row["doc_id"], "before": row["label_old"],
                         "after": row["label"], "probability": sure})  # fmt: skip
    turns = [by_flow[flow][turn] for turn in range(DOZEN) for flow, _ in ordered
             if turn < len(by_flow[flow])]  # fmt: skip
    return turns[:DOZEN]


def cluster_events(
    clusters: Sequence[Mapping[str, Any]], ended: Sequence[Mapping[str, Any]]
) -> dict[str, list[Mapping[str, Any]]]:
    """What happened to clusters: born, split, merged, ended, and the three that grew most.

    Args: tonight's rows with previous_size; rows of those that ended.
    """
    of = {kind: [row for row in clusters if row.get("event") == kind]
          for kind in ("born", "split", "merged")}  # fmt: skip
    grown = [row for row in clusters
             if row.get("previous_size") and row["size"] > row["previous_size"]]  # fmt: skip
    grown.sort(key=lambda row: (row["previous_size"] - row["size"], row["cluster_id"]))
    return {**of, "ended": list(ended), "grown": grown[:MOST_GROWN]}


def standouts(
    lake: Lake,
    night: str,
    model_id: str | None,
    where: Assigned,
    labels: Mapping[str, str],
) -> dict[str, list[dict[str, Any]]]:
    """Of tonight's documents, a dozen each of what deserves a look.

    unsure       the smallest margin between the likeliest two labels
    surprising   the farthest from the nearest centroid, in units of that cluster's scale; of one
                 new topic there are a few, so that it does not fill the list
    disagreeing  with a label, given or else predicted, other than the most frequent one of their
                 cluster, in the purest clusters and nearest to the centre first

    Args: where all documents are; the given label by document.
    Returns: rows of doc_id, label, cluster_id and a number, by kind.
    """
    rows = lake.read("documents", ["doc_id"], pc.field("night") == night)
    tonight = ids_of(rows["doc_id"])
    said, there = _said_of(tonight, _predicted(lake, night, model_id)), where.rows_of(tonight)
    distances = pa.array(np.append(where.distances, np.nan)[there], mask=there < 0)
    unsure = _least({"doc_id": tonight, "margin": said["margin"]}, DOZEN)
    far = _least({"doc_id": tonight, "far": pc.call_function("negate", [distances])}, MOST_FAR)
    found: dict[str, list[dict[str, Any]]] = {
        "unsure": unsure.to_pylist(),
        "surprising": _varied(ids_of(far["doc_id"]), lake, night, model_id, where),
        "disagreeing": _disagreeing(tonight, said["label"], where, labels),
    }
    told = pa.array([row["doc_id"] for of in found.values() for row in of], pa.string())
    places = pa.array(index_in(told, tonight))
    of = {
        one: (label, probability)
        for one, label, probability in zip(
            told.to_pylist(),
            *(said[name].take(places).to_pylist() for name in ("label", "probability")),
            strict=True,
        )
    }
    held = where.mapping(told)
    return {kind: [_row(row, of, held, labels) for row in some] for kind, some in found.items()}


def _least(columns: Mapping[str, pa.Array], most: int) -> pa.Table:
    """So many rows of the smallest numbers, ascending; those without one are left out. Columns are
    ids and numbers; of equal numbers the lower id comes first."""
    (ids, _), (number, _) = columns.items()
    rows = pa.table(dict(columns)).drop_null()
    order = [(number, "ascending"), (ids, "ascending")]
    if rows.num_rows > most:
        options = pc.SelectKOptions(most, order)
        rows = rows.take(pc.call_function("select_k_unstable", [rows], options))
    return rows.sort_by(order)


def _varied(
    doc_ids: pa.Array, lake: Lake, night: str, model_id: str | None, where: Assigned
) -> list[dict[str, Any]]:
    """A dozen, in their order, of which few are alike or of one cluster."""
    # What is new tonight was embedded tonight.
    its = (pc.field("night") == night) & (pc.field("model_id") == (model_id or ""))
    rows = lake.read_of("embeddings", ["doc_id", "vector"], doc_ids, its).to_pydict()
    vectors = {one: np.asarray(vector, np.float32)
               for one, vector in zip(rows["doc_id"], rows["vector"], strict=True)}  # fmt: skip
    held = where.mapping(doc_ids)
    chosen: list[str] = []
    of_cluster = Counter[str]()
    for one in doc_ids.to_pylist():
        cluster = held[one][0]
        alike = sum(_cosine(vectors.get(one), vectors.get(other)) >= ALIKE for other in chosen)
        # The unassigned are no group: among them, likeness alone tells.
        full = cluster != UNASSIGNED and of_cluster[cluster] == MOST_OF_CLUSTER
        if alike >= MOST_ALIKE or full:
            continue
        chosen.append(one)
        of_cluster[cluster] += 1
        if len(chosen) == DOZEN:
            break
    return [{"doc_id": one, "distance": held[one][1]} for one in chosen]


def _cosine(one: np.ndarray | None, other: np.ndarray | None) -> float:
    if one is None or other is None:
        return 0.0
    return float(one @ other / max(1e-9, float(np.linalg.norm(one) * np.linalg.norm(other))))


def _row(
    found: Mapping[str, Any],
    said: Mapping[str, tuple[str | None, float | None]],
    where: Mapping[str, tuple[str, float]],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    doc_id = found["doc_id"]
    label, probability = said[doc_id]
    return {
        "doc_id": doc_id, "label": labels.get(doc_id, label), "given": doc_id in labels,
        "probability": probability, "cluster_id": where.get(doc_id, (None, 0.0))[0], **found,
    }  # fmt: skip


def _disagreeing(
    tonight: pa.Array, said: pa.Array, where: Assigned, labels: Mapping[str, str]
) -> list[dict[str, Any]]:
    given = pa.array(labels, pa.string())
    names = sorted({*labels.values(), *said.unique().drop_null().to_pylist()})
    number = {one: n for n, one in enumerate(names)}
    of_given = np.array([*(number[one] for one in labels.values()), -1], np.int64)
    of_said = index_in(said, pa.array(names, pa.string()))
    own = index_in(tonight, given)
    called = np.where(own >= 0, of_given[own], of_said)
    # A cluster is known by all labels that people gave in it, not by tonight's alone.
    places, others = where.places_of(tonight), index_in(given, tonight) < 0
    counts = np.zeros((len(where.names) + 1, len(names)), np.int64)
    for place, label in (
        (places, called), (where.places_of(given)[others], of_given[:-1][others])
    ):  # fmt: skip
        there = (place >= 0) & (label >= 0)
        np.add.at(counts, (place[there], label[there]), 1)
    loose = where.names.index(UNASSIGNED) if UNASSIGNED in where.names else len(where.names)
    counts[loose] = 0
    total = np.maximum(counts.sum(1), 1)
    usual = counts.argmax(1) if names else np.zeros(len(counts), np.int64)
    purity = counts.max(1, initial=0) / total
    odd = np.flatnonzero(
        (called >= 0) & (places >= 0) & (purity[places] >= PURE) & (usual[places] != called)
    )
    far = where.distances[where.rows_of(tonight)[odd]]
    first = np.lexsort((far, -purity[places[odd]]))[:DOZEN]
    if len(first):
        # Of equal ones the lower id comes first: whoever is as good as the last is looked at.
        last = (-purity[places[odd[first[-1]]]], far[first[-1]])
        keys = np.stack([-purity[places[odd]], far])
        first = np.flatnonzero((keys[0] < last[0]) | ((keys[0] == last[0]) & (keys[1] <= last[1])))
    ids = tonight.take(pa.array(odd[first])).to_pylist()
    found = sorted(
        (-float(purity[places[row]]), float(apart), one, int(row))
        for row, apart, one in zip(odd[first], far[first], ids, strict=True)
    )
    return [
        {"doc_id": one, "usual": names[usual[places[row]]], "purity": -purity}
        for purity, _, one, row in found[:DOZEN]
    ]


def place_all(vectors: np.ndarray, sample: int = 1_500, near: int = 4) -> np.ndarray:
    """Places of any number of documents in the plane: a sample by t-SNE, the others among those of
    it that are nearest to them.

    A weight is the fourth power of the cosine's excess over the next nearest, so that a document
    stands with its own and not in the middle between two groups; a little disorder, always the
    same, keeps documents off one another.

    Args: unit vectors, float32 (documents, width). Returns: float32 (documents, 2).
    """
    from .pictures import lay_out

    count = len(vectors)
    if count <= sample:
        return lay_out(vectors)
    random = np.random.default_rng(1)
    chosen = np.sort(random.permutation(count)[:sample])
    landmarks = vectors[chosen]
    laid = lay_out(landmarks)
    places = np.empty((count, 2), np.float32)
    spread = float(np.median(_to_next(laid)))
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        cosines = vectors[part] @ landmarks.T
        best = np.argpartition(-cosines, near, axis=1)[:, : near + 1]
        close = np.take_along_axis(cosines, best, axis=1)
        order = np.argsort(-close, axis=1)
        best, close = (np.take_along_axis(one, order, axis=1) for one in (best, close))
        weight = (np.maximum(close[:, :near] - close[:, near:], 1e-6)) ** 4
        weight /= weight.sum(1, keepdims=True)
        places[part] = (laid[best[:, :near]] * weight[:, :, None]).sum(1)
    places += random.normal(scale=spread / 2, size=places.shape)
    places[chosen] = laid
    return places


def _to_next(places: np.ndarray) -> np.ndarray:
    """Distance of each place to the nearest other one."""
    from scipy.spatial import KDTree

    return KDTree(places).query(places, k=2)[0][:, 1]
