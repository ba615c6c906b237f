import csv
import json
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nightshift import samples
from nightshift.errors import InputError
from nightshift.samples import SampleFile, write_sample

Rows = list[dict[str, str | None]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[SampleFile]:
    return write_sample(tmp_path_factory.mktemp("inbox"))


@pytest.fixture(scope="module")
def nights(sample: list[SampleFile]) -> list[Rows]:
    with sample[0].path.open(encoding="utf-8", newline="") as file:
        first: Rows = [dict(row) for row in csv.DictReader(file)]
    lines = sample[1].path.read_text(encoding="utf-8").splitlines()
    return [first, [json.loads(line) for line in lines], pq.read_table(sample[2].path).to_pylist()]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of made-up packages that takes the place of the installed ones."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(samples, "PACKAGES", {"red": "shelf_red", "blue": "shelf_blue"})
    return tmp_path


def put(shelf: Path, name: str, source: str | bytes) -> Path:
    path = shelf / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.encode() if isinstance(source, str) else source)
    return path


def function(name: str, docstring: str) -> str:
    return f'def {name}():\n    """{docstring}"""\n'


SENTENCE = "Give back the number that nobody asked for, but kindly."


def test_three_nights_come_in_three_formats_and_say_what_they_hold(
    sample: list[SampleFile], nights: list[Rows]
) -> None:
    names = [file.path.name for file in sample]
    assert names == ["night-1.csv", "night-2.jsonl", "night-3.parquet"]
    for file, rows in zip(sample, nights, strict=True):
        labels = Counter(row["label"] for row in rows if row["label"])
        assert file.documents == len(rows)
        assert file.labelled == labels.total()
        assert file.labels == dict(labels)
        assert set(rows[0]) == {"id", "text", "label"}


def test_first_night_is_the_largest_and_small_enough_to_train_in_minutes(
    sample: list[SampleFile],
) -> None:
    first, second, third = (file.documents for file in sample)
    assert 2000 < first < 7000
    assert second > 500
    assert third > 500
    assert first > second
    assert first > third


def test_last_night_brings_a_package_never_seen_before(sample: list[SampleFile]) -> None:
    first, second, third = (file.labels for file in sample)
    assert len(first) >= 5
    newcomers = third.keys() - first.keys() - second.keys()
    assert len(newcomers) == 1
    assert third[newcomers.pop()] >= 200


def test_a_few_documents_are_unlabelled_and_always_the_same_ones(
    sample: list[SampleFile], nights: list[Rows]
) -> None:
    for file in sample:
        assert 0.01 < 1 - file.labelled / file.documents < 0.10
    for row in nights[0]:
        expected = samples.share_of(str(row["id"]), "label") < samples.UNLABELLED_SHARE
        assert (not row["label"]) == expected


def test_ids_are_unique_and_no_text_is_boilerplate(nights: list[Rows]) -> None:
    rows = [row for night in nights for row in night]
    ids = [row["id"] for row in rows]
    texts = Counter(row["text"] for row in rows)
    assert len(set(ids)) == len(ids)
    assert max(texts.values()) == samples.MAX_COPIES  # some copies stay: duplicates are real
    lengths = [len(str(row["text"])) for row in rows]
    assert min(lengths) >= samples.MIN_CHARACTERS
    assert max(lengths) <= samples.MAX_CHARACTERS


def test_files_look_an_hour_old_so_that_ingest_does_not_wait(sample: list[SampleFile]) -> None:
    for file in sample:
        assert time.time() - file.path.stat().st_mtime > 3500
    folder = sample[0].path.parent
    assert sorted(path.name for path in folder.iterdir()) == [file.path.name for file in sample]


def test_same_installation_gives_the_same_bytes(shelf: Path) -> None:
    put(shelf, "shelf_red/__init__.py", function("one", SENTENCE))
    put(shelf, "shelf_blue/__init__.py", function("two", SENTENCE + " Twice."))
    first = [file.path.read_bytes() for file in write_sample(shelf / "a")]
    second = [file.path.read_bytes() for file in write_sample(shelf / "b")]
    assert first == second


def test_packages_are_read_and_never_imported(shelf: Path) -> None:
    put(shelf, "shelf_red/__init__.py", "raise SystemExit\n" + function("one", SENTENCE))
    put(shelf, "shelf_blue/__init__.py", "raise SystemExit\n" + function("two", SENTENCE))
    ids = {document.id for night in samples.gather() for document in night}
    assert ids == {"shelf_red.one", "shelf_blue.two"}


def test_broken_odd_and_generated_files_are_passed_over(shelf: Path) -> None:
    put(shelf, "shelf_red/__init__.py", function("one", SENTENCE))
    put(shelf, "shelf_red/broken.py", "def (:\n")
    put(shelf, "shelf_red/binary.py", b"\x00\xff\xfe")
    put(
        shelf, "shelf_red/bytes.py", b'"""caf\xe9 is not UTF-8, and no cookie says what it is."""\n'
    )
    put(
        shelf,
        "shelf_red/latin.py",
        '# coding: latin-1\n"""Un café, et rien d\'autre dans ce module-ci."""\n'.encode("latin-1"),
    )
    put(shelf, "shelf_red/huge.py", function("two", SENTENCE) + "#" * samples.MAX_FILE_BYTES)
    put(shelf, "shelf_red/tests/test_one.py", function("three", SENTENCE))
    put(shelf, "shelf_red/_vendor/six.py", function("four", SENTENCE))
    found = samples.find_modules("red")
    assert sorted(found) == [
        "shelf_red",
        *("shelf_red.binary", "shelf_red.broken", "shelf_red.bytes"),
        *("shelf_red.huge", "shelf_red.latin"),
    ]
    documents = {
        name: text
        for module, path in found.items()
        for name, text in samples.documents_in(path, module)
    }
    assert documents == {
        "shelf_red.one": SENTENCE,
        "shelf_red.latin": "Un café, et rien d'autre dans ce module-ci.",
    }


def test_one_package_is_not_enough_and_the_message_says_so(shelf: Path) -> None:
    put(shelf, "shelf_red/__init__.py", function("one", SENTENCE))
    with pytest.raises(InputError, match=r"1 package\(s\) found here \(red\).*red, blue"):
        write_sample(shelf / "out")


def test_zipped_package_counts_as_not_installed(shelf: Path) -> None:
    import zipfile

    with zipfile.ZipFile(shelf / "red.zip", "w") as archive:
        archive.writestr("shelf_red/__init__.py", function("one", SENTENCE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(shelf / "red.zip")
        assert samples.find_modules("red") == {}


def test_folder_that_is_a_file_is_the_persons_error(shelf: Path) -> None:
    put(shelf, "shelf_red/__init__.py", function("one", SENTENCE))
    put(shelf, "shelf_blue/__init__.py", function("two", SENTENCE))
    with pytest.raises(InputError, match="Name a folder"):
        write_sample(put(shelf, "file", "") / "inbox")


def test_methods_nested_classes_and_conditional_functions_have_dotted_names(tmp_path: Path) -> None:
    source = f'''"""{SENTENCE}"""
class Outer:
    class Inner:
        def method(self):
            """{SENTENCE} Method."""
            def hidden():
                """{SENTENCE} Hidden."""
try:
    def either():
        """{SENTENCE} Either."""
except ImportError:
    pass
'''
    names = [name for name, _ in samples.documents_in(put(tmp_path, "m.py", source), "m")]
    assert names == ["m", "m.Outer.Inner.method", "m.either"]


def test_doctests_and_underlines_are_left_out() -> None:
    docstring = """Add two numbers.

    Parameters
    ----------
    a : int

    >>> add(1, 2)
    3

    See Also
    --------
    subtract
    """
    assert samples.shorten(docstring) == (
        "Add two numbers.\n\nParameters\na : int\n\nSee Also\nsubtract"
    )


def test_long_first_paragraph_is_cut_between_words() -> None:
    text = samples.shorten("word " * 200)
    assert len(text) <= samples.MAX_CHARACTERS
    assert set(text.split()) == {"word"}
    assert samples.shorten("x" * 590 + "\n\n" + "second " * 20) == "x" * 590


@pytest.mark.parametrize(
    "text",
    [
        "Too short.",
        "Returns:\n    The default environment that was asked for by the caller.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18",
        "A docstring with a control character \x07 somewhere in its middle.",
    ],
)
def test_what_is_no_prose_is_no_document(text: str) -> None:
    assert not samples.is_prose(text)


def test_neighbouring_modules_share_a_night_and_nights_have_their_shares() -> None:
    assert samples.night_of("a.b.c.d") == samples.night_of("a.b.c.e") == samples.night_of("a.b.c")
    nights = Counter(samples.night_of(f"package.module{number}") for number in range(5000))
    assert [round(nights[night] / 5000, 1) for night in (0, 1, 2)] == [0.6, 0.2, 0.2]
