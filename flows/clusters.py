"""What people ask and say of clusters: a table, a passport, a picture, a name.

Only published rows are shown; beside them stands what was said since, in the journal, and waits for
the next night.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.cells import cell_len, set_cell_size

from nightshift.errors import ConfigError, NightError
from nightshift.identity import UNASSIGNED
from nightshift.journal import Journal, Name
from nightshift.pedigree import Moves, moves, pedigree_picture, unassigned
from nightshift.pictures import clean, cut
from nightshift.pipeline import Settings
from nightshift.tables import SCHEMAS, Lake

WIDTH = 100
"""Columns of the terminal that everything here fits into."""
MOST_NAME = 30
BLOCKS = "▁▂▃▄▅▆▇█"
MOST_BLOCKS = 40
"""Nights in a sparkline."""
READ = [name for name in SCHEMAS["clusters"].names if name not in ("centroid", "model_id")]


@dataclass(frozen=True)
class Past:
    """All that is published of a pipeline's clusters, and what people said of them."""

    pipeline: str
    lake: Lake
    versions: Mapping[str, int]
    finished: datetime | None
    nights: list[str]
    """The published ones, oldest first; empty before the first."""
    rows: list[dict[str, Any]]
    """Of `clusters`, in the order of the nights."""
    words: dict[str, Name]
    """The newest word about each cluster."""
    loose: list[dict[str, Any]]
    """The newest night's unassigned in groups, the tightest first."""
    words_undone: int = 0
    """The last word about names that a rollback took back."""

    @property
    def tonight(self) -> list[dict[str, Any]]:
        """Rows of the newest night, the largest cluster first."""
        newest = [row for row in self.rows if row["night"] == self.nights[-1]]
        return sorted(newest, key=lambda row: (-row["size"], row["cluster_id"]))

    def of(self, cluster_id: str) -> list[dict[str, Any]]:
        """A cluster's rows, oldest first.

        Raises: ConfigError with the nearest ids when it never lived.
        """
        rows = [row for row in self.rows if row["cluster_id"] == cluster_id]
        if not rows:
            raise ConfigError(_unknown(self, cluster_id))
        return rows

    def called(self, cluster_id: str) -> str:
        """Its id and newest name."""
        names = [row["name"] for row in self.rows if row["cluster_id"] == cluster_id]
        return f'{cluster_id} "{cut(names[-1], MOST_NAME)}"' if names else cluster_id

    def read(self, table: str, columns: list[str], where: Any = None) -> pa.Table:
        """Published rows of another table."""
        version = self.versions.get(table)
        if version is None:
            return pa.schema([SCHEMAS[table].field(one) for one in columns]).empty_table()
        return self.lake.read(table, columns, where, version)


def past_of(settings: Settings, pipeline: str) -> Past:
    """Read what is published, and the journal."""
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    journal = journal_of(settings, pipeline)
    done = [row for row in lake.nights() if row["state"] == "published"]
    newest = done[-1] if done else {"versions": {}, "finished": None, "figures": {}}
    order = {row["night"]: place for place, row in enumerate(done)}
    past = Past(
        pipeline, lake, newest["versions"], newest["finished"], list(order), [], journal.names(),
        newest["figures"].get("loose", []), newest["figures"].get("words_undone", 0),
    )  # fmt: skip
    rows = [row for row in past.read("clusters", READ).to_pylist() if row["night"] in order]
    past.rows.extend(sorted(rows, key=lambda row: order[row["night"]]))
    return past


# --- the table ------------------------------------------------------------------------------


def table_of(past: Past) -> dict[str, Any]:
    """The clusters of the newest published night, as `clusters --json` prints them."""
    if not past.nights:
        return {"pipeline": past.pipeline, "night": None, "clusters": [], "ended": [],
                "unassigned": 0, "among_them": []}  # fmt: skip
    rows = past.tonight
    return {
        "pipeline": past.pipeline,
        "night": past.nights[-1],
        "clusters": [_listed(past, row) for row in rows if row["event"] != "ended"],
        "ended": [
            {key: row[key] for key in ("cluster_id", "name")} | {"heirs": row["heirs"] or []}
            for row in rows
            if row["event"] == "ended"
        ],
        "unassigned": unassigned(past.nights, _moved(past))[past.nights[-1]],
        "among_them": past.loose,
    }


def _listed(past: Past, row: dict[str, Any]) -> dict[str, Any]:
    lived = [one for one in past.of(row["cluster_id"]) if one["event"] != "ended"]
    before = next((one["size"] for one in lived if one["night"] == past.nights[-2:][0]), None)
    return {
        "cluster_id": row["cluster_id"],
        **_naming(past, row),
        "size": row["size"],
        "change": None if len(lived) < 2 or before is None else row["size"] - before,
        "event": row["event"],
        "parents": row["parents"] or [],
        "born": row["born"] or lived[0]["night"],
        "nights": len(lived),
        "cohesion": _rounded(row["cohesion"]),
        "keywords": row["keywords"] or [],
    }


def _naming(past: Past, row: dict[str, Any]) -> dict[str, Any]:
    """Name and class as published, and the word that waits for the next night."""
    word = past.words.get(row["cluster_id"])
    return {
        "name": row["name"],
        "named_by": row["named_by"],
        "class_name": word.class_name if word else None,
        "waiting": _word(word) if word and _waits(past, row, word) else None,
    }


def _waits(past: Past, row: dict[str, Any], word: Name) -> bool:
    """Whether the newest night did not know the word yet; never of a cluster that ended before."""
    if row["night"] != past.nights[-1] or word.number <= past.words_undone:
        return False
    if word.name is None:
        return row["named_by"] is not None
    # A class does not show in the table of clusters: there only the time can tell.
    later = word.class_name is not None and past.finished is not None and word.at > past.finished
    return row["named_by"] is None or row["name"] != word.name or later


def _word(word: Name) -> dict[str, Any]:
    return {
        "name": word.name,
        "class_name": word.class_name,
        "by": word.by,
        "at": word.at.isoformat(timespec="seconds"),
    }


def _rounded(cohesion: float | None) -> float | None:
    return None if cohesion is None else round(cohesion, 4)


def _moved(past: Past) -> Moves:
    return moves(past.read("assignments", ["night", "doc_id", "cluster_id"]), past.nights)


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """The table for a terminal of 100 columns."""
    if found["night"] is None:
        yield _no_night(found["pipeline"])
        return
    rows = found["clusters"]
    documents = sum(row["size"] for row in rows) + found["unassigned"]
    yield (
        f"{found['pipeline']}, night {found['night']}: {_count(len(rows), 'cluster')}, "
        f"{_count(documents, 'document')}"
    )
    if rows:
        yield ""
        yield from _grid(rows)
        yield ""
    yield from _waiting_lines(rows)
    yield _list_line("ended", [_end(one) for one in found["ended"]])
    share = f" ({found['unassigned'] / documents:.1%}), far from every cluster" if documents else ""
    yield f"{'unassigned':<12}{_count(found['unassigned'], 'document')}{share}"
    if found["among_them"]:
        groups = found["among_them"]
        said = [f"{one['size']} {_joined(one['keywords'], MOST_NAME)}" for one in groups]
        yield _list_line("", said, "among them: ")


def _grid(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = [_shown_name(row) for row in rows]
    wide = min(MOST_NAME, max(cell_len("name"), *(cell_len(one) for one in names)))
    ids = max(len("cluster"), *(len(row["cluster_id"]) for row in rows))
    size = max(len("size"), *(len(f"{row['size']:,}") for row in rows))
    change = max(len("change"), *(len(_change(row)) for row in rows))
    head = f"{'cluster':<{ids}}  {_padded('name', wide)}  {'size':>{size}}  {'change':>{change}}"
    yield f"{head}  {'event':<9}  nights  cohesion  keywords"
    for row, name in zip(rows, names, strict=True):
        cohesion = "-" if row["cohesion"] is None else f"{row['cohesion']:.2f}"
        line = (
            f"{row['cluster_id']:<{ids}}  {_padded(name, wide)}  {row['size']:>{size},}  "
            f"{_change(row):>{change}}  {row['event']:<9}  {row['nights']:>6}  {cohesion:>8}  "
        )
        yield (line + _keywords(row, WIDTH - cell_len(line))).rstrip()


def _shown_name(row: dict[str, Any]) -> str:
    """With * where a person gave it, with ~ where the word waits for the next night."""
    waiting = row["waiting"]
    name = (waiting and waiting["name"]) or row["name"] or row["cluster_id"]
    mark = " ~" if waiting else " *" if row["named_by"] else ""
    return _fitted(clean(name), MOST_NAME - len(mark)) + mark


def _change(row: dict[str, Any]) -> str:
    return "new" if row["change"] is None else f"{row['change']:+,}" if row["change"] else "0"


def _keywords(row: dict[str, Any], width: int) -> str:
    """As many whole keywords as fit; those that are its name already are not said twice."""
    said = {one.strip() for one in row["name"].split(",")} if not row["named_by"] else set()
    return _joined((one for one in row["keywords"] if one not in said), width)


def _waiting_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    if any(row["named_by"] and not row["waiting"] for row in rows):
        yield f"{'*':<12}named by a person"
    waiting = [(row["cluster_id"], row["waiting"]) for row in rows if row["waiting"]]
    if waiting:
        said = [
            f"{one} by {word['by']}" + (" (name taken back)" if word["name"] is None else "")
            for one, word in waiting
        ]
        yield _list_line("~", said, "from the next night on: ")


def _end(one: dict[str, Any]) -> str:
    name = f"{one['cluster_id']} {_fitted(clean(one['name'] or ''), MOST_NAME)}".rstrip()
    return f"{name} -> {', '.join(one['heirs'])}" if one["heirs"] else name


def _list_line(title: str, parts: list[str], lead: str = "") -> str:
    """One line; what does not fit is counted."""
    line = f"{title:<12}{lead}"
    if not parts:
        return line + "none"
    for place, part in enumerate(parts):
        more = f"; {len(parts) - place} more"
        joint = "; " if place else ""
        room = WIDTH - (len(more) if place + 1 < len(parts) else 0)
        if place and cell_len(line + joint + part) > room:
            return line + more
        line += joint + part
    return _fitted(line, WIDTH)


# --- the passport ---------------------------------------------------------------------------


def passport_of(past: Past, cluster_id: str) -> dict[str, Any]:
    """All that is known of one cluster, as `clusters --history --json` prints it.

    Raises: ConfigError with the nearest ids when it never lived.
    """
    rows = past.of(cluster_id)
    lived = [row for row in rows if row["event"] != "ended"] or rows
    first, last, end = lived[0], lived[-1], rows[-1]
    return {
        "pipeline": past.pipeline,
        "cluster_id": cluster_id,
        **_naming(past, last),
        "born": first["born"] or first["night"],
        "parents": [past.called(one) for one in first["parents"] or []],
        "ended": end["night"] if end["event"] == "ended" else None,
        "heirs": [past.called(one) for one in end["heirs"] or []],
        "nights": len(lived),
        "size": end["size"],
        "cohesion": _rounded(last["cohesion"]),
        "events": [_event(row, before) for row, before in zip(rows, [None, *rows], strict=False)],
        "keywords_at_birth": first["keywords"] or [],
        "keywords": last["keywords"] or [],
        "exemplars": _texts(past, last["exemplars"] or []),
    }


def _event(row: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "night": row["night"],
        "event": row["event"],
        "size": row["size"],
        "change": row["size"] - before["size"] if before else None,
        "parents": row["parents"] or [],
        "heirs": row["heirs"] or [],
        "name": row["name"],
        "named_by": row["named_by"],
    }


def _texts(past: Past, doc_ids: list[str]) -> list[str]:
    wanted = pc.field("doc_id").isin(pa.array(doc_ids, pa.string()))
    rows = past.read("documents", ["doc_id", "text"], wanted).to_pydict()
    texts = dict(zip(rows["doc_id"], rows["text"], strict=True))
    return [texts[one] for one in doc_ids if one in texts]


def as_passport(found: dict[str, Any]) -> Iterator[str]:
    """The passport for a terminal of 100 columns."""
    yield _fitted(f"{found['cluster_id']}  {clean(found['name'] or '')}", WIDTH)
    yield ""
    yield from _lines("named", f"by {found['named_by'] or 'its keywords'}")
    if found["class_name"]:
        soon = ", from the next night on" if found["waiting"] else ""
        yield from _lines("class", f"its documents are examples of {found['class_name']}{soon}")
    if word := found["waiting"]:
        said = f'"{word["name"]}"' if word["name"] else "its name was taken back"
        yield from _lines("waiting", f"from the next night on: {said}, by {word['by']}")
    parents = f", from {', '.join(found['parents'])}" if found["parents"] else ""
    yield from _lines("born", f"{found['born']}{parents}")
    if found["ended"]:
        heirs = ", ".join(found["heirs"]) or "no other cluster"
        yield from _lines("ended", f"{found['ended']}; its documents went to {heirs}")
    yield from _lines("lived", _count(found["nights"], "night"))
    sizes = [one["size"] for one in found["events"] if one["event"] != "ended"]
    yield from _lines("size", f"{sparkline(sizes[-MOST_BLOCKS:])}  {_numbers(sizes)}")
    if found["cohesion"] is not None:
        yield from _lines("cohesion", f"{found['cohesion']:.2f}")
    yield from _lines("at birth", _joined(found["keywords_at_birth"], WIDTH - 12) or "no keywords")
    yield from _lines("at its end" if found["ended"] else "now",
                      _joined(found["keywords"], WIDTH - 12) or "no keywords")  # fmt: skip
    yield ""
    yield from _event_lines(found["events"])
    if found["exemplars"]:
        yield ""
        for place, text in enumerate(found["exemplars"]):
            yield from _lines("" if place else "exemplars", _fitted(cut(text, WIDTH), WIDTH - 12))


def sparkline(sizes: list[int]) -> str:
    """A block character for each size, from nothing to the largest."""
    top = max(sizes, default=0) or 1
    return "".join(BLOCKS[-(-size * len(BLOCKS) // top) - 1 if size else 0] for size in sizes)


def _numbers(sizes: list[int]) -> str:
    """The newest sizes that fit beside the sparkline."""
    room = WIDTH - 12 - min(len(sizes), MOST_BLOCKS) - 4
    shown: list[str] = []
    for size in reversed(sizes):
        if len(" ".join([f"{size:,}", *shown])) > room:
            return " ".join(["…", *shown])
        shown.insert(0, f"{size:,}")
    return " ".join(shown)


def _event_lines(events: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each night; nights in a row in which it only continued share one."""
    numbered = [
        (place if one["event"] != "continued" or _renamed(events, place) else -1, place)
        for place, one in enumerate(events)
    ]
    for told, run in groupby(numbered, key=lambda one: one[0]):
        places = [place for _, place in run]
        first, last = events[places[0]], events[places[-1]]
        night = _fitted(first["night"], 20)
        notes = [f"{first['size']:,}" if len(places) == 1 else f"{last['size']:,} in the end"]
        if len(places) > 1:
            notes.insert(0, f"{len(places)} nights, until {last['night']}")
        elif told >= 0:
            notes += _notes(first, _renamed(events, places[0]))
        yield _fitted(f"{night:<20}  {first['event']:<9}  {', '.join(notes)}", WIDTH)


def _renamed(events: list[dict[str, Any]], place: int) -> bool:
    """Whether a person's name came or went on that night."""
    now, before = events[place], events[place - 1] if place else None
    if now["event"] == "ended":
        return False
    if before is None or not (now["named_by"] or before["named_by"]):
        return now["named_by"] is not None
    return (now["name"], now["named_by"]) != (before["name"], before["named_by"])


def _notes(event: dict[str, Any], renamed: bool) -> list[str]:
    notes: list[str] = []
    if event["parents"]:
        joint = "took in" if event["event"] == "merged" else "from"
        notes.append(f"{joint} {' and '.join(event['parents'])}")
    if event["heirs"]:
        notes.append(f"to {' and '.join(event['heirs'])}")
    if renamed:
        by = f"by {event['named_by']}" if event["named_by"] else "by its keywords again"
        notes.append(f'named "{clean(event["name"])}" {by}')
    return notes


def _lines(title: str, text: str) -> Iterator[str]:
    yield _fitted(f"{title:<12}{clean(text)}", WIDTH)


# --- the picture ----------------------------------------------------------------------------


def write_picture(past: Past, file: Path) -> str:
    """Write the pedigree as SVG; returns what was written.

    Raises: ConfigError for another ending, NightError before any night.
    """
    if file.suffix.lower() != ".svg":
        raise ConfigError(f"clusters: found --picture {file.name}, expected a name in .svg.")
    if not past.nights:
        raise NightError(f"clusters: no picture of {_no_night(past.pipeline)}")
    drawn = pedigree_picture(past.nights, past.rows, _moved(past))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"clusters: --picture {file} cannot be written ({error}). Give another place."
        ) from error
    living = sum(row["event"] != "ended" for row in past.tonight)
    nights = _count(len(past.nights), "night")
    return f"{file}: {_count(living, 'cluster')} after {nights}, the last 8 nights at most"


# --- a name ---------------------------------------------------------------------------------


def say_name(
    past: Past, journal: Journal, cluster_id: str, name: str, class_name: str | None, by: str | None
) -> Iterator[str]:
    """Note a person's name for a living cluster; says what will happen.

    Without a class, the one said before stays: a better name should not undo it.
    Raises: ConfigError for a cluster that never lived or has ended; NightError before any night.
    """
    row, before = _living(past, cluster_id), past.words.get(cluster_id)
    kept = before.class_name if before and class_name is None else None
    word = journal.say_name(cluster_id, name, class_name or kept, by)
    yield f'{cluster_id} is called "{word.name}" from the next night on. Noted for {word.by}.'
    if row["name"] != word.name:
        yield f'Until then it is "{clean(row["name"])}".'
    if word.class_name:
        verb = "stay" if kept else "become"
        yield (
            f"Its {_count(row['size'], 'document')} {verb} examples of class "
            f"{word.class_name}{'' if kept else _class_note(past, word.class_name)}."
        )
    yield f"Take it back: nightshift name {past.pipeline} {cluster_id} --forget"


def forget_name(past: Past, journal: Journal, cluster_id: str, by: str | None) -> Iterator[str]:
    """Take a name back; says what will happen.

    Raises: as `say_name`, and ConfigError where no person named the cluster.
    """
    row, before = _living(past, cluster_id), past.words.get(cluster_id)
    if not row["named_by"] and (before is None or before.name is None):
        raise ConfigError(
            f"name: {cluster_id} has no person's name to forget; its keywords name it: "
            f'"{clean(row["name"])}".'
        )
    word = journal.forget_name(cluster_id, by)
    name = (before and before.name) or row["name"]
    yield (
        f'{cluster_id} is no longer called "{clean(name)}": from the next night on its keywords '
        f"name it. Noted for {word.by}."
    )
    if before and before.class_name:
        yield f"Its documents are no longer examples of class {before.class_name}."


def journal_of(settings: Settings, pipeline: str) -> Journal:
    """The pipeline's journal."""
    return settings.journal_of(pipeline)


def _living(past: Past, cluster_id: str) -> dict[str, Any]:
    if not past.nights:
        raise NightError(f"name: no cluster can be named: {_no_night(past.pipeline)}")
    rows = past.of(cluster_id)
    end = rows[-1]
    if end["event"] == "ended":
        heirs = ", ".join(past.called(one) for one in end["heirs"] or [])
        went = f"its documents went to {heirs}. Name one of those" if heirs else "it has no heirs"
        raise ConfigError(f"name: {past.called(cluster_id)} ended on night {end['night']}; {went}.")
    return end


def _class_note(past: Past, class_name: str) -> str:
    """Whether the class is a new one, which may be a slip of the pen."""
    known: set[str] = set()
    for table in ("documents", "labels"):
        known |= {one for one in past.read(table, ["label"])["label"].unique().to_pylist() if one}
    known |= {one.class_name for one in past.words.values() if one.class_name}
    if class_name in known:
        return ""
    near = difflib.get_close_matches(class_name, known, n=1, cutoff=0.7)
    return f", which is new (there is a class {near[0]})" if near else ", which is new"


def _unknown(past: Past, cluster_id: str) -> str:
    """No such cluster; the nearest ids by number, or by name where a name was given."""
    if not past.nights:
        return f"no cluster {cluster_id!r}: {_no_night(past.pipeline)}"
    if cluster_id == UNASSIGNED:
        return (
            f"{UNASSIGNED!r} is no cluster: its documents are far from every one. Where they are "
            "alike, a night makes a cluster of them."
        )
    names = {row["cluster_id"]: row["name"] for row in past.rows}
    if not names:
        return f"no cluster {cluster_id!r} in {past.pipeline}: it has none yet."
    number = re.fullmatch(r"\D{0,3}(\d{1,9})", cluster_id)
    if number:
        nearest = sorted(names, key=lambda one: (abs(_number(one) - int(number[1])), one))[:3]
    else:
        close = difflib.get_close_matches(cluster_id, names.values(), n=3, cutoff=0.4)
        nearest = [one for one in names if names[one] in close] or sorted(names)[:3]
    return (
        f"no cluster {cut(cluster_id, 40)!r} in {past.pipeline}; nearest: "
        f"{', '.join(past.called(one) for one in nearest)}. All: nightshift clusters "
        f"{past.pipeline}"
    )


def _number(cluster_id: str) -> int:
    return int(cluster_id.removeprefix("c-"))


def _no_night(pipeline: str) -> str:
    return f"{pipeline} has no published night yet. Start one: nightshift run {pipeline}"


# --- cells of a terminal --------------------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _fitted(text: str, width: int) -> str:
    """Cut to so many cells of a terminal, of which a Chinese character takes two."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _joined(parts: Iterable[str], width: int) -> str:
    """As many whole parts as fit, with commas."""
    line = ""
    for part in parts:
        longer = f"{line}, {clean(part)}" if line else clean(part)
        if cell_len(longer) > width:
            break
        line = longer
    return line
