"""Hostile input by Hypothesis: no traceback, only errors a person can read; and no row is lost.

Each target is a strategy and a property. Here they run a few seconds each, on the same examples
every time; benchmarks/fuzz.py runs them for as long as one likes, on others.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_bundle import CLUSTERS, model, saved

from flows.asked import RefusedError, of_invocation, of_predict, parsed
from flows.predicting import score_file
from nightshift.bundle import Bundle, Model
from nightshift.cleaning import CleaningConfig
from nightshift.errors import BundleError, ConfigError, NightshiftError, SourceError
from nightshift.intake import Intake, Known
from nightshift.integrity import note_files
from nightshift.journal import Journal
from nightshift.pipeline import json_schema, load_settings
from nightshift.sources import (
    SourceConfig,
    columns_of,
    file_digest,
    list_files,
    read_rows,
    whole_columns,
    whole_records,
)
from nightshift.splits import SplitConfig
from nightshift.tables import SCHEMAS

Given = Any
Draw = st.DrawFn

# --- what comes in ----------------------------------------------------------------------------

ODD = ["", " ", "\ufeff", "=1+1", "-5", "nan", "1e400", "0001", "true", '"', "'", '","', ";", "\t",
       "\x00", "\x1b[2J", "\x9b31m", "\u202e", "\ud800", "\u2028", "☃", "𝄞", "a" * 1_500,
       "9" * 4_400, "../../etc/passwd", "{{7*7}}", "<b>", "%s%n", "\r", "\n"]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(ODD), st.text(max_size=40), st.text("abc ,;\"'\n\r\t你好é", max_size=60)
)
SCALAR = st.one_of(
    TEXT, st.none(), st.booleans(), st.integers(), st.floats(), st.integers(-(2**70), 2**70)
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
ROW = st.fixed_dictionaries(
    {"text": TEXT},
    optional={"label": VALUE, "id": SCALAR, "split": TEXT, "at": SCALAR, "kind": VALUE},
)
SOURCE = st.fixed_dictionaries(
    {"text": st.just("text"), "max_row_bytes": st.sampled_from([1_000, 5_000, 1 << 20])},
    optional={
        "label": st.just("label"), "id": st.just("id"), "split": st.just("split"),
        "time": st.just("at"), "columns": st.just(["kind"]),
        "encoding": st.sampled_from(["auto", "utf-8", "gb18030", "latin-1"]),
        "delimiter": st.sampled_from([",", ";", "\t", "|"]),
    },
)  # fmt: skip
DEEP = [
    f'{{"{name}": {"[" * depth}1{"]" * depth}}}'
    for name in ("text", "label", "id", "kind", "texts", "inputs", "params")
    for depth in (300, *range(840, 1_000, 4))
] + [f'{{"text": "a", "label": {"9" * 4_000}, "at": {"9" * 400}}}', '{"text": 1e999}']
"""JSON as deep as Python reads it, and deeper than it prints it; numbers past every type."""
CODECS = ["utf-8", "utf-8-sig", "gb18030", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"]
INSERTED = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\0", b'"', b"\n", b"\r", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x80",
                     b"[" * 1_200, b'{"text":' * 1_200, b"a" * 5_000, b"\n" * 300, b",", b"}"]),
)  # fmt: skip


@st.composite
def mangled(draw: Draw, whole: bytes, most: int = 4) -> bytes:
    """Bytes with a few bits flipped, parts cut out, repeated or put in, or the end missing."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "insert", "cut", "repeat", "end"]))
        length = draw(st.integers(1, 64))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[place:place] = draw(INSERTED)
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * draw(st.integers(1, 8))
        elif kind == "end":
            del data[place:]
    return bytes(data)


@st.composite
def packed(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """Bytes as they are or compressed, and then perhaps damaged, with the ending for it."""
    ending = draw(st.sampled_from(["", "", ".gz", ".zst"]))
    if ending == ".gz":
        data = draw(mangled(gzip.compress(data), 2))
    elif ending == ".zst":
        data = draw(mangled(zstandard.compress(data), 2))
    return data, ending


@st.composite
def csv_file(draw: Draw) -> tuple[bytes, str]:
    """A table of fields, quoted rightly or not."""
    import csv

    mark = draw(st.sampled_from([",", ";", "\t", "|"]))
    stream = io.StringIO()
    writer = csv.writer(
        stream, delimiter=mark, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"]))
    )
    names = ["text", "label", "id", "split", "at", "kind"][: draw(st.integers(1, 6))]
    with suppress(csv.Error):
        writer.writerow(draw(st.permutations(names)))
        for row in draw(
            st.lists(st.lists(TEXT, min_size=len(names), max_size=len(names)), max_size=8)
        ):
            writer.writerow(row)
    raw = stream.getvalue().encode(draw(st.sampled_from(CODECS)), "replace")
    data, ending = draw(packed(draw(mangled(raw))))
    return data, draw(st.sampled_from([".csv", ".tsv"])) + ending


@st.composite
def json_file(draw: Draw) -> tuple[bytes, str]:
    """Objects by lines, of whatever JSON can say, and a little more."""
    lines = [
        json.dumps(row, ensure_ascii=draw(st.booleans()))
        for row in draw(st.lists(st.one_of(ROW, VALUE), max_size=8))
    ] + draw(st.lists(st.sampled_from(DEEP), max_size=1))
    raw = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    whole = raw.encode(draw(st.sampled_from(CODECS)), "replace")
    data, ending = draw(packed(draw(mangled(whole))))
    return data, ".jsonl" + ending


@st.composite
def text_file(draw: Draw) -> tuple[bytes, str]:
    """A document per file."""
    raw = draw(TEXT).encode(draw(st.sampled_from(CODECS)), "replace")
    data, ending = draw(packed(draw(mangled(raw))))
    return data, ".txt" + ending


TYPES = [
    pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float64(), pa.bool_(), pa.date32(),
    pa.timestamp("ns", "Asia/Tokyo"), pa.timestamp("s"), pa.time64("us"), pa.duration("ns"),
    pa.decimal128(20, 3), pa.list_(pa.string()), pa.dictionary(pa.int32(), pa.string()),
    pa.struct([("a", pa.string())]), pa.null(), pa.uint64(), pa.string_view(),
]  # fmt: skip


@st.composite
def parquet_file(draw: Draw) -> tuple[bytes, str]:
    """Columns of any type, then damaged."""
    from decimal import Decimal

    count = draw(st.integers(0, 12))
    columns = {}
    for name in draw(st.permutations(["text", "label", "id", "split", "at", "kind"]))[
        : draw(st.integers(1, 6))
    ]:
        kind = draw(st.sampled_from(TYPES))
        if kind == pa.string_view():
            values: Any = pa.array(["view"] * count, pa.string_view())
        elif (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_dictionary(kind)
        ):
            texts = [
                one.encode("utf-8", "replace").decode()
                for one in draw(st.lists(TEXT, min_size=count, max_size=count))
            ]
            values = (
                pa.array(texts, pa.string()).cast(kind)
                if not pa.types.is_dictionary(kind)
                else pa.array(texts).dictionary_encode()
            )
        elif pa.types.is_binary(kind):
            values = pa.array(
                draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count)), kind
            )
        elif pa.types.is_null(kind):
            values = pa.nulls(count)
        elif pa.types.is_list(kind):
            values = pa.array([["a", None]] * count, kind)
        elif pa.types.is_struct(kind):
            values = pa.array([{"a": "b"}] * count, kind)
        elif pa.types.is_decimal(kind):
            values = pa.array([Decimal("12345.678")] * count, kind)
        elif pa.types.is_boolean(kind) or pa.types.is_floating(kind):
            values = pa.array(
                draw(st.lists(st.floats(), min_size=count, max_size=count)), pa.float64()
            )
        else:
            bits = 31 if kind == pa.date32() else 63
            numbers = draw(
                st.lists(
                    st.integers(0 if kind == pa.uint64() else -(2**bits), 2**bits - 1),
                    min_size=count,
                    max_size=count,
                )
            )
            if kind == pa.time64("us"):
                numbers = [abs(one) % 86_400_000_000 for one in numbers]
            small = pa.array(
                numbers,
                pa.uint64() if kind == pa.uint64() else pa.int64() if bits == 63 else pa.int32(),
            )
            values = small.view(kind)
        columns[name] = values
    stream = io.BytesIO()
    with suppress(pa.ArrowException):
        pq.write_table(
            pa.table(columns), stream,
            compression=draw(st.sampled_from(["none", "snappy", "zstd"])),
            row_group_size=draw(st.integers(1, 20)), use_dictionary=draw(st.booleans()),
        )  # fmt: skip
    data, ending = draw(packed(draw(mangled(stream.getvalue(), 3))))
    return data, ".parquet" + ending


FILES = {"csv": csv_file(), "jsonl": json_file(), "text": text_file(), "parquet": parquet_file()}

# --- readers: every row is kept, a duplicate or a reject -------------------------------------


def in_words(error: Exception, place: str = "") -> None:
    """An error says something, and where."""
    assert place in str(error)
    assert len(str(error)) > 10


@cache
def scratch() -> Path:
    """A folder for the files of all examples."""
    found = tempfile.TemporaryDirectory(prefix="nightshift-fuzz-")
    scratch.kept = found  # type: ignore[attr-defined]
    return Path(found.name)


def read_whole(case: tuple[tuple[bytes, str], dict[str, Any]]) -> None:
    """Property: the rows of a file, numbered without a gap, become exactly as many rows of tables,
    which their schemas take; or the file is refused in words."""
    (data, ending), options = case
    if ".txt" in ending:
        options = {key: value for key, value in options.items() if key in ("text", "max_row_bytes")}
    path = scratch() / f"in{ending}"
    path.write_bytes(data)
    config = SourceConfig.model_validate({"paths": [str(path)], **options})
    assert [file.uri for file in list_files(config)] == [str(path)]
    assert len(file_digest(str(path))) == 32
    intake = Intake(Known(), CleaningConfig(), SplitConfig(), "en", datetime.now(UTC))
    numbers: list[int] = []
    taken = 0
    try:
        for chunk in read_rows(str(path), config):
            numbers += [row.number for row in chunk]
            found = intake.take(str(path), chunk)
            taken += found.rows
            for table in ("documents", "duplicates", "rejects", "labels"):
                pa.Table.from_pylist(getattr(found, table), schema=SCHEMAS[table])
    except NightshiftError as error:
        in_words(error, str(path))
    assert numbers == list(range(1, len(numbers) + 1))
    assert taken == len(numbers)
    with suppress(NightshiftError):
        columns_of(str(path), config)
        whole_columns(str(path), config)
        if ".parquet" not in ending and ".txt" not in ending:
            list(whole_records(str(path), config))


@st.composite
def honest_file(draw: Draw) -> tuple[list[str], str, bytes]:
    """Texts, and a file that holds each of them once and well, with the ending for it."""
    import csv

    texts = draw(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=30),
            max_size=9,
        )
    )
    kind = draw(st.sampled_from([".csv", ".jsonl", ".parquet"]))
    if kind == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), stream)
        return texts, kind, stream.getvalue()
    if kind == ".jsonl":
        return texts, kind, "".join(json.dumps({"text": one}) + "\n" for one in texts).encode()
    lines = io.StringIO()
    writer = csv.writer(lines, quoting=csv.QUOTE_ALL)
    writer.writerows([["text"], *([one] for one in texts)])
    return texts, kind, lines.getvalue().encode()


def keep_every_text(case: tuple[list[str], str, bytes]) -> None:
    """Property: from a well-formed file every text comes back, in order."""
    texts, ending, data = case
    path = scratch() / f"honest{ending}"
    path.write_bytes(data)
    config = SourceConfig(paths=[str(path)], encoding="utf-8", delimiter=",")
    rows = [row for chunk in read_rows(str(path), config) for row in chunk]
    assert [row.text or "" for row in rows] == [
        one if one and not one.isspace() else "" for one in texts
    ]


def score_whole(case: tuple[tuple[bytes, str], str]) -> None:
    """Property: `predict --out` writes a row for every row, or refuses the file and writes none."""
    (data, ending), out = case
    path, there = scratch() / f"scored{ending}", scratch() / f"out{out}"
    path.write_bytes(data)
    there.unlink(missing_ok=True)
    try:
        rows, _ = score_file(answering(), 1, str(path), SourceConfig(paths=["x"]), there, 2)
    except NightshiftError as error:
        in_words(error)
        assert not there.exists()
        return
    assert count_rows(there) == rows
    if ".parquet" not in ending and ".txt" not in ending:
        alone = SourceConfig(paths=[str(path)])
        assert rows == sum(1 for _ in whole_records(str(path), alone))


def count_rows(path: Path) -> int:
    """Rows of an answer file."""
    import csv

    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    if path.suffix == ".jsonl":
        return sum(1 for line in path.open("rb") if isinstance(json.loads(line), dict))
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


@cache
def answering() -> Bundle:
    """A bundle that answers at once."""
    return Bundle(model("vectors"), CLUSTERS)


# --- config ----------------------------------------------------------------------------------

EXAMPLE = {
    "lake": "s3://bucket/lake", "mlflow": "postgresql://user:${NIGHTSHIFT_FUZZ:-word}@host/mlflow",
    "reports": "reports", "storage": {"AWS_SECRET_ACCESS_KEY": "secret"},
    "defaults": {"language": "en", "train": {"epochs": 3}},
    "pipelines": {
        "headlines": {
            "source": {"paths": ["inbox/*.csv", "https://u:p@host/x.csv"], "text": "text",
                       "label": "label", "columns": ["region"]},
            "model": {"encoder": "gru", "embeddings": "corpus"}, "webhook": "https://hook/secret",
            "checks": {"must": [{"text": "a", "label": "b"}],
                       "invariances": [{"texts": ["Ann"], "swap": [["Ann", "Bob"]], "must": True}]},
            "promotion": {"policy": "not_worse", "floors": {"region": 0.1}},
            "tune": {"space": {"train.learning_rate": [0.001, 0.01]}},
        },
        "empty": None,
    },
}  # fmt: skip
TOKENS = ["&a ", "*a", "<<: *a\n", "!!python/object/apply:os.system [id]\n", "!!binary x\n",
          "? ", "- ", "{", "}", "[", "]", "|", ">", "'", '"', "\t", "%YAML 9.9\n", "---\n", "...\n",
          "${", "${A:-}", ": ", "#", "2026-13-45", "0x_", "1_000", ".inf", "\x00", "\x1b", "\u2028",
          "[" * 1_500, "a: &b [*b]\n", "? [a]\n: b\n", "!!set {a}", "!!omap [a: 1]"]  # fmt: skip


@cache
def keys() -> list[str]:
    """Every key that a pipelines file may have."""
    found = {"pipelines", "nonsense"}
    for part in json_schema()["$defs"].values():
        found |= part.get("properties", {}).keys()
    return sorted(found)


@st.composite
def pipelines_file(draw: Draw) -> bytes:
    """The example with some of its values or keys replaced, then with its text mangled."""
    whole = json.loads(json.dumps(EXAMPLE))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = whole
        while True:
            names = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(place[name], dict | list) and place[name] and draw(st.integers(0, 3)):
                place = place[name]
                continue
            kind = draw(st.sampled_from(["value", "key", "gone", "known"]))
            if kind == "value":
                place[name] = draw(VALUE)
            elif kind == "gone":
                del place[name]
            elif isinstance(place, dict):
                key = draw(st.sampled_from(keys())) if kind == "known" else draw(TEXT)
                place[key] = draw(VALUE)
            break
    try:
        text = yaml.safe_dump(whole, allow_unicode=draw(st.booleans()), sort_keys=False)
    except (yaml.YAMLError, ValueError):
        text = json.dumps(whole)
    for _ in range(draw(st.integers(0, 2))):
        place_ = draw(st.integers(0, len(text)))
        text = text[:place_] + draw(st.one_of(st.sampled_from(TOKENS), TEXT)) + text[place_:]
    return draw(mangled(text.encode("utf-8", "replace"), 2))


def load_config(text: bytes) -> None:
    """Property: a pipelines file is read, or refused in words that hold no secret."""
    path = scratch() / "pipelines.yaml"
    path.write_bytes(text)
    try:
        settings = load_settings(path)
    except ConfigError as error:
        in_words(error)
        return
    assert settings.pipelines
    assert ":word@" not in repr(settings)
    assert "u:p@" not in repr(settings)
    assert "https://hook/secret" not in repr(settings)


# --- the server's requests -------------------------------------------------------------------

BODY = st.one_of(
    VALUE,
    st.dictionaries(
        st.sampled_from(["texts", "top_k", "embeddings", "inputs", "instances", "params", "x",
                         "dataframe_split", "dataframe_records"]),
        st.one_of(VALUE, st.lists(TEXT, max_size=4), st.just({"text": ["a"]}),
                  st.fixed_dictionaries({"columns": st.just(["text"]), "data": VALUE}),
                  st.lists(st.fixed_dictionaries({"text": SCALAR}), max_size=3),
                  st.fixed_dictionaries({}, optional={"top_k": SCALAR, "embeddings": SCALAR})),
        max_size=3,
    ),
)  # fmt: skip


@st.composite
def request_body(draw: Draw) -> bytes:
    """JSON of the right shape, or nearly, or not."""
    said = json.dumps(draw(BODY), ensure_ascii=draw(st.booleans()))
    text = draw(st.one_of(st.just(said), st.sampled_from(DEEP)))
    raw = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"])), "replace")
    return draw(mangled(raw, 2))


def answer_request(body: bytes) -> None:
    """Property: a request is answered text by text, or refused with a field and a message."""
    for read in (of_predict, of_invocation):
        try:
            asked = read(parsed(body))
        except RefusedError as refused:
            in_words(refused)
            json.dumps(refused.as_json()).encode()
            continue
        answers = answering().answer(asked.texts, asked.top, asked.vectors)
        assert len(answers) == len(asked.texts)
        json.dumps(answers, allow_nan=False).encode()


# --- bundles and the journal -----------------------------------------------------------------


@cache
def kept_bundle() -> dict[str, bytes]:
    """A bundle's files, the code aside."""
    folder = saved(scratch() / "kept")
    return {
        one.relative_to(folder).as_posix(): one.read_bytes()
        for one in sorted(folder.rglob("*")) if one.is_file() and "code" not in one.parts
    }  # fmt: skip


@st.composite
def altered_bundle(draw: Draw) -> tuple[str, bytes, bool]:
    """One file of a bundle mangled; whether the list of digests was written anew for it."""
    name = draw(st.sampled_from(sorted(kept_bundle())))
    return name, draw(mangled(kept_bundle()[name], 3)), draw(st.booleans())


def open_bundle(case: tuple[str, bytes, bool]) -> None:
    """Property: an altered bundle is refused; with forged digests it may at worst load."""
    name, data, forged = case
    folder = scratch() / "altered"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scratch() / "kept" / "bundle", folder)
    same = data == (folder / name).read_bytes()
    (folder / name).write_bytes(data)
    if forged and name != "files.json":
        note_files(folder)
    try:
        Bundle.load(folder)
    except (BundleError, ConfigError) as error:
        in_words(error)
    else:
        # In files.json itself only its digest, which the registry has, tells of blanks.
        assert same or forged or name == "files.json"
    with suppress(BundleError, ConfigError):
        Model.load(folder)


@cache
def kept_journal() -> bytes:
    """A journal with some words."""
    path = scratch() / "kept.sqlite"
    journal = Journal(path)
    for number in range(30):
        journal.say_name(f"c-{number:04d}", f"name {number}", "class" if number % 2 else None, "me")
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("pragma journal_mode = delete")
    return path.read_bytes()


def open_journal(data: bytes) -> None:
    """Property: a damaged journal is told; nobody gets a traceback for it."""
    path = scratch() / "journal.sqlite"
    for one in path.parent.glob("journal.sqlite*"):
        one.unlink()
    path.write_bytes(data)
    journal = Journal(path)
    actions: list[Callable[[], Any]] = [
        journal.names, journal.last, lambda: journal.say_name("c-0001", "new", None, "me"),
        lambda: journal.erase(["c-0001"]), lambda: journal.copy(scratch() / "copied.sqlite"),
    ]  # fmt: skip
    for action in actions:
        try:
            action()
        except NightshiftError as error:
            in_words(error, str(path))


# --- all of them -----------------------------------------------------------------------------

TARGETS: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Callable[[Any], None]]] = {
    **{
        name: (lambda files=files: st.tuples(files, SOURCE), read_whole)
        for name, files in FILES.items()
    },
    "honest": (honest_file, keep_every_text),
    "predict": (
        lambda: st.tuples(
            st.one_of(FILES["csv"], FILES["jsonl"], FILES["parquet"]),
            st.sampled_from([".csv", ".jsonl", ".parquet"]),
        ),
        score_whole,
    ),
    "config": (pipelines_file, load_config),
    "request": (request_body, answer_request),
    "bundle": (altered_bundle, open_bundle),
    "journal": (lambda: mangled(kept_journal(), 6), open_journal),
}  # fmt: skip


def tried(target: str, number: int | None = None, **options: Any) -> int:
    """Try a target on examples; returns how many. Raises whatever breaks the property, on the
    smallest example that does.

    Args: a seed; none: the same examples every time.
    """
    # What examples are made of must not be made while they are drawn.
    for make in (kept_bundle, kept_journal, answering):
        make()
    strategy, prop = TARGETS[target]
    count = 0

    def one(case: Any) -> None:
        nonlocal count
        count += 1
        prop(case)

    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run = given(strategy())(one)
    run = run if number is None else seed(number)(run)
    settings(
        deadline=None, database=None, suppress_health_check=slow, derandomize=number is None,
        **options,
    )(run)()  # fmt: skip
    return count


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_input_is_answered_in_words_and_no_row_is_lost(target: str) -> None:
    assert tried(target, max_examples=60) >= 60


def test_the_fuzzer_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # A property that cannot fail would prove nothing: a reader that loses a row is caught.
    import test_fuzz

    whole = read_rows  # the name itself is replaced below, where this module is test_fuzz

    def losing(uri: str, config: SourceConfig) -> Any:
        for chunk in whole(uri, config):
            yield chunk[:-1]

    monkeypatch.setattr(test_fuzz, "read_rows", losing)
    with pytest.raises((AssertionError, SourceError)):
        tried("honest", max_examples=60)
