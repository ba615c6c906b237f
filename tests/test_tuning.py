"""Tuning: the space is checked when it is read, a search survives kills, the best can be pasted."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import psutil
import pytest
import yaml
from conftest import SCRATCH, House, rows
from matplotlib.image import imread
from pydantic import ValidationError

from flows import tuning
from flows.tuning import Search, Tuned, default_space, tune
from nightshift.errors import BusyError, ConfigError, NightError
from nightshift.pictures import Tried, search_picture
from nightshift.pipeline import load_settings
from nightshift.recipe import ModelConfig, Range, Recipe, TrainConfig, is_whole, tunable
from tasks.trial import changed

BIN = Path(sys.executable).parent
STORE = f"sqlite:///{SCRATCH}/mlflow.db"
PIPELINE = "pipelines:\n  a:\n    source: {paths: [x]}\n    tune:\n      space:\n"


def read_space(folder: Path, *lines: str) -> Any:
    """The space as it stands in a pipelines file from line 6 on."""
    file = folder / "pipelines.yaml"
    file.write_text(PIPELINE + "".join(f"        {line}\n" for line in lines))
    return load_settings(file).pipelines["a"].tune.space


# --- the space --------------------------------------------------------------------------------


def test_values_of_the_space_are_those_the_recipe_would_read(tmp_path: Path) -> None:
    found = read_space(
        tmp_path,
        "model.hidden: ['16', 32]",
        "model.max_tokens: [auto, 64]",
        "train.learning_rate: {low: 1e-3, high: 0.01, log: true}",
    )
    assert found["model.hidden"] == [16, 32]
    assert found["model.max_tokens"] == ["auto", 64]
    assert found["train.learning_rate"] == Range(low=0.001, high=0.01, log=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train.learnin_rate: [0.1]", "did you mean 'train.learning_rate'?"),
        ("train.dropout: [0.1]", "did you mean 'model.dropout'?"),
        ("cleaning.case: [lower]", "cleaning.case: cannot be tuned; only"),
        ("train.device: [cpu]", "cannot be tuned"),
        ("train.learning_rate: [0.1, 5]", "5 does not fit: Input should be less than or equal"),
        ("train.learning_rate: {low: 0.1, high: 5}", "5.0 does not fit"),
        ("model.encoder: [lstm, gur]", "'gur' does not fit"),
        ("model.hidden: {low: 8, high: 16.5}", "whole numbers only"),
        ("model.encoder: {low: 0, high: 1}", "no numbers between low and high"),
        ("model.dropout: {low: 0.5, high: 0.1}", "low (0.5) must be below high (0.1)"),
        ("model.dropout: {low: 0, high: 0.1, log: true}", "log needs a low above 0"),
        ("model.dropout: []", "at least one value"),
        ("model.dropout: 0.5", "should be a valid list"),
    ],
)
def test_a_key_or_value_the_recipe_does_not_know_is_refused_with_its_line(
    tmp_path: Path, line: str, said: str
) -> None:
    key = line.split(":")[0]
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path, "model.layers: [1, 2]", line)
    assert str(caught.value).startswith(f"pipelines.yaml line 7: pipelines.a.tune.space.{key}: ")
    assert said in str(caught.value)


def test_all_wrong_keys_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path, "model.hiden: [8]", "model.layers: [1]", "train.clip: [0]")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        "pipelines.yaml line 6",
        "pipelines.yaml line 8",
    ]


def test_a_key_is_whole_where_no_fraction_fits() -> None:
    numbers = [key for key in tunable() if key in ("model.hidden", "train.epochs", "train.clip")]
    assert {key: is_whole(key) for key in numbers} == {
        "model.hidden": True,
        "train.epochs": True,
        "train.clip": False,
    }


def test_the_default_space_holds_the_declared_recipe() -> None:
    declared = Recipe(
        model=ModelConfig(encoder="tdnn", hidden=16, dropout=0.25),
        train=TrainConfig(learning_rate=0.02),
    )
    space = default_space(declared)
    assert space["model.encoder"] == ["tdnn", "lstm", "gru", "mingru"]
    assert space["model.hidden"] == [16, 64, 128, 256]
    assert space["model.layers"] == [1, 2]
    # 0.25 lies between two steps of 0.1, so the steps go.
    assert space["model.dropout"] == Range(low=0.0, high=0.6)
    assert space["train.learning_rate"] == Range(low=0.001, high=0.02, log=True)
    values = {key: tuning._at(declared, key) for key in space}
    params = tuning._params(space, values)
    assert params is not None
    assert tuning._values(space, params) == values


def test_a_pretrained_encoder_is_tuned_in_small_steps_and_keeps_its_shape() -> None:
    hub = ModelConfig.model_validate({"encoder": "huggingface:some/model"})
    space = default_space(Recipe(model=hub, train=TrainConfig(learning_rate=5e-5)))
    assert space["train.learning_rate"] == Range(low=1e-5, high=1e-4, log=True)
    assert not {"model.encoder", "model.hidden", "model.layers"} & space.keys()


def test_numbers_are_rounded_to_three_digits_but_stay_in_the_range() -> None:
    space: tuning.Space = {"train.learning_rate": Range(low=0.001236, high=0.01)}
    assert tuning._values(space, {"train.learning_rate": 0.0045678}) == {
        "train.learning_rate": 0.00457
    }
    # To three digits it would be 0.00123, which is below the range.
    lowest = tuning._values(space, {"train.learning_rate": 0.0012344})
    assert lowest == {"train.learning_rate": 0.001236}


def test_lists_and_words_survive_the_way_to_optuna_and_back() -> None:
    space: tuning.Space = {"model.pooling": [["max"], ["mean", "last"]], "train.epochs": ["auto"]}
    values = {"model.pooling": ["mean", "last"], "train.epochs": "auto"}
    params = tuning._params(space, values)
    assert params is not None
    assert params == {"model.pooling": '["mean", "last"]', "train.epochs": "auto"}
    assert tuning._values(space, params) == values
    assert tuning._params(space, {"model.pooling": ["mean"], "train.epochs": "auto"}) is None


def test_values_that_do_not_go_together_are_refused_before_a_trial_begins() -> None:
    with pytest.raises(ValidationError, match="do not divide"):
        changed(Recipe(), {"model.encoder": "transformer", "model.heads": 3})
    assert changed(Recipe(), {"model.heads": 8, "train.clip": 2}).model.heads == 8


# --- the picture ------------------------------------------------------------------------------


def colours(png: bytes) -> set[str]:
    pixels = (imread(io.BytesIO(png), format="png")[..., :3] * 255).round().astype(np.uint8)
    return {bytes(one).hex() for one in np.unique(pixels.reshape(-1, 3), axis=0)}


def test_the_picture_shows_finished_and_pruned_trials_and_the_best_so_far() -> None:
    values = {"train.learning_rate": 0.01, "model.encoder": "gru", "model.bidirectional": True}
    tried = [Tried(n, 0.5 + n / 100, n == 2, values) for n in range(4)]
    shown = search_picture(tried, "accuracy", {"train.learning_rate"}, "four trials")
    image = imread(io.BytesIO(shown), format="png")
    # 11 inches at 110 dots; one row of panels below the whole.
    assert image.shape[:2] == (round(110 * (3.4 + 2.5)), 1210)
    assert {"0072b2", "d55e00", "8a8f99"} <= colours(shown)
    one = search_picture(tried[:1], "log_loss", set(), "one trial")
    assert {"0072b2"} <= colours(one)


# --- before any trial -------------------------------------------------------------------------


def test_a_pipeline_without_a_night_is_told_to_work_one(house: House) -> None:
    with pytest.raises(NightError, match=f"nightshift run {house.name}"):
        tune(load_settings(house.config), house.name)


def test_two_tunings_of_a_pipeline_do_not_meet(house: House) -> None:
    folder = house.folder / "reports" / "tuning"
    folder.mkdir(parents=True)
    with (folder / f".{house.name}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("process 77")
        other.flush()
        with pytest.raises(BusyError, match="process 77"):
            tune(load_settings(house.config), house.name)


def test_the_command_line_does_not_import_optuna_before_it_is_asked_to_tune() -> None:
    code = "import flows.cli, sys; print({'optuna', 'yaml', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


# --- real searches ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A house with one published night."""
    house = House(tmp_path_factory.mktemp("tuned"))
    house.declare(wide={"use": False})
    house.drop("one.jsonl", rows(30))
    house.work("n1")
    return house


def search(house: House, space: dict[str, Any], **tune_keys: Any) -> Tuned:
    house.declare(tune={"space": space, "metric": "log_loss", **tune_keys})
    return tune(load_settings(house.config), house.name)


def newest_study(house: House) -> optuna.Study:
    storage = f"sqlite:///{house.folder}/reports/tuning/{house.name}.db"
    name = optuna.get_all_study_names(storage)[-1]
    return optuna.load_study(study_name=name, storage=storage)


def states(study: optuna.Study) -> list[str]:
    return [one.state.name for one in study.trials]


def runs_of(study: optuna.Study, house: House) -> tuple[list[Any], list[Any]]:
    """The study's own runs in MLflow, and those nested in the first of them, oldest first."""
    client = mlflow.MlflowClient(STORE)
    experiment = client.get_experiment_by_name(house.name)
    assert experiment is not None
    where = [experiment.experiment_id]
    own = client.search_runs(where, f"tags.`nightshift.study` = '{study.user_attrs['run']}'")
    inside = f"tags.mlflow.parentRunId = '{own[0].info.run_id}'"
    return own, client.search_runs(where, inside, order_by=["attributes.start_time ASC"])


def started(house: House) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / "nightshift", "tune", house.name, "--config", str(house.config)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def until(process: subprocess.Popen[str], said: str) -> list[str]:
    """Its lines on standard error up to the one that holds some words."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if said in line:
            return lines
    raise AssertionError(f"{said!r} was never said: {''.join(lines)}")


def until_running(study: optuna.Study, epochs: int) -> optuna.trial.FrozenTrial:
    """The one trial that runs, once it has come so far."""
    for _ in range(400):
        going = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        if going and len(going[0].intermediate_values) >= epochs:
            return going[0]
        time.sleep(0.05)
    raise AssertionError("no trial was ever running")


@pytest.mark.slow
def test_a_killed_tuning_goes_on_and_ends_with_as_many_trials_as_asked(
    tuned_house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house = tuned_house
    space = {"train.learning_rate": {"low": 0.005, "high": 0.05, "log": True},
             "model.pooling": [["max"], ["attention", "max", "mean"]],
             # So many that a trial is still at work when it is interrupted, on any machine.
             "train.epochs": [200], "train.patience": [200]}  # fmt: skip
    house.declare(tune={"space": space, "metric": "log_loss", "trials": 4})
    # Ctrl-C in the first trial, which reaches every process of the group.
    process = started(house)
    until(process, "4 trials by validation log_loss")
    time.sleep(1)
    study = newest_study(house)
    first = until_running(study, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().endswith("interrupted; run the same command again to go on from here.")
    assert "Traceback" not in err
    assert states(study) == ["FAIL", "WAITING"]
    # kill -9 of the parent alone in the middle of a later one: its worker leaves by itself.
    process = started(house)
    until(process, "trial 2:")
    cut_off = until_running(study, 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert states(study)[cut_off.number] == "RUNNING"
    spent = sum(one in ("COMPLETE", "PRUNED") for one in states(study))
    with caplog.at_level(logging.INFO, "flows.tuning"):
        found = tune(load_settings(house.config), house.name)
    assert f"going on: {spent} of 4 trials are done, 1 were cut off" in caplog.text
    ended = [one for one in study.trials if one.state.name in ("COMPLETE", "PRUNED")]
    assert len(ended) == found.trials == 4
    assert states(study).count("FAIL") == 2
    for killed in (first, cut_off):
        assert any(one.params == killed.params for one in ended)
    # Nothing is open, nothing is there twice.
    own, nested = runs_of(study, house)
    assert [one.info.status for one in own] == ["FINISHED"]
    assert len(nested) == len(study.trials) == 6
    assert sorted(one.info.status for one in nested).count("FINISHED") == 4
    assert not [one for one in nested if one.info.status == "RUNNING"]
    best = study.best_trial
    assert found.score == best.value
    assert own[0].data.metrics["best_score"] == best.value
    again = tune(load_settings(house.config), house.name)
    assert (again.score, again.best, again.trials) == (found.score, found.best, 4)
    assert len(study.trials) == 6


@pytest.mark.slow
def test_the_best_recipe_pastes_into_the_file_and_is_what_was_scored(tuned_house: House) -> None:
    house = tuned_house
    # With a rate this small, the declared recipe cannot be the best one.
    train = {**house.settings.get("train", {}), "epochs": 3, "learning_rate": 1e-4}
    house.declare(train=train)
    space = {"train.learning_rate": [1e-4, 0.02], "model.pooling": [["attention", "max", "mean"]]}
    found = search(house, space, trials=3)
    study = newest_study(house)
    assert found.declared is not None
    assert found.declared == study.trials[0].value
    assert found.score < found.declared
    assert yaml.safe_load(found.yaml) == {"train": {"learning_rate": 0.02}}
    assert yaml.safe_load(found.snippet.read_text()) == {"train": {"learning_rate": 0.02}}
    assert found.picture.read_bytes().startswith(b"\x89PNG")
    pasted = house.folder / "pasted.yaml"
    text = f"pipelines:\n  {house.name}:\n{found.snippet.read_text()}    source: {{paths: [x]}}\n"
    pasted.write_text(text)
    assert load_settings(pasted).pipelines[house.name].train.learning_rate == 0.02
    # Pasted, the search is still the same one: the key that was pasted is one that it chooses.
    house.declare(train={**train, "learning_rate": 0.02})
    again = tune(load_settings(house.config), house.name)
    assert newest_study(house).study_name == study.study_name
    assert (again.trials, again.yaml, again.declared) == (3, "", found.score)
    assert "Nothing tried was better" in again.text
    kept = mlflow.MlflowClient(STORE).list_artifacts(found.run, "tuning")
    assert sorted(Path(one.path).name for one in kept) == [
        f"{house.name}.png",
        f"{house.name}.yaml",
    ]


@pytest.mark.slow
def test_of_two_processes_one_may_die_and_its_trial_is_tried_again(
    tuned_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, killed, together = Search._judge, list[int](), set[int]()

    def judge(self: Search, worker: Any, step: Any) -> None:
        together.add(sum(one.trial is not None for one in self.workers))
        if not killed and step.index == 2:
            killed.append(worker.trial.number)
            worker.process.kill()
            worker.process.join()
        judged(self, worker, step)

    monkeypatch.setattr(Search, "_judge", judge)
    space = {"train.learning_rate": {"low": 0.005, "high": 0.05}, "model.hidden": [8, 16]}
    found = search(tuned_house, space, trials=4, processes=2)
    study = newest_study(tuned_house)
    assert max(together) == 2
    assert found.trials == 4
    assert states(study).count("COMPLETE") + states(study).count("PRUNED") == 4
    [dead] = [one for one in study.trials if one.state.name == "FAIL"]
    assert [dead.number] == killed
    [again] = [one for one in study.trials if one.user_attrs.get("tries") == 2]
    assert again.params == dead.params
    _, nested = runs_of(study, tuned_house)
    assert sorted(one.info.status for one in nested)[0] == "FAILED"
    assert {one.info.status for one in nested} <= {"FAILED", "FINISHED", "KILLED"}


@pytest.mark.slow
def test_the_run_of_a_stopped_trial_is_closed_and_a_recipe_that_cannot_be_costs_a_trial(
    tuned_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "UNJUDGED_TRIALS", 1)
    space = {"train.learning_rate": [0.02, 1e-6], "train.epochs": [6],
             "model.encoder": ["lstm", "transformer"], "model.heads": [4, 7]}  # fmt: skip
    tuned_house.declare(train={"learning_rate": 0.02, "epochs": 6, "batch_tokens": 512})
    found = search(tuned_house, space, trials=9)
    study = newest_study(tuned_house)
    assert found.trials == len(study.trials) == 9
    _, nested = runs_of(study, tuned_house)
    impossible = [one for one in study.trials if "error" in one.user_attrs]
    pruned = [one for one in study.trials if one.state.name == "PRUNED" and one not in impossible]
    closed = {one.number: "FAILED" for one in impossible} | {one.number: "KILLED" for one in pruned}
    names = {one.info.run_name: one.info.status for one in nested}
    assert names == {f"trial-{n}": closed.get(n, "FINISHED") for n in range(9)}
    assert pruned
    for one in pruned:
        # The median of the only finished trial is that trial.
        assert one.intermediate_values[2] > min(study.trials[0].intermediate_values.values())
        assert max(one.intermediate_values) >= 2
    # Two directions of 16 do not fall into 7 heads.
    assert impossible
    for one in impossible:
        assert (one.params["model.encoder"], one.params["model.heads"]) == ("transformer", 7)
        assert "7 do not divide" in one.user_attrs["error"]
    runs = {one.info.run_name: one for one in nested}
    metrics = runs[f"trial-{found.best}"].data.metrics
    assert metrics["score"] == found.score
