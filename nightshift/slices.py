"""Which part of the text a document belongs to: by language, length, age, file, or a column.

One number for all rows hides a language or a product that got worse; scores by slice show it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .tables import Lake

UNKNOWN = "unknown"
OTHER = "other"
MOST = 7
"""Slices of one kind; where there are more, the smallest ones are put together as `other`."""
NEWEST = 0.99
"""Ages count from this quantile of all event times: one date in the future would age all others."""
AGES = (
    (timedelta(days=1), "up to a day"),
    (timedelta(days=7), "up to a week"),
    (timedelta(days=30), "up to a month"),
    (timedelta(days=365), "up to a year"),
)
OLDER = "older than a year"


def slices_of(lake: Lake, doc_ids: Sequence[str], by: Sequence[str]) -> dict[str, list[str]]:
    """The slice of each document, in the order of the documents, by kind.

    language     as the document says it
    length       quarters of these documents by their tokens, such as `9 to 14 tokens`
    age          from its event time to the newest of the whole table
    source_file  the file's name; its whole URI where two files share a name
    any other    its value in that declared column

    A document without one is in `unknown`. A kind has `MOST` slices at most.

    Args: documents of the lake; the kinds, any of the above.
    """
    wanted = pa.array(sorted(set(doc_ids)), pa.string())
    about = _columns(lake, "documents", wanted, ["lang", "event_time", "source_file", "columns"])
    found: dict[str, list[str]] = {}
    for kind in by:
        if kind == "language":
            names: Mapping[str, str | None] = {one: row["lang"] for one, row in about.items()}
        elif kind == "length":
            names = _lengths(_columns(lake, "tokens", wanted, ["n_tokens", "tokenizer"]))
        elif kind == "age":
            names = _ages(lake, {one: row["event_time"] for one, row in about.items()})
        elif kind == "source_file":
            names = _files({one: row["source_file"] for one, row in about.items()})
        else:
            names = {one: _value(row["columns"], kind) for one, row in about.items()}
        found[kind] = few([names.get(one) or UNKNOWN for one in doc_ids])
    return found


def few(names: list[str]) -> list[str]:
    """At most `MOST` different names: the smallest slices, of equals the last by name, are one."""
    counts = Counter(names)
    if len(counts) <= MOST:
        return names
    kept = sorted(counts, key=lambda one: (-counts[one], one))[: MOST - 1]
    return [one if one in kept else OTHER for one in names]


def in_order(kind: str, names: Sequence[str]) -> list[str]:
    """The different names of a kind: lengths and ages ascending, others by frequency."""
    counts = Counter(names)
    ages = [*(name for _, name in AGES), OLDER]

    def place(name: str) -> tuple[bool, int, str]:
        if kind == "length" and name[:1].isdigit():
            return False, int(name.split()[0].replace(",", "")), name
        if kind == "age" and name in ages:
            return False, ages.index(name), name
        return name in (OTHER, UNKNOWN), -counts[name], name

    return sorted(counts, key=place)


def _columns(
    lake: Lake, table: str, wanted: pa.Array, names: list[str]
) -> dict[str, dict[str, Any]]:
    """Some columns of the wanted documents; of tokens, those of the tokenizer that knows most."""
    rows = lake.read(table, ["doc_id", *names], pc.field("doc_id").isin(wanted)).to_pylist()
    if table == "tokens":
        # A changed tokenizer leaves rows of two; lengths are compared in one unit only.
        counts = Counter(row["tokenizer"] for row in rows)
        best = max(counts, key=lambda one: (counts[one], one), default="")
        rows = [row for row in rows if row["tokenizer"] == best]
    return {row["doc_id"]: row for row in rows}


def _lengths(rows: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Quarters by number of tokens; fewer where many documents are of the same length."""
    lengths = np.array([row["n_tokens"] for row in rows.values()], np.int64)
    if not len(lengths):
        return {}
    cuts = np.quantile(lengths, [0, 0.25, 0.5, 0.75], method="higher")
    # One past the longest, so that the last quarter ends like the others.
    edges = np.unique([*cuts, lengths.max() + 1]).tolist()
    names = [
        f"{low:,} to {high - 1:,} tokens" if high - 1 > low else _tokens(low)
        for low, high in pairwise(edges)
    ]
    places = np.searchsorted(edges, lengths, side="right") - 1
    return {one: names[place] for one, place in zip(rows, places, strict=True)}


def _tokens(number: int) -> str:
    return f"{number:,} token{'' if number == 1 else 's'}"


def _ages(lake: Lake, times: Mapping[str, Any]) -> dict[str, str | None]:
    if not any(times.values()):
        return {}
    every = lake.read("documents", ["event_time"], pc.field("event_time").is_valid())
    moments = np.sort(every["event_time"].cast(pa.int64()).to_numpy())
    newest = moments[int(NEWEST * (len(moments) - 1))]
    epoch = pa.scalar(int(newest), pa.timestamp("us", tz="UTC")).as_py()
    return {one: _age(epoch - time) if time else None for one, time in times.items()}


def _age(age: timedelta) -> str:
    return next((name for most, name in AGES if age <= most), OLDER)


def _files(uris: Mapping[str, str | None]) -> dict[str, str | None]:
    names = {uri: PurePosixPath(uri).name for uri in {*uris.values()} if uri}
    shared = _repeated(names.values())
    return {
        one: (uri if names[uri] in shared else names[uri]) if uri else None
        for one, uri in uris.items()
    }


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, times in Counter(names).items() if times > 1}


def _value(columns: str | None, name: str) -> str | None:
    return json.loads(columns).get(name) if columns else None
