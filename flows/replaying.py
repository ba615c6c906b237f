"""Replay: a past night worked again beside the lake, and every output compared with what it was.

    manifest, tables as of the night before, champion, files, journal -> a scratch folder
    flows.night.work, the same code as every night -> digests, table by table -> what differs, why

Nothing of the real lake, MLflow, journal or reports is written; its Prefect is its own, too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from flows.environment import apart
from nightshift.errors import NightshiftError, PassingError, ReplayError
from nightshift.machine import machine, of_torch
from nightshift.pipeline import Pipeline, Settings, config_to_keep, load_settings
from nightshift.retention import prunings, told
from nightshift.sources import file_digest
from nightshift.tables import SCHEMAS, Digest, Lake, digest_of

TABLES = {
    "ingest": ("batches", "documents", "duplicates", "rejects", "labels"),
    "tokens": ("tokenizers", "tokens"),
    "promote": ("promotions",),
    "embed": ("predictions", "embeddings"),
    "cluster": ("clusters", "assignments"),
}
"""What each stage writes."""
COMPARED = ("ingest", "tokens", "train", "evaluate", "promote", "embed", "cluster")
"""Stages whose figures are compared, too; what the others tell is seconds and places."""
OF_LAKE = tuple(name for tables in TABLES.values() for name in tables)


def replay(
    settings: Settings, pipeline: str, night: str, keep: Path | None = None
) -> dict[str, Any]:
    """Work a published night again and compare: `same`, the `first` stage that differs, why.

    Args: `keep`, a new folder for the replay's tables, MLflow store and page, else removed.
    Raises: ReplayError, saying what is gone, when it cannot be worked again.
    """
    lake = Lake(settings.lake, pipeline, settings.storage_options())
    row, earlier = _found(lake, pipeline, night)
    _unless_forgotten(lake, row)
    from tasks.tracking import be_brief

    be_brief()
    _unless_pruned(lake, pipeline, row, earlier)
    with _scratch(keep) as folder, apart(folder / ".prefect"):
        config, changed = _declare(settings, pipeline, row, folder)
        there = load_settings(config)
        beside = Lake(there.lake, pipeline)
        gone = _lay_out(settings, there, pipeline, lake, beside, row, earlier)
        from flows.night import work

        try:
            work(pipeline, night, str(config))
        except NightshiftError as error:
            raise ReplayError(
                f"replay: night {night} of {pipeline} could not be worked again. {error} What "
                f"differs since: {'; '.join(_differences(row, changed)) or 'nothing known'}."
            ) from error
        outputs = [*_outputs(lake, beside, row), *_models(settings, there, pipeline, row, beside)]
    differing = [one for one in outputs if one["then"] != one["now"]]
    return {
        "pipeline": pipeline,
        "night": night,
        "same": not differing,
        "first": differing[0]["stage"] if differing else None,
        "outputs": outputs,
        "differences": _differences(row, changed),
        "unknown": _unknown(there.pipeline(pipeline)),
        "from_the_lake": gone,
        "folder": str(keep) if keep else None,
    }


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a terminal."""
    outputs = found["outputs"]
    same = sum(one["then"] == one["now"] for one in outputs)
    which = f"{found['pipeline']} {found['night']}"
    yield f"replay     {which}: {same} of {len(outputs)} outputs are the same"
    for one in outputs:
        if one["then"] != one["now"]:
            then, now = (str(one[key])[:12] for key in ("then", "now"))
            yield f"differs    {one['stage']:<9} {one['output']:<12} {then} then, {now} now"
    for uri, problem in found["from_the_lake"].items():
        yield f"not read   {uri} {problem}: ingest was not repeated, its rows are the lake's"
    if found["first"]:
        yield f"first      {found['first']}"
        yield f"because    {_because(found)}"
    elif found["differences"]:
        yield f"although   {'; '.join(found['differences'])}"
    if found["folder"]:
        yield f"kept       {found['folder']}"


def _because(found: dict[str, Any]) -> str:
    if found["differences"]:
        return "; ".join(found["differences"])
    known = "code, libraries, machine, config and inputs are what they were"
    if found["unknown"]:
        return f"{known}; no digest was kept of {', '.join(found['unknown'])}"
    return f"nothing that was written down: {known}. Please report this with both digests."


# --- what the night was worked with -----------------------------------------------------------


def _found(lake: Lake, pipeline: str, night: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The night's row, and those of the published nights before it, oldest first."""
    rows = lake.nights()
    row = next((one for one in rows if one["night"] == night), None)
    if row is None:
        known = ", ".join(one["night"] for one in rows[-5:]) or "none"
        raise ReplayError(
            f"replay: {pipeline} has no night {night!r}; the newest are {known}. See "
            f"`nightshift status {pipeline}`."
        )
    if row["state"] != "published":
        raise ReplayError(
            f"replay: night {night} of {pipeline} is {row['state']}, and only a published night "
            f"can be replayed. Finish it: nightshift run {pipeline} --night {night}"
        )
    if turn := row["figures"].get("turn"):
        did = (
            "went back to version {version}, and nothing was computed"
            if turn["kind"] == "rollback"
            else "promoted version {version}, and documents were labelled and grouped by a model "
            "of an earlier night, which a replay does not have"
        ).format(version=turn["version"])
        raise ReplayError(
            f"replay: in night {night} of {pipeline} a person {did}. Replay the night that trained "
            "the model: nightshift champion says which."
        )
    if not row["manifest"]:
        raise ReplayError(
            f"replay: night {night} of {pipeline} kept no manifest: it was worked by an earlier "
            f"version of Nightshift ({row['code_version']}). Nights from now on keep one."
        )
    published = [one for one in rows if one["state"] == "published"]
    return row, [one for one in published if one["number"] < row["number"]]


def _unless_forgotten(lake: Lake, row: dict[str, Any]) -> None:
    """A night cannot be worked again without documents that it had.

    Raises: ReplayError when some that were there were forgotten after it.
    """
    number = {one["night"]: one["number"] for one in lake.nights()}
    gone = [
        one
        for one in lake.read("tombstones").to_pylist()
        if one["after"] >= row["number"] >= number[one["document_night"]]
    ]
    if gone:
        when = ", ".join(sorted({f"{one['at']:%Y-%m-%d} by {one['by']}" for one in gone}))
        raise ReplayError(
            f"replay: of the documents that night {row['night']} had, {len(gone)} were forgotten "
            f"since ({when}). Without them every output would differ, and they must not come back. "
            "Nights that began later can be replayed."
        )


def _unless_pruned(
    lake: Lake, pipeline: str, row: dict[str, Any], earlier: list[dict[str, Any]]
) -> None:
    """A night cannot be worked again without what retention removed of it, or of what it began
    with: the clusters of the night before, and the model that was champion.

    Raises: ReplayError saying what went, when and why.
    """
    before = earlier[-1] if earlier else {"night": None, "registry_version": None}
    versions = {str(one["registry_version"]) for one in (row, before)}
    gone = [
        one
        for one in prunings(lake)
        if (one["kind"] == "rows" and one["of_night"] == row["night"])
        or (one["subject"] == "clusters" and one["of_night"] == before["night"])
        or (one["kind"] == "model" and one["subject"] in versions)
    ]
    if gone:
        said = "; ".join(f"{_subject(one)} {told(one)}" for one in gone[:4])
        raise ReplayError(
            f"replay: night {row['night']} of {pipeline} cannot be worked again. {said}. Later "
            "nights can be replayed."
        )


def _subject(gone: dict[str, Any]) -> str:
    if gone["kind"] == "model":
        return f"Version {gone['subject']} of the registry:"
    return f"Rows of {gone['subject']}, night {gone['of_night']}:"


def _declare(
    settings: Settings, pipeline: str, row: dict[str, Any], folder: Path
) -> tuple[Path, list[str]]:
    """Write the night's own config as a pipelines file; and where today's library reads it
    otherwise."""
    config = json.loads(json.dumps(row["manifest"]["config"]))
    today = settings.pipeline(pipeline)
    kept = config_to_keep(today)
    # With their passwords, where they are the same but for these.
    if config["source"]["paths"] == kept["source"]["paths"]:
        config["source"]["paths"] = today.source.paths
    if config["model"]["embeddings"] == kept["model"]["embeddings"]:
        config["model"]["embeddings"] = today.model.embeddings
    whole = {
        "lake": "lake", "mlflow": "sqlite:///mlflow.db", "reports": "reports",
        "pipelines": {pipeline: config},
    }  # fmt: skip
    path = folder / "pipelines.yaml"
    # Every JSON is YAML.
    path.write_text(json.dumps(whole), encoding="utf-8")
    try:
        read = load_settings(path).pipeline(pipeline)
    except NightshiftError as error:
        raise ReplayError(
            f"replay: this version of Nightshift cannot read the config of night {row['night']} "
            f"({error}). Check out the code it was worked with: {row['code_version']}."
        ) from error
    now = _flat(config_to_keep(read))
    then = _flat(row["manifest"]["config"])
    return path, [
        f"config {key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def _differences(row: dict[str, Any], config: list[str]) -> list[str]:
    """Of what the night wrote down, all that is otherwise now, in words."""
    from tasks.stage import code_files, code_version

    manifest, found = row["manifest"], []
    then, now = manifest["code"], code_files()
    files = sorted(one for one in then.keys() | now.keys() if then.get(one) != now.get(one))
    if files:
        shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
        found.append(f"code {row['code_version']} then, {code_version()} now: {shown}")
    had = manifest["machine"]
    has = machine()
    if "device" in had:  # a night without news needs none
        has |= of_torch(manifest["config"]["train"]["device"])
    found += [
        f"{key} {had.get(key, 'none')} then, {has.get(key, 'none')} now"
        for key in sorted(had.keys() | has.keys())
        if had.get(key) != has.get(key)
    ]
    return found + config


def _unknown(pipeline: Pipeline) -> list[str]:
    """What the config names outside the lake, whose content no night writes down."""
    model = pipeline.model
    return [
        *([model.embeddings] if model.embeddings not in ("learned", "corpus") else []),
        *([model.encoder] if ":" in model.encoder else []),
        *([pipeline.clusters.namer] if pipeline.clusters.namer else []),
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (_flat(item, f"{prefix}.{key}".strip(".")) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}


# --- the scratch folder -----------------------------------------------------------------------


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(
            prefix="nightshift-replay-", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ReplayError(f"--keep: found {keep}, which is not empty. Give a new folder.")
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReplayError(f"--keep: {keep} cannot be made ({error}). Give another.") from error
    yield keep.resolve()


def _lay_out(
    settings: Settings,
    there: Settings,
    pipeline: str,
    lake: Lake,
    beside: Lake,
    row: dict[str, Any],
    earlier: list[dict[str, Any]],
) -> dict[str, str]:
    """Everything as it was when the night began; returns files that can no longer be read."""
    try:
        for one in earlier:
            _copy_night(lake, beside, one["night"], OF_LAKE)
            beside.write_night(_apart(settings, one, Path(there.lake), newest=one is earlier[-1]))
    except PassingError as error:
        raise ReplayError(
            f"replay: the tables or the model of the nights before {row['night']} cannot be read. "
            f"{error}"
        ) from error
    settings.journal_of(pipeline).copy(there.journal_of(pipeline).path)
    gone = lake.read("tombstones", where=pc.field("after") < row["number"])
    beside.replace("tombstones", row["night"], gone.to_batches())
    begun = {key: row[key] for key in ("night", "number", "started")}
    begun["figures"] = {"asked": row["figures"].get("asked")}
    beside.write_night({**begun, "state": "failed", "error": "not worked yet"})
    return _bring_in(lake, beside, row, settings.pipeline(pipeline).source.paths)


def _copy_night(lake: Lake, beside: Lake, night: str, tables: tuple[str, ...]) -> None:
    """A night's rows: what later nights wrote lies in partitions of their own."""
    newest = lake.published()
    assert newest is not None
    for table in tables:
        if table in newest["versions"]:
            where, version = pc.field("night") == night, newest["versions"][table]
            beside.replace(table, night, lake.scan(table, None, where, version))


def _apart(settings: Settings, row: dict[str, Any], folder: Path, newest: bool) -> dict[str, Any]:
    """A row of `nights` that names neither the real registry nor, for the champion, its store."""
    figures = {**row["figures"], "challenger_version": None}
    if newest and figures.get("model"):
        from tasks.tracking import Tracking

        found = Tracking(settings.mlflow, row["mlflow_run"]).fetch(figures["model"]["uri"])
        shutil.copytree(found, folder / "champion")
        figures["model"] = {**figures["model"], "uri": (folder / "champion").as_uri()}
    return {**row, "registry_version": None, "figures": figures}


def _bring_in(lake: Lake, beside: Lake, row: dict[str, Any], paths: list[str]) -> dict[str, str]:
    """The night's frozen files; where one is gone or changed, the rows that it brought."""
    from tasks.stage import GIVEN

    night, stages = row["night"], lake.stages(row["night"])
    beside.write_stage(night, stages["files"])
    gone: dict[str, str] = {}
    for file in stages["files"]["outputs"]["files"]:
        try:
            if file_digest(file["uri"], paths) != file["digest"]:
                gone[file["uri"]] = "has changed since"
        except (OSError, NightshiftError):
            gone[file["uri"]] = "cannot be read any more"
    if gone:
        _copy_night(lake, beside, night, TABLES["ingest"])
        beside.write_stage(night, {**stages["ingest"], "digest": GIVEN})
    return gone


# --- comparing --------------------------------------------------------------------------------


def _outputs(lake: Lake, beside: Lake, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Digests then and now of each stage's tables and of what else it told, stage by stage."""
    from tasks.stage import stable

    night, newest = row["night"], lake.published()
    assert newest is not None
    told = [one.stages(night) for one in (lake, beside)]
    for stage in COMPARED:
        for table in TABLES.get(stage, ()):
            then = _digest(lake, table, night, newest["versions"].get(table))
            now = _digest(beside, table, night, None)
            if then or now:
                yield _pair(stage, table, then, now)
        outcomes = (digest_of(stable(one[stage]["outputs"])) for one in told)
        yield _pair(stage, "figures", *outcomes)


def _digest(lake: Lake, table: str, night: str, version: int | None) -> str | None:
    """Digest of a night's rows in a table; None without any."""
    digest, names = Digest(), [one for one in SCHEMAS[table].names if one != "night"]
    for batch in lake.scan(table, names, pc.field("night") == night, version):
        digest.feed(batch)
    return digest.hexdigest() if digest.rows else None


def _models(
    settings: Settings, there: Settings, pipeline: str, row: dict[str, Any], beside: Lake
) -> Iterator[dict[str, Any]]:
    from tasks.tracking import bundle_digest

    again = next(one for one in beside.nights() if one["night"] == row["night"])
    yield _pair("publish", "model_id", row["model_id"], again["model_id"])
    then, now = (
        bundle_digest(one.mlflow, pipeline, found["registry_version"])
        if found["registry_version"]
        else None
        for one, found in ((settings, row), (there, again))
    )
    yield _pair("publish", "bundle", then, now)


def _pair(stage: str, output: str, then: str | None, now: str | None) -> dict[str, Any]:
    return {"stage": stage, "output": output, "then": then, "now": now}
