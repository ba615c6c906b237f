"""The server: answers over real HTTP, follows the registry's alias, and never falls over."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import House
from test_bundle import CLUSTERS, TEXTS, close, model
from test_integrity import STORE, crown, registered

from flows.asked import MOST_TEXTS, Asked
from flows.desk import Champion, Desk, Job
from flows.door import MOST_BYTES, TOKEN, token_of
from flows.meters import Meters
from flows.serving import Follower, build_app, listen, server
from nightshift.bundle import Bundle
from nightshift.errors import ConfigError
from nightshift.pipeline import load_settings
from tasks.tracking import bundle_of

ONE, TWO = ["one-a", "one-b", "one-c"], ["two-a", "two-b", "two-c"]
EVERY = 0.1


class Served:
    """A server in this process, and a client that keeps its connection."""

    def __init__(self, house: House, mlflow: str = STORE, token: str | None = None):
        settings = load_settings(house.config).model_copy(update={"mlflow": mlflow})
        self.meters, self.desk, self.stopped = Meters(), Desk(), threading.Event()
        self.follower = Follower(settings, house.name, self.meters)
        self.said: str | None = None
        """What requests send as `Authorization`."""
        self.socket = listen("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.http = server(build_app(self.follower, self.desk, self.meters, token))

    def threads(self) -> list[threading.Thread]:
        follow = (self.follower.follow, (EVERY, self.stopped))
        work: list[tuple[Any, tuple[Any, ...]]] = [(self.desk.work, ()), follow]
        run = [*work, (self.http.run, ([self.socket],))]
        return [threading.Thread(target=one, args=given, daemon=True) for one, given in run]

    def ask(
        self, path: str, body: Any = None, connection: http.client.HTTPConnection | None = None
    ) -> tuple[int, Any]:
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Authorization": self.said} if self.said else {}
        own.request("GET" if body is None else "POST", path, sent, headers)
        answer = own.getresponse()
        read, self.headers = answer.read(), answer.headers
        if connection is None:
            own.close()
        plain = "json" not in (answer.getheader("content-type") or "")
        return answer.status, read.decode() if plain else json.loads(read)

    def until(self, version: int | None) -> None:
        waited = time.monotonic() + 20
        while self.ask("/version")[1]["model_version"] != version:
            assert time.monotonic() < waited, self.ask("/ready")
            time.sleep(0.02)

    def meter(self, name: str) -> float:
        [found] = re.findall(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics")[1], re.M)
        return float(found)


@contextmanager
def serving(house: House, mlflow: str = STORE, token: str | None = None) -> Iterator[Served]:
    served = Served(house, mlflow, token)
    threads = served.threads()
    for one in threads:
        one.start()
    try:
        yield served
    finally:
        served.stopped.set()
        served.desk.close()
        served.http.should_exit = True
        for one in threads:
            one.join(20)
            assert not one.is_alive()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    found = House(tmp_path_factory.mktemp("serving"))
    found.declare()
    assert [registered(found, *ONE), registered(found, *TWO)] == [1, 2]
    crown(found, 1)
    return found


@pytest.fixture(scope="module")
def served(house: House) -> Iterator[Served]:
    """A server that answers with the first version."""
    crown(house, 1)
    with serving(house) as found:
        found.until(1)
        yield found


def bundle(labels: list[str]) -> Bundle:
    return Bundle(model(labels=labels), CLUSTERS)


# --- answers --------------------------------------------------------------------------------


def test_predict_answers_every_text_in_order_as_the_bundle_does(served: Served) -> None:
    texts = [*TEXTS, "", "  "]
    status, found = served.ask("/predict", {"texts": texts, "top_k": 2})
    assert status == 200
    assert found["model_version"] == 1
    expected = bundle(ONE).answer(texts, top=2)
    for row, answer in zip(found["answers"], expected, strict=True):
        assert close([{key: row[key] for key in answer}], [answer])
        assert {key for key in row if key not in answer and row[key] is not None} == set()
    assert [row["error"] for row in found["answers"]] == [None] * 5 + ["no_text"] * 2


@pytest.mark.parametrize(
    "shape",
    [
        {"inputs": {"text": TEXTS, "other": [1] * 5}},
        {"inputs": [{"text": one} for one in TEXTS]},
        {"instances": [{"text": one} for one in TEXTS]},
        {"dataframe_records": [{"text": one, "n": 1} for one in TEXTS]},
        {"dataframe_split": {"columns": ["n", "text"], "data": [[1, one] for one in TEXTS]}},
    ],
    ids=lambda one: f"{next(iter(one))}-{type(next(iter(one.values()))).__name__}",
)
def test_invocations_take_the_shapes_of_mlflow(served: Served, shape: dict[str, Any]) -> None:
    params = {"top_k": 1, "embeddings": True}
    status, found = served.ask("/invocations", {**shape, "params": params})
    assert (status, found["model_version"]) == (200, 1)
    said = bundle(ONE).answer(TEXTS, top=1, vectors=True)
    for row, answer in zip(found["predictions"], said, strict=True):
        assert close([{key: row[key] for key in answer}], [answer])


def test_a_missing_text_is_an_empty_one(served: Served) -> None:
    _, found = served.ask("/predict", {"texts": [None, "\ud800", "the cat"]})
    assert [row["error"] for row in found["answers"]] == ["no_text", None, None]


def test_no_texts_have_no_answers(served: Served) -> None:
    assert served.ask("/predict", {"texts": []}) == (200, {"answers": [], "model_version": 1})


REFUSED = [
    ("/predict", b"not json", "body", "no JSON"),
    ("/predict", b"\xff\xfe\xfd", "body", "no JSON"),
    ("/predict", b"[" * 100_000, "body", "no JSON"),
    ("/predict", b"[1]", "body", "a list of 1"),
    ("/predict", {}, "texts", "nothing"),
    ("/predict", {"text": ["a"]}, "text", "expected one of texts, top_k"),
    ("/predict", {"texts": "a text"}, "texts", '"a text"'),
    ("/predict", {"texts": ["a", 17]}, "texts[1]", "found 17, expected a text"),
    ("/predict", {"texts": [float("nan")]}, "texts[0]", "found NaN"),
    ("/predict", {"texts": ["a"], "top_k": "3"}, "top_k", 'found "3", expected a whole number'),
    ("/predict", {"texts": ["a"], "top_k": True}, "top_k", "found true"),
    ("/predict", {"texts": ["a"], "top_k": -1}, "top_k", "found -1"),
    ("/predict", {"texts": ["a"], "embeddings": 1}, "embeddings", "expected true or false"),
    ("/predict", {"texts": ["a"] * (MOST_TEXTS + 1)}, "texts", f"at most {MOST_TEXTS}"),
    ("/invocations", {}, "body", "exactly one of inputs"),
    ("/invocations", {"inputs": {}, "instances": []}, "body", "inputs and instances"),
    ("/invocations", {"inputs": {"texts": ["a"]}}, "inputs.text", "only the keys texts"),
    ("/invocations", {"inputs": {"text": [1]}}, "inputs.text[0]", "found 1"),
    ("/invocations", {"inputs": 3}, "inputs", "found 3"),
    ("/invocations", {"dataframe_records": [{"a": 1}]}, "dataframe_records[0].text", "keys a"),
    ("/invocations", {"dataframe_records": [{"text": {}}]}, "dataframe_records[0].text", "object"),
    ("/invocations", {"dataframe_records": {"a": 1}}, "dataframe_records.text", "keys a"),
    ("/invocations", {"dataframe_split": []}, "dataframe_split", "columns and data"),
    ("/invocations", {"dataframe_split": {"columns": ["a"]}}, "dataframe_split.columns", "only a"),
    ("/invocations", {"dataframe_split": {"columns": ["text"]}}, "dataframe_split.data", "null"),
    ("/invocations", {"dataframe_split": {"columns": ["text"], "data": [["a", "b"]]}},
     "dataframe_split.data[0]", "1 values"),
    ("/invocations", {"inputs": {"text": ["a"]}, "params": {"topk": 1}}, "params.topk", "top_k"),
    ("/invocations", {"inputs": {"text": ["a"]}, "params": [1]}, "params", "an object"),
    ("/invocations", {"inputs": {"text": ["a"]}, "params": {"top_k": 0.5}}, "params.top_k", "0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "field", "words"), REFUSED)
def test_bad_input_is_a_400_that_names_the_field(
    served: Served, path: str, body: Any, field: str, words: str
) -> None:
    status, found = served.ask(path, body)
    assert status == 400
    assert (found["error_code"], found["field"]) == ("BAD_REQUEST", field)
    assert words in found["message"]
    assert found["message"].startswith(f"{field}: found ")
    assert "Traceback" not in found["message"]


def test_a_body_past_the_limit_is_a_413(served: Served) -> None:
    status, found = served.ask("/predict", b" " * (MOST_BYTES + 1))
    assert status == 413
    assert f"at most {MOST_BYTES} bytes" in found["message"]


@pytest.mark.parametrize("given", [[], 0, "", False])
def test_params_that_are_no_object_are_told_even_when_empty(served: Served, given: Any) -> None:
    body = {"inputs": {"text": ["a"]}, "params": given}
    assert served.ask("/invocations", body)[1]["field"] == "params"
    assert served.ask("/invocations", {**body, "params": None})[0] == 200


def test_a_wrong_path_or_method_is_no_fault_of_ours(served: Served) -> None:
    assert served.ask("/nowhere")[0] == 404
    assert served.ask("/predict")[0] == 405


def test_metrics_count_requests_documents_and_swaps(served: Served) -> None:
    def meters() -> list[float]:
        names = [
            'nightshift_requests_total{path="/predict",status="200"}',
            'nightshift_requests_total{path="/predict",status="400"}',
            'nightshift_request_seconds_count{path="/predict"}',
            'nightshift_documents_total{outcome="error"}',
        ]
        return [served.meter(name) for name in names]

    served.ask("/predict", {"texts": [""]})
    served.ask("/predict", {"texts": 1})
    before = meters()
    served.ask("/predict", {"texts": ["", "", *TEXTS]})
    served.ask("/predict", {"texts": 1})
    after = meters()
    assert [two - one for one, two in zip(before, after, strict=True)] == [1, 1, 2, 2]
    assert 0 <= served.meter("nightshift_abstained_share") <= 1
    assert served.meter("nightshift_model_version") == 1
    assert served.meter("nightshift_swaps_total") == 1
    assert served.meter("nightshift_registry_up") == 1


def test_many_clients_at_once_each_get_the_answers_to_their_own_texts(served: Served) -> None:
    expected = {text: bundle(ONE).answer([text], top=3)[0] for text in TEXTS}

    def client(number: int) -> int:
        own = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        for turn in range(15):
            texts = [TEXTS[(number + turn + step) % 5] for step in range(1 + turn % 4)]
            top = turn % 4
            _, found = served.ask("/predict", {"texts": texts, "top_k": top}, own)
            for text, row in zip(texts, found["answers"], strict=True):
                want = {**expected[text], "top": expected[text]["top"][:top]}
                assert close([{key: row[key] for key in want}], [want])
        return turn

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client, range(8))) == [14] * 8


# --- one pass for several -------------------------------------------------------------------


class Noted(Bundle):
    """A bundle that notes its passes, and cannot answer one text."""

    def answer(self, texts: list[str], top: int = 3, vectors: bool = False) -> list[dict[str, Any]]:
        PASSES.append(list(texts))
        if "poison" in texts:
            raise ZeroDivisionError("poison")
        return super().answer(texts, top, vectors)


PASSES: list[list[str]] = []


def test_a_request_is_answered_by_the_champion_of_the_moment_it_came() -> None:
    desk, PASSES[:] = Desk(), []
    first, second = (Champion(n, Noted(model(labels=own), None)) for n, own in ((1, ONE), (2, TWO)))
    came = [first, first, second, second, first]
    rows = [desk.ask(Job(champion, Asked([TEXTS[0]]))) for champion in came]
    desk.close()
    desk.work()
    assert [one.result()[0]["label"][:3] for one in rows] == ["one", "one", "two", "two", "one"]
    assert [len(texts) for texts in PASSES] == [2, 2, 1]


def test_a_text_that_the_model_cannot_bear_costs_only_its_own_request() -> None:
    desk, PASSES[:] = Desk(), []
    champion = Champion(1, Noted(model(labels=ONE), None))
    rows = [desk.ask(Job(champion, Asked([text]))) for text in ("the cat", "poison", "a dog")]
    desk.close()
    desk.work()
    assert rows[0].result()[0]["label"].startswith("one-")
    assert rows[2].result()[0]["label"].startswith("one-")
    with pytest.raises(ZeroDivisionError):
        rows[1].result()


def test_a_model_that_fails_is_a_500_without_a_traceback(house: House) -> None:
    with serving(house) as served:
        served.until(1)
        served.follower.current = Champion(1, Noted(model(labels=ONE), None))
        status, found = served.ask("/predict", {"texts": ["poison"]})
        assert (status, found["error_code"]) == (500, "INTERNAL_ERROR")
        assert "ZeroDivision" not in found["message"]
        assert served.ask("/predict", {"texts": ["a dog"]})[0] == 200


# --- who may ask, and how much ---------------------------------------------------------------


class Stopped(Bundle):
    """A bundle that answers once it is let go."""

    def answer(self, texts: list[str], top: int = 3, vectors: bool = False) -> list[dict[str, Any]]:
        STOPPED.set()
        assert LET_GO.wait(30)
        return super().answer(texts, top, vectors)


STOPPED, LET_GO = threading.Event(), threading.Event()


def test_a_flood_is_told_to_come_again_and_what_waits_is_answered(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.desk.MOST_WAITING", 6)
    STOPPED.clear()
    LET_GO.clear()
    with serving(house) as served, ThreadPoolExecutor(30) as pool:
        served.until(1)
        served.follower.current = Champion(1, Stopped(model(labels=ONE), None))
        first = pool.submit(served.ask, "/predict", {"texts": TEXTS * 4})
        assert STOPPED.wait(20)
        flood = [pool.submit(served.ask, "/predict", {"texts": TEXTS[:2]}) for _ in range(20)]
        waited = time.monotonic() + 20
        while sum(one.done() for one in flood) < 17 and time.monotonic() < waited:
            time.sleep(0.02)
        assert served.meter("nightshift_waiting_texts") == 6
        status, found = served.ask("/predict", {"texts": TEXTS})
        assert (status, found["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
        assert (
            found["message"]
            == "server: found 11 texts waiting, expected at most 6; ask again later."
        )
        assert served.headers["retry-after"] == "1"
        LET_GO.set()
        answers = [one.result() for one in flood]
        assert sorted(status for status, _ in answers) == [200] * 3 + [503] * 17
        assert first.result()[0] == 200  # alone, a request may be larger than what may wait
        assert served.meter('nightshift_requests_total{path="/predict",status="503"}') == 18
        assert served.meter("nightshift_waiting_texts") == 0
        assert served.ask("/predict", {"texts": TEXTS})[0] == 200


def test_bodies_take_no_more_memory_than_declared_and_give_it_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.door.MOST_HELD", 3_000)
    with serving(house) as served:
        served.until(1)
        one = json.dumps({"texts": ["a dog"] * 200}).encode()
        assert 1_500 < len(one) < 3_000
        slow = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        slow.putrequest("POST", "/predict")
        slow.putheader("Content-Length", str(len(one)))
        slow.endheaders()
        slow.send(one[:-1])
        waited = time.monotonic() + 20
        status, found = served.ask("/predict", one)
        while status == 200 and time.monotonic() < waited:
            status, found = served.ask("/predict", one)
        assert (status, found["field"]) == (503, "server")
        assert served.ask("/predict", {"texts": ["a dog"]})[0] == 200
        slow.send(one[-1:])
        assert slow.getresponse().status == 200
        assert served.ask("/predict", one)[0] == 200


def test_a_client_that_dawdles_or_leaves_is_let_go_without_a_traceback(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.door.BODY_SECONDS", 0.3)
    with serving(house) as served:
        served.until(1)
        for leaves in (False, True):
            own = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
            own.putrequest("POST", "/predict")
            own.putheader("Content-Length", "100")
            own.endheaders()
            own.send(b'{"texts": [')
            if leaves:
                own.close()
                break
            answer = own.getresponse()
            assert answer.status == 408
            assert "no end within 0.3 s" in json.loads(answer.read())["message"]
        time.sleep(0.5)
        assert served.ask("/predict", {"texts": ["a dog"]})[0] == 200
    assert not [one for one in caplog.records if one.exc_info]


def test_with_a_token_nothing_is_told_to_who_has_none(house: House) -> None:
    token = "a-token-of-24-characters"
    with serving(house, token=token) as served:
        served.said = f"Bearer {token}"
        served.until(1)
        asked = [("/predict", {"texts": ["a dog"]}), ("/invocations", {"inputs": {"text": ["a"]}}),
                 ("/version", None), ("/metrics", None)]  # fmt: skip
        assert {served.ask(*one)[0] for one in asked} == {200}
        for said in (None, "Bearer", "Bearer another", f"Basic {token}", token, "Bearer \xe9"):
            served.said = said
            for path, body in asked:
                status, found = served.ask(path, body)
                assert (status, found["error_code"]) == (401, "UNAUTHENTICATED")
                assert token not in found["message"]
                assert served.headers["www-authenticate"] == "Bearer"
            assert served.ask("/health")[0] == 200
            assert served.ask("/ready") == (200, {"ready": True})
        served.said = f"bearer {token}"
        assert served.meter('nightshift_requests_total{path="/predict",status="401"}') == 6
        assert served.meter('nightshift_requests_total{path="/metrics",status="401"}') == 6
        assert 'path="/ready"' not in served.ask("/metrics")[1]
        assert served.ask("/ready")[1]["model_version"] == 1


def test_a_token_is_of_the_file_else_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert token_of(None) is None
    file = tmp_path / "token"
    file.write_text("of-the-file-0123456789\n")
    monkeypatch.setenv(TOKEN, "of-the-environment")
    assert token_of(None) == "of-the-environment"
    assert token_of(file) == "of-the-file-0123456789"
    # A variable that is set to nothing meant to set one.
    for bad in ("", "short", "two words of a token", "m\u00e4rz" * 10):
        monkeypatch.setenv(TOKEN, bad)
        file.write_text(bad)
        for given, where in ((None, TOKEN), (file, "--token-file")):
            with pytest.raises(ConfigError, match=f"{where}.*expected 16 or more"):
                token_of(given)
    with pytest.raises(ConfigError, match="cannot be read"):
        token_of(tmp_path / "nowhere")


# --- following ------------------------------------------------------------------------------


def test_flipping_the_alias_under_load_drops_no_request_and_mixes_no_versions(
    house: House,
) -> None:
    crown(house, 1)
    labels = {1: "one-", 2: "two-"}
    found: list[tuple[float, float, int, set[str], int]] = []
    over = threading.Event()

    def load() -> None:
        own = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        while not over.is_set():
            began = time.monotonic()
            status, said = served.ask("/predict", {"texts": TEXTS}, own)
            heads = {row["label"][:4] for row in said["answers"]}
            found.append((began, time.monotonic(), status, heads, said["model_version"]))

    with serving(house) as served:
        served.until(1)
        # When each could have become champion, and when it surely answered.
        reigns = [(time.monotonic(), time.monotonic(), 1)]
        clients = [threading.Thread(target=load) for _ in range(4)]
        for one in clients:
            one.start()
        for flip in range(4):
            time.sleep(0.5)
            before, version = time.monotonic(), 2 - flip % 2
            crown(house, version)
            served.until(version)
            reigns.append((before, time.monotonic(), version))
        time.sleep(0.5)
        over.set()
        for one in clients:
            one.join()
        assert served.meter("nightshift_swaps_total") == 5
    assert len(found) > 50
    assert {status for _, _, status, _, _ in found} == {200}
    assert {version for *_, version in found} == {1, 2}
    for began, ended, _, heads, version in found:
        assert heads == {labels[version]}
        ends = [sure for _, sure, _ in reigns[1:]] + [float("inf")]
        spans = [
            (start, end)
            for (start, _, who), end in zip(reigns, ends, strict=True)
            if who == version
        ]
        assert any(start <= ended and began <= end for start, end in spans)


@pytest.fixture
def damaged(house: House) -> Iterator[Path]:
    """The second version, its weights cut in the store; mended after the test."""
    weights = bundle_of(STORE, house.name, 2) / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    yield weights
    weights.write_bytes(whole)
    crown(house, 1)


def test_a_damaged_champion_is_refused_and_the_old_one_answers_on(
    house: House, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crown(house, 1)
    with serving(house) as served:
        served.until(1)
        crown(house, 2)
        waited = time.monotonic() + 20
        while not served.follower.problem and time.monotonic() < waited:
            time.sleep(0.02)
        time.sleep(3 * EVERY)
        status, ready = served.ask("/ready")
        assert (status, ready["ready"], ready["model_version"]) == (200, True, 1)
        assert "version 2 is champion, but cannot answer" in ready["problem"]
        assert "weights.safetensors cut or altered" in ready["problem"]
        assert served.ask("/predict", {"texts": ["a"]})[1]["model_version"] == 1
        # It was not fetched again at every look.
        assert served.meter("nightshift_failed_swaps_total") == 1
        assert served.meter("nightshift_swaps_total") == 1
        crown(house, 1)
        time.sleep(3 * EVERY)
        assert served.ask("/ready")[1]["problem"] is None
    assert "version 1 still answers" in caplog.text


def test_before_there_is_a_champion_the_server_lives_and_is_not_ready(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.declare()
    with serving(house) as served:
        time.sleep(0.5)
        assert served.ask("/health")[0] == 200
        status, ready = served.ask("/ready")
        assert (status, ready["model_version"]) == (503, None)
        assert f"nightshift run {house.name}" in ready["problem"]
        status, found = served.ask("/predict", {"texts": ["a"]})
        assert (status, found["message"]) == (503, ready["problem"])
        registered(house, *ONE)
        crown(house, 1)
        served.until(1)
        assert served.ask("/ready") == (
            200, {"ready": True, "model_version": 1, "problem": None}
        )  # fmt: skip


def test_a_registry_that_goes_away_leaves_the_champion_answering(
    house: House, tmp_path: Path
) -> None:
    crown(house, 1)
    copy = tmp_path / "registry.db"
    with sqlite3.connect(STORE.removeprefix("sqlite:///")) as store:
        store.execute("VACUUM INTO ?", [str(copy)])
    with serving(house, f"sqlite:///{copy}") as served:
        served.until(1)
        kept = copy.read_bytes()
        copy.write_bytes(b"no database " * 1_000)
        waited = time.monotonic() + 20
        while served.meter("nightshift_registry_up") and time.monotonic() < waited:
            time.sleep(0.05)
        status, ready = served.ask("/ready")
        assert (status, ready["model_version"]) == (200, 1)
        assert "asking MLflow at" in ready["problem"]
        assert served.ask("/predict", {"texts": ["a"]})[0] == 200
        copy.write_bytes(kept)
        while not served.meter("nightshift_registry_up") and time.monotonic() < waited:
            time.sleep(0.05)
        assert served.ask("/ready")[1]["problem"] is None


# --- the process ----------------------------------------------------------------------------


def test_an_address_that_is_taken_is_told() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="--port: cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_command_answers_and_finishes_what_it_began_when_told_to_stop(house: House) -> None:
    crown(house, 1)
    command = [shutil.which("nightshift", path=str(Path(sys.executable).parent)), "serve"]
    process = subprocess.Popen(
        [*command, house.name, "--port", "0", "--config", str(house.config)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        [port] = re.findall(r"http://127\.0\.0\.1:(\d+)", lines[0])
        assert "version 1 of" in lines[1]
        own = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        body = json.dumps({"texts": ["the cat sat on the mat and looked " * 100] * 200})
        own.request("POST", "/predict", body)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        answer = own.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["answers"]) == 200
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


# --- MLflow's own server --------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_port(house: House) -> Iterator[int]:
    """`mlflow models serve` of the champion, in this environment."""
    crown(house, 1)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    python = Path(sys.executable)
    process = subprocess.Popen(
        [python, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port),
         "--model-uri", f"models:/{house.name}@champion"],
        env={**os.environ, "MLFLOW_TRACKING_URI": STORE,
             "PATH": f"{python.parent}:{os.environ['PATH']}"},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        waited = time.monotonic() + 200
        while True:
            assert process.poll() is None
            assert time.monotonic() < waited
            with suppress(OSError):
                if invoke(port, None, "/health")[0] == 200:
                    break
            time.sleep(0.3)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def invoke(port: int, body: Any, path: str = "/invocations") -> tuple[int, str]:
    own = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    own.request("GET" if body is None else "POST", path, sent, {"Content-Type": "application/json"})
    answer = own.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.slow
def test_mlflow_serves_the_same_answers_in_a_batch(mlflow_port: int, served: Served) -> None:
    columns = {"columns": ["text"], "data": [[one] for one in [*TEXTS, "", None]]}
    for body in (
        {"dataframe_split": columns, "params": {"top_k": 2, "embeddings": True}},
        {"inputs": {"text": TEXTS}},
        {"dataframe_records": [{"text": one} for one in TEXTS]},
    ):
        status, found = invoke(mlflow_port, body)
        assert status == 200
        assert "NaN" not in found
        said = json.loads(found)["predictions"]
        ours = served.ask("/invocations", body)[1]["predictions"]
        assert len(said) == len(ours) == (7 if "dataframe_split" in body else 5)
        for mine, other in zip(said, ours, strict=True):
            assert mine.keys() == other.keys()
            given = {key for key in mine if mine[key] is not None}
            assert close([{key: mine[key] for key in given}], [{key: other[key] for key in given}])
        assert [one["error"] for one in said[5:]] == ["no_text", "no_text"][: len(said) - 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not json", "valid JSON"),
        ({}, "exactly one of the input fields"),
        ({"inputs": {"texts": ["a"]}}, "missing inputs ['text']"),
        ({"dataframe_records": [{"t": "a"}]}, "missing inputs ['text']"),
        ({"dataframe_records": [{"text": "a"}, {"text": 17}]}, "text[1]: found 17"),
        ({"dataframe_split": {"columns": ["text"], "data": [[["a"]]]}}, "text[0]: found ['a']"),
        ({"inputs": {"text": ["a"]}, "params": {"top_k": "x"}}, "top_k"),
        ({"inputs": {"text": ["a"]}, "params": {"top_k": -1}}, "params.top_k: found -1"),
    ],
)
def test_mlflow_answers_bad_input_with_a_400_that_names_the_field(
    mlflow_port: int, body: Any, words: str
) -> None:
    status, found = invoke(mlflow_port, body)
    assert status == 400
    assert words in json.loads(found)["message"]
