"""Behavioural checks: what is swapped, what fails, and that a must keeps a challenger out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SCRATCH, House, rows
from pydantic import ValidationError

from nightshift.checks import ChecksConfig, count_checks, failures, swapped


def test_words_are_swapped_both_ways_and_only_whole() -> None:
    assert swapped("Ann met Annabel and Bob.", "Ann", "Bob") == "Bob met Annabel and Ann."
    assert swapped("上海楼市与北京楼市", "上海", "北京") == "北京楼市与上海楼市"
    assert swapped("C++ or C", "C++", "C") == "C or C++"
    assert swapped("nothing here", "Ann", "Bob") == "nothing here"


def test_a_swap_that_changes_no_text_is_refused() -> None:
    with pytest.raises(ValidationError, match="none of the texts holds the word 'Ann' or 'Bob'"):
        ChecksConfig.model_validate({"invariances": [{"texts": ["x"], "swap": [["Ann", "Bob"]]}]})
    with pytest.raises(ValidationError, match="two different words"):
        ChecksConfig.model_validate({"invariances": [{"texts": ["x"], "swap": [["x", "x"]]}]})


CHECKS: dict[str, Any] = {
    "must": [{"text": "a pawn and a rook in the endgame", "label": "chess"}],
    "should": [
        {"text": "butter and flour in the oven", "label": "sailing"},
        {"text": "butter and garlic in the oven", "label": "gardening"},
        {"text": " \u200b ", "label": "chess"},
    ],
    "invariances": [
        {"texts": ["the rook and the bishop castle"], "swap": [["rook", "pawn"]]},
        {"texts": ["anchor"], "swap": [["anchor", "oven"]], "must": True},
    ],
}


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A night whose challenger fails a must, one with nothing new, and one that asks for less."""
    house = House(tmp_path_factory.mktemp("checked"))
    house.declare(checks=CHECKS)
    house.drop("one.jsonl", rows(70))
    house.work("n1")
    house.work("again")
    less = {**CHECKS, "invariances": CHECKS["invariances"][:1]}
    house.declare(checks=less)
    house.work("n2")
    return house


def test_a_first_model_that_fails_a_must_is_not_promoted(worked: House) -> None:
    first = worked.status()[0]
    assert (first["state"], first["promoted"], first["model_id"]) == ("published", False, None)
    assert first["outcome"] == (
        "the challenger fails a check that it must pass: 'anchor' is 'sailing', but 'oven' is "
        "'cooking'"
    )
    page = Path(first["report"]).read_text()
    assert "The challenger fails 4 of 6 checks." in page
    assert "fails 1 of the checks that it must pass" in page


def test_a_refused_model_is_not_trained_again_until_something_changed(worked: House) -> None:
    first, again, third = worked.status()
    assert (again["state"], again["trained"], again["model_id"]) == ("published", False, None)
    assert "neither labels, config nor code have changed" in again["outcome"]
    assert (first["trained"], third["trained"]) == (True, True)
    told = worked.lake.stages("n2")["train"]["outputs"]["reason"]
    assert told == "the checks changed since a classifier was refused"


def test_a_model_that_passes_every_must_becomes_champion_although_a_should_fails(
    worked: House,
) -> None:
    second = worked.status()[2]
    assert second["promoted"]
    assert second["outcome"] == "the first classifier becomes champion"
    assert "The new champion fails 3 of 5 checks." in Path(second["report"]).read_text()


def test_every_failure_is_a_sentence_and_what_cannot_be_judged_fails(worked: House) -> None:
    outputs = worked.lake.stages("n1")["evaluate"]["outputs"]
    assert outputs["details"]["challenger"]["failed"] == [
        {"must": False, "sentence": "'butter and flour in the oven' is taken for 'cooking' "
         "instead of 'sailing'"},
        {"must": False, "sentence": "'butter and garlic in the oven' cannot be judged: the model "
         "does not know the label 'gardening'"},
        {"must": False, "sentence": "'\u200b' cannot be judged: the text is refused as no_text"},
        {"must": True, "sentence": "'anchor' is 'sailing', but 'oven' is 'cooking'"},
    ]  # fmt: skip
    assert len(outputs["failed_checks"]) == 1


def test_the_failures_are_kept_as_an_artifact(worked: House) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{SCRATCH}/mlflow.db")
    run = worked.lake.published()["mlflow_run"]
    text = mlflow.artifacts.load_text(f"runs:/{run}/evaluation/challenger_failed.json")
    assert [one["must"] for one in json.loads(text)] == [False, False, False]


def test_no_checks_ask_no_model(worked: House) -> None:
    from nightshift.bundle import Model

    none = ChecksConfig()
    assert count_checks(none) == 0
    folder = mlflow.artifacts.download_artifacts(worked.lake.published()["model_uri"])
    assert failures(Model.load(Path(folder)), none) == []
