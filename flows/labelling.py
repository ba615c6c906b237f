"""Labels as files: people's words out and in, in the shapes that Label Studio and Argilla use.

csv, jsonl     doc_id, text, label, by, at; what a spreadsheet takes for a formula is guarded in csv
label-studio   a JSON array of tasks: data.doc_id, data.text; the label is a choice
argilla        a JSON array of records, as `dataset.records.to_json` of Argilla 2 writes

A document that is of no class has the label `(no class)` in all of them: an empty one says nothing,
neither out nor in, for most cells of a sheet are empty because nobody has come to them yet.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.reading import cell, uncell
from nightshift.cleaning import clean, content_digest
from nightshift.corpus import current_labels, texts_of
from nightshift.errors import ConfigError
from nightshift.journal import IMPORT, holding, is_person, label_of, login, person
from nightshift.pipeline import Settings
from nightshift.tables import Lake

FORMATS = ("csv", "jsonl", "label-studio", "argilla")
COLUMNS: tuple[str, ...] = ("doc_id", "text", "label", "by", "at")
FIELD, QUESTION = "text", "label"
"""Names of the text and of the question in both tools."""
AGENT = "person:"
"""Before a person's name, as Argilla names who suggested: its own users have ids we cannot know."""
NO_CLASS = "(no class)"
"""The label, in a file, of a document that is of none of the classes."""
MOST_TOLD = 5


# --- out --------------------------------------------------------------------------------------


def export_labels(settings: Settings, pipeline: str, form: str) -> Iterator[str]:
    """What people said of documents, published or not yet, as pieces of a file."""
    people = sorted(_people(settings, pipeline).values(), key=lambda row: row["doc_id"])
    rows = [{**row, "label": NO_CLASS if row["label"] is None else row["label"]} for row in people]
    if form == "csv":
        yield from _csv(rows)
    elif form == "jsonl":
        yield from (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        made = (_task(row) if form == "label-studio" else _record(row) for row in rows)
        yield "["
        for place, one in enumerate(made):
            yield (",\n" if place else "\n") + json.dumps(one, ensure_ascii=False)
        yield "\n]\n"


def _people(settings: Settings, pipeline: str) -> dict[str, dict[str, Any]]:
    """The newest label by a person of each document, by id."""
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    published = lake.published()
    found: dict[str, dict[str, Any]] = {}
    read = 0
    if published is not None and "labels" in published["versions"]:
        read = int(published["figures"].get("words", 0))
        version = published["versions"]["labels"]
        for row in lake.read("labels", version=version).sort_by("at").to_pylist():
            # Who spoke last: a source that came after a person has the word.
            found.pop(row["doc_id"], None)
            if is_person(row["by"]):
                found[row["doc_id"]] = row
    words = settings.journal_of(pipeline).said()
    held = holding(words)
    for word in words:
        if word.number > read:
            found.pop(word.doc_id, None)
            if word.doc_id in held:
                one = held[word.doc_id]
                found[word.doc_id] = {"label": one.label, "by": one.by, "at": one.at}
    texts = texts_of(lake, found)
    return {
        doc_id: {"doc_id": doc_id, "text": texts[doc_id], "label": row["label"], "by": row["by"],
                 "at": row["at"].isoformat(timespec="seconds")}
        for doc_id, row in found.items()
        if doc_id in texts
    }  # fmt: skip


def _csv(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    held = io.StringIO()
    writer = csv.DictWriter(held, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: cell(value) for key, value in row.items()})
        if held.tell() > 64 * 1024:
            yield held.getvalue()
            held.seek(0)
            held.truncate()
    yield held.getvalue()


def _task(row: dict[str, Any]) -> dict[str, Any]:
    """A task of Label Studio; its labelling config: Text name="text", Choices name="label"."""
    chosen = {"from_name": QUESTION, "to_name": FIELD, "type": "choices",
              "value": {"choices": [row["label"]]}}  # fmt: skip
    data = {key: row[key] for key in ("doc_id", "text", "by", "at")}
    return {"data": data, "annotations": [{"result": [chosen]}]}


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """A record of Argilla; its dataset has a field `text` and a question `label`."""
    said = {"value": row["label"], "score": None, "agent": f"{AGENT}{row['by']}"}
    return {
        "id": row["doc_id"],
        "fields": {FIELD: row["text"]},
        "metadata": {"at": row["at"]},
        "suggestions": {QUESTION: said},
        "responses": {},
        "vectors": {},
        "_server_id": None,
    }


# --- in ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A label in a file. `where` names its row; doc_id or text tells the document; None as the
    label says that it is of no class."""

    where: str
    doc_id: str | None
    text: str | None
    label: str | None
    by: str | None


def import_labels(
    settings: Settings, pipeline: str, file: Path, form: str | None, by: str | None
) -> Iterator[str]:
    """Say what a file says, all of it in one moment; tells what was done.

    Rows about documents that are not there are written beside the file, and can be imported later.
    Raises: ConfigError naming the row, and then nothing was said.
    """
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    journal, before = settings.journal_of(pipeline), current_labels(lake)
    said = {one.label for one in journal.said() if one.label is not None}
    read = list(_labels_of(file, form or _form_of(file), {*before.values(), *said}))
    given = [one for one in read if one is not None]
    who = person(by or login())
    ids = _ids(lake, settings.pipeline(pipeline), given)
    by_person: dict[str, list[tuple[str, str | None, str | None]]] = {}
    for one, doc_id in zip(given, ids, strict=True):
        if doc_id is not None:
            words = by_person.setdefault(by or one.by or who, [])
            words.append((doc_id, one.label, before.get(doc_id)))
    last = journal.last()
    for name, words in sorted(by_person.items()):
        journal.say_labels(words, IMPORT, name)
    known, fresh = sum(map(len, by_person.values())), len(journal.said(last))
    yield f"{file}: {known} labels of {pipeline}, {fresh} of them new; the next night learns them."
    if len(read) > len(given):
        yield (
            f"{len(read) - len(given)} rows have no label, which says nothing: they were passed "
            f"over. For a document that is of no class, write {NO_CLASS}."
        )
    unknown = [one for one, doc_id in zip(given, ids, strict=True) if doc_id is None]
    if unknown:
        beside = _lay_aside(file, unknown)
        shown = ", ".join(f"{one.where} ({one.doc_id or 'no id'})" for one in unknown[:MOST_TOLD])
        more = f" and {len(unknown) - MOST_TOLD} more" if len(unknown) > MOST_TOLD else ""
        yield (
            f"{pipeline} does not have the documents of {len(unknown)} rows: {shown}{more}. They "
            f"are kept in {beside}: import that file when the documents are there."
        )


def _ids(lake: Lake, pipeline: Any, given: list[Given]) -> list[str | None]:
    """The document of each label: by its id, else by its text; None where there is none."""
    wanted = pa.array(sorted({one.doc_id for one in given if one.doc_id}), pa.string())
    there = lake.read("documents", ["doc_id"], pc.field("doc_id").isin(wanted))
    known = {*there["doc_id"].to_pylist()}
    digests = {
        one.where: content_digest(clean(one.text, pipeline.cleaning))
        for one in given
        if not one.doc_id and one.text
    }
    of_digest: dict[str, str] = {}
    if digests:
        some = pc.field("content_digest").isin(pa.array(sorted({*digests.values()}), pa.string()))
        rows = lake.read("documents", ["content_digest", "doc_id"], some).to_pydict()
        of_digest = dict(zip(rows["content_digest"], rows["doc_id"], strict=True))
    return [
        (one.doc_id if one.doc_id in known else None)
        if one.doc_id
        else of_digest.get(digests.get(one.where, ""))
        for one in given
    ]


def _lay_aside(file: Path, unknown: list[Given]) -> Path:
    beside = file.with_name(f"{file.stem}.unknown.jsonl")
    rows = ({"doc_id": one.doc_id, "text": one.text, "by": one.by,
             "label": NO_CLASS if one.label is None else one.label} for one in unknown)  # fmt: skip
    beside.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return beside


def _form_of(file: Path) -> str:
    """What a file's ending, and of JSON its first row, say."""
    kind = file.suffix.lower()
    if kind in (".csv", ".jsonl"):
        return kind[1:]
    if kind == ".json":
        first = next(iter(_array(file)), {})
        return "argilla" if isinstance(first, dict) and "fields" in first else "label-studio"
    raise ConfigError(f"{file}: expected .csv, .jsonl or .json, or say --format {FORMATS}.")


def _labels_of(file: Path, form: str, known: set[str]) -> Iterator[Given | None]:
    """The labels of a file; None for a row that has none."""
    taken: dict[str, str | None] = {NO_CLASS: None}
    for where, row in _rows_of(file, form):
        if not isinstance(row, dict):
            raise ConfigError(f"{file} {where}: found no keys. Nothing was imported.")
        try:
            found = _READ[form](row)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ConfigError(
                f"{file} {where}: is not of the form {form} (at {error}). Nothing was imported."
            ) from error
        if found is None:
            continue
        doc_id, text, label, by = (None if one is None else str(one) for one in found)
        if label is None or not label.strip():
            yield None
            continue
        if not doc_id and not text:
            raise ConfigError(f"{file} {where}: found neither a doc_id nor a text. Nothing was "
                              "imported.")  # fmt: skip
        try:
            if label not in taken:
                taken[label] = label_of(label, known)
            by = person(by) if by else None
        except ConfigError as error:
            raise ConfigError(f"{file} {where}: {error} Nothing was imported.") from error
        yield Given(where, doc_id or None, text, taken[label], by)


def _rows_of(file: Path, form: str) -> Iterator[tuple[str, Any]]:
    """Rows with their names. Raises: ConfigError."""
    if form == "csv":
        csv.field_size_limit(2**31 - 1)
        reader = csv.DictReader(io.StringIO(_read(file)))
        lacking = {"label"} - {*(reader.fieldnames or [])}
        if lacking:
            raise ConfigError(f"{file}: has no column label; found "
                              f"{', '.join(reader.fieldnames or []) or 'no columns'}.")  # fmt: skip
        for row in reader:
            plain = {key: uncell(value) if isinstance(value, str) else value
                     for key, value in row.items()}  # fmt: skip
            yield f"line {reader.line_num}", plain
    elif form == "jsonl":
        for number, line in enumerate(_read(file).split("\n"), 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{file} line {number}: is not JSON ({error}). Nothing was "
                                      "imported.") from error  # fmt: skip
    else:
        yield from ((f"item {number}", one) for number, one in enumerate(_array(file), 1))


def _array(file: Path) -> list[Any]:
    try:
        found = json.loads(_read(file))
    except ValueError as error:
        raise ConfigError(f"{file}: is not JSON ({error}). Nothing was imported.") from error
    if not isinstance(found, list):
        raise ConfigError(f"{file}: expected a JSON array of rows. Nothing was imported.")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from error


Found = tuple[Any, Any, Any, Any] | None
"""doc_id, text, label and by of a row; None where it says nothing."""


def _plain(row: dict[str, Any]) -> Found:
    return row.get("doc_id"), row.get("text"), row["label"], row.get("by")


def _of_task(row: dict[str, Any]) -> Found:
    """The newest annotation that was not cancelled."""
    data = row["data"]
    kept = [one for one in row.get("annotations") or [] if not one.get("was_cancelled")]
    if not kept:
        return None
    choices = [one for one in kept[-1]["result"] if one.get("type") == "choices"]
    chosen = choices[0]["value"]["choices"] if choices else []
    label = chosen[0] if chosen else None
    return data.get("doc_id"), data.get(FIELD), label, data.get("by")


def _of_record(row: dict[str, Any]) -> Found:
    """The newest response; else what a person is said to have suggested, as we write it."""
    responses = (row.get("responses") or {}).get(QUESTION) or []
    answered = [one for one in responses if one.get("value") is not None]
    text = row["fields"].get(FIELD)
    if answered:
        return row.get("id"), text, answered[-1]["value"], None
    said = (row.get("suggestions") or {}).get(QUESTION) or {}
    agent = said.get("agent") or ""
    if not agent.startswith(AGENT):
        return None
    return row.get("id"), text, said["value"], agent.removeprefix(AGENT)


_READ = {"csv": _plain, "jsonl": _plain, "label-studio": _of_task, "argilla": _of_record}
