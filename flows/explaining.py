"""What people ask of one document: why it is called so, and what is like it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.corpus import current_assignments
from nightshift.errors import ConfigError, NightError
from nightshift.pictures import clean, cut
from nightshift.pipeline import Settings
from nightshift.tables import Lake

if TYPE_CHECKING:
    from rich.text import Text

    from nightshift.explanations import Explanation, Word

SHOWN = 100
"""Characters of a text in a list."""
RECALL = 20


def explained(
    settings: Settings, pipeline: str, text: str, label: str | None = None
) -> tuple[int, Explanation]:
    """The champion's version, and why it says what it says of a text; or what speaks for a label.

    Raises: NightError while the pipeline has no champion, BundleError where its files are damaged,
    ConfigError as `explanations.explain`.
    """
    from nightshift.bundle import Bundle
    from nightshift.explanations import explain
    from tasks.tracking import champion_bundle

    found = champion_bundle(settings.mlflow, pipeline)
    if found is None:
        raise NightError(
            f"explain: {pipeline} has no champion yet. Run a night first: nightshift run {pipeline}"
        )
    number, folder = found
    return number, explain(Bundle.load(Path(folder)).model, text, label)


def as_lines(found: Explanation, number: int, pipeline: str) -> Iterator[Text]:
    """The same for a terminal: words in the colour of what they did, then the strongest in figures.

    Colours are blue for the label and orange against it; without colours the figures tell.
    """
    from rich.text import Text

    held = ", abstained" if found.abstained else ""
    head = Text(f"{clean(found.label)}", "bold")
    head.append(f"  {found.probability:.1%}{held}, by version {number} of {pipeline}", "not bold")
    yield head
    yield Text("")
    yield _coloured(found)
    yield Text("")
    most = sorted(found.words, key=lambda one: -abs(one.together))[:12]
    wide = any(one.wide is not None for one in most)
    attention = any(one.attention is not None for one in most)
    line = f"{'word':<24}{'share':>7}{'network':>9}"
    line += f"{'linear':>9}" if wide else ""
    line += f"{'attention':>11}" if attention else ""
    yield Text(f"{line}{'so far':>8}")
    for one in most:
        yield _figures(one, wide, attention)
    yield Text("")
    yield from (Text(one) for one in _legend(found, wide, attention))


def _coloured(found: Explanation) -> Text:
    from rich.text import Text

    text = Text(clean(found.text[: found.words[-1].end]) if found.words else "")
    if len(text) != (found.words[-1].end if found.words else 0):
        return text  # cleaning moved the words: better none than wrong colours
    top = max((abs(one.together) for one in found.words), default=0) or 1
    for one in found.words:
        strength = abs(one.together) / top
        if strength >= 0.08:
            shade = round(255 - 150 * strength)
            colour = f"rgb({shade},{shade},255)" if one.together > 0 else f"rgb(255,{shade},90)"
            text.stylize(f"black on {colour}", one.start, one.end)
    return text


def _figures(one: Word, wide: bool, attention: bool) -> Text:
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    word = clean(one.text)
    shown = (
        set_cell_size(word, 22) + "  " if cell_len(word) < 22 else set_cell_size(word, 21) + "…  "
    )
    line = f"{shown}{one.together:>+7.1%}{one.network:>+9.3f}"
    line += f"{one.wide or 0:>+9.3f}" if wide else ""
    line += f"{one.attention or 0:>11.1%}" if attention else ""
    line += f"{one.probability:>8.1%}" if one.probability is not None else f"{'':>8}"
    return Text(line)


def _legend(found: Explanation, wide: bool, attention: bool) -> Iterator[str]:
    yield (
        f"network    integrated gradients, in nats of log-probability: they sum to "
        f"{sum(one.network for one in found.words):+.3f} of {found.network_gain:+.3f}"
    )
    if wide:
        yield (
            f"linear     weight x TF-IDF of the n-grams on the word, exactly: with a bias of "
            f"{found.wide_bias or 0:+.3f} they make the score {found.wide_score or 0:+.3f}"
        )
        yield (
            "share      both, as the blend weighs them: the network "
            f"{found.network_weight:.2f}, the linear path {1 - found.network_weight:.2f}"
        )
    if attention:
        yield "attention  what the pooling read, which is no reason for the answer"
    yield "so far     the label's probability from the beginning up to the word"
    if found.left_out:
        yield f"left out   {found.left_out:,} tokens behind these, which are not explained"


def write_picture(found: Explanation, path: Path) -> str:
    """Draw it, SVG or PNG by the ending; says where.

    Raises: ConfigError for another ending.
    """
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"explain: found --picture {path.name}, expected a name in .svg or .png.")
    from nightshift.plots import explanation_picture, explanation_png

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(explanation_png(found))
    else:
        path.write_text(explanation_picture(found), encoding="utf-8")
    held = ", abstained: not sure enough to be called an answer" if found.abstained else ""
    return f"{path}: {clean(found.label)}, {found.probability:.1%}{held}"


# --- what is alike --------------------------------------------------------------------------


def similar(settings: Settings, pipeline: str, asked: str, k: int) -> dict[str, Any]:
    """The k published documents nearest to a document, by its id, or else to a text.

    Raises: NightError while nothing is published or no model answers, ConfigError for a text that
    cannot be used.
    """
    lake, night = _published(settings, pipeline, "similar")
    model_id, versions = night["model_id"], night["versions"]
    if model_id is None:
        raise NightError(
            f"similar: {pipeline} has no model yet, so no document has a vector. It takes a "
            f"handful of documents: nightshift run {pipeline}"
        )
    own = (pc.field("model_id") == model_id) & (pc.field("doc_id") == asked)
    there = lake.read("embeddings", ["vector"], own, versions.get("embeddings"))["vector"]
    vector = np.array(there[0].as_py(), np.float32) if len(there) else None
    if vector is None:
        vector = _vector_of(settings, pipeline, asked)
    from nightshift.similar import nearest

    but = asked if len(there) else None
    best = nearest(vector, _vectors(lake, model_id, versions), k, but)
    return {
        "pipeline": pipeline,
        "night": night["night"],
        "asked": asked,
        "is_document": len(there) > 0,
        "documents": _told(lake, night, best),
    }


def _published(settings: Settings, pipeline: str, command: str) -> tuple[Lake, dict[str, Any]]:
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    night = lake.published()
    if night is None:
        raise NightError(
            f"{command}: {pipeline} has no published night yet. Run one: nightshift run {pipeline}"
        )
    return lake, night


def _vector_of(settings: Settings, pipeline: str, text: str) -> np.ndarray:
    from flows.reading import champion

    _, bundle = champion(settings, pipeline)
    [answer] = bundle.answer([text], 1, True)
    if "error" in answer:
        raise ConfigError(
            f"similar: {cut(text, 40)!r} is no document's id, and as a text it cannot be used: "
            f"{answer['error'].replace('_', ' ')}."
        )
    return np.array(answer["vector"], np.float32)


def _vectors(
    lake: Lake, model_id: str, versions: dict[str, int]
) -> Iterator[tuple[list[str], np.ndarray]]:
    own = pc.field("model_id") == model_id
    columns = ["doc_id", "vector"]
    for batch in lake.scan("embeddings", columns, own, versions.get("embeddings")):
        flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
        yield batch.column("doc_id").to_pylist(), flat.reshape(batch.num_rows, -1)


def _told(lake: Lake, night: dict[str, Any], best: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Documents with their text, answer and cluster, in the given order."""
    ids = pc.field("doc_id").isin(pa.array([doc_id for doc_id, _ in best], pa.string()))
    versions = night["versions"]
    texts = _by_id(lake.read("documents", ["doc_id", "text", "night"], ids, versions["documents"]))
    said = _by_id(
        lake.read("predictions", ["doc_id", "label", "probability"],
                  ids & (pc.field("model_id") == night["model_id"]), versions.get("predictions"))
    )  # fmt: skip
    where = current_assignments(lake, version=night["versions"].get("assignments"))
    return [
        {
            "doc_id": doc_id,
            "similarity": round(cosine, 6),
            "text": texts[doc_id]["text"],
            "night": texts[doc_id]["night"],
            "label": said.get(doc_id, {}).get("label"),
            "cluster_id": where.get(doc_id, (None, 0.0))[0],
        }
        for doc_id, cosine in best
        if doc_id in texts
    ]


def _by_id(rows: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["doc_id"]: row for row in rows.to_pylist()}


# --- for a reader ---------------------------------------------------------------------------


def for_reader(settings: Settings, pipeline: str, reader: str, k: int) -> dict[str, Any]:
    """The newest night's documents by the clusters that a reader follows, and how well such lists
    found what was read that night: recall at 20 beside plain popularity, over all readers.

    Raises: ConfigError where no column names readers, or not this one; NightError as `similar`.
    """
    column = settings.pipeline(pipeline).source.reader
    if column is None:
        raise ConfigError(
            f"similar: pipeline {pipeline} declares no reader. Name the column that says who read "
            "a document: source: {reader: COLUMN}"
        )
    lake, night = _published(settings, pipeline, "similar")
    from nightshift.similar import followed, ranked

    read, tonight = _reads(lake, night, column)
    where = current_assignments(lake, version=night["versions"].get("assignments"))
    before = [(who, where[one][0]) for who, ones in read.items()
              for one in ones if one not in tonight and one in where]  # fmt: skip
    follows, popular = followed(before)
    if reader not in read:
        from nightshift.config import nearest

        raise ConfigError(
            f"similar: no reader {reader!r} in column {column}; {nearest(reader, read)}"
        )
    new = [(one, *where[one]) for one in sorted(tonight) if one in where]
    ranking = ranked(follows.get(reader, {}), popular, new)[:k]
    best = [(one, 0.0) for one in ranking]
    rows = [{name: one[name] for name in one if name != "similarity"}
            for one in _told(lake, night, best)]  # fmt: skip
    return {
        "pipeline": pipeline,
        "night": night["night"],
        "reader": reader,
        "follows": follows.get(reader, {}),
        "documents": rows,
        **recalls({who: ones & tonight for who, ones in read.items()}, follows, popular, new),
    }


def recalls(
    read_tonight: dict[str, set[str]],
    follows: dict[str, Any],
    popular: Any,
    new: list[tuple[str, str, float]],
) -> dict[str, Any]:
    """Mean recall at 20 of readers who read before and tonight, and of one list for all of them."""
    from nightshift.similar import ranked, recall_at

    same = ranked({}, popular, new)
    known = [(who, ones) for who, ones in read_tonight.items() if ones and who in follows]
    own = [recall_at(ranked(follows[who], popular, new), ones, RECALL) for who, ones in known]
    plain = [recall_at(same, ones, RECALL) for _, ones in known]
    return {
        "readers": len(known),
        "recall_at_20": float(np.mean(own)) if own else None,
        "popularity_recall_at_20": float(np.mean(plain)) if plain else None,
    }


def _reads(lake: Lake, night: dict[str, Any], column: str) -> tuple[dict[str, set[str]], set[str]]:
    """Documents by reader, and those of the newest night that brought any."""
    from nightshift.similar import readers_of

    rows = lake.read("documents", ["doc_id", "columns", "night"], None,
                     night["versions"]["documents"]).to_pylist()  # fmt: skip
    order = {row["night"]: row["number"] for row in lake.nights() if row["state"] == "published"}
    newest = max((row["night"] for row in rows), key=lambda one: order.get(one, 0), default="")
    read: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for who in readers_of(json.loads(row["columns"] or "{}").get(column)):
            read[who].add(row["doc_id"])
    return dict(read), {row["doc_id"] for row in rows if row["night"] == newest}


def similar_lines(found: dict[str, Any]) -> Iterator[str]:
    """Either list for a terminal."""
    reader = found.get("reader")
    if reader is not None:
        yield f"for {clean(reader)}, night {found['night']}"
    elif not found["is_document"] and len(found["asked"].split()) == 1:
        # An id with a slip of the pen is a text, too, and has its neighbours.
        asked = cut(found["asked"], 40)
        yield f"no document that has a vector has the id {asked!r}: it was taken as a text"
    for one in found["documents"]:
        near = f"{one['similarity']:.3f}  " if "similarity" in one else ""
        about = "  ".join(cut(str(part), 30) for part in (one["label"], one["cluster_id"]) if part)
        yield f"{near}{cut(one['doc_id'], 24):<24}  {about}"
        yield f"       {cut(one['text'], SHOWN)}" if near else f"  {cut(one['text'], SHOWN)}"
    if not found["documents"]:
        yield "nothing to show"
    if reader is not None and found["recall_at_20"] is not None:
        yield (
            f"recall@20 {found['recall_at_20']:.3f} over {found['readers']} readers; plain "
            f"popularity {found['popularity_recall_at_20']:.3f}"
        )
