from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from conftest import SCRATCH, House, rows
from torch import nn

from flows.checking import check
from nightshift import chunks, compute, shards, tables
from nightshift.batches import Documents
from nightshift.compute import ComputeConfig, connect, likeness, spread
from nightshift.encoders import Network
from nightshift.errors import ConfigError, PassingError
from nightshift.nearest import Cells
from nightshift.pipeline import Pipeline, config_digest, load_settings
from nightshift.recipe import ModelConfig, TrainConfig
from nightshift.shards import Encode, ModelVectors, Place, Texts, Unread
from nightshift.tables import Lake, rows_of
from nightshift.tokenizer import Tokenizer, TokenizerConfig
from nightshift.training import Run, Team, fit

TOKEN = SCRATCH / "ray-token"
TOKEN.write_text("f" * 64)
TOKEN.chmod(0o600)
# Before anything imports Ray, which reads them once.
os.environ |= {
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(TOKEN), "RAY_USAGE_STATS_ENABLED": "0"
}  # fmt: skip

WORDS = ["oven", "butter", "flour", "anchor", "sail", "mast", "pawn", "rook", "bishop", "queen"]


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Two nights of documents in row groups of 100, with tokens in the order of the documents."""
    monkeypatch.setattr(tables, "ROW_GROUP", 100)
    found = Lake(str(tmp_path / "lake"), "p")
    for night, count in (("n1", 330), ("n2", 170)):
        found.replace("documents", night, _batches(night, count))
        encode = Encode(tokenizer(), 50)
        encoded = (encode(one)["tokens"] for one in _batches(night, count))
        found.replace("tokens", night, encoded)
    return found


def _batches(night: str, count: int) -> Iterator[pa.RecordBatch]:
    chance = np.random.default_rng(count)
    texts = [" ".join(chance.choice(WORDS, chance.integers(1, 30))) for _ in range(count)]
    for first in range(0, count, 40):
        part = texts[first : first + 40]
        ids = [f"{night}-{first + place}" for place in range(len(part))]
        rows = [{"doc_id": one, "text": text} for one, text in zip(ids, part, strict=True)]
        schema = pa.schema([one for one in tables.SCHEMAS["documents"] if one.name != "night"])
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def tokenizer() -> Tokenizer:
    return Tokenizer.learn(WORDS * 3, TokenizerConfig(unit="word", vocabulary=50))


# --- shards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 33, 100])
def test_shards_one_after_the_other_hold_the_very_chunks_of_a_scan(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(shards, "SHARD", 2 * size)
    for where in (pc.scalar(True), pc.field("night") == "n2"):
        source = Texts(where, size)
        parts = source.shards(lake)
        assert len(parts) > 1
        found = [one for part in parts for one in source.read(lake, part)]
        assert found == [*source.stream(lake)]


def test_shards_of_wide_rows_are_cut_as_narrow_as_a_scan_cuts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 100_000)
    wide = Lake(str(tmp_path / "wide"), "p")
    chance = np.random.default_rng(1)
    wide.replace("documents", "n1", rows_of("documents", [
        {"doc_id": f"{row}", "text": chance.bytes(2_500).hex()} for row in range(90)
    ]))  # fmt: skip
    source = Texts(pc.scalar(True), 50)
    scanned = [*source.stream(wide)]
    assert max(one.num_rows for one in scanned) < 50
    assert [one for part in source.shards(wide) for one in source.read(wide, part)] == scanned


@pytest.mark.parametrize("texts", [True, False])
def test_shards_of_what_a_model_has_not_read_bring_the_same_texts_in_the_same_chunks(
    lake: Lake, texts: bool
) -> None:
    read = pa.array([f"n1-{number}" for number in range(0, 330, 3)])
    for unseen in (pc.scalar(True), ~pc.field("doc_id").isin(read)):
        source = Unread(tokenizer().digest, unseen, "n2", texts, 48)
        parts = source.shards(lake)
        found = [one for part in parts for one in source.read(lake, part)]
        assert found == [*source.stream(lake)]
        assert len(found) == len(parts) > 8
        # Of a chunk, at most two row groups have the texts: no shard reads the whole table.
        assert all(len(part.documents) <= 2 for part in parts)


@pytest.mark.parametrize("size", [1, 64, 100, 130, 1000])
def test_shards_of_vectors_are_full_chunks_of_one_model_wherever_its_rows_stand(
    lake: Lake, size: int
) -> None:
    mine, others = [], 0
    for night, count in (("n1", 250), ("n2", 30), ("n3", 130)):
        batch = _embeddings(night, count)
        own = np.array(batch.column("model_id")) == "m"
        mine.append(np.array(batch.column("vector").to_pylist(), np.float32)[own])
        others += (~own).sum()
        lake.replace("embeddings", night, [batch])
    whole = np.concatenate(mine)
    assert others > 100
    source = ModelVectors("m", size)
    found = [*source.stream(lake)]
    assert [len(one) for one in found[:-1]] == [size] * (len(found) - 1)
    assert (np.concatenate(found) == whole).all()
    # A chunk is read where it stands: no shard reads the whole table.
    assert all(len(one.stretches) <= 2 + 2 * size // 50 for one in source.shards(lake))
    cells = Cells(whole[:7], np.linspace(1, 2, 7, dtype=np.float32), 1.2)
    made = pa.Table.from_batches(Place(cells)(one)["places"] for one in found)
    places, distances = cells.assign(whole)
    assert (made["place"].to_numpy() == places).all()
    assert np.allclose(made["distance"].to_numpy(), distances, atol=1e-6)
    assert len({*places}) > 4


def test_a_chunk_without_texts_has_no_tokens_and_one_of_empty_texts_an_unknown_each() -> None:
    none = pa.array([], pa.string())
    encode = Encode(tokenizer(), 50)
    assert (
        encode(pa.RecordBatch.from_pydict({"doc_id": none, "text": none}))["tokens"].num_rows == 0
    )
    two = {"doc_id": ["a", "b"], "text": ["", ""]}
    made = encode(pa.RecordBatch.from_pydict(two))["tokens"]
    assert made.column("ids").to_pylist() == [[1], [1]]


def _embeddings(night: str, count: int) -> pa.RecordBatch:
    chance = np.random.default_rng(count)
    return pa.RecordBatch.from_pydict({
        "doc_id": [f"{night}-{row}" for row in range(count)],
        "vector": pa.array([*chance.normal(size=(count, 8)).astype(np.float32)]),
        "model_id": ["m" if one else "older" for one in chance.random(count) < 0.6],
    })  # fmt: skip


def test_a_lake_that_a_node_does_not_see_is_told_as_such(lake: Lake, tmp_path: Path) -> None:
    source = Texts(pc.scalar(True), 50)
    elsewhere = Lake(str(tmp_path / "not-mounted"), "p")
    with pytest.raises(ConfigError, match=r"found none on .* all mount at the same place"):
        next(source.read(elsewhere, source.shards(lake)[0]))


def test_a_node_of_another_code_or_library_is_refused() -> None:
    like = likeness()
    compute.be_like(like)
    for name in ("code", "torch", "vector units"):
        with pytest.raises(ConfigError, match=f"has {name} .*, and the night 0.0: .*docs/ray.md"):
            compute.be_like({**like, name: "0.0"})


def test_a_node_takes_as_many_threads_as_the_night() -> None:
    before = torch.get_num_threads()
    try:
        compute.be_like({**likeness(), "threads": 3})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# --- what is declared -------------------------------------------------------------------------


def test_the_engine_is_no_part_of_what_a_night_is() -> None:
    declared = {"source": {"paths": ["x"], "text": "text"}}
    plain = Pipeline.model_validate(declared)
    spread_out = Pipeline.model_validate({**declared, "compute": {"engine": "ray", "workers": 4}})
    assert config_digest(plain) == config_digest(spread_out)
    # But the manifest tells what a replay on one machine would find otherwise.
    assert spread_out.compute.about() == {"training": "4 workers of a Ray cluster"}
    assert plain.compute.about() == ComputeConfig(engine="ray").about() == {}


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "a:b@head:6379", "head:x"])
def test_an_address_that_is_no_host_with_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        ComputeConfig(engine="ray", address=address)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "nightshift\[ray\]"'):
        connect(ComputeConfig(engine="ray"))


def test_a_cluster_that_does_not_answer_is_waited_for_and_not_for_minutes() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(PassingError, match=f"nobody answers at 127.0.0.1:{port}"):
        connect(ComputeConfig(engine="ray", address=f"127.0.0.1:{port}"))
    assert time.monotonic() - began < 15


def test_check_names_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`")
    house = House(tmp_path)
    house.declare(compute={"engine": "ray", "address": "127.0.0.1:1"})
    found = [(words, fine) for name, words, fine in check(load_settings(house.config))
             if name == "compute"]  # fmt: skip
    [(words, fine)] = found
    assert not fine
    assert "nobody answers at 127.0.0.1:1" in words


# --- one step of several ----------------------------------------------------------------------


class Pair(Team):
    """Two processes in one: the gradients of the other are computed before, and added."""

    def __init__(self, rank: int, others: list[torch.Tensor] | None = None):
        self.rank, self.size, self._others = rank, 2, others
        self.seen: list[torch.Tensor] = []

    def add_up(self, network: nn.Module) -> None:
        for place, one in enumerate(network.parameters()):
            if one.grad is None:
                one.grad = torch.zeros_like(one)
            self.seen.append(one.grad.clone())
            if self._others is not None:
                one.grad += self._others[place]


def _training(count: int, **changes: Any) -> tuple[Network, Documents, TrainConfig]:
    chance = np.random.default_rng(5)
    ids = [chance.integers(2, 40, chance.integers(1, 12)).tolist() for _ in range(count)]
    labels = np.array([one[0] % 2 for one in ids], np.int64)
    documents = Documents.from_lists(ids).labelled(labels)
    model = ModelConfig(
        embedding=8, hidden=8, vector=8, layers=1, dropout=0, max_tokens=32, stride=1,
        **dict.fromkeys(("state_dropout", "weight_dropout", "word_dropout"), 0),
    )  # fmt: skip
    declared = {
        "epochs": 3, "learning_rate": 0.02, "batch_tokens": 64, "device": "cpu", "patience": 10,
        "weight_decay": 0.01,
    } | changes  # fmt: skip
    config = TrainConfig.model_validate(declared)
    torch.manual_seed(3)
    return Network(model, 40, 2), documents, config


@pytest.mark.parametrize("changes", [{}, {"class_weights": "balanced"}, {"l1": 0.001}])
def test_gradients_of_two_shares_add_up_to_those_of_the_batch(changes: dict[str, Any]) -> None:
    def first_step(team: Team) -> Network:
        network, documents, config = _training(31, batch_tokens=100_000, **changes)
        run = Run(network, documents, config, torch.device("cpu"), team)
        assert len(run.passes[0]) == 1  # one batch of 31: shares of 16 and of 15
        run.one_pass(0)
        return network

    one = Pair(1)
    first_step(one)
    both, whole = first_step(Pair(0, one.seen)), first_step(Team())
    for there, here in zip(both.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


def test_a_batch_smaller_than_the_team_leaves_the_others_without_a_share() -> None:
    team = Pair(1)
    network, documents, config = _training(1)
    before = [one.detach().clone() for one in network.parameters()]
    Run(network, documents, config.model_copy(update={"weight_decay": 0.0}),
        torch.device("cpu"), team).one_pass(0)  # fmt: skip
    assert all(torch.equal(one, two) for one, two in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("changes", [
    {"schedule": "plateau"}, {"schedule": "one_cycle", "averaging": "ema"},
    {"schedule": "cosine", "averaging": "swa", "optimizer": "sgd"},
])  # fmt: skip
def test_a_run_goes_on_from_its_state_as_if_it_had_not_been_stopped(changes: Any) -> None:
    device = torch.device("cpu")

    def begun() -> Run:
        return Run(*_training(60, **changes), device)

    whole, first = begun(), begun()
    losses = [whole.one_pass(index) for index in range(3) if whole.schedule.epoch(1.0) is None]
    first.schedule.epoch(1.0)
    first.one_pass(0)
    again = begun()
    again.load(first.state())
    found = []
    for index in (1, 2):
        again.schedule.epoch(1.0)
        found.append(again.one_pass(index))
    assert found == losses[1:]
    for one, two in zip(whole.answering.parameters(), again.answering.parameters(), strict=True):
        assert torch.equal(one, two)


# --- a real cluster ---------------------------------------------------------------------------


class Nodes:
    """A Ray cluster of three nodes on this machine, a processor each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.others = [self.cluster.add_node(wait=False, num_cpus=1) for _ in range(2)]
        self.cluster.wait_for_nodes()
        self.config = ComputeConfig(engine="ray", address=self.cluster.address)

    def whole(self) -> None:
        """Three nodes again."""
        import ray

        connect(self.config)
        while sum(one["Alive"] for one in ray.nodes()) < 3:
            self.others.append(self.cluster.add_node(num_cpus=1))

    def kill(self) -> str:
        """End the newest node as a machine dies, with all that runs on it; returns its id."""
        import psutil

        node = self.others.pop()
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for one in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        return node.node_id


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`")
    found = Nodes()
    yield found
    import ray

    ray.shutdown()
    found.cluster.shutdown()


@dataclass
class Slow:
    """Encodes slowly, and notes in a folder which node began which chunk."""

    encode: Encode
    notes: str

    def __call__(self, chunk: pa.RecordBatch) -> compute.Made:
        import ray

        node = ray.get_runtime_context().get_node_id()
        name = f"{chunk.column('doc_id')[0].as_py()} {node} {os.getpid()} {time.time_ns()}"
        (Path(self.notes) / name).touch()
        time.sleep(1)
        return self.encode(chunk)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_dies_costs_its_shards_and_nothing_else(
    nodes: Nodes, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no node has the tests
    nodes.whole()
    monkeypatch.setattr(shards, "SHARD", 40)
    source, encode = Texts(pc.scalar(True), 40), Encode(tokenizer(), 50)
    notes = tmp_path / "notes"
    notes.mkdir()
    victim, made = nodes.others[-1].node_id, []
    for one in spread(nodes.config, lake, source, Slow(encode, str(notes))):
        made.append(one)
        if victim == nodes.others[-1].node_id:
            _wait_for_a_note_of(victim, notes)  # it is at work on a chunk
            nodes.kill()
    assert made == [*map(encode, source.stream(lake))]
    began = Counter(name.name.split()[0] for name in notes.iterdir())
    assert len(began) == len(made)
    again = {chunk for chunk, times in began.items() if times > 1}
    where = {chunk: set[str]() for chunk in again}
    for chunk, node in (name.name.split()[:2] for name in notes.iterdir()):
        if chunk in again:
            where[chunk].add(node)
    # What the dead node was at was begun again, and by another.
    assert where
    assert all(victim in there and len(there) > 1 for there in where.values())


def _wait_for_a_note_of(node: str, notes: Path) -> None:
    before, until = {*notes.iterdir()}, time.monotonic() + 60
    while not any(node in one.name for one in {*notes.iterdir()} - before):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_shard_says_of_itself_arrives_as_it_was_said(
    nodes: Nodes, lake: Lake, tmp_path: Path
) -> None:
    source = Texts(pc.scalar(True), 50)
    found = source.shards(lake)
    monkeyed = Texts(pc.scalar(True), 50)
    object.__setattr__(monkeyed, "shards", lambda _: found)
    elsewhere = Lake(str(tmp_path / "not-mounted"), "p", {"AWS_SECRET_ACCESS_KEY": "hush"})
    with pytest.raises(ConfigError, match="all mount at the same place") as told:
        [*spread(nodes.config, elsewhere, monkeyed, Encode(tokenizer(), 50))]
    assert "hush" not in str(told.value)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_check_counts_the_nodes_of_a_cluster_once_for_all_pipelines(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.whole()
    house = House(tmp_path)
    house.declare(compute=nodes.config.model_dump())
    settings = load_settings(house.config)
    settings.pipelines["another"] = settings.pipelines[house.name]
    found = [words for name, words, fine in check(settings) if name == "compute" and fine]
    assert found == [f"Ray at {nodes.cluster.address}: answers, with nodes: 3, cores: 3"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_on_three_nodes_of_which_one_dies_equals_one_on_this_machine(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, size in (
        ("tasks.tokens", "ROWS", 16),
        ("tasks.embed", "CHUNK", 48),
        ("nightshift.shards", "SHARD", 48),
        ("tasks.cluster", "CHUNK", 32),
        ("tasks.cluster", "SPREAD_FROM", 2),
    ):
        monkeypatch.setattr(f"{module}.{name}", size)
    monkeypatch.setattr(chunks.Spooled.chunks, "__defaults__", (32,))
    nodes.whole()
    came = Counter[str]()
    real = compute._waited_for

    def and_kill(*given: Any) -> Any:
        found = real(*given)
        came.update(name for made in found for name in made)
        if came["embeddings"] and not came["killed"]:
            came["killed"] += 1
            nodes.kill()
        return found

    monkeypatch.setattr(compute, "_waited_for", and_kill)
    houses = []
    for name, declared in (("alone", {}), ("spread", {"compute": nodes.config.model_dump()})):
        house = House(tmp_path / f"{tmp_path.name}-{name}")
        house.folder.mkdir()
        house.declare(wide={"use": True}, **declared)
        house.drop("one.jsonl", rows(90))
        house.work("n1")
        house.drop("two.jsonl", rows(40, seed=1))
        house.work("n2")
        houses.append(house)
    one, two = houses
    assert came["killed"] == 1
    assert min(came["tokens"], came["embeddings"], came["predictions"], came["places"]) > 6
    for night in ("n1", "n2"):
        mine, others = two.digests(night), one.digests(night)
        # The others name the folder, or tell how long it took.
        for stage in ("tokens", "train", "promote", "embed", "cluster"):
            assert mine[stage] == others[stage], stage
    for table in ("tokens", "predictions", "embeddings", "assignments"):
        assert one.table(table) == two.table(table)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_goes_on_when_a_worker_is_killed_and_comes_to_the_same(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    from nightshift.together import passes_of

    nodes.whole()
    _, documents, config = _training(400, epochs=4)
    held = documents.take(np.arange(0, 400, 4))

    def build() -> Network:
        return _training(400)[0]

    alone = [*fit(build, documents, held, config)]
    passes = passes_of(nodes.config.model_copy(update={"workers": 2}))
    together = []
    for epoch in fit(build, documents, held, config, passes=passes):
        together.append(epoch)
        if epoch.index == 2:
            _kill_a_worker()
    assert "were lost in pass 3" in caplog.text
    assert [one.index for one in together] == [1, 2, 3, 4]
    for one, two in zip(alone, together, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert two.validation_loss == pytest.approx(one.validation_loss, rel=1e-3)
        assert two.learning_rate == pytest.approx(one.learning_rate)


def _kill_a_worker() -> None:
    """SIGKILL to one process of the training."""
    import psutil

    found = [
        one for one in psutil.process_iter(["cmdline"])
        if " ".join(one.info["cmdline"] or []).startswith("ray::_Member")
    ]  # fmt: skip
    assert len(found) == 2
    found[0].kill()
