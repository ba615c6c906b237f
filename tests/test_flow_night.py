from __future__ import annotations

import errno
import gzip
import http.server
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import SCRATCH, House, rows, texts

from nightshift.errors import BusyError, ConfigError, NightError, PassingError, SourceError

ROOT = Path(__file__).parent.parent
STORE = f"sqlite:///{SCRATCH}/mlflow.db"


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(STORE)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two published nights; tests that share it only look."""
    house = House(tmp_path_factory.mktemp("worked"))
    house.declare()
    house.drop("one.jsonl", rows(70))
    house.work("n1")
    house.drop("two.jsonl", [*rows(10, seed=1), {"text": texts("chess", 1)[0]}])
    house.work("n2")
    return house


# --- what a night leaves ----------------------------------------------------------------------


def test_status_tells_what_each_night_did(worked: House) -> None:
    first, second = worked.status()
    assert (first["state"], second["state"]) == ("published", "published")
    assert (first["documents"], first["labelled"], first["rejects"]) == (210, 210, 0)
    assert (second["documents"], second["duplicates"]) == (30, 1)
    assert first["test_accuracy"] > 0.9
    assert first["test_macro_f1"] > 0.9
    assert first["clusters"] >= 2
    assert set(first["seconds"]) == {
        "files", "ingest", "tokens", "train", "evaluate", "promote", "embed", "cluster",
        "report", "publish",
    }  # fmt: skip


def test_documents_of_both_nights_are_in_the_tables_once(worked: House) -> None:
    for table in ("documents", "tokens"):
        ids = [row["doc_id"] for row in worked.table(table)]
        assert len(ids) == len(set(ids)) == 240
    duplicate = worked.table("duplicates")
    assert [row["night"] for row in duplicate] == ["n2"]


def test_every_document_has_one_prediction_and_vector_of_the_champion(worked: House) -> None:
    champion = worked.lake.published()["model_id"]
    for table in ("predictions", "embeddings"):
        ids = [row["doc_id"] for row in worked.table(table) if row["model_id"] == champion]
        assert len(ids) == len(set(ids)) == 240


def test_every_document_is_where_the_published_clusters_put_it(worked: House) -> None:
    import numpy as np

    from nightshift.nearest import UNASSIGNED, Cells

    night = worked.lake.published()
    rows = [one for one in worked.table("clusters") if one["night"] == night["night"]]
    columns = (np.array([row[name] for row in rows], np.float32) for name in ("centroid", "scale"))
    cells = Cells(*columns, rows[0]["radius"])
    assigned = {row["doc_id"]: row["cluster_id"] for row in worked.table("assignments")}
    for row in worked.table("embeddings"):
        if row["model_id"] == night["model_id"]:
            [place], _ = cells.assign(np.array([row["vector"]], np.float32))
            expected = rows[place]["cluster_id"] if place >= 0 else UNASSIGNED
            assert assigned[row["doc_id"]] == expected
    share = list(assigned.values()).count(UNASSIGNED) / len(assigned)
    assert 0 < share < 0.05


def test_the_registry_serves_the_champion_under_its_alias(worked: House, tmp_path: Path) -> None:
    version = client().get_model_version_by_alias(worked.name, "champion")
    assert int(version.version) == worked.status()[-1]["model_version"]
    mlflow.set_tracking_uri(STORE)
    # Fetched, as Python leaves what it compiled beside the script.
    model = mlflow.pyfunc.load_model(f"models:/{worked.name}@champion", dst_path=str(tmp_path))
    frame = pd.DataFrame({"text": ["a pawn and a rook in the endgame", "", "butter the dough"]})
    said = model.predict(frame, params={"top_k": 2, "embeddings": True})
    assert said["label"].tolist()[::2] == ["chess", "cooking"]
    assert said["error"].tolist() == [None, "no_text", None]
    assert [len(one) for one in said["top"].tolist()[::2]] == [2, 2]
    assert len(said["vector"].iloc[0]) == 16


def test_the_registered_files_hold_no_pickle(worked: House) -> None:
    version = client().get_model_version_by_alias(worked.name, "champion")
    mlflow.set_tracking_uri(STORE)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{worked.name}/{version.version}"))
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".py", ".yaml", ".txt", ""}


def test_mlflow_has_the_figures_the_report_and_both_models(worked: House) -> None:
    run_id = worked.lake.published()["mlflow_run"]
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ingest/documents"] == 30
    assert 0 < run.data.metrics["evaluate/champion_accuracy"] <= 1
    assert run.data.params["train.epochs"] == "6"
    paths = {one.path for one in client().list_artifacts(run_id)}
    assert {"report.html", "confusion"} <= paths
    first = worked.lake.nights()[0]["mlflow_run"]
    children = client().search_runs(
        [run.info.experiment_id], f"tags.mlflow.parentRunId = '{first}'"
    )
    assert children[0].data.metrics["validation_accuracy"] > 0.9
    read = client().get_run(first).inputs.dataset_inputs
    assert {one.dataset.name for one in read} == {"documents", "labels", "tokens"}


def test_prefect_has_the_flow_run_its_tasks_and_an_artifact(worked: House) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    run_id = worked.lake.published()["prefect_run"]
    with get_client(sync_client=True) as api:
        run = api.read_flow_run(run_id)
        assert run.state is not None
        assert run.state.is_completed()
        assert run.name == f"{worked.name}-n2"
        key = ArtifactFilter(key=ArtifactFilterKey(any_=[f"{worked.name}-report"]))
        pages = [str(one.data) for one in api.read_artifacts(artifact_filter=key)]
    # One version a night; Prefect promises no order of them.
    assert any("n2.html" in page for page in pages)


def test_the_report_is_one_file_that_names_the_night(worked: House) -> None:
    page = Path(worked.status()[0]["report"]).read_text(encoding="utf-8")
    assert "n1" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_predict_answers_with_the_champion(worked: House) -> None:
    from flows.reading import predictions
    from nightshift.pipeline import load_settings

    said = list(predictions(load_settings(worked.config), worked.name, ["tide and anchor", " "], 3))
    assert said[0]["label"] == "sailing"
    assert said[0]["cluster_id"].startswith("c-")
    assert said[1]["error"] == "no_text"
    assert said[0]["model_version"] == worked.status()[-1]["model_version"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export_gives_each_document_its_prediction_of_today(worked: House, ending: str) -> None:
    from flows.reading import export_table
    from nightshift.pipeline import load_settings

    out = worked.folder / f"out.{ending}"
    settings = load_settings(worked.config)
    assert export_table(settings, worked.name, "predictions", out, history=False) == 240
    frame = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert frame["doc_id"].is_unique
    assert set(frame["model_version"]) == {worked.status()[-1]["model_version"]}


# --- again, and with nothing new --------------------------------------------------------------


def test_the_same_night_again_changes_nothing(worked: House) -> None:
    names = ["documents", "tokens", "predictions", "clusters", "stages", "nights", "promotions"]
    before = {name: worked.lake.version(name) for name in names}
    assert not worked.work("n2").new
    assert {name: worked.lake.version(name) for name in names} == before


def test_a_published_night_cannot_be_done_again_from_a_stage(worked: House) -> None:
    with pytest.raises(ConfigError, match="closed"):
        worked.work("n2", retry_from="train")
    with pytest.raises(ConfigError, match="expected one of ingest"):
        worked.work("n9", retry_from="trian")


def test_a_night_without_news_is_published_and_registers_nothing(worked: House) -> None:
    version = worked.status()[1]["model_version"]
    worked.work("n3")
    last = worked.status()[-1]
    assert (last["state"], last["documents"], last["model_version"]) == ("published", 0, version)
    assert last["test_accuracy"] is not None


def test_the_first_night_of_an_empty_inbox_is_published(house: House) -> None:
    house.work("n1")
    only = house.status()[0]
    assert (only["state"], only["documents"], only["model_version"]) == ("published", 0, None)
    house.drop("late.jsonl", rows(40))
    house.work("n2")
    assert house.status()[1]["model_version"] == 1


# --- labels, few or none ----------------------------------------------------------------------


def test_a_pipeline_without_labels_clusters_by_corpus_vectors(house: House) -> None:
    house.declare(source={"label": None}, clusters={"k": 3})
    house.drop("plain.jsonl", [{"text": row["text"]} for row in rows(60)])
    house.work("n1")
    only = house.status()[0]
    assert (only["state"], only["labelled"], only["clusters"]) == ("published", 0, 3)
    assert only["test_accuracy"] is None
    assert house.table("predictions") == []
    topic = {row["doc_id"]: row["text"] for row in house.table("documents")}
    of_cluster: dict[str, list[str]] = {}
    for row in house.table("assignments"):
        of_cluster.setdefault(row["cluster_id"], []).append(topic[row["doc_id"]])
    sailing = set(texts("sailing", 60))
    shares = [sum(text in sailing for text in one) / len(one) for one in of_cluster.values()]
    assert max(shares) > 0.9
    from flows.reading import predictions
    from nightshift.pipeline import load_settings

    said = next(predictions(load_settings(house.config), house.name, ["the mast and keel"], 3))
    assert said["label"] is None
    assert said["cluster_id"] in of_cluster


def few_labels(kind: str) -> list[dict[str, Any]]:
    if kind == "one class":
        return rows(40, topics=("chess",))
    unlabelled = [{"text": row["text"]} for row in rows(20, seed=3)]
    if kind == "five rows":
        return [*rows(3)[:5], *unlabelled]
    split = [{**row, "split": "test"} for row in rows(15)]
    return [*split, *unlabelled]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("one class", "one class"),
        ("five rows", "train.min_rows"),
        ("no training side", "no document is labelled"),
    ],
)
def test_too_few_labels_end_in_a_night_without_a_classifier_that_says_why(
    house: House, kind: str, words: str
) -> None:
    house.declare(source={"split": "split"})
    house.drop("few.jsonl", few_labels(kind))
    house.work("n1")
    only = house.status()[0]
    assert only["state"] == "published"
    assert only["clusters"] >= 1
    reason = house.lake.stages("n1")["train"]["outputs"]["reason"]
    assert words in reason


def test_a_class_that_arrives_later_is_learned(house: House) -> None:
    house.drop("one.jsonl", rows(60, topics=("chess", "cooking")))
    house.work("n1")
    house.drop("two.jsonl", rows(60, topics=("sailing",)))
    house.work("n2")
    assert "new classes: sailing" in house.lake.stages("n2")["train"]["outputs"]["reason"]
    assert house.status()[1]["promoted"]
    labels = {row["label"] for row in house.table("predictions") if row["night"] == "n2"}
    assert labels == {"chess", "cooking", "sailing"}


def test_a_night_without_news_needs_neither_torch_nor_scikit_learn(house: House) -> None:
    house.drop("one.jsonl", rows(40))
    house.work("n1")
    code = """
import sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "sklearn"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from flows.environment import prepare
prepare(Path(sys.argv[1]))
from flows.night import work
assert work(*sys.argv[2:]).new
"""
    given = [str(house.folder / "prefect"), house.name, "n2", str(house.config)]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True,
                          cwd=ROOT, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = house.lake.nights()
    assert second["state"] == "published"
    assert second["registry_version"] == first["registry_version"]
    used = {"device", "threads", "vector_units"}
    assert used <= first["manifest"]["machine"].keys()
    assert not used & second["manifest"]["machine"].keys()


def test_while_an_embedded_prefect_is_imported_nothing_imports_the_store_of_mlflow(
    tmp_path: Path,
) -> None:
    # It has SQLAlchemy look at all tables there are, also at Prefect's first half.
    code = (
        "import sys; from flows import night; "
        "night.WARM = [one for one in night.WARM if one.startswith('mlflow')]; "
        "night._warm_up(sys.argv[1]); "
        "print([one for one in sys.modules if one.endswith('sqlalchemy_store')])"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"],
            env={**os.environ, **more}, capture_output=True, text=True, check=True, timeout=300,
        ).stdout.strip()
        for more in ({}, {"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    ]  # fmt: skip
    assert found[0] == "[]"
    assert "mlflow.store.tracking.sqlalchemy_store" in found[1]


def test_a_worse_challenger_is_refused_and_registered_as_challenger(house: House) -> None:
    house.drop("one.jsonl", rows(70))
    house.work("n1")
    champion = house.lake.published()["model_id"]
    # A rate of next to nothing learns nothing.
    worse = {"train": {"epochs": 1, "learning_rate": 1e-9, "when": "always"}}
    house.declare(**worse)
    house.drop("two.jsonl", rows(5, seed=5))
    house.work("n2")
    last = house.lake.published()
    assert last["model_id"] == champion
    decision = house.table("promotions")[-1]
    assert decision["decision"] == "kept"
    assert decision["challenger_score"] <= decision["champion_score"]
    assert decision["low"] <= decision["challenger_score"] - decision["champion_score"]
    versions = {
        alias: client().get_model_version_by_alias(house.name, alias)
        for alias in ("champion", "challenger")
    }
    assert versions["champion"].tags["nightshift.model_id"] == champion
    assert versions["challenger"].tags["nightshift.model_id"] == decision["challenger"]


# --- files ------------------------------------------------------------------------------------


def test_a_folder_of_hostile_files_loses_nothing_and_stops_nothing(house: House) -> None:
    house.declare(source={"id": "id", "max_row_bytes": 1_000_000})
    header = b"id,text,label\n"
    good = [{"id": f"g{n}", **row} for n, row in enumerate(rows(40))]
    house.drop("good.jsonl", good)
    house.drop("empty.csv", b"")
    house.drop("binary.csv", bytes(range(256)) * 40)
    whole = gzip.compress(
        header + b"".join(b"z%d,text number %d,chess\n" % (n, n) for n in range(5000))
    )
    house.drop("cut.csv.gz", whole[: len(whole) // 2])
    house.drop(
        "broken.csv",
        header + b"b1,fine text,chess\nb2,\xff\xfe\xfa broken,chess\nb3,\xe6\x97\xa5,chess\n",
    )
    house.drop(
        "line.jsonl", b'{"id": "l1", "text": "short"}\n{"text": "' + b"x" * 50_000_000 + b'"}\n'
    )
    house.drop(
        "quoted.csv", header + b'q1,"a ""quoted"" text\nof two lines",chess\nq2,too,many,fields\n'
    )
    house.drop("same-id.jsonl", [{"id": "g0", "text": "another text under a known id"}])
    house.drop(
        "emoji.jsonl",
        [{"id": "e1", "text": "🧑‍🚀 מזל טוב ‮reversed"}, {"id": "e2", "text": "\x00\x07"}],
    )
    house.drop("labels.jsonl", b'{"id": "n1", "text": "label is nan", "label": NaN}\n'
               b'{"id": "n2", "text": "label is a list", "label": ["a"]}\nnot json\n')  # fmt: skip
    house.work("n1")
    only = house.status()[0]
    batches = house.table("batches")
    assert only["state"] == "published"
    rows_in = sum(row["rows"] for row in batches)
    assert rows_in == only["documents"] + only["duplicates"] + only["rejects"]
    reasons = {(Path(row["source_file"]).name, row["reason"]) for row in house.table("rejects")}
    assert reasons == {
        ("broken.csv", "undecodable"),
        ("cut.csv.gz", "unreadable_line"),
        ("emoji.jsonl", "no_text"),
        ("labels.jsonl", "label_type"),
        ("labels.jsonl", "unreadable_line"),
        ("line.jsonl", "line_too_long"),
        ("quoted.csv", "wrong_fields"),
        ("same-id.jsonl", "id_reused"),
    }
    problems = {Path(row["uri"]).name for row in batches if row["problem"]}
    assert problems == {"binary.csv"}
    documents = {row["doc_id"]: row for row in house.table("documents")}
    assert documents["q1"]["text"] == 'a "quoted" text\nof two lines'
    assert documents["n1"]["label"] is None
    assert "‮" not in documents["e1"]["text"]


def test_nothing_but_unreadable_files_fails_the_night_with_their_names(house: House) -> None:
    house.drop("wrong.csv", b"body,class\nhello,chess\n")
    with pytest.raises(SourceError, match=r"wrong\.csv.*no column 'text'"):
        house.work("n1")
    assert house.status()[0]["state"] == "failed"
    house.declare(source={"text": "body", "label": "class"})
    house.work("n1")
    assert house.status()[0]["documents"] == 1


def test_a_changed_file_brings_only_its_new_rows(house: House) -> None:
    house.drop("grows.jsonl", rows(20))
    house.work("n1")
    house.drop("grows.jsonl", [*rows(20), {"text": "one more text", "label": "chess"}])
    house.work("n2")
    last = house.status()[-1]
    assert (last["documents"], last["duplicates"]) == (1, 60)


def test_a_file_still_being_written_waits_for_the_next_night(house: House) -> None:
    house.drop("whole.jsonl", rows(20))
    young = house.drop("young.jsonl", rows(3, seed=4))
    os.utime(young)
    house.drop("part.jsonl.tmp", rows(3, seed=5))
    house.work("n1")
    assert house.status()[0]["documents"] == 60
    os.utime(young, (time.time() - 600, time.time() - 600))
    house.work("n2")
    assert house.status()[1]["documents"] == 9


def test_a_night_waits_for_its_only_file_to_settle(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    # Longer than a first flow takes to begin.
    house.declare(source={"settle_seconds": 15})
    young = house.drop("young.jsonl", rows(3, seed=4))
    os.utime(young)
    house.work("n1")
    assert house.status()[0]["documents"] == 9
    assert "may still be written" in caplog.text


def test_a_duplicate_that_brings_another_label_relabels_its_document(house: House) -> None:
    house.drop("one.jsonl", rows(20))
    house.work("n1")
    text = texts("chess", 1)[0]
    house.drop("two.jsonl", [{"text": text, "label": "sailing"}])
    house.work("n2")
    label = house.table("labels")[0]
    assert (label["label"], label["by"]) == ("sailing", "source")
    from nightshift.corpus import current_labels

    assert current_labels(house.lake)[label["doc_id"]] == "sailing"


def test_a_file_read_again_does_not_overrule_a_person(house: House) -> None:
    from datetime import UTC, datetime

    from nightshift.corpus import current_labels
    from nightshift.tables import rows_of

    house.drop("one.jsonl", rows(20))
    house.work("n1")
    doc_id = house.table("documents")[0]["doc_id"]
    said = {"doc_id": doc_id, "label": "weather", "by": "ada", "at": datetime.now(UTC)}
    house.lake.replace("labels", "by-hand", rows_of("labels", [said]))
    house.drop("one.jsonl", [*rows(20), {"text": "one more text"}])
    house.work("n2")
    assert current_labels(house.lake)[doc_id] == "weather"


def test_check_reaches_every_store_and_names_what_is_wrong(house: House) -> None:
    from flows.checking import check
    from nightshift.pipeline import load_settings

    house.drop("one.jsonl", rows(2))
    found = {name: (words, fine) for name, words, fine in check(load_settings(house.config))}
    assert all(fine for _, fine in found.values())
    assert "text, label" in found[house.name][0]
    house.declare(source={"text": "txt"})
    (house.folder / "file").write_text("in the way")
    text = house.config.read_text().replace("lake: lake", "lake: file")
    house.config.write_text(text)
    found = {name: (words, fine) for name, words, fine in check(load_settings(house.config))}
    assert not found["lake"][1]
    assert not found[house.name][1]
    assert "txt" in found[house.name][0]


def test_check_finds_a_namer_that_cannot_be_loaded(house: House) -> None:
    from flows.checking import check
    from nightshift.pipeline import load_settings

    house.declare(clusters={"namer": "jsn:dumps"})
    house.drop("one.jsonl", rows(3))
    [(_, said, well)] = [one for one in check(load_settings(house.config)) if one[0] == house.name]
    assert not well
    assert "jsn" in said


# --- failures ---------------------------------------------------------------------------------


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real web server that keeps what is posted to it."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-token", got
    server.shutdown()


def test_a_failed_night_keeps_yesterday_tells_the_webhook_and_is_finished_later(
    house: House,
    hook: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import tasks.cluster

    url, got = hook
    house.declare(webhook=url)
    house.drop("one.jsonl", rows(30))
    house.work("n1")
    house.drop("two.jsonl", rows(10, seed=2))

    def broken(*_: object) -> None:
        raise NightError("cluster: the lamp went out")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.cluster, "cluster", broken)
        with pytest.raises(NightError, match="lamp"):
            house.work("n2")
    assert [one["state"] for one in house.status()] == ["published", "failed"]
    assert house.status()[1]["error"] == "cluster: the lamp went out"
    computed_with = house.lake.nights()[1]["manifest"]["machine"]
    assert computed_with["threads"] > 0
    assert len(house.table("documents")) == 90
    assert client().get_run(house.lake.nights()[1]["mlflow_run"]).info.status == "FAILED"
    assert got[0]["night"] == "n2"
    assert "lamp" in got[0]["text"]
    assert "secret-token" not in caplog.text
    caplog.clear()
    # A newer night finishes the one that was left first, and skips what it had done.
    house.work("n3")
    assert [one["state"] for one in house.status()] == ["published"] * 3
    assert "finishing n2 first" in caplog.text
    assert "embed     done before, kept" in caplog.text
    assert house.lake.nights()[1]["manifest"]["machine"] == computed_with
    assert len(house.table("documents")) == 120


def test_a_store_that_does_not_answer_once_costs_a_retry_not_the_night(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightshift.tables import Lake

    house.drop("one.jsonl", rows(20))
    calls = {"tokens": 0}
    real = Lake.replace

    def flaky(self: Lake, table: str, *rest: Any) -> Any:
        calls[table] = calls.get(table, 0) + 1
        if table == "tokens" and calls[table] == 1:
            raise PassingError("the store is away")
        return real(self, table, *rest)

    monkeypatch.setattr(Lake, "replace", flaky)
    house.work("n1")
    assert house.status()[0]["state"] == "published"
    assert calls["tokens"] == 2


def test_a_store_that_does_not_answer_while_models_are_compared_is_no_verdict(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.promote

    house.drop("one.jsonl", rows(40))
    house.work("n1")
    house.declare(train={"when": "always"})
    house.drop("two.jsonl", rows(5, seed=5))
    asked: list[str] = []
    real = tasks.promote.judged

    def flaky(folder: Path, model_id: str, *rest: Any) -> Any:
        asked.append(model_id)
        if len(asked) == 2:  # the challenger, after the champion
            raise PassingError("the store is away")
        return real(folder, model_id, *rest)

    monkeypatch.setattr(tasks.promote, "judged", flaky)
    house.work("n2")
    decision = house.table("promotions")[-1]
    assert decision["challenger_score"] is not None
    assert "away" not in decision["reason"]
    assert len(asked) == 4


def test_seconds_for_which_another_pipeline_has_the_device_are_none_of_the_stage(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.stage

    begun = [0]

    @contextmanager
    def on_device(name: str | None, holder: str) -> Iterator[float]:
        begun[0] += 1
        wait = 4.0 if begun[0] == 3 else 0.0  # embed, after train and evaluate
        time.sleep(wait)
        yield wait

    monkeypatch.setattr(tasks.stage, "on_device", on_device)
    house.drop("one.jsonl", rows(40))
    house.work("n1")
    assert begun[0] == 3
    assert 0 < house.status()[0]["seconds"]["embed"] < 4


def test_whatever_answers_in_a_night_holds_its_device(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.stage
    from nightshift.bundle import Model

    holds, seen = [False], list[bool]()
    real = Model.answer

    @contextmanager
    def on_device(name: str | None, holder: str) -> Iterator[float]:
        holds[0] = True
        yield 0.0
        holds[0] = False

    def watched(model: Model, documents: Any, texts: Any, device: str = "auto", *rest: Any) -> Any:
        if device != "cpu":  # explanations are computed on the processor, whatever the pipeline's
            seen.append(holds[0])
        return real(model, documents, texts, device, *rest)

    house.drop("one.jsonl", rows(40))
    house.work("n1")
    monkeypatch.setattr(tasks.stage, "on_device", on_device)
    monkeypatch.setattr(Model, "answer", watched)
    house.declare(train={"when": "always", "seed": 2}, promotion={"policy": "always"})
    house.drop("two.jsonl", rows(20, seed=5))
    house.work("n2")
    # The page asks the old model as well, of documents that only the new one has answered.
    assert house.lake.nights()[1]["figures"]["promoted"]
    assert len(seen) >= 3
    assert all(seen)


def test_a_night_leaves_no_copy_of_a_model_in_the_folder_for_temporary_files(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.tracking

    fetched: list[Path] = []
    real = tasks.tracking.Tracking.fetch

    def watched(tracking: Any, uri: str) -> Path:
        fetched.append(real(tracking, uri))
        return fetched[-1]

    tasks.tracking.put_away()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(tasks.tracking.Tracking, "fetch", watched)
    house.declare(train={"when": "always"})
    for number in (1, 2):
        house.drop(f"{number}.jsonl", rows(20, seed=number))
        house.work(f"n{number}")
    assert len(fetched) > len(set(fetched)) >= 3  # once for each model of a night
    assert {one.is_relative_to(tmp_path / "temporary") for one in fetched} == {True}
    assert not [*(tmp_path / "temporary").rglob("model.json")]


def test_a_copy_that_cannot_be_removed_is_left_and_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.tracking

    def busy(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTEMPTY, "a file of it is still open on another machine")

    tasks.tracking.put_away()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = Path(tasks.tracking._on_the_shelf())
    with monkeypatch.context() as failing:
        failing.setattr(os, "rmdir", busy)
        tasks.tracking.put_away()
    assert left.is_dir()
    assert not Path(tasks.tracking._on_the_shelf()).is_relative_to(left.parent)
    tasks.tracking.put_away()


def test_retry_from_does_a_stage_and_all_after_it_again(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import tasks.report

    house.drop("one.jsonl", rows(20))

    def broken(*_: object) -> None:
        raise NightError("report: no ink")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.report, "render", broken)
        with pytest.raises(NightError, match="ink"):
            house.work("n1")
    caplog.clear()
    house.work("n1", retry_from="embed")
    assert "promote   done before, kept" in caplog.text
    assert "embed     done before" not in caplog.text


def test_a_second_night_leaves_or_waits_while_one_runs(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.locking import alone
    from nightshift.pipeline import load_settings

    house.declare(when_busy="leave")
    house.drop("one.jsonl", rows(20))
    settings = load_settings(house.config)
    declared = settings.pipeline(house.name)
    with alone(settings, house.name, declared), pytest.raises(BusyError, match="running already"):
        house.work("n1")
    house.declare(when_busy="wait")
    settings = load_settings(house.config)
    held = threading.Event()

    def hold() -> None:
        with alone(settings, house.name, settings.pipeline(house.name)):
            held.set()
            until = time.monotonic() + 30
            while "waiting for it" not in caplog.text and time.monotonic() < until:
                time.sleep(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    house.work("n1")
    holder.join()
    assert "waiting for it" in caplog.text
    assert house.status()[0]["state"] == "published"


def test_two_nights_of_the_same_text_and_seed_are_equal(tmp_path: Path) -> None:
    found = []
    for name in ("twin-a", "twin-b"):
        (tmp_path / name).mkdir()
        house = House(tmp_path / name)
        house.declare()
        house.drop("one.jsonl", rows(40))
        house.work("n1")
        found.append(house.digests("n1"))
        logging.getLogger(__name__).info("%s", found[-1])
    for stage in ("tokens", "train", "promote", "embed", "cluster"):
        assert found[0][stage] == found[1][stage]
