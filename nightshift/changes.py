"""What a night changed, and what of it deserves a look: read from its tables, a dozen each.

Only what the tables have is counted; no model is asked here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .nearest import UNASSIGNED
from .tables import Lake

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
    said = _predicted(lake, night, model_id)
    of: dict[str, Counter[str]] = defaultdict(Counter)
    labelled = Counter[str]()
    for doc_id, file, label in zip(*(one.to_pylist() for one in rows.columns), strict=True):
        labelled[file or ""] += label is not None
        of[file or ""][label or said.get(doc_id, ("", 0.0, 0.0))[0]] += 1
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


def _predicted(lake: Lake, night: str, model_id: str | None) -> dict[str, tuple[str, float, float]]:
    """Label, probability and margin of tonight's documents."""
    where = (pc.field("night") == night) & (pc.field("model_id") == (model_id or ""))
    columns = ["doc_id", "label", "probability", "margin"]
    rows = lake.read("predictions", columns, where).to_pydict()
    return {
        one: (label, probability, margin)
        for one, label, probability, margin in zip(*(rows[name] for name in columns), strict=True)
    }


def label_changes(lake: Lake, old: str | None, new: str | None) -> dict[str, Any]:
    """Documents that another model calls otherwise, and the largest flows from label to label.

    Args: model ids of the champion before and of tonight's.
    Returns: of (documents with both answers), documents (changed), flows (before, after, documents;
    the largest first), examples (doc_id, before, after, probability; the surest of each flow in
    turn). Empty where the model is the same, or one is missing.
    """
    if old is None or new is None or old == new:
        return {}
    columns = ["doc_id", "label", "probability"]
    tables = [lake.read("predictions", columns, pc.field("model_id") == one) for one in (old, new)]
    both = tables[1].join(tables[0].drop_columns(["probability"]), "doc_id", right_suffix="_old",
                          join_type="inner")  # fmt: skip
    moved = both.filter(pc.field("label") != pc.field("label_old")).sort_by("doc_id")
    before, after = moved["label_old"].to_pylist(), moved["label"].to_pylist()
    flows = Counter(zip(before, after, strict=True))
    ordered = sorted(flows.items(), key=lambda one: (-one[1], one[0]))
    return {
        "of": both.num_rows,
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
    where: Mapping[str, tuple[str, float]],
    labels: Mapping[str, str],
) -> dict[str, list[dict[str, Any]]]:
    """Of tonight's documents, a dozen each of what deserves a look.

    unsure       the smallest margin between the likeliest two labels
    surprising   the farthest from the nearest centroid, in units of that cluster's scale; of one
                 new topic there are a few, so that it does not fill the list
    disagreeing  with a label, given or else predicted, other than the most frequent one of their
                 cluster, in the purest clusters and nearest to the centre first

    Args: cluster id and distance by document, of all; the given label by document.
    Returns: rows of doc_id, label, cluster_id and a number, by kind.
    """
    said = _predicted(lake, night, model_id)
    rows = lake.read("documents", ["doc_id"], pc.field("night") == night)
    tonight = rows["doc_id"].to_pylist()
    unsure = sorted((said[one][2], one) for one in tonight if one in said)
    far = sorted((-where[one][1], one) for one in tonight if one in where)
    return {
        "unsure": [_row(one, said, where, labels, margin=margin) for margin, one in unsure[:DOZEN]],
        "surprising": [
            _row(one, said, where, labels, distance=where[one][1])
            for one in _varied([one for _, one in far[:MOST_FAR]], lake, model_id, where)
        ],
        "disagreeing": _disagreeing(tonight, said, where, labels),
    }


def _varied(
    doc_ids: Sequence[str], lake: Lake, model_id: str | None, where: Mapping[str, tuple[str, float]]
) -> list[str]:
    """A dozen, in their order, of which few are alike or of one cluster."""
    its = (pc.field("model_id") == (model_id or "")) & pc.field("doc_id").isin(
        pa.array(doc_ids, pa.string())
    )
    rows = lake.read("embeddings", ["doc_id", "vector"], its).to_pydict()
    vectors = {one: np.asarray(vector, np.float32)
               for one, vector in zip(rows["doc_id"], rows["vector"], strict=True)}  # fmt: skip
    chosen: list[str] = []
    of_cluster = Counter[str]()
    for one in doc_ids:
        cluster = where[one][0]
        alike = sum(_cosine(vectors.get(one), vectors.get(other)) >= ALIKE for other in chosen)
        # The unassigned are no group: among them, likeness alone tells.
        full = cluster != UNASSIGNED and of_cluster[cluster] == MOST_OF_CLUSTER
        if alike >= MOST_ALIKE or full:
            continue
        chosen.append(one)
        of_cluster[cluster] += 1
        if len(chosen) == DOZEN:
            break
    return chosen


def _cosine(one: np.ndarray | None, other: np.ndarray | None) -> float:
    if one is None or other is None:
        return 0.0
    return float(one @ other / max(1e-9, float(np.linalg.norm(one) * np.linalg.norm(other))))


def _row(
    doc_id: str,
    said: Mapping[str, tuple[str, float, float]],
    where: Mapping[str, tuple[str, float]],
    labels: Mapping[str, str],
    **more: Any,
) -> dict[str, Any]:
    label, probability, _ = said.get(doc_id, (None, None, None))
    return {
        "doc_id": doc_id, "label": labels.get(doc_id, label), "given": doc_id in labels,
        "probability": probability, "cluster_id": where.get(doc_id, (None, 0.0))[0], **more,
    }  # fmt: skip


def _disagreeing(
    tonight: Sequence[str],
    said: Mapping[str, tuple[str, float, float]],
    where: Mapping[str, tuple[str, float]],
    labels: Mapping[str, str],
) -> list[dict[str, Any]]:
    called = {one: labels[one] if one in labels else said[one][0]
              for one in tonight if one in labels or one in said}  # fmt: skip
    # A cluster is known by all labels that people gave in it, not by tonight's alone.
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for doc_id, label in {**labels, **called}.items():
        if doc_id in where and where[doc_id][0] != UNASSIGNED:
            counts[where[doc_id][0]][label] += 1
    usual = {
        cluster: (_most(of)[0][0], _most(of)[0][1] / of.total()) for cluster, of in counts.items()
    }
    found: list[tuple[float, float, str]] = []
    for doc_id, label in called.items():
        cluster, distance = where.get(doc_id, (UNASSIGNED, 0.0))
        if cluster in usual and usual[cluster][1] >= PURE and usual[cluster][0] != label:
            found.append((-usual[cluster][1], distance, doc_id))
    return [
        _row(one, said, where, labels, usual=usual[where[one][0]][0], purity=-purity)
        for purity, _, one in sorted(found)[:DOZEN]
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
