"""What earlier nights brought in, small enough for millions: about 50 bytes a document.

Texts and ids are known by 16 bytes of their digests; Python's own mappings of strings would take
ten times as much, and a night would grow with its corpus.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cleaning import content_digest

DIGEST = 16
"""Bytes of a digest."""
RECENT = 65_536
"""Keys that wait in a mapping before they are sorted into the others."""


class Keys:
    """Row numbers by digest: sorted by its first 8 bytes, and told apart by all 16."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._rows = array("q")
        self._heads, self._places = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, digest: str) -> int | None:
        """The row of a digest of 32 hexadecimal digits."""
        key = bytes.fromhex(digest)
        found = self._recent.get(key)
        if found is not None or not len(self._heads):
            return found
        head = np.uint64(int.from_bytes(key[:8], "little"))
        place = int(np.searchsorted(self._heads, head))
        while place < len(self._heads) and self._heads[place] == head:
            at = int(self._places[place])
            if self._digests[at * DIGEST : (at + 1) * DIGEST] == key:
                return self._rows[at]
            place += 1
        return None

    def add(self, digest: str, row: int) -> None:
        """Know one more; its digest must be new."""
        key = bytes.fromhex(digest)
        self._recent[key] = row
        self._digests += key
        self._rows.append(row)
        if len(self._recent) >= RECENT:
            self._sort()

    def extend(self, digests: Iterable[str], first: int) -> None:
        """Know many more, of rows from number `first` on."""
        before = len(self._rows)
        self._digests += bytes.fromhex("".join(digests))
        self._rows.extend(range(first, first + len(self._digests) // DIGEST - before))
        if len(self._rows) - len(self._heads) >= RECENT:
            self._sort()
        else:
            for at in range(before, len(self._rows)):
                key = bytes(self._digests[at * DIGEST : (at + 1) * DIGEST])
                self._recent[key] = self._rows[at]

    def _sort(self) -> None:
        fresh = np.arange(len(self._heads), len(self._rows))
        heads = np.frombuffer(bytes(self._digests), "<u8")[::2]
        order = np.concatenate([self._places, fresh])
        order = order[np.argsort(heads[order], kind="stable")]
        self._heads, self._places, self._recent = heads[order], order, {}


class Known:
    """Documents by text and by id, and the label that the source itself last gave them.

    A file that is read again must not overrule a person: what people say is not known here.
    Ids are looked up only where the source names its documents. `forgotten` are digests of ids
    and of texts that must not come back.
    """

    def __init__(self, forgotten: frozenset[str] = frozenset()):
        self.forgotten = forgotten
        self._texts, self._ids = Keys(), Keys()
        self._names: list[tuple[int, pa.StringArray | list[str]]] = []
        self._labels, self._classes = array("i"), list[str]()
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def row_of(self, digest: str) -> int | None:
        """The document of a text."""
        return self._texts.get(digest)

    def reused(self, id_digest: str, digest: str) -> bool:
        """Whether an id is known, as that of another text."""
        row = self._ids.get(id_digest)
        return row is not None and self._texts.get(digest) != row

    def doc_id(self, row: int) -> str:
        """Its id, as the tables have it."""
        part = max(0, int(np.searchsorted([one for one, _ in self._names], row, "right")) - 1)
        first, names = self._names[part]
        found = names[row - first]
        return found if isinstance(found, str) else found.as_py()

    def label(self, row: int) -> str | None:
        """What the source last said of it."""
        number = self._labels[row]
        return None if number < 0 else self._classes[number]

    def set_label(self, row: int, label: str | None) -> None:
        """What the source says of it now."""
        self._labels[row] = self._number(label)

    def add(self, doc_id: str, digest: str, label: str | None, named: bool) -> None:
        """Know one more document, whose text is new; `named` where the source gave its id."""
        row = len(self)
        self._texts.add(digest, row)
        if named:
            self._ids.add(content_digest(doc_id), row)
        if not self._names or not isinstance(self._names[-1][1], list):
            self._names.append((row, []))
        first, names = self._names[-1]
        assert isinstance(names, list)
        names.append(doc_id)
        if len(names) >= RECENT:
            self._names[-1] = (first, pa.array(names, pa.string()))
        self._labels.append(self._number(label))

    def extend(self, documents: pa.RecordBatch, with_ids: bool) -> None:
        """Know the documents of a table: doc_id, content_digest and label."""
        first, doc_ids = len(self), documents.column("doc_id")
        self._texts.extend(documents.column("content_digest").to_pylist(), first)
        if with_ids:
            self._ids.extend(map(content_digest, doc_ids.to_pylist()), first)
        self._names.append((first, pa.concat_arrays([doc_ids])))
        labels = documents.column("label").dictionary_encode()
        numbers = [self._number(one) for one in labels.dictionary.to_pylist()]
        codes = labels.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        self._labels.frombytes(np.append(numbers, -1).astype(np.int32)[codes].tobytes())

    def relabel(self, doc_ids: pa.ChunkedArray, labels: pa.ChunkedArray) -> None:
        """Labels that the source gave later, the newest last; null takes a label back."""
        if not len(doc_ids):
            return
        for first, names in self._names:
            held = pa.array(names, pa.string()) if isinstance(names, list) else names
            rows = pc.call_function("index_in", [doc_ids], pc.SetLookupOptions(value_set=held))
            for row, label in zip(rows.to_pylist(), labels.to_pylist(), strict=True):
                if row is not None:
                    self.set_label(first + row, label)

    def _number(self, label: str | None) -> int:
        if label is None:
            return -1
        if label not in self._numbers:
            self._numbers[label] = len(self._classes)
            self._classes.append(label)
        return self._numbers[label]
