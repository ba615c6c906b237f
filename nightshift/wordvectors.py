"""Where token vectors start: a file of word vectors, or the corpus itself.

    file -> layout (or arrays) -> the vectors of wanted words -> width wanted -> Start
    documents -> pieces -> mutual information -> singular vectors ------------> Start

A file may be larger than memory: it is read once, line by line, and only lines of words that the
vocabulary asks for are parsed.
"""

from __future__ import annotations

import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from .batches import Documents
from .errors import ConfigError, PassingError, SourceError
from .lines import HEAD_BYTES, UTF8_BOM, UTF16_BOMS, detect_encoding
from .tokenizer import HAN, MARK, PADDING, UNKNOWN, Tokenizer
from .vectors import SAMPLE, _information, count

START = 0.1
"""Standard deviation of the vectors that a network starts with by itself."""
FAINT = 0.1
"""Noise in columns that a narrower file does not have, as a share of its standard deviation."""
PIECE = 64
"""Tokens within which words share a document; pairs grow with the square of this."""
CHUNK = 1 << 16
"""Pieces counted at a time."""
LARGEST = 1e6
"""No number of a trained vector is near this; what is larger is damage."""
LINE_BYTES = 1 << 20
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2"}


@dataclass(frozen=True)
class Start:
    """Token vectors before training.

    matrix: float32 (vocabulary, width), the row of padding zero; covered: bool (vocabulary,), the
    entries whose vector was found and is not noise, never padding nor the unknown token.
    """

    matrix: np.ndarray
    covered: np.ndarray
    coverage: float
    """Share of the vocabulary's entries found, padding and the unknown token aside."""
    token_coverage: float
    """Share of the corpus's tokens found; unknown tokens are tokens, padding is not."""
    source: str
    """Where the vectors come from and what was done to them, for a person."""


@dataclass
class _Found:
    """Vectors of words, all of one width, as a file has them."""

    first: list[str]
    """The file's first words, to show where nothing fits."""
    in_order: bool = False
    """Whether the words are the vocabulary itself."""
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    bad: list[int] = field(default_factory=list)
    """Lines or rows, from 1, of words asked for whose numbers cannot be used."""
    notes: list[str] = field(default_factory=list)


def from_file(path: str, tokenizer: Tokenizer, width: int, counts: np.ndarray, seed: int) -> Start:
    """Start from word vectors in a .vec or .txt (also .gz, .bz2) or .npz file.

    A line of text has a word and its numbers, below a header "count width" (fastText, Tencent,
    Sogou) or none (GloVe). An .npz has the arrays `words` and `vectors`, or `embeddings` alone in
    the order of the vocabulary. Wider vectors are projected on the main directions of those found
    (SVD), narrower ones padded with faint noise. An entry that is not found starts as normal noise
    of the found vectors' standard deviation.

    Args: path or fsspec URL; `counts` int64 (vocabulary,), how often each entry is in the corpus.
    Raises: ConfigError if the file fits neither format nor vocabulary, SourceError if it cannot be
    read or most vectors asked for are damaged, PassingError if a store does not answer.
    """
    kind, compression = _format_of(path)
    entries = tokenizer.tokens(range(tokenizer.size))
    entries[PADDING] = entries[UNKNOWN] = ""
    known = {word for entry in entries for word in _spellings(entry, tokenizer.unit)}
    arrays = kind == ".npz"
    found = _from_arrays(path, entries, known) if arrays else _scan(path, compression, known)
    if len(found.bad) > len(found.vectors):
        raise SourceError(
            f"{path}: {len(found.bad)} of the {len(found.bad) + len(found.vectors)} vectors asked "
            f"for are damaged, first in {'row' if arrays else 'line'} {found.bad[0]}. Expected a "
            "word and as many finite numbers as everywhere else. Fetch or write the file again."
        )
    ids, vectors = _matched(entries, tokenizer.unit, found)
    if not len(ids):
        raise _no_coverage(path, entries, found)
    random = np.random.default_rng(seed)
    vectors, note = _fitted(vectors, width, random)
    if found.bad:
        found.notes.append(f"{len(found.bad)} damaged vectors skipped")
    source = ", ".join([PurePosixPath(path).name, note, *found.notes])
    return _start(ids, vectors, counts, random, source)


def from_corpus(documents: Documents, tokenizer: Tokenizer, width: int, seed: int) -> Start:
    """Start from the words that share a document (PPMI-SVD, Levy & Goldberg 2014).

    Longer documents are cut into pieces of `PIECE` tokens; `SAMPLE` pieces, evenly spread over the
    corpus, are learned from. The vectors' standard deviation is `START`.

    Raises: ConfigError if no two words share a document more often than chance.
    """
    from sklearn.utils.extmath import randomized_svd

    pieces = _pieces(documents)
    rows = np.linspace(0, len(pieces) - 1, min(len(pieces), SAMPLE)).astype(np.int64)
    information = _information(count(pieces.take(rows), tokenizer.size))
    ids = np.flatnonzero(np.diff(information.indptr))
    ids = ids[ids > UNKNOWN]
    if not len(ids):
        raise ConfigError(
            f"model.embeddings: corpus: of {len(documents)} documents, found no two words that "
            "stand together more often than chance. Give more documents, or write "
            "`embeddings: learned`."
        )
    most = min(width, tokenizer.size - 1)
    left, strength, _ = randomized_svd(information, most, random_state=seed)
    words = (left * np.sqrt(strength))[ids]
    words *= START / max(float(words.std()), 1e-12)
    random = np.random.default_rng(seed)
    vectors, note = _fitted(words.astype(np.float32), width, random)
    source = f"corpus, {len(rows)} pieces of at most {PIECE} tokens, {note}"
    return _start(ids, vectors, frequencies(documents, tokenizer.size), random, source)


def frequencies(documents: Documents, vocabulary: int) -> np.ndarray:
    """How often each entry stands in the documents, int64 (vocabulary,)."""
    # By pieces, because a single document may be as long as a book.
    pieces = _pieces(documents)
    found = np.zeros(vocabulary, np.int64)
    for start in range(0, len(pieces), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(pieces)))
        found += np.asarray(count(pieces.take(rows), vocabulary).sum(0)).ravel().astype(np.int64)
    return found


def _pieces(documents: Documents) -> Documents:
    """Documents of at most `PIECE` tokens; the ids are shared."""
    starts, lengths = documents.starts, documents.lengths
    if documents.skips is not None:
        # Where a middle is left out, tail and head do not stand together.
        split = documents.skips > 0
        half = (lengths + 1) // 2
        tails = (starts + half + documents.skips)[split]
        starts = np.concatenate([starts, tails])
        lengths = np.concatenate([np.where(split, half, lengths), (lengths - half)[split]])
    pieces = -(-lengths // PIECE)
    owner = np.repeat(np.arange(len(lengths)), pieces)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = (np.arange(len(owner)) - first) * PIECE
    return Documents(
        documents.ids, starts[owner] + offset, np.minimum(PIECE, lengths[owner] - offset)
    )


# --- which word an entry is -----------------------------------------------------------------


def _spellings(entry: str, unit: str) -> list[str]:
    """What a file of words may call an entry, best first."""
    word = entry.removeprefix(MARK)
    if not word:
        return []
    if _is_inner(entry, unit):
        return [entry]
    return list(dict.fromkeys([entry, word, word.lower(), word.capitalize()]))


def _is_inner(entry: str, unit: str) -> bool:
    """Whether a subword continues a word; Han and signs never have a mark to tell by."""
    if unit != "bpe" or entry.startswith(MARK) or HAN.match(entry):
        return False
    return unicodedata.category(entry[0])[0] in "LNM"


def _matched(entries: list[str], unit: str, found: _Found) -> tuple[np.ndarray, np.ndarray]:
    """Ids found, int64 (found,), and their vectors, float32 (found, width of the file)."""
    # The "ing" of "singing" is not a word's "ing", unless the file itself tells them apart.
    tells = found.in_order or any(len(word) > 1 and word[0] == MARK for word in found.vectors)
    ids, rows = [], []
    for number, entry in enumerate(entries):
        word = next((one for one in _spellings(entry, unit) if one in found.vectors), None)
        if word is not None and (tells or not _is_inner(entry, unit)):
            ids.append(number)
            rows.append(found.vectors[word])
    return np.array(ids, np.int64), np.array(rows, np.float32)


def _no_coverage(path: str, entries: list[str], found: _Found) -> ConfigError:
    ours = ", ".join(repr(entry) for entry in [entry for entry in entries if entry][:5])
    return ConfigError(
        f"model.embeddings: {path}: has none of the {len(entries) - 2} entries of the vocabulary "
        f"({ours}, ...); its own first words are {', '.join(map(repr, found.first))}. Expected "
        "vectors of the same language and unit. Give others, change tokenizer.unit, or write "
        "`embeddings: learned`."
    )


# --- files ----------------------------------------------------------------------------------


def _format_of(path: str) -> tuple[str, str | None]:
    """A file's extension and compression, by its name."""
    name = PurePosixPath(path.lower())
    compression = COMPRESSIONS.get(name.suffix)
    kind = name.with_suffix("").suffix if compression else name.suffix
    if kind in (".vec", ".txt") or (kind == ".npz" and not compression):
        return kind, compression
    raise ConfigError(
        f"model.embeddings: '{path}': found no known kind of file, expected learned, corpus, or a "
        "file named .vec or .txt (also .gz, .bz2) or .npz. Rename it, or correct the entry."
    )


@contextmanager
def _opened(path: str, compression: str | None) -> Iterator[Any]:
    """The bytes of a path or fsspec URL below its compression."""
    import fsspec

    try:
        with fsspec.open(path, "rb", compression=compression) as stream:
            yield stream
    except (ConnectionError, TimeoutError) as error:
        raise PassingError(f"{path}: the store does not answer ({error}). Try later.") from error
    except (OSError, EOFError, ValueError, ImportError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{path}: cannot be read ({problem}), expected a file of word vectors. Check the path "
            "in model.embeddings and the permissions, or fetch the file again."
        ) from error


# --- text -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How a text file is written, as its first MiB tells."""

    encoding: str
    skip: int
    """Bytes before the first word: a byte order mark and a header."""
    promised: int | None
    """Vectors that the header counts."""
    width: int
    separator: bytes
    first: list[str]


def _scan(path: str, compression: str | None, known: set[str]) -> _Found:
    """The vectors of known words; of a word that comes twice, the first."""
    layout = _layout(path, compression)
    wanted = _encoded(known, layout.encoding)
    found = _Found(layout.first)
    headers = int(layout.promised is not None)
    number = 0
    with _opened(path, compression) as stream:
        stream.read(layout.skip)
        # Bounded: a file without line ends must not become one line in memory.
        for number, line in enumerate(iter(partial(stream.readline, LINE_BYTES), b""), 1):
            word = wanted.get(line[: line.find(layout.separator)])
            if word is None or word in found.vectors:
                continue
            values = _numbers(line.split()[1:], layout.width)
            if values is None:
                found.bad.append(number + headers)
            else:
                found.vectors[word] = values
    if layout.encoding != "utf-8":
        found.notes.append(f"read as {layout.encoding}")
    if number < (layout.promised or 0):
        found.notes.append(f"ends after {number} of {layout.promised} vectors")
    return found


def _layout(path: str, compression: str | None) -> _Layout:
    with _opened(path, compression) as stream:
        head = stream.read(HEAD_BYTES)
    if head.startswith(UTF16_BOMS) or b"\0" in head:
        raise SourceError(
            f"{path}: found UTF-16 or binary data, expected lines of a word and its numbers. Save "
            "it again as UTF-8; of a binary fastText or word2vec model, take the .vec file."
        )
    text = head.removeprefix(UTF8_BOM)
    first, _, below = text.partition(b"\n")
    header = _header(first)
    rows = below if header else text
    lines = [line.strip() for line in rows.split(b"\n") if line.strip()]
    whole = lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines
    widths = Counter(len(line.split()) - 1 for line in whole)
    [(width, _)] = widths.most_common(1) or [(0, 0)]
    if width < 2 or (header and header[1] != width):
        raise _not_vectors(path, first, width)
    encoding = detect_encoding(text)
    names = [line.split()[0].decode(_codec(encoding), "replace") for line in lines[:3]]
    separator = b"\t" if b"\t" in lines[0] else b" "
    promised = header[0] if header else None
    return _Layout(encoding, len(head) - len(rows), promised, width, separator, names)


def _header(line: bytes) -> tuple[int, int] | None:
    """Count and width, where a first line has nothing else."""
    fields = line.split()
    if len(fields) != 2 or not all(one.isdigit() and len(one) < 16 for one in fields):
        return None
    return int(fields[0]), int(fields[1])


def _not_vectors(path: str, first: bytes, width: int) -> SourceError:
    shown = first[:60].decode("utf-8", "replace").strip()
    return SourceError(
        f"{path}: the first line is '{shown}', and of its lines most have {width} numbers. "
        "Expected a header 'count width' or none, then lines of a word and that many numbers, two "
        "at least. Repair the file, or give another one in model.embeddings."
    )


def _codec(encoding: str) -> str:
    # As the web does, Latin-1 means Windows-1252.
    return "cp1252" if encoding == "latin-1" else encoding


def _encoded(known: set[str], encoding: str) -> dict[bytes, str]:
    """Words as the file would write them, without those that it cannot write."""
    codec = _codec(encoding)
    return {
        word.encode(codec): word
        for word in known
        if word.encode(codec, "ignore").decode(codec) == word
    }


def _numbers(fields: list[bytes], width: int) -> np.ndarray | None:
    """Float32 (width,); None for anything but `width` finite numbers."""
    if len(fields) != width:
        return None
    try:
        values = np.array(list(map(float, fields)))
    except ValueError:
        return None
    return values.astype(np.float32) if _is_sound(values) else None


def _is_sound(values: np.ndarray) -> bool:
    # NaN is not less than anything; float16 cannot hold the limit.
    return bool((np.abs(values.astype(np.float64)) < LARGEST).all())


# --- arrays ---------------------------------------------------------------------------------


def _from_arrays(path: str, entries: list[str], known: set[str]) -> _Found:
    """The vectors of known words in an .npz file."""
    arrays = _arrays(path)
    in_order = "words" not in arrays
    rows = arrays.get("embeddings" if in_order else "vectors", np.zeros(0))
    names = entries if in_order else _names(arrays["words"])
    is_table = rows.ndim == 2 and rows.size > 0 and rows.dtype.kind in "fiu"
    if not is_table or len(names) != len(rows):
        shown = ", ".join(f"{name} {one.dtype} {one.shape}" for name, one in arrays.items())
        raise ConfigError(
            f"model.embeddings: {path}: found {shown or 'no array of a known name'}, expected "
            "`words` of strings (n,) and `vectors` of numbers (n, width), or `embeddings` of "
            f"numbers ({len(entries)}, width) in the order of the tokenizer's entries. Save it "
            "again with numpy.savez."
        )
    found = _Found([name for name in names if name][:3], in_order)
    for number, word in enumerate(names):
        if word not in known or word in found.vectors:
            continue
        if _is_sound(rows[number]):
            found.vectors[word] = rows[number].astype(np.float32)
        else:
            found.bad.append(number + 1)
    return found


def _arrays(path: str) -> dict[str, np.ndarray]:
    """What an .npz file has under the names known here."""
    with _opened(path, None) as stream:
        try:
            # Pickled objects stay closed: opening them runs whatever code they hold.
            stored = np.load(stream, allow_pickle=False)
            there = stored.files if isinstance(stored, np.lib.npyio.NpzFile) else []
            names = [name for name in ("words", "vectors", "embeddings") if name in there]
            return {name: np.asarray(stored[name]) for name in names}
        except (ValueError, zipfile.BadZipFile, RuntimeError, MemoryError) as error:
            raise SourceError(
                f"{path}: cannot be read as .npz ({error}), expected arrays of strings and of "
                "numbers without Python objects. Save it again with numpy.savez."
            ) from error


def _names(words: np.ndarray) -> list[str]:
    """Strings; empty for anything that is no list of strings."""
    if words.ndim != 1 or words.dtype.kind not in "US":
        return []
    return [
        one if isinstance(one, str) else one.decode("utf-8", "replace") for one in words.tolist()
    ]


# --- the matrix -----------------------------------------------------------------------------


def _fitted(vectors: np.ndarray, width: int, random: np.random.Generator) -> tuple[np.ndarray, str]:
    """Vectors of the width wanted, float32 (found, width), and what was done to them."""
    given = vectors.shape[1]
    if given == width:
        return vectors, f"{width} wide"
    if given < width:
        noise = random.standard_normal((len(vectors), width - given), np.float32)
        faint = FAINT * float(vectors.std()) * noise
        return np.hstack([vectors, faint]), f"{given} wide, padded with noise to {width}"
    squares, directions = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    main = directions[:, ::-1][:, :width]
    # Either sign is right; always the same one makes a start repeatable across machines.
    main = main * np.sign(main[np.abs(main).argmax(0), np.arange(width)])
    kept = squares[::-1][:width].sum() / max(squares.sum(), 1e-12)
    note = f"{given} wide, projected to {width} ({kept:.0%} of the squares kept)"
    return (vectors @ main).astype(np.float32), note


def _start(
    ids: np.ndarray,
    vectors: np.ndarray,
    counts: np.ndarray,
    random: np.random.Generator,
    source: str,
) -> Start:
    """Found vectors at their ids, noise like them elsewhere, zero for padding."""
    spread = float(vectors.std()) or START
    matrix = random.standard_normal((len(counts), vectors.shape[1]), np.float32) * spread
    matrix = matrix.astype(np.float32)
    matrix[ids] = vectors
    matrix[PADDING] = 0
    covered = np.zeros(len(counts), bool)
    covered[ids] = True
    tokens = counts.sum() - counts[PADDING]
    return Start(
        matrix=matrix,
        covered=covered,
        coverage=len(ids) / (len(counts) - 2),
        token_coverage=float(counts[ids].sum() / max(tokens, 1)),
        source=source,
    )
