"""Whole nights whose challenger is better on all rows together, and worse where it may not be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import SCRATCH, SMALL, TOPICS, House, texts
from mlflow import MlflowClient

from nightshift.cleaning import content_digest
from nightshift.splits import SplitConfig, side

pytestmark = pytest.mark.slow
OTHER = {"cooking": "sailing", "sailing": "cooking", "chess": "chess"}
SPLITS = {"validation": 0.1, "gate": 0.25, "test": 0.1}


def taught(night: int) -> list[dict[str, Any]]:
    """The same texts twice. What is learned from calls cooking and sailing one another at first,
    and later chess sailing; the rows that judge are always right."""
    config = SplitConfig.model_validate(SPLITS)
    found: list[dict[str, Any]] = []
    for topic in TOPICS:
        for text in texts(topic, 90):
            label = topic
            if side(content_digest(text), None, config) in ("train", "validation"):
                label = OTHER[topic] if night == 1 else "sailing" if topic == "chess" else topic
            shop = "club" if topic == "chess" else "market"
            found.append({"text": text, "label": label, "shop": shop})
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The same challenger judged by classes, by shops, and by neither."""
    house = House(tmp_path_factory.mktemp("judged"))
    (house.folder / "inbox").mkdir()
    for night, promotion in enumerate((
        {}, {}, {"class_margin": None, "floors": {"shop": 0.1}}, {"class_margin": None},
    ), 1):  # fmt: skip
        if night <= 2:
            house.drop(f"{night}.jsonl", taught(night))
        seeded = {**SMALL["train"], "seed": max(night, 2)}  # another seed is due for a training
        house.declare(
            source={"columns": ["shop"]}, splits=SPLITS, promotion=promotion, train=seeded
        )
        house.work(f"n{night}")
    return house


def decision(house: House, night: str) -> dict[str, Any]:
    [row] = [one for one in house.table("promotions") if one["night"] == night]
    return row


@pytest.mark.parametrize(
    ("night", "loses"),
    [("n2", "but class 'chess' falls from F1"), ("n3", "but shop 'club' falls from accuracy")],
)
def test_a_challenger_with_higher_accuracy_is_refused_for_what_it_ruins(
    story: House, night: str, loses: str
) -> None:
    first = story.lake.nights()[0]
    row = decision(story, night)
    assert (row["decision"], row["champion"]) == ("kept", first["model_id"])
    assert row["challenger_score"] > row["champion_score"] + 0.1
    assert row["low"] > 0
    assert "the challenger is proved better" in row["reason"]
    assert loses in row["reason"]
    assert json.loads(row["per_class"])["chess"][:2] == [1, 0]
    assert json.loads(row["slices"]).get("shop", {}).get("club", [1, 0])[:2] == [1, 0]
    there = next(one for one in story.lake.nights() if one["night"] == night)
    assert there["model_id"] == first["model_id"]
    assert not there["figures"]["promoted"]
    refused = there["figures"]["challenger_version"]
    tags = MlflowClient(f"sqlite:///{SCRATCH}/mlflow.db").get_model_version(
        story.name, str(refused)
    ).tags  # fmt: skip
    assert tags["nightshift.decision"] == "kept"
    assert loses in tags["nightshift.reason"]


def test_without_floors_the_same_challenger_becomes_champion(story: House) -> None:
    row = decision(story, "n4")
    assert row["decision"] == "promoted"
    assert json.loads(row["per_class"])["chess"][:2] == [1, 0]
    assert story.lake.published()["model_id"] == row["challenger"]
