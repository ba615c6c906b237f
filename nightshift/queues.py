"""What the review page asks about: a published night as one small SQLite file, made once.

    documents, labels, predictions, assignments, clusters -> docs, texts, queues, words (full text)

A page must answer at once, whatever the lake's size and place, so nothing is asked of the lake
while somebody reviews. The file lies beside the journal and is named after the versions of the
tables it was made of: a forgotten document changes these, and the file with it.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from .errors import NightError
from .journal import is_person, journal_path
from .nearest import UNASSIGNED
from .tables import Lake, digest_of

QUEUES = ("unsure", "surprising", "suspects", "against")
LONGEST_QUEUE = 2_000
"""Documents of a queue: more than anybody reviews in a day."""
HARDLY, FAR, FEW = 0.1, 0.02, 20
"""Share of the documents that may count as unsure, by the smallest margins, and as surprising, by
the largest distances; of a small night, so many. What abstained or is in no cluster counts too."""
MAJORITY, LEAST = 0.6, 5
"""Share of a cluster's labelled documents that makes their label the cluster's, of so many."""
SHOWN = 5
"""Exemplars of a cluster, and labels in it, that a page shows."""
LAYOUT = 2
"""Of the file; another one makes it anew."""
PIECE = 300
"""Characters of an exemplar."""
CHUNK = 20_000
MOST_TERMS = 12
"""Words of a search."""
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
RUN = re.compile(f"[{CJK}]+")
TERM = re.compile(rf"[{CJK}]+|[^\W{CJK}]+")

TABLES = """
create table about (key text primary key, value text not null);
create table docs (id integer primary key, doc_id text not null, lang text, label text, by text,
    said text, probability real, margin real, abstained integer, cluster_id text, distance real);
create table texts (id integer primary key, text text not null);
create table queues (queue text, place integer, id integer, primary key (queue, place))
    without rowid;
create virtual table words using fts5(text, content='', prefix='1 2 3');
create temp table given (doc_id text primary key, label text, by text, at text) without rowid;
create temp table guesses (doc_id text primary key, label text, probability real, margin real,
    abstained integer) without rowid;
create temp table places (doc_id text primary key, cluster_id text, distance real, night integer)
    without rowid;
"""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Doc:
    """A document as the newest published night knew it."""

    doc_id: str
    text: str
    lang: str | None
    label: str | None
    by: str | None
    """Who gave the label after the document came; null where nobody did."""
    said: str | None
    """What the model says."""
    probability: float | None
    margin: float | None
    cluster_id: str | None
    distance: float | None

    @property
    def of_person(self) -> bool:
        """Whether a person gave the label."""
        return self.by is not None and is_person(self.by)


def index_folder(lake: str, pipeline: str, reports: str) -> Path:
    """Where a pipeline's indexes lie: where its journal does, if that is a file."""
    return journal_path(lake, pipeline, reports).parent


def index_path(folder: Path, published: dict[str, Any]) -> Path:
    """The file of a published night: its row of `nights`, in the folder of the journal."""
    made_of = [LAYOUT, published["night"], published["versions"], published["model_id"]]
    return folder / f"review-{digest_of(made_of)[:16]}.sqlite"


def remove_indexes(folder: Path, but: Path | None = None) -> None:
    """Delete the files of earlier nights, or all."""
    for path in folder.glob("review-*.sqlite*"):
        if path != but:
            path.unlink(missing_ok=True)


# --- making it --------------------------------------------------------------------------------


def build_index(lake: Lake, folder: Path, say: Progress = lambda done, of: None) -> Path:
    """Make the file of the newest published night, unless it is there; returns its place.

    Args: `say` is told how many documents of how many are done.
    Raises: NightError before the first published night.
    """
    published = lake.published()
    if published is None:
        raise NightError("review: no night is published yet, so there is nothing to review.")
    path = index_path(folder, published)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".sqlite-new")
    beside.unlink(missing_ok=True)
    with closing(sqlite3.connect(beside)) as made:
        # Half a file is thrown away anyway.
        made.execute("pragma journal_mode = off")
        made.execute("pragma synchronous = off")
        made.execute("pragma temp_store = file")
        made.executescript(TABLES)
        with made:
            total = _take_in(made, lake, published, say)
            _join(made)
            _fill_queues(made)
            about = {
                "night": published["night"],
                "words": published["figures"].get("words", 0),
                "documents": total,
                "classes": _classes(made),
                "clusters": _clusters(made, lake, published),
                "counts": dict(made.execute("select queue, count(*) from queues group by queue")),
            }
            rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in about.items()]
            made.executemany("insert into about values (?, ?)", rows)
    beside.replace(path)
    return path


def _take_in(made: sqlite3.Connection, lake: Lake, published: dict[str, Any], say: Progress) -> int:
    """Copy what is published of every document; returns how many there are."""
    versions = published["versions"]

    def scan(table: str, columns: list[str], where: Any = None) -> Iterator[list[tuple[Any, ...]]]:
        if table in versions:
            for batch in lake.scan(table, columns, where, versions[table], rows=CHUNK):
                lists = (column.to_pylist() for column in batch.columns)
                yield list(zip(*lists, strict=True))

    total = sum(len(rows) for rows in scan("documents", ["lang"]))
    done = 0
    for rows in scan("documents", ["doc_id", "lang", "label", "text"]):
        ids = range(done + 1, done + len(rows) + 1)
        made.executemany(
            "insert into docs (id, doc_id, lang, label) values (?, ?, ?, ?)",
            ((number, *row[:3]) for number, row in zip(ids, rows, strict=True)),
        )
        texts = [(number, row[3]) for number, row in zip(ids, rows, strict=True)]
        made.executemany("insert into texts values (?, ?)", texts)
        made.executemany(
            "insert into words (rowid, text) values (?, ?)",
            ((number, searchable(text)) for number, text in texts),
        )
        done += len(rows)
        say(done, total)
    for rows in scan("labels", ["doc_id", "label", "by", "at"]):
        made.executemany(
            "insert into given values (?, ?, ?, ?) on conflict do update set "
            "label = excluded.label, by = excluded.by, at = excluded.at where excluded.at >= at",
            ((*row[:3], row[3].isoformat(timespec="microseconds")) for row in rows),
        )
    its = pc.field("model_id") == (published["model_id"] or "")
    for rows in scan("predictions", ["doc_id", "label", "probability", "margin", "abstained"], its):
        made.executemany("insert or replace into guesses values (?, ?, ?, ?, ?)", rows)
    number = {row["night"]: row["number"] for row in lake.nights()}
    for rows in scan("assignments", ["doc_id", "cluster_id", "distance", "night"]):
        made.executemany(
            "insert into places values (?, ?, ?, ?) on conflict do update set cluster_id = "
            "excluded.cluster_id, distance = excluded.distance, night = excluded.night "
            "where excluded.night >= night",
            ((*row[:3], number.get(row[3], 0)) for row in rows),
        )
    return total


def _join(made: sqlite3.Connection) -> None:
    made.execute("create unique index docs_by_id on docs (doc_id)")
    for table, columns in (
        ("given", "label = one.label, by = one.by"),
        (
            "guesses",
            "said = one.label, probability = one.probability, margin = one.margin, "
            "abstained = one.abstained",
        ),
        ("places", "cluster_id = one.cluster_id, distance = one.distance"),
    ):
        made.execute(
            f"update docs set {columns} from {table} as one where one.doc_id = docs.doc_id"
        )
        made.execute(f"drop table {table}")
    made.execute("create index docs_by_cluster on docs (cluster_id, distance, id)")


def _fill_queues(made: sqlite3.Connection) -> None:
    """What is worth a look, the most worth first; never what a person has said already."""
    made.create_function("is_person", 1, lambda by: by is not None and is_person(by))
    free = "not is_person(by)"
    made.execute(
        "create temp table sure as select label, avg(probability) as least from docs "
        "where said = label group by label"
    )
    made.execute(
        "create temp table usual as select cluster_id, label, share from (select cluster_id, "
        "coalesce(label, said) as label, count(*) * 1.0 / sum(count(*)) over (partition by "
        "cluster_id) as share, sum(count(*)) over (partition by cluster_id) as n from docs "
        "where coalesce(label, said) is not null and cluster_id <> ? group by 1, 2) "
        "where share >= ? and n >= ?",
        (UNASSIGNED, MAJORITY, LEAST),
    )
    hardly = _edge(made, "margin", HARDLY, "")
    far = _edge(made, "distance", FAR, "desc")
    queries = {
        # A label that is missing teaches more than one that is there.
        "unsure": f"select id from docs where (margin <= {hardly} or abstained) and {free} "
        "order by label is not null, margin, id",
        "surprising": f"select id from docs where (distance >= {far} or cluster_id = "
        f"'{UNASSIGNED}') and {free} order by distance desc, id",
        # Confident learning (Northcutt et al. 2021): as sure of another class as of its own.
        "suspects": "select id from docs left join sure on sure.label = said where docs.label is "
        f"not null and said <> docs.label and probability >= coalesce(least, 0) and {free} "
        "order by probability desc, id",
        "against": "select id from docs join usual using (cluster_id) where "
        f"coalesce(docs.label, said) <> usual.label and {free} "
        "order by docs.label is null, share desc, distance, id",
    }
    for queue, query in queries.items():
        made.execute(
            "insert into queues select ?, row_number() over () - 1, id from "
            f"({query} limit {LONGEST_QUEUE})",
            (queue,),
        )


def _edge(made: sqlite3.Connection, column: str, share: float, order: str) -> float:
    """The value up to which a share of the documents counts, from one end."""
    [(count,)] = made.execute(f"select count({column}) from docs")
    row = made.execute(
        f"select {column} from docs where {column} is not null order by {column} {order} "
        "limit 1 offset ?",
        (max(0, min(count, max(FEW, round(share * count))) - 1),),
    ).fetchone()
    return row[0] if row else 0.0


def _classes(made: sqlite3.Connection) -> list[str]:
    """Every class there is, the one of the most documents first."""
    rows = made.execute(
        "select one, count(*) from (select coalesce(label, said) as one from docs) where one is "
        "not null group by one order by 2 desc, 1"
    )
    return [label for label, _ in rows]


def _clusters(
    made: sqlite3.Connection, lake: Lake, published: dict[str, Any]
) -> list[dict[str, Any]]:
    """Tonight's living clusters, the largest first."""
    if "clusters" not in published["versions"]:
        return []
    columns = ["cluster_id", "name", "named_by", "event", "parents", "size", "cohesion",
               "keywords", "exemplars"]  # fmt: skip
    where = (pc.field("night") == published["night"]) & (pc.field("event") != "ended")
    found = lake.read("clusters", columns, where, published["versions"]["clusters"]).to_pylist()
    for row in found:
        row["labels"] = made.execute(
            "select coalesce(label, said), count(*) from docs where cluster_id = ? and "
            f"coalesce(label, said) is not null group by 1 order by 2 desc, 1 limit {SHOWN}",
            (row["cluster_id"],),
        ).fetchall()
        row["exemplars"] = [
            {"doc_id": doc_id, "text": text[:PIECE], "lang": lang}
            for one in (row["exemplars"] or [])[:SHOWN]
            for doc_id, text, lang in made.execute(
                "select doc_id, text, lang from docs join texts using (id) where doc_id = ?", (one,)
            )
        ]
    return sorted(found, key=lambda row: (-row["size"], row["cluster_id"]))


def searchable(text: str) -> str:
    """A text whose words the index parts at blanks: Chinese, Japanese and Korean in pairs.

    Most Chinese words have two characters, which trigrams cannot find. The last character stands
    alone as well, so that one character finds every text that has it.
    """
    return RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", text)


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def query_of(said: str) -> str:
    """What a person typed, as a query of the index: all words, the last one as far as typed; empty
    where there is no word in it."""
    terms = TERM.findall(said)[:MOST_TERMS]
    parts: list[str] = []
    for place, term in enumerate(terms):
        if RUN.fullmatch(term):
            parts.append(f'"{" ".join(_pairs(term))}"' if len(term) > 1 else f'"{term}"*')
        else:
            parts.append(f'"{term}"' + ("*" if place == len(terms) - 1 else ""))
    return " ".join(parts)


# --- reading it -------------------------------------------------------------------------------


class Index:
    """A made file; any number of threads may read it."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def about(self) -> dict[str, Any]:
        """night, words (the last that the night read), documents, classes, clusters, counts."""
        return {key: json.loads(value) for key, value in self._rows("select * from about")}

    @cached_property
    def queues(self) -> dict[str, list[str]]:
        """Ids of the documents of every queue, in their order."""
        found: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        for queue, doc_id in self._rows(
            "select queue, doc_id from queues join docs using (id) order by queue, place"
        ):
            found[queue].append(doc_id)
        return found

    @cached_property
    def clusters(self) -> dict[str, dict[str, Any]]:
        """Tonight's clusters by id, the largest first."""
        return {row["cluster_id"]: row for row in self.about["clusters"]}

    def doc(self, doc_id: str) -> Doc | None:
        """A document; None where the night had none of this id."""
        return next(iter(self.docs([doc_id])), None)

    def docs(self, doc_ids: Iterable[str]) -> list[Doc]:
        """Documents that are there, in the order asked for."""
        columns = ", ".join(Doc.__dataclass_fields__)
        query = f"select {columns} from docs join texts using (id) where doc_id = ?"
        with closing(self._open()) as opened:
            rows = (opened.execute(query, (one,)).fetchone() for one in doc_ids)
            return [Doc(*row) for row in rows if row]

    def of_cluster(self, cluster_id: str) -> Iterator[str]:
        """Ids of a cluster's documents, the nearest to its centroid first."""
        last: tuple[Any, ...] = (-1.0, 0)
        while True:
            rows = self._rows(
                "select doc_id, distance, id from docs where cluster_id = ? and "
                "(distance, id) > (?, ?) order by distance, id limit 200",
                (cluster_id, *last),
            )
            yield from (row[0] for row in rows)
            if len(rows) < 200:
                return
            last = rows[-1][1:]

    def search(self, said: str, most: int) -> list[str]:
        """Ids of documents that have all words, the newest first."""
        query = query_of(said)
        if not query:
            return []
        found = "select rowid from words where words match ? order by rowid desc limit ?"
        return [
            doc_id
            for (doc_id,) in self._rows(
                f"select doc_id from ({found}) as hit join docs on docs.id = hit.rowid",
                (query, most),
            )
        ]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with closing(self._open()) as opened:
            return opened.execute(query, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.as_uri()}?mode=ro&immutable=1", uri=True)
