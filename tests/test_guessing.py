import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from nightshift import heads
from nightshift.errors import ConfigError, SourceError
from nightshift.guessing import (
    Guess,
    add_pipeline,
    guess_source,
    pipeline_block,
)
from nightshift.heads import find_delimiter
from nightshift.sources import SourceConfig, read_rows

ENGLISH = [
    "The soup arrived cold, and nobody came to ask",
    "What a wonderful evening, we shall certainly come back",
    "The waiter was friendly but the music was too loud",
    "I would recommend the fish to everybody who likes fish",
]
CHINESE = [
    "中国队在决赛中获得冠军",
    "央行宣布下调存款利率",
    "新款手机今天正式发布",
    "教育部公布今年高考时间",
]


def reviews(rows: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "review": f"{ENGLISH[n % 4]} on visit {n}.",
            "sentiment": ("good", "bad")[n % 2],
            "reviewId": f"r-{n}",
            "part": ("train", "dev", "test")[n % 3],
            "written_at": f"2026-03-{n % 28 + 1:02d} 10:00:00",
            "stars": n % 5,
        }
        for n in range(rows)
    ]


def delimited(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    lines = [delimiter.join(rows[0])]
    lines += [
        delimiter.join(
            f'"{value}"' if delimiter in str(value) else str(value) for value in row.values()
        )
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def put(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


REVIEW_ROLES = {
    "text": "review",
    "label": "sentiment",
    "id": "reviewId",
    "split": "part",
    "time": "written_at",
}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_column_of_a_delimited_file_finds_its_role(tmp_path: Path, delimiter: str) -> None:
    guess = guess_source(put(tmp_path / "reviews.csv", delimited(reviews(), delimiter)))
    assert guess.config == REVIEW_ROLES  # the reader finds the delimiter by itself
    assert guess.labels == {"good": 20, "bad": 20}
    assert guess.languages == {"en": 40}
    assert guess.notes == ["also possible as label: stars."]
    assert list(guess.columns) == list(reviews()[0])
    assert guess.columns["stars"] == "not used; 5 different values, numbers"
    assert guess.columns["sentiment"].startswith("label: few values that repeat; 2 different")
    assert guess.rows == [{k: str(v) for k, v in row.items()} for row in reviews(5)]


def test_json_lines_and_parquet_find_the_same_roles(tmp_path: Path) -> None:
    lines = put(tmp_path / "reviews.jsonl", json_lines(reviews()))
    table = str(tmp_path / "reviews.parquet")
    pq.write_table(pa.Table.from_pylist(reviews()), table)
    assert guess_source(lines).config == guess_source(table).config == REVIEW_ROLES


def test_compressed_files_are_read_by_their_suffix(tmp_path: Path) -> None:
    content = delimited(reviews()).encode()
    zipped = put(tmp_path / "a.csv.gz", gzip.compress(content))
    squeezed = put(tmp_path / "a.csv.zst", zstandard.compress(content))
    assert guess_source(zipped).config == guess_source(squeezed).config == REVIEW_ROLES


def test_file_without_a_known_suffix_gets_its_format_declared(tmp_path: Path) -> None:
    lines = guess_source(put(tmp_path / "export", json_lines(reviews())))
    table = guess_source(put(tmp_path / "export.dat", delimited(reviews(), "\t")))
    assert lines.config["format"] == "jsonl"
    assert table.config["format"] == "csv"


def test_delimiter_that_the_header_hides_is_declared(tmp_path: Path) -> None:
    rows = "".join(f"{ENGLISH[n % 4]} {n};{n % 2}\n" for n in range(20))
    guess = guess_source(put(tmp_path / "a.csv", "text, as it came, whole;label\n" + rows))
    assert guess.config == {
        "delimiter": ";",
        "text": "text, as it came, whole",
        "label": "label",
    }


def test_text_file_is_one_document(tmp_path: Path) -> None:
    guess = guess_source(put(tmp_path / "a.txt", "\n".join(ENGLISH)))
    assert guess.config == {"text": "text"}
    assert guess.rows == [{"text": "\n".join(ENGLISH)}]
    assert guess.notes[0].startswith("a .txt file is one document")


def test_labels_that_are_no_strings_are_not_taken(tmp_path: Path) -> None:
    rows = [{"text": f"{ENGLISH[n % 4]} {n}", "label": n % 2 == 0} for n in range(20)]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert guess.config == {"text": "text"}
    assert "label is named like a label, but holds neither" in guess.notes[0]


def test_damaged_file_shows_what_could_be_read(tmp_path: Path) -> None:
    content = gzip.compress(delimited(reviews(400)).encode())
    guess = guess_source(put(tmp_path / "a.csv.gz", content[: len(content) // 2]))
    assert guess.config == REVIEW_ROLES
    assert "the file is damaged after" in guess.notes[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt", "a"])
def test_reader_reads_every_row_of_what_was_guessed(
    tmp_path: Path, name: str, encoding: str
) -> None:
    content = json_lines(chinese_rows()) if "json" in name else delimited(chinese_rows(), "\t")
    path = put(tmp_path / name, content, encoding)
    guess = guess_source(path)
    config = SourceConfig(paths=[path], **guess.config)
    rows = [row for chunk in read_rows(path, config) for row in chunk]
    assert [(row.text, row.label, row.problem) for row in rows] == [
        (row["标题"], row["类别"], None) for row in chinese_rows()
    ]


def chinese_rows(rows: int = 40) -> list[dict[str, Any]]:
    labels = ("体育", "财经", "科技", "教育")
    return [{"标题": f"{CHINESE[n % 4]}第{n}期", "类别": labels[n % 4]} for n in range(rows)]


def test_gb18030_is_recognised_and_declared(tmp_path: Path) -> None:
    path = put(tmp_path / "news.csv", delimited(chinese_rows(), ";"), "gb18030")
    guess = guess_source(path)
    assert guess.config == {
        "encoding": "gb18030",
        "text": "标题",
        "label": "类别",
    }
    assert guess.languages == {"zh": 40}
    assert guess.rows[0] == chinese_rows(1)[0]
    assert "gb18030" in guess.notes[0]


def test_one_broken_byte_does_not_change_the_encoding_of_a_file(tmp_path: Path) -> None:
    content = json_lines(chinese_rows()).encode() + b'{"\xff": 1}\n'
    assert "encoding" not in guess_source(put(tmp_path / "a.jsonl", content)).config


def test_only_the_head_of_a_file_of_long_rows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_CHARACTERS", 1_000)
    rows = [{"text": f"{ENGLISH[n % 4]} {n} " + "x" * 300, "label": n % 2} for n in range(20)]
    for name, content in (("a.jsonl", json_lines(rows)), ("a.csv", delimited(rows))):
        guess = guess_source(put(tmp_path / name, content))
        assert sum(guess.labels.values()) == 3
        assert guess.notes == []


def test_html_in_the_texts_is_noticed(tmp_path: Path) -> None:
    rows = [{"text": f"{ENGLISH[n % 4]}<br />{n}", "label": n % 2} for n in range(20)]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert guess.notes[0].startswith("20 of 20 texts hold HTML tags: `cleaning: {html: true}`")


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    guess = guess_source(put(tmp_path / "a.csv", delimited(reviews()), "utf-8-sig"))
    assert guess.config == REVIEW_ROLES


def test_commas_inside_texts_do_not_make_a_comma_the_delimiter() -> None:
    assert find_delimiter("id;text\n1;a, b\n2;c, d\n") == ";"
    assert find_delimiter("text\na, b\nc\n") == ","


def test_two_candidate_texts_are_said_plainly(tmp_path: Path) -> None:
    rows = [
        {"title": f"A short headline {n}", "body": f"{ENGLISH[n % 4]} {n}", "label": n % 2}
        for n in range(30)
    ]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert guess.config == {"text": "body", "label": "label"}
    assert guess.notes == ["2 columns could be the text: body, title; took body."]


def test_missing_label_is_said_plainly(tmp_path: Path) -> None:
    rows = [{"text": f"{ENGLISH[n % 4]} {n}", "likes": n % 7} for n in range(30)]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert guess.config == {"text": "text"}
    assert guess.labels == {}
    assert guess.notes == ["no label column found: the night will cluster without a classifier."]


def test_label_without_a_telling_name_is_taken_with_a_doubt(tmp_path: Path) -> None:
    rows = [{"text": f"{ENGLISH[n % 4]} {n}", "what": "ab"[n % 2]} for n in range(30)]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert guess.config["label"] == "what"
    assert "what was taken as label for its 2 repeated values alone" in guess.notes[0]


def test_sorted_file_keeps_its_label_and_says_so(tmp_path: Path) -> None:
    rows = [{"text": f"{ENGLISH[n % 4]} {n}", "label": "good"} for n in range(30)]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert guess.config["label"] == "label"
    assert "only one label among the first 30 rows" in guess.notes[0]


def test_ids_that_repeat_are_not_used(tmp_path: Path) -> None:
    rows = [{"id": n % 10, "text": f"{ENGLISH[n % 4]} {n}", "label": n % 2} for n in range(30)]
    guess = guess_source(put(tmp_path / "a.jsonl", json_lines(rows)))
    assert "id" not in guess.config
    assert guess.notes == [
        "id is named like an id, but has 10 values in 30 rows: not used, documents get ids from "
        "their texts."
    ]


def test_uneven_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", delimited(reviews()) + "one,two\n")
    guess = guess_source(path)
    assert guess.config == REVIEW_ROLES
    assert any(note.startswith("1 of the first 41 rows are broken") for note in guess.notes)


def test_two_rows_are_enough_for_a_guess(tmp_path: Path) -> None:
    guess = guess_source(put(tmp_path / "a.csv", "text,label\nhello dear world,a\nbye now,b\n"))
    assert guess.config == {"text": "text", "label": "label"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no rows found"),
        ("a.csv", b"text\n", "no rows found"),
        ("a.csv", b"x,y\n1,2\n3,4\n", "no column of text among x: 2 different values, numbers;"),
        ("a.json", b'[{"text": "a"}]', "one JSON array. Expected JSON lines"),
        ("a.jsonl", b"nothing\n", "no line is a JSON object"),
        ("a.parquet", b"nothing", "not a readable Parquet file"),
        ("a.csv.gz", b"nothing", "not a readable .gz file"),
        ("a.csv.zst", b"nothing", "not a readable .zst file"),
        ("a.bin", b"\x00\x01\x02", "binary data"),
        ("a.csv", "text,label\n".encode("utf-16"), "found UTF-16"),
    ],
)
def test_unusable_file_is_refused_with_its_name_and_a_next_step(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(SourceError, match=message) as caught:
        guess_source(path)
    assert str(caught.value).startswith(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"No such file.*Check the path"):
        guess_source(str(tmp_path / "a.csv"))
    with pytest.raises(SourceError, match=r"is a folder\. Name one file in it"):
        guess_source(str(tmp_path))


# --- pipelines.yaml


GUESS = Guess(
    config={"text": "review", "label": "sentiment"},
    columns={},
    rows=[],
    languages={"en": 99, "la": 1},
    labels={"good": 3, "bad": 1},
    notes=[],
)
BLOCK = """\
  reviews:
    source:
      paths: ["inbox/reviews.csv"]  # add globs as more files arrive
      text: review  # en
      label: sentiment  # 2 seen: good, bad
"""


def test_block_reads_as_a_person_would_write_it() -> None:
    assert pipeline_block("reviews", GUESS, "inbox/reviews.csv") == BLOCK


@pytest.mark.parametrize(
    "odd", ["a: b", "# no", "yes", "12", "- x", "\t", "标题", 'say "hi"', "a\nb"]
)
def test_odd_names_survive_the_yaml(odd: str) -> None:
    config = {"delimiter": odd, "text": odd, "label": odd}
    guess = Guess(config, {}, [], {}, {f"{odd}\n# {number}": 1 for number in range(9)}, [])
    assert yaml.safe_load(pipeline_block(odd, guess, odd)) == {
        odd: {"source": {"paths": [odd], **config}}
    }


@pytest.mark.parametrize("existing", [None, "", "\n"])
def test_first_pipeline_makes_a_complete_file(existing: str | None) -> None:
    text = add_pipeline(existing, "reviews", BLOCK)
    assert text.endswith("pipelines:\n" + BLOCK)
    found = yaml.safe_load(text)
    assert (found["lake"], found["mlflow"]) == ("data/lake", "sqlite:///data/mlflow.db")


def test_second_pipeline_goes_behind_the_first_and_its_comments() -> None:
    existing = """\
# ours
lake: data/lake
pipelines:
  news:   # from the agency
    source:
      paths: ["news/*.csv"]
      text: |
        a
        b
      # label: later

# the rest
defaults: {train: {when: never}}
"""
    expected = existing.replace("\n# the rest", f"\n{BLOCK}\n# the rest")
    assert add_pipeline(existing, "reviews", BLOCK) == expected


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("pipelines:\n", f"pipelines:\n{BLOCK}"),
        ("pipelines: {}  # none yet\n", f"pipelines:   # none yet\n{BLOCK}"),
        ("pipelines:\nlake: x\n", f"pipelines:\n{BLOCK}\nlake: x\n"),
        ("lake: x\n", f"lake: x\n\npipelines:\n{BLOCK}"),
        ("pipelines:\n  a: {b: c}", f"pipelines:\n  a: {{b: c}}\n\n{BLOCK}"),
        ("pipelines:\n  a: {b:\n    c}\n", f"pipelines:\n  a: {{b:\n    c}}\n\n{BLOCK}"),
        ("pipelines:\n  a:\n", f"pipelines:\n  a:\n\n{BLOCK}"),
        ("pipelines:\n  a: >\n    x\n", f"pipelines:\n  a: >\n    x\n\n{BLOCK}"),
        ("x: &x {b: c}\npipelines:\n  a: *x\n", f"x: &x {{b: c}}\npipelines:\n  a: *x\n\n{BLOCK}"),
    ],
)
def test_pipeline_is_added_to_any_way_of_writing_the_mapping(existing: str, expected: str) -> None:
    assert add_pipeline(existing, "reviews", BLOCK) == expected


def test_block_takes_the_indent_and_the_line_ends_of_the_file() -> None:
    existing = "pipelines:\r\n    news:\r\n        source: {text: a}\r\n"
    text = add_pipeline(existing, "reviews", BLOCK)
    assert text.startswith(existing + "\r\n    reviews:\r\n      source:\r\n")
    assert "\n" not in text.replace("\r\n", "")


def test_name_that_exists_is_refused_with_its_line() -> None:
    existing = "lake: x\npipelines:\n  reviews: {source: {text: a}}\n"
    with pytest.raises(ConfigError, match="line 3: there is a pipeline 'reviews' already"):
        add_pipeline(existing, "reviews", BLOCK)


@pytest.mark.parametrize("existing", ["pipelines: {a: {b: c}}\n", "{lake: x}\n", "- a\n", "text\n"])
def test_file_that_cannot_be_extended_is_left_to_the_person(existing: str) -> None:
    with pytest.raises(ConfigError, match="by hand") as caught:
        add_pipeline(existing, "reviews", BLOCK)
    assert BLOCK in str(caught.value)


def test_broken_file_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        add_pipeline("a: 1\n]: 2\n", "reviews", BLOCK)
