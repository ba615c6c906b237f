"""Lineage: from what is said of a document back to the model, the night, the rows and the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from flows.champions import night_of_training
from nightshift.errors import ConfigError, NightError
from nightshift.pipeline import Settings, masked
from nightshift.retention import prunings, told
from nightshift.tables import Lake

KINDS = {"artifacts": "the MLflow run's files", "versions": "these table versions"}
"""What retention may have removed of the night on which a model was trained."""
READ_TO_TRAIN = ("documents", "labels", "tokens")
"""Tables that a training reads."""


def lineage(settings: Settings, pipeline: str, doc_id: str) -> dict[str, Any]:
    """Where a document came from, what the champion says of it, and what that was learned from.

    `trained` is the night on which its model was: the versions of the tables as it left them.
    Raises: ConfigError for a document that is not published, NightError before the first night.
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
        "prediction": None,
        "model": None,
        "trained": None,
        "gone": [],
    }
    champion = done[-1]["model_id"]
    of_it = pc.field("model_id") == champion
    columns = ["label", "probability", "abstained", "model_id"]
    said = _newest(lake, done, "predictions", doc_id, columns, of_it) if champion else None
    if said is None:
        return found
    classified = next(row for row in done if row["night"] == said["night"])
    learned = night_of_training(lake, done, champion) or classified
    return found | {
        "prediction": said | _runs(settings, classified),
        "model": {
            "model_id": champion,
            "version": done[-1]["registry_version"],
            "tokenizer": learned["figures"]["basis"].get("tokenizer"),
            "uri": done[-1]["model_uri"],
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


def _newest(
    lake: Lake,
    done: list[dict[str, Any]],
    table: str,
    doc_id: str,
    columns: list[str],
    also: pc.Expression | None = None,
) -> dict[str, Any] | None:
    """A document's row of the newest night, as published."""
    where = pc.field("doc_id") == doc_id
    version = done[-1]["versions"].get(table)
    if version is None:
        return None
    where = where if also is None else where & also
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
        yield "prediction none: there is no classifier yet"
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
