"""Why tonight is not last night: what the text did to the labels, what the model did, what drifts.

A shift of the label mix has two causes. *Data*: the old model already answers the new documents
otherwise than the old ones. *Model*: the new one answers the old documents otherwise. What only
both together do, the interaction, is shared equally (Shapley 1953: each cause is what it adds,
averaged over both orders), so that the two sum to the shift.

Drift is told where a number is both large enough to matter and beyond what chance alone does with
that many documents; everything else is evidence that nothing happened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .corpus import HEAD, Excerpt
from .ids import drawn, ids_of, index_in
from .tables import Lake
from .tokenizer import words

SAMPLE = 3_000
"""Documents of each side, at most; a number that moves by less than these can tell says nothing."""
FEW = 30
"""Below this many documents on a side, nothing is told."""
HELD_OUT = 200
"""So many documents that the model was not taught, and they alone stand for its training set: of
what it was taught, a model is surer than of anything else."""
SHOWN = 12
"""Words that arrived, and that vanished."""
SURE = 3.0
"""Standard errors that a difference of means must have."""
PSI_LEAST, UNSEEN_LEAST, UNKNOWN_LEAST, VECTORS_LEAST, CONFIDENCE_LEAST = (
    0.1,
    0.03,
    0.005,
    0.6,
    0.03,
)
"""What matters: a population stability index by convention; shares of words and tokens; how often
the direction between two means tells a new document from an old one; probability."""


@dataclass(frozen=True)
class Sample:
    """Some documents of one kind, as one model sees them.

    labels, probability and abstained are empty without a classifier; vectors float32 (documents,
    width); tokens and unknown int64 (documents,). Rows of different fields need not correspond.
    """

    doc_ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    probability: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    abstained: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    vectors: np.ndarray = field(default_factory=lambda: np.empty((0, 1), np.float32))
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    unknown: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.doc_ids)


# --- labels ---------------------------------------------------------------------------------


def mix(labels: Iterable[str]) -> dict[str, float]:
    """Share of each label."""
    counts = Counter(labels)
    total = sum(counts.values())
    return {label: count / total for label, count in counts.items()}


def split_shift(
    before: Mapping[str, float],
    after: Mapping[str, float],
    old_on_new: Mapping[str, float],
    new_on_old: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Each label's shift in data and model, which sum to it; the largest shift first.

    Args: shares by label of the old model on old documents, the new on new, the old on new, the new
    on old.
    Returns: rows of label, before, after, shift, data, model, interaction (half of which is in
    each of the two).
    """
    rows: list[dict[str, Any]] = []
    for label in {*before, *after, *old_on_new, *new_on_old}:
        old_old, new_new = before.get(label, 0.0), after.get(label, 0.0)
        old_new, new_old = old_on_new.get(label, 0.0), new_on_old.get(label, 0.0)
        interaction = new_new - old_new - new_old + old_old
        rows.append({
            "label": label, "before": old_old, "after": new_new, "shift": new_new - old_old,
            "data": old_new - old_old + interaction / 2,
            "model": new_old - old_old + interaction / 2,
            "interaction": interaction,
        })  # fmt: skip
    return sorted(rows, key=lambda row: (-round(abs(row["shift"]), 9), row["label"]))


def stability(before: Sequence[str], after: Sequence[str]) -> tuple[float, float]:
    """Population stability index of two lists of labels, and what chance reaches once in a hundred.

    The sum over labels of (q - p) ln(q / p), with half a document added to every count. Of two
    samples of one mix it is distributed like (1/n + 1/m) times a chi-square with labels - 1 degrees
    of freedom (Yurdakul & Naranjo 2020).
    """
    from scipy.stats import chi2

    names = sorted({*before, *after})
    if len(names) < 2:
        return 0.0, 0.0
    one, two = Counter(before), Counter(after)
    p = np.array([one[name] + 0.5 for name in names]) / (len(before) + len(names) / 2)
    q = np.array([two[name] + 0.5 for name in names]) / (len(after) + len(names) / 2)
    noise = float(chi2.ppf(0.99, len(names) - 1)) * (1 / len(before) + 1 / len(after))
    return float(((q - p) * np.log(q / p)).sum()), noise


# --- words ----------------------------------------------------------------------------------


def terms(text: str) -> list[str]:
    """Words of a text that may tell something, folded, in their order."""
    from .naming import fold, is_term

    lower = (one.lower() for one in words(text[:HEAD]))
    return [fold(one) for one in lower if is_term(one)]


def vocabulary_drift(before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """Words that arrived and vanished, and how strange the new text is.

    A word arrived if three new documents have it and its absence before is no chance (1%); it
    vanished the other way round. `unseen` is the mean share of a new document's words that four
    fifths of the old ones lack; `usual`, the same of the last fifth; `z`, their difference in
    standard errors.
    """
    old, new = [terms(text) for text in before], [terms(text) for text in after]
    one = Counter(word for document in old for word in {*document})
    two = Counter(word for document in new for word in {*document})
    # Every fifth, not the last: documents may come in an order.
    known = {word for n, document in enumerate(old) if n % 5 for word in document}
    usual = _unseen([document for n, document in enumerate(old) if not n % 5], known)
    unseen = _unseen(new, known)
    difference, z = differ(usual, unseen)
    return {
        "arrived": _appeared(two, len(new), one, len(old)),
        "vanished": _appeared(one, len(old), two, len(new)),
        "unseen": float(unseen.mean()) if len(unseen) else 0.0,
        "usual": float(usual.mean()) if len(usual) else 0.0,
        "difference": difference,
        "z": z,
    }


def _unseen(documents: Sequence[Sequence[str]], known: set[str]) -> np.ndarray:
    return np.array(
        [sum(word not in known for word in one) / len(one) for one in documents if one], np.float64
    )


def _appeared(
    here: Mapping[str, int], documents: int, there: Mapping[str, int], others: int
) -> list[dict[str, Any]]:
    """Words here and not there, the most frequent first."""
    found = [
        {"name": word, "documents": count}
        for word, count in here.items()
        if count >= 3 and word not in there and (1 - count / (documents + 1)) ** others < 0.01
    ]
    return sorted(found, key=lambda one: (-one["documents"], one["name"]))[:SHOWN]


# --- numbers --------------------------------------------------------------------------------


def differ(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Difference of two means, and in standard errors (Welch 1947); zeros where a side is short."""
    if min(len(before), len(after)) < 2:
        return 0.0, 0.0
    difference = float(after.mean() - before.mean())
    error = math.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    if error < 1e-12:
        return difference, 0.0 if abs(difference) < 1e-12 else math.copysign(math.inf, difference)
    return difference, difference / error


def separation(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """How often the direction between two means tells a new vector from an old one, and its error.

    Half of each side gives the direction, the other half is told apart by it: the area under the
    ROC curve, 0.5 where nothing is different, 1 where everything is. The error is that of chance
    (Mann & Whitney 1947).

    Args: float32 (documents, width) each, both of one model.
    """
    from scipy.stats import rankdata

    if min(len(before), len(after)) < 4:
        return 0.5, 1.0
    direction = after[::2].mean(0) - before[::2].mean(0)
    old, new = before[1::2] @ direction, after[1::2] @ direction
    ranks = rankdata(np.concatenate([old, new]))[len(old) :]
    n, m = len(new), len(old)
    area = (ranks.sum() - n * (n + 1) / 2) / (n * m)
    return float(area), math.sqrt((n + m + 1) / (12 * n * m))


# --- the verdict ----------------------------------------------------------------------------


def compare(before: Sample, after: Sample) -> dict[str, Any]:
    """All that is measured between two samples, and what of it is drift.

    Returns: documents (of each side), evidence (kind, value, limit, before, after, drifts of
    each), arrived, vanished, drifts (the kinds that do); evidence is empty where documents are few.
    """
    found: dict[str, Any] = {"documents": [len(before), len(after)], "evidence": [], "arrived": [],
                             "vanished": [], "drifts": []}  # fmt: skip
    if min(len(before), len(after)) < FEW:
        return found
    evidence = [_words(before, after, found), _unknown(before, after), _vectors(before, after)]
    if before.labels and after.labels:
        evidence = [_labels(before, after), *evidence, _confidence(before, after)]
    found["evidence"] = [one for one in evidence if one is not None]
    found["drifts"] = [one["kind"] for one in found["evidence"] if one["drifts"]]
    return found


def _labels(before: Sample, after: Sample) -> dict[str, Any]:
    value, noise = stability(before.labels, after.labels)
    limit = max(PSI_LEAST, noise)
    return {"kind": "labels", "value": value, "limit": limit, "before": None, "after": None,
            "drifts": value > limit}  # fmt: skip


def _words(before: Sample, after: Sample, found: dict[str, Any]) -> dict[str, Any] | None:
    if not before.texts or not after.texts:
        return None
    said = vocabulary_drift(before.texts, after.texts)
    found |= {"arrived": said["arrived"], "vanished": said["vanished"]}
    far = said["difference"] > UNSEEN_LEAST and said["z"] > SURE
    return {"kind": "words", "value": said["difference"], "limit": UNSEEN_LEAST,
            "before": said["usual"], "after": said["unseen"], "drifts": far}  # fmt: skip


def _unknown(before: Sample, after: Sample) -> dict[str, Any] | None:
    if not before.tokens.sum() or not after.tokens.sum():
        return None
    rates = [one.unknown / np.maximum(one.tokens, 1) for one in (before, after)]
    difference, z = differ(*rates)
    return {"kind": "unknown", "value": difference, "limit": UNKNOWN_LEAST,
            "before": float(rates[0].mean()), "after": float(rates[1].mean()),
            "drifts": difference > UNKNOWN_LEAST and z > SURE}  # fmt: skip


def _vectors(before: Sample, after: Sample) -> dict[str, Any] | None:
    if min(len(before.vectors), len(after.vectors)) < FEW:
        return None
    area, error = separation(before.vectors, after.vectors)
    limit = max(VECTORS_LEAST, 0.5 + SURE * error)
    return {"kind": "vectors", "value": area, "limit": limit, "before": None, "after": None,
            "drifts": area > limit}  # fmt: skip


def _confidence(before: Sample, after: Sample) -> dict[str, Any]:
    difference, z = differ(before.probability, after.probability)
    return {"kind": "confidence", "value": difference, "limit": CONFIDENCE_LEAST,
            "before": float(before.probability.mean()), "after": float(after.probability.mean()),
            "drifts": abs(difference) > CONFIDENCE_LEAST and abs(z) > SURE}  # fmt: skip


def flat(found: Mapping[str, Any], name: str) -> dict[str, float]:
    """The numbers as figures, such as `drift_last_night_labels`; and how many kinds drift."""
    if not found["evidence"]:
        return {}
    figures = {f"drift_{name}_{one['kind']}": float(one["value"]) for one in found["evidence"]}
    return {**figures, f"drift_{name}": float(len(found["drifts"]))}


# --- the lake -------------------------------------------------------------------------------


def sample_of(lake: Lake, nights: Sequence[str], model_id: str | None) -> Sample:
    """At most SAMPLE documents of some nights, as a model answered and embedded them."""
    numbers = {row["night"]: row["number"] for row in lake.nights()}
    first = min((numbers.get(one, 0) for one in nights), default=0)
    # Nothing is answered or embedded before it came.
    since = [one for one, number in numbers.items() if number >= first]
    return read_sample(lake, sample_ids(lake, nights), model_id, since)


def sample_ids(
    lake: Lake, nights: Sequence[str], held_out: bool = False, most: int = SAMPLE
) -> pa.Array:
    """Ids of at most so many documents of some nights.

    Args: `held_out` takes those that training never reads, where there are enough of them.
    """
    its = pc.field("night").isin(pa.array(list(nights), pa.string()))
    rows = lake.read("documents", ["doc_id", "split"], its)
    ids = ids_of(rows["doc_id"])
    if held_out:
        apart = ids.filter(pc.call_function("not_equal", [ids_of(rows["split"]), "train"]))
        ids = apart if len(apart) >= HELD_OUT else ids
    return drawn(ids, most)


def read_sample(
    lake: Lake | Excerpt,
    wanted: pa.Array,
    model_id: str | None,
    nights: Sequence[str] | None = None,
    whole: bool = False,
) -> Sample:
    """What the tables have of some documents, in the order of the ids; of all nights or some.

    Of two answers of one model the newest counts. Args: `whole` for texts that a model is to read;
    else they are cut at HEAD characters.
    """
    if not len(wanted):
        return Sample()
    where = None if nights is None else pc.field("night").isin(pa.array(nights))
    uncut = wanted if whole else pa.array([], pa.string())
    excerpt = lake if isinstance(lake, Excerpt) else Excerpt(lake, wanted, uncut)

    def rows(table: str, columns: list[str], where: pc.Expression | None) -> pa.Table:
        found = excerpt.read_of(table, ["doc_id", *columns], wanted, where)
        order = np.argsort(index_in(ids_of(found["doc_id"]), wanted), kind="stable")
        return found.take(pa.array(order))

    own = pc.field("model_id") == (model_id or "")
    own = own if where is None else where & own
    said = rows("predictions", ["label", "probability", "abstained"], own)
    tokens = rows("tokens", ["n_tokens", "n_unknown"], where)
    vectors = rows("embeddings", ["vector"], own)["vector"].to_pylist()
    return Sample(
        doc_ids=wanted.to_pylist(),
        texts=rows("documents", ["text"], where)["text"].to_pylist(),
        labels=said["label"].to_pylist(),
        probability=said["probability"].to_numpy(),
        abstained=said["abstained"].to_numpy(),
        vectors=np.array(vectors, np.float32) if vectors else np.empty((0, 1), np.float32),
        tokens=tokens["n_tokens"].to_numpy().astype(np.int64),
        unknown=tokens["n_unknown"].to_numpy().astype(np.int64),
    )
