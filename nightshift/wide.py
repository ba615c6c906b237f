"""The wide path: a linear model on TF-IDF n-grams, which sees the words that a network overlooks.

A text in NFKC and lower case has three kinds of features: runs of words, where a punctuation mark
or an emoji is a word too; runs of characters between two spaces, with a mark at both ends; and
runs of characters of which one at least is Chinese. A feature is a hash of its kind and text
(Weinberger et al. 2009), so that a chunk of documents is encoded by a few passes over its code
points. It has 50 bits: of ten million different n-grams, a pair collides in one corpus of 20.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from .errors import BundleError
from .recipe import WideConfig
from .tokenizer import HAN

LONG_CHARACTERS = 500
"""Median length, in characters, from which characters inside words are left out: in long texts
they multiply the cost and hardly classify better."""
FEW_DOCUMENTS = 200
"""Below this many documents a feature may stand in a single one."""
MOST_WEIGHTS = 25_000_000
"""Features times classes, at most: 50 MB of weights."""
MOST_PRODUCTS = 2_000_000_000
"""Non-zeros times classes from which the exact solver would take minutes."""
MOST_SEEN = 20_000_000
"""Different n-grams remembered while counting; past it those seen once are forgotten."""

HALF = float(np.finfo(np.float16).max)
DOCUMENT_BITS = 12
CHUNK_DOCUMENTS = 1 << DOCUMENT_BITS
CHUNK_CHARACTERS = 1 << 19
IN_CHUNK = np.uint64(CHUNK_DOCUMENTS - 1)
SPACE, LETTER, CHINESE, APOSTROPHE, SIGN = range(5)
WORDS, CHARACTERS, HAN_RUNS = range(3)
KIND_SHIFT = 62 - DOCUMENT_BITS
BASE = np.uint64(0x9E3779B97F4A7C15)


Part = TypeVar("Part")


class Counts(NamedTuple):
    """Which feature stands how often in which document of a chunk; sorted, each int64."""

    features: np.ndarray
    documents: np.ndarray
    times: np.ndarray


class Symbols(NamedTuple):
    """The code points of a chunk, a line end around each document.

    Hash and document (uint64), kind (uint8), and whether it is in a document or between two.
    """

    hashes: np.ndarray
    documents: np.ndarray
    kinds: np.ndarray
    inside: np.ndarray


class Runs(NamedTuple):
    """N-grams where they stand: keys uint64, first code point and past the last one, int64."""

    keys: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Vocabulary:
    """Known features, int64 and ascending, and their inverse document frequencies, float32."""

    features: np.ndarray
    idf: np.ndarray
    config: WideConfig

    @classmethod
    def learn(cls, texts: Sequence[str], config: WideConfig, most: int) -> Vocabulary:
        """The features of at least `min_documents` documents; at most `most`, the most frequent.

        Of two equally frequent ones the lower hash stays, so the order of texts is no matter.
        """
        features, frequencies = _document_frequencies(texts, config)
        enough = frequencies >= config.min_documents
        features, frequencies = features[enough], frequencies[enough]
        kept = np.sort(np.argsort(-frequencies, kind="stable")[:most])
        idf = np.log((1 + len(texts)) / (1 + frequencies[kept])) + 1
        return cls(features[kept], idf.astype(np.float32), config)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """TF-IDF of texts, as the parts of a sparse matrix in rows.

        Returns: places among the features int32, values float32, and int64 (documents + 1,) where
        each document starts. A document's norm is 1, or 0 where nothing is known.
        """
        places, values, starts = [], [], [np.zeros(1, np.int64)]
        for found in _each(self._encode_chunk, chunks(texts)):
            places.append(found[0])
            values.append(found[1])
            starts.append(starts[-1][-1] + np.cumsum(found[2]))
        none = np.empty(0, np.int32), np.empty(0, np.float32)
        return (
            np.concatenate([none[0], *places]),
            np.concatenate([none[1], *values]),
            np.concatenate(starts),
        )

    def _encode_chunk(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features, documents, times = count(texts, self.config)
        places = np.searchsorted(self.features, features)
        places = np.minimum(places, len(self.features) - 1)
        known = np.flatnonzero(self.features[places] == features)
        # Back from the order of features to that of documents; 16 bits are sorted by radix.
        known = known[np.argsort(documents[known].astype(np.uint16), kind="stable")]
        places, documents = places[known], documents[known]
        values = (1 + np.log(times[known])) * self.idf[places]
        values *= _balance(values, documents, features[known] >> KIND_SHIFT)
        values /= np.sqrt(np.bincount(documents, values * values))[documents]
        lengths = np.bincount(documents, minlength=len(texts))
        return places.astype(np.int32), values.astype(np.float32), lengths


@dataclass(frozen=True)
class Wide:
    """One linear score per class; of two classes there is one column, for the second.

    `weights` float16 (features, columns), `bias` float32 (columns,), `present` int64: the classes
    that had rows, in the order of the columns.
    """

    vocabulary: Vocabulary
    weights: torch.Tensor
    bias: torch.Tensor
    present: torch.Tensor
    classes: int

    @property
    def features(self) -> int:
        """How many n-grams it knows."""
        return len(self.vocabulary.features)

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: np.ndarray,
        classes: int,
        config: WideConfig,
        weights: np.ndarray | None = None,
        seed: int = 1,
    ) -> Wide | None:
        """Learn from texts and their labels, int64 (documents,), each below `classes`.

        `weights` float (classes,): how much a row of each class counts in the loss. Returns None
        where no feature is left, or fewer than two classes have rows.
        """
        present = np.unique(labels)
        if len(present) < 2:
            return None
        config = resolve_wide(config, texts)
        most = max(1, min(config.features, MOST_WEIGHTS // len(present)))
        vocabulary = Vocabulary.learn(texts, config, most)
        if not len(vocabulary.features):
            return None
        found, bias = _fit_linear(vocabulary, texts, labels, weights, seed)
        return cls(
            vocabulary,
            torch.from_numpy(found.T.clip(-HALF, HALF).astype(np.float16)),
            torch.from_numpy(bias.astype(np.float32)),
            torch.from_numpy(present.astype(np.int64)),
            classes,
        )

    @cached_property
    def _matrix(self) -> torch.Tensor:
        # Stored in 16 bits, added up in 32: sums in 16 would tie classes that differ.
        return self.weights.float()

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Decision values, float32 (documents, classes): distances from each class's margin.

        A class without training rows is always one below the lowest of the others.
        """
        places, values, starts = self.vocabulary.encode(texts)
        found = torch.nn.functional.embedding_bag(
            torch.from_numpy(places.astype(np.int64)),
            self._matrix,
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(values),
            include_last_offset=True,
        )
        found = found + self.bias
        if found.shape[1] == 1:
            found = torch.cat([-found, found], dim=1)
        everyone = (found.min(dim=1, keepdim=True).values - 1).repeat(1, self.classes)
        everyone[:, self.present] = found
        return everyone.numpy()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What to store in a safetensors file; `from_parts` reads it with `about`."""
        return {
            "wide.features": torch.from_numpy(self.vocabulary.features),
            "wide.idf": torch.from_numpy(self.vocabulary.idf),
            "wide.weights": self.weights.contiguous(),
            "wide.bias": self.bias,
            "wide.present": self.present,
        }

    def about(self) -> dict[str, Any]:
        """The rest, as plain JSON: the config with every `auto` filled in, and the classes."""
        return {"config": self.vocabulary.config.model_dump(), "classes": self.classes}

    @classmethod
    def from_parts(cls, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> Wide:
        """Build what `tensors` and `about` described; other tensors are ignored.

        Raises: BundleError when a tensor is missing or they do not belong together.
        """
        names = ["features", "idf", "weights", "bias", "present"]
        missing = [f"wide.{name}" for name in names if f"wide.{name}" not in tensors]
        if missing:
            raise BundleError(
                f"wide path: found no {', '.join(missing)}, expected them beside the other weights."
                " The model is of another version of Nightshift, or damaged; train again."
            )
        features, idf, weights, bias, present = (tensors[f"wide.{name}"] for name in names)
        columns = 1 if len(present) == 2 else len(present)
        expected = (len(features), columns)
        if weights.shape != expected or len(idf) != expected[0] or len(bias) != columns:
            raise BundleError(
                f"wide path: found weights {tuple(weights.shape)}, expected {expected} for "
                f"{len(features)} features and {len(present)} classes. These tensors are of "
                "different models; train again."
            )
        config = WideConfig.model_validate(about["config"])
        vocabulary = Vocabulary(features.numpy(), idf.numpy(), config)
        return cls(vocabulary, weights, bias, present, about["classes"])


def resolve_wide(config: WideConfig, texts: Sequence[str]) -> WideConfig:
    """Fill `auto` in from the lengths of the texts, and `min_documents` from their number."""
    characters = config.characters
    if characters == "auto":
        median = np.median([len(text) for text in texts]) if len(texts) else 0
        characters = 0 if median >= LONG_CHARACTERS else 5
    few = len(texts) < FEW_DOCUMENTS
    least = 1 if few else config.min_documents
    return config.model_copy(update={"characters": characters, "min_documents": least})


def chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts in order, in pieces that bound the memory; a single text is never cut."""
    start = size = 0
    for place, text in enumerate(texts):
        full = place - start == CHUNK_DOCUMENTS or size + len(text) > CHUNK_CHARACTERS
        if full and place > start:
            yield texts[start:place]
            start, size = place, 0
        size += len(text)
    if len(texts):
        yield texts[start:]


def _each(work: Callable[[Sequence[str]], Part], parts: Iterator[Sequence[str]]) -> Iterator[Part]:
    """What the work makes of each part, in order; NumPy lets as many threads as cores do it."""
    threads = torch.get_num_threads()
    first = next(parts, None)
    second = None if threads == 1 else next(parts, None)
    if first is None or second is None:
        yield from map(work, parts if first is None else chain([first], parts))
        return
    waiting: deque[Future[Part]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for part in chain([first, second], parts):
            waiting.append(pool.submit(work, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def count(texts: Sequence[str], config: WideConfig) -> Counts:
    """Count the n-grams of one chunk, at most `CHUNK_DOCUMENTS` texts."""
    symbols = _symbols(texts)
    keys = [runs.keys for runs in _runs(symbols, config)]
    # A key is a feature with its document in the low bits: one sort groups by both.
    sorted_keys = np.sort(np.concatenate([np.empty(0, np.uint64), *keys]))
    first = _group_starts(sorted_keys)
    unique = sorted_keys[first]
    times = np.diff(np.append(first, len(sorted_keys)))
    documents = (unique & IN_CHUNK).astype(np.int64)
    return Counts((unique >> np.uint64(DOCUMENT_BITS)).astype(np.int64), documents, times)


def occurrences(text: str, config: WideConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every n-gram of one text where it stands: feature, first character, past the last; int64.

    Characters are counted in `folded(text)`; a mark around a stretch lies one outside of it.
    """
    found = [
        np.stack([(runs.keys >> np.uint64(DOCUMENT_BITS)).astype(np.int64), runs.starts, runs.ends])
        for runs in _runs(_symbols([text]), config)
    ]
    # In front of the text stands one line end.
    features, starts, ends = np.concatenate([np.empty((3, 0), np.int64), *found], axis=1)
    return features, starts - 1, ends - 1


def folded(text: str) -> str:
    """A text as the features see it: NFKC, lower case."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def _symbols(texts: Sequence[str]) -> Symbols:
    lines = [folded(text) for text in texts]
    joined = "\n".join(["", *lines, ""])
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    lengths = np.array([1, *(len(text) + 1 for text in lines)])
    documents = np.repeat(np.array([0, *range(len(lines))], np.uint64), lengths)
    inside = np.ones(len(codes), bool)
    inside[np.cumsum(lengths) - 1] = False
    return Symbols(_mixed(codes.astype(np.uint64)), documents, _kinds()[codes], inside)


def _runs(symbols: Symbols, config: WideConfig) -> Iterator[Runs]:
    yield from _words(symbols, config.words)
    yield from _characters(symbols, int(config.characters))
    yield from _chinese(symbols, config.han)


def _words(symbols: Symbols, longest: int) -> Iterator[Runs]:
    """Keys of runs of 1 to `longest` words of one document, whatever spaces stand between."""
    starts, ends = _word_places(symbols.kinds)
    if not longest or not len(starts):
        return
    lengths = ends - starts
    firsts = np.cumsum(lengths) - lengths
    offsets = np.arange(firsts[-1] + lengths[-1]) - np.repeat(firsts, lengths)
    # A word is the polynomial of its characters' hashes, modulo 2**64.
    powers = np.multiply.accumulate(np.full(lengths.max(), BASE))
    terms = symbols.hashes[offsets + np.repeat(starts, lengths)] * powers[offsets]
    words = _mixed(np.add.reduceat(terms, firsts))
    documents, runs = symbols.documents[starts], words
    for length in range(1, min(longest, len(words)) + 1):
        if length > 1:
            runs = runs[:-1] * BASE + words[length - 1 :]
        together = documents[: len(runs)] == documents[length - 1 :]
        keys = _key(WORDS, length, runs[together], documents[: len(runs)][together])
        yield Runs(keys, starts[: len(runs)][together], ends[length - 1 :][together])


def _word_places(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words start and end: runs of letters, with apostrophes in them, or single signs."""
    word = kinds == LETTER
    marks = np.flatnonzero(kinds == APOSTROPHE)
    word[marks[word[marks - 1] & word[marks + 1]]] = True
    sign = ((kinds == SIGN) | (kinds == APOSTROPHE)) & ~word
    starts = sign | (word & ~np.append(False, word[:-1]))
    ends = sign | (word & ~np.append(word[1:], False))
    return np.flatnonzero(starts), np.flatnonzero(ends) + 1


def _characters(symbols: Symbols, longest: int) -> Iterator[Runs]:
    """Keys of runs of 2 to `longest` characters of a stretch without spaces or Chinese.

    What stands around a stretch is read as a mark, so a place in it or before it starts runs of
    that stretch alone; `left` is how many characters it has from there, the last mark included.
    """
    if longest < 2:
        return
    visible = (symbols.kinds != SPACE) & (symbols.kinds != CHINESE)
    edges = np.flatnonzero(visible[1:] != visible[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    hashes = np.where(visible, symbols.hashes, BASE)
    places = np.flatnonzero(visible | np.append(visible[1:], False))
    left = np.repeat(ends, ends - starts + 1) + 1 - places
    # The mark before the first character of a document still belongs to the last document.
    documents = symbols.documents[np.minimum(places + 1, len(visible) - 1)]
    runs = hashes[places]
    for length in range(2, longest + 1):
        enough = left >= length
        places, left, runs, documents = (one[enough] for one in (places, left, runs, documents))
        runs = runs * BASE + hashes[places + length - 1]
        yield Runs(_key(CHARACTERS, length, runs, documents), places, places + length)


def _chinese(symbols: Symbols, longest: int) -> Iterator[Runs]:
    """Keys of runs of 1 to `longest` characters, one of them Chinese, across whatever there is."""
    places = np.flatnonzero(symbols.inside)
    seen = np.append(0, np.cumsum(symbols.kinds[places] == CHINESE))
    if not seen[-1]:
        return
    hashes, documents = symbols.hashes[places], symbols.documents[places]
    runs = hashes
    for length in range(1, min(longest, len(places)) + 1):
        if length > 1:
            runs = runs[:-1] * BASE + hashes[length - 1 :]
        kept = documents[: len(runs)] == documents[length - 1 :]
        kept &= seen[length:] > seen[: len(runs)]
        keys = _key(HAN_RUNS, length, runs[kept], documents[: len(runs)][kept])
        yield Runs(keys, places[: len(runs)][kept], places[length - 1 :][kept] + 1)


def _key(kind: int, length: int, hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The kind in the two highest bits, the document in the low ones, a hash between; uint64."""
    mixed = _mixed(hashes + np.uint64(kind * 16 + length)) >> np.uint64(2)
    return mixed & ~IN_CHUNK | documents | np.uint64(kind << 62)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every bit depends on every other."""
    values = values + BASE
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _kinds() -> np.ndarray:
    """What each code point is, uint8."""
    everything = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(0x110000, SIGN, np.uint8)
    for spaces in re.finditer(r"\s+", everything):
        kinds[slice(*spaces.span())] = SPACE
    for letters in re.finditer(r"\w+", everything):
        kinds[slice(*letters.span())] = LETTER
    # Python's \w lacks the vowel signs of Hindi, Thai or Arabic, which would cut their words.
    signs = [one for one in range(0x20000) if unicodedata.category(chr(one))[0] == "M"]
    kinds[signs] = LETTER
    for chinese in HAN.finditer(everything):
        kinds[chinese.start()] = CHINESE
    kinds[[ord("'"), ord("’")]] = APOSTROPHE
    return kinds


def _balance(values: np.ndarray, documents: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """A factor for every value: characters get the norm that the words of their document have.

    They are many and would drown the words; measured better than one norm over both. A document
    with only one of them is left as it is.
    """
    squares = np.bincount(documents * 3 + kinds, values * values)
    squares = np.append(squares, np.zeros(-len(squares) % 3)).reshape(-1, 3)
    words, characters = squares[:, WORDS], squares[:, CHARACTERS]
    both = (words > 0) & (characters > 0)
    factor = np.sqrt(np.where(both, words, 1) / np.where(both, characters, 1))
    return np.where(kinds == CHARACTERS, factor[documents], 1)


def _group_starts(ascending: np.ndarray) -> np.ndarray:
    """Where each group of equal values begins."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))


def _document_frequencies(
    texts: Sequence[str], config: WideConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Every feature, ascending, and in how many documents it stands."""
    seen = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for features in _each(lambda chunk: count(chunk, config).features, chunks(texts)):
        first = _group_starts(features)
        seen.append((features[first], np.diff(np.append(first, len(features)))))
        # Merge only once the new ones outnumber the old: each is then moved a few times in all.
        if sum(len(new) for new, _ in seen[1:]) > len(seen[0][0]):
            seen = [_merged(seen)]
            if len(seen[0][0]) > MOST_SEEN:
                # Lossy counting (Manku & Motwani 2002): bounds the memory of endless text.
                often = seen[0][1] > 1
                seen = [(seen[0][0][often], seen[0][1][often])]
    return _merged(seen)


def _merged(seen: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    features = np.concatenate([one for one, _ in seen])
    frequencies = np.concatenate([one for _, one in seen])
    order = np.argsort(features, kind="stable")
    features = features[order]
    first = _group_starts(features)
    if not len(first):
        return features, frequencies
    return features[first], np.add.reduceat(frequencies[order], first)


def _fit_linear(
    vocabulary: Vocabulary,
    texts: Sequence[str],
    labels: np.ndarray,
    weights: np.ndarray | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One class against the rest: float64 weights (columns, features) and bias (columns,)."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier
    from sklearn.svm import LinearSVC

    places, values, starts = vocabulary.encode(texts)
    matrix = csr_matrix((values, places, starts), (len(texts), len(vocabulary.features)))
    present = np.unique(labels)
    given = None if weights is None else {int(one): float(weights[one]) for one in present}
    c = vocabulary.config.c
    options: dict[str, Any] = {"class_weight": given, "random_state": seed}
    if len(values) * len(present) > MOST_PRODUCTS:
        options |= {"alpha": 1 / (c * len(texts)), "max_iter": 5, "tol": None, "average": True}
        model = SGDClassifier(**options)
    else:
        model = LinearSVC(**options | {"C": c, "tol": 1e-2, "dual": True})
    model.fit(matrix, labels)
    return np.asarray(model.coef_), np.asarray(model.intercept_)
