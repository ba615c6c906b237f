"""Forgetting: documents leave every table and page for good, old versions included.

    a note of what is to be done -> tombstones -> tables anew, version by version -> pages, MLflow,
    journal -> one commit of `nights`, by which readers see the new versions -> old files go
    -> receipt

The note lies beside the pipeline's lock until the end. Killed at any point, the same command, or
the next night, finishes it: before that commit all is made again from the versions that the note
names, after it only files are left to delete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.locking import alone, lock_path
from nightshift.cleaning import clean, content_digest
from nightshift.erasure import (
    EDITED,
    PER_DOCUMENT,
    Forgotten,
    find,
    forgotten_digests,
    rewrite,
    words_only_of,
)
from nightshift.errors import ConfigError, NightshiftError
from nightshift.journal import LONGEST_REASON, cleaned, login
from nightshift.pipeline import Pipeline, Settings
from nightshift.queues import index_folder, remove_indexes
from nightshift.sources import list_files, read_rows
from nightshift.tables import SCHEMAS, Lake, rows_of
from nightshift.tokenizer import Tokenizer

PAGES = (".html", ".svg", ".json", ".txt", ".md", ".csv", ".part")
"""Kept files that can show a text; models are weights, entries of vocabularies and settings."""


def forget(
    settings: Settings, pipeline: str, doc_ids: list[str], reason: str, by: str | None = None
) -> dict[str, Any]:
    """Remove documents for good; returns the receipt, which is also kept.

    Raises: ConfigError for an id that is not known, or a reason that is none; BusyError.
    """
    said, who = cleaned(reason, "--reason", LONGEST_REASON), cleaned(by or login(), "by")
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    from tasks.tracking import be_brief

    be_brief()
    with alone(settings, pipeline, settings.pipeline(pipeline)):
        finished = finish(settings, pipeline)
        known = forgotten_digests(lake)
        left = [one for one in dict.fromkeys(doc_ids) if content_digest(one) not in known]
        if not left and finished is not None:
            return finished
        _all_known(lake, pipeline, doc_ids if finished is None else left)
        note = {
            "pipeline": pipeline,
            "doc_ids": left,
            "reason": said,
            "by": who,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": {name: lake.version(name) for name in SCHEMAS},
        }
        _write(_note_path(settings, pipeline), note)
        receipt = finish(settings, pipeline)
        assert receipt is not None
        return receipt


def finish(settings: Settings, pipeline: str) -> dict[str, Any] | None:
    """Do what a note says is to be done; without one, nothing. The caller holds the lock."""
    path = _note_path(settings, pipeline)
    if not path.exists():
        return None
    note = json.loads(path.read_text(encoding="utf-8"))
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    if "receipt" not in note:
        note = {**note, "receipt": _remove(settings, lake, note)}
        # From here on readers have the new versions; what the old ones name may go.
        _write(path, note)
    lake.vacuum()
    receipt = note["receipt"]
    _write(_receipt_path(settings, pipeline, receipt), receipt)
    path.unlink()
    return receipt


def is_unfinished(settings: Settings, pipeline: str) -> bool:
    """Whether a forgetting was begun and not finished."""
    return _note_path(settings, pipeline).exists()


def preview(settings: Settings, pipeline: str, doc_ids: list[str]) -> Iterator[str]:
    """What is about to go, for a person to confirm."""
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    if _note_path(settings, pipeline).exists():
        yield "An earlier forgetting was not finished; it is finished first."
        return
    _all_known(lake, pipeline, doc_ids)
    _, rows = find(lake, doc_ids, None, settings.pipeline(pipeline).cleaning)
    nights = ", ".join(dict.fromkeys(row["night"] for row in rows))
    yield f"Documents of {pipeline} to forget: {len(rows)}, of {nights}. They leave every table,"
    yield "its old versions, the reports and MLflow. This cannot be undone."


def as_lines(receipt: dict[str, Any]) -> Iterator[str]:
    """The receipt for a terminal."""
    removed = ", ".join(f"{table} {rows}" for table, rows in receipt["rows"].items() if rows)
    yield f"forgotten  rows removed or emptied: {removed}"
    yield f"pages      {len(receipt['pages'])} reports and MLflow artifacts no longer show them"
    for one in receipt["models"]:
        yield f"model      version {one['version']} of {one['night']}: {one['because']}"
    for one in receipt["remains"]:
        yield f"remains    {one}"
    for file in receipt["source_files"]:
        yield f"file       {file} still holds them: it is yours to clean"
    yield f"receipt    {receipt['kept_at']}"


# --- removing ---------------------------------------------------------------------------------


def _remove(settings: Settings, lake: Lake, note: dict[str, Any]) -> dict[str, Any]:
    """All but the deletion of old files; returns the receipt. Repeating it ends the same way."""
    pipeline, base = settings.pipeline(note["pipeline"]), note["base"]
    found, documents = find(lake, note["doc_ids"], base["documents"], pipeline.cleaning)
    forgotten = _with_words(lake, found, base)
    nights = lake.nights()
    _bury(lake, note, documents, nights)
    versions, rows = _tables(lake, forgotten, base, nights)
    _stages(lake, forgotten, nights)
    pages = [
        *_pages(settings, note["pipeline"], forgotten),
        *_artifacts(settings, note["pipeline"], forgotten),
    ]
    remove_indexes(index_folder(settings.lake, note["pipeline"], settings.reports))
    rows["journal"] = settings.journal_of(note["pipeline"]).erase(forgotten.doc_ids)
    receipt = {
        "pipeline": note["pipeline"],
        "at": note["at"],
        "by": note["by"],
        "reason": note["reason"],
        "documents": [
            {"doc_digest": content_digest(one["doc_id"]), "content_digest": one["content_digest"],
             "night": one["night"]}
            for one in documents
        ],
        "rows": rows,
        "pages": pages,
        "models": _models(settings, note["pipeline"], documents, nights),
        "remains": _remains(lake, forgotten, base),
        "source_files": _still_held(pipeline, documents),
    }  # fmt: skip
    receipt["kept_at"] = str(_receipt_path(settings, note["pipeline"], receipt))
    # The switch: one commit, after which no row of `nights` names an old version.
    tombstones = lake.version("tombstones")
    lake.write_nights([_switched(forgotten, row, versions, tombstones) for row in nights])
    return receipt


def _with_words(lake: Lake, found: Forgotten, base: dict[str, int | None]) -> Forgotten:
    """With the words by which clusters tell of them, and of no other document."""
    words: set[str] = set()
    if base["clusters"] is not None:
        columns = ["name", "keywords"]
        for row in lake.read("clusters", columns, version=base["clusters"]).to_pylist():
            words |= {row["name"], *(row["keywords"] or [])}
    for row in lake.nights():
        words |= {word for one in row["figures"].get("loose", []) for word in one["keywords"]}
    only = words_only_of(lake, found, words, base["documents"])
    return replace(found, words=only)


def _bury(
    lake: Lake, note: dict[str, Any], documents: list[dict[str, Any]], nights: list[dict[str, Any]]
) -> None:
    """What keeps a document from coming back, without a word of it."""
    night = nights[-1]["night"]
    there = lake.read("tombstones", where=pc.field("night") == night).to_pylist()
    published = [row["number"] for row in nights if row["state"] == "published"]
    mine = {
        content_digest(one["doc_id"]): {
            "doc_digest": content_digest(one["doc_id"]),
            "content_digest": one["content_digest"],
            "document_night": one["night"],
            "after": max(published, default=0),
            "by": note["by"],
            "at": datetime.fromisoformat(note["at"]),
        }
        for one in documents
    }
    others = [one for one in there if one["doc_digest"] not in mine]
    lake.replace("tombstones", night, rows_of("tombstones", [*others, *mine.values()]))


def _tables(
    lake: Lake, forgotten: Forgotten, base: dict[str, int | None], nights: list[dict[str, Any]]
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Each table anew; returns its versions as of the nights from the first edited one on, and how
    many rows were edited."""
    versions: dict[str, dict[str, int]] = {}
    rows: dict[str, int] = {}
    order = [row["night"] for row in nights]
    for table in (*PER_DOCUMENT, *EDITED):
        version = base[table]
        if version is not None:
            versions[table], rows[table] = rewrite(lake, table, forgotten, version, order)
    return versions, rows


def _stages(lake: Lake, forgotten: Forgotten, nights: list[dict[str, Any]]) -> None:
    """What stages told; an unfinished night does all but its list of files again."""
    for night in nights:
        noted = lake.stages(night["night"])
        kept = [
            forgotten.figures(row)
            for name, row in noted.items()
            if night["state"] == "published" or name == "files"
        ]
        if kept != [*noted.values()]:
            lake.write_stages(night["night"], kept)


def _switched(
    forgotten: Forgotten,
    row: dict[str, Any],
    versions: dict[str, dict[str, int]],
    tombstones: int | None,
) -> dict[str, Any]:
    """A row of `nights` that names the new versions and tells nothing of the documents."""
    row = {**row, "figures": forgotten.figures(row["figures"])}
    row["error"] = forgotten.figures(row["error"])
    if row["state"] == "published":
        new = {table: of[row["night"]] for table, of in versions.items() if row["night"] in of}
        row["versions"] = {**row["versions"], **new}
        if tombstones is not None:
            row["versions"]["tombstones"] = tombstones
    return row


# --- pages and models -------------------------------------------------------------------------


def _pages(settings: Settings, pipeline: str, forgotten: Forgotten) -> list[str]:
    """The reports folder without their texts; returns the pages that changed."""
    changed: list[str] = []
    folder = Path(settings.reports) / pipeline
    for path in sorted(one for one in folder.rglob("*") if one.suffix in PAGES and one.is_file()):
        if path == _note_path(settings, pipeline):
            continue
        before = path.read_text(encoding="utf-8", errors="replace")
        suffix = ".html" if path.suffix == ".part" else path.suffix
        after = forgotten.text(before, suffix)
        if after != before:
            beside = path.with_name(f".{path.name}.new")
            beside.write_text(after, encoding="utf-8")
            beside.replace(path)
            changed.append(str(path))
    return changed


def _artifacts(settings: Settings, pipeline: str, forgotten: Forgotten) -> list[str]:
    from tasks.tracking import rewrite_artifacts

    return rewrite_artifacts(settings.mlflow, pipeline, PAGES, forgotten.text)


def _models(
    settings: Settings,
    pipeline: str,
    documents: list[dict[str, Any]],
    nights: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Registered versions that learned from the documents, or whose clusters did."""
    from tasks.tracking import versions_of

    number = {row["night"]: row["number"] for row in nights}
    since = min(number[one["night"]] for one in documents)
    trained: dict[str, int] = {}
    found: list[dict[str, Any]] = []
    for one in versions_of(settings.mlflow, pipeline):
        of_night = number.get(one["night"], since)
        first = trained.setdefault(one["model_id"], of_night)
        because = (
            "trained when they were there" if first >= since
            else "its clusters were found when they were there" if of_night >= since
            else None
        )  # fmt: skip
        if because:
            found.append({key: one[key] for key in ("version", "model_id", "night")} |
                         {"because": because})  # fmt: skip
    return found


def _remains(
    lake: Lake,
    forgotten: Forgotten,
    base: dict[str, int | None],
) -> list[str]:
    """What cannot be taken out of a model that was learned from them, in words."""
    remains: list[str] = []
    for row in lake.read("tokenizers", version=base["tokenizers"]).to_pylist():
        tokenizer = Tokenizer(row["serialized"], row["unit"])
        entries = {one.strip("▁") for one in tokenizer.tokens(range(tokenizer.size))}
        only = words_only_of(lake, forgotten, entries, base["documents"])
        if only:
            remains.append(
                f"{len(only)} of {tokenizer.size} entries of tokenizer {tokenizer.digest[:8]} are "
                "in no other document; change any key of `tokenizer` to learn another"
            )
    if forgotten.words:
        remains.append(
            f"{len(forgotten.words)} words of clusters, in the bundles of these versions: delete "
            "them in the registry to be rid of those"
        )
    return remains


def _still_held(pipeline: Pipeline, documents: list[dict[str, Any]]) -> list[str]:
    """Source files, which are the user's, in which a document still stands."""
    digests = {one["content_digest"] for one in documents}
    ids = {one["doc_id"] for one in documents}
    found: list[str] = []
    named = {file.uri for file in list_files(pipeline.source) if not file.problem}
    for uri in sorted(named | {one["source_file"] for one in documents}):
        try:
            held = any(
                (pipeline.source.id is not None and row.id in ids)
                or content_digest(clean(row.text or "", pipeline.cleaning)) in digests
                for rows in read_rows(uri, pipeline.source)
                for row in rows
            )
        except (OSError, NightshiftError):
            continue
        if held:
            found.append(uri)
    return found


# --- notes and receipts -----------------------------------------------------------------------


def _all_known(lake: Lake, pipeline: str, doc_ids: list[str]) -> None:
    wanted = pa.array(doc_ids, pa.string())
    there = lake.read("documents", ["doc_id"], pc.field("doc_id").isin(wanted))["doc_id"]
    missing = [one for one in doc_ids if one not in {*there.to_pylist()}]
    if not missing:
        return
    gone = forgotten_digests(lake)
    before = [one for one in missing if content_digest(one) in gone]
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    raise ConfigError(
        f"forget: {pipeline} has no document {shown}"
        + (f" ({len(before)} of them forgotten before)" if before else "")
        + ". Ids are in the column doc_id: nightshift export "
        f"{pipeline} documents. Nothing was changed."
    )


def _note_path(settings: Settings, pipeline: str) -> Path:
    return lock_path(settings, pipeline).with_name(".forgetting.json")


def _receipt_path(settings: Settings, pipeline: str, receipt: dict[str, Any]) -> Path:
    at = receipt["at"].replace(":", "").replace("+0000", "Z")
    return Path(settings.reports) / pipeline / "receipts" / f"forgotten-{at}.json"


def _write(path: Path, value: dict[str, Any]) -> None:
    """All at once, and on the disk before anything relies on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
