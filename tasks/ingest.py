"""files: freeze what this night reads. ingest: every row of it into the tables, or a reason."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from nightshift.errors import AccountError, NightshiftError, SourceError
from nightshift.intake import Intake, Taken, known_before
from nightshift.known import Known
from nightshift.pipeline import masked
from nightshift.sources import FoundFile, file_digest, is_settled, list_files, read_rows
from nightshift.tables import TableRef, rows_of

from .progress import track
from .said import examples, journal_of, spoken
from .stage import Night, Outcome, stage

log = logging.getLogger(__name__)

VANISHED = "is gone since the night began"


class FrozenFile(BaseModel):
    """A file this night reads, as it was when the night began."""

    uri: str
    bytes: int
    modified: float | None
    digest: str


class Files(Outcome):
    """The files of the night; what arrives later waits for the next one."""

    files: list[FrozenFile]
    waiting: list[str]
    """Still being written."""
    unreadable: dict[str, str]
    """Files that could not even be read for their digest, with the reason."""
    words: int
    """How much of what people said this night reads: the last word's number."""


class Ingested(Outcome):
    """What came in; documents in = kept + duplicates + rejects."""

    documents: TableRef
    labels: TableRef
    rejects: dict[str, int]
    languages: dict[str, int]
    labelled: int
    problems: dict[str, str]
    """Files that could not be read, with the reason."""


@stage("files", once=True)
def freeze(night: Night) -> Files:
    """List the files that are new by content, once for the whole night."""
    source = night.pipeline.source
    found = list_files(source) if night.turn is None and night.asked.reads_files else []
    if night.asked.until is not None:
        moment = night.asked.until.timestamp()
        found = [file for file in found if file.modified is None or file.modified <= moment]
    before = night.lake.read("batches", ["uri", "bytes", "modified", "digest", "problem"])
    done = [row for row in before.to_pylist() if row["problem"] is None]
    seen = {(row["uri"], row["bytes"], row["modified"]) for row in done}
    digests = {row["digest"] for row in done}
    fresh = [file for file in found if (file.uri, file.bytes, file.modified) not in seen]
    fresh, waiting = _settled(night, fresh)
    frozen: list[FrozenFile] = []
    unreadable: dict[str, str] = {}
    for file in track(fresh, len(fresh), "looking at files"):
        if file.problem:
            unreadable[file.uri] = file.problem
            continue
        try:
            digest = file_digest(file.uri, source.paths)
        except (OSError, NightshiftError) as error:
            unreadable[file.uri] = str(error)
            continue
        if digest not in digests:
            digests.add(digest)
            frozen.append(
                FrozenFile(uri=file.uri, bytes=file.bytes, modified=file.modified, digest=digest)
            )
    if not found and night.turn is None and night.asked.reads_files:
        log.warning("files     nothing matches %s", ", ".join(map(masked, source.paths)))
    log.info("files     %d found, %d new, %d waiting", len(found), len(frozen), len(waiting))
    figures: dict[str, float] = {"found": len(found), "new": len(frozen), "waiting": len(waiting)}
    names = [file.uri for file in waiting]
    return Files(
        files=frozen,
        waiting=names,
        unreadable=unreadable,
        words=journal_of(night).last(),
        figures=figures,
    )


def _settled(night: Night, files: list[FoundFile]) -> tuple[list[FoundFile], list[FoundFile]]:
    """Part the files that are still being written from the rest.

    When they are all there is, somebody probably dropped them in and started the night by hand:
    a minute's patience serves them better than an empty night.
    """
    source = night.pipeline.source
    ready = [file for file in files if is_settled(file, source, time.time())]
    if files and not ready:
        youngest = max(file.modified or 0.0 for file in files)
        pause = min(source.settle_seconds, max(0.0, youngest + source.settle_seconds - time.time()))
        log.info(
            "files     %d changed in the last %d s and may still be written; waiting %.0f s",
            len(files), source.settle_seconds, pause,
        )  # fmt: skip
        time.sleep(pause + 0.1)
        now = {file.uri: file for file in list_files(source)}
        files = [now[file.uri] for file in files if file.uri in now]
        ready = [file for file in files if is_settled(file, source, time.time())]
    kept = {file.uri for file in ready}
    return ready, [file for file in files if file.uri not in kept]


@stage("ingest", "source language cleaning splits")
def ingest(night: Night, files: Files) -> Ingested:
    """Read the frozen files; each row becomes a document, a duplicate or a reject."""
    pipeline, lake = night.pipeline, night.lake
    # Of a million documents it takes a second, which a night without a file need not wait.
    known = (
        known_before(lake, night.name, with_ids=pipeline.source.id is not None)
        if files.files
        else Known()
    )
    intake = Intake(
        known,
        pipeline.cleaning,
        pipeline.splits,
        pipeline.language,
        datetime.now(UTC),
    )
    batches: list[dict[str, Any]] = [
        _batch(FrozenFile(uri=uri, bytes=0, modified=None, digest=""), problem=problem)
        for uri, problem in files.unreadable.items()
    ]
    reasons, languages, labelled = Counter[str](), Counter[str](), 0
    with ExitStack() as open_tables:
        names = ("documents", "duplicates", "rejects", "labels")
        writers = {name: open_tables.enter_context(lake.writer(name, night.name)) for name in names}
        for file in track(files.files, len(files.files), "reading files"):
            counts, problem = Counter[str](), None
            try:
                for rows in read_rows(file.uri, pipeline.source):
                    taken = intake.take(file.uri, rows)
                    for name in names:
                        writers[name].write(getattr(taken, name))
                    _count(taken, len(rows), counts)
                    reasons.update(one["reason"] for one in taken.rejects)
                    languages.update(one["lang"] for one in taken.documents)
                    labelled += sum(one["label"] is not None for one in taken.documents)
            except FileNotFoundError:
                problem = VANISHED
            except (SourceError, OSError) as error:
                problem = str(error)
            _check(file.uri, counts)
            if problem:
                log.warning("ingest    %s", problem)
            batches.append(_batch(file, counts, problem))
        said = spoken(night, files.words)
        of_clusters = examples(night, files.words, {row["doc_id"] for row in said})
        for batch in rows_of("labels", [*said, *of_clusters]):
            writers["labels"].write(batch)
    _unless_nothing_is_left(batches)
    lake.replace("batches", night.name, rows_of("batches", batches))
    total = {key: sum(one[key] for one in batches) for key in ("kept", "duplicates", "rejects")}
    log.info("ingest    %d rows: %d kept, %d duplicates, %d rejects",
             sum(one["rows"] for one in batches), *total.values())  # fmt: skip
    if said:
        log.info("ingest    %d labels from people", len(said))
    return Ingested(
        documents=writers["documents"].ref,
        labels=writers["labels"].ref,
        rejects=dict(sorted(reasons.items())),
        languages=dict(languages.most_common()),
        labelled=labelled,
        problems={one["uri"]: one["problem"] for one in batches if one["problem"]},
        figures={
            "rows": sum(one["rows"] for one in batches),
            "documents": total["kept"],
            "duplicates": total["duplicates"],
            "rejects": total["rejects"],
            "labelled": labelled,
            "new_labels": writers["labels"].ref.rows,
            "reviewed": len(said),
        },
    )


def _count(taken: Taken, rows: int, counts: Counter[str]) -> None:
    counts.update(
        rows=rows,
        kept=len(taken.documents),
        duplicates=len(taken.duplicates),
        rejects=len(taken.rejects),
    )


def _check(uri: str, counts: Counter[str]) -> None:
    accounted = counts["kept"] + counts["duplicates"] + counts["rejects"]
    if counts["rows"] != accounted:
        raise AccountError(
            f"{uri}: read {counts['rows']} rows, but {accounted} are kept, duplicates or rejects. "
            "Nothing of this night is published; please report this with the file."
        )


def _batch(
    file: FrozenFile, counts: Counter[str] | None = None, problem: str | None = None
) -> dict[str, Any]:
    counted = counts or Counter[str]()
    numbers = {key: counted[key] for key in ("rows", "kept", "duplicates", "rejects")}
    return {**file.model_dump(), **numbers, "problem": problem}


def _unless_nothing_is_left(batches: list[dict[str, Any]]) -> None:
    """A file that cannot be read is reported and passed over, unless it was all there was."""
    problems = [one["problem"] for one in batches if one["problem"] and one["problem"] != VANISHED]
    if problems and len(problems) == len(batches):
        shown = "\n".join(problems[:5])
        more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise SourceError(
            f"none of the night's {len(batches)} files can be read:\n{shown}{more}\n"
            "Correct pipelines.yaml or the files, then run the night again."
        )
