"""What evaluate leaves of a night with columns, dates, near duplicates and wrong labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SCRATCH, House, rows

NIGHT = "n1"


def given() -> list[dict[str, Any]]:
    """Rows with a region and a day; one in ten bears a wrong label and says so."""
    found = []
    for place, row in enumerate(rows(130)):
        wrong = place % 10 == 3
        others = [one for one in ("chess", "cooking", "sailing") if one != row["label"]]
        found.append({
            **row,
            "label": others[place % 2] if wrong else row["label"],
            "wrong": wrong,
            "region": "north" if place % 3 else "south",
            "day": f"2026-{1 + place % 11:02d}-01",
            "split": ("train", "train", "validation", "test")[place % 4],
        })  # fmt: skip
    # A test row that differs from a training row in nothing but its end.
    long = "the anchor and the sail and the mast and the keel were new in this harbour"
    about = {"label": "sailing", "region": "s3://<b>//../x", "day": "2026-11-02", "wrong": False}
    return [*found, {"text": long, "split": "train", **about},
            {"text": f"{long}!", "split": "test", **about}]  # fmt: skip


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> House:
    house = House(tmp_path_factory.mktemp("evaluated"))
    house.declare(source={"split": "split", "time": "day", "columns": ["region", "wrong"]})
    house.drop("one.jsonl", given())
    house.work(NIGHT)
    return house


def artifact(house: House, name: str) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{SCRATCH}/mlflow.db")
    return mlflow.artifacts.load_text(f"runs:/{house.lake.published()['mlflow_run']}/{name}")


def test_documents_keep_their_declared_columns(worked: House) -> None:
    found = {json.loads(row["columns"])["region"] for row in worked.table("documents")}
    assert found == {"north", "south", "s3://<b>//../x"}


def test_every_kind_of_slice_adds_up_to_the_test_rows(worked: House) -> None:
    slices = json.loads(artifact(worked, "evaluation/challenger_slices.json"))
    tested = sum(row["split"] == "test" for row in worked.table("documents"))
    kinds = {row["kind"] for row in slices}
    assert {"age", "region", "wrong"} <= kinds
    for kind in kinds:
        assert sum(row["rows"] for row in slices if row["kind"] == kind) == tested
    accuracy = {row["name"]: row["accuracy"] for row in slices if row["kind"] == "wrong"}
    assert accuracy["false"] > 0.9
    assert accuracy["true"] < 0.1
    figures = mlflow.MlflowClient().get_run(worked.lake.published()["mlflow_run"]).data.metrics
    assert figures["evaluate/challenger_accuracy/wrong false"] == accuracy["false"]


def test_what_is_suspected_are_the_wrong_labels_of_rows_no_model_was_taught(worked: House) -> None:
    suspects = json.loads(artifact(worked, "evaluation/challenger_suspects.json"))
    documents = {row["doc_id"]: row for row in worked.table("documents")}
    wrong = [json.loads(documents[row["doc_id"]]["columns"])["wrong"] for row in suspects]
    held = [row for row in documents.values() if row["split"] in ("test", "gate")]
    planted = sum(json.loads(row["columns"])["wrong"] == "true" for row in held)
    # One row in ten is wrong: that is what chance would find.
    assert wrong.count("true") / len(wrong) > 0.7
    assert wrong.count("true") > 0.7 * planted
    assert {documents[row["doc_id"]]["split"] for row in suspects} <= {"test", "gate"}
    assert all(row["text"] == documents[row["doc_id"]]["text"] for row in suspects)


def test_mistakes_are_all_wrong_and_the_surest_stand_first(worked: House) -> None:
    mistakes = json.loads(artifact(worked, "evaluation/challenger_mistakes.json"))
    assert mistakes
    assert all(row["label"] != row["said"] for row in mistakes)
    sure = [row["probability"] for row in mistakes]
    assert sure == sorted(sure, reverse=True)


def test_the_near_duplicate_is_told_and_the_score_without_it(worked: House) -> None:
    [pair] = json.loads(artifact(worked, "evaluation/near_duplicates.json"))
    documents = {row["doc_id"]: row for row in worked.table("documents")}
    assert documents[pair["doc_id"]]["text"] == documents[pair["like"]]["text"] + "!"
    outputs = worked.lake.stages(NIGHT)["evaluate"]["outputs"]
    assert outputs["near"]["rows"] == 1
    apart, whole = outputs["details"]["challenger"]["apart"], outputs["challenger"]
    right = round(whole["accuracy"] * whole["rows"]) - round(apart["accuracy"] * apart["rows"])
    assert (apart["rows"], right) == (whole["rows"] - 1, 1)


def test_calibration_before_and_after_and_the_curves_are_figures_and_pictures(
    worked: House,
) -> None:
    figures = worked.lake.stages(NIGHT)["evaluate"]["figures"]
    bins = json.loads(artifact(worked, "evaluation/challenger_reliability.json"))
    assert bins["error_after"] == pytest.approx(figures["challenger_calibration_error"])
    assert bins["error_before"] == figures["challenger_uncalibrated_error"] != bins["error_after"]
    assert "uncalibrated" in artifact(worked, "reliability/challenger.svg")
    curves = worked.lake.stages(NIGHT)["train"]["outputs"]["curves"]
    assert [one["epoch"] for one in curves] == list(range(1, len(curves) + 1))
    assert "was kept" in artifact(worked, "training/curves.svg")


def test_the_page_has_a_section_for_each(worked: House) -> None:
    page = Path(worked.status()[0]["report"]).read_text()
    for name in ("slices", "training", "mistakes", "leakage"):
        assert f'<section id="{name}">' in page
    assert "in this harbour!" in page


def test_too_many_documents_are_not_compared_and_it_is_said(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.declare(evaluation={"near_documents": 10}, clusters={"k_max": 2})
    house.drop("one.jsonl", rows(60))
    house.work(NIGHT)
    near = house.lake.stages(NIGHT)["evaluate"]["outputs"]["near"]
    assert "are more than evaluation.near_documents (10)" in near["note"]
    assert "Nobody looked for near duplicates" in Path(house.status()[0]["report"]).read_text()
