"""What a cluster is called: its keywords, the documents that show it, a name from both.

    texts -> words, gaps between clauses -> words and phrases by document -> a score per cluster
          -> near-duplicates merged -> keywords -> a name unlike the others'

A `namer`, any callable of the person's own (a language model, say), may answer a better name. What
a person wrote stands above both; that is decided where names are kept, not here.
"""

from __future__ import annotations

import logging
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations, count
from queue import Empty, Queue
from threading import Thread
from typing import Any, cast

import numpy as np
from pydantic import Field

from .config import Config, nearest
from .errors import ConfigError
from .tokenizer import HAN, words

log = logging.getLogger(__name__)

HEAD = 4_000
"""Characters read of a text."""
SKETCH = 500
"""Characters by which two documents are told to say the same."""
CARRIES = 0.5
"""A phrase takes the place of a word that stands in it in more than this share of documents."""
COMMON = 1.2
"""A word names a cluster if its share of documents is this many times that of all others."""
SAME = 0.75
"""Likeness from which two keywords, or two exemplars, are one and the same."""
WORTH = 0.7
"""What a keyword's own score weighs, beside its unlikeness to those already chosen."""
LONGEST = 32
"""Characters of a keyword; what is longer is an address or an accident."""
NAME = 40
"""Characters of a name made of keywords."""
ANSWER = 80
"""Characters of a name that a namer may answer."""
PATIENCE = 3
"""Failures in a row after which a namer is asked no more: each may have cost a time limit."""

NAMERS = "NIGHTSHIFT_NAMERS"
"""Names the modules that a namer may be of."""

NONE = np.int32(-1)
"""No term."""

Namer = Callable[[list[str], list[str]], str]
"""Keywords and exemplars' texts -> a name."""


class NamingConfig(Config):
    """How clusters are named."""

    keywords: int = Field(default=8, ge=1, le=50)
    """Keywords per cluster."""
    namer: str | None = None
    """A callable of your own, as "module:function", that is given a cluster's keywords and its
    exemplars' texts (4,000 characters of each at most) and answers a name; none: the best keywords
    are the name. This file alone runs no code: its module has to stand in the environment variable
    NIGHTSHIFT_NAMERS (by commas)."""
    namer_seconds: float = Field(default=30, gt=0)
    """Seconds that it may take for one name."""


@dataclass(frozen=True)
class Described:
    """A cluster's name and its keywords, the best first; `named_by` is the namer, if it was one."""

    name: str
    keywords: list[str]
    named_by: str | None = None


def describe(
    texts: Sequence[str],
    places: Sequence[int] | np.ndarray,
    k: int,
    config: NamingConfig,
    shown: Mapping[int, Sequence[str]] | None = None,
) -> list[Described]:
    """Keywords of every cluster and a name that no other of them has.

    Args: texts and the places of their clusters, negative where a text has none; the number of
    clusters; exemplars' texts by place: the namer is asked about these places only.
    Returns: one per place, in order; a namer that fails is warned about once and changes nothing.
    Raises: ConfigError if the namer cannot be loaded.
    """
    namer = load_namer(config.namer) if config.namer else None
    found = keywords(texts, places, k, config.keywords)
    answers = (
        _answers(namer, config.namer or "", found, shown or {}, config.namer_seconds)
        if namer
        else {}
    )
    first: dict[int, str] = {}
    for text, place in zip(texts, places, strict=True):
        first.setdefault(int(place), text)
    taken: set[str] = set()
    described: list[Described] = []
    for place, own in enumerate(found):
        answered = [(name, config.namer) for name in _told(answers.get(place), own)]
        plain = ((name, None) for name in _names(own, first.get(place, "")))
        choice = chain(answered, plain)
        name, by = next(one for one in choice if one[0].casefold() not in taken)
        taken.add(name.casefold())
        described.append(Described(name, own, by))
    return described


def _told(answer: str | None, own: list[str]) -> list[str]:
    """A namer's answer, then with one keyword each, where another cluster has that name already."""
    told = [answer, *(f"{answer}, {one}" for one in own)] if answer else []
    return [one for one in told if len(one) <= ANSWER]


def _names(own: list[str], text: str) -> Iterator[str]:
    """Names of a cluster, the best first, without end: three keywords, two, one, numbered."""
    best = ""
    for several in (3, 2, 1):
        for some in combinations(own, several):
            name = ", ".join(some)
            if len(name) <= NAME:
                best = best or name
                yield name
    best = best or _beginning(text) or "without words"
    yield best
    yield from (f"{best} ({number})" for number in count(2))


def _beginning(text: str) -> str:
    """The first words of a text, whole, as far as a name is long."""
    line = " ".join(text[:HEAD].split())
    return line if len(line) <= NAME else line[: NAME + 1].rpartition(" ")[0]


# --- a namer of the person's own --------------------------------------------------------------


def load_namer(name: str) -> Namer:
    """The callable behind "module:function"; the current folder is looked in last.

    Raises: ConfigError if this machine does not allow it, if it cannot be imported, or not called
    with keywords and exemplars.
    """
    import inspect

    where = f"clusters.namer: found {name!r}"
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(
            f'{where}, expected "module:function", such as "naming_by_us:name". Write it so.'
        )
    if module not in os.environ.get(NAMERS, "").split(","):
        # A file of settings must not be able to run what it likes: subprocess:run takes two lists.
        raise ConfigError(
            f"{where}, which this machine does not allow to be run. If it should be, say so in the "
            f"environment of whatever works the night: {NAMERS}={module}"
        )
    loaded = _imported(module, where)
    found = getattr(loaded, function, None)
    if not callable(found):
        known = [one for one, what in vars(loaded).items() if callable(what) and one[0] != "_"]
        other = "" if found is None else f" is of type {type(found).__name__}, and"
        raise ConfigError(
            f"{where}, but {function!r}{other} is no function of {module!r}; "
            f"{nearest(function, known)}"
        )
    try:
        inspect.signature(found).bind([], [])
    except TypeError as error:
        raise ConfigError(
            f"{where}, which cannot be called with two lists: {error}. Expected "
            f"def {function}(keywords: list[str], exemplars: list[str]) -> str."
        ) from error
    except ValueError:  # a callable written in C does not tell
        pass
    return cast("Namer", found)


def _imported(module: str, where: str) -> Any:
    import sys
    from importlib import import_module
    from pathlib import Path

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise ConfigError(f"{where}, but it needs {error.name!r}, which is not installed. "
                              "Install it beside Nightshift.") from error  # fmt: skip
        beside = [one.stem for one in Path(here).glob("*.py")]
        raise ConfigError(
            f"{where}, but there is no module {module!r} on Python's path or in the current "
            f"folder; {nearest(module, beside)}"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{where}, but importing it raises {type(error).__name__}: {error}. Mend the module."
        ) from error


def _answers(
    namer: Namer,
    name: str,
    found: list[list[str]],
    shown: Mapping[int, Sequence[str]],
    seconds: float,
) -> dict[int, str]:
    """What the namer says, by place; whatever goes wrong is told once and costs no night."""
    answers: dict[int, str] = {}
    failures: list[str] = []
    in_a_row = 0
    for place in sorted(shown):
        if in_a_row == PATIENCE:
            break
        try:
            answers[place] = _valid(_asked(namer, list(found[place]), list(shown[place]), seconds))
            in_a_row = 0
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
            in_a_row += 1
    if failures:
        log.warning(
            "clusters.namer %s named %d of %d clusters; the others are called by their keywords. "
            "The first failure: %s", name, len(answers), len(shown), failures[0],
        )  # fmt: skip
    return answers


def _asked(namer: Namer, words: list[str], texts: list[str], seconds: float) -> object:
    """Its answer, unless it takes too long; whoever hangs then must not keep the process alive."""
    answer: Queue[tuple[object, Exception | None]] = Queue()

    def ask() -> None:
        try:
            answer.put((namer(words, texts), None))
        except Exception as error:
            answer.put((None, error))

    Thread(target=ask, daemon=True, name="namer").start()
    try:
        told, failure = answer.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s (clusters.namer_seconds)") from None
    if failure is not None:
        raise failure
    return told


def _valid(answer: object) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"it answered {type(answer).__name__}, expected a text")
    line = " ".join(answer.split())
    if not 1 <= len(line) <= ANSWER:
        raise ValueError(f"it answered {len(line)} characters, expected 1 to {ANSWER}")
    return line


# --- keywords ---------------------------------------------------------------------------------


def keywords(
    texts: Sequence[str], places: Sequence[int] | np.ndarray, k: int, most: int
) -> list[list[str]]:
    """Words and phrases that tell a cluster from the others, by class-based TF-IDF.

    After Grootendorst 2022, but counted in documents, so that a repetitive one has no more say than
    another; near-duplicates are merged by maximal marginal relevance (Carbonell & Goldstein 1998).

    Args: texts and their clusters' places, negative where a text has none; the number of clusters;
    keywords per cluster at most.
    """
    placed = np.asarray(places, np.int64)
    kept = np.flatnonzero(placed >= 0).tolist()
    if not kept:
        return [[] for _ in range(k)]
    placed = placed[kept]
    found = _counted([texts[row] for row in kept])
    inside = [found.documents[np.flatnonzero(placed == place)] for place in range(k)]
    scored = [
        _best(_phrased(found, own, score), 5 * most + 10)
        for own, score in zip(inside, _scores(found, inside), strict=True)
    ]
    shown = _shown(found, np.unique(np.concatenate([terms for terms, _ in scored])))
    chosen: list[list[str]] = []
    for place, (terms, score) in enumerate(scored):
        short = [at for at, term in enumerate(terms) if len(shown[term]) <= LONGEST]
        own = [shown[term] for term in terms[short]]
        # Words of the same texts tell less that is new, yet they are not the same word.
        alike = np.maximum(_together(inside[place][:, terms[short]]) / 2, _spelled_alike(own))
        chosen.append([own[at] for at in _varied(score[short], alike, most)])
    return chosen


@dataclass(frozen=True)
class _Counted:
    """Texts as numbers. A term is a word, folded, or a phrase of two or three; -1 is none.

    vocabulary: words as written; written int32 (tokens,) among them; at: per length of a term,
    int32 (tokens,), the term that begins there; parts int32 (terms, 5), the terms inside a term;
    documents: sparse 0/1 (texts, terms); singles: terms that are words, they come first.
    """

    vocabulary: list[str]
    written: np.ndarray
    at: list[np.ndarray]
    parts: np.ndarray
    documents: Any
    singles: int


def _counted(texts: Sequence[str]) -> _Counted:
    """Every word worth a name, and every phrase of such words that two texts share."""
    vocabulary, written, rows = _read(texts)
    index, folded = _folded(vocabulary, written)
    # Of a gap one place is enough; most of a long text is gaps.
    kept = np.flatnonzero((folded >= 0) | (np.append(NONE, folded[:-1]) >= 0))
    written, rows, folded = written[kept], rows[kept], folded[kept]
    inside, last = (np.array([*(JOINING.get(one) == role for one in index), False])[folded]
                    for role in ("inside", "last"))  # fmt: skip
    one = np.where(inside | last, NONE, folded)
    begun = _pairs(one, _from(folded, 1), rows)
    three = _pairs(begun, _from(np.where(inside, NONE, folded), 2), rows)
    two = np.where(_from(inside, 1), NONE, begun)
    # Numbered one length after the other.
    two[two >= 0] += len(index)
    three[three >= 0] += (terms := len(index) + int(begun.max(initial=-1)) + 1)
    terms = max(terms, int(three.max(initial=-1)) + 1)
    at = [one, two, three]
    documents = _documents(at, rows, (len(texts), terms))
    return _Counted(vocabulary, written, at, _parts(at, terms), documents, len(index))


def _read(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The words that occur, in lower case; which stands where, -1 between clauses; whose it is."""
    ids: dict[str, int] = {}
    written, lengths = array("i"), array("i")
    for text in texts:
        before = len(written)
        for clause in CLAUSE.split(text[:HEAD]):
            written.extend([ids.setdefault(one.lower(), len(ids)) for one in words(clause)])
            written.append(-1)
        lengths.append(len(written) - before)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return list(ids), np.array(written, np.int32), rows


def _folded(vocabulary: list[str], written: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The words that may stand in a term, folded, and which of them stands where, int32."""
    folds = [fold(word) if is_term(word) or word in JOINING else "" for word in vocabulary]
    # Sorted, so that terms of equal score come in the order of the alphabet.
    index = {one: place for place, one in enumerate(sorted({*folds} - {""}))}
    places = np.array([*(index.get(one, -1) for one in folds), -1], np.int32)
    return list(index), places[written]


def _pairs(left: np.ndarray, right: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Number the pairs that stand in two texts or more, in the order of their halves.

    Args: int32 (tokens,) each; -1 in either half is no pair.
    """
    there = np.flatnonzero((left >= 0) & (right >= 0))
    keys = left[there].astype(np.int64) * (int(right.max(initial=0)) + 1) + right[there]
    kinds, kind = np.unique(keys, return_inverse=True)
    texts = int(rows.max(initial=0)) + 1
    shared = np.bincount(np.unique(kind * texts + rows[there]) // texts, minlength=len(kinds)) > 1
    found = np.full(len(left), NONE)
    found[there] = np.where(shared, np.cumsum(shared) - 1, -1)[kind]
    return found


def _from(values: np.ndarray, further: int) -> np.ndarray:
    """What stands so much further on; nothing, past the end."""
    nothing = np.full(further, NONE if values.dtype == np.int32 else False, values.dtype)
    return np.concatenate([values[further:], nothing])[: len(values)]


def _documents(at: list[np.ndarray], rows: np.ndarray, shape: tuple[int, int]) -> Any:
    """Which term stands in which text, sparse 0/1 of that shape."""
    from scipy.sparse import csr_array

    there = [np.flatnonzero(each >= 0) for each in at]
    columns = np.concatenate([each[some] for each, some in zip(at, there, strict=True)])
    ones = np.ones(len(columns), np.int32)
    documents = csr_array((ones, (rows[np.concatenate(there)], columns)), shape=shape)
    documents.sum_duplicates()
    documents.data[:] = 1
    return documents


def _parts(at: list[np.ndarray], terms: int) -> np.ndarray:
    """The terms inside each term, int32 (terms, 5), -1 where there are fewer."""
    one, two, three = at
    parts = np.full((terms, 5), NONE)
    for whole, inside in ((two, [(one, 0), (one, 1)]),
                          (three, [(one, 0), (one, 1), (one, 2), (two, 0), (two, 1)])):  # fmt: skip
        there = np.flatnonzero(whole >= 0)
        for column, (part, further) in enumerate(inside):
            parts[whole[there], column] = part[there + further]
    return parts


def _scores(found: _Counted, inside: Sequence[Any]) -> Iterator[np.ndarray]:
    """Class-based TF-IDF of each cluster's terms, float64 (terms,), from its texts' 0/1 rows.

    What stands in the other clusters' texts nearly as often scores 0: it tells nothing apart.
    """
    total, texts = found.documents.sum(0), found.documents.shape[0]
    mean = total[: found.singles].sum() / len(inside)
    for rows in inside:
        own, members = rows.sum(0), rows.shape[0]
        size = max(own[: found.singles].sum(), 1)
        often = own >= (2 if size > 200 else 1) + (np.arange(len(own)) >= found.singles)
        outside = (total - own) / max(texts - members, 1)
        telling = often & (own >= COMMON * outside * members)
        # Where nothing tells it apart, or nothing stands in it twice, something must name it yet.
        worthy = next((one for one in (telling, often) if one.any()), own > 0)
        yield np.where(worthy, own / size * np.log1p(mean / np.maximum(total, 1)), 0)


def _phrased(found: _Counted, inside: Any, score: np.ndarray) -> np.ndarray:
    """A cluster's scores, once phrases have taken the place of what they carry.

    A phrase that carries a telling part, alone, and the others, with further phrases, scores as the
    best part that it carries alone, and its parts leave; any other is words that happened to meet.
    """
    own, phrases = inside.sum(0), np.arange(found.singles, len(score))
    parts = found.parts[phrases]
    telling = (parts >= 0) & (score[parts] > 0)
    alone = telling & (own[phrases, None] > CARRIES * own[parts]) & (score[phrases, None] > 0)
    stays = alone.any(1)
    for _ in range(2):  # again without the phrases that did not stay
        together = _jointly(inside, phrases[stays], parts[stays, :2])
        stays = (alone | (together > CARRIES * own)[parts] | ~telling).all(1) & stays
    best = np.where(alone, score[parts], 0).max(1, initial=0)
    phrased = score.copy()
    phrased[phrases] = np.where(stays, np.maximum(score[phrases], best), 0)
    phrased[parts[stays[:, None] & telling]] = 0
    return phrased


def _jointly(inside: Any, phrases: np.ndarray, words_of: np.ndarray) -> np.ndarray:
    """Texts in which a word stands in any of the phrases, int64 (terms,)."""
    from scipy.sparse import csr_array

    rows, columns = np.nonzero(words_of >= 0)
    ones = np.ones(len(rows), np.int32)
    shape = (len(phrases), inside.shape[1])
    within = csr_array((ones, (rows, words_of[rows, columns])), shape=shape)
    return np.bincount((inside[:, phrases] @ within).indices, minlength=inside.shape[1])


def _best(score: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Terms and their scores, the best first; equal ones by the alphabet, words before phrases."""
    terms = np.argsort(-score, kind="stable")[:most]
    terms = terms[score[terms] > 0]
    return terms, score[terms]


def _shown(found: _Counted, terms: np.ndarray) -> dict[int, str]:
    """Each term as it is most often written."""
    wanted = np.zeros(len(found.parts) + 1, bool)
    wanted[terms] = True
    shown: dict[int, str] = {}
    for length, at in enumerate(found.at, start=1):
        there = np.flatnonzero(wanted[at])
        spelling = at[there]
        for further in range(length):
            keys = spelling.astype(np.int64) * len(found.vocabulary)
            keys += found.written[there + further]
            spelling = np.unique(keys, return_inverse=True)[1]
        _, first, times = np.unique(spelling, return_index=True, return_counts=True)
        for begin in there[first[np.argsort(times, kind="stable")]].tolist():
            run = found.written[begin : begin + length].tolist()
            shown[int(at[begin])] = _joined([found.vocabulary[one] for one in run])
    return shown


def _joined(run: list[str]) -> str:
    """Words with a space between them, but none beside Chinese."""
    return UNSPACED.sub("", " ".join(run))


# --- near-duplicates --------------------------------------------------------------------------


def _together(inside: Any) -> np.ndarray:
    """How far terms stand in the same texts (Jaccard), (terms, terms); 0/1 (texts, terms)."""
    both = (inside.T @ inside).toarray().astype(np.float64)
    own = both.diagonal()
    return both / np.maximum(own[:, None] + own - both, 1)


def _spelled_alike(terms: Sequence[str]) -> np.ndarray:
    """Character n-grams that terms share, of the one that has fewer, (terms, terms)."""
    pieces = [_pieces(one) for one in terms]
    alike = np.eye(len(pieces))
    for (row, left), (column, right) in combinations(enumerate(pieces), 2):
        alike[row, column] = alike[column, row] = len(left & right) / min(len(left), len(right))
    return alike


def _pieces(term: str) -> set[str]:
    """Chinese characters, and threes of letters of every other word's stem."""
    found: set[str] = set()
    for run in term.split():
        if HAN.search(run):
            found.update(run)
        else:
            marked = f"^{stem(run)}$"
            found.update(marked[start : start + 3] for start in range(len(marked) - 2))
    return found


def _varied(worth: np.ndarray, alike: np.ndarray, most: int) -> list[int]:
    """Rows by maximal marginal relevance: worth much, and unlike what was chosen before.

    Args: worth (rows,), above 0; alike (rows, rows), 0 to 1; from SAME on, only one of two stays.
    """
    chosen: list[int] = []
    nearest_chosen = np.zeros(len(worth))
    share = worth / worth.max(initial=1e-12)
    for _ in range(min(most, len(worth))):
        gain = WORTH * share - (1 - WORTH) * nearest_chosen
        gain[nearest_chosen >= SAME] = -np.inf
        best = int(gain.argmax())
        if gain[best] == -np.inf:
            break
        chosen.append(best)
        nearest_chosen = np.maximum(nearest_chosen, alike[best])
    return chosen


def exemplars(
    vectors: np.ndarray, centroid: np.ndarray, texts: Sequence[str], most: int
) -> list[int]:
    """Rows of the documents that show a cluster best: nearest to its centroid, yet different.

    Args: its documents' vectors float32 (documents, width) and texts; its centroid (width,).
    Returns: at most `most` rows; of documents in nearly the same words, only the nearest.
    """
    distances = np.linalg.norm(vectors - centroid, axis=1)
    seen: dict[frozenset[str], int] = {}
    for row in np.argsort(distances, kind="stable"):
        seen.setdefault(frozenset(words(texts[int(row)][:SKETCH].lower())), int(row))
        if len(seen) == 4 * most + 20:
            break
    rows, alike = list(seen.values()), np.eye(len(seen))
    for (row, left), (column, right) in combinations(enumerate(seen), 2):
        alike[row, column] = alike[column, row] = len(left & right) / max(len(left | right), 1)
    return [rows[one] for one in _varied(1 / (1 + distances[rows]), alike, most)]


# --- words that name nothing ------------------------------------------------------------------

NUMBER = re.compile(r"[\d_.,]+\w{0,2}")
_HAN = HAN.pattern
CLAUSE = re.compile(rf"[^\w\s'’-]+|\s-+\s|(?<={_HAN})\s+|\s+(?={_HAN})")
"""Where no phrase goes across: punctuation, and a space beside Chinese."""
UNSPACED = re.compile(rf"(?<={_HAN}) | (?={_HAN})")
SYLLABLES = "\u1100"
"""The first character of the scripts of the Far East: Hangul, kana, Chinese."""
JOINING = {**dict.fromkeys(("of", "and"), "inside"), **dict.fromkeys(("up", "off", "out"), "last")}
"""Words that name nothing, yet may stand inside a phrase, "proof of identity", or end it too."""
NO_PLURALS = {"news", "goods", "customs", "arms", "glasses"}
"""Words that mean something else without their s."""
ENDINGS = ("ments", "ment", "ings", "ing", "ions", "ion", "ed", "es", "ly", "s", "e")

# Function words of Chinese that jieba leaves standing alone and that name nothing.
CHINESE_STOP_WORDS = """
一个 一些 一样 一种 一直 一定 一下 一次 不会 不是 不能 不要 不过 不同 与 且 两个 为什么 为了 也是
了 了吗 什么 今天 今年 他们 以及 以后 以来 以上 以下 任何 但是 你们 使用 其中 其他 其实 几个 则 到
却 又 及 只有 只是 可以 可能 各 各种 同时 后 向 吗 吧 呢 和 因为 因此 在 多少 大家 太 她们 如何
如果 如此 它们 对 对于 将 就是 已经 已 并 并且 应该 开始 当 很 很多 怎么 怎样 您 情况 想 成为 我们
我 或 或者 所以 所有 才 把 按 据 无法 时 时候 是 是否 更 更多 最 有 有些 有没有 有的 来 来说 根据
正在 每 比 比较 没 没有 没法 然后 现在 由 由于 的 的话 目前 相关 着 知道 给 而 而且 自己 虽然 被
要 认为 让 许多 请问 还 还是 还有 这 这个 这些 这样 这种 进行 通过 那 那个 那么 那些 都 都是 里
需要 非常 首次 之一 之前 之后 之间 以前 一起 一点 一般 一位 一名 三个 不再 不仅 不但 不到 不用
不知 不管 这么 这里 那样 那里 哪个 哪些 哪里 谁 怎么办 怎么样 为何 是不是 能否 能够 必须 有点 特别
十分 曾经 仍然 依然 甚至 尤其 另外 此外 同样 关于 至于 除了 除非 尽管 即使 既然 只要 无论 总是
经常 有时 常常 马上 立即 刚刚 终于 几乎 大约 左右 某个 某些 每个 每天 昨天 明天 去年 明年 您好
你好 谢谢 麻烦 东西 事情 真的 觉得 看到 看看 出来 起来 下来 上来 出去 进去 过来 过去 回来 咱们 你
他 她 它 人们 别人 本人 其它 有关 而是 还要 万元 亿元 万美元 亿美元 组图 附图 图文 快讯
"""

# What people say around a question, what is left of contractions, and of web pages.
ENGLISH_STOP_WORDS = """
actually amp anymore aren com couldn did didn didnt does doesn doesnt doing don dont edu gets
getting goes going gone gonna got gov hadn hasn haven having hello hey href htm html http https isn
isnt ive just know let like likely look looking looks lot make makes making maybe mrs nbsp need
needs okay org please quot really said say says shouldn sure tell thank thanks thats thing things
think told try trying use used uses using want wanted wants wasn wasnt way weren whats wouldn www
yeah yes
"""
# Of scikit-learn's list, words that do name something.
TELLING = """
amount bill bottom call computer cry detail fill fire interest mill mine side sincere system thick
thin top
"""


@cache
def stop_words() -> frozenset[str]:
    """English (scikit-learn's list and what it lacks) and Chinese words that name no cluster."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS as THEIRS

    english = {*THEIRS, *ENGLISH_STOP_WORDS.split()} - {*TELLING.split()}
    return frozenset({*english, *CHINESE_STOP_WORDS.split()})


def is_term(word: str) -> bool:
    """Whether a word in lower case may name a cluster: no stop word or number, and long enough.

    That is three letters, or two characters of a script that writes syllables or more in one.
    """
    stop = stop_words()
    before, apostrophe, after = word.replace("’", "'").partition("'")
    if word in stop or fold(word) in stop or NUMBER.fullmatch(word):
        return False
    if apostrophe and (before in stop or after == "t"):  # it's, we'll, shouldn't
        return False
    return len(before) > (1 if before[:1] >= SYLLABLES else 2)


def fold(word: str) -> str:
    """A word without possessive and plural: "city's" and "cities" are counted as "city"."""
    word = word.replace("’", "'").removesuffix("'s")
    if len(word) < 4 or not word.isascii() or not word.endswith("s") or word in NO_PLURALS:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word[:-1]


def stem(word: str) -> str:
    """Roughly what a word is a form of; only ever compared, never shown."""
    word = fold(word)
    ending = next((one for one in ENDINGS if word.endswith(one) and len(word) - len(one) > 2), "")
    word = word.removesuffix(ending)
    doubled = ending and len(word) > 3 and word[-1] == word[-2]
    return word[:-1] if doubled else word
