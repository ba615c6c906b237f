"""report: the finished tables of the night, as a page for the morning."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from prefect.artifacts import create_markdown_artifact

from nightshift.corpus import current_assignments, texts_of
from nightshift.pictures import Point, lay_out
from nightshift.reports import NightReport, digest_text, render
from nightshift.scoring import Scores

from .cluster import Clustered, living, quality_of
from .embed import Embedded
from .evaluate import Evaluated
from .ingest import Files, Ingested
from .promote import Promoted
from .stage import Night, Outcome, stage
from .tokens import Tokens
from .train import Trained

log = logging.getLogger(__name__)

PAGE = "report.html"


class Reported(Outcome):
    """Where the page is, and its short form."""

    path: str
    digest_text: str


@stage("report", "report")
def report(
    night: Night,
    files: Files,
    ingested: Ingested,
    tokens: Tokens,
    trained: Trained,
    evaluated: Evaluated,
    promoted: Promoted,
    embedded: Embedded,
    clustered: Clustered,
) -> Reported:
    """Write the page, keep it in MLflow, and link it from the flow run."""
    clusters = _clusters(night)
    previous, previous_name = _previous(night, evaluated, promoted)
    who = "challenger" if promoted.promoted else "champion"
    now = {"champion": "champion before", "challenger": "new champion"}
    details = evaluated.details.get(who, {}) if embedded.winner else {}
    shown = [one for row in [*clusters, *clustered.loose] for one in row["exemplars"]]
    for kind in ("mistakes", "suspects"):
        shown += [row["doc_id"] for row in details.get(kind, [])]
    for pair in evaluated.near.get("examples", []):
        shown += [pair["doc_id"], pair["like"]]
    found = NightReport(
        pipeline=night.pipeline_name,
        night=night.name,
        number=night.number,
        started=_started(night),
        finished=datetime.now(UTC),
        seconds={name: row["seconds"] for name, row in night.lake.stages(night.name).items()},
        documents=ingested.documents.rows,
        duplicates=int(ingested.figures["duplicates"]),
        rejects=int(ingested.figures["rejects"]),
        labelled=ingested.labelled,
        documents_total=night.lake.read("documents", ["doc_id"]).num_rows,
        reject_reasons=ingested.rejects,
        files=_of_night(night, "batches"),
        languages=ingested.languages,
        unknown_rate=tokens.figures.get("unknown_rate"),
        champion=f"model {embedded.winner.model_id}" if embedded.winner else None,
        trained=trained.challenger is not None,
        outcome=promoted.reason,
        quality=_scores(evaluated.challenger if promoted.promoted else evaluated.champion),
        previous=previous,
        previous_name=previous_name,
        challenger=None if promoted.promoted else _scores(evaluated.challenger),
        baseline=evaluated.baseline,
        promotion=next(iter(_of_night(night, "promotions")), None),
        details=details,
        near=evaluated.near,
        curves=trained.curves,
        checks=evaluated.checks,
        failed={
            now[name] if promoted.promoted else name: one["failed"]
            for name, one in evaluated.details.items()
        },
        label_counts=_label_counts(night, embedded),
        clusters=clusters,
        cluster_quality=quality_of(clustered),
        loose=clustered.loose,
        examples=texts_of(night.lake, shown),
        points=_points(night, embedded, {row["cluster_id"] for row in clusters}),
        notes=_notes(night, files, ingested, tokens, evaluated, clustered),
        links={"MLflow run": night.tracking.link(), "tables": night.lake.root},
    )
    page = render(found, night.pipeline.report)
    path = Path(night.settings.reports) / night.pipeline_name / f"{night.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever has yesterday's page open must never load half of tonight's.
    beside = path.with_suffix(".part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    night.tracking.text(page, PAGE)
    words = digest_text(found)
    _tell_prefect(night, words, path)
    log.info("report    %s", path)
    return Reported(path=str(path), digest_text=words)


def _previous(
    night: Night, evaluated: Evaluated, promoted: Promoted
) -> tuple[dict[str, Any] | None, str]:
    """What tonight's quality is held against: the same rows, wherever two models saw them."""
    if promoted.promoted and evaluated.champion is not None:
        return evaluated.champion, "yesterday's model on the same rows"
    return night.before.get("quality"), "yesterday"


def _tell_prefect(night: Night, words: str, path: Path) -> None:
    """An artifact on the flow run: what happened, and where the page and the figures are."""
    fenced = words.replace("`", "'")
    create_markdown_artifact(
        f"```\n{fenced}\n```\n\n- Report: [{path.name}]({path.as_uri()})\n"
        f"- MLflow: {night.tracking.link()}\n",
        key=f"{night.pipeline_name}-report".replace("_", "-"),
        description=f"Night {night.name} of {night.pipeline_name}",
    )


def _started(night: Night) -> datetime:
    row = next((one for one in night.lake.nights() if one["night"] == night.name), None)
    return row["started"] if row else datetime.now(UTC)


def _of_night(night: Night, table: str) -> list[dict[str, Any]]:
    return night.lake.read(table, where=pc.field("night") == night.name).to_pylist()


def _scores(found: dict[str, Any] | None) -> Scores | None:
    return Scores(**found) if found else None


def _clusters(night: Night) -> list[dict[str, Any]]:
    """Tonight's clusters, largest first, each with its size of the night before."""
    before: dict[str, int] = {}
    if night.previous:
        rows = living(night.lake, night.previous["night"])
        before = {row["cluster_id"]: row["size"] for row in rows}
    rows = living(night.lake, night.name)
    for row in rows:
        del row["centroid"]
        row["previous_size"] = before.get(row["cluster_id"])
    return sorted(rows, key=lambda row: (-row["size"], row["cluster_id"]))


def _label_counts(night: Night, embedded: Embedded) -> dict[str, int]:
    """Tonight's predicted labels of the documents that are new tonight."""
    if embedded.winner is None:
        return {}
    new = night.lake.read("documents", ["doc_id"], pc.field("night") == night.name)["doc_id"]
    where = (pc.field("night") == night.name) & pc.field("doc_id").isin(new.combine_chunks())
    labels = night.lake.read("predictions", ["label"], where)["label"]
    return dict(Counter(labels.to_pylist()).most_common())


def _points(night: Night, embedded: Embedded, clusters: set[str]) -> list[Point]:
    """A sample of all documents, laid out in two dimensions."""
    most = night.pipeline.report.map_points
    if embedded.winner is None or not clusters or not most:
        return []
    lake = night.lake
    assigned = {one: where for one, (where, _) in current_assignments(lake).items()}
    chosen = np.random.default_rng(1).permutation(len(assigned))[:most]
    doc_ids = sorted(assigned)
    sample = {doc_ids[one] for one in chosen}
    where = (pc.field("model_id") == embedded.winner.model_id) & pc.field("doc_id").isin(
        sorted(sample)
    )
    vectors = lake.read("embeddings", ["doc_id", "vector"], where)
    said = lake.read("predictions", ["doc_id", "label"], where)
    labels = dict(zip(said["doc_id"].to_pylist(), said["label"].to_pylist(), strict=True))
    rows = vectors["doc_id"].to_pylist()
    if not rows:
        return []
    places = lay_out(np.array(vectors["vector"].to_pylist(), np.float32))
    texts = texts_of(lake, rows)
    return [
        Point(float(x), float(y), assigned[one], labels.get(one), texts[one])
        for one, (x, y) in zip(rows, places, strict=True)
    ]


def _notes(
    night: Night,
    files: Files,
    ingested: Ingested,
    tokens: Tokens,
    evaluated: Evaluated,
    clustered: Clustered,
) -> list[str]:
    """What somebody should know before believing the rest."""
    notes = [f"{uri}: {problem}" for uri, problem in ingested.problems.items()]
    if files.waiting:
        names = ", ".join(Path(uri).name for uri in files.waiting[:5])
        notes.append(f"{len(files.waiting)} files are still being written and wait: {names}")
    limit = night.pipeline.tokenizer.unknown_warning
    if tokens.figures.get("unknown_rate", 0.0) > limit:
        notes.append(
            f"{tokens.figures['unknown_rate']:.1%} of tonight's tokens are unknown "
            f"(the warning starts at {limit:.0%})"
        )
    if evaluated.note:
        notes.append(f"No quality tonight: {evaluated.note}")
    if evaluated.failed_checks:
        number = len(evaluated.failed_checks)
        notes.append(f"The challenger fails {number} of the checks that it must pass")
    if clustered.ended:
        notes.append(f"Clusters that ended: {', '.join(clustered.ended)}")
    return notes
