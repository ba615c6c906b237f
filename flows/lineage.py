"""Lineage: from what is said of a document back to the model, the night, the rows and the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from flows.champions import moment, night_of_training
from nightshift.errors import ConfigError, NightError
from nightshift.pipeline import Settings, masked
from nightshift.retention import prunings, told
from nightshift.tables import Lake

KINDS = {"artifacts": "the MLflow run's files", "versions": "these table versions"}
"""What retention may have removed of the night on which a model was trained."""
READ_TO_TRAIN = ("documents", "labels", "tokens")
"""Tables that a training reads."""


def lineage(
    settings: Settings,
    pipeline: str,
    doc_id: str,
    at: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Where a document came from, what a model says of it, and what that was learned from.

    `trained` is the night on which its model was: the versions of the tables as it left them.
    `others` are models that were champion and answered for it, too.

    Args: the champion's answer now, or at a moment, as `nightshift champion` has it; or that of
    another model, by the beginning of its model_id.
    Raises: ConfigError for a document that is not published, a moment or model that is none,
    NightError before the first night.
    """
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    done = [row for row in lake.nights() if row["state"] == "published"]
    if not done:
        raise NightError(
            f"lineage: {pipeline} has no published night yet. Run one: nightshift run {pipeline}"
        )
    document = _newest(lake, done, "documents", doc_id, ["label", "split", "source_file", "row"])
    if document is None:
        raise ConfigError(
            f"lineage: {pipeline} has no document {doc_id!r}. Ids are in the column doc_id: "
            f"nightshift export {pipeline} documents"
        )
    found: dict[str, Any] = {
        "pipeline": pipeline,
        "doc_id": doc_id,
        "document": document,
        "champion": None,
        "prediction": None,
        "others": [],
        "model": None,
        "trained": None,
        "gone": [],
    }
    then = _answering(done, pipeline, at, model)
    asked = then["model_id"]
    kind = (then["figures"].get("model") or {}).get("kind")
    found["champion"] = {"model_id": asked, "version": then["registry_version"], "kind": kind}
    answers = _answers(lake, done, doc_id, then["number"])
    found["others"] = [
        {"model_id": one, "version": night["registry_version"], "night": night["night"]}
        for one, (_, night) in answers.items()
        if one != asked
    ]
    if asked not in answers:
        return found
    said, classified = answers[asked]
    learned = night_of_training(lake, done, asked) or classified
    return found | {
        "prediction": said | _runs(settings, classified),
        "model": {
            "model_id": asked,
            # A model has a version for each clustering: this one answered that night.
            "version": classified["registry_version"],
            "tokenizer": learned["figures"].get("basis", {}).get("tokenizer"),
            "uri": classified["model_uri"],
        },
        "trained": {
            "night": learned["night"],
            "tables": {name: learned["versions"].get(name) for name in READ_TO_TRAIN},
            "code": learned["code_version"],
            "config": learned["config_digest"],
            **_runs(settings, learned),
        },
        "gone": [f"{KINDS[row['kind']]} of night {learned['night']}: {told(row)}"
                 for row in prunings(lake, of_night=learned["night"]) if row["kind"] in KINDS],
    }  # fmt: skip


def _answering(
    done: list[dict[str, Any]], pipeline: str, at: str | None, model: str | None
) -> dict[str, Any]:
    """The newest published night of the model that is asked about."""
    if at is not None and model is not None:
        raise ConfigError("lineage: --at and --model each name a model. Give one of them.")
    until = moment(at)
    there = [row for row in done if row["finished"] <= until]
    if not there:
        raise NightError(f"lineage: {pipeline} had no published night at {at}.")
    if model is None:
        return there[-1]
    ids = list(dict.fromkeys(row["model_id"] for row in done if row["model_id"]))
    meant = [one for one in ids if one.startswith(model)] if model else []
    if len(meant) != 1:
        raise ConfigError(
            f"--model: found {model!r}, expected the beginning of one model's id: "
            f"{', '.join(ids) or 'no night had a model'}."
        )
    return [row for row in done if row["model_id"] == meant[0]][-1]


def _answers(
    lake: Lake, done: list[dict[str, Any]], doc_id: str, until: int
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By model_id, the newest answer for a document up to a night, and the row of its night."""
    version = done[-1]["versions"].get("predictions")
    if version is None:
        return {}
    columns = ["label", "probability", "abstained", "model_id", "night"]
    rows = lake.read("predictions", columns, pc.field("doc_id") == doc_id, version).to_pylist()
    nights = {row["night"]: row for row in done if row["number"] <= until}
    mine = [row for row in rows if row["night"] in nights]
    mine.sort(key=lambda row: nights[row["night"]]["number"])
    return {row["model_id"]: (row, nights[row["night"]]) for row in mine}


def _newest(
    lake: Lake,
    done: list[dict[str, Any]],
    table: str,
    doc_id: str,
    columns: list[str],
) -> dict[str, Any] | None:
    """A document's row of the newest night, as published."""
    where = pc.field("doc_id") == doc_id
    version = done[-1]["versions"].get(table)
    if version is None:
        return None
    rows = lake.read(table, [*columns, "night"], where, version).to_pylist()
    order = {row["night"]: row["number"] for row in done}
    return max(rows, key=lambda row: order.get(row["night"], 0), default=None)


def _runs(settings: Settings, night: dict[str, Any]) -> dict[str, Any]:
    runs = {"mlflow_run": night["mlflow_run"], "prefect_run": night["prefect_run"]}
    return {**runs, "mlflow": masked(settings.mlflow)}


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a terminal."""
    document, said = found["document"], found["prediction"]
    source = f"row {document['row']} of {document['source_file']}"
    yield f"document   {found['doc_id']}, night {document['night']}, {source}"
    yield f"side       {document['split']}, label {document['label'] or 'none'}"
    if said is None:
        yield from _no_answer(found)
        return
    held = ", abstained" if said["abstained"] else ""
    yield f"prediction {said['label']} ({said['probability']:.4f}{held}), night {said['night']}"
    yield f"           MLflow run {said['mlflow_run']}, Prefect run {said['prefect_run']}"
    model, trained = found["model"], found["trained"]
    yield f"model      {model['model_id']}, version {model['version']} of the registry"
    yield f"tokenizer  {model['tokenizer']}"
    tables = ", ".join(f"{name} {version}" for name, version in trained["tables"].items())
    yield f"trained    night {trained['night']}, on table versions: {tables}"
    yield f"           MLflow run {trained['mlflow_run']}, Prefect run {trained['prefect_run']}"
    for one in found["gone"]:
        yield f"gone       {one}"
    yield f"code       {trained['code']}, config {trained['config']}"


def _no_answer(found: dict[str, Any]) -> Iterator[str]:
    """Why there is no prediction, and whose there are."""
    its = found["champion"]
    if its["kind"] != "network":
        yield "prediction none: there is no classifier" + ("" if its["model_id"] else " yet")
    else:
        yield (
            f"prediction none: version {its['version']} (model {its['model_id'][:12]}) had not "
            "read it; a night in which it is champion labels what it has not read"
        )
    for one in found["others"]:
        yield (
            f"           version {one['version']} answered in night {one['night']}: "
            f"--model {one['model_id'][:12]}"
        )
