"""publish: the one moment at which the world sees the night."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightshift.erasure import forgotten_since
from nightshift.errors import PassingError
from nightshift.pipeline import config_digest
from nightshift.tables import SCHEMAS

from .cluster import Clustered, clusters_config, clusters_of, living, quality_of
from .embed import Embedded
from .evaluate import Evaluated
from .ingest import Ingested
from .promote import Promoted
from .report import Reported
from .stage import ModelRef, Night, Outcome, code_version, patiently, stage
from .tracking import (
    BUNDLE,
    CHALLENGER,
    CHAMPION,
    MODEL_REF_TAG,
    MODEL_TAG,
    Registry,
    scratch,
)
from .train import Trained

if TYPE_CHECKING:
    from nightshift.bundle import Model

log = logging.getLogger(__name__)

NEEDED = ["mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "scipy",
          "tokenizers", "torch"]  # fmt: skip


class Published(Outcome):
    """What the registry calls tonight's champion."""

    registry_version: int | None
    challenger_version: int | None


@stage("publish")
def publish(
    night: Night,
    ingested: Ingested,
    trained: Trained,
    evaluated: Evaluated,
    promoted: Promoted,
    embedded: Embedded,
    clustered: Clustered,
    reported: Reported,
) -> Published:
    """Register what changed, commit the night, then let the aliases follow."""
    champion = _as_before(night, embedded.winner)
    if champion is None:
        champion = _register(night, embedded.winner, with_clusters=True)
    challenger = champion
    if trained.challenger is not None and not promoted.promoted:
        challenger = _register(night, trained.challenger, with_clusters=False)
    elif trained.challenger is None:
        challenger = night.before.get("challenger_version") or champion
    if trained.challenger is not None and challenger is not None:
        said = {"decision": promoted.decision, "reason": promoted.reason, "by": promoted.by}
        Registry(night.settings.mlflow).tag(night.pipeline_name, challenger, said)
    scores = evaluated.challenger if promoted.promoted else evaluated.champion
    row = next(one for one in night.lake.nights() if one["night"] == night.name)
    tables = [name for name in SCHEMAS if name not in ("nights", "stages")]
    versions = {name: night.lake.version(name) for name in tables}
    winner = embedded.winner
    night.lake.write_night(
        {
            **row,
            "state": "published",
            "finished": datetime.now(UTC),
            "versions": {name: one for name, one in versions.items() if one is not None},
            "config_digest": config_digest(night.pipeline),
            "code_version": code_version(),
            "model_id": winner.model_id if winner else None,
            "model_uri": winner.uri if winner else None,
            "registry_version": champion,
            "error": None,
            "figures": {
                "rows": int(ingested.figures["rows"]),
                "documents": ingested.documents.rows,
                "duplicates": int(ingested.figures["duplicates"]),
                "rejects": int(ingested.figures["rejects"]),
                "labelled": ingested.labelled,
                "clusters": clustered.figures.get("clusters", 0),
                "clusters_config": clusters_config(night),
                "words": clustered.words,
                "words_undone": night.before.get("words_undone", 0),
                "cluster_quality": quality_of(clustered),
                "loose": clustered.loose,
                "quality": _short(scores),
                "baseline": evaluated.baseline,
                "trained": trained.challenger is not None,
                "promoted": promoted.promoted,
                "outcome": promoted.reason,
                "basis": trained.basis,
                "model": winner.model_dump() if winner else None,
                "challenger_version": challenger,
                "report": reported.path,
                "drift": reported.drift,
                "turn": night.turn.model_dump() if night.turn else None,
                "asked": night.asked.model_dump(mode="json"),
            },
        }
    )
    # From here on the night is published; whatever follows is repaired by the next start.
    _follow(night, champion, challenger)
    log.info("publish   night %s is published%s", night.name,
             f": version {champion} is champion" if champion else "")  # fmt: skip
    if promoted.decision == "waiting":
        log.info("publish   version %s waits for a person: nightshift promote %s %s --reason ...",
                 challenger, night.pipeline_name, challenger)  # fmt: skip
    return Published(registry_version=champion, challenger_version=challenger)


def _follow(night: Night, champion: int | None, challenger: int | None) -> None:
    """The aliases, patiently; a night that is published does not fail for them."""
    try:
        patiently(lambda: follow(night.settings.mlflow, night.pipeline_name, champion, challenger))
    except PassingError as error:
        log.warning("publish   %s The aliases follow at the next start.", error)


def follow(uri: str, pipeline: str, champion: int | None, challenger: int | None) -> None:
    """Make the aliases say what the `nights` table says; harmless to repeat."""
    registry = Registry(uri)
    for alias, number in ((CHAMPION, champion), (CHALLENGER, challenger)):
        if number is not None:
            registry.alias(pipeline, alias, number)


def _short(scores: dict[str, Any] | None) -> dict[str, float] | None:
    keys = ("rows", "accuracy", "macro_f1", "log_loss", "calibration_error")
    return {key: scores[key] for key in keys} if scores else None


def _as_before(night: Night, winner: ModelRef | None) -> int | None:
    """The version that answers already, where model, clusters and code are last night's."""
    last = night.previous
    if last is None or winner is None or night.champion is None:
        return None
    # After a rollback the version that answers is of older code than its night.
    made = night.before.get("bundle_code") or last["code_version"]
    same = (winner.model_id, code_version()) == (night.champion.model_id, made)
    # A version whose clusters are told by a forgotten word, or that a person deleted, is made anew.
    if not same or forgotten_since(night.lake, last["number"]) or not _is_registered(night, last):
        return None
    told = ("cluster_id", "name", "keywords", "centroid", "scale", "radius")
    now, then = (
        [[row[key] for key in told] for row in living(night.lake, one)]
        for one in (night.name, last["night"])
    )
    return last["registry_version"] if now == then else None


def _is_registered(night: Night, last: dict[str, Any]) -> bool:
    number = last["registry_version"]
    registry = Registry(night.settings.mlflow)
    return number is not None and registry.tags(night.pipeline_name, number) is not None


def _register(night: Night, ref: ModelRef | None, with_clusters: bool) -> int | None:
    """Register a model as a version of the pipeline; one that is known keeps its number."""
    if ref is None:
        return None
    from nightshift.bundle import Bundle, Model

    model_folder = night.tracking.fetch(ref.uri)
    model = Model.load(model_folder)
    with scratch() as parent:
        folder = Path(parent) / BUNDLE
        bundle = Bundle(model, clusters_of(night.lake, night.name) if with_clusters else None)
        digest = bundle.save(folder, model_folder)
        tags = {
            MODEL_TAG: ref.model_id,
            MODEL_REF_TAG: ref.model_dump_json(),
            "nightshift.night": night.name,
            "nightshift.code": code_version(),
            "nightshift.clusters": "yes" if with_clusters else "no",
        }
        return Registry(night.settings.mlflow).register(
            night.tracking.run_id,
            night.pipeline_name,
            folder,
            digest,
            tags,
            requirements(model),
        )


def requirements(model: Model) -> list[str]:
    """Exactly what a bundle needs to answer, at the versions it was made with."""
    names = [
        *NEEDED,
        *(["jieba"] if model.tokenizer.unit == "word" else []),
        *(["opencc"] if model.cleaning.chinese != "keep" else []),
        *(["transformers"] if model.pretrained is not None else []),
    ]
    # A build's local part (+cpu) is no version that another machine can ask for.
    return [f"{name}=={version(name).split('+')[0]}" for name in sorted(names)]
