"""A network that learns what there is to tell apart in a corpus without labels.

    texts -> word vectors, n ways -> KMeans, several starts -> the grouping most others agree with
          -> [ a linear model learns the groups' surest members -> who belongs where ], if it helps
          -> [ the network learns them -> KMeans on its vectors ] until settled

The first loop is iterative classification (Rakib et al. 2020), the second that of DeepCluster
(Caron et al. 2018). Labels are never read: of several groupings, the one is taken that shares most
information with the others, and the first loop is kept where groups can then be foretold by so much
more than their agreement loses. Groups that are known already, from last night, stand in for all
that comes before the network, and last night's network is what learns on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from .batches import Documents, Watch, unwatched
from .births import new_topics
from .clustering import ClusterConfig, choose_k, distinct, fit_centroids, settle
from .encoders import Network
from .errors import ConfigError
from .inference import forward, pick_device
from .nearest import Cells, nearest_centroids, unit
from .recipe import ModelConfig, PretrainConfig, TrainConfig, resolve
from .tokenizer import Tokenizer, TokenizerConfig
from .training import refit
from .vectors import count, learn
from .wordvectors import Start, frequencies, from_corpus, from_file

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ROUNDS, PASSES = 2, 4
"""Times that the network learns groups at most, and passes over the documents each time."""
REFINED = 5
"""Times that a linear model learns the groups before the network does."""
SETTLED = 0.02
"""Share of documents that change their group, below which the network has settled."""
SURE = 0.8
"""Share of a group's documents that the linear model learns it from, the surest of them."""
LARGEST = 1.0
"""A group teaches the linear model no more documents than this many times the mean group has."""
MOST, MOST_TOKENS = 20_000, 1_000_000
"""Documents, and tokens of them, that are learned from at most."""
WORDS = 30_000
"""Words that the first vectors know."""
LATENT, BESIDE = 100, 0.5
"""Width of the latent semantic vectors, and their weight beside the word vectors."""
SMALL = 100
"""Fewer documents than this foretell nothing."""
NEIGHBOURS = 20
STARTS = 3
CHUNK = 2048


@dataclass(frozen=True)
class Round:
    """The network has learned the groups once: how many there are, and who moved since."""

    index: int
    rounds: int
    groups: int
    moved: float
    network: Network = field(repr=False)
    centres: np.ndarray = field(repr=False)
    """Of the groups, in the network's vectors: float32 (groups, width)."""
    places: np.ndarray = field(repr=False)
    """The group of each document that was learned from, int64 (documents,)."""

    def __str__(self) -> str:
        return (
            f"round {self.index} of {self.rounds}: {self.groups} groups, "
            f"{self.moved:.1%} of the documents moved"
        )


def discover(
    documents: Documents,
    texts: list[str],
    tokenizer: Tokenizer,
    model: ModelConfig,
    train: TrainConfig,
    clusters: ClusterConfig,
    known: np.ndarray | None = None,
    before: Network | None = None,
    unseen: np.ndarray | None = None,
    watch: Watch = unwatched,
) -> Iterator[Round]:
    """Learn groups; the last round's network gives the vectors to cluster. Its head is spent.

    Args: token ids and cleaned texts of the same documents, in no order that means anything: of
    more than `MOST`, or `MOST_TOKENS` tokens, the first are learned from; a declared recipe; groups
    to begin with, int64 (documents,), -1 where a document is in none; a network that knows them, of
    the same tokenizer; documents that the network is not taught, bool (documents,).
    """
    device = pick_device(train.device)
    p50, p95 = (int(one) for one in np.percentile(documents.lengths, [50, 95]))
    model, train, _ = resolve(
        model, train, PretrainConfig(objective="none"), len(documents), 0, p50, p95
    )
    train = train.model_copy(update={"epochs": PASSES, "class_weights": "none"})
    rows = documents.cut(int(model.max_tokens), model.truncation)
    some = np.arange(min(MOST, max(1, int((rows.lengths.cumsum() <= MOST_TOKENS).sum()))))
    rows, texts = rows.take(some), texts[: len(some)]
    known = None if known is None else known[: len(some)]
    seen = np.ones(len(some), bool) if unseen is None else ~unseen[: len(some)]
    if known is None or not (known >= 0).any():
        known, groups = None, first_groups(texts, clusters, train.seed)
    else:
        # Their numbers without gaps: a group of which no document is here teaches nothing.
        groups = np.unique(np.append(known, -1), return_inverse=True)[1][:-1] - 1
    k = int(groups.max()) + 1
    begin = _body(before, model) if before is not None else None
    start = None if begin else _start(rows, tokenizer, model, train.seed)

    def build() -> Network:
        torch.manual_seed(train.seed)
        network = Network(model, tokenizer.size, k)
        if begin:
            network.load_state_dict(begin, strict=False)
        elif start is not None:
            with torch.no_grad():
                network.embedding.weight.copy_(torch.from_numpy(start.matrix))
        return network

    # Groups that people know are taught once: every round more would move them further.
    rounds = ROUNDS if known is None else 1
    for index in range(1, rounds + 1):
        members = np.flatnonzero(groups >= 0)
        taught = members[seen[members]]
        # All of a group that would else teach nothing.
        lonely = np.setdiff1d(groups[members], groups[taught])
        taught = members[seen[members] | np.isin(groups[members], lonely)]
        network = refit(
            build, rows.take(taught).labelled(groups[taught]), train, [0.0] * PASSES, watch
        )
        if network is None:
            return
        raw = forward(network, rows, int(train.batch_tokens) * 4, device)[1]
        vectors = unit(raw).astype(np.float32)
        cells = settle(vectors, Cells.of(centres_of(vectors[members], groups[members], k)))
        moved, groups = groups, nearest_centroids(vectors, cells.centroids)[0]
        share = float((moved != groups)[moved >= 0].mean())
        yield Round(index, rounds, k, share, network, cells.centroids, groups)
        if share < SETTLED:
            return


def find_topics(
    documents: Documents,
    fresh: np.ndarray,
    groups: np.ndarray,
    vocabulary: int,
    seed: int,
    least: int | None = None,
) -> list[np.ndarray]:
    """Topics that no cluster has, the rows of each, int64.

    In the corpus's own vectors, learned anew from these very documents: no older model knows
    tonight's words.

    Args: which documents are tonight's, bool (documents,); last night's cluster of each other, -1
    for none, int64 (documents,); documents that make a topic, by default as of a whole corpus.
    """
    held, loose = ~fresh & (groups >= 0), ~fresh & (groups < 0)
    if not held.any():
        return []
    vectors = learn(documents, vocabulary, seed=seed).embed(documents)
    centres = centres_of(vectors[held], groups[held], int(groups.max()) + 1)
    found = new_topics(vectors[fresh], vectors[loose], vectors[held], centres, seed, least)
    outside = np.append(np.flatnonzero(fresh), np.flatnonzero(loose))
    return [outside[rows] for rows in found]


def _body(before: Network, model: ModelConfig) -> dict[str, torch.Tensor] | None:
    """The weights of a network of the same shape, without its head."""
    loose = {"dropout", "state_dropout", "weight_dropout", "word_dropout", "max_tokens",
             "truncation", "chunk_tokens"}  # fmt: skip
    if before.config.model_dump(exclude=loose) != model.model_dump(exclude=loose):
        return None
    weights = before.state_dict().items()
    return {name: one.cpu().clone() for name, one in weights if not name.startswith("head.")}


def first_groups(texts: list[str], config: ClusterConfig, seed: int) -> np.ndarray:
    """Groups by a linear model and word vectors, int64 (documents,), numbered without gaps.

    Of several vectors and several starts of KMeans, the grouping that agrees most with the others
    begins (mean normalized mutual information, as for cluster ensembles: Strehl & Ghosh 2002).

    By words, which tell topics apart better than subwords do.
    """
    from sklearn.metrics import normalized_mutual_info_score

    tokenizer = Tokenizer.learn(iter(texts), TokenizerConfig(unit="word", vocabulary=WORDS))
    documents = Documents.from_lists(tokenizer.encode(texts))
    weighted = _weighted(documents, tokenizer.size)
    words = learn(documents, tokenizer.size, seed=seed).embed(documents)
    spaces = list(_spaces(words, weighted, seed))
    k = config.k if config.k != "auto" else choose_k(spaces[1], config)
    found = [
        _placed(space, fit_centroids(space, min(k, distinct(space, k)), seed + start))
        for space in spaces
        for start in range(STARTS)
    ]
    agreed = np.zeros(len(found))
    for one in range(len(found)):
        for two in range(one):
            agreed[[one, two]] += normalized_mutual_info_score(found[one][0], found[two][0])
    plain = found[::STARTS]
    refined = [_refined(weighted, *one, seed) for one in plain]
    groups, sure = found[int(agreed.argmax())]
    if _worth(weighted, refined, seed) > _worth(weighted, [one for one, _ in plain], seed):
        groups = _refined(weighted, groups, sure, seed)
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _worth(weighted: csr_matrix, groupings: list[np.ndarray], seed: int) -> float:
    """How much several groupings agree (0 to 1), and how well half of the documents foretells the
    groups of the other half (0 to 1), added.
    """
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.model_selection import KFold, cross_val_score

    agreed = [normalized_mutual_info_score(*pair) for pair in combinations(groupings, 2)]
    halves = KFold(2, shuffle=True, random_state=seed)
    foretold = [
        cross_val_score(_linear(seed), weighted, one, cv=halves).mean()
        if len(np.unique(one)) > 1 and len(one) > SMALL
        else 1.0
        for one in groupings
    ]
    return float(np.mean(agreed) + np.mean(foretold))


def _linear(seed: int) -> Any:
    """A logistic regression that is learned within a second."""
    from sklearn.linear_model import SGDClassifier

    settings: dict[str, Any] = {"loss": "log_loss", "alpha": 1e-5, "average": True}
    return SGDClassifier(**settings, max_iter=6, tol=cast("Any", None), random_state=seed)


def _spaces(words: np.ndarray, weighted: csr_matrix, seed: int) -> Iterator[np.ndarray]:
    """Unit vectors float32 (documents, width), in several ways.

    Word vectors; these with latent semantic vectors (Deerwester et al. 1990) beside them; and
    those, each moved towards its nearest neighbours.
    """
    yield words
    both = unit(np.hstack([words, BESIDE * _latent(weighted, seed)]))
    yield both
    near = min(NEIGHBOURS, len(both) - 1)
    moved = np.empty_like(both)
    for start in range(0, len(both), CHUNK):
        likeness = both[start : start + CHUNK] @ both.T
        own = np.arange(len(likeness))
        likeness[own, start + own] = -np.inf
        nearest = np.argpartition(-likeness, near - 1, axis=1)[:, :near]
        moved[start : start + CHUNK] = both[start : start + CHUNK] + both[nearest].mean(1)
    yield unit(moved)


def _refined(weighted: csr_matrix, groups: np.ndarray, sure: np.ndarray, seed: int) -> np.ndarray:
    """What a linear model makes of the groups, once it has learned them from their surest members,
    and from what it then is surest of, again and again; int64 (documents,).
    """
    for _ in range(REFINED):
        groups = np.unique(groups, return_inverse=True)[1]
        k = int(groups.max()) + 1
        if k < 2:
            break
        taught = surest(groups, sure, k)
        linear = _linear(seed).fit(weighted[taught], groups[taught])
        scores = linear.decision_function(weighted)
        scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
        groups, best = scores.argmax(1), np.partition(scores, -2, axis=1)[:, -2:]
        sure = best[:, 1] - best[:, 0]
    return groups


def _weighted(documents: Documents, vocabulary: int) -> csr_matrix:
    """TF-IDF of the tokens, rows of unit length, (documents, vocabulary)."""
    from sklearn.feature_extraction.text import TfidfTransformer

    return TfidfTransformer(sublinear_tf=True).fit_transform(count(documents, vocabulary))


def _latent(weighted: csr_matrix, seed: int) -> np.ndarray:
    """Latent semantic vectors of unit length, float32 (documents, width)."""
    from sklearn.decomposition import TruncatedSVD

    documents, terms = weighted.get_shape()
    width = max(1, min(LATENT, documents - 1, terms - 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # of texts that are all the same
        found = TruncatedSVD(width, random_state=seed).fit_transform(weighted)
    return unit(found.astype(np.float32))


def _placed(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of each document, and how much nearer it is than the next one."""
    from sklearn.metrics import pairwise_distances_chunked

    groups, distances = nearest_centroids(vectors, centroids)
    if len(centroids) < 2:
        return groups, np.ones(len(vectors), np.float32)
    parts = pairwise_distances_chunked(vectors, centroids)
    second = np.concatenate([np.partition(part, 1, axis=1)[:, 1] for part in parts])
    return groups, (second - distances).astype(np.float32)


def surest(groups: np.ndarray, sure: np.ndarray, k: int) -> np.ndarray:
    """Rows that groups are learned from, ascending: the surest of each, int64 (rows,)."""
    most = max(1, int(LARGEST * (groups >= 0).sum() / k))
    taught: list[np.ndarray] = []
    for group in range(k):
        members = np.flatnonzero(groups == group)
        kept = min(int(np.ceil(SURE * len(members))), most)
        taught.append(members[np.argsort(-sure[members], kind="stable")[:kept]])
    return np.sort(np.concatenate(taught))


def centres_of(vectors: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """The mean vector of each group, float32 (k, width); of an empty one, the mean of all."""
    sums = np.zeros((k, vectors.shape[1]), np.float64)
    np.add.at(sums, groups, vectors)
    sizes = np.bincount(groups, minlength=k)[:, None]
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), vectors.mean(0)).astype(np.float32)


def _start(rows: Documents, tokenizer: Tokenizer, model: ModelConfig, seed: int) -> Start | None:
    """Token vectors from the corpus itself, or from the file that is declared."""
    if model.embeddings not in ("learned", "corpus"):
        counts = frequencies(rows, tokenizer.size)
        return from_file(model.embeddings, tokenizer, model.embedding, counts, seed)
    try:
        return from_corpus(rows, tokenizer, model.embedding, seed)
    except ConfigError:  # no two words stand together: the network begins at random
        return None
