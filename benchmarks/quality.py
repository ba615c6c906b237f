"""How good: Nightshift's recipes beside their peers, over corpora and seeds.

    python benchmarks/quality.py --data DIR [--only 'main/*/svm_*'] [--jobs 2] [--seeds 1]
    python benchmarks/quality.py --plan
    python benchmarks/quality.py --page

A job is one recipe on one corpus with one seed, in a process of its own with one thread. Its
result is a file, results/quality/<table>/<corpus>/<recipe>-<seed>.json; a job with a file is not
run again, so a benchmark that was killed goes on where it stopped. A recipe that stands in several
tables runs once, under the first. Jobs of the first seed come first: every table is whole early.
quality.md and its pictures are made from the files. Exit code 1 where a job fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from corpora import CORPORA, RESULTS, add_data_option, busy_seconds, machine, table
from peers import PeerError, environment, held_out, read_corpus, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__)
NEEDED = ("accuracy", "macro_f1", "train_seconds", "train_cpu_seconds", "documents_per_second",
          "parameters", "test_rows")  # fmt: skip
"""What every job must tell."""

# --- the plan -------------------------------------------------------------------------------

Recipe = dict[str, Any] | str
"""What differs from Nightshift's default recipe, by the keys of recipe.py; or a peer's name."""

NIGHTSHIFT = "nightshift"
DEFAULT: Recipe = {}
SLOW = {"keras", "textrnn", "hmm"}
"""Peers of one seed."""
SAME = {("thucnews", "svm_characters")}
"""svm_words has characters only where the text is Chinese: nothing to add."""


@dataclass(frozen=True)
class Table:
    """Recipes to compare on some corpora; `recipes` by name, in the order of the page."""

    name: str
    about: str
    corpora: tuple[str, ...]
    recipes: dict[str, Recipe]


@dataclass(frozen=True)
class Job:
    """One recipe on one corpus with one seed; `table` is the first that has it."""

    table: str
    corpus: str
    name: str
    seed: int
    recipe: Recipe = field(hash=False)

    @property
    def path(self) -> str:
        """As `--only` matches it."""
        return f"{self.table}/{self.corpus}/{self.name}"

    def file(self, folder: Path) -> Path:
        """Where its result is."""
        return folder / "quality" / f"{self.path}-{self.seed}.json"


@dataclass(frozen=True)
class Goal:
    """What the mean test accuracy on a corpus must reach, by the key of the result."""

    corpus: str
    key: str
    floor: float


GOALS = [
    Goal("thucnews", "accuracy", 0.911),
    Goal("thucnews", "network_accuracy", 0.898),
    Goal("banking77", "accuracy", 0.922),
    Goal("banking77", "network_accuracy", 0.908),
    Goal("imdb", "accuracy", 0.904),
    Goal("imdb", "network_accuracy", 0.875),
    Goal("agnews_test", "accuracy", 0.882),
]

LINEAR = ("svm_words", "svm_characters")
ABLATED: dict[str, Recipe] = {
    "adam": {"train": {"optimizer": "adam"}},
    "nadam": {"train": {"optimizer": "nadam"}},
    "radam": {"train": {"optimizer": "radam"}},
    "rmsprop": {"train": {"optimizer": "rmsprop"}},
    # These two step by the gradient's own size: Adam's rate would leave them where they start.
    "adagrad": {"train": {"optimizer": "adagrad", "learning_rate": 0.03}},
    "sgd": {"train": {"optimizer": "sgd", "learning_rate": 0.1}},
    "range_test": {"train": {"learning_rate": "range_test"}},
    "cosine": {"train": {"schedule": "cosine"}},
    "plateau": {"train": {"schedule": "plateau"}},
    "constant": {"train": {"schedule": "constant"}},
    "layer_decay": {"train": {"layer_decay": 0.8}},
    "no_weight_decay": {"train": {"weight_decay": 0.0}},
    "l1": {"train": {"l1": 1e-6}},
    "no_label_smoothing": {"train": {"label_smoothing": 0.0}},
    "confidence_penalty": {"train": {"label_smoothing": 0.0, "confidence_penalty": 0.1}},
    "activation": {"train": {"activation": 1.0}},
    "temporal": {"train": {"temporal": 1.0}},
    "ema": {"train": {"averaging": "ema"}},
    "swa": {"train": {"averaging": "swa"}},
    "mixup": {"train": {"mixup": 0.2}},
    "deletion": {"train": {"deletion": 0.1}},
    "swap": {"train": {"swap": 0.1}},
    "synonym": {"train": {"synonym": 0.1}},
    "class_weights": {"train": {"class_weights": "balanced"}},
    "no_dropout": {"model": {"dropout": 0.0}},
    "state_dropout": {"model": {"state_dropout": 0.2}},
    "weight_dropout": {"model": {"weight_dropout": 0.2}},
    "no_word_dropout": {"model": {"word_dropout": 0.0}},
    "two_layers": {"model": {"layers": 2}},
    "forwards_only": {"model": {"bidirectional": False}},
    "attention": {"model": {"pooling": ["attention"]}},
    "max": {"model": {"pooling": ["max"]}},
    "mean": {"model": {"pooling": ["mean"]}},
    "last": {"model": {"pooling": ["last"]}},
    "corpus_vectors": {"model": {"embeddings": "corpus"}},
    "frozen_corpus_vectors": {"model": {"embeddings": "corpus", "freeze_embeddings": True}},
    "no_pretraining": {"pretrain": {"objective": "none"}},
    "quick": {"train": {"preset": "quick"}},
}

TABLES = [
    Table(
        "main",
        "One default recipe for all corpora, and what a user would take instead.",
        tuple(one.name for one in CORPORA),
        {NIGHTSHIFT: DEFAULT, **{name: name for name in (*LINEAR, "fasttext", "keras", "textrnn")}},
    ),
    Table(
        "family",
        "The default recipe with each encoder, and a hidden Markov model per class, for history.",
        ("thucnews",),
        {
            "lstm": DEFAULT,
            **{
                name: {"model": {"encoder": name}}
                for name in ("gru", "rnn", "mingru", "minlstm", "transformer", "tdnn")
            },
            "hmm": "hmm",
        },
    ),
    Table(
        "ablation",
        "The default recipe with one thing changed.",
        ("banking77", "thucnews"),
        {"default": DEFAULT, **ABLATED},
    ),
    Table(
        "padding",
        "Documents of like length together, or all to one length, behind or before the text.",
        ("banking77", "thucnews"),
        {
            "bucket": DEFAULT,
            "post": {"model": {"padding": "post"}},
            "pre": {"model": {"padding": "pre"}},
        },
    ),
    Table(
        "pretraining",
        "What the network learns from the text before any label; the default is the next token.",
        ("banking77", "thucnews", "imdb"),
        {
            "next_token": DEFAULT,
            "none": {"pretrain": {"objective": "none"}},
            "denoise": {"pretrain": {"objective": "denoise"}},
            "contrastive": {"pretrain": {"objective": "contrastive"}},
        },
    ),
]


def plan(seeds: int) -> list[Job]:
    """Every job once, those of the first seed first."""
    found = {
        job: None
        for where in TABLES
        for corpus in where.corpora
        for name in where.recipes
        for job in jobs_of(where, corpus, name, seeds)
    }
    return sorted(found, key=lambda job: job.seed)


def jobs_of(where: Table, corpus: str, name: str, seeds: int = 3) -> list[Job]:
    """The jobs behind one cell of a table, one per seed; none where there is nothing to run."""
    recipe = where.recipes[name]
    if (corpus, recipe) in [*SAME]:
        return []
    home = next(
        (one.name, other)
        for one in TABLES
        for other, its in one.recipes.items()
        if its == recipe and corpus in one.corpora
    )
    count = 1 if recipe in [*SLOW] else seeds
    return [Job(home[0], corpus, home[1], seed, recipe) for seed in range(1, count + 1)]


# --- one job --------------------------------------------------------------------------------


def nightshift_job(corpus: str, overrides: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train Nightshift's recipe with some keys changed, then read the test rows once.

    The corpora lie in the folder NIGHTSHIFT_DATA; `peers.read_corpus` gives the rows that every
    peer sees. `seed` goes where `train.seed` goes.

    Args: overrides by the keys of recipe.py, such as {"model": {"encoder": "gru"}}.
    Returns: accuracy, macro_f1 (test, of the blend); network_accuracy, wide_accuracy (test, each
    path alone); validation_accuracy; weight (of the network in the blend); calibration_error;
    train_seconds, train_cpu_seconds (all that precedes the first answer); seconds by part;
    documents_per_second (of the test rows, by CPU time); parameters; threads; train_rows;
    test_rows; note.
    """
    import numpy as np
    import torch

    from nightshift.batches import Documents
    from nightshift.cleaning import clean
    from nightshift.learning import Learned, Material, Side, learn
    from nightshift.recipe import Recipe
    from nightshift.scoring import calibration_error
    from nightshift.tokenizer import Tokenizer, TokenizerConfig

    where = next(one for one in CORPORA if one.name == corpus)
    sides = read_corpus(where, Path(os.environ["NIGHTSHIFT_DATA"]))
    train, held = held_out(sides.train, sides.validation, seed)
    changed = {**overrides, "train": {**overrides.get("train", {}), "seed": seed}}
    config = TokenizerConfig.model_validate(changed.pop("tokenizer", {}))
    recipe = Recipe.model_validate(changed)
    classes = sorted(set(train.labels))
    place = {name: index for index, name in enumerate(classes)}
    wall, cpu = time.perf_counter(), time.process_time()
    texts = [[clean(text, recipe.cleaning) for text in side.texts] for side in (train, held)]
    tokenizer = Tokenizer.learn((text for side in texts for text in side), config)

    def side(given: list[str], labels: list[str]) -> Side:
        numbers = np.array([place[label] for label in labels], np.int64)
        return Side(Documents.from_lists(tokenizer.encode(given)).labelled(numbers), given)

    material = Material(
        tokenizer, classes, side(texts[0], train.labels), side(texts[1], held.labels),
        Documents.from_lists(tokenizer.encode([*texts[0], *texts[1]])),
        held_out=not sides.validation.texts,
    )  # fmt: skip
    *_, learned = learn(material, recipe)
    assert isinstance(learned, Learned)
    took = {
        "train_seconds": time.perf_counter() - wall,
        "train_cpu_seconds": time.process_time() - cpu,
    }
    asked = [clean(text, recipe.cleaning) for text in sides.test.texts]
    cpu = time.process_time()
    said = learned.model.answer(Documents.from_lists(tokenizer.encode(asked)), asked)
    answering = time.process_time() - cpu
    truth = np.array([place.get(label, -1) for label in sides.test.labels])
    assert said.probabilities is not None
    right = said.choice == truth
    figures = learned.figures
    return {
        "accuracy": float(right.mean()),
        "macro_f1": scores(sides.test.labels, [classes[one] for one in said.choice])[1],
        "network_accuracy": _share(said.network, truth),
        "wide_accuracy": _share(said.wide, truth),
        "validation_accuracy": figures["validation_accuracy"],
        "weight": figures["network_weight"],
        "calibration_error": calibration_error(
            said.probabilities[np.arange(len(truth)), said.choice], right
        ),
        **took,
        "seconds": {key: value for key, value in figures.items() if key.endswith("_seconds")},
        "documents_per_second": len(truth) / answering,
        "parameters": int(figures["parameters"]),
        "threads": torch.get_num_threads(),
        "train_rows": len(train.labels),
        "test_rows": len(truth),
        "note": "; ".join(learned.notes),
    }


def _share(probabilities: Any, truth: Any) -> float | None:
    """Accuracy of one path alone; None where there is none."""
    return None if probabilities is None else float((probabilities.argmax(1) == truth).mean())


def _run_one(recipe: Path, to: Path | None) -> int:
    """What the process of a Nightshift job does."""
    said = json.loads(recipe.read_text(encoding="utf-8"))
    found = nightshift_job(said["corpus"], said["overrides"], said["seed"])
    text = json.dumps(found, ensure_ascii=False)
    to.write_text(text, encoding="utf-8") if to else print(text)
    return 0


@dataclass(frozen=True)
class Running:
    """A job's process; its result and its last words lie in a folder of its own."""

    job: Job
    process: subprocess.Popen[bytes]
    folder: TemporaryDirectory[str]
    began: float
    busy_before: float


def run(jobs: list[Job], side_by_side: int, data: Path, out: Path) -> list[Job]:
    """Run jobs until none is left, some at a time; the jobs that failed come back.

    Each job's wall and CPU seconds are kept beside what it tells, and the CPU seconds that the
    rest of the machine took meanwhile, the other jobs included.
    """
    waiting, running, failed = list(jobs), list[Running](), list[Job]()
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                running.append(_start(waiting.pop(0), data))
            time.sleep(0.1)
            for one, cpu_seconds in _ended(running):
                if not _finish(one, cpu_seconds, out):
                    failed.append(one.job)
                print(f"{len(waiting) + len(running)} jobs are left", flush=True)
    finally:
        for one in running:
            one.process.terminate()
            one.process.wait()
    return failed


def _ended(running: list[Running]) -> Iterator[tuple[Running, float]]:
    """Take out those that ended, with the CPU seconds they and their children took."""
    for one in list(running):
        # Not process.poll(): only this tells the CPU seconds of this one process.
        pid, state, usage = os.wait4(one.process.pid, os.WNOHANG)
        if pid:
            running.remove(one)
            one.process.returncode = os.waitstatus_to_exitcode(state)
            yield one, usage.ru_utime + usage.ru_stime


def _start(job: Job, data: Path) -> Running:
    folder = TemporaryDirectory(prefix="nightshift-quality-")
    result, words = (Path(folder.name) / name for name in ("result.json", "stderr.txt"))
    if isinstance(job.recipe, str):
        command = ["peers.py", job.recipe, "--corpus", job.corpus, "--seed", str(job.seed)]
    else:
        recipe = Path(folder.name) / "recipe.json"
        said = {"corpus": job.corpus, "overrides": job.recipe, "seed": job.seed}
        recipe.write_text(json.dumps(said), encoding="utf-8")
        command = ["quality.py", "--run", str(recipe)]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    told = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "NIGHTSHIFT_DATA": str(data)}
    with words.open("wb") as to:
        process = subprocess.Popen(
            [sys.executable, str(HERE.with_name(command[0])), *command[1:], "--json", str(result)],
            env=os.environ | told, stdout=to, stderr=to,
        )  # fmt: skip
    return Running(job, process, folder, time.time(), busy_seconds())


def _finish(done: Running, cpu_seconds: float, out: Path) -> bool:
    """Keep the result of a process that ended; False where it has none."""
    job, wall = done.job, time.time() - done.began
    with done.folder as folder:
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
        lacks = [key for key in NEEDED if key not in found]
        if done.process.returncode or lacks:
            words = (Path(folder) / "stderr.txt").read_text(encoding="utf-8", errors="replace")
            print(
                f"{job.path}-{job.seed}: failed, exit code {done.process.returncode}; its result "
                f"lacks {', '.join(lacks) or 'nothing'}.\n{words[-3000:]}",
                file=sys.stderr,
            )
            return False
    others = max(0.0, busy_seconds() - done.busy_before - cpu_seconds)
    row = {
        **found, "corpus": job.corpus, "recipe": job.recipe, "seed": job.seed,
        "wall_seconds": round(wall, 2), "cpu_seconds": round(cpu_seconds, 2),
        "others_cpu_seconds": round(others, 2), "machine": machine(),
        "day": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    _write(job.file(out), json.dumps(row, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    print(f"{job.path}-{job.seed}: accuracy {row['accuracy']:.4f}, {wall:.0f} s", flush=True)
    return True


def _write(file: Path, text: str) -> None:
    """Whole or not at all: half a file would count as a job that is done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


# --- the command ----------------------------------------------------------------------------


def main() -> int:
    options = _options()
    if options.run:
        return _run_one(options.run, options.json)
    if options.page:
        return write_page(options.out)
    jobs = [job for job in plan(options.seeds) if _wanted(job, options.only)]
    if not jobs:
        print(f"--only: found no job like {', '.join(options.only)}, expected TABLE/CORPUS/RECIPE "
              "with * for any. --plan lists them.", file=sys.stderr)  # fmt: skip
        return 2
    todo = [job for job in jobs if not job.file(options.out).exists()]
    if options.plan:
        for job in jobs:
            print(f"{job.path}-{job.seed}: {'not run' if job in todo else 'done'}")
        return 0
    todo = _with_data(todo, options.data)
    if misfits := _misfits(todo):
        print("\n".join(misfits), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        # Before the clocks: a peer's environment may take minutes to install.
        for peer in {job.recipe for job in todo if isinstance(job.recipe, str)}:
            environment(peer)
        failed = run(todo, options.jobs, options.data.resolve(), options.out)
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
    if not {"--page", "--plan", "--run"} & {*sys.argv}:
        add_data_option(parser)
    parser.add_argument("--only", action="append", default=[], metavar="TABLE/CORPUS/RECIPE",
                        help="jobs like this, * for any; may be given several times")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--seeds", type=int, default=3, help="at most so many")
    parser.add_argument("--plan", action="store_true", help="only list the jobs")
    parser.add_argument("--page", action="store_true", help="only make the page and pictures")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--run", type=Path, metavar="FILE",
                        help="only this job: a JSON file of corpus, overrides, seed")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="where its result goes")
    return parser.parse_args()


def _wanted(job: Job, globs: list[str]) -> bool:
    return not globs or any(fnmatch(job.path, glob) for glob in globs)


def _with_data(jobs: list[Job], data: Path) -> list[Job]:
    lost = {job.corpus for job in jobs if not (data / f"{job.corpus}.parquet").is_file()}
    for name in sorted(lost):
        print(f"{name}: skipped, found no {name}.parquet in {data}")
    return [job for job in jobs if job.corpus not in lost]


def _misfits(jobs: list[Job]) -> list[str]:
    """What recipe.py does not take, found before the first hour is spent."""
    from pydantic import ValidationError

    from nightshift.recipe import Recipe as Declared

    said: list[str] = []
    for job in [one for one in jobs if isinstance(one.recipe, dict) and one.seed == 1]:
        try:
            Declared.model_validate(job.recipe)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            said.append(f"{job.path}: {key}: {first['msg']}; see recipe.py, and correct TABLES.")
    return said


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# --- results --------------------------------------------------------------------------------

NOT_RUN = "not run"


@dataclass(frozen=True)
class Results:
    """The result files under a folder."""

    folder: Path

    def rows(self, where: Table, corpus: str, name: str) -> list[dict[str, Any]]:
        """The results of one cell, one per seed that has run."""
        files = (job.file(self.folder) for job in jobs_of(where, corpus, name))
        return [json.loads(one.read_text(encoding="utf-8")) for one in files if one.exists()]

    def all(self) -> list[dict[str, Any]]:
        """Every result that is in the plan."""
        files = (job.file(self.folder) for job in plan(3))
        return [json.loads(one.read_text(encoding="utf-8")) for one in files if one.exists()]


def values(rows: list[dict[str, Any]], key: str) -> list[float]:
    """A figure over the seeds, without those that do not tell it."""
    return [row[key] for row in rows if row.get(key) is not None]


def figure(rows: list[dict[str, Any]], key: str, form: str = ".4f") -> str:
    """Mean ± standard deviation over the seeds; the mean alone of one seed."""
    found = values(rows, key)
    if not found:
        return NOT_RUN if not rows else "-"
    spread = f" ± {stdev(found):{form}}" if len(found) > 1 else ""
    return f"{mean(found):{form}}{spread}"


def standard_error(accuracy: float, test_rows: int) -> float:
    """Of a test accuracy, for the rows that happened to be drawn: sqrt(p (1 - p) / n)."""
    return (accuracy * (1 - accuracy) / test_rows) ** 0.5


def verdict(found: list[float], floor: float) -> str:
    """Whether the mean over the seeds reaches a floor."""
    return NOT_RUN if not found else "holds" if mean(found) >= floor else "MISSED"


# --- the page -------------------------------------------------------------------------------


def write_page(out: Path) -> int:
    """quality.md and its pictures, from the result files."""
    results = Results(out)
    _write(out / "quality.md", page(results))
    draw(results, out / "quality")
    print(f"{out / 'quality.md'}: {len(results.all())} of {len(plan(3))} jobs have run")
    return 0


def page(results: Results) -> str:
    """The results as Markdown."""
    done = results.all()
    return "\n".join([
        "# How good", "",
        "`python benchmarks/quality.py --data DIR`. Means over three seeds ± their standard",
        f"deviation; {', '.join(sorted(SLOW))}: one seed. A seed changes the training only, never",
        "the test rows. Everything is chosen on validation rows; each job reads the test rows",
        f"once, at its end. {len(done)} of {len(plan(3))} jobs have run.", "",
        *(f"- {key}: {said}" for key in ("machine", "day")
          for said in sorted({row[key] for row in done})),
        "", "## Goals", "", *_goals(results), "",
        "Beside the better linear model, less than one standard error of the test rows below it:",
        "", *_beside_linear(results), "",
        "## All corpora: test accuracy", "", TABLES[0].about, "", *_matrix(results), "",
        "![Test accuracy by corpus](quality/main.svg)", "",
        "## The two paths of the default recipe", "", *_paths(results),
        *(line for where in TABLES for line in _section(where, results)),
    ])  # fmt: skip


def _goals(results: Results) -> list[str]:
    said = {"accuracy": "blend", "network_accuracy": "network alone"}
    return table(
        ["corpus", "of", "goal", "mean", "seeds", "verdict"],
        [
            [goal.corpus, said[goal.key], f"{goal.floor:.3f}", figure(rows, goal.key),
             str(len(rows)),
             verdict(values(rows, goal.key), goal.floor)]
            for goal in GOALS
            for rows in [results.rows(TABLES[0], goal.corpus, NIGHTSHIFT)]
        ],
    )  # fmt: skip


def _beside_linear(results: Results) -> list[str]:
    lines = []
    for corpus in TABLES[0].corpora:
        peers = [results.rows(TABLES[0], corpus, name) for name in LINEAR]
        best = max((rows for rows in peers if rows), key=lambda one: mean(values(one, "accuracy")),
                   default=[])  # fmt: skip
        own = results.rows(TABLES[0], corpus, NIGHTSHIFT)
        said = [figure(best, "accuracy"), NOT_RUN, figure(own, "accuracy"), NOT_RUN]
        if best:
            accuracy = mean(values(best, "accuracy"))
            error = standard_error(accuracy, best[0]["test_rows"])
            said[1], said[3] = f"{error:.4f}", verdict(values(own, "accuracy"), accuracy - error)
        lines.append([corpus, *said])
    return table(["corpus", "linear", "standard error", "blend", "verdict"], lines)


def _matrix(results: Results) -> list[str]:
    where = TABLES[0]
    return table(
        ["recipe", *where.corpora],
        [
            [name, *(_cell(results, where, corpus, name) for corpus in where.corpora)]
            for name in where.recipes
        ],
    )


def _cell(results: Results, where: Table, corpus: str, name: str) -> str:
    if (corpus, name) in SAME:
        return "as svm_words"
    return figure(results.rows(where, corpus, name), "accuracy")


def _paths(results: Results) -> list[str]:
    keys = ("accuracy", "network_accuracy", "wide_accuracy", "validation_accuracy", "weight",
            "calibration_error")  # fmt: skip
    return table(
        ["corpus", "blend", "network", "wide", "blend, validation", "weight of the network",
         "calibration error"],
        [
            [corpus, *(figure(results.rows(TABLES[0], corpus, NIGHTSHIFT), key) for key in keys)]
            for corpus in TABLES[0].corpora
        ],
    )  # fmt: skip


def _section(where: Table, results: Results) -> Iterator[str]:
    """All figures of a table, corpus by corpus."""
    yield from ("", f"## {where.name.capitalize()}: all figures", "", where.about, "")
    yield "Seconds are CPU seconds, of training and of the whole process; documents/s are answers"
    yield "per CPU second. With one thread a quiet machine takes as long by the clock."
    if where.name in ("ablation", "family"):
        yield from ("", f"![{where.about}](quality/{where.name}.svg)")
    for corpus in where.corpora:
        yield from ("", f"### {where.name}: {corpus}", "")
        yield from table(
            ["recipe", "accuracy", "network alone", "macro-F1", "validation", "training s", "all s",
             "documents/s", "parameters", "seeds"],
            [_line(name, results.rows(where, corpus, name)) for name in where.recipes
             if (corpus, name) not in SAME],
        )  # fmt: skip
    yield ""


def _line(name: str, rows: list[dict[str, Any]]) -> list[str]:
    keys = ("accuracy", "network_accuracy", "macro_f1", "validation_accuracy")
    return [
        name, *(figure(rows, key) for key in keys), figure(rows, "train_cpu_seconds", ".1f"),
        *(_mean(rows, key) for key in ("cpu_seconds", "documents_per_second", "parameters")),
        str(len(rows)),
    ]  # fmt: skip


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    return f"{mean(values(rows, key)):,.0f}" if rows else NOT_RUN


# --- pictures -------------------------------------------------------------------------------


def draw(results: Results, folder: Path) -> None:
    """The pictures of the page, each as SVG and PNG; what has not run leaves a gap."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results make the same bytes, or each page would be a change to commit.
    mpl.rcParams |= {"svg.hashsalt": "nightshift", "font.size": 9, "axes.spines.top": False,
                     "axes.spines.right": False}  # fmt: skip
    drawn = {
        "main": bars(results, TABLES[0]),
        "family": against_seconds(results, TABLES[1]),
        "ablation": dots(results, TABLES[2]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        picture.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")


def bars(results: Results, where: Table) -> Figure:
    """Test accuracy of every recipe, a group per corpus; whiskers are standard deviations."""
    from matplotlib.figure import Figure as New

    from nightshift.pictures import PALETTE

    picture = New(figsize=(10, 4))
    axes = picture.add_subplot()
    width = 0.8 / len(where.recipes)
    for number, (name, colour) in enumerate(zip(where.recipes, PALETTE, strict=False)):
        found = [
            (place + (number + 0.5) * width - 0.4, *_spread(rows, "accuracy"))
            for place, corpus in enumerate(where.corpora)
            if (rows := results.rows(where, corpus, name))
        ]
        x, means, spreads = zip(*found, strict=True) if found else ((), (), ())
        axes.bar(x, means, 0.9 * width, yerr=spreads, color=colour, capsize=1.5, label=name)
    axes.set(ylabel="test accuracy (not from 0)", ylim=_room(axes.patches))
    axes.set_xticks(range(len(where.corpora)), where.corpora)
    axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return picture


def _room(patches: Iterable[Any]) -> tuple[float, float]:
    """Limits that show differences; accuracies far from 0 would else be bars of one height."""
    heights = [one.get_height() for one in patches] or [0.0]
    return max(0.0, min(heights) - 0.05), min(1.0, max(heights) + 0.02)


def _spread(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    found = values(rows, key)
    # No whisker, rather than one of length 0.
    return mean(found), stdev(found) if len(found) > 1 else float("nan")


def dots(results: Results, where: Table) -> Figure:
    """Accuracy of the blend and of the network alone per option, beside those of the default."""
    from matplotlib.figure import Figure as New

    from nightshift.pictures import PALETTE

    names = [*reversed(where.recipes)]
    picture = New(figsize=(10, 0.22 * len(names) + 1))
    every = picture.subplots(1, len(where.corpora), sharey=True)
    for axes, corpus in zip(every, where.corpora, strict=True):
        for key, colour in (("accuracy", PALETTE[0]), ("network_accuracy", PALETTE[1])):
            _dots(axes, results, where, corpus, names, key, colour)
        axes.set(title=corpus, xlabel="test accuracy")
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", alpha=0.3)
    every[0].legend(
        handles=[*_keys(every[0])], loc="lower left", bbox_to_anchor=(0, 1.04), frameon=False
    )
    return picture


def _dots(axes: Axes, results: Results, where: Table, corpus: str, names: list[str], key: str,
          colour: str) -> None:  # fmt: skip
    said = "blend" if key == "accuracy" else "network alone"
    for place, name in enumerate(names):
        if found := values(rows := results.rows(where, corpus, name), key):
            axes.errorbar(mean(found), place, xerr=_spread(rows, key)[1], fmt="o", color=colour,
                          markersize=4, label=said)  # fmt: skip
            if name == "default":
                axes.axvline(mean(found), color=colour, linewidth=0.8, linestyle=":")


def _keys(axes: Axes) -> Iterable[Any]:
    """One entry of the legend per name."""
    handles, said = axes.get_legend_handles_labels()
    return {name: one for one, name in zip(handles, said, strict=True)}.values()


def against_seconds(results: Results, where: Table) -> Figure:
    """Accuracy of the network alone against the seconds of its training."""
    from matplotlib.figure import Figure as New

    from nightshift.pictures import PALETTE

    picture = New(figsize=(6, 4))
    axes = picture.add_subplot()
    for number, name in enumerate(where.recipes):
        rows = results.rows(where, where.corpora[0], name)
        key = "accuracy" if name in SLOW else "network_accuracy"
        if not values(rows, key):
            continue
        high, spread = _spread(rows, key)
        wide, sideways = _spread(rows, "train_cpu_seconds")
        axes.errorbar(wide, high, yerr=spread, xerr=sideways, fmt="o",
                      color=PALETTE[number % len(PALETTE)])  # fmt: skip
        axes.annotate(name, (wide, high), xytext=(6, 4), textcoords="offset points")
    axes.set(xlabel="CPU seconds of training", ylabel="test accuracy of the network alone")
    axes.set_title(where.corpora[0])
    axes.grid(alpha=0.3)
    return picture


if __name__ == "__main__":
    sys.exit(main())
