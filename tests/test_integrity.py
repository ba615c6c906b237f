"""A bundle whose files are not those that were registered answers nobody."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import pickletools
import py_compile
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
from conftest import SCRATCH, House
from mlflow import MlflowClient
from safetensors import safe_open
from test_bundle import CLUSTERS, KINDS, TEXTS, Kind, close, model, saved

from nightshift.bundle import Bundle
from nightshift.errors import BundleError, ConfigError, PassingError
from nightshift.integrity import load_as_made, note_files, verify
from nightshift.pipeline import load_settings
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from tasks.judging import judged
from tasks.publish import requirements
from tasks.tracking import (
    BUNDLE_TAG,
    CHAMPION,
    Registry,
    bundle_of,
    champion_bundle,
    champion_version,
    open_run,
    scratch,
)

ROOT = Path(__file__).parents[1]
STORE = f"sqlite:///{SCRATCH}/mlflow.db"


def registered(house: House, *labels: str, line: str = "", **options: Any) -> int:
    """A version of the pipeline whose answers carry these labels.

    Args: `line` is added to its code, as another version of Nightshift would have it.
    """
    settings = load_settings(house.config)
    tracking = open_run(settings, house.name, "n1", None, {})
    made = model(labels=list(labels), **options) if labels else model("vectors")
    with scratch() as folder:
        made.save(Path(folder) / "model")
        bundle = Path(folder) / "bundle"
        digest = Bundle(made, CLUSTERS).save(bundle, Path(folder) / "model")
        if line:
            with (bundle / "code" / "bundle.py").open("a") as code:
                code.write(line)
            digest = note_files(bundle)
        return Registry(STORE).register(
            tracking.run_id, house.name, bundle, digest, {"nightshift.model_id": "m"},
            requirements(made),
        )  # fmt: skip


def crown(house: House, version: int) -> None:
    Registry(STORE).alias(house.name, CHAMPION, version)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two versions in the registry, the first of them champion."""
    found = House(tmp_path_factory.mktemp("integrity"))
    found.declare()
    assert registered(found, "one-a", "one-b", "one-c") == 1
    assert registered(found, "two-a", "two-b", "two-c") == 2
    crown(found, 1)
    return found


@pytest.fixture
def stored(house: House) -> Iterator[Path]:
    """The folder in which the registry keeps the second version; restored after the test."""
    folder = bundle_of(STORE, house.name, 2)
    copy = Path(str(folder) + "-copy")
    shutil.copytree(folder, copy)
    yield folder
    shutil.rmtree(folder)
    copy.rename(folder)


# --- files ----------------------------------------------------------------------------------


def test_every_file_of_a_bundle_is_noted_and_verified(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    noted = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    files = {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}
    assert noted.keys() == files - {"files.json"}
    assert verify(folder) == note_files(folder)
    for name in sorted(noted):
        kept = (folder / name).read_bytes()
        # A cut, one other byte, and nothing at all.
        for bytes_ in (kept[:-1], kept[:-1] + bytes([kept[-1] ^ 1]), b""):
            (folder / name).write_bytes(bytes_)
            with pytest.raises(BundleError, match=f"found {name} cut or altered"):
                verify(folder)
        (folder / name).unlink()
        with pytest.raises(BundleError, match=f"found no {name}"):
            verify(folder)
        (folder / name).write_bytes(kept)
    verify(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"../x": 1}'])
def test_a_damaged_list_of_files_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    folder = saved(tmp_path)
    (folder / "files.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"files\.json cannot be read|found no"):
        verify(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_read_by_its_own_code_answers_as_by_ours(tmp_path: Path, kind: Kind) -> None:
    folder = saved(tmp_path, kind)
    found = load_as_made(folder)
    assert type(found) is not Bundle
    shutil.rmtree(folder)
    assert close(found.answer([*TEXTS, ""]), Bundle(model(kind), CLUSTERS).answer([*TEXTS, ""]))


def test_own_code_that_cannot_run_is_a_bundle_error_each_time(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "code" / "wide.py").write_text("import nowhere_to_be_found\n")
    note_files(folder)
    for _ in range(2):
        with pytest.raises(BundleError, match="nowhere_to_be_found"):
            load_as_made(folder)


ADDED = ["code/extra.py", "code/sub/__init__.py", "extra.json", "code/nearest.so", "link"]


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_was_added_to_a_bundle_is_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (folder / name).symlink_to(tmp_path)
    else:
        (folder / name).write_text("raise SystemExit('it ran')\n")
    for read in (verify, Bundle.load, load_as_made):
        with pytest.raises(BundleError, match=f"found {name}, which the night .* did not write"):
            read(folder)


def planted(folder: Path, trace: Path) -> None:
    """Beside each module what Python would run instead of it, without a look at the source."""
    for one in (folder / "code").glob("*.py"):
        other = trace.with_name(one.name)
        other.write_text(f"{one.read_text()}\nopen({str(trace)!r}, 'w').close()\n")
        py_compile.compile(
            str(other), importlib.util.cache_from_source(str(one)), doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip


def test_a_model_that_is_another_than_the_night_named_judges_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(BundleError, match=r"found model [0-9a-f]{16}, expected 0123456789abcdef"):
        judged(folder, "0123456789abcdef", TEXTS, "cpu")


JUDGES = """
import sys
from pathlib import Path
from nightshift.bundle import model_id
from tasks.judging import judged
folder = Path(sys.argv[1])
print(judged(folder, model_id(folder), ["a text"] * 2_000_000, "cpu"))
"""


def test_whoever_judges_for_a_night_that_was_killed_ends_with_it(tmp_path: Path) -> None:
    night = subprocess.Popen([sys.executable, "-c", JUDGES, str(saved(tmp_path))], cwd=ROOT)
    mine, waited = psutil.Process(night.pid), time.monotonic() + 60
    # What tracks resources, what forks, and its fork, once it is at work.
    while len(began := mine.children(recursive=True)) < 3 or began[-1].cpu_times().user < 1:
        assert night.poll() is None
        assert time.monotonic() < waited
        time.sleep(0.05)
    night.kill()
    night.wait(10)
    assert psutil.wait_procs(began, 15)[1] == []


def test_compiled_code_beside_a_bundle_is_never_run(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    planted(folder, tmp_path / "trace")
    assert (folder / "code" / "__pycache__").is_dir()
    # As no other test's, or it would be loaded already.
    with (folder / "code" / "wide.py").open("a") as code:
        code.write(f"# {tmp_path}\n")
    note_files(folder)
    noted = json.loads((folder / "files.json").read_text())
    kept = {one: digest for one, digest in noted.items() if "__pycache__" not in one}
    (folder / "files.json").write_text(json.dumps(kept))
    found = load_as_made(folder)
    assert close(found.answer(TEXTS), Bundle(model("network"), CLUSTERS).answer(TEXTS))
    assert not (tmp_path / "trace").exists()


def is_pickle(content: bytes) -> bool:
    try:
        return bool(list(pickletools.genops(content)))
    except ValueError:
        return False


def test_no_file_of_a_registered_version_is_a_pickle_or_an_archive(house: House) -> None:
    folder = bundle_of(STORE, house.name, 1).parent.parent
    files = [one for one in folder.rglob("*") if one.is_file()]
    assert len(files) > 25
    assert all(is_pickle(pickle.dumps(TEXTS, protocol)) for protocol in range(6))
    for one in files:
        content = one.read_bytes()
        assert not content.startswith((b"PK", b"\x80", b"\x1f\x8b")), one
        assert not is_pickle(content), one
        if one.suffix == ".safetensors":
            with safe_open(one, "numpy") as opened:
                assert opened.keys()
        else:
            content.decode("utf-8")


# --- the registry ---------------------------------------------------------------------------


def test_the_champion_is_the_version_behind_the_alias(house: House) -> None:
    found = champion_bundle(STORE, house.name)
    assert found is not None
    assert found[0] == champion_version(STORE, house.name) == 1
    assert load_as_made(found[1]).model.labels == ["one-a", "one-b", "one-c"]


def test_a_version_kept_behind_a_plain_path_is_read_where_it_is(house: House) -> None:
    folder = bundle_of(STORE, house.name, 1)
    client, name = MlflowClient(STORE, STORE), f"{house.name}-plain"
    tags = {BUNDLE_TAG: verify(folder)}
    client.create_registered_model(name)
    client.create_model_version(name, str(folder.parent.parent), tags=tags)
    assert not client.get_model_version_download_uri(name, "1").startswith("file:")
    assert bundle_of(STORE, name, 1) == folder


def test_a_bundle_altered_in_the_store_is_refused(stored: Path, house: House) -> None:
    weights = stored / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BundleError, match=r"weights\.safetensors cut or altered"):
        bundle_of(STORE, house.name, 2)


def test_another_bundle_in_its_place_is_refused_by_the_digest_in_the_registry(
    stored: Path, house: House
) -> None:
    shutil.rmtree(stored)
    shutil.copytree(bundle_of(STORE, house.name, 1), stored)
    verify(stored)
    with pytest.raises(BundleError, match=r"version 2 of .* the registry expects"):
        bundle_of(STORE, house.name, 2)


def test_a_pipeline_without_alias_or_model_has_no_champion(house: House) -> None:
    assert champion_bundle(STORE, "never-worked") is None
    other = House(house.folder.with_name("without-alias"))
    other.folder.mkdir()
    other.declare()
    registered(other)
    assert champion_version(STORE, other.name) is None


def test_a_version_that_does_not_exist_is_named(house: House) -> None:
    with pytest.raises(ConfigError, match="found no version 99"):
        bundle_of(STORE, house.name, 99)


def test_a_registry_that_is_down_is_not_a_pipeline_without_champion(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in (champion_version, champion_bundle):
        with pytest.raises(PassingError, match=r"asking MLflow at http://127\.0\.0\.1:9"):
            ask("http://127.0.0.1:9", house.name)


# --- MLflow's own loading -------------------------------------------------------------------


def served(house: House, version: int) -> Any:
    mlflow.set_tracking_uri(STORE)
    return mlflow.pyfunc.load_model(f"models:/{house.name}/{version}")


@pytest.mark.parametrize("name", ["weights.safetensors", "clusters.json", "code/nearest.py"])
def test_mlflow_refuses_an_altered_bundle(stored: Path, house: House, name: str) -> None:
    content = (stored / name).read_bytes()
    # As long as it was, and still a program.
    (stored / name).write_bytes(content[:-1] + b" ")
    with pytest.raises(Exception, match=f"found {name} .*altered"):
        served(house, 2)


def test_mlflow_runs_no_file_that_was_added_to_a_bundle(house: House, tmp_path: Path) -> None:
    # Code as no other test's, or it would be loaded already.
    version = registered(house, "one-a", "one-b", "one-c", line=f"# {tmp_path}\n")
    folder, trace = bundle_of(STORE, house.name, version), tmp_path / "trace"
    planted(folder, trace)
    extra = folder / "code" / "extra.py"
    extra.write_text(f"open({str(trace)!r}, 'w').close()\n")
    with pytest.raises(Exception, match=r"found code/extra\.py, which the night"):
        served(house, version)
    assert not trace.exists()
    extra.unlink()
    assert set(served(house, version).predict(pd.DataFrame({"text": TEXTS}))["error"]) == {None}
    assert not trace.exists()


def test_the_signature_tells_what_an_answer_has(house: House) -> None:
    loaded = served(house, 1)
    outputs = loaded.metadata.signature.outputs
    found = loaded.predict(pd.DataFrame({"text": TEXTS}), params={"embeddings": True})
    assert {*found.columns} == {*outputs.input_names()}
    assert not any(one.required for one in outputs.inputs)


def test_code_that_fails_to_import_fails_again_the_next_time(house: House) -> None:
    version = registered(house, "one-a", "one-b", "one-c", line="\nimport nowhere_to_be_found\n")
    for _ in range(2):
        with pytest.raises(Exception, match="nowhere_to_be_found"):
            served(house, version)


def test_two_versions_of_the_code_answer_side_by_side(house: House) -> None:
    line = "\nBundle.answer = lambda self, texts, *_, **__: [{'label': 'new'}] * len(texts)\n"
    other = registered(house, "one-a", "one-b", "one-c", line=line)
    old, new = served(house, 1), served(house, other)
    frame = pd.DataFrame({"text": TEXTS})
    for _ in range(2):
        assert set(new.predict(frame)["label"]) == {"new"}
        assert {one[:4] for one in old.predict(frame)["label"]} == {"one-"}
    folders = [bundle_of(STORE, house.name, number) for number in (1, other)]
    first, second = (load_as_made(folder) for folder in folders)
    assert second.answer(["x"])[0]["label"] == "new"
    assert first.answer(["x"])[0]["label"].startswith("one-")


# Loads versions in one process, where no package is but what they name and what these need.
FRESH = """
import importlib.util, json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
models = [mlflow.pyfunc.load_model(uri) for uri in sys.argv[2:]]
frame = pandas.DataFrame({"text": ["the cat sat on the mat", "北京清华大学", ""]})
said = [one.predict(frame, params={"top_k": 1})[["label", "error"]].values.tolist() for one in
        (*models, *models)]
ours = ("nightshift", "tasks", "flows", "prefect", "deltalake")
there = [one for one in ours if importlib.util.find_spec(one)]
print(json.dumps({"said": said, "there": there}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_versions_answer_in_a_fresh_environment_of_what_they_name_alone(
    house: House, tmp_path: Path
) -> None:
    words = Tokenizer.learn(TEXTS, TokenizerConfig(unit="word", vocabulary=80, min_count=1))
    line = (
        "\n_own = Bundle.answer\nBundle.answer = lambda *given, **named: [{**one, 'label': "
        "(one.get('label') or '').upper()} for one in _own(*given, **named)]\n"
    )
    other = registered(house, "two-a", "two-b", "two-c", line=line, tokenizer=words)
    uris = [f"models:/{house.name}/{number}" for number in (1, other)]
    mlflow.set_tracking_uri(STORE)
    named = [Path(mlflow.pyfunc.get_model_dependencies(one)).read_text().split() for one in uris]
    # What its config uses, and nothing else, is the difference.
    assert [one.partition("==")[0] for one in named[1] if one not in named[0]] == ["jieba"]
    assert all("==" in one for one in named[1])
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words_of_call in (
        ["-m", "pip", "install", "--quiet", "--no-compile", *named[1]],
        ["-c", FRESH, STORE, *uris],
    ):
        done = subprocess.run(
            [python, *words_of_call], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["there"] == []
    first, second, *again = found["said"]
    assert again == [first, second]
    assert [row[0][:4] if row[0] else None for row in first] == ["one-", "one-", None]
    assert [row[0][:4] if row[0] else None for row in second] == ["TWO-", "TWO-", None]
    assert [row[1] for row in first] == [None, None, "no_text"]


ALONE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nightshift", "tasks", "flows", "prefect", "deltalake",
                                      "sklearn", "matplotlib", "optuna", "typer", "transformers"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
print(model.predict(pandas.DataFrame({"text": ["the cat", ""]}))[["label", "error"]].to_json())
"""


def test_mlflow_loads_a_version_where_nothing_of_ours_is_installed(
    house: House, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, STORE, f"models:/{house.name}@champion"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["label"]["0"].startswith("one-")
    assert found["error"] == {"0": None, "1": "no_text"}
