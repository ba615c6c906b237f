"""What docs/security.md promises: text stays text, files stay files, and secrets stay secret."""

from __future__ import annotations

import ast
import base64
import csv
import gzip
import json
import logging
import os
import pickle
import pty
import re
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import SCRATCH, House, rows
from hypothesis import given
from hypothesis import strategies as st
from test_bundle import saved
from test_imports import modules
from test_sources import read, texts

from flows.environment import keep_private
from flows.reading import FORMULA, cell
from flows.terminal import Plain
from nightshift import lines, parquet
from nightshift.bundle import Bundle
from nightshift.config import read_yaml
from nightshift.errors import BundleError, ConfigError, SourceError
from nightshift.integrity import note_files
from nightshift.naming import load_namer
from nightshift.pipeline import load_settings
from nightshift.showing import PlainRecord, masked, plain, unmasked
from nightshift.sources import SourceConfig, list_files, read_rows

BIN = Path(sys.executable).parent
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
PASSWORD, HOOK, STORAGE = "s3cretPassword", "s3cretHook", "s3cretStorage"

# --- a night among secrets and hostile words --------------------------------------------------


class _Locked(BaseHTTPRequestHandler):
    """A store that asks for a password."""

    body = b""

    def do_GET(self) -> None:
        asked = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {asked}" or "gone" in self.path:
            self.send_response(404 if "gone" in self.path else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its own name
        return


HOSTILE = ["\x1b]0;owned\x07", "\x9b31mred", "=cmd|'/c calc'!A0", "<script>alert(1)</script>",
           "{{7*7}}", "'; drop table names; --", "../../etc/passwd", "\u202etxt.exe"]  # fmt: skip


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A published night, and one that failed, of a house whose every store has a secret."""
    lines_ = [json.dumps({"text": f"a text that was behind a password {n}", "label": "chess"})
              for n in range(3)]  # fmt: skip
    _Locked.body = ("\n".join(lines_) + "\n").encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Locked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://reader:{PASSWORD}@127.0.0.1:{server.server_port}"
    house = House(tmp_path_factory.mktemp("secrets"))
    paths = {"paths": ["inbox/*", f"{place}/far.jsonl"], "id": "id"}
    house.declare(source=paths, webhook=f"http://127.0.0.1:9/{HOOK}", clusters={"k_min": 2})
    whole = house.config.read_text().replace(
        "lake: lake", "lake: lake\nstorage: {KEY: '${NS_KEY}'}"
    )
    house.config.write_text(whole)
    os.environ["NS_KEY"] = STORAGE
    odd = [
        {"id": word, "text": f"{word} {word[::-1]} oven", "label": "cooking"} for word in HOSTILE
    ]
    labelled = [
        {"text": f"{word} number {n}", "label": word[:9]} for word in HOSTILE[:2] for n in (1, 2)
    ]
    house.drop("one.jsonl", rows(12) + odd + labelled)
    house.drop("evil\x1b[2J\n00:00:00 forged.csv", b"no,such\x1b[31m,columns\n1,2,3\n")
    house.work("n1")
    # Afterwards the store has nothing there any more: an error whose text would hold its address.
    house.drop("two.csv", b"nothing,here\n1,2\n")
    house.settings["source"]["paths"][1] = f"{place}/gone.jsonl"
    house.declare()
    with pytest.raises(SourceError):
        house.work("n2")
    yield house
    server.shutdown()
    server.server_close()


def everything(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file's content; Parquet as its rows."""
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and not one.is_symlink()):
        if path.suffix == ".parquet":
            yield path, repr(pq.ParquetFile(path).read().to_pylist()).encode()
        else:
            yield path, path.read_bytes()


def test_a_password_is_used_and_stands_in_no_table_page_run_or_record(worked: House) -> None:
    documents = worked.table("documents")
    behind = [row for row in documents if "behind a password" in row["text"]]
    assert len(behind) == 3
    assert re.match(r"http://reader:\*\*\*@127", behind[0]["source_file"])
    secrets = [PASSWORD.encode(), HOOK.encode(), STORAGE.encode()]
    kept = [*everything(worked.folder / "lake"), *everything(worked.folder / "reports")]
    # MLflow's store and artifacts, and Prefect's own database, with its logs and states.
    kept += everything(SCRATCH)
    assert len(kept) > 30
    assert any(path.suffix == ".db" for path, _ in kept)
    assert not [str(path) for path, content in kept if any(one in content for one in secrets)]
    params = mlflow.MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db").get_run(
        worked.lake.nights()[0]["mlflow_run"]
    ).data.params  # fmt: skip
    assert "reader:***@" in params["source.paths"]


def test_no_secret_is_in_a_repr_or_a_refusal(worked: House, tmp_path: Path) -> None:
    from tasks.tracking import Registry, Tracking

    settings = load_settings(worked.config)
    assert settings.storage_options() == {}
    shown = repr(settings) + str(settings) + repr(settings.pipelines)
    shown += repr(Tracking(f"http://me:{PASSWORD}@host", "r")) + repr(Registry(f"x:{PASSWORD}"))
    assert PASSWORD not in shown
    assert HOOK not in shown
    wrong = tmp_path / "pipelines.yaml"
    wrong.write_text(
        "storage: {KEY: 77001}\nmlflow: [x]\npipelines: {a: {webhook: 77002, source: "
        f"{{paths: ['http://u:{PASSWORD}@h'], format: 'http://u:{PASSWORD}@h'}}}}}}"
    )
    with pytest.raises(ConfigError) as error:
        load_settings(wrong)
    assert "a secret" in str(error.value)
    assert not re.search(f"{PASSWORD}|77001|77002", str(error.value))


def test_hostile_words_reach_the_page_escaped(worked: House) -> None:
    page = (worked.folder / "reports" / worked.name / "n1.html").read_text()
    assert "<script>alert" not in page
    assert "{{7*7}}" in page
    assert not STEERING.search(page.replace("\n", ""))


def test_hostile_ids_are_only_ids(worked: House) -> None:
    from flows.lineage import lineage

    settings = load_settings(worked.config)
    found = lineage(settings, worked.name, "'; drop table names; --")
    assert "drop table" in json.dumps(found)
    with pytest.raises(ConfigError):
        lineage(settings, worked.name, "' or '1'='1")
    for name in ("../up", "a'b", "a/b", "n1' or 'a'='a"):
        with pytest.raises(ConfigError, match="--night: found"):
            worked.work(name)


def test_what_a_night_writes_is_its_owners_alone(worked: House) -> None:
    made = [*(worked.folder / "lake").rglob("*"), *(worked.folder / "reports").rglob("*")]
    assert len(made) > 30
    assert not [str(one) for one in made if one.stat().st_mode & 0o077]


def test_the_umask_is_never_widened_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o777)
    try:
        keep_private()
        assert os.umask(0o022) == 0o777
        keep_private()
        assert os.umask(0o022) == 0o077
        monkeypatch.setenv("NIGHTSHIFT_UMASK", "0027")
        keep_private()
        assert os.umask(0o022) == 0o027
        monkeypatch.setenv("NIGHTSHIFT_UMASK", "rw-r--r--")
        with pytest.raises(ConfigError, match="expected octal digits"):
            keep_private()
    finally:
        os.umask(before)


# --- what the terminal and the logs get -------------------------------------------------------


def nightshift(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "nightshift", *words, "--config", house.config], capture_output=True, text=True,
        timeout=120, env={**os.environ, "NS_KEY": STORAGE},
    )  # fmt: skip


@pytest.mark.slow
def test_no_command_sends_a_control_sequence_or_a_secret(worked: House) -> None:
    done = [
        nightshift(worked, "check"),
        nightshift(worked, "status", worked.name, "--json"),
        nightshift(worked, "clusters", worked.name),
    ]
    for one in done:
        assert one.stdout, one.stderr
        assert not STEERING.search(one.stdout + one.stderr)
        assert not re.search(f"{PASSWORD}|{HOOK}|{STORAGE}", one.stdout + one.stderr)
    assert "evil\\u001b[2J\\u000a00:00:00 forged.csv: has characters" in done[0].stdout
    assert json.loads(done[1].stdout)[1]["state"] == "failed"


@pytest.mark.slow
def test_an_export_is_whole_for_a_program_and_harmless_on_a_terminal(worked: House) -> None:
    words = [
        str(BIN / "nightshift"),
        "export",
        worked.name,
        "rejects",
        "--config",
        str(worked.config),
    ]
    words[3] = "documents"
    environment = {**os.environ, "NS_KEY": STORAGE}
    piped = subprocess.run(words, capture_output=True, timeout=120, env=environment).stdout.decode()
    kept = list(csv.DictReader(piped.splitlines(keepends=True)))
    assert {recovered(row["doc_id"]) for row in kept} >= set(HOSTILE)
    assert not [row for row in kept for one in row.values() if one.startswith(("=", "@", "\t"))]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # how a terminal ends
        pass
    assert process.wait(60) == 0
    assert b"\\u001b]0;owned" in shown
    assert not STEERING.search(shown.decode().replace("\r", ""))


def test_a_log_record_is_masked_plain_and_cannot_pass_for_two(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.terminal import _Lines

    monkeypatch.setattr(logging, "_logRecordFactory", PlainRecord)
    caplog.set_level(logging.INFO)
    try:
        raise ValueError("no answer from https://me:word@host/\x1b[2J")
    except ValueError:
        logging.getLogger("nightshift").exception(
            "file %s", "a\x1b]0;x\x07\n00:00 night  published"
        )
    [record] = caplog.records
    shown = _Lines("%(asctime)s %(message)s", "%H:%M:%S").format(record)
    assert "file a\\u001b]0;x\\u0007\n  00:00 night  published" in shown
    assert "https://me:***@host/\\u001b[2J" in shown
    assert "word" not in shown


@given(
    st.text(),
    st.text(
        st.characters(exclude_characters="/@:'\"<> \t\n", codec="ascii"), min_size=3, max_size=40
    ),
)
def test_a_password_in_an_address_is_masked_and_found_again(around: str, word: str) -> None:
    word = re.sub(r"\s|[\x00-\x20]", "x", word)
    place = f"https://user:{word}@host.example/data/x.csv"
    assert word not in masked(f"could not read {place}").replace(
        "could not read https://user:***@host.example/data/x.csv", ""
    )
    assert unmasked(masked(place), ["s3://other", place]) == place
    assert not STEERING.search(
        plain(around).replace("\n", "").replace("\r\n", "").replace("\x0b", "")
    )


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("postgresql://me:p@ss/w@db/x", "postgresql://me:***@db/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://h/x?a=1&X-Amz-Signature=ab&sig=cd", "https://h/x?a=1&X-Amz-Signature=***&sig=***"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("zip://*.csv::https://u:p@h/a.zip", "zip://*.csv::https://u:***@h/a.zip"),
    ],
)  # fmt: skip
def test_what_is_secret_in_an_address_is_known_from_what_is_not(given_: str, shown: str) -> None:
    assert masked(given_) == shown
    assert unmasked(shown, [given_]) == given_


def test_a_standard_stream_spells_controls_out_and_json_stays_json() -> None:
    import io

    stream = io.StringIO()
    print(json.dumps({"a": "\x9b1m\x7f\ud800"}, ensure_ascii=False), file=Plain(stream, False))
    assert not STEERING.search(stream.getvalue().strip())
    assert json.loads(stream.getvalue()) == {"a": "\x9b1m\x7f\ud800"}


# --- spreadsheets ---------------------------------------------------------------------------


def recovered(cell_: str) -> str:
    """What a reader of our CSV does: one apostrophe less."""
    return cell_[1:] if cell_.startswith("'") and FORMULA.match(cell_[1:]) else cell_


@given(st.one_of(st.text(), st.text("='+-@\t\r\n1.eE＝", max_size=6)))
def test_no_cell_is_a_formula_every_text_comes_back_and_numbers_stay_numbers(text: str) -> None:
    shown = cell(text)
    assert recovered(shown) == text
    if shown[:1] in tuple("=+-@\t\r\n＝＋－＠") and shown:
        float(shown)
        assert shown == text


def test_numbers_and_formulas_are_told_apart() -> None:
    assert [cell(one) for one in ("-5", "+1.5e3", "-.5", -5, 0.25)] == [
        "-5",
        "+1.5e3",
        "-.5",
        -5,
        0.25,
    ]
    assert [cell(one) for one in ("-5+1", "=1", "@x", "'=1", "+", "-")] == [
        "'-5+1", "'=1", "'@x", "''=1", "'+", "'-",
    ]  # fmt: skip


# --- no code from data ------------------------------------------------------------------------

FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
             "code", "pty", "runpy", "xmlrpc", "telnetlib"}  # fmt: skip
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "os.execv", "yaml.load",
         "yaml.unsafe_load",
         "yaml.full_load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "__import__",
         "jinja2.Template", "Template"}  # fmt: skip


def offences(source: str) -> list[str]:
    """Lines that could run code which stands in data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [one.name for one in node.names] + [getattr(node, "module", None) or ""]
            found += [one for one in names if one.partition(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given_ = {one.arg: ast.unparse(one.value) for one in node.keywords}
        found += [name] if name in CALLS else []
        found += [name] if name == "torch.load" and given_.get("weights_only") != "True" else []
        if name in ("np.load", "numpy.load") and given_.get("allow_pickle") != "False":
            found.append(name)
        found += ["shell"] if given_.get("shell", "False") != "False" else []
        if given_.get("trust_remote_code", "False") != "False":
            found.append("trust_remote_code")
        if name == "yaml.compose" and given_.get("Loader") != "yaml.SafeLoader":
            found.append(name)
    return found


def test_no_module_can_load_a_pickle_or_run_what_stands_in_data() -> None:
    found = {name: offences(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    # A bundle's own code runs from bytes that were compared with its list: tests/test_integrity.py.
    assert {name: {*what} for name, what in found.items() if what} == {
        "nightshift.integrity": {"compile", "exec"}, "tasks.served_model": {"compile", "exec"},
    }  # fmt: skip
    # And the rule sees what it is for.
    bad = (
        "import pickle, joblib.x\nfrom dill import load\neval('1')\ntorch.load(f)\nnp.load(f)\n"
        "yaml.load(s)\nrun(c, shell=True)\nf(trust_remote_code=True)\nyaml.compose(s)"
    )
    assert len(offences(bad)) == 10


class Bomb:
    """What a hostile pickle does: run code when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["weights.safetensors", "centroids.safetensors", "tokenizer.json"])
def test_a_pickle_in_a_bundle_is_refused_unopened_even_with_forged_digests(
    tmp_path: Path, name: str
) -> None:
    folder, marker = saved(tmp_path), tmp_path / "opened"
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    note_files(folder)
    with pytest.raises(BundleError):
        Bundle.load(folder)
    assert not marker.exists()
    # It would have: this is the same file, opened.
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()


def test_a_pickled_model_behind_the_champions_alias_is_refused_unopened(
    house: House, tmp_path: Path
) -> None:
    from tasks.tracking import CHAMPION, Registry, champion_bundle, open_run

    marker, store = tmp_path / "opened", f"sqlite:///{SCRATCH}/mlflow.db"
    run = open_run(load_settings(house.config), house.name, "n1", None, {}).run_id
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Bomb(marker)))
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
        "    python_model: python_model.pkl\n    cloudpickle_version: 3.0.0\n"
    )
    client = mlflow.MlflowClient(store, store)
    client.log_artifacts(run, str(folder), "model")
    client.create_registered_model(house.name)
    version = client.create_model_version(house.name, f"runs:/{run}/model", run)
    Registry(store).alias(house.name, CHAMPION, int(version.version))
    with pytest.raises(BundleError):
        champion_bundle(store, house.name)
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    with pytest.raises(mlflow.MlflowException, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(f"models:/{house.name}@{CHAMPION}")
    assert not marker.exists()


def test_an_encoder_that_brings_code_is_refused_and_its_code_not_run(tmp_path: Path) -> None:
    from nightshift.pretrained import read_tokenizer

    folder = tmp_path / "encoder"
    folder.mkdir()
    own = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": own}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError):
        read_tokenizer(f"huggingface:{folder}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["subprocess:run", "os:symlink", "json:dumps"])
def test_the_pipelines_file_cannot_name_a_function_that_the_machine_does_not_allow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTSHIFT_NAMERS", raising=False)
    with pytest.raises(ConfigError, match=r"does not allow to be run.*NIGHTSHIFT_NAMERS="):
        load_namer(name)
    monkeypatch.setenv("NIGHTSHIFT_NAMERS", "our_naming,other")
    with pytest.raises(ConfigError, match="does not allow"):
        load_namer(name)


LAUGHS = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
])  # fmt: skip
MERGED = "\n".join(["m0: &m0 {a: 1}"] + [
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 12)
])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "aliases written out"),
        (MERGED, "aliases written out"),
        ("a: &a [*a]", "not valid YAML"),
        ("[" * 5_000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_yaml_neither_explodes_nor_runs_code(text: str, told: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=told):
        read_yaml(text, "pipelines.yaml")
    assert time.process_time() - started < 10


def test_a_pipelines_file_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 4194304 bytes"):
        load_settings(Path("/dev/zero"))


# --- files ------------------------------------------------------------------------------------


def test_a_link_in_an_inbox_is_told_and_not_followed_and_a_pipe_does_not_stop_the_night(
    house: House,
) -> None:
    (house.folder / "outside.jsonl").write_text('{"text": "the neighbour\'s secret"}\n')
    (house.folder / "inbox" / "link.jsonl").symlink_to("../outside.jsonl")
    (house.folder / "inbox" / "zero.csv").symlink_to("/dev/zero")
    (house.folder / "inbox" / "up").symlink_to("..")
    os.mkfifo(house.folder / "inbox" / "pipe.csv")
    house.drop("one.jsonl", rows(4))
    source = load_settings(house.config).pipeline(house.name).source
    found = {Path(file.uri).name: file.problem for file in list_files(source)}
    assert found.keys() == {"one.jsonl", "link.jsonl", "zero.csv"}
    assert found["one.jsonl"] is None
    assert "is a symbolic link" in (found["link.jsonl"] or "")
    # What the pipelines file names itself is its owner's word.
    named = SourceConfig(paths=[str(house.folder / "inbox" / "link.jsonl")])
    assert [file.problem for file in list_files(named)] == [None]


def test_a_file_name_cannot_name_another_store(tmp_path: Path) -> None:
    names = ["x::memory.csv", "zip::y.csv", "a.csv::file", "simplecache::b.csv", "%2e%2e.csv"]
    for name in names:
        (tmp_path / name).write_text(f"text\n{name}\n")
    config = SourceConfig(paths=[str(tmp_path / "*")], format="csv")
    found = [file.uri for file in list_files(config)]
    assert sorted(Path(one).name for one in found) == sorted(names)
    assert [texts(read(one, format="csv")) for one in found] == [[Path(one).name] for one in found]


def test_a_name_that_is_no_text_is_told_and_its_file_not_read(tmp_path: Path) -> None:
    names = [b"a\x1b[2J.csv", b"two\nlines.csv", b"caf\xe9.csv", "\u202etxt.csv".encode()]
    for name in [*names, "café 数据.csv".encode()]:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("text\nhello\n")
    found = {
        Path(one.uri).name: one.problem for one in list_files(SourceConfig(paths=[str(tmp_path)]))
    }
    assert found.pop("café 数据.csv") is None
    assert found.keys() == {
        "a\\u001b[2J.csv",
        "two\\u000alines.csv",
        "caf\\udce9.csv",
        "\\u202etxt.csv",
    }
    assert all("no text" in (problem or "") for problem in found.values())


def test_an_archive_writes_nowhere(tmp_path: Path) -> None:
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(inside / "a.zip", "w") as archive:
        archive.writestr("../../escaped.csv", "text\nhello\n")
        archive.writestr("/tmp/absolute.csv", "text\nhello\n")
    found = list_files(SourceConfig(paths=[f"zip://*::{inside / 'a.zip'}"], format="csv"))
    found += list_files(SourceConfig(paths=[f"zip://**/*.csv::{inside / 'a.zip'}"]))
    for file in found:
        with suppress(SourceError):
            read(file.uri, format="csv")
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["a.zip"]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_decompression_bomb_is_stopped_and_told_and_what_came_before_is_kept(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BOMB_BYTES", 2 << 20)
    before = "text\n" + "".join(f"row {n}\n" for n in range(5))
    pack = gzip.compress if ending == "gz" else zstandard.compress
    path = tmp_path / f"a.csv.{ending}"
    path.write_bytes(pack(before.encode() + (b"a" * 99 + b"\n") * 60_000))
    found: list[str | None] = []
    told = ""
    try:
        for chunk in read_rows(str(path), SourceConfig(paths=[str(path)])):
            found += texts(chunk)
    except SourceError as error:
        told = str(error)
    assert re.search(r"MiB in \d+ KiB that are stored.*decompression bomb", told)
    # A piece of zst may be all of it; gz comes out in smaller ones.
    assert found[:5] == ([f"row {n}" for n in range(5)] if ending == "gz" else [])
    assert len(found) < 60_000
    # A text that merely compresses well is read.
    path.write_bytes(pack(b"text\n" + b"".join(b"row number %d\n" % n for n in range(200_000))))
    assert sum(map(len, read_rows(str(path), SourceConfig(paths=[str(path)])))) == 200_000


def test_one_long_value_in_a_million_rows_of_parquet_is_read_a_few_rows_at_a_time(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), ["x " * 3_000_000])
    pq.write_table(pa.table({"text": same}), path, dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 1 << 20
    with parquet.open_parquet(str(path), "") as file:
        assert file is not None
        batch = next(parquet.read_batches(str(path), file, ["text"], 2_000))
    # 5,000 of them would be 28 GiB; a batch of 2,000 was 11.
    assert batch.num_rows * 6_000_000 <= parquet.REPEATED_BYTES + 2 * 6_000_000


def test_parquet_that_declares_more_than_it_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BOMB_BYTES", 4 << 20)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * (10 << 20)]}), path, compression="zstd")
    with pytest.raises(SourceError, match=r"10 MiB in .* decompression bomb"):
        read(path)
    pq.write_table(pa.table({"text": pa.nulls(20_000_000, pa.string())}), path)
    with pytest.raises(SourceError, match="20000000 rows declared"):
        read(path)


def test_a_zip_that_explodes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nightshift import files

    monkeypatch.setattr(files, "BOMB_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", "text\n" + "same\n" * 3_000_000)
    [file] = list_files(SourceConfig(paths=[f"zip://*.csv::{tmp_path / 'a.zip'}"]))
    assert "decompression bomb" in (file.problem or "")


def test_modes_are_those_of_the_test(tmp_path: Path) -> None:
    # The tests above mean something only if files are not private here by themselves.
    before = os.umask(0o022)
    try:
        (tmp_path / "a").touch()
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    finally:
        os.umask(before)
