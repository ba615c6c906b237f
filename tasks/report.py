"""report: the finished tables of the night, as a page for the morning."""

from __future__ import annotations

import logging
import os
import re
import textwrap
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import Field

from nightshift.changes import by_file, label_changes, place_all, standouts
from nightshift.corpus import Assigned, Excerpt, assigned, current_labels, texts_of
from nightshift.ids import drawn, ids_of, index_in
from nightshift.pedigree import moves, pedigree_picture
from nightshift.pictures import Point
from nightshift.pipeline import masked
from nightshift.reports import NightReport, render
from nightshift.scoring import Scores
from nightshift.sentences import digest_text, in_chinese
from nightshift.wording import Both, Say, counts, words_of

from .cluster import Clustered, living, quality_of
from .embed import Embedded
from .evaluate import Evaluated
from .ingest import Files, Ingested
from .promote import Promoted
from .reviewed import reviewed, sentences
from .stage import Night, Outcome, code_digest, stage
from .tokens import Tokens
from .train import Trained
from .why import explained, learned_from, shift_and_drift

log = logging.getLogger(__name__)

PAGE = "report.html"
SHORT_ID = 8
"""Characters of a model's id that a headline has."""
CELL = 84
"""Characters of a line in Prefect's table, which does not wrap them."""


class Reported(Outcome):
    """Where the page is, and its short form."""

    path: str
    digest_text: str
    drift: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What drifts against last night and the training set, with its evidence; no words."""


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
    return write_page(
        night, files, ingested, tokens, trained, evaluated, promoted, embedded, clustered
    )


def write_again(night: Night) -> Reported:
    """Write the page of a night that is published, from what its stages left."""
    left = {name: row["outputs"] for name, row in night.lake.stages(night.name).items()}
    return write_page(
        night,
        Files.model_validate(left["files"]),
        Ingested.model_validate(left["ingest"]),
        Tokens.model_validate(left["tokens"]),
        Trained.model_validate(left["train"]),
        Evaluated.model_validate(left["evaluate"]),
        Promoted.model_validate(left["promote"]),
        Embedded.model_validate(left["embed"]),
        Clustered.model_validate(left["cluster"]),
    )


def write_page(
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
    """The page of a night, as a file, in MLflow and on the flow run."""
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
    where = assigned(night.lake)
    model_id = embedded.winner.model_id if embedded.winner else None
    before = night.champion.model_id if night.champion else None
    # The night of a rollback has no page of its own.
    turned = (night.before.get("turn") or {}).get("kind") == "rollback"
    changes = label_changes(night.lake, before, model_id)
    look = standouts(night.lake, night.name, model_id, where, current_labels(night.lake))
    shown += [row["doc_id"] for rows in look.values() for row in rows]
    shown += [row["doc_id"] for row in changes.get("examples", [])]
    ended = _ended(night)
    learned = learned_from(night, embedded.winner, ingested.documents.rows)
    sample = drawn(where.doc_ids, night.pipeline.report.map_points)
    examples = pa.array(shown, pa.string())
    excerpt = Excerpt(night.lake, pa.concat_arrays([learned, sample, examples]), examples)
    shift, drift, figures = shift_and_drift(
        night, embedded.winner, ingested.documents.rows, excerpt, learned
    )
    found = NightReport(
        pipeline=night.pipeline_name,
        night=night.name,
        number=night.number,
        started=_started(night),
        finished=_finished(night),
        seconds={name: row["seconds"] for name, row in night.lake.stages(night.name).items()},
        documents=ingested.documents.rows,
        duplicates=int(ingested.figures["duplicates"]),
        rejects=int(ingested.figures["rejects"]),
        labelled=ingested.labelled,
        documents_total=night.lake.count("documents"),
        reject_reasons=ingested.rejects,
        files=_of_night(night, "batches"),
        languages=ingested.languages,
        unknown_rate=tokens.figures.get("unknown_rate"),
        champion=words_of("model_named", id=embedded.winner.model_id[:SHORT_ID])
        if embedded.winner
        else None,
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
        examples=texts_of(excerpt, shown),
        points=_points(night, embedded, where, sample, excerpt) if clusters else [],
        by_file=by_file(night.lake, night.name, model_id),
        changes=changes,
        ended=ended,
        pedigree=_pedigree(night) if clusters else "",
        shift=shift,
        drift=drift,
        standouts=look,
        # The same answers of the same model stand explained on last night's page.
        explained=explained(night, embedded.winner, _in_turn(look, details, changes))
        if ingested.documents.rows or ingested.labels.rows or model_id != before or turned
        else [],
        notes=[
            *sentences(reviewed(night, trained, evaluated)),
            *_notes(night, files, ingested, tokens, evaluated, clustered),
        ],
        links={"MLflow run": night.tracking.link(), "tables": masked(night.lake.root)},
    )
    page = render(found, night.pipeline.report)
    path = Path(night.settings.reports) / night.pipeline_name / f"{night.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever has yesterday's page open must never load half of tonight's.
    beside = path.with_suffix(".part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    night.tracking.text(page, PAGE)
    words = digest_text(found, Say(night.pipeline.report.language))
    _tell_prefect(night, words, path)
    log.info("report    %s", path)
    kept = ("documents", "evidence", "drifts", "night")
    return Reported(
        path=str(path),
        digest_text=words,
        drift={name: {key: one[key] for key in kept if key in one} for name, one in drift.items()},
        figures=figures,
    )


def _in_turn(
    look: dict[str, list[dict[str, Any]]], details: dict[str, Any], changes: dict[str, Any]
) -> list[str]:
    """Documents to explain: the first of every list, the second of every list, and so on."""
    lists = [*look.values(), details.get("suspects", []), details.get("mistakes", []),
             changes.get("examples", [])]  # fmt: skip
    turns = [rows[turn]["doc_id"] for turn in range(12) for rows in lists if turn < len(rows)]
    return list(dict.fromkeys(turns))


def _previous(
    night: Night, evaluated: Evaluated, promoted: Promoted
) -> tuple[dict[str, Any] | None, str]:
    """What tonight's quality is held against: the same rows, wherever two models saw them."""
    if promoted.promoted and evaluated.champion is not None:
        return evaluated.champion, "yesterday's model on the same rows"
    return night.before.get("quality"), "yesterday"


def _tell_prefect(night: Night, words: str, path: Path) -> None:
    """Artifacts on the flow run: what happened, and where the page and the figures are."""
    key = night.pipeline_name.replace("_", "-")
    about = f"Night {night.name} of {night.pipeline_name}"
    links = {"Report": _page_url(night, path), "MLflow run": night.tracking.link()}
    rows = [
        *(line.split(maxsplit=1) for line in words.splitlines()),
        *(("cause", night.asked.cause) for _ in [0] if night.asked.cause),
    ]
    # Prefect's page cuts what is wider than its table; a line more is read.
    lines = [
        (name if not place else "", line)
        for name, text in rows
        for place, line in enumerate(textwrap.wrap(text, CELL))
    ]
    table = "\n".join(f"| {name} | {_plain(line)} |" for name, line in lines)
    told = "\n".join(f"- {name}: {_linked(url)}" for name, url in links.items())
    create_markdown_artifact(
        f"| | |\n|---|---|\n{table}\n\n{told}\n", key=f"{key}-report", description=about
    )
    for name, url in links.items():
        if url.startswith("http"):
            which = f"{key}-{name.lower().replace(' ', '-')}-link"
            create_link_artifact(url, name, key=which, description=f"{name}: {about}")


def _page_url(night: Night, path: Path) -> str:
    """Where a browser opens the page; without a server of pages, the file."""
    server = os.environ.get("NIGHTSHIFT_REPORTS_URL", "").rstrip("/")
    return f"{server}/{night.pipeline_name}/{path.name}" if server else str(path)


def _linked(url: str) -> str:
    # A browser opens no file from a page of a server: a path is shown to be copied.
    return f"[{url}]({url})" if url.startswith("http") else f"`{url.replace('`', '')}`"


def _plain(text: str) -> str:
    """Words of documents in a Markdown table: none of their characters means anything."""
    return re.sub(r"([\\`*_\[\]|<>~&])", r"\\\1", text)


def _started(night: Night) -> datetime:
    row = next((one for one in night.lake.nights() if one["night"] == night.name), None)
    return row["started"] if row else datetime.now(UTC)


def _finished(night: Night) -> datetime:
    """Now, while the night is at work; a page that is written again keeps its moment."""
    row = next((one for one in night.lake.nights() if one["night"] == night.name), None)
    published = row is not None and row["state"] == "published"
    return row["finished"] if row and published else datetime.now(UTC)


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


def _ended(night: Night) -> list[dict[str, Any]]:
    """Clusters that ended tonight."""
    where = (pc.field("night") == night.name) & (pc.field("event") == "ended")
    columns = ["cluster_id", "name", "event", "size", "keywords", "parents", "heirs", "exemplars"]
    return night.lake.read("clusters", columns, where).to_pylist()


def _pedigree(night: Night) -> str:
    """How documents flowed between clusters over the last nights, tonight included."""
    order = [row["night"] for row in night.lake.nights()
             if row["state"] == "published" or row["night"] == night.name]  # fmt: skip
    changes = night.lake.read("assignments", ["night", "doc_id", "cluster_id"])
    shown = ["cluster_id", "night", "name", "event", "size", "parents", "heirs"]
    clusters = night.lake.read("clusters", shown).to_pylist()
    return pedigree_picture(order, clusters, moves(changes, order))


def _label_counts(night: Night, embedded: Embedded) -> dict[str, int]:
    """Tonight's predicted labels of the documents that are new tonight."""
    if embedded.winner is None:
        return {}
    tonight = pc.field("night") == night.name
    new = ids_of(night.lake.read("documents", ["doc_id"], tonight)["doc_id"])
    said = night.lake.read("predictions", ["doc_id", "label"], tonight)
    labels = said["label"].filter(pa.array(index_in(ids_of(said["doc_id"]), new) >= 0))
    counted = Counter({row["values"]: row["counts"] for row in labels.value_counts().to_pylist()})
    return dict(counted.most_common())


def _points(
    night: Night, embedded: Embedded, where: Assigned, sample: pa.Array, excerpt: Excerpt
) -> list[Point]:
    """A sample of all documents, laid out in two dimensions."""
    if embedded.winner is None:
        return []
    its = pc.field("model_id") == embedded.winner.model_id
    vectors = excerpt.read_of("embeddings", ["doc_id", "vector"], sample, its)
    rows = vectors["doc_id"].to_pylist()
    if not rows:
        return []
    said = excerpt.read_of("predictions", ["doc_id", "label"], sample, its)
    labels = dict(zip(said["doc_id"].to_pylist(), said["label"].to_pylist(), strict=True))
    flat = vectors["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    places = _places(night, flat.reshape(len(rows), -1))
    shown = excerpt.read_of("documents", ["doc_id", "text", "night"], sample)
    held = where.mapping(sample)
    about = {one: rest for one, *rest in zip(*(c.to_pylist() for c in shown.columns), strict=True)}
    return [
        Point(float(x), float(y), held[one][0], labels.get(one), *about[one])
        for one, (x, y) in zip(rows, places, strict=True)
    ]


def _places(night: Night, vectors: np.ndarray) -> np.ndarray:
    """Places of vectors in the plane; those of the newest map are kept beside the pages, numbers
    alone, for a night that has the same vectors."""
    digest = blake2b(np.ascontiguousarray(vectors).data, digest_size=16).hexdigest()
    folder = Path(night.settings.reports) / night.pipeline_name
    file = folder / f".map-{digest}-{code_digest()}.npy"
    if file.exists():
        with suppress(OSError, ValueError):
            found = np.load(file, allow_pickle=False)
            if found.shape == (len(vectors), 2):
                return found
    found = place_all(vectors)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".map-*"):
        old.unlink(missing_ok=True)
    beside = file.with_suffix(".part")
    with beside.open("wb") as out:
        np.save(out, found)
    beside.replace(file)
    return found


def _spoken(reason: str) -> Both:
    return Both(reason, in_chinese(reason))


def _notes(
    night: Night,
    files: Files,
    ingested: Ingested,
    tokens: Tokens,
    evaluated: Evaluated,
    clustered: Clustered,
) -> list[str | Both]:
    """What somebody should know before believing the rest."""
    notes: list[str | Both] = [f"{uri}: {problem}" for uri, problem in ingested.problems.items()]
    if files.waiting:
        names = ", ".join(Path(uri).name for uri in files.waiting[:5])
        many = counts("file", len(files.waiting))
        notes.append(words_of("note_waiting", files=many, names=names))
    limit = night.pipeline.tokenizer.unknown_warning
    unknown = tokens.figures.get("unknown_rate", 0.0)
    if unknown > limit:
        notes.append(words_of("note_unknown", share=f"{unknown:.1%}", limit=f"{limit:.0%}"))
    if evaluated.note:
        notes.append(words_of("note_no_quality", note=_spoken(evaluated.note)))
    if evaluated.failed_checks:
        notes.append(words_of("note_checks", n=len(evaluated.failed_checks)))
    if clustered.ended:
        notes.append(words_of("note_ended", names=", ".join(clustered.ended)))
    return notes
