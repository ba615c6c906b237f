"""Fast, side by side: Nightshift beside its peers, the same work on the same machine in one run.

    python benchmarks/suite.py --data DIR [--only step,tokens] [--again] [--quick] [--out FOLDER]
    python benchmarks/suite.py --page

DIR (or NIGHTSHIFT_DATA) holds the corpora; a job whose corpus is missing is skipped, and says so.
A job's result stands in speed.json once it is done and is not measured again without `--again`, so
that a run may be cut short. speed.md and speed.png are made of it, and of what overhead.py,
scale.py, kmeans.py and gpu.py left beside it. All cores are used. Peers run in environments of
their own, made before any clock starts. `--quick` tries all of it on few rows, into build/speed:
its figures mean nothing. Exit code 1 where a job fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from corpora import (
    CORPORA,
    NIGHTSHIFT,
    RESULTS,
    add_data_option,
    busy_seconds,
    declare,
    keep,
    kept,
    machine,
)
from peers import PeerError, environment, held_out, read_corpus
from suite_page import write_page

from flows.environment import THREADS

HERE = Path(__file__)
TRIED = HERE.parents[1] / "build" / "speed"
FEW_ROWS = 2000
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ROUNDS, COMMANDS = 5, 7
"""How often both take turns; how often a command is called."""
WAYS: dict[str, dict[str, Any]] = {
    "quick": {"train": {"preset": "quick"}},
    "recurrent": {
        "pretrain": {"objective": "none"}, "wide": {"use": False}, "train": {"refit": False},
    },
}  # fmt: skip
"""Recipes that train to a goal; `wide`, the linear path alone, has none."""
SHORTER: dict[str, dict[str, Any]] = {
    "imdb": {"model": {"max_tokens": 256, "truncation": "tail"}, "train": {"epochs": 2}}
}
"""What `recurrent` changes of the default where texts are long: the end of a review, about as much
as the Keras LSTM reads of it, and two passes."""


@dataclass(frozen=True)
class Job:
    """One measurement: what it needs, and what it does with the options of the command."""

    name: str
    corpora: tuple[str, ...]
    peers: tuple[str, ...]
    run: Callable[[argparse.Namespace], dict[str, Any]]


class JobError(Exception):
    """A job's process failed; the message has its last lines."""


def main() -> int:
    options = _options()
    if options.one:
        options.json.write_text(json.dumps(_one(json.loads(options.one))), encoding="utf-8")
        return 0
    if options.page:
        return write_page(options.out)
    wanted = options.only.split(",") if options.only else [job.name for job in JOBS]
    unknown = sorted(set(wanted) - {job.name for job in JOBS})
    if unknown:
        print(f"--only: found {', '.join(unknown)}, expected some of "
              f"{', '.join(job.name for job in JOBS)}.", file=sys.stderr)  # fmt: skip
        return 2
    jobs = [job for job in JOBS if job.name in wanted and _possible(job, options)]
    if not options.again:
        done = kept(options.out, "speed.json")
        for job in [one for one in jobs if one.name in done]:
            print(f"{job.name}: measured on {done[job.name]['day']}; --again does it once more")
        jobs = [one for one in jobs if one.name not in done]
    failed = []
    try:
        for peer in sorted({peer for job in jobs for peer in job.peers}):
            environment(peer)
        for job in jobs:
            failed += _kept(job, options)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    write_page(options.out)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--only", metavar="JOBS", help="some of the jobs, by commas")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--quick", action="store_true", help="few rows, to see whether it runs")
    parser.add_argument("--page", action="store_true", help="only make the page and picture")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--one", metavar="JSON", help="only this piece of work, in here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where its result goes")
    options = parser.parse_args()
    options.out = options.out or (TRIED if options.quick else RESULTS)
    options.rows = FEW_ROWS if options.quick else None
    return options


def _possible(job: Job, options: argparse.Namespace) -> bool:
    lost = [one for one in job.corpora if not (options.data / f"{one}.parquet").is_file()]
    if lost:
        print(f"{job.name}: skipped, found no {lost[0]}.parquet in {options.data}")
    return not lost


def _kept(job: Job, options: argparse.Namespace) -> list[str]:
    """Run a job and keep what it found; its name where it failed."""
    print(f"{job.name}: begins", flush=True)
    started, busy, own = time.time(), busy_seconds(), _own_seconds()
    try:
        found = job.run(options)
    except JobError as error:
        print(f"{job.name}: failed.\n{error}", file=sys.stderr)
        return [job.name]
    wall = time.time() - started
    others = max(0.0, busy_seconds() - busy - (_own_seconds() - own))
    about = {
        "machine": machine(), "day": datetime.now(UTC).date().isoformat(), "cores": CORES,
        "seconds": round(wall, 1), "others_cpu_seconds": round(others, 1),
        "rows": options.rows,
    }  # fmt: skip
    keep(options.out, "speed.json", job.name, {**found, **about})
    write_page(options.out)
    print(f"{job.name}: done after {wall:.0f} s, in which others used {others:.0f} CPU seconds",
          flush=True)  # fmt: skip
    return []


def _own_seconds() -> float:
    """CPU seconds of this process and of all it waited for."""
    return sum(os.times()[:4])


# --- processes ------------------------------------------------------------------------------


def peer(name: str, corpus: str, options: argparse.Namespace, seed: int = 1) -> dict[str, Any]:
    """One peer's training and answers, in a process of its own."""
    command = [
        str(HERE.with_name("peers.py")), name, "--corpus", corpus, "--seed", str(seed),
        "--data", str(options.data), *(["--rows", str(options.rows)] if options.rows else []),
    ]  # fmt: skip
    found = _process(command)
    told = found["validation_accuracy"]
    print(f"  {name} on {corpus}: {found['train_seconds']:.1f} s, "
          f"{'' if told is None else f'validation {told:.4f}, '}test {found['accuracy']:.4f}",
          flush=True)  # fmt: skip
    return found


def own(work: str, options: argparse.Namespace, **given: Any) -> Any:
    """One piece of our own work, in a process of its own."""
    asked = {"work": work, "data": str(options.data), "rows": options.rows, **given}
    return _process([str(HERE), "--one", json.dumps(asked)])


def _process(command: list[str]) -> Any:
    threads = {"OMP_NUM_THREADS": str(CORES), "RAYON_NUM_THREADS": str(CORES), **THREADS}
    with TemporaryDirectory(prefix="nightshift-speed-") as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, *command, "--json", str(result)], env=os.environ | threads,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode or not result.is_file():
            raise JobError(f"exit code {done.returncode}\n{done.stderr[-3000:]}")
        return json.loads(result.read_text(encoding="utf-8"))


def _one(asked: dict[str, Any]) -> Any:
    work = {"until": until, "steps": steps, "answers": answers, "encoding": encoding}
    asked["data"] = Path(asked["data"])
    return work[asked.pop("work")](**asked)


# --- training to an accuracy ----------------------------------------------------------------


def training(corpus: str, rival: str, peer_runs: int, own_runs: int) -> Job:
    """Train until validation is as good as the peer's at its end; then both read the test rows."""

    def run(options: argparse.Namespace) -> dict[str, Any]:
        peers, ours = list[dict[str, Any]](), dict[str, list[dict[str, Any]]]()
        for seed in range(1, (1 if options.rows else peer_runs) + 1):
            peers.append(peer(rival, corpus, options, seed))
            for way in ("wide", *WAYS):
                for _ in range(1 if options.rows else own_runs):
                    goal = peers[-1]["validation_accuracy"]
                    found = own("until", options, corpus=corpus, way=way, goal=goal, seed=seed)
                    found["ratio"] = peers[-1]["train_seconds"] / found["seconds"]
                    ours.setdefault(way, []).append(found)
                    print(f"  {way}: {found['seconds']:.1f} s, validation "
                          f"{found['validation_accuracy']:.4f} of {goal:.4f}, "
                          f"test {found['accuracy']:.4f}", flush=True)  # fmt: skip
        return {"corpus": corpus, "peer": rival, "peers": peers, "ours": ours}

    return Job(f"train_{corpus}", (corpus,), (rival,), run)


def until(
    corpus: str, way: str, goal: float, seed: int, data: Path, rows: int | None
) -> dict[str, Any]:
    """Learn until validation accuracy reaches a goal, looking when the product itself looks.

    Seconds count all that precedes the first answer, tokenizer and vocabulary included; imports and
    the reading of the file are not counted, as they are not for the peers. The test rows are read
    after the clock has stopped.
    """
    import torch  # noqa: F401  # imports are not counted
    from quality import teach

    where = next(one for one in CORPORA if one.name == corpus)
    sides = read_corpus(where, data, rows)
    train, held = held_out(sides.train, sides.validation, seed)
    truth, wanted = sides.test.labels, held.labels
    if way == "wide":
        seconds, say = _linear(train, seed)
        validation = _right(say(held.texts), wanted)
    elif way == "quick":
        taught = teach(train, held, bool(sides.validation.texts), WAYS[way], seed)
        seconds, names = taught.train_seconds, taught.learned.model.labels
        validation = taught.learned.figures["validation_accuracy"]

        def say(texts: list[str]) -> list[str]:
            return [names[one] for one in taught.answer(texts).choice]
    else:
        seconds, validation, say = _network(corpus, train, held, goal, seed)
    return {
        "seconds": seconds, "validation_accuracy": validation, "reached": validation >= goal,
        "accuracy": _right(say(sides.test.texts), truth),
    }  # fmt: skip


def _right(said: list[str], truth: list[str]) -> float:
    return sum(one == other for one, other in zip(said, truth, strict=True)) / len(truth)


def _linear(train: Any, seed: int) -> tuple[float, Callable[[list[str]], list[str]]]:
    """The wide path alone."""
    import numpy as np
    import scipy.sparse  # noqa: F401
    import sklearn.svm  # noqa: F401

    from nightshift.cleaning import CleaningConfig, clean
    from nightshift.recipe import WideConfig
    from nightshift.wide import Wide

    config = CleaningConfig()
    started = time.perf_counter()
    names = sorted(set(train.labels))
    place = {name: index for index, name in enumerate(names)}
    labels = np.array([place[label] for label in train.labels], np.int64)
    texts = [clean(text, config) for text in train.texts]
    wide = Wide.fit(texts, labels, len(names), WideConfig(), None, seed)
    assert wide is not None
    seconds = time.perf_counter() - started

    def say(texts: list[str]) -> list[str]:
        found = wide.scores([clean(text, config) for text in texts])
        return [names[one] for one in found.argmax(1)]

    return seconds, say


def _network(
    corpus: str, train: Any, held: Any, goal: float, seed: int
) -> tuple[float, float, Callable[[list[str]], list[str]]]:
    """The recurrent path alone: no pretraining, no wide path, until the first epoch that is good
    enough, or the last."""
    from quality import material

    from nightshift.batches import Documents
    from nightshift.cleaning import clean
    from nightshift.inference import forward, pick_device
    from nightshift.learning import learn
    from nightshift.recipe import Recipe
    from nightshift.training import Epoch

    told = WAYS["recurrent"] | SHORTER.get(corpus, {})
    recipe = Recipe.model_validate({
        **told, "train": {**told["train"], "refit": False, "seed": seed}
    })  # fmt: skip
    started = time.perf_counter()
    given = material(train, held, False, recipe)
    best = (0.0, 0.0)
    epoch: Epoch | None = None
    for found in learn(given, recipe):
        if not isinstance(found, Epoch):
            continue
        epoch = found
        best = max(best, (found.validation_accuracy, time.perf_counter() - started))
        if found.validation_accuracy >= goal:
            break
    assert epoch is not None
    network = epoch.network

    def say(texts: list[str]) -> list[str]:
        cleaned = [clean(text, recipe.cleaning) for text in texts]
        ids = Documents.from_lists(given.tokenizer.encode(cleaned))
        cut = ids.cut(int(network.config.max_tokens), network.config.truncation)
        scores, _ = forward(network, cut, 16_384, pick_device("auto"))
        return [given.classes[one] for one in scores.argmax(1)]

    return best[1], best[0], say


def usual(options: argparse.Namespace) -> dict[str, Any]:
    """What a user would take instead: seconds and accuracy of every other peer."""
    found: dict[str, Any] = {}
    for corpus in ("thucnews", "banking77", "imdb"):
        names = ["svm_words", "fasttext", *(["trainer"] if corpus != "imdb" else [])]
        if (options.data / f"{corpus}.parquet").is_file():
            found[corpus] = {name: peer(name, corpus, options) for name in names}
    return {"corpora": found}


# --- steps, answers, tokens -----------------------------------------------------------------


def steps(data: Path, rows: int | None) -> dict[str, Any]:
    """A training step beside a bare recurrence; see gpu.py."""
    import torch
    from gpu import measure as beside

    return (
        beside(torch.device("cpu"), 1, ((16, 8),)) if rows else beside(torch.device("cpu"), ROUNDS)
    )


def answers(corpus: str, data: Path, rows: int | None) -> dict[str, Any]:
    """Texts to labels: our whole model, and the padded BiLSTM of peers.py, in turn.

    The BiLSTM's weights are drawn, not trained: they are as many, and as slow.
    """
    import torch
    from peers import Vocabulary, _forward, _text_rnn
    from quality import teach

    where = next(one for one in CORPORA if one.name == corpus)
    sides = read_corpus(where, data, rows)
    train, held = held_out(sides.train, sides.validation, 1)
    taught = teach(train, held, bool(sides.validation.texts), WAYS["quick"], 1)
    words, names = Vocabulary(train.texts, 10_000), sorted(set(train.labels))
    torch.manual_seed(1)
    network, texts = _text_rnn(len(words), len(names)), sides.test.texts

    def padded() -> list[str]:
        cut = (words.encode(text)[:32] for text in texts)
        ids = torch.tensor([one + [0] * (32 - len(one)) for one in cut])
        return [names[one] for one in _forward(network, ids).argmax(1).tolist()]

    ours, theirs = [], []
    for turn in range(1 + (1 if rows else ROUNDS)):
        for work, to in ((lambda: taught.answer(texts), ours), (padded, theirs)):
            started = time.perf_counter()
            work()
            if turn:  # the first warms up
                to.append(len(texts) / (time.perf_counter() - started))
    pairs = [{"ours": one, "peer": two} for one, two in zip(ours, theirs, strict=True)]
    return {"corpus": corpus, "unit": "documents/s", "pairs": pairs, "parts": _parts(taught, texts)}


def _parts(taught: Any, texts: list[str]) -> dict[str, float]:
    """Where the time of answering goes, in seconds."""
    from nightshift.bundle import BATCH_TOKENS
    from nightshift.cleaning import clean
    from nightshift.inference import forward, pick_device

    model, marks = taught.learned.model, [time.perf_counter()]
    cleaned = [clean(text, taught.recipe.cleaning) for text in texts]
    marks.append(time.perf_counter())
    documents = model.documents(cleaned).cut(int(model.config.max_tokens))
    marks.append(time.perf_counter())
    forward(model.network, documents, BATCH_TOKENS, pick_device("auto"))
    marks.append(time.perf_counter())
    model.wide.scores(cleaned)
    marks.append(time.perf_counter())
    names = ("cleaning", "tokens", "network", "wide path")
    return {name: b - a for name, (a, b) in zip(names, pairwise(marks), strict=True)}


def encoding(corpus: str, data: Path, rows: int | None) -> dict[str, Any]:
    """The documents table to the tokens table, beside the tokenizer's own batch call on texts that
    lie in memory; `with_ids` is that call with the ids read out of what it returns."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from tokenizers import Tokenizer as Base

    from nightshift.shards import Encode
    from nightshift.tables import SCHEMAS, Lake
    from nightshift.tokenizer import Tokenizer, TokenizerConfig
    from tasks.tokens import encoded_here

    texts = read_corpus(next(one for one in CORPORA if one.name == corpus), data, rows).train.texts
    tokenizer = Tokenizer.learn(iter(texts[:5000]), TokenizerConfig())
    bare = Base.from_str(tokenizer.serialized)
    with TemporaryDirectory(prefix="nightshift-speed-") as folder:
        lake = Lake(folder, "speed")
        documents = [{"doc_id": f"{row:032x}", "text": text} for row, text in enumerate(texts)]
        schema = SCHEMAS["documents"]
        table = pa.Table.from_pylist(documents, schema=schema)
        lake.replace("documents", "n1", table.to_batches(4096))

        def stored() -> None:
            made = encoded_here(lake, pc.field("night") == "n1", Encode(tokenizer, 200_000))
            lake.replace("tokens", "n1", (one["tokens"] for one in made))

        found: dict[str, list[float]] = {"ours": [], "peer": [], "with_ids": []}
        for turn in range(1 + (1 if rows else ROUNDS)):
            for name, work in (
                ("ours", stored),
                ("peer", lambda: bare.encode_batch_fast(texts, add_special_tokens=False)),
                ("with_ids", lambda: [one.ids for one in bare.encode_batch_fast(
                    texts, add_special_tokens=False)]),
            ):  # fmt: skip
                started = time.perf_counter()
                work()
                if turn:
                    found[name].append(len(texts) / (time.perf_counter() - started))
    rounds = zip(*found.values(), strict=True)
    pairs = [dict(zip(found, one, strict=True)) for one in rounds]
    return {"corpus": corpus, "unit": "documents/s", "pairs": pairs}


# --- commands -------------------------------------------------------------------------------


def commands(options: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds of `--help` and of `status` after one small night, in turn."""
    import pyarrow.parquet as pq

    with TemporaryDirectory(prefix="nightshift-speed-") as folder:
        where = next(one for one in CORPORA if one.name == "banking77")
        small = Path(folder) / "banking77.parquet"
        pq.write_table(pq.read_table(options.data / small.name).slice(0, 400), small)
        os.utime(small, (0, 0))  # a file of this minute would wait until it is settled
        config = declare(where, small, Path(folder))
        call = [str(NIGHTSHIFT), "run", where.name, "--night", "n1", "--config", str(config)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise JobError(done.stderr[-3000:])
        asked = {
            "help": [str(NIGHTSHIFT), "--help"],
            "status": [str(NIGHTSHIFT), "status", where.name, "--config", str(config)],
        }
        took: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(2 if options.rows else COMMANDS):
            for name, command in asked.items():
                started = time.perf_counter()
                subprocess.run(command, capture_output=True, check=True)
                took[name].append(time.perf_counter() - started)
    return {"commands": took, "median": {name: median(one) for name, one in took.items()}}


def _each_corpus(work: str, corpora: tuple[str, ...]) -> Callable[[Any], dict[str, Any]]:
    def run(options: argparse.Namespace) -> dict[str, Any]:
        return {"corpora": {one: own(work, options, corpus=one) for one in corpora}}

    return run


def _jobs() -> Iterator[Job]:
    # The short ones first: a run that is cut has most of the rows.
    yield Job("commands", ("banking77",), (), commands)
    yield Job("step", (), (), lambda options: own("steps", options))
    yield Job("tokens", ("thucnews", "imdb"), (), _each_corpus("encoding", ("thucnews", "imdb")))
    yield Job("classify", ("thucnews",), ("textrnn",), _each_corpus("answers", ("thucnews",)))
    yield training("banking77", "keras", 2, 2)
    yield Job("usual", (), ("svm_words", "fasttext", "trainer"), usual)
    yield training("thucnews", "textrnn", 1, 3)
    yield training("imdb", "keras", 1, 2)


JOBS = [*_jobs()]

if __name__ == "__main__":
    sys.exit(main())
