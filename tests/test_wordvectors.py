"""Where token vectors start: every format by hand, damaged files, and the corpus itself."""

from __future__ import annotations

import bz2
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightshift.batches import Documents
from nightshift.errors import ConfigError, SourceError
from nightshift.tokenizer import PADDING, UNKNOWN, Tokenizer, TokenizerConfig
from nightshift.vectors import _information, count
from nightshift.wordvectors import PIECE, START, Start, _pieces, frequencies, from_corpus, from_file

COLOURS = ["red red red red", "green green green", "blue blue"]
FAST_TEXT = "3 2\nred 1 2\ngreen 3 -4.5\nyellow 7 7\n"
RED, GREEN, BLUE = 2, 3, 4  # by frequency


def learn(texts: list[str], **options: Any) -> Tokenizer:
    return Tokenizer.learn(texts, TokenizerConfig(**{"vocabulary": 200, "min_count": 1, **options}))


@pytest.fixture(scope="module")
def colours() -> Tokenizer:
    found = learn(COLOURS, unit="word")
    assert found.tokens(range(5)) == ["[PAD]", "[UNK]", "red", "green", "blue"]
    return found


def write(folder: Path, content: str | bytes, name: str = "words.vec") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def arrays(**content: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **content)
    return stream.getvalue()


def start(path: str, tokenizer: Tokenizer, width: int = 2, seed: int = 1) -> Start:
    return from_file(path, tokenizer, width, np.ones(tokenizer.size, np.int64), seed)


def vector(found: Start, tokenizer: Tokenizer, entry: str) -> list[float] | None:
    place = tokenizer.tokens(range(tokenizer.size)).index(entry)
    return found.matrix[place].tolist() if found.covered[place] else None


# --- formats --------------------------------------------------------------------------------

GLOVE = FAST_TEXT.partition("\n")[2]
FORMATS = {
    "fasttext.vec": FAST_TEXT.encode(),
    "glove.txt": GLOVE.encode(),
    "no-last-line-end.txt": GLOVE.encode().rstrip(),
    "spaces-at-line-ends.vec": FAST_TEXT.replace("\n", " \n").encode(),
    "windows.vec": FAST_TEXT.replace("\n", "\r\n").encode(),
    "tabs.txt": GLOVE.replace(" ", "\t").encode(),
    "one-tab.txt": b"red\t1 2\ngreen\t3 -4.5\nyellow\t7 7",
    "mark.vec": b"\xef\xbb\xbf" + FAST_TEXT.encode(),
    "mark.txt": b"\xef\xbb\xbf" + GLOVE.encode(),
    "fasttext.vec.gz": gzip.compress(FAST_TEXT.encode()),
    "GLOVE.TXT.BZ2": bz2.compress(GLOVE.encode()),
    "words.npz": arrays(
        words=np.array(["red", "green", "yellow"]), vectors=[[1, 2], [3, -4.5], [7, 7]]
    ),
    "bytes.npz": arrays(
        words=np.array([b"red", b"green"]), vectors=np.array([[1, 2], [3, -4.5]], np.float16)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_vectors(tmp_path: Path, colours: Tokenizer, name: str) -> None:
    counts = np.array([70, 2, 4, 3, 1])
    found = from_file(write(tmp_path, FORMATS[name], name), colours, 2, counts, 1)
    assert found.matrix.dtype == np.float32
    assert found.matrix[[PADDING, RED, GREEN]].tolist() == [[0, 0], [1, 2], [3, -4.5]]
    assert found.covered.tolist() == [False, False, True, True, False]
    assert found.coverage == pytest.approx(2 / 3)
    # Red and green, of all tokens but padding.
    assert found.token_coverage == pytest.approx((4 + 3) / (2 + 4 + 3 + 1))
    assert found.source == f"{name}, 2 wide"


def test_rows_without_words_are_in_the_order_of_the_vocabulary(
    tmp_path: Path, colours: Tokenizer
) -> None:
    rows = np.arange(10.0).reshape(5, 2)
    found = start(write(tmp_path, arrays(embeddings=rows), "rows.npz"), colours)
    assert found.matrix[2:].tolist() == rows[2:].tolist()
    assert found.covered.tolist() == [False, False, True, True, True]
    assert found.coverage == 1


def test_the_file_is_read_in_its_own_encoding(tmp_path: Path) -> None:
    chinese = learn(["北京北京", "天气"], unit="character")
    text = "北 1 2\n京 3 4\n天 5 6\n气 7 8\n"
    found = start(write(tmp_path, text.encode("gb18030")), chinese)
    assert vector(found, chinese, "京") == [3, 4]
    assert found.source == "words.vec, 2 wide, read as gb18030"
    french = learn(["été étés 北"])
    found = start(write(tmp_path, "été 1 2\nétés 3 4\n".encode("latin-1")), french)
    assert vector(found, french, "▁été") == [1, 2]
    assert found.source == "words.vec, 2 wide, read as latin-1"


def test_only_padding_and_the_unknown_token_never_have_a_vector_of_a_file(
    tmp_path: Path, colours: Tokenizer
) -> None:
    text = "[PAD] 5 5\n[UNK] 6 6\nred 1 2\n"
    found = start(write(tmp_path, text), colours)
    assert found.covered.tolist() == [False, False, True, False, False]
    assert found.matrix[PADDING].tolist() == [0, 0]
    assert found.matrix[UNKNOWN].tolist() != [6, 6]


# --- which word an entry is -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris 1 1\nparis 2 2\n▁paris 3 3\n", [3, 3]),
        ("Paris 1 1\nparis 2 2\n", [2, 2]),
        ("Paris 1 1\nPARIS 2 2\n", [1, 1]),
        ("paris 1 1\nparis 2 2\n", [1, 1]),
    ],
)
def test_a_whole_word_is_found_as_itself_then_without_mark_then_capitalised(
    tmp_path: Path, text: str, expected: list[float]
) -> None:
    tokenizer = learn(["paris paris paris"])
    assert vector(start(write(tmp_path, text), tokenizer), tokenizer, "▁paris") == expected


def test_a_capital_in_the_vocabulary_is_also_found_in_lower_case(tmp_path: Path) -> None:
    tokenizer = learn(["NASA NASA", "Oslo Oslo"], unit="word", lowercase=False)
    found = start(write(tmp_path, "nasa 1 2\nOslo 3 4\noslo 5 6\n"), tokenizer)
    assert vector(found, tokenizer, "NASA") == [1, 2]
    assert vector(found, tokenizer, "Oslo") == [3, 4]


def test_the_end_of_a_word_is_not_the_word_of_the_same_letters(tmp_path: Path) -> None:
    tokenizer = learn(["sing ring king wing"] * 4 + ["bing ping"] * 4)
    assert {"ing", "▁sing"} <= set(tokenizer.tokens(range(tokenizer.size)))
    found = start(write(tmp_path, "ing 1 2\nsing 3 4\n"), tokenizer)
    assert vector(found, tokenizer, "ing") is None
    assert vector(found, tokenizer, "▁sing") == [3, 4]
    # A file of subwords tells the end of a word from the word.
    found = start(write(tmp_path, "▁ing 5 6\ning 1 2\n▁sing 3 4\n"), tokenizer)
    assert vector(found, tokenizer, "ing") == [1, 2]


def test_chinese_subwords_and_signs_are_words_without_a_mark(tmp_path: Path) -> None:
    tokenizer = learn(["北京很大!", "北京很好!", "北京!"])
    found = start(write(tmp_path, "北京 1 2\n! 3 4\n"), tokenizer)
    assert vector(found, tokenizer, "北京") == [1, 2]
    assert vector(found, tokenizer, "!") == [3, 4]


def test_single_digits_of_a_character_vocabulary_are_found(tmp_path: Path) -> None:
    tokenizer = learn(["1 12 123 好"], unit="character")
    found = start(write(tmp_path, "1 1 2\n好 3 4\n"), tokenizer)
    assert vector(found, tokenizer, "1") == [1, 2]
    assert vector(found, tokenizer, "好") == [3, 4]


def test_a_file_of_another_language_is_an_error_that_shows_both(
    tmp_path: Path, colours: Tokenizer
) -> None:
    path = write(tmp_path, "rouge 1 2\nvert 3 4\n")
    with pytest.raises(ConfigError, match=r"none of the 3 .*'red', 'green'.*'rouge', 'vert'"):
        start(path, colours)


# --- noise and widths -----------------------------------------------------------------------


def test_entries_not_found_start_as_noise_like_the_vectors_found(tmp_path: Path) -> None:
    tokenizer = learn([" ".join(f"w{number}" for number in range(1500))], unit="word",
                      vocabulary=2000)  # fmt: skip
    path = write(tmp_path, "w3 5 1 5 1\nw4 1 5 1 5\n")  # mean 3, standard deviation 2
    found = start(path, tokenizer, 4)
    noise = found.matrix[2:][~found.covered[2:]]
    assert noise.shape == (1498, 4)
    assert noise.std() == pytest.approx(2, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert found.matrix[PADDING].tolist() == [0, 0, 0, 0]
    assert np.array_equal(start(path, tokenizer, 4).matrix, found.matrix)
    assert not np.array_equal(start(path, tokenizer, 4, seed=2).matrix, found.matrix)


def test_wider_vectors_keep_their_main_directions(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(40)]
    tokenizer = learn([" ".join(words)], unit="word")
    given = np.random.default_rng(1).normal(size=(40, 6)) * [5, 4, 3, 0.2, 0.2, 0.2]
    path = write(tmp_path, arrays(words=np.array(words), vectors=given), "wide.npz")
    found = start(path, tokenizer, 3)
    rows = [tokenizer.tokens(range(tokenizer.size)).index(word) for word in words]
    left, strength, _ = np.linalg.svd(given, full_matrices=False)
    expected = (left[:, :3] * strength[:3] ** 2) @ left[:, :3].T
    np.testing.assert_allclose(found.matrix[rows] @ found.matrix[rows].T, expected, atol=1e-3)
    kept = (strength[:3] ** 2).sum() / (strength**2).sum()
    assert found.source == f"wide.npz, 6 wide, projected to 3 ({kept:.0%} of the squares kept)"


def test_a_single_vector_is_projected_on_itself(tmp_path: Path, colours: Tokenizer) -> None:
    found = start(write(tmp_path, "red 2 3 6\n"), colours, 2)
    # Its length is 7, and its largest number decides the sign.
    np.testing.assert_allclose(found.matrix[RED], [7, 0], atol=1e-5)


def test_narrower_vectors_are_padded_with_faint_noise(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(500)]
    tokenizer = learn([" ".join(words)], unit="word", vocabulary=1000)
    given = np.tile([[3.0, -3.0]], (500, 1))  # standard deviation 3
    path = write(tmp_path, arrays(words=np.array(words), vectors=given), "narrow.npz")
    found = start(path, tokenizer, 5)
    assert (found.matrix[2:, :2] == [3, -3]).all()
    assert found.matrix[2:, 2:].std() == pytest.approx(0.3, rel=0.1)
    assert found.source == "narrow.npz, 2 wide, padded with noise to 5"


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["blue nan 1", "blue inf 1", "blue 1e30 1", "blue 1", "blue 1 2 3", "blue a b", "blue"]
)
def test_a_damaged_line_is_skipped_and_counted(
    tmp_path: Path, colours: Tokenizer, line: str
) -> None:
    found = start(write(tmp_path, f"{line}\n{GLOVE}"), colours)
    assert found.covered.tolist() == [False, False, True, True, False]
    assert found.source == "words.vec, 2 wide, 1 damaged vectors skipped"
    assert np.isfinite(found.matrix).all()


def test_lines_of_words_not_asked_for_are_not_even_parsed(
    tmp_path: Path, colours: Tokenizer
) -> None:
    text = FAST_TEXT + "violet nan 1\n. . 1 2\n\n\nblack x y\n"
    found = start(write(tmp_path, text), colours)
    assert found.source == "words.vec, 2 wide"


def test_a_damaged_row_of_an_array_is_skipped_and_counted(
    tmp_path: Path, colours: Tokenizer
) -> None:
    rows = [[1, 2], [3, 4], [np.nan, 1]]
    content = arrays(words=np.array(["red", "green", "blue"]), vectors=rows)
    found = start(write(tmp_path, content, "rows.npz"), colours)
    assert found.covered.tolist() == [False, False, True, True, False]
    assert found.source == "rows.npz, 2 wide, 1 damaged vectors skipped"


def test_a_file_damaged_for_the_most_part_is_an_error_that_names_the_line(
    tmp_path: Path, colours: Tokenizer
) -> None:
    text = "4 2\nyellow 7 7\nred nan 2\ngreen 1 x\nblue 1 2\n"
    with pytest.raises(SourceError, match=r"2 of the 3 vectors asked for .* in line 3"):
        start(write(tmp_path, text), colours)


def test_a_download_that_broke_off_is_told(tmp_path: Path, colours: Tokenizer) -> None:
    found = start(write(tmp_path, "9" + FAST_TEXT[1:]), colours)
    assert found.source == "words.vec, 2 wide, ends after 3 of 9 vectors"


def test_a_line_without_end_is_read_in_parts(tmp_path: Path, colours: Tokenizer) -> None:
    found = start(write(tmp_path, FAST_TEXT + "violet" + " 1" * 2_000_000), colours)
    assert found.covered.tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the first line is ''"),
        ("3 2\n", "the first line is '3 2'"),
        ("3 5\nred 1 2\ngreen 3 4\n", "first line is '3 5'.* most have 2 numbers"),
        ("red\ngreen\nblue\n", "first line is 'red'.* most have 0 numbers"),
        ("red likes green\ngreen likes red\n", "2 of the 2 vectors asked for are damaged"),
        ("red 1 2\ngreen 3 4\n".encode("utf-16"), "found UTF-16 or binary data"),
        (b"\xba\x16\x4f\x2f\x0c\x00\x00\x00", "found UTF-16 or binary data"),
    ],
)
def test_what_is_no_file_of_word_vectors_is_an_error_that_says_so(
    tmp_path: Path, colours: Tokenizer, content: str | bytes, expected: str
) -> None:
    with pytest.raises(SourceError, match=expected):
        start(write(tmp_path, content), colours)


@pytest.mark.parametrize(
    ("name", "content"),
    [  # without a time in them: every worker must find the same tests
        ("cut.vec.gz", gzip.compress(FAST_TEXT.encode() * 500, mtime=0)[:60]),
        ("plain.vec.gz", FAST_TEXT.encode()),
        ("flipped.vec.gz", gzip.compress(FAST_TEXT.encode(), mtime=0)[:20] + b"\xff" * 30),
        ("cut.vec.bz2", bz2.compress(FAST_TEXT.encode())[:-8]),
        ("plain.vec.bz2", FAST_TEXT.encode()),
        ("plain.npz", FAST_TEXT.encode()),
        ("cut.npz", FORMATS["words.npz"][:-40]),
        ("empty.npz", b""),
    ],
)
def test_damaged_archives_are_errors_that_name_the_file(
    tmp_path: Path, colours: Tokenizer, name: str, content: bytes
) -> None:
    with pytest.raises(SourceError, match=f"{name}: cannot be read"):
        start(write(tmp_path, content, name), colours)


def test_missing_files_folders_and_unknown_stores_are_errors(
    tmp_path: Path, colours: Tokenizer
) -> None:
    (tmp_path / "folder.vec").mkdir()
    for path in (tmp_path / "missing.vec", tmp_path / "missing.npz", tmp_path / "folder.vec"):
        with pytest.raises(SourceError, match=f"{path.name}: cannot be read"):
            start(str(path), colours)
    with pytest.raises(SourceError, match="cannot be read"):
        start("nowhere://words.vec", colours)


@pytest.mark.parametrize("name", ["words.bin", "words", "words.npz.gz", "words.vec.zip", "corpsu"])
def test_an_unknown_kind_of_file_is_an_error_that_lists_the_known_ones(
    colours: Tokenizer, name: str
) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}'.*learned, corpus, .*\.npz"):
        start(name, colours)


class Trap:
    """What a hostile pickle does: run code when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("trapped", ["words", "vectors", "embeddings"])
def test_pickled_objects_are_refused_unopened(
    tmp_path: Path, colours: Tokenizer, trapped: str
) -> None:
    sprung = tmp_path / "sprung"
    content = {trapped: np.array([Trap(sprung)] * 3, dtype=object)}
    if trapped != "embeddings":
        content = {"words": np.array(["red"] * 3), "vectors": np.ones((3, 2)), **content}
    with pytest.raises(SourceError, match="without Python objects"):
        start(write(tmp_path, arrays(**content), "trap.npz"), colours)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"other": np.ones(3)}, "found no array of a known name"),
        ({"words": np.array(["red"])}, r"found words <U3 \(1,\), expected"),
        ({"vectors": np.ones((5, 2))}, r"found vectors float64 \(5, 2\), expected"),
        ({"words": np.array(["red"]), "vectors": np.ones((2, 2))}, "expected `words`"),
        ({"words": np.array([["red"]]), "vectors": np.ones((1, 2))}, "expected `words`"),
        ({"words": np.array([1, 2]), "vectors": np.ones((2, 2))}, "expected `words`"),
        ({"words": np.array(["red"]), "vectors": np.array([["a", "b"]])}, "expected `words`"),
        ({"embeddings": np.ones((4, 2))}, r"numbers \(5, width\) in the order"),
        ({"embeddings": np.ones(5)}, r"numbers \(5, width\) in the order"),
        ({"embeddings": np.ones((5, 0))}, r"numbers \(5, width\) in the order"),
    ],
)
def test_arrays_of_other_shapes_are_errors_that_show_them(
    tmp_path: Path, colours: Tokenizer, content: dict[str, np.ndarray], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        start(write(tmp_path, arrays(**content), "rows.npz"), colours)


# --- the corpus -----------------------------------------------------------------------------


def topics(rows: int) -> tuple[Documents, Tokenizer]:
    """Documents in turn of four topics of ten words each: topic 0 has w0 to w9."""
    tokenizer = learn([" ".join(f"w{number}" for number in range(40))], unit="word")
    random = np.random.default_rng(1)
    texts = [
        " ".join(f"w{10 * (row % 4) + one}" for one in random.integers(0, 10, 6))
        for row in range(rows)
    ]
    return Documents.from_lists(tokenizer.encode(texts)), tokenizer


def test_words_of_a_topic_start_closer_to_one_another_than_to_others() -> None:
    documents, tokenizer = topics(400)
    found = from_corpus(documents, tokenizer, 8, 1)
    assert found.covered.tolist() == [False, False] + [True] * 40
    assert (found.coverage, found.token_coverage) == (1, 1)
    entries = tokenizer.tokens(range(tokenizer.size))
    rows = found.matrix[[entries.index(f"w{number}") for number in range(40)]]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    same = np.arange(40)[:, None] // 10 == np.arange(40) // 10
    cosines = rows @ rows.T
    assert cosines[same].min() > cosines[~same].max()


def test_the_start_from_a_corpus_is_the_svd_of_its_information() -> None:
    documents, tokenizer = topics(400)
    found = from_corpus(documents, tokenizer, 4, 1).matrix[2:]
    left, strength, _ = np.linalg.svd(_information(count(documents, 42)).toarray())
    expected = (left[2:, :4] * strength[:4]) @ left[2:, :4].T
    mine = found @ found.T
    np.testing.assert_allclose(mine / mine[0, 0], expected / expected[0, 0], atol=1e-2)


def test_the_start_from_a_corpus_has_the_networks_own_deviation_and_is_repeatable() -> None:
    documents, tokenizer = topics(400)
    found = from_corpus(documents, tokenizer, 8, 3)
    assert found.matrix.dtype == np.float32
    assert found.matrix[found.covered].std() == pytest.approx(START, rel=1e-4)
    assert not found.matrix[PADDING].any()
    assert np.array_equal(found.matrix, from_corpus(documents, tokenizer, 8, 3).matrix)
    assert found.source == "corpus, 400 pieces of at most 64 tokens, 8 wide"


def test_a_width_above_the_vocabulary_is_padded() -> None:
    documents, tokenizer = topics(400)
    found = from_corpus(documents, tokenizer, 64, 1)
    assert found.matrix.shape == (42, 64)
    assert "41 wide, padded with noise to 64" in found.source


def test_words_alone_or_unseen_start_as_noise_and_are_not_covered(colours: Tokenizer) -> None:
    # Red and green meet, blue stands alone; the unknown token meets red, and still has no vector.
    documents = Documents.from_lists([[RED, GREEN], [RED, GREEN], [BLUE, BLUE], [UNKNOWN, RED]])
    found = from_corpus(documents, colours, 3, 1)
    assert found.covered.tolist() == [False, False, True, True, False]
    assert found.coverage == pytest.approx(2 / 3)
    assert found.token_coverage == pytest.approx(5 / 8)
    assert found.matrix[BLUE].any()


@pytest.mark.parametrize("rows", [[], [[]], [[RED], [GREEN]], [[RED, RED]]])
def test_a_corpus_whose_words_never_meet_is_an_error(
    colours: Tokenizer, rows: list[list[int]]
) -> None:
    with pytest.raises(ConfigError, match=f"of {len(rows)} documents, found no two words"):
        from_corpus(Documents.from_lists(rows), colours, 3, 1)


def firsts(found: Documents) -> list[int]:
    return [int(found.ids[place]) for place in found.starts]


def test_long_documents_are_cut_into_pieces_by_hand() -> None:
    long = list(range(2 * PIECE + 3))
    documents = Documents.from_lists([long, [], [5, 6], long[:PIECE]])
    found = _pieces(documents.take(np.array([2, 0, 1, 3])))
    assert found.lengths.tolist() == [2, PIECE, PIECE, 3, PIECE]
    assert firsts(found) == [5, 0, PIECE, 2 * PIECE, 0]


def test_head_and_tail_around_a_middle_left_out_are_pieces_of_their_own() -> None:
    documents = Documents.from_lists([[10, 11, 12, 13, 14, 15, 16], [20, 21, 22]])
    found = _pieces(documents.cut(3, "both"))
    # 10 and 11, then 16; the short document stays whole.
    assert sorted(zip(firsts(found), found.lengths.tolist(), strict=True)) == [
        (10, 2), (16, 1), (20, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [("head", [0, 0, 2, 1, 1, 0]), ("tail", [0, 0, 1, 1, 1, 1]), ("both", [0, 0, 2, 0, 1, 1])],
)
def test_frequencies_count_what_is_read_by_hand(
    monkeypatch: pytest.MonkeyPatch, truncation: str, expected: list[int]
) -> None:
    documents = Documents.from_lists([[2, 3, 5], [], [4, 2]]).cut(2, truncation)
    assert frequencies(documents, 6).tolist() == expected
    monkeypatch.setattr("nightshift.wordvectors.CHUNK", 1)
    assert frequencies(documents, 6).tolist() == expected
