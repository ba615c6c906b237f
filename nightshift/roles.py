"""Which column is the text, which the label, the id, the split, the time: one rule for each.

rows -> one `Column` of figures per name -> `choose_...`: the column, and the doubts in words
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .rows import as_name, as_time

# Words that a column's name is made of, the most telling first.
TEXT_NAMES = (
    *("text", "body", "content", "review", "comment", "message", "description", "document"),
    *("sentence", "question", "abstract", "headline", "title", "summary", "tweet", "post"),
    *("正文", "内容", "文本", "评论", "标题", "本文", "texte", "texto", "testo"),
)
LABEL_NAMES = (
    *("label", "category", "class", "topic", "target", "sentiment", "intent", "tag"),
    *("labels", "genre", "emotion", "polarity", "stars", "rating", "section", "subject"),
    *("标签", "类别", "分类", "情感", "kategorie", "categoria", "catégorie"),
)
ID_NAMES = ("id", "uuid", "guid", "key", "doi", "pmid", "编号", "ids")
TIME_NAMES = (
    *("time", "date", "datetime", "timestamp", "created", "published", "updated", "posted"),
    *("day", "日期", "时间", "datum", "fecha"),
)
SPLIT_NAMES = ("split", "fold", "subset", "partition", "set")
SPLIT_VALUES = frozenset({"train", "valid", "validation", "val", "dev", "test"})

# Scripts that put no space between words: CJK, kana, Thai, Lao, Khmer, Burmese.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2}")
SPACED = re.compile(r"[^\W\d_]\S*\s+\S*[^\W\d_]")


@dataclass(frozen=True)
class Column:
    """One column of the first rows; empty strings and nulls are left out of `values`."""

    name: str
    values: list[Any]
    rows: int

    @property
    def words(self) -> list[str]:
        """The name's words in lower case: docId, doc_id and "Doc ID" are all doc, id."""
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", self.name)
        return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]

    @property
    def distinct(self) -> int:
        """How many different values there are."""
        return len({str(value) for value in self.values})

    @property
    def characters(self) -> float:
        """Mean length of a value, in characters."""
        return sum(len(str(value)) for value in self.values) / max(1, len(self.values))

    def named(self, names: tuple[str, ...]) -> int | None:
        """The rank in `names` of the name's best word; None when none is there."""
        ranks = [names.index(word) for word in self.words if word in names]
        return min(ranks, default=None)

    def share(self, holds: Callable[[Any], bool]) -> float:
        """The share of the filled values for which `holds` is true; 0 when all are empty."""
        return sum(map(holds, self.values)) / max(1, len(self.values))


def profile(rows: list[dict[str, Any]]) -> list[Column]:
    """One Column per name found in any row, in the order of first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        Column(
            name,
            [row[name] for row in rows if row.get(name) is not None and str(row[name]).strip()],
            len(rows),
        )
        for name in names
    ]


Choice = tuple[Column | None, list[str]]


def choose_text(columns: list[Column]) -> Choice:
    """The column of long and varied strings made of words."""
    scores = {column.name: text_score(column) for column in columns}
    ranked = sorted(columns, key=lambda column: -scores[column.name])
    if not ranked or not scores[ranked[0].name]:
        return None, []
    best = ranked[0]
    near = [column.name for column in ranked if scores[column.name] > 0.4 * scores[best.name]]
    if len(near) == 1:
        return best, []
    return best, [f"{len(near)} columns could be the text: {', '.join(near)}; took {best.name}."]


def text_score(column: Column) -> float:
    """How much a column is text: share with several words x variety x root of the length."""
    wordy = column.share(_has_words)
    variety = column.distinct / max(1, len(column.values))
    filled = len(column.values) / column.rows
    named = column.named(TEXT_NAMES) is not None and column.named(LABEL_NAMES) is None
    # Past 300 characters, longer is no better: a raw HTML column should not win by its length.
    return wordy * variety * filled * min(300.0, column.characters) ** 0.5 * (2 if named else 1)


def _has_words(value: Any) -> bool:
    return isinstance(value, str) and bool(SPACED.search(value) or UNSPACED.search(value))


def choose_label(columns: list[Column]) -> Choice:
    """The column of few, repeated values; a telling name counts most, then repetition."""
    named = [column for column in columns if _named_label(column)]
    if named:
        named.sort(key=lambda column: column.named(LABEL_NAMES) or 0)
        others = ", ".join(column.name for column in named[1:])
        return named[0], [f"also possible as label: {others}."] if others else []
    unnamed = [column for column in columns if _looks_like_label(column)]
    if not unnamed:
        doubts = [
            f"{column.name} is named like a label, but holds neither strings nor integers."
            for column in columns
            if column.named(LABEL_NAMES) is not None
            and column.values
            and not column.share(_is_label)
        ]
        return None, [
            *doubts,
            "no label column found: the night will cluster without a classifier.",
        ]
    best = max(unnamed, key=lambda column: len(column.values) / column.distinct)
    others = [column.name for column in unnamed if column is not best]
    doubt = (
        f"{best.name} was taken as label for its {best.distinct} repeated values alone: delete "
        "the line if it is not what should be learnt"
    )
    return best, [f"{doubt} (or put {', '.join(others)})." if others else f"{doubt}."]


def _is_label(value: Any) -> bool:
    name, known = as_name(value, untyped=True)
    return known and len(name or "") <= 100


def _named_label(column: Column) -> bool:
    few = column.distinct <= max(10, len(column.values) / 2)
    return bool(
        column.named(LABEL_NAMES) is not None
        and column.values
        and few
        and column.share(_is_label) > 0.9
    )


def _looks_like_label(column: Column) -> bool:
    # Integers without a telling name are too often counts, pages or years.
    strings = column.share(lambda value: isinstance(value, str) and not _is_number(value)) > 0.9
    repeated = len(column.values) >= max(20, 5 * column.distinct)
    return strings and repeated and 2 <= column.distinct <= 100 and column.characters <= 40


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def choose_id(columns: list[Column]) -> Choice:
    """A column named like an id whose values are all there and all different."""
    named = [column for column in columns if column.named(ID_NAMES) is not None]
    named.sort(key=lambda column: (len(column.words), column.named(ID_NAMES) or 0))
    unique = [column for column in named if column.distinct == len(column.values) == column.rows]
    if unique and unique[0].share(lambda value: isinstance(value, str | int)) == 1:
        return unique[0], []
    return None, [
        f"{column.name} is named like an id, but has {column.distinct:,} values in "
        f"{column.rows:,} rows: not used, documents get ids from their texts."
        for column in named[:1]
    ]


def choose_split(columns: list[Column]) -> Choice:
    """A column with nothing but train, validation (or valid, val, dev) and test."""
    found = [
        column
        for column in columns
        if column.values and {str(value).strip().lower() for value in column.values} <= SPLIT_VALUES
    ]
    # A text or label column of a tiny file may hold "test" only: a name or two values prove it.
    found = [c for c in found if c.distinct > 1 or c.named(SPLIT_NAMES) is not None]
    return (found[0] if found else None), []


def choose_time(columns: list[Column]) -> Choice:
    """A column of dates: by its type, or named like one and parsing as such."""
    typed = [column for column in columns if column.share(_is_date) == 1]
    named = [
        column
        for column in columns
        if (column.named(TIME_NAMES) is not None or column.words[-1:] == ["at"])
        and column.share(lambda value: as_time(value) is not None) >= 0.9
    ]
    found = typed or named
    return (found[0] if found else None), []


def _is_date(value: Any) -> bool:
    return hasattr(value, "isoformat") and as_time(value) is not None


def describe(column: Column) -> str:
    """What a column holds, in a few words."""
    if not column.values:
        return "empty"
    empty = column.rows - len(column.values)
    parts = [f"{column.distinct:,} different value{'s' * (column.distinct != 1)}"]
    if column.share(_is_number) == 1:
        parts.append("numbers")
    elif column.share(lambda value: isinstance(value, str)) == 1:
        parts.append(f"{column.characters:,.0f} characters on average")
    if empty:
        parts.append(f"{empty:,} of {column.rows:,} rows empty")
    return ", ".join(parts)
