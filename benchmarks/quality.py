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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from corpora import CORPORA, RESULTS, add_data_option, busy_seconds, machine
from peers import PeerError, Rows, environment, held_out, read_corpus, scores
from quality_page import write_page, write_whole
from quality_plan import Job, plan

if TYPE_CHECKING:
    from nightshift.bundle import Answers
    from nightshift.learning import Learned, Material
    from nightshift.recipe import Recipe as Declared
    from nightshift.tokenizer import TokenizerConfig

HERE = Path(__file__)
NEEDED = ("accuracy", "macro_f1", "train_seconds", "train_cpu_seconds", "documents_per_second",
          "parameters", "test_rows")  # fmt: skip
"""What every job must tell."""

# --- one job --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught:
    """What was learned from a corpus, and what all of it took before the first answer."""

    learned: Learned
    recipe: Declared
    train_seconds: float
    train_cpu_seconds: float

    def answer(self, texts: list[str]) -> Answers:
        """The answers to texts as they stand in the corpus."""
        from nightshift.cleaning import clean

        model = self.learned.model
        asked = [clean(text, self.recipe.cleaning) for text in texts]
        return model.answer(model.documents(asked), asked)


def teach(train: Rows, held: Rows, declared: bool, overrides: dict[str, Any], seed: int) -> Taught:
    """Learn Nightshift's recipe with some keys changed, all of it by the night's own code.

    Args: training and validation rows; whether the corpus declares who is which; overrides by the
    keys of recipe.py, such as {"model": {"encoder": "gru"}}; `seed` goes where `train.seed` goes.
    """
    from nightshift.learning import Learned, learn
    from nightshift.recipe import Recipe
    from nightshift.tokenizer import TokenizerConfig

    changed = {**overrides, "train": {**overrides.get("train", {}), "seed": seed}}
    config = TokenizerConfig.model_validate(changed.pop("tokenizer", {}))
    recipe = Recipe.model_validate(changed)
    wall, cpu = time.perf_counter(), time.process_time()
    *_, learned = learn(material(train, held, declared, recipe, config), recipe)
    assert isinstance(learned, Learned)
    return Taught(learned, recipe, time.perf_counter() - wall, time.process_time() - cpu)


def material(
    train: Rows, held: Rows, declared: bool, recipe: Declared, config: TokenizerConfig | None = None
) -> Material:
    """What `learn` takes: rows cleaned and encoded by a tokenizer that is learned from them."""
    import numpy as np

    from nightshift.batches import Documents
    from nightshift.cleaning import clean
    from nightshift.learning import Material, Side
    from nightshift.tokenizer import Tokenizer, TokenizerConfig

    classes = sorted(set(train.labels))
    place = {name: index for index, name in enumerate(classes)}
    texts = [[clean(text, recipe.cleaning) for text in side.texts] for side in (train, held)]
    tokenizer = Tokenizer.learn(
        (text for side in texts for text in side), config or TokenizerConfig()
    )

    def side(given: list[str], labels: list[str]) -> Side:
        numbers = np.array([place[label] for label in labels], np.int64)
        return Side(Documents.from_lists(tokenizer.encode(given)).labelled(numbers), given)

    taught, asked = side(texts[0], train.labels), side(texts[1], held.labels)
    # Once encoded, as in a night, where pretraining reads the same tokens table.
    text = taught.documents.join(asked.documents)
    return Material(tokenizer, classes, taught, asked, text, held_out=not declared)


def nightshift_job(corpus: str, overrides: dict[str, Any], seed: int) -> dict[str, Any]:
    """Teach, then read the test rows once.

    The corpora lie in the folder NIGHTSHIFT_DATA; `peers.read_corpus` gives the rows that every
    peer sees.

    Returns: accuracy, macro_f1 (test, of the blend); network_accuracy, wide_accuracy (test, each
    path alone); validation_accuracy; weight (of the network in the blend); calibration_error;
    train_seconds, train_cpu_seconds (all that precedes the first answer); seconds by part;
    documents_per_second (of the test rows, by CPU time); parameters; threads; train_rows;
    test_rows; note.
    """
    import numpy as np
    import torch

    from nightshift.scoring import calibration_error

    where = next(one for one in CORPORA if one.name == corpus)
    sides = read_corpus(where, Path(os.environ["NIGHTSHIFT_DATA"]))
    train, held = held_out(sides.train, sides.validation, seed)
    taught = teach(train, held, bool(sides.validation.texts), overrides, seed)
    cpu = time.process_time()
    said = taught.answer(sides.test.texts)
    answering = time.process_time() - cpu
    classes, figures = taught.learned.model.labels, taught.learned.figures
    place = {name: index for index, name in enumerate(classes)}
    truth = np.array([place.get(label, -1) for label in sides.test.labels])
    assert said.probabilities is not None
    right = said.choice == truth
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
        "train_seconds": taught.train_seconds,
        "train_cpu_seconds": taught.train_cpu_seconds,
        "seconds": {key: value for key, value in figures.items() if key.endswith("_seconds")},
        "documents_per_second": len(truth) / answering,
        "parameters": int(figures["parameters"]),
        "threads": torch.get_num_threads(),
        "train_rows": len(train.labels),
        "test_rows": len(truth),
        "note": "; ".join(taught.learned.notes),
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
    write_whole(job.file(out), json.dumps(row, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    print(f"{job.path}-{job.seed}: accuracy {row['accuracy']:.4f}, {wall:.0f} s", flush=True)
    return True


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


if __name__ == "__main__":
    sys.exit(main())
