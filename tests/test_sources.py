"""Reading: hand-made files, friendly and hostile, and what becomes of each of their rows."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from nightshift.errors import PassingError, SourceError
from nightshift.lines import detect_encoding
from nightshift.rows import Row, as_time
from nightshift.sources import (
    FoundFile,
    SourceConfig,
    columns_of,
    file_digest,
    is_settled,
    list_files,
    read_rows,
)

CHINESE = ["国乒公布世乒赛名单", "王宝强携神秘女孩回公寓", "美元兑人民币中间价为6.83元"]
FRENCH = ["Où est la carte ?", "Le café est fermé", "À bientôt chère amie", "rien"]


def read(path: Path | str, **options: object) -> list[Row]:
    config = SourceConfig.model_validate({"paths": [str(path)], **options})
    return [row for chunk in read_rows(str(path), config) for row in chunk]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(rows: list[Row]) -> list[str | None]:
    return [row.text for row in rows]


def problems(rows: list[Row]) -> list[str | None]:
    return [row.problem for row in rows]


def names(config: SourceConfig) -> list[str]:
    return [Path(file.uri).name for file in list_files(config)]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


# --- finding --------------------------------------------------------------------------------


def test_a_folder_gives_every_known_file_below_it_without_hidden_and_temporary_ones(
    tmp_path: Path,
) -> None:
    kept = ["a.csv", "b.jsonl.gz", "deep/c.parquet", "deep/d.txt.zst"]
    left = [".e.csv", "_f.csv", "g.csv.part", "h.csv~", "i.tmp", "j.png", ".git/k.csv"]
    for name in kept + left:
        write(tmp_path / name, "x")
    found = list_files(SourceConfig(paths=[str(tmp_path)]))
    assert [file.uri for file in found] == [str(tmp_path / name) for name in kept]
    assert all(file.bytes == 1 and file.modified for file in found)


def test_a_folder_of_a_declared_format_gives_only_that_format(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt.gz", "c.csv"):
        write(tmp_path / name, "x")
    assert names(SourceConfig(paths=[str(tmp_path)], format="text")) == ["a.txt", "b.txt.gz"]


def test_a_file_behind_two_paths_is_listed_once_and_nothing_behind_a_path_is_no_file(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a[1].csv", "text\nx\n")
    globs = [str(path), str(tmp_path / "*.csv"), str(tmp_path / "none*.csv"), "/no/such/folder/x"]
    assert names(SourceConfig(paths=globs)) == ["a[1].csv"]


def test_a_glob_takes_names_of_unknown_kind_but_not_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.log", "_b.log", "~c.log~"):
        write(tmp_path / name, "x")
    assert names(SourceConfig(paths=[str(tmp_path / "*")], format="csv")) == ["a.log"]


def test_an_unknown_protocol_is_a_source_error() -> None:
    with pytest.raises(SourceError, match=r"nowhere://x\.csv: cannot be opened"):
        list_files(SourceConfig(paths=["nowhere://x.csv"]))


def test_memory_urls_are_listed_and_read(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/inbox/a.csv.gz", gzip.compress(b"text\nhello\n"))
    config = SourceConfig(paths=["memory://inbox/*.gz"])
    [file] = list_files(config)
    assert file.uri.startswith("memory://")
    assert file.modified is not None
    assert texts(read(file.uri)) == ["hello"]
    assert len(file_digest(file.uri)) == 32


def test_files_inside_an_archive_are_found_and_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/a.csv", "text\nhello\n")
    [file] = list_files(SourceConfig(paths=[f"zip://deep/*.csv::{tmp_path / 'a.zip'}"]))
    assert texts(read(file.uri)) == ["hello"]


def test_a_file_is_settled_a_minute_after_its_last_change() -> None:
    config = SourceConfig(paths=["x"])
    assert not is_settled(FoundFile("x", 1, 1_000.0), config, now=1_059.0)
    assert is_settled(FoundFile("x", 1, 1_000.0), config, now=1_060.0)
    assert is_settled(FoundFile("x", 1, None), config, now=0.0)
    assert is_settled(FoundFile("x", 1, 9_000.0), config, now=1_000.0), "a clock that is ahead"


def test_the_digest_follows_the_content_and_not_the_name(tmp_path: Path) -> None:
    one, same = write(tmp_path / "a.csv", "text\nx"), write(tmp_path / "b.csv", "text\nx")
    other = write(tmp_path / "c.csv", "text\ny")
    assert file_digest(str(one)) == file_digest(str(same)) != file_digest(str(other))
    assert len(file_digest(str(one))) == 32


@pytest.mark.parametrize("wrong", [{"paths": []}, {"delimiter": ";;"}, {"max_row_bytes": 1}])
def test_the_config_is_bounded_and_described(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SourceConfig.model_validate({"paths": ["x"], **wrong})
    fields = SourceConfig.model_fields.values()
    assert all(field.description for field in fields)


# --- CSV ------------------------------------------------------------------------------------


def test_csv_fields_may_hold_newlines_and_doubled_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one,\nand ""two""",x\n\nthree, y \n')
    rows = read(path, label="label")
    assert [(row.number, row.text, row.label) for row in rows] == [
        (1, 'one,\nand "two"', "x"),
        (2, "three", "y"),
    ]


@pytest.mark.parametrize(
    ("name", "options", "mark"),
    [("a.csv", {}, ";"), ("a.tsv", {}, "\t"), ("a.csv", {"delimiter": "~"}, "~")],
)
def test_the_delimiter_is_declared_or_seen_in_the_header(
    tmp_path: Path, name: str, options: dict[str, str], mark: str
) -> None:
    path = write(tmp_path / name, mark.join(["text", "label"]) + "\r\n" + mark.join("ab") + "\r\n")
    [row] = read(path, label="label", **options)
    assert (row.text, row.label) == ("a", "b")


def test_a_csv_row_with_another_number_of_fields_is_rejected_and_the_next_is_kept(
    tmp_path: Path,
) -> None:
    rows = read(write(tmp_path / "a.csv", "text,label\na,b,c\nd\ne,f\n"), label="label")
    assert problems(rows) == ["wrong_fields", "wrong_fields", None]
    assert rows[0].raw == "a,b,c"
    assert rows[2].text == "e"


def test_an_open_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    lines = [f"text {n},l" for n in range(2_999)]
    lines[1_000] = '"open,l'
    rows = read(write(tmp_path / "a.csv", "text,label\n" + "\n".join(lines)))
    assert len(rows) == 2_999
    assert [row.number for row in rows if row.problem] == [1_001]
    assert rows[1_000].problem == "unreadable_line"
    assert rows[1_000].raw == '"open,l'
    assert rows[2_998].text == "text 2998"


def test_an_open_quote_that_a_later_quote_closes_is_noticed(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.csv", 'text,label\n"open,l\nfine,l\n"quoted",l\nlast,l\n'))
    assert [row.text or row.problem for row in rows] == [
        "unreadable_line",
        "fine",
        "quoted",
        "last",
    ]


def test_quotes_inside_a_field_are_read_leniently(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.csv", 'text,label\nthe 5" one,l\n"so" they said,l\n'))
    assert texts(rows) == ['the 5" one', "so they said"]


def test_an_open_quote_holds_no_more_than_a_row_may(tmp_path: Path) -> None:
    body = '"open,l\n' + "some text,l\n" * 20_000
    rows = read(write(tmp_path / "a.csv", "text,label\n" + body), max_row_bytes=10_000)
    assert problems(rows).count("unreadable_line") == 1
    assert texts(rows).count("some text") == 20_000


def test_the_process_wide_field_limit_is_never_lowered(tmp_path: Path) -> None:
    before = csv.field_size_limit(1 << 30)
    try:
        read(write(tmp_path / "a.csv", "text\nx\n"))
        assert csv.field_size_limit() == 1 << 30
    finally:
        csv.field_size_limit(before)


def test_old_macintosh_line_ends_are_lines(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path / "a.csv", "text\rone\rtwo"))) == ["one", "two"]


def test_a_csv_with_a_header_only_has_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n")
    assert read(path) == []
    assert columns_of(str(path), SourceConfig(paths=["x"])) == ["text", "label"]


# --- JSON lines -----------------------------------------------------------------------------


def test_only_an_object_is_a_json_row(tmp_path: Path) -> None:
    deep = "[" * 100_000
    lines = ['{"text": "a"}', '["text"]', "{broken", "", "7", deep, '{"text": "b"}']
    rows = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [row.text or row.problem for row in rows] == ["a", *["unreadable_line"] * 4, "b"]
    assert rows[1].raw == '["text"]'
    assert len(rows[4].raw) == 500


def test_a_json_text_that_is_no_string_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    values = ['{"text": 7}', '{"text": ["a"]}', '{"text": null}', '{"text": " "}', "{}"]
    rows = read(write(tmp_path / "a.jsonl", "\n".join([*values, '{"text": "a"}'])))
    assert problems(rows) == ["text_type"] * 2 + ["no_text"] * 3 + [None]


def test_labels_are_strings_or_integers(tmp_path: Path) -> None:
    labels = [" a ", 3, 3.0, None, "", math.nan, True, 1.5, ["a"], {"a": 1}, math.inf]
    lines = [json.dumps({"text": "x", "label": label}) for label in labels]
    rows = read(write(tmp_path / "a.jsonl", "\n".join(lines)), label="label")
    assert [row.label for row in rows[:6]] == ["a", "3", "3", None, None, None]
    assert problems(rows) == [None] * 6 + ["label_type"] * 5
    assert rows[8].raw == "['a']"


def test_a_json_file_without_labels_is_unlabelled_but_a_misspelt_key_is_an_error(
    tmp_path: Path,
) -> None:
    plain = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    assert [row.label for row in read(plain, label="label")] == [None]
    plural = write(tmp_path / "b.jsonl", '{"text": "a", "Labels": "x"}\n')
    with pytest.raises(SourceError, match="no column 'label'"):
        read(plural, label="label")
    with pytest.raises(SourceError, match="did you mean 'text'"):
        read(plain, text="texts")


def test_ids_and_splits_are_names_and_the_same_id_twice_is_left_to_the_caller(
    tmp_path: Path,
) -> None:
    ids = ["a", "a", 7, 7.0, "", 1.5, None]
    lines = [json.dumps({"text": "x", "id": id_, "split": "train"}) for id_ in ids]
    rows = read(write(tmp_path / "a.jsonl", "\n".join(lines)), id="id", split="split")
    assert [row.id for row in rows] == ["a", "a", "7", "7", None, None, None]
    assert {row.split for row in rows} == {"train"}
    assert problems(rows) == [None] * 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-22T10:00:00+02:00", datetime(2026, 11, 22, 8, tzinfo=UTC)),
        ("2026-11-22 10:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("1700000000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("yesterday", None),
        (2026, None),
        (True, None),
        (math.nan, None),
        (10**30, None),
        (["2026"], None),
    ],
)
def test_times_are_utc_and_what_cannot_be_parsed_is_no_reject(
    value: object, expected: datetime | None
) -> None:
    assert as_time(value) == expected


def test_emoji_and_right_to_left_text_arrive_whole(tmp_path: Path) -> None:
    found = ["👩‍👩‍👧 🇩🇪", "שלום, עולם", "أين بطاقتي؟"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in found]
    assert texts(read(write(tmp_path / "a.jsonl", "\n".join(lines)))) == found


# --- Parquet --------------------------------------------------------------------------------


def test_parquet_types_become_rows(tmp_path: Path) -> None:
    stamp = pa.array([1_700_000_000_000_000_001, None, 0, 0], pa.timestamp("ns"))
    table = pa.table(
        {
            "text": pa.array(["a", "b", None, "d"], pa.large_string()).dictionary_encode(),
            "label": [1.0, math.nan, 2.5, 3.0],
            "id": pa.array([1, 2, 3, None], pa.int64()),
            "time": stamp,
            "unused": [[1], [2], [3], [4]],
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    rows = read(path, label="label", id="id", time="time")
    assert texts(rows) == ["a", "b", None, "d"]
    assert [row.label for row in rows] == ["1", None, None, "3"]
    assert problems(rows) == [None, None, "no_text", None]
    assert [row.id for row in rows] == ["1", "2", "3", None]
    assert rows[0].time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert rows[1].time is None


def test_parquet_labels_of_other_types_are_rejected(tmp_path: Path) -> None:
    for number, labels in enumerate([[["a"]], [{"a": 1}], [True], [Decimal("1.5")]]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"text": ["x"], "label": labels}), path)
        assert problems(read(path, label="label")) == ["label_type"]


def test_parquet_bytes_are_decoded_or_rejected(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xc3\xa9", b"\xff"], pa.binary())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert [row.text or row.problem for row in read(tmp_path / "a.parquet")] == [
        "café",
        "undecodable",
    ]
    unchecked = pa.StringArray.from_buffers(2, *broken.buffers()[1:])
    pq.write_table(pa.table({"text": unchecked}), tmp_path / "b.parquet")
    assert problems(read(tmp_path / "b.parquet")) == [None, "undecodable"]


def test_parquet_is_also_read_compressed_and_an_empty_one_has_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    packed = write(tmp_path / "a.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert texts(read(packed)) == ["a"]
    assert read(write(tmp_path / "b.parquet", b"")) == []


def test_a_parquet_file_that_is_corrupt_inside_keeps_the_rows_before(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {n}" for n in range(4_000)]})
    pq.write_table(table, path, row_group_size=2_000, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    second = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[second : second + 500] = b"\xff" * 500
    rows = read(write(path, bytes(content)))
    assert problems(rows) == [None] * 2_000 + ["unreadable_line"]


# --- text files -----------------------------------------------------------------------------


def test_a_folder_of_text_files_gives_a_document_each_labelled_by_folder(tmp_path: Path) -> None:
    write(tmp_path / "train/good/1.txt", "well\nmade")
    write(tmp_path / "train/bad/1.txt.gz", gzip.compress(b"broken"))
    config = SourceConfig(paths=[str(tmp_path)], format="text", label="folder")
    rows = [
        row for file in list_files(config) for chunk in read_rows(file.uri, config) for row in chunk
    ]
    assert [(row.id, row.label, row.text) for row in rows] == [
        (None, "bad", "broken"),
        (None, "good", "well\nmade"),
    ]


def test_text_files_of_two_folders_have_different_ids(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "1.txt", "x").parent for folder in ("a", "b")]
    config = SourceConfig(paths=[str(path) for path in paths], id="path")
    ids = [row.id for file in list_files(config) for row in next(read_rows(file.uri, config))]
    assert ids == ["a/1.txt", "b/1.txt"]


def test_a_text_file_has_no_columns_but_its_path_and_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found: path, folder"):
        read(write(tmp_path / "a.txt", "x"), label="label")


def test_a_text_file_above_the_limit_is_rejected(tmp_path: Path) -> None:
    [row] = read(write(tmp_path / "a.txt", "x" * 2_000), max_row_bytes=1_000)
    assert (row.problem, row.raw) == ("line_too_long", "x" * 500)


# --- encodings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "lines"),
    [("utf-8", CHINESE), ("utf-8-sig", FRENCH), ("gb18030", CHINESE), ("cp1252", FRENCH)],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_encoding_is_detected(
    tmp_path: Path, encoding: str, lines: list[str], suffix: str
) -> None:
    made = {
        ".csv": "\n".join(["text", *lines]),
        ".jsonl": "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines),
    }[suffix]
    assert texts(read(write(tmp_path / f"a{suffix}", made.encode(encoding)))) == lines


def test_a_broken_line_costs_itself_and_not_the_encoding(tmp_path: Path) -> None:
    content = b"text\ncaf\xc3\xa9\nbroken \xff\xfe here\nplain\n"
    rows = read(write(tmp_path / "a.csv", content))
    assert [row.text or row.problem for row in rows] == ["café", "undecodable", "plain"]
    assert rows[1].raw == "broken ?? here"
    lines = b'{"text": "caf\xc3\xa9"}\n{"text": "\xff"}\n{"text": "plain"}'
    assert problems(read(write(tmp_path / "a.jsonl", lines))) == [None, "undecodable", None]


def test_bytes_that_are_no_letters_of_any_encoding_leave_a_file_utf_8(tmp_path: Path) -> None:
    assert detect_encoding(b"plain\n\xff\xfe\xfd broken\n") == "utf-8"
    assert detect_encoding(b"cut in a character caf\xc3\n") == "utf-8"
    assert detect_encoding(b"") == "utf-8"


@pytest.mark.parametrize(
    "line", ["Grüße aus München", "Åse på øya", "«voilà» 20 °C – 5 €", "“café” à l'ÉTÉ", "¿Dónde?"]
)
def test_western_european_lines_look_latin(line: str) -> None:
    assert detect_encoding(line.encode("cp1252")) == "latin-1"
    assert detect_encoding(line.encode()) == "utf-8"


def test_a_declared_encoding_is_taken_at_its_word(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text\n\x93quoted\x94\n\xe9t\xe9")
    assert texts(read(path, encoding="latin-1")) == ["“quoted”", "été"]
    assert problems(read(path, encoding="utf-8")) == ["undecodable"] * 2


# --- hostile files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_an_empty_file_has_no_rows_and_is_no_error(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, b""), label="label") == []
    assert columns_of(str(tmp_path / name), SourceConfig(paths=["x"])) in ([], ["path", "folder"])


@pytest.mark.parametrize(
    "name", ["a.csv", "a.jsonl", "a.txt", "a.parquet", "a.csv.gz", "a.csv.zst"]
)
def test_a_binary_file_is_a_source_error(tmp_path: Path, name: str) -> None:
    picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20
    with pytest.raises(SourceError, match=rf"{name}: (found binary|not a readable)"):
        read(write(tmp_path / name, picture))


def test_what_cannot_be_opened_is_a_source_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none.parquet"):
        with pytest.raises(SourceError, match="cannot be opened"):
            read(path)
    with pytest.raises(SourceError, match=r"unknown kind of file, expected one of \.csv"):
        read(write(tmp_path / "a.docx", "x"))
    with pytest.raises(SourceError, match="UTF-16"):
        read(write(tmp_path / "a.csv", "text\nx".encode("utf-16")))


@pytest.mark.parametrize("role", ["text", "label", "id", "split", "time"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_declared_column_that_is_missing_is_named_with_those_found(
    tmp_path: Path, role: str, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        write(path, "text,title\nx,y\n")
    else:
        pq.write_table(pa.table({"text": ["x"], "title": ["y"]}), path)
    with pytest.raises(SourceError, match=rf"'titel'.*source\.{role}.*text, title.*mean 'title'"):
        read(path, **{role: "titel"})


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_ends_early_keeps_the_rows_before(
    tmp_path: Path, suffix: str
) -> None:
    lines = "text\n" + "".join(f"{os.urandom(20).hex()}\n" for _ in range(20_000))
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix](lines.encode())
    rows = read(write(tmp_path / f"a.csv{suffix}", packed[: len(packed) * 3 // 4]))
    assert problems(rows) == [None] * (len(rows) - 1) + ["unreadable_line"]
    assert len(rows) > 10_000
    assert "\n".join(["text", *texts(rows[:-1])]) in lines  # type: ignore[list-item]


def test_a_gzip_file_that_is_corrupt_at_its_end_keeps_the_rows_before(tmp_path: Path) -> None:
    packed = gzip.compress(b"text\none\ntwo\n" + os.urandom(5_000).hex().encode())
    rows = read(write(tmp_path / "a.csv.gz", packed[:-8] + b"\xff" * 8))
    assert [row.text or row.problem for row in rows] == ["one", "two", "unreadable_line"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_members_one_after_another_are_one_file(tmp_path: Path, suffix: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    content = pack(b'{"text": "a"}\n{"te') + pack(b'xt": "b"}\n')
    assert texts(read(write(tmp_path / f"a.jsonl{suffix}", content))) == ["a", "b"]


def test_a_small_file_that_unpacks_to_a_huge_line_is_not_held(tmp_path: Path) -> None:
    packed = zstandard.compress(b'{"text": "' + b"x" * 50_000_000)
    assert len(packed) < 10_000
    [row] = read(write(tmp_path / "a.jsonl.zst", packed))
    assert row.problem == "line_too_long"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_of_50_megabytes_is_skipped_without_being_held(tmp_path: Path, kind: str) -> None:
    good = {"csv": "fine,x\n", "jsonl": '{"text": "fine"}\n'}[kind].encode()
    path = tmp_path / f"a.{kind}"
    with path.open("wb") as file:
        file.write(b"text,label\n" if kind == "csv" else good)
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + good)
    tracemalloc.start()
    try:
        rows = read(path, max_row_bytes=1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row.text or row.problem for row in rows][-2:] == ["line_too_long", "fine"]
    assert rows[-2].raw == "x" * 500
    assert peak < 8_000_000


def test_rows_come_in_chunks_and_a_big_file_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("text\n")
        file.writelines(f"{n} " + "x" * 1_000 + "\n" for n in range(20_000))
    tracemalloc.start()
    try:
        chunks = [len(chunk) for chunk in read_rows(str(path), SourceConfig(paths=["x"]))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chunks == [2_000] * 10
    assert peak < 12_000_000


def test_zero_bytes_are_dropped(tmp_path: Path) -> None:
    content = "text\n" + "a" * 2_000 + "\nb\0c\n"
    assert texts(read(write(tmp_path / "a.csv", content)))[1] == "bc"


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "  "])
def test_a_missing_label_in_csv_is_unlabelled(tmp_path: Path, missing: str) -> None:
    rows = read(
        write(tmp_path / "a.csv", f"text,label\na,{missing}\nb,3.0\nc,1.5\n"), label="label"
    )
    assert [row.label for row in rows] == [None, "3", "1.5"]
    assert problems(rows) == [None] * 3


def test_a_store_that_stops_answering_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "x\n" * 500_000)

    def fail(*_: object) -> bytes:
        raise OSError("connection reset")

    rows = read_rows(path.as_uri(), SourceConfig(paths=["x"]))
    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.read", fail, raising=False)
    with pytest.raises(PassingError, match="reading stopped"):
        list(rows)


# --- further columns ------------------------------------------------------------------------


def columns(rows: list[Row]) -> list[dict[str, str]]:
    return [row.columns for row in rows]


def test_declared_columns_are_kept_as_text_whatever_their_type(tmp_path: Path) -> None:
    declared = {"columns": ["region", "size"]}
    csv = write(tmp_path / "a.csv", "size,text,region\n3.0,x, north \n,y,nan\n")
    assert columns(read(csv, **declared)) == [{"region": "north", "size": "3"}, {}]
    lines = '{"text": "x", "region": true, "size": 1.5}\n{"text": "y", "size": ["no", "text"]}\n'
    path = write(tmp_path / "a.jsonl", lines)
    assert columns(read(path, **declared)) == [{"region": "true", "size": "1.5"}, {}]
    table = pa.table({"text": ["x"], "region": [datetime(2026, 1, 2).date()], "size": [None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert columns(read(tmp_path / "a.parquet", **declared)) == [{"region": "2026-01-02"}]
    note = write(tmp_path / "news" / "a.txt", "x")
    assert columns(read(note, columns=["folder"])) == [{"folder": "news"}]


def test_a_declared_column_may_be_the_label_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,good\n")
    [row] = read(path, label="label", columns=["label"])
    assert (row.label, row.columns) == ("good", {"label": "good"})


def test_half_a_surrogate_pair_in_a_column_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x", "region": "\\ud800"}\n')
    assert columns(read(path, columns=["region"])) == [{"region": "?"}]


def test_a_further_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,region\nx,y\n")
    with pytest.raises(SourceError, match=r"'regoin'.*source\.columns.*mean 'region'"):
        read(path, columns=["regoin"])


@pytest.mark.parametrize("names", [["age"], ["a", "a"], [""]])
def test_columns_that_scores_are_told_by_in_any_case_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="expected different names of columns"):
        SourceConfig(paths=["x"], columns=names)
