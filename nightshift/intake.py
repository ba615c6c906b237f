"""Rows of a file -> documents, duplicates, rejects and labels: every row becomes exactly one of
the first three."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .cleaning import CleaningConfig, clean, content_digest, detect_languages, reject_reason
from .corpus import current_labels
from .erasure import forgotten_digests
from .rows import Row
from .splits import SplitConfig, side
from .tables import Lake

ID_REUSED = "id_reused"
FORGOTTEN = "forgotten"
RAW_CHARACTERS = 500


@dataclass
class Known:
    """What was there before, and grows while rows are taken in.

    by_content: doc_id of every known text, by content digest; labels: what the source itself last
    said of a document, by doc_id: a file read again must not overrule a person.
    content_of: content digest by doc_id, kept only where the source names its documents.
    forgotten: digests of ids and of texts that must not come back.
    """

    by_content: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    content_of: dict[str, str] = field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()


@dataclass
class Taken:
    """What became of some rows, as rows of the tables of these names."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows accounted for."""
        return len(self.documents) + len(self.duplicates) + len(self.rejects)


def known_before(lake: Lake, night: str, with_ids: bool) -> Known:
    """What every other night brought in; this night's own rows will be replaced."""
    known = Known(
        labels=current_labels(lake, but=night, by="source"), forgotten=forgotten_digests(lake)
    )
    for batch in lake.scan("documents", ["doc_id", "content_digest", "night"]):
        columns = [column.to_pylist() for column in batch.columns]
        for doc_id, digest, of_night in zip(*columns, strict=True):
            if of_night == night:
                continue
            # The same object where the text names itself: half the memory.
            known.by_content[digest] = digest if doc_id == digest else doc_id
            if with_ids:
                known.content_of[doc_id] = digest
    return known


@dataclass
class Intake:
    """Takes rows in, chunk by chunk, against everything known."""

    known: Known
    cleaning: CleaningConfig
    splits: SplitConfig
    language: str
    now: datetime
    detect: Callable[[list[str]], list[str]] = detect_languages

    def take(self, uri: str, rows: list[Row]) -> Taken:
        """Sort a chunk of one file's rows into documents, duplicates and rejects."""
        taken = Taken()
        for row in rows:
            self._take_one(uri, row, taken)
        self._name_languages(taken.documents)
        return taken

    def _take_one(self, uri: str, row: Row, taken: Taken) -> None:
        text = clean(row.text or "", self.cleaning) if row.problem is None else ""
        problem = row.problem or reject_reason(text, self.cleaning)
        digest = "" if problem else content_digest(text)
        if not problem and row.id is not None:
            # The same id with another text: which of the two is meant, nobody can tell.
            problem = ID_REUSED if self.known.content_of.get(row.id, digest) != digest else None
        where = {"source_file": uri, "row": row.number}
        if self.known.forgotten & {digest, content_digest(row.id or "")}:
            # Not a word of it is kept, whatever else is wrong with it.
            taken.rejects.append({**where, "reason": FORGOTTEN, "raw": ""})
        elif problem:
            raw = (row.raw or row.text or "")[:RAW_CHARACTERS].encode("utf-8", "replace").decode()
            taken.rejects.append({**where, "reason": problem, "raw": raw})
        elif digest in self.known.by_content:
            doc_id = self.known.by_content[digest]
            taken.duplicates.append({**where, "doc_id": doc_id, "source_id": row.id})
            self._relabel(doc_id, row.label, taken)
        else:
            doc_id = row.id or digest
            self._remember(doc_id, digest, row)
            taken.documents.append(
                {
                    **where,
                    "doc_id": doc_id,
                    "text": text,
                    "label": row.label,
                    "event_time": row.time,
                    "content_digest": digest,
                    "split": side(digest, row.split, self.splits),
                    "columns": _packed(row.columns),
                }
            )

    def _remember(self, doc_id: str, digest: str, row: Row) -> None:
        self.known.by_content[digest] = doc_id
        if row.id is not None:
            self.known.content_of[doc_id] = digest
        if row.label is not None:
            self.known.labels[doc_id] = row.label

    def _relabel(self, doc_id: str, label: str | None, taken: Taken) -> None:
        """A known text that comes with another label brings news, though it is a duplicate."""
        if label is None or self.known.labels.get(doc_id) == label:
            return
        self.known.labels[doc_id] = label
        taken.labels.append({"doc_id": doc_id, "label": label, "by": "source", "at": self.now})

    def _name_languages(self, documents: list[dict[str, Any]]) -> None:
        if self.language != "auto":
            languages = [self.language] * len(documents)
        else:
            languages = self.detect([one["text"] for one in documents])
        for document, language in zip(documents, languages, strict=True):
            document["lang"] = language


def _packed(columns: dict[str, str]) -> str | None:
    return json.dumps(columns, ensure_ascii=False, sort_keys=True) if columns else None
