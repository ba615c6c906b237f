"""Tuning: many recipes are tried on the train and validation rows, and the best is told as YAML.

One process, this one, talks to Optuna and MLflow. It hands recipes to processes of `tasks.trial`
and hears from them epoch by epoch, so that a process may die at any moment without leaving anything
half written. What has been tried stands in Optuna's SQLite file: the same command goes on from it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import signal
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
import pyarrow.compute as pc
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from nightshift.corpus import Labelled, labelled_sides, tokens_of
from nightshift.errors import BusyError, NightError
from nightshift.pictures import Tried, search_picture
from nightshift.pipeline import Pipeline, Settings
from nightshift.recipe import PREFIX, UNTUNED, Range, Recipe, TuneConfig, is_whole, resolve
from nightshift.tables import Lake, digest_of
from tasks.tracking import STUDY_TAG, Tracking, open_run, run_of_study
from tasks.trial import Exam, Score, Step, Trouble, changed, serve

log = logging.getLogger(__name__)

Space = dict[str, list[Any] | Range]
Values = dict[str, Any]

UNJUDGED_TRIALS = 5
"""Trials that are finished before one is pruned for lagging behind the median."""
UNJUDGED_EPOCHS = 1
"""First epochs in which nothing is pruned: the learning rate still rises."""
TRIES = 3
"""Deaths of its process after which a trial is given up."""
TROUBLES = 5
"""Failures and deaths in a row that are no longer one trial's fault."""
FEW_ROWS = 200
"""Fewer validation rows than this decide little: one answer of 200 is half a point."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Tuned:
    """What a tuning found."""

    best: int
    score: float
    declared: float | None
    """Score of the declared recipe; None where it lies outside the space, or failed."""
    trials: int
    yaml: str
    """The changed keys, to paste under the pipeline; empty where the declared recipe is best."""
    snippet: Path
    picture: Path
    run: str
    text: str
    """All of it, for a terminal."""


@dataclass
class Worker:
    """A process, and the trial it is at."""

    process: SpawnProcess
    pipe: Connection
    trial: optuna.Trial | None = None
    run: str = ""


def tune(
    settings: Settings,
    name: str,
    trials: int | None = None,
    processes: int | None = None,
    restart: bool = False,
) -> Tuned:
    """Try recipes until so many are tried, in this call and in those before it.

    Args: numbers that stand above those of `tune` in the file; `restart` forgets earlier trials.
    Raises: NightError before the first night, or when nothing can be learned; BusyError while
    another process tunes the same pipeline.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pipeline = settings.pipeline(name)
    given = {"trials": trials, "processes": processes}
    config = pipeline.tune.model_copy(update={k: v for k, v in given.items() if v is not None})
    folder = Path(settings.reports) / "tuning"
    with _alone(folder, name):
        lake = Lake(settings.lake, name, settings.storage_options())
        exam, declared, space = _prepared(settings, name, pipeline, lake)
        study = _study(folder / f"{name}.db", name, exam, space, declared, restart)
        tracking = _tracking(settings, name, study, exam, space)
        search = Search(study, exam, space, declared, config, tracking)
        search.announce()
        try:
            search.work()
            found = _told(search, folder, name)
        except BaseException as error:
            tracking.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracking.finish("FINISHED")
        return found


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise BusyError(
                f"tune: {name} is being tuned already ({handle.read().strip()}). Wait for it, or "
                "stop it: what it has tried is kept."
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


# --- what is tried --------------------------------------------------------------------------


def _prepared(
    settings: Settings, name: str, pipeline: Pipeline, lake: Lake
) -> tuple[Exam, Values, Space]:
    """What all trials share, the declared values of what is tried, and the space."""
    tokenizer, sides = _corpus(lake, name)
    recipe = Recipe(**{part: getattr(pipeline, part) for part in Recipe.model_fields})
    pretrain, documents = recipe.pretrain.model_copy(update={"objective": "none"}), 0
    if any(key.startswith("pretrain.") for key in pipeline.tune.space):
        pretrain = _widest(recipe, pipeline.tune.space)
        documents = lake.read("documents", ["doc_id"], pc.field("split") != "test").num_rows
    else:
        recipe = recipe.model_copy(update={"pretrain": pretrain})
    lengths = tokens_of(lake, tokenizer, sides["train"].doc_ids).lengths
    p50, p95 = (int(one) for one in np.percentile(lengths, [50, 95]))
    model, train, pre = resolve(
        recipe.model, recipe.train, recipe.pretrain, len(lengths), documents, p50, p95
    )
    resolved = recipe.model_copy(update={"model": model, "train": train, "pretrain": pre})
    space = dict(pipeline.tune.space) or default_space(resolved)
    exam = Exam(
        lake=settings.lake,
        storage=settings.storage_options(),
        pipeline=name,
        tokenizer=tokenizer,
        sides=sides,
        recipe=recipe,
        pretrain=pretrain,
        metric=pipeline.tune.metric,
    )
    return exam, {key: _at(resolved, key) for key in space}, space


def _corpus(lake: Lake, name: str) -> tuple[str, dict[str, Labelled]]:
    """The newest published night's tokenizer, and the labelled rows of published nights."""
    published = lake.published()
    tokens = lake.stages(published["night"]).get("tokens") if published else None
    tokenizer = tokens["outputs"]["tokenizer"] if tokens else ""
    if not tokenizer:
        raise NightError(
            f"tune: {name} has no published night with documents yet, and tuning learns from what "
            f"a night has stored. Run one: nightshift run {name}"
        )
    # A night at work may have stored documents whose tokens are still to come.
    nights = [row["night"] for row in lake.nights() if row["state"] == "published"]
    rows = lake.read("documents", ["doc_id"], pc.field("night").isin(nights))
    known = set(rows["doc_id"].to_pylist())
    sides = {side: _only(rows, known) for side, rows in labelled_sides(lake).items()}
    classes = set(sides["train"].labels)
    if len(classes) < 2 or not classes & set(sides["validation"].labels):
        raise NightError(
            f"tune: found {len(sides['train'])} labelled training documents of {len(classes)} "
            f"classes and {len(sides['validation'])} of validation; tuning needs two classes, and "
            "one of them in validation. Add labels and run a night."
        )
    return tokenizer, {side: sides[side] for side in ("train", "validation")}


def _only(rows: Labelled, known: set[str]) -> Labelled:
    pairs = zip(rows.doc_ids, rows.labels, strict=True)
    kept = [pair for pair in pairs if pair[0] in known]
    return Labelled([one for one, _ in kept], [label for _, label in kept])


def _widest(recipe: Recipe, space: Space) -> Any:
    """A declaration of pretraining that reads all the text any trial may want."""
    tried = space.get("pretrain.documents", [])
    most = [int(tried.high)] if isinstance(tried, Range) else tried
    return recipe.pretrain.model_copy(
        update={"objective": "auto", "documents": max([recipe.pretrain.documents, *most])}
    )


def default_space(recipe: Recipe) -> Space:
    """What is tried where nothing is declared: the usual values, widened to the recipe's own.

    Args: a resolved recipe.
    """
    space: Space = {
        "train.learning_rate": Range(low=1e-3, high=1e-2, log=True),
        "model.encoder": ["lstm", "gru", "mingru"],
        "model.hidden": [64, 128, 256],
        "model.layers": [1, 2],
        "model.dropout": Range(low=0.0, high=0.6, step=0.1),
        "model.word_dropout": Range(low=0.0, high=0.3, step=0.05),
        "train.label_smoothing": Range(low=0.0, high=0.2, step=0.05),
    }
    if recipe.model.encoder.startswith(PREFIX):
        # Its shape is given, and it is fine-tuned in small steps.
        for key in ("model.encoder", "model.hidden", "model.layers", "model.word_dropout"):
            del space[key]
        space["train.learning_rate"] = Range(low=1e-5, high=1e-4, log=True)
    return {key: _around(tried, _at(recipe, key)) for key, tried in space.items()}


def _around(tried: list[Any] | Range, value: Any) -> list[Any] | Range:
    if isinstance(tried, list):
        return tried if value in tried else [value, *tried]
    if not isinstance(value, int | float) or _on(tried, value):
        return tried
    wider = {"low": min(tried.low, value), "high": max(tried.high, value), "step": None}
    return tried.model_copy(update=wider)


def _at(recipe: Recipe, key: str) -> Any:
    part, name = key.split(".")
    return getattr(getattr(recipe, part), name)


def _on(tried: Range, value: float) -> bool:
    """Whether a number is one that the range may give."""
    if not tried.low <= value <= tried.high:
        return False
    steps = (value - tried.low) / (tried.step or 1.0)
    return tried.step is None or abs(steps - round(steps)) < 1e-6


# --- between the recipe's values and Optuna's ------------------------------------------------


def _distribution(key: str, tried: list[Any] | Range) -> BaseDistribution:
    if isinstance(tried, list):
        return CategoricalDistribution(list(dict.fromkeys(_label(one) for one in tried)))
    if is_whole(key):
        step = int(tried.step or 1)
        return IntDistribution(int(tried.low), int(tried.high), log=tried.log, step=step)
    return FloatDistribution(tried.low, tried.high, log=tried.log, step=tried.step)


def _label(value: Any) -> Any:
    """A choice as Optuna can store it."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def _values(space: Space, params: Mapping[str, Any]) -> Values:
    """Optuna's parameters as the recipe takes them, numbers rounded to three digits."""
    found = {}
    for key, param in params.items():
        tried = space[key]
        if isinstance(tried, list):
            found[key] = next(one for one in tried if _label(one) == param)
        elif isinstance(param, float):
            found[key] = min(max(float(f"{param:.3g}"), tried.low), tried.high)
        else:
            found[key] = param
    return found


def _params(space: Space, values: Values) -> dict[str, Any] | None:
    """The other way round; None where a value lies outside the space."""
    for key, value in values.items():
        tried = space[key]
        if isinstance(tried, list):
            if value not in tried:
                return None
        elif isinstance(value, str | bool | None) or not _on(tried, value):
            return None
    return {key: _label(value) for key, value in values.items()}


# --- the study --------------------------------------------------------------------------------


def _study(
    file: Path, name: str, exam: Exam, space: Space, declared: Values, restart: bool
) -> optuna.Study:
    """Open the study of exactly this search, with what an earlier process left put in order."""
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    title = f"{name}-{_digest(exam, space)}"
    known = optuna.get_all_study_names(storage)
    if restart and title in known:
        optuna.delete_study(study_name=title, storage=storage)
        log.info("tune      earlier trials are forgotten, as --restart asks")
    elif known and title not in known:
        log.info("tune      a new study: labels, tokenizer, recipe or space have changed since")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=title,
            storage=storage,
            direction="minimize" if exam.metric == "log_loss" else "maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(UNJUDGED_TRIALS, UNJUDGED_EPOCHS + 1),
        )
        # A resumed search must not draw again what its first trials drew.
        seed = exam.recipe.train.seed + len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        _try_again(study, trial, trial.user_attrs.get("tries", 1))
    params = _params(space, declared)
    if params is None:
        log.info("tune      the declared recipe lies outside the space, and is not tried")
    elif not any(_values(space, one.params) == declared for one in study.trials):
        study.enqueue_trial(params, skip_if_exists=True)
    return study


def _digest(exam: Exam, space: Space) -> str:
    """Of all that makes two scores comparable; values that every trial chooses are left out."""
    recipe = exam.recipe.model_dump(mode="json", exclude={"train": UNTUNED})
    for key in space:
        part, field_name = key.split(".")
        recipe[part].pop(field_name)
    tried = {key: one if isinstance(one, list) else one.model_dump() for key, one in space.items()}
    rows = [exam.sides[side].digest for side in ("train", "validation")]
    return digest_of([tried, exam.metric, rows, exam.tokenizer, recipe])[:16]


def _try_again(study: optuna.Study, trial: FrozenTrial | optuna.Trial, tries: int) -> None:
    """A trial whose process is gone has failed; its parameters are the next to be tried."""
    if trial.params:
        study.enqueue_trial(trial.params, user_attrs={"tries": tries})
    study.tell(trial.number, state=TrialState.FAIL)


def _tracking(
    settings: Settings, name: str, study: optuna.Study, exam: Exam, space: Space
) -> Tracking:
    """The study's run, opened once; whatever a killed process left open inside is closed."""
    if "run" not in study.user_attrs:
        # Before the run itself: a kill between them must not make a second one.
        study.set_user_attr("run", uuid4().hex)
    tag = study.user_attrs["run"]
    known = run_of_study(settings.mlflow, name, tag)
    tracking = open_run(settings, name, "tune", known, {STUDY_TAG: tag})
    if known is None:
        rows = {side: len(found) for side, found in exam.sides.items()}
        shown = {key: str(_shown_space(tried)) for key, tried in space.items()}
        tracking.params(
            {"metric": exam.metric, "study": study.study_name, "rows": rows, "space": shown}
            | exam.recipe.model_dump()
        )
    return tracking


def _shown_space(tried: list[Any] | Range) -> str:
    if isinstance(tried, list):
        return " / ".join(str(one) for one in tried)
    how = ", log" if tried.log else f", step {tried.step:g}" if tried.step else ""
    return f"{tried.low:g} to {tried.high:g}{how}"


# --- the search -------------------------------------------------------------------------------


@dataclass
class Search:
    """A study at work: hands trials out, hears of them, writes down what became of them."""

    study: optuna.Study
    exam: Exam
    space: Space
    declared: Values
    config: TuneConfig
    tracking: Tracking
    workers: list[Worker] = field(default_factory=list)
    troubles: int = 0
    """In a row, without a finished trial between them."""

    def announce(self) -> None:
        """Say what is about to happen."""
        log.info("tune      %d trials by validation %s, %d at a time, on %d + %d documents",
                 self.config.trials, self.exam.metric, self.config.processes,
                 len(self.exam.sides["train"]), len(self.exam.sides["validation"]))  # fmt: skip
        if (rows := len(self.exam.sides["validation"])) < FEW_ROWS:
            log.warning("tune      only %d validation documents: recipes that differ by few "
                        "answers are alike, and the best may be best by luck", rows)  # fmt: skip
        for key, tried in self.space.items():
            log.info("tune      %-22s %s", key, _shown_space(tried))
        if self.exam.recipe.pretrain.objective == "none":
            log.info("tune      pretraining is off in trials; a `pretrain.` key in the space turns "
                     "it on")  # fmt: skip
        if spent := len(self.spent()):
            waiting = self.study.get_trials(states=(TrialState.WAITING,))
            again = sum("tries" in one.user_attrs for one in waiting)
            log.info("tune      going on: %d of %d trials are done%s", spent, self.config.trials,
                     f", {again} were cut off and are tried again" if again else "")  # fmt: skip

    def spent(self) -> list[FrozenTrial]:
        """Trials that count: finished, pruned, or failed by their own fault."""
        return [
            one
            for one in self.study.get_trials(deepcopy=False)
            if one.state in DONE or (one.state == TrialState.FAIL and "error" in one.user_attrs)
        ]

    def work(self) -> None:
        """Try recipes until the number asked for is tried."""
        try:
            with _interrupts() as interrupts:
                while True:
                    self._hand_out()
                    busy = [one for one in self.workers if one.trial is not None]
                    if not busy and len(self.spent()) >= self.config.trials:
                        return
                    # Nobody is busy, too, where every recipe drawn was one that cannot be.
                    ready = wait([interrupts, *(one.pipe for one in busy)], None if busy else 0)
                    if interrupts in ready:
                        raise KeyboardInterrupt
                    for worker in [one for one in busy if one.pipe in ready]:
                        self._hear(worker)
        finally:
            for worker in self.workers:
                worker.process.kill()
                if worker.trial is not None:
                    tries = worker.trial.user_attrs.get("tries", 1)
                    _try_again(self.study, worker.trial, tries)
                    with suppress(NightError):
                        self.tracking.close(worker.run, "KILLED")

    def _hand_out(self) -> None:
        busy = sum(one.trial is not None for one in self.workers)
        for _ in range(min(self.config.processes, self.config.trials - len(self.spent())) - busy):
            idle = next((one for one in self.workers if one.trial is None), None)
            if idle is None:
                idle = _hire(self.exam, self.config.processes)
                self.workers.append(idle)
            self._begin(idle)

    def _begin(self, worker: Worker) -> None:
        asked = {key: _distribution(key, tried) for key, tried in self.space.items()}
        trial = worker.trial = self.study.ask(asked)
        values = _values(self.space, trial.params)
        worker.run = self.tracking.open_child(f"trial-{trial.number}", {})
        self.tracking.params(values, worker.run)
        try:
            changed(self.exam.recipe, values)
        except ValidationError as error:
            said = (one["msg"].removeprefix("Value error, ") for one in error.errors())
            # To the sampler it is pruned: failures teach it nothing, and it would draw them again.
            self._failed(worker, "; ".join(said), TrialState.PRUNED)
            return
        with suppress(BrokenPipeError):  # it has died, which its silence will tell
            worker.pipe.send(values)

    def _hear(self, worker: Worker) -> None:
        try:
            heard = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._died(worker)
            return
        if isinstance(heard, Step):
            self._judge(worker, heard)
        elif isinstance(heard, Score):
            self._finished(worker, heard)
        elif isinstance(heard, Trouble) and heard.fatal:
            raise NightError(f"tune: {heard.said}")
        else:
            self._failed(worker, heard.said)
            self._trouble(heard.said)

    def _judge(self, worker: Worker, step: Step) -> None:
        """Note an epoch, and say whether the trial shall go on."""
        trial = worker.trial
        assert trial is not None
        figures = step.figures | {"epoch_score": step.score}
        self.tracking.figures(figures, step.index, worker.run)
        if step.index not in _steps(self.study, trial.number):
            # After a loss that was not finite, the same epochs come again.
            trial.report(step.score, step.index)
        pruned = trial.should_prune()
        with suppress(BrokenPipeError):
            worker.pipe.send(not pruned)
        if pruned:
            self._end(worker, TrialState.PRUNED, "KILLED")
            self._say(trial, f"pruned after epoch {step.index}, at {step.score:.4f}")

    def _finished(self, worker: Worker, found: Score) -> None:
        trial = worker.trial
        assert trial is not None
        figures = {**found.figures, "score": found.score}
        self.tracking.figures(figures, int(found.figures["epochs"]), worker.run)
        self._end(worker, TrialState.COMPLETE, "FINISHED", found.score)
        best = self.study.best_trial
        self.tracking.figures({"best_score": best.value or 0.0}, trial.number)
        self._say(trial, f"{self.exam.metric} {found.score:.4f}")

    def _failed(self, worker: Worker, why: str, state: TrialState = TrialState.FAIL) -> None:
        trial = worker.trial
        assert trial is not None
        trial.set_user_attr("error", why)
        self._end(worker, state, "FAILED")
        self._say(trial, f"failed: {why}")

    def _died(self, worker: Worker) -> None:
        """Its parameters are tried again, by another process, unless they killed too many."""
        trial = worker.trial
        assert trial is not None
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        why = f"its process died (exit code {code}{', often memory' if code == -9 else ''})"
        tries = trial.user_attrs.get("tries", 1)
        if tries >= TRIES:
            self._failed(worker, f"{why} {TRIES} times")
            self._trouble(why)
            return
        worker.trial = None
        self.tracking.close(worker.run, "FAILED")
        _try_again(self.study, trial, tries + 1)
        log.warning("tune      trial %d: %s; it is tried again", trial.number, why)
        self._trouble(why)

    def _trouble(self, why: str) -> None:
        self.troubles += 1
        if self.troubles >= TROUBLES:
            raise NightError(
                f"tune: {TROUBLES} trials in a row came to nothing, the last because {why}. Mend "
                "that, or try fewer --processes; the same command goes on from here."
            )

    def _end(
        self, worker: Worker, state: TrialState, run_state: str, score: float | None = None
    ) -> None:
        # MLflow first: a kill between the two repeats the trial rather than leaving its run open.
        trial, worker.trial = worker.trial, None
        assert trial is not None
        self.tracking.close(worker.run, run_state)
        self.study.tell(trial, score, state)
        self.troubles = self.troubles if state == TrialState.FAIL else 0

    def _say(self, trial: optuna.Trial, what: str) -> None:
        values = _values(self.space, trial.params)
        best = _best(self.study)
        shown = f"best {best.value:.4f} of trial {best.number}" if best else "no score yet"
        log.info("tune      trial %d: %s (%s; %d of %d done): %s", trial.number, what, shown,
                 len(self.spent()), self.config.trials,
                 _differing(values, self.declared) or "as declared")  # fmt: skip


def _steps(study: optuna.Study, number: int) -> Mapping[int, float]:
    return study.get_trials(deepcopy=False)[number].intermediate_values


def _best(study: optuna.Study) -> FrozenTrial | None:
    with suppress(ValueError):  # no trial is complete
        return study.best_trial
    return None


def _differing(values: Values, declared: Values) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value != declared[key])


@contextmanager
def _interrupts() -> Iterator[Connection]:
    """A pipe that something comes through at Ctrl-C; a second Ctrl-C interrupts at once.

    Interrupted anywhere else, a transaction cut in half would keep its lock on Optuna's file, and
    putting the trials in order would wait for it.
    """
    heard, says = multiprocessing.Pipe(duplex=False)

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        says.send_bytes(b"!")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)
        heard.close()
        says.close()


def _hire(exam: Exam, processes: int) -> Worker:
    """Start a process that learns on its share of the cores."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, exam), daemon=True)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = before or str(max(1, _cores() // processes))
    # Ctrl-C reaches every process of a terminal; this one alone decides what follows. A blocked
    # signal is inherited and waits, where an ignored one would be lost. Python's own helper of
    # spawned processes unblocks it when it starts, so that one starts first.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
    theirs.close()
    return Worker(process, ours)


def _cores() -> int:
    # A container may own fewer than the machine has; macOS cannot tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what was found ---------------------------------------------------------------------------


def _told(search: Search, folder: Path, name: str) -> Tuned:
    """Write the best recipe and the picture of the search, here and to MLflow."""
    best = _best(search.study)
    if best is None or best.value is None:
        raise NightError(
            f"tune: none of {len(search.spent())} trials came to an end. What went wrong stands "
            "in the lines above; mend it, and use --restart or --trials to try more."
        )
    values = _values(search.space, best.params)
    changes = {key: value for key, value in values.items() if value != search.declared[key]}
    baseline = next(
        (
            one.value
            for one in search.study.get_trials(states=(TrialState.COMPLETE,))
            if _values(search.space, one.params) == search.declared
        ),
        None,
    )
    pasted = textwrap.indent(_nested(changes), "    ")
    spent = search.spent()
    about = (
        f"{name}: best of {len(spent)} trials by validation {search.exam.metric}: {best.value:.4f}"
        + (f", declared {baseline:.4f}" if baseline is not None else "")
    )
    snippet, picture = folder / f"{name}.yaml", folder / f"{name}.png"
    snippet.write_text(_commented(pasted, f"{about}."), encoding="utf-8")
    picture.write_bytes(_picture(search, spent, about))
    for file in (snippet, picture):
        search.tracking.file(file, "tuning")
    text = (
        f"{about} (trial {best.number}).\n\n{_commented(pasted)}\n"
        f"snippet  {snippet}\npicture  {picture}\nmlflow   {search.tracking.link()}"
    )
    return Tuned(
        best=best.number,
        score=best.value,
        declared=baseline,
        trials=len(spent),
        yaml=pasted,
        snippet=snippet,
        picture=picture,
        run=search.tracking.run_id,
        text=text,
    )


def _nested(changes: Values) -> str:
    whole: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        part, name = key.split(".")
        whole.setdefault(part, {})[name] = value
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True) if whole else ""


def _commented(pasted: str, *about: str) -> str:
    how = "Paste below the pipeline's name; keys of a part that stands there already go into it."
    if not pasted:
        how = "Nothing tried was better than what is declared."
    return "".join(f"    # {line}\n" for line in (*about, how)) + pasted


def _picture(search: Search, spent: Sequence[FrozenTrial], about: str) -> bytes:
    tried = []
    for one in spent:
        score = one.value
        if score is None and one.intermediate_values:
            score = one.intermediate_values[max(one.intermediate_values)]
        if score is not None and one.state in DONE:
            values = _values(search.space, one.params)
            pruned = one.state == TrialState.PRUNED
            tried.append(Tried(one.number, score, pruned, values))
    logs = {key for key, one in search.space.items() if isinstance(one, Range) and one.log}
    return search_picture(tried, search.exam.metric, logs, about)
