"""Forgetting documents: where a lake, a page or a figure shows them, and what stands there after.

A document is known again by two digests, of its id and of its text; of neither can it be read. Who
can guess a short text can check the guess, though.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .cleaning import CleaningConfig, clean
from .pictures import clean as fit
from .tables import SCHEMAS, Lake, rows_of

PER_DOCUMENT = ("documents", "labels", "tokens", "predictions", "embeddings", "assignments")
"""Tables whose rows of a document are removed."""
EDITED = ("duplicates", "rejects", "clusters")
"""Tables whose rows stay, since they are counted, and lose what they tell of it."""
HEAD, LEAST = 64, 20
"""Characters of a text by which it is known inside another; and of a piece that is told from any
other text's."""
SHORT = 12
"""A shorter text is hidden only where it stands alone: "ok" is a word of many texts."""
LEAST_CUT = 8
"""Bytes of a text's beginning by which it is known where a row breaks off: three Chinese
characters, or eight Latin ones."""
MARK = "[forgotten]"
OF_IDS = ("exemplars", "topics")
"""Keys of figures under which ids of documents stand."""
ROW_IDS = ("doc_id", "like")
"""Keys of a row that name documents."""
OF_WORDS = ("keywords", "name", "names", "digest_text")
"""Keys of figures under which clusters' words stand."""
NODE = re.compile(r"(?<=>)[^<>]+(?=<)")
ARTICLE = re.compile(r'<article class="answer" data-doc="([^"]*)">.*?</article>', re.DOTALL)
PARTS = re.compile(r"(, | · )")
FRAME = "…\u2068\u2069\"' "
AROUND = frozenset("\"',;|:{}[]<>=")
"""What stands around a field in a row that could not be read."""
BETWEEN = re.compile(r"[\t\r\n|]+")
ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
ESCAPED = {"b": " ", "f": " ", "n": "\n", "r": "\r", "t": "\t"}
HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?$")


def forgotten_digests(lake: Lake) -> frozenset[str]:
    """Digests of all ids and texts that must not come back."""
    rows = lake.read("tombstones", ["doc_digest", "content_digest"])
    return frozenset(one for column in rows.columns for one in column.to_pylist() if one)


def forgotten_since(lake: Lake, number: int) -> bool:
    """Whether anything was forgotten after the night of this number was published.

    A tombstone stands in the partition of the newest night there was, published or not, so it is
    asked for by the newest that was published then.
    """
    return lake.count("tombstones", pc.field("after") >= number) > 0


@dataclass(frozen=True)
class Forgotten:
    """Documents to be forgotten, and how to know them where their texts are shown.

    texts: as they stand in `documents`. words: clusters' words that no other document has.
    places: rows of source files in which they stood.
    """

    doc_ids: frozenset[str]
    texts: list[str]
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    words: frozenset[str] = frozenset()
    places: frozenset[tuple[str, int]] = frozenset()

    @cached_property
    def _lines(self) -> list[str]:
        return [_line(one) for one in self.texts]

    @cached_property
    def _heads(self) -> list[str]:
        """How the texts begin, as they are and as JSON writes them."""
        heads = [one[:HEAD] for one in self._lines if len(one) >= SHORT]
        escaped = [json.dumps(one)[1:-1] for one in heads]
        quoted = [json.dumps(one, ensure_ascii=False)[1:-1] for one in heads]
        return [*heads, *escaped, *quoted]

    def shows(self, said: str) -> bool:
        """Whether a line is one of the texts, a piece of one, or has one inside.

        A text that begins like a forgotten one for 64 characters is taken for it.
        """
        line = _line(said)
        if not line:
            return False
        if line in self._lines or any(head in line for head in self._heads):
            return True
        return len(line) >= LEAST and any(line in one for one in self._lines)

    def shows_raw(self, raw: str) -> bool:
        """The same of a row as its file had it: not cleaned, escaped, perhaps broken off.

        There a short text is one that fills a field, and the id of a document tells of it, too.
        """
        return any(
            self.shows(one) or self._fills_a_field(one) or self._breaks_off(one)
            for view in _views(raw)
            for one in (view, clean(view, self.cleaning))
        ) or any(self.shows(one) for view in _views(raw) for one in BETWEEN.split(view))

    @cached_property
    def _fields(self) -> list[str]:
        """What is looked for as a whole field: short texts, and ids that are no plain numbers."""
        return [
            *(one for one in self._lines if 0 < len(one) < SHORT),
            *(one for one in self.doc_ids if one and not one.isdigit()),
        ]

    def _fills_a_field(self, said: str) -> bool:
        line = " ".join(said.split())
        return any(_stands_alone(one, line) for one in self._fields)

    def _breaks_off(self, said: str) -> bool:
        """Whether a row ends in a field that begins as one of the texts does."""
        line = _line(said)
        return any(
            line.endswith(one[:size]) and line[: -size or None][-1:] in AROUND
            for one in self._lines
            for size in range(1, min(HEAD, len(one), len(line) - 1) + 1)
            if len(one[:size].encode()) >= LEAST_CUT
        )

    def page(self, page: str) -> str:
        """An HTML page or an SVG picture with a mark in place of every line that shows them."""
        # An answer explained word by word has no line that is its text; it says whose it is.
        page = ARTICLE.sub(
            lambda found: found[0] if html.unescape(found[1]) not in self.doc_ids
            else f"<p>{html.escape(MARK)}</p>",
            page,
        )  # fmt: skip
        return NODE.sub(lambda found: self._node(found[0]), page)

    def _node(self, node: str) -> str:
        lines = node.split("\n")
        return "\n".join(
            html.escape(MARK) if self.shows(html.unescape(one)) else self._worded(one)
            for one in lines
        )

    def _worded(self, line: str) -> str:
        if not self.words:
            return line
        parts = PARTS.split(line)
        return "".join(MARK if html.unescape(one) in self.words else one for one in parts)

    def figures(self, value: Any, key: str = "") -> Any:
        """Anything of JSON without their ids, texts and words."""
        if isinstance(value, dict):
            return {name: self.figures(one, name) for name, one in value.items()}
        if isinstance(value, list):
            gone = self.doc_ids if key in OF_IDS else self.words if key in OF_WORDS else frozenset()
            kept = [one for one in value if not (isinstance(one, str) and one in gone)]
            return [self.figures(one, key) for one in kept if not self._tells_of(one)]
        if not isinstance(value, str):
            return value
        if self.shows(value):
            return MARK
        return self.named(value) if key in OF_WORDS else value

    def _tells_of(self, row: Any) -> bool:
        """Whether a row is about one of them, as mistakes and near duplicates are."""
        return isinstance(row, dict) and any(row.get(key) in self.doc_ids for key in ROW_IDS)

    def named(self, name: str) -> str:
        """A name without the words that no other document has."""
        for word in sorted(self.words, key=len, reverse=True):
            name = name.replace(word, MARK)
        return name

    def text(self, said: str, suffix: str) -> str:
        """A kept file of any kind, by its ending: a page, a picture, JSON, or lines."""
        if suffix in (".html", ".svg"):
            return self.page(said)
        if suffix == ".json":
            try:
                before = json.loads(said)
            except ValueError:
                return self._plain(said)
            after = self.figures(before)
            return said if after == before else json.dumps(after, ensure_ascii=False)
        return self._plain(said)

    def _plain(self, said: str) -> str:
        return "\n".join(MARK if self.shows(one) else one for one in said.split("\n"))


def _views(raw: str) -> set[str]:
    """A row as it stands, and as JSON, CSV, or JSON within CSV would be read."""
    plain = raw.replace('""', '"')
    return {raw, plain, _unescaped(raw), _unescaped(plain)}


def _unescaped(raw: str) -> str:
    """Without JSON's escapes; one that is cut in half at the end is left out."""
    whole = ESCAPE.sub(
        lambda found: chr(int(found[1], 16)) if found[1] else ESCAPED.get(found[2], found[2]),
        HALF_ESCAPE.sub("", raw),
    )
    # Two escapes make one character beyond the first 65,536.
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _stands_alone(field: str, line: str) -> bool:
    """Whether a field stands in a line with nothing but what parts fields around it."""
    at = line.find(field)
    while at >= 0:
        end = at + len(field)
        if (not at or line[at - 1] in AROUND) and (end == len(line) or line[end] in AROUND):
            return True
        at = line.find(field, at + 1)
    return False


def _line(text: str) -> str:
    """A text as pages show it: on one line, without what they put around it."""
    return " ".join(fit(text).split()).strip(FRAME)


def find(
    lake: Lake, doc_ids: Iterable[str], version: int | None, cleaning: CleaningConfig
) -> tuple[Forgotten, list[dict[str, Any]]]:
    """The documents of some ids, and their rows without the texts."""
    wanted = pa.array(sorted(set(doc_ids)), pa.string())
    columns = ["doc_id", "text", "content_digest", "source_file", "row", "night"]
    rows = lake.read("documents", columns, pc.field("doc_id").isin(wanted), version).to_pylist()
    texts = [row.pop("text") for row in rows]
    places = frozenset((row["source_file"], row["row"]) for row in rows)
    return Forgotten(frozenset(wanted.to_pylist()), texts, cleaning, places=places), rows


def words_only_of(
    lake: Lake, forgotten: Forgotten, words: Iterable[str], version: int | None
) -> frozenset[str]:
    """Of some words, those that stand in a forgotten text and in no other document's."""
    folded = {one: one.casefold() for one in words if one}
    mine = "\n".join(_line(one) for one in forgotten.texts).casefold()
    left = {one for one, low in folded.items() if low in mine}
    for batch in lake.scan("documents", ["doc_id", "text"], version=version):
        if not left:
            break
        for doc_id, text in zip(*(one.to_pylist() for one in batch.columns), strict=True):
            if doc_id not in forgotten.doc_ids:
                low = _line(text).casefold()
                left = {one for one in left if folded[one] not in low}
    return frozenset(left)


Edit = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, int]]
"""Rows -> rows without what is forgotten, and how many were removed or changed."""


def edits(forgotten: Forgotten) -> dict[str, Edit]:
    """What is done to the rows of each table that tells of documents."""
    return {
        **dict.fromkeys(PER_DOCUMENT, partial(_without, forgotten)),
        "duplicates": partial(_nameless, forgotten),
        "rejects": partial(_unreadable, forgotten),
        "clusters": partial(_unshown, forgotten),
    }


def rewrite(
    lake: Lake, table: str, forgotten: Forgotten, base: int, order: list[str]
) -> tuple[dict[str, int], int]:
    """Edit a table's rows of all nights, and its versions of these nights with them.

    Args: the version to start from; every night, in order.
    Returns: the new version as of each night from the first edited one on, empty where no row had
    to be edited; and how many rows were.
    """
    edit = edits(forgotten)[table]
    ids = pa.array(sorted(forgotten.doc_ids), pa.string())
    where = pc.field("doc_id").isin(ids) if "doc_id" in SCHEMAS[table].names else None
    touched = {*lake.read(table, ["night"], where, base)["night"].to_pylist()}
    edited: dict[str, Callable[[], Iterator[pa.RecordBatch]]] = {}
    rows = 0
    for night in order:
        if night in touched:
            changed = sum(edit(batch)[1] for batch in _of_night(lake, table, night, base))
            rows += changed
            if changed:
                edited[night] = partial(_edited, lake, table, night, base, edit)
    return (lake.rewrite(table, base, order, edited) if edited else {}), rows


def _of_night(lake: Lake, table: str, night: str, version: int) -> Iterator[pa.RecordBatch]:
    names = [one for one in SCHEMAS[table].names if one != "night"]
    return lake.scan(table, names, pc.field("night") == night, version)


def _edited(
    lake: Lake, table: str, night: str, version: int, edit: Edit
) -> Iterator[pa.RecordBatch]:
    return (edit(batch)[0] for batch in _of_night(lake, table, night, version))


def _without(forgotten: Forgotten, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    ids = batch.column("doc_id").to_pylist()
    kept = batch.filter(pa.array([one not in forgotten.doc_ids for one in ids], pa.bool_()))
    return kept, batch.num_rows - kept.num_rows


def _nameless(forgotten: Forgotten, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    mine = [one in forgotten.doc_ids for one in batch.column("doc_id").to_pylist()]
    for name in ("doc_id", "source_id"):
        there = batch.column(name).to_pylist()
        kept = [None if gone else one for one, gone in zip(there, mine, strict=True)]
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, name, pa.array(kept, pa.string()))
    return batch, sum(mine)


def _unreadable(forgotten: Forgotten, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    raw, *where = (batch.column(one).to_pylist() for one in ("raw", "source_file", "row"))
    # The row in which a document stood, refused when its file came again, tells of it too.
    kept = [
        "" if one and (place in forgotten.places or forgotten.shows_raw(one)) else one
        for one, place in zip(raw, zip(*where, strict=True), strict=True)
    ]
    place = batch.schema.get_field_index("raw")
    changed = sum(one != other for one, other in zip(raw, kept, strict=True))
    return batch.set_column(place, "raw", pa.array(kept, pa.string())), changed


def _unshown(forgotten: Forgotten, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    rows, changed = batch.to_pylist(), 0
    for row in rows:
        shown = {key: row[key] for key in ("exemplars", "keywords", "name")}
        kept = forgotten.figures(shown)
        changed += kept != shown
        row |= kept
    if not changed:
        return batch, 0
    [whole] = rows_of("clusters", rows)
    return whole.select(batch.schema.names), changed
