"""Rows of a file -> documents, duplicates, rejects and labels: every row becomes exactly one of
the first three."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from .cleaning import CleaningConfig, clean, content_digest, detect_languages, reject_reason
from .erasure import forgotten_digests
from .known import Known
from .rows import Row
from .splits import SplitConfig, side
from .tables import Lake

ID_REUSED = "id_reused"
FORGOTTEN = "forgotten"
RAW_CHARACTERS = 500


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
    known, others = Known(forgotten_digests(lake)), pc.field("night") != night
    for batch in lake.scan("documents", ["doc_id", "content_digest", "label"], others, rows=65_536):
        known.extend(batch, with_ids)
    by_source = others & (pc.field("by") == "source")
    # Stable: of labels given at the same moment, the one further down its file is the newer.
    later = lake.read("labels", ["doc_id", "label", "at"], by_source).sort_by("at")
    known.relabel(later["doc_id"], later["label"])
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
        id_digest = content_digest(row.id or "")
        if not problem and row.id is not None and self.known.reused(id_digest, digest):
            # The same id with another text: which of the two is meant, nobody can tell.
            problem = ID_REUSED
        where = {"source_file": uri, "row": row.number}
        if self.known.forgotten & {digest, id_digest}:
            # Not a word of it is kept, whatever else is wrong with it.
            taken.rejects.append({**where, "reason": FORGOTTEN, "raw": ""})
        elif problem:
            raw = (row.raw or row.text or "")[:RAW_CHARACTERS].encode("utf-8", "replace").decode()
            taken.rejects.append({**where, "reason": problem, "raw": raw})
        elif (there := self.known.row_of(digest)) is not None:
            doc_id = self.known.doc_id(there)
            taken.duplicates.append({**where, "doc_id": doc_id, "source_id": row.id})
            self._relabel(there, doc_id, row.label, taken)
        else:
            doc_id = row.id or digest
            self.known.add(doc_id, digest, row.label, named=row.id is not None)
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

    def _relabel(self, there: int, doc_id: str, label: str | None, taken: Taken) -> None:
        """A known text that comes with another label brings news, though it is a duplicate."""
        if label is None or self.known.label(there) == label:
            return
        self.known.set_label(there, label)
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
