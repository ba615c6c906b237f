"""What people ask between nights: status, predictions, exports. Only published rows are shown."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nightshift.errors import ConfigError, NightError
from nightshift.pipeline import Settings
from nightshift.sources import SourceConfig
from nightshift.tables import SCHEMAS, Lake

if TYPE_CHECKING:
    from nightshift.bundle import Bundle

BATCH = 256
"""Texts answered together."""

PER_DOCUMENT = ("predictions", "embeddings", "assignments", "tokens")
"""Tables in which a document has a row for each model or change; an export shows the newest."""


def nights(settings: Settings, pipeline: str) -> list[dict[str, Any]]:
    """One mapping per night, oldest first, as `status --json` prints it."""
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    return [_status(settings, pipeline, lake, row) for row in lake.nights()]


def _status(settings: Settings, pipeline: str, lake: Lake, row: dict[str, Any]) -> dict[str, Any]:
    stages = lake.stages(row["night"])
    figures = {name: stage["figures"] for name, stage in stages.items()}
    ingested, quality = figures.get("ingest", {}), row["figures"].get("quality") or {}
    state, error = row["state"], row["error"]
    if state == "running":
        from flows.locking import is_running

        if not is_running(settings, pipeline):
            state, error = "failed", "its process died; run the night again to finish it"
    return {
        "night": row["night"],
        "number": row["number"],
        "state": state,
        "documents": _whole(ingested.get("documents")),
        "duplicates": _whole(ingested.get("duplicates")),
        "rejects": _whole(ingested.get("rejects")),
        "labelled": _whole(ingested.get("labelled")),
        "trained": row["figures"].get("trained"),
        "promoted": row["figures"].get("promoted"),
        "outcome": row["figures"].get("outcome"),
        "model_id": row["model_id"],
        "model_version": row["registry_version"],
        "test_accuracy": quality.get("accuracy"),
        "test_macro_f1": quality.get("macro_f1"),
        "baseline_accuracy": (row["figures"].get("baseline") or {}).get("accuracy"),
        "clusters": _whole(
            figures.get("cluster", {}).get(
                "clusters", row["figures"].get("clusters", 0 if stages else None)
            )
        ),
        "started": _said(row["started"]),
        "finished": _said(row["finished"]),
        "seconds": {name: round(stage["seconds"], 3) for name, stage in stages.items()},
        "report": row["figures"].get("report"),
        "error": error,
    }


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _said(when: Any) -> str | None:
    return when.isoformat(timespec="seconds") if when else None


def as_lines(pipeline: str, rows: list[dict[str, Any]], detailed: bool) -> Iterator[str]:
    """The same for a terminal."""
    if not rows:
        yield f"{pipeline} has no night yet. Start one: nightshift run {pipeline}"
        return
    yield (
        f"{'night':<16} {'state':<10} {'documents':>9} {'dupl.':>7} {'rejects':>7} {'labelled':>8} "
        f"{'model':>5} {'accuracy':>8} {'macro-F1':>8} {'clusters':>8} {'seconds':>8}"
    )
    for row in rows:
        numbers = [row[key] for key in ("documents", "duplicates", "rejects", "labelled")]
        counts = " ".join(
            f"{_dash(one):>{width}}" for one, width in zip(numbers, (9, 7, 7, 8), strict=True)
        )
        yield (
            f"{row['night']:<16} {row['state']:<10} {counts} {_dash(row['model_version']):>5} "
            f"{_share(row['test_accuracy']):>8} {_share(row['test_macro_f1']):>8} "
            f"{_dash(row['clusters']):>8} {sum(row['seconds'].values()):>8.1f}"
        )
    for row in rows:
        if row["state"] == "failed":
            yield f"{row['night']} failed: {row['error']}"
        if detailed:
            yield f"outcome: {row['outcome'] or 'none yet'}"
            for stage, seconds in row["seconds"].items():
                yield f"  {stage:<10} {seconds:8.2f} s"
            yield f"report: {row['report'] or 'none yet'}"


def _dash(value: Any) -> str:
    return "-" if value is None else str(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def texts_of_lines(stream: BinaryIO) -> Iterator[str]:
    """One text per line, UTF-8; what is not is replaced, never dropped."""
    for line in stream:
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def texts_of_file(path: str, source: SourceConfig) -> Iterator[str]:
    """The text column of a table, or the lines of any other file.

    Raises: ConfigError for a file that is not there, SourceError for a table without the column.
    """
    from nightshift.files import by_extension
    from nightshift.lines import open_bytes
    from nightshift.sources import read_rows

    kind, _ = by_extension(path)
    if "://" not in path and not Path(path).is_file():
        raise ConfigError(f"predict: no file {path}. Give another, or - for standard input.")
    if kind in (None, "text"):
        with open_bytes(path) as stream:
            yield from texts_of_lines(stream)
        return
    for rows in read_rows(path, texts_alone(path, source)):
        for row in rows:
            yield row.text or ""


def texts_alone(path: str, source: SourceConfig) -> SourceConfig:
    """The pipeline's source for one file, of which only the texts are wanted."""
    return source.model_copy(
        update={"paths": [path], "label": None, "id": None, "split": None, "time": None,
                "format": "auto"}
    )  # fmt: skip


def champion(settings: Settings, pipeline: str) -> tuple[int, Bundle]:
    """The champion's version and bundle, read by the code that it brings.

    Raises: NightError while the pipeline has none, BundleError where its files are damaged.
    """
    from nightshift.integrity import load_as_made
    from tasks.tracking import be_brief, champion_bundle

    be_brief()
    found = champion_bundle(settings.mlflow, pipeline)
    if found is None:
        raise NightError(
            f"predict: {pipeline} has no champion yet. Run a night first: nightshift run {pipeline}"
        )
    return found[0], load_as_made(found[1])


def predictions(
    settings: Settings, pipeline: str, texts: Iterable[str], top: int
) -> Iterator[dict[str, Any]]:
    """The champion's answer to each text, in order.

    Raises: as `champion`.
    """
    number, bundle = champion(settings, pipeline)
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH)):
        for text, answer in zip(batch, bundle.answer(batch, top), strict=True):
            yield {"text": text, **answer, "model_version": number}


def export_table(
    settings: Settings, pipeline: str, table: str, out: Path | None, history: bool
) -> int:
    """Write a table as the newest published night left it; returns its rows.

    Raises: ConfigError for a table or a file ending that is not known, NightError before any night.
    """
    from nightshift.config import nearest

    known = [name for name in SCHEMAS if name not in ("stages", "tokenizers")]
    if table not in known:
        raise ConfigError(f"export: no table '{table}'; {nearest(table, known)}")
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"export: found --out {out.name}, expected a name in .csv or .parquet.")
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    published = lake.published()
    if published is None:
        raise NightError(
            f"export: {pipeline} has no published night yet. Run one: nightshift run {pipeline}"
        )
    version = published["versions"].get(table)
    rows = lake.read(table, version=version).to_pandas()
    if table in PER_DOCUMENT and not history:
        rows = _current(lake, published, table, rows)
    if table == "predictions":
        numbers = {row["model_id"]: row["registry_version"] for row in lake.nights()}
        rows["model_version"] = [numbers.get(one) for one in rows["model_id"]]
    if out is None or out.suffix == ".csv":
        _write_csv(rows, out)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(out, index=False)
    return len(rows)


def _current(lake: Lake, published: dict[str, Any], table: str, rows: Any) -> Any:
    """The row that stands for each document today: of the champion, or its newest."""
    if "model_id" in rows:
        rows = rows[rows["model_id"] == published["model_id"]]
    order = {row["night"]: row["number"] for row in lake.nights()}
    newest = rows["night"].map(order).sort_values(kind="stable").index
    return rows.loc[newest].drop_duplicates("doc_id", keep="last").sort_values("doc_id")


def _write_csv(rows: Any, out: Path | None) -> None:
    stream = _standard_output() if out is None else new_csv(out)
    try:
        writer = csv.writer(stream)
        writer.writerow([cell(name) for name in rows.columns])
        for row in rows.itertuples(index=False):
            writer.writerow([cell(value) for value in row])
    finally:
        if out is not None:
            stream.close()


def _standard_output() -> Any:
    """As it is where a program reads it; a terminal gets its controls spelled out."""
    return sys.stdout if sys.stdout.isatty() else getattr(sys.stdout, "stream", sys.stdout)


def new_csv(out: Path) -> Any:
    """A file that spreadsheets take for what it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # With a mark at the start, or Excel takes Chinese for something else.
    return out.open("w", newline="", encoding="utf-8-sig")


FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def cell(value: Any) -> Any:
    """A value for CSV; what a spreadsheet would take for a formula gets an apostrophe in front.

    So does what already has one there, so that taking one away gives back every text. A number,
    whatever its sign, stays a number.
    """
    if isinstance(value, str):
        harmless = not FORMULA.match(value) or NUMBER.fullmatch(value)
        return value if harmless else "'" + value
    if hasattr(value, "tolist"):
        import json

        return json.dumps(value.tolist(), ensure_ascii=False)
    return "" if value is None or value != value else value


def uncell(value: str) -> str:
    """A text as it was before `cell` put an apostrophe in front."""
    plain = value[1:]
    guarded = value[:1] == "'" and FORMULA.match(plain) and not NUMBER.fullmatch(plain)
    return plain if guarded else value
