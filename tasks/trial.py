"""trial: what a process of `nightshift tune` does: learn the recipes it is handed, one by one.

It talks to its parent through a pipe, and to nothing else: neither Optuna nor MLflow. The parent
sends the changes of a recipe and gets a `Step` per epoch, each answered with whether to go on,
and a `Score` at the end; or a `Trouble`. No `Score` follows an answer of False.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from nightshift.bundle import BATCH_TOKENS
from nightshift.corpus import Labelled
from nightshift.errors import NightshiftError
from nightshift.inference import forward, pick_device
from nightshift.learning import Learned, Material, gather, learn
from nightshift.recipe import PretrainConfig, Recipe
from nightshift.scoring import confusion, f1_by_class, score
from nightshift.tables import Lake
from nightshift.tokenizer import Tokenizer
from nightshift.training import Epoch

from .judging import end_with_parent

Metric = Literal["accuracy", "macro_f1", "log_loss"]


@dataclass(frozen=True)
class Exam:
    """What all trials of a study share: the rows, the recipe that they change, what is measured."""

    lake: str
    storage: dict[str, str]
    pipeline: str
    tokenizer: str
    """The digest of one in the lake."""
    sides: dict[str, Labelled]
    """Train and validation, as they were when the study was opened."""
    recipe: Recipe
    pretrain: PretrainConfig
    """Which text is read to pretrain on, whatever each trial makes of it."""
    metric: Metric


@dataclass(frozen=True)
class Step:
    """An epoch's figures, and its score on validation by the network alone."""

    index: int
    score: float
    figures: dict[str, float]


@dataclass(frozen=True)
class Score:
    """The whole model's score on validation, and the figures of its making."""

    score: float
    figures: dict[str, float]


@dataclass(frozen=True)
class Trouble:
    """Why a trial, or with `fatal` every trial, cannot be done."""

    said: str
    fatal: bool


def serve(pipe: Connection, exam: Exam) -> None:
    """Learn what the parent asks for until it hangs up."""
    end_with_parent()
    try:
        material = _material(exam)
    except NightshiftError as error:
        pipe.send(Trouble(str(error), fatal=True))
        return
    while True:
        try:
            changes = pipe.recv()
        except EOFError:
            return
        try:
            _learn(pipe, material, exam, changed(exam.recipe, changes))
        except NightshiftError as error:
            pipe.send(Trouble(str(error), fatal=False))
        except EOFError:
            return
        except Exception as error:
            pipe.send(Trouble(f"{type(error).__name__}: {error}", fatal=False))


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values for some dotted keys, checked anew.

    Raises: ValidationError for values that do not go together.
    """
    whole = recipe.model_dump()
    for key, value in changes.items():
        part, name = key.split(".")
        whole[part][name] = value
    return Recipe.model_validate(whole)


def _material(exam: Exam) -> Material:
    lake = Lake(exam.lake, exam.pipeline, exam.storage)
    row = lake.read("tokenizers", where=pc.field("digest") == exam.tokenizer).to_pylist()[-1]
    tokenizer = Tokenizer(row["serialized"], row["unit"])
    recipe = exam.recipe.model_copy(update={"pretrain": exam.pretrain})
    return gather(lake, tokenizer, exam.sides, recipe)


def _learn(pipe: Connection, material: Material, exam: Exam, recipe: Recipe) -> None:
    for event in learn(material, recipe):
        if isinstance(event, Learned):
            pipe.send(_scored(event, material, exam.metric, recipe.train.device))
        elif isinstance(event, Epoch):
            judged = _judged(event, material, exam.metric, recipe.train.device)
            pipe.send(Step(event.index, judged, event.figures()))
            if not pipe.recv():
                return


def _judged(epoch: Epoch, material: Material, metric: Metric, device: str) -> float:
    """The epoch's score by the study's metric."""
    if metric != "macro_f1":
        return epoch.validation_accuracy if metric == "accuracy" else epoch.validation_loss
    config = epoch.network.config
    held = material.validation.documents.cut(int(config.max_tokens), config.truncation)
    scores, _ = forward(epoch.network, held, BATCH_TOKENS, pick_device(device))
    names = np.array(material.classes, object)
    _, table = confusion(_truth(material), names[scores.argmax(1)].tolist())
    return float(f1_by_class(table).mean())


def _scored(learned: Learned, material: Material, metric: Metric, device: str) -> Score:
    held = material.validation
    said = learned.model.answer(held.documents, held.texts, device)
    assert said.probabilities is not None
    names = np.array(material.classes, object)
    found = score(
        _truth(material), said.probabilities, material.classes, names[said.choice].tolist()
    )
    measured = {
        f"validation_{name}": float(getattr(found, name))
        for name in ("accuracy", "macro_f1", "log_loss")
    }
    return Score(getattr(found, metric), learned.figures | measured)


def _truth(material: Material) -> list[str]:
    labels = material.validation.documents.labels
    assert labels is not None
    return [material.classes[one] for one in labels]
