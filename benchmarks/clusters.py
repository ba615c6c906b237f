"""Clusters without labels, and clusters that live: who finds them, who keeps them, who is born?

    python benchmarks/clusters.py --data DIR [--seeds 5] [--only 'identity/*'] [--page]

By the night's own code, with its default tokenizer, and the truth only read to measure.

- unlabelled: the whole corpus, k the number of its classes. Accuracy under the best one-to-one
  match of clusters and classes (Kuhn 1955), and normalized mutual information. `nightshift` is the
  nearest centroid in the vectors of the network that learned clusters by itself, `start` the groups
  it began with (seconds with them), `vectors` KMeans on the corpus's own vectors. Beside: KMeans on
  TF-IDF and on its 100 latent dimensions (LSA), and BERTopic on our vectors, with its defaults and
  its own merging down to k topics; what it leaves out counts as a cluster.
- identity: half of a corpus, then ten nights of 5% new documents. Share of the old documents that
  keep their cluster's id each night and after all ten, and inertia beside a fit from scratch; how
  many of a night's new documents are too far from every cluster (declared: 3% of all). The
  peers: KMeans from scratch every night, its clusters matched to last night's; and BERTopic on the
  first night's vectors, each later night's model merged into what there is: no document moves.
  `network`: in the vectors of a network that learned on the first night; `retrained`: it learns
  anew, from last night's clusters, on night five.
- births: some classes are withheld until night five, when all their documents up to then arrive.
  What is born on that night, and on the others; purity of the newborn cluster for the class, and
  the share of the class's documents in it. The vectors are those of the first night, learned anew
  whenever a new topic is found.
- some_labels: a classifier learns half of the classes; the documents of the other half are
  clustered in its vectors, and in the corpus's own.
- loop: the program itself works a night of half of a corpus without labels, the three largest of
  its clusters are named as classes, and the second night's answers to its new documents are
  measured: macro-F1 of those classes, among their own documents and among all, and how many of the
  documents of other classes are answered by abstaining.

Resumable: results/clusters.json keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from clusters_page import write_page
from corpora import CORPORA, RESULTS, add_data_option, machine
from loop import loop
from peers import environment, read_corpus
from quality_page import write_whole

from nightshift.batches import Documents
from nightshift.bundle import BATCH_TOKENS
from nightshift.cleaning import CleaningConfig, clean
from nightshift.clustering import ClusterConfig, carried_over, cluster
from nightshift.discovery import MOST, centres_of, discover, find_topics, first_groups
from nightshift.encoders import Network
from nightshift.identity import fates
from nightshift.inference import forward
from nightshift.learning import Learned, Material, Side
from nightshift.learning import learn as learn_model
from nightshift.nearest import UNASSIGNED, Cells, nearest_centroids, unit
from nightshift.recipe import ModelConfig, Recipe, TrainConfig
from nightshift.scoring import quality_with_labels
from nightshift.splits import SplitConfig
from nightshift.tokenizer import Tokenizer, TokenizerConfig, words
from nightshift.vectors import learn

FILE = RESULTS / "clusters.json"
NIGHTS, SHARE, LATE = 10, 0.05, 5
WITHHELD = {
    "thucnews": [(0,), (3,), (7,)],
    "banking77": [(5, 40), (10, 60), (20, 33)],
    "search_snippets": [(0,), (3,)],
}
"""Classes by their place in the alphabet, a trial each."""
UNLABELLED = ("search_snippets", "biomedical", "thucnews", "banking77", "agnews_test")
Fit = Callable[..., tuple[np.ndarray, Cells]]
Learner = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Read:
    """A whole corpus: cleaned texts, labels' numbers int64 (documents,), and its tokens."""

    texts: list[str]
    labels: np.ndarray
    tokenizer: Tokenizer
    documents: Documents
    taught: np.ndarray
    """Which documents a network learns from, as by default; bool (documents,)."""

    @property
    def k(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


@cache
def read(name: str, data: Path) -> Read:
    """A corpus as a night stores it."""
    where = next(one for one in CORPORA if one.name == name)
    sides = read_corpus(where, data)
    rows = [sides.train, sides.validation, sides.test]
    texts = [clean(text, CleaningConfig()) for side in rows for text in side.texts]
    labels = [label for side in rows for label in side.labels]
    # The nights store documents in no order that means anything.
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[row] for row in order]
    tokenizer = Tokenizer.learn(iter(texts), TokenizerConfig())
    documents = Documents.from_lists(tokenizer.encode(texts))
    numbers = np.unique(labels, return_inverse=True)[1][order]
    splits = SplitConfig()
    taught = np.random.default_rng(1).random(len(texts)) >= splits.test + splits.gate
    return Read(texts, numbers, tokenizer, documents, taught)


@cache
def corpus_vectors(name: str, data: Path, first: bytes = b"") -> np.ndarray:
    """The corpus's own unit vectors float32 (documents, width), learned from some rows or all."""
    corpus = read(name, data)
    rows = np.frombuffer(first, np.int64) if first else np.arange(len(corpus.labels))
    documents = corpus.documents.cut(512)
    return learn(documents.take(rows), corpus.tokenizer.size).embed(documents)


@cache
def network_vectors(
    name: str,
    data: Path,
    first: bytes,
    k: int,
    seed: int,
    known: bytes = b"",
    before: Network | None = None,
) -> tuple[np.ndarray, np.ndarray, Network]:
    """Vectors of all documents by a network that learned clusters of some, its centres, itself."""
    corpus = read(name, data)
    rows = np.frombuffer(first, np.int64)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:MOST]
    found = None
    for found in discover(
        corpus.documents.take(rows[drawn]), [corpus.texts[row] for row in rows[drawn]],
        corpus.tokenizer, ModelConfig(), TrainConfig(seed=seed), ClusterConfig(k=k, seed=seed),
        np.frombuffer(known, np.int64)[drawn] if known else None, before,
        ~corpus.taught[rows[drawn]],
    ):  # fmt: skip
        print(f"    {found}", flush=True)
    assert found is not None
    cut = corpus.documents.cut(int(found.network.config.max_tokens))
    raw = forward(found.network, cut, BATCH_TOKENS, torch.device("cpu"))[1]
    # As a bundle of it answers: with the corpus's own vectors beside.
    vectors = unit(np.hstack([unit(raw), corpus_vectors(name, data, first)])).astype(np.float32)
    learned = vectors[rows[drawn][: len(found.places)]]
    return vectors, centres_of(learned, found.places, found.groups), found.network


# --- without labels ---------------------------------------------------------------------------


def unlabelled(name: str, data: Path, way: str, seed: int) -> dict[str, Any]:
    """One way to group a whole corpus."""
    from sklearn.cluster import KMeans

    corpus = read(name, data)
    started = time.perf_counter()
    if way == "nightshift":
        everyone = np.arange(len(corpus.labels)).tobytes()
        vectors, centres, _ = network_vectors(name, data, everyone, corpus.k, seed)
        config = ClusterConfig(k=corpus.k, seed=seed, unassigned=0)
        places = cluster(vectors, config, Cells.of(centres)).places
        network_vectors.cache_clear()
    elif way == "start":
        places = first_groups(corpus.texts[:MOST], ClusterConfig(k=corpus.k, seed=seed), seed)
    elif way == "bertopic":
        everyone = np.zeros(len(corpus.labels), np.int64)
        told = _bertopic(corpus, corpus_vectors(name, data), everyone, corpus.k, seed)[0]
        places = np.unique(told, return_inverse=True)[1]
    else:
        vectors = corpus_vectors(name, data) if way == "vectors" else _tfidf(corpus, way, seed)
        starts = 1 if way == "tfidf" else 10
        places = KMeans(corpus.k, n_init=starts, random_state=seed).fit(vectors).labels_
    seconds = time.perf_counter() - started
    return {**agreement(corpus.labels[: len(places)], places), "wall_seconds": round(seconds, 1)}


def agreement(labels: np.ndarray, places: np.ndarray) -> dict[str, float]:
    """How well clusters and classes agree."""
    found = quality_with_labels([str(one) for one in labels], np.asarray(places, np.int64))
    return {key: round(value, 4) for key, value in found.items()}


def _tfidf(corpus: Read, way: str, seed: int) -> Any:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weighted = TfidfVectorizer(tokenizer=words, token_pattern=None, min_df=2).fit_transform(
        corpus.texts
    )
    if way == "tfidf":
        return weighted
    return unit(TruncatedSVD(100, random_state=seed).fit_transform(weighted).astype(np.float32))


def _bertopic(
    corpus: Read, vectors: np.ndarray, night: np.ndarray, k: int, seed: int
) -> np.ndarray:
    """BERTopic in its own environment, on our vectors: int64 (nights, documents)."""
    with TemporaryDirectory() as folder:
        given, said = Path(folder) / "given.npz", Path(folder) / "said.npy"
        np.savez(given, vectors=vectors, texts=np.array(corpus.texts, object), night=night)
        script = Path(__file__).with_name("peers.py")
        command = [environment("bertopic"), script, "--topics", given, said, str(k), str(seed)]
        subprocess.run(command, check=True)
        return np.load(said)


# --- nights -----------------------------------------------------------------------------------


def nights_of(documents: int, seed: int) -> np.ndarray:
    """The night each document arrives on, int64 (documents,): half on night 0."""
    order = np.random.default_rng(seed).permutation(documents)
    night = np.zeros(documents, np.int64)
    start = round(documents * (1 - SHARE * NIGHTS))
    for one in range(NIGHTS):
        night[order[start + round(one * SHARE * documents) :]] = one + 1
    return night


def ours(
    vectors: np.ndarray,
    k: int,
    start: Cells | None,
    fresh: np.ndarray,
    seed: int,
    topics: Sequence[np.ndarray] = (),
    unseen: np.ndarray | None = None,
) -> tuple[np.ndarray, Cells]:
    """A night of Nightshift's: k on the first, then whatever is born, split or merged."""
    config = ClusterConfig(k=k if start is None else "auto", k_min=2, k_max=2 * k, seed=seed)
    found = cluster(vectors, config, start, fresh, topics, unseen)
    return found.places, found.cells


def scratch(
    vectors: np.ndarray,
    k: int,
    start: Cells | None,
    fresh: np.ndarray,
    seed: int,
    *_: Any,
) -> tuple[np.ndarray, Cells]:
    """KMeans as if there had been no last night."""
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=3, random_state=seed + len(vectors)).fit(vectors)
    return fitted.labels_.astype(np.int64), Cells.of(fitted.cluster_centers_.astype(np.float32))


@dataclass(frozen=True)
class Tale:
    """One night of a story: documents there, their clusters' ids, the cells, who came and went."""

    rows: np.ndarray
    ids: list[str]
    vectors: np.ndarray
    cells: Cells
    born: list[str]
    ended: list[str]


def story(
    corpus: Read,
    vectors: np.ndarray,
    night: np.ndarray,
    k: int,
    fit: Fit,
    seed: int,
    start: Cells | None = None,
    anew: Learner | None = None,
    change: int | None = None,
) -> Iterator[Tale]:
    """Night after night, new topics looked for among each night's documents.

    Args: `anew` gives other vectors, from the documents there and the cluster or new topic of each
    (-1: none), whenever there is a new topic, and on the night `change`.
    """
    before: dict[str, str] = {}
    ever: set[str] = set()
    cells, learned = start, 0
    for now in range(NIGHTS + 1):
        rows = np.flatnonzero(night <= now)
        names, fresh = [str(row) for row in rows], night[rows] == now
        held = sorted({*before.values()} - {UNASSIGNED})
        place = {one: index for index, one in enumerate(held)}
        groups = np.array([place.get(before.get(name, ""), -1) for name in names], np.int64)
        there, usable = groups.copy(), fresh | (groups >= 0) | (night[rows] > learned)
        topics = _topics(corpus, rows, fresh, groups, usable, seed) if fit is ours else []
        if anew is not None and before and (topics or now == change):
            for one, topic in enumerate(topics):
                groups[topic] = len(held) + one
            vectors, learned = anew(rows, groups), now
            assert cells is not None
            _, centroids = carried_over(vectors[rows], there, held)
            assert centroids is not None
            cells = Cells(centroids, cells.scales)
        unseen = ~corpus.taught[rows]
        places, cells = fit(vectors[rows], k, cells, fresh, seed, topics, unseen)
        tonight, ended = fates(places, len(cells), names, before, ever)
        ids = [*(one.cluster_id for one in tonight), UNASSIGNED]
        before = {name: ids[place] for name, place in zip(names, places, strict=True)}
        ever |= {*ids}
        born = [one.cluster_id for one in tonight if one.event in ("born", "split")]
        gone = [one.cluster_id for one in ended]
        yield Tale(rows, list(before.values()), vectors, cells, born, gone)


def bertopics_story(
    corpus: Read, vectors: np.ndarray, night: np.ndarray, k: int, seed: int
) -> Iterator[Tale]:
    """The same nights by BERTopic, each night's model merged into last night's."""
    ever: set[str] = set()
    for now, told in enumerate(_bertopic(corpus, vectors, night, k, seed)):
        rows = np.flatnonzero(night <= now)
        topics = told[rows]
        held = np.unique(topics[topics >= 0])
        places = np.searchsorted(held, topics[topics >= 0])
        centres = centres_of(vectors[rows][topics >= 0], places, len(held))
        ids = [UNASSIGNED if one < 0 else str(one) for one in topics]
        born = sorted({*ids} - ever - {UNASSIGNED})
        yield Tale(rows, ids, vectors, Cells.of(centres), born, sorted(ever - {*ids}))
        ever |= {*born}


def _topics(
    corpus: Read,
    rows: np.ndarray,
    fresh: np.ndarray,
    groups: np.ndarray,
    usable: np.ndarray,
    seed: int,
) -> list[np.ndarray]:
    """New topics, rows of `rows`: as the night looks for them."""
    random = np.random.default_rng(seed)
    sides = (np.flatnonzero(one & usable) for one in (fresh, ~fresh))
    drawn = np.concatenate([side[random.permutation(len(side))[:MOST]] for side in sides])
    documents = corpus.documents.cut(512).take(rows[drawn])
    found = find_topics(documents, fresh[drawn], groups[drawn], corpus.tokenizer.size, seed)
    return [drawn[one] for one in found]


def _learners(
    name: str, data: Path, first: np.ndarray, k: int, way: str, seed: int
) -> tuple[np.ndarray, Cells | None, Learner]:
    """The vectors of the first night, the groups in them, and how they are learned again."""
    if way not in ("network", "retrained"):
        return (
            corpus_vectors(name, data, first.tobytes()),
            None,
            lambda rows, groups: corpus_vectors(name, data, rows.tobytes()),
        )
    vectors, centres, network = network_vectors(name, data, first.tobytes(), k, seed)

    def anew(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
        nonlocal network
        found = network_vectors(name, data, rows.tobytes(), k, seed, groups.tobytes(), network)
        network = found[2]
        return found[0]

    return vectors, Cells.of(centres), anew


def identity(name: str, data: Path, way: str, seed: int) -> dict[str, Any]:
    """Ten nights without anything new in them."""
    corpus, night = read(name, data), nights_of(len(read(name, data).labels), seed)
    vectors, start, anew = _learners(name, data, np.flatnonzero(night == 0), corpus.k, way, seed)
    kept: list[float] = []
    first: dict[int, str] = {}
    last: dict[int, str] = {}
    loose: list[float] = []
    changes, tale = 0, None
    fit = scratch if way == "from_scratch" else ours
    tales = (
        bertopics_story(corpus, vectors, night, corpus.k, seed)
        if way == "bertopic"
        else story(corpus, vectors, night, corpus.k, fit, seed, start, anew,
                   LATE if way == "retrained" else None)
    )  # fmt: skip
    for tale in tales:
        now = dict(zip(tale.rows.tolist(), tale.ids, strict=True))
        if last:
            kept.append(mean(now[row] == one for row, one in last.items()))
            changes += len(tale.born) + len(tale.ended)
            loose.append(mean(one == UNASSIGNED for row, one in now.items() if row not in last))
        first, last = first or now, now
    assert tale is not None
    cells = tale.cells
    fresh = scratch(tale.vectors, len(cells), None, night == 0, seed)[1]
    return {
        "kept_least": min(kept),
        "kept_change": kept[LATE - 1],
        "kept_all": mean(last[row] == one for row, one in first.items()),
        "inertia": _inertia(tale.vectors, cells) / _inertia(tale.vectors, fresh),
        "unassigned": mean(loose),
        "clusters": len(cells),
        "changes": changes,
    }


def _inertia(vectors: np.ndarray, cells: Cells) -> float:
    return float((nearest_centroids(vectors, cells.centroids)[1].astype(np.float64) ** 2).sum())


def births(name: str, data: Path, withheld: tuple[int, ...], way: str, seed: int) -> dict[str, Any]:
    """Ten nights, with classes that appear on the fifth."""
    corpus = read(name, data)
    night, hidden = nights_of(len(corpus.labels), seed), np.isin(corpus.labels, withheld)
    night[hidden & (night < LATE)] = LATE
    labels, k = corpus.labels, corpus.k - len(withheld)
    vectors, start, anew = _learners(name, data, np.flatnonzero(night == 0), k, way, seed)
    other, found = 0, list[dict[str, float]]()
    tales = (
        bertopics_story(corpus, vectors, night, k, seed)
        if way == "bertopic"
        else story(corpus, vectors, night, k, ours, seed, start, anew)
    )
    for now, tale in enumerate(tales):
        if now not in (0, LATE):
            other += len(tale.born)
        if now == LATE:
            ids = np.array(tale.ids, object)
            found = [_newborn(ids == one, labels[tale.rows], withheld) for one in tale.born]
    best = [max((one[f"of_{place}"] for one in found), default=0.0) for place in withheld]
    pure = [
        max(((one[f"of_{place}"], one[f"purity_{place}"]) for one in found), default=(0.0, 0.0))[1]
        for place in withheld
    ]
    return {"born": len(found), "other_births": other, "purity": mean(pure), "holds": mean(best)}


def _newborn(inside: np.ndarray, labels: np.ndarray, withheld: tuple[int, ...]) -> dict[str, float]:
    told: dict[str, float] = {}
    for place in withheld:
        both = float((inside & (labels == place)).sum())
        told[f"purity_{place}"] = both / max(1, int(inside.sum()))
        told[f"of_{place}"] = both / max(1, int((labels == place).sum()))
    return told


def some_labels(name: str, data: Path, way: str, seed: int) -> dict[str, Any]:
    """Half of the classes are learned, the documents of the others grouped."""
    from sklearn.cluster import KMeans

    corpus = read(name, data)
    half = np.random.default_rng(seed).permutation(corpus.k)[: corpus.k // 2]
    known = np.isin(corpus.labels, half)
    if way == "vectors":
        vectors = corpus_vectors(name, data)
    else:
        vectors = _classifier_vectors(corpus, np.flatnonzero(known), seed)
    rest = vectors[~known]
    places = KMeans(corpus.k - len(half), n_init=10, random_state=seed).fit(rest).labels_
    return agreement(corpus.labels[~known], places)


def _classifier_vectors(corpus: Read, rows: np.ndarray, seed: int) -> np.ndarray:
    """Vectors of all documents by the default classifier, which learned some rows' labels."""
    names = sorted({str(one) for one in corpus.labels[rows]})
    numbers = np.array([names.index(str(one)) for one in corpus.labels[rows]], np.int64)
    held = np.random.default_rng(seed).random(len(rows)) < 0.1
    one, two = (
        Side(
            corpus.documents.take(rows[part]).labelled(numbers[part]),
            [corpus.texts[row] for row in rows[part]],
        )
        for part in (~held, held)
    )
    material = Material(corpus.tokenizer, names, one, two, corpus.documents, held_out=True)
    recipe = Recipe(train=TrainConfig(seed=seed))
    learned = [event for event in learn_model(material, recipe) if isinstance(event, Learned)]
    return learned[0].model.answer(corpus.documents, corpus.texts).vectors


def _looped(name: str, data: Path, seed: int) -> dict[str, Any]:
    corpus = read(name, data)
    return loop(corpus.texts, [str(one) for one in corpus.labels], corpus.k, seed)


def jobs(data: Path, seeds: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every measurement by its name."""
    for seed in range(1, seeds + 1):
        for name in UNLABELLED:
            for way in ("tfidf", "lsa", "vectors", "start", "nightshift", "bertopic"):
                yield f"unlabelled/{name}/{way}-{seed}", partial(unlabelled, name, data, way, seed)
        for name in WITHHELD:
            for way in ("vectors", "from_scratch", "bertopic", "network", "retrained"):
                yield f"identity/{name}/{way}-{seed}", partial(identity, name, data, way, seed)
        for name, trials in WITHHELD.items():
            for classes in trials:
                for way in ("bertopic", "vectors", "network"):
                    said = f"{'+'.join(map(str, classes))} {way}"
                    yield (
                        f"births/{name}/{said}-{seed}",
                        partial(births, name, data, classes, way, seed),
                    )
        yield f"loop/search_snippets/named-{seed}", partial(_looped, "search_snippets", data, seed)
        for way in ("vectors", "classifier"):
            yield (
                f"some_labels/banking77/{way}-{seed}",
                partial(some_labels, "banking77", data, way, seed),
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="*", help="measurements like this, * for any")
    parser.add_argument("--page", action="store_true", help="only make the page")
    options = parser.parse_args()
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name, measure in [] if options.page else jobs(options.data, options.seeds):
        if name in found or not fnmatch(name, options.only):
            continue
        started = time.process_time()
        told = measure()
        seconds = round(time.process_time() - started, 1)
        day = datetime.now(UTC).date().isoformat()
        found[name] = {**told, "seconds": seconds, "day": day, "machine": machine()}
        print(name, told, flush=True)
        write_whole(FILE, json.dumps(found, indent=1, sort_keys=True) + "\n")
    write_page(found, __doc__ or "", FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
