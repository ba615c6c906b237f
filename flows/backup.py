"""Backup and restore of all state of one machine: tables, models, journals, pages, settings.

    backup   all locks -> SQLite files through their own backup -> files -> backup.json, last
    restore  list of files verified by digest -> a new folder -> the registry's places moved

A backup holds the team's texts: it is readable by its owner alone. Secrets of pipelines.yaml are
left out; ${VARIABLES} stay as they are. What lies in inboxes is the user's, and not in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlparse

import nightshift
from flows.locking import alone, lake_of
from nightshift.alerts import LOOPBACK
from nightshift.config import VARIABLE
from nightshift.errors import ConfigError, NightError
from nightshift.leases import TABLE
from nightshift.pipeline import Settings, load_settings, masked

MANIFEST, CONFIG = "backup.json", "pipelines.yaml"
FORMAT = 1
ENDINGS = (".tar", ".tar.gz", ".tgz")
SQLITE = (".sqlite", ".db")
BESIDE_SQLITE = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database; its own backup has what they hold."""
RUNNING = (".lock", ".part")
"""Files that mean a running process."""
SECRETS = re.compile(r"(^|\.)(webhook|password|user|sender|to)(\.|$)|^storage\.")
MLFLOW_PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's database in which places on this machine stand."""


def backup(config: Path, to: Path) -> dict[str, Any]:
    """Write all state to a new folder or .tar, .tar.gz, .tgz file; returns what is in it.

    Raises: ConfigError where something is there, it would lie in what is copied, or state lies on a
    server; NightError where a pipeline's tables did not come along; BusyError while a night runs
    and `when_busy` is `leave`, else it waits.
    """
    settings = load_settings(config)
    places = _places(settings)
    if to.exists():
        raise ConfigError(f"backup: found {to}, and nothing is overwritten. Give a new name.")
    for part, place in places.items():
        if to.resolve().is_relative_to(place.resolve()):
            raise ConfigError(
                f"backup: {to} lies in {place} ({part}), which is copied, so it would hold itself. "
                "Nothing was written. Give a place outside of it."
            )
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.part")
    _remove(partial)
    with ExitStack() as stack:
        stack.callback(_remove, partial)
        for name, pipeline in settings.pipelines.items():
            stack.enter_context(alone(settings, name, pipeline))
        folder = partial
        if _is_archive(to):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=to.parent)))
        folder.mkdir(mode=0o700, exist_ok=True)
        for part, place in places.items():
            _copy(place, folder / part)
        text, left_out = _without_secrets(config.read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(text, encoding="utf-8")
        manifest = _manifest(settings, folder, left_out)
        _has_all(settings, manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if _is_archive(to):
            _pack(folder, partial)
        _flush(partial)
        partial.replace(to)
    return manifest


def restore(source: Path, to: Path) -> dict[str, Any]:
    """Lay a backup out in a new folder, verified file by file; returns what is in it.

    Raises: ConfigError where the folder is not empty, or the source is no backup; NightError where
    a file of it is missing, cut or altered: then nothing is left of the folder.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"restore: found {to}, which is not empty. Give a new folder.")
    if not source.exists():
        raise ConfigError(f"restore: no file or folder {source}. Give one that `backup` wrote.")
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.part")
    _remove(partial)
    try:
        if source.is_dir():
            shutil.copytree(source, partial, symlinks=True)
        else:
            _unpack(source, partial)
        manifest = _verified(partial)
        _lay_out(partial, to.resolve(), manifest)
        (partial / MANIFEST).rename(partial / "restored.json")
        if to.exists():
            to.rmdir()
        partial.rename(to)
    finally:
        _remove(partial)
    return manifest


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """What a backup holds, for a terminal."""
    for part, (files, size) in found["parts"].items():
        yield f"{part:<10} {files:>7,} files {size / 1e6:>10.1f} MB"
    for name in found["left_out"]:
        yield f"left out   {name}, a secret: set it again after a restore"


# --- places -----------------------------------------------------------------------------------


def _places(settings: Settings) -> dict[str, Path]:
    """What is kept of this machine, by its name in a backup.

    Raises: ConfigError naming what lies elsewhere.
    """
    lake = settings.lake.removeprefix("file://")
    elsewhere = []
    if "://" in lake:
        elsewhere.append(f"lake {masked(settings.lake)} (the store's own copy)")
    if not settings.mlflow.startswith("sqlite:///"):
        elsewhere.append(f"mlflow {masked(settings.mlflow)} (pg_dump, and its artifact store)")
    if settings.journal.get_secret_value():
        elsewhere.append("journal in Postgres (pg_dump)")
    prefect = urlparse(os.environ.get("PREFECT_API_URL", "")).hostname
    if prefect not in (None, *LOOPBACK):
        elsewhere.append("Prefect's server at PREFECT_API_URL (pg_dump)")
    if elsewhere:
        raise ConfigError(
            f"backup: {'; '.join(elsewhere)} is not on this machine. This command is for state in "
            "folders; for servers see docs/operations.md."
        )
    database = Path(settings.mlflow.removeprefix("sqlite:///"))
    reports = Path(settings.reports)
    return {
        "lake": Path(lake),
        "mlflow/mlflow.db": database,
        "mlflow/artifacts": database.parent / "mlflow-artifacts",
        "reports": reports,
        "prefect/prefect.db": reports.parent / ".prefect" / "prefect.db",
    }


def _targets(text: str) -> dict[str, str]:
    """Where a restored pipelines file has these parts, from its own folder."""
    found = {
        key: match[1].strip().strip("'\"") if (match := _line_of(text, key)) else default
        for key, default in (
            ("lake", "data/lake"), ("mlflow", "sqlite:///data/mlflow.db"),
            ("reports", "data/reports"),
        )
    }  # fmt: skip
    database = PurePosixPath(found["mlflow"].removeprefix("sqlite:///"))
    return {
        "lake": found["lake"],
        "mlflow/mlflow.db": str(database),
        "mlflow/artifacts": str(database.parent / "mlflow-artifacts"),
        "reports": found["reports"],
        "prefect/prefect.db": str(PurePosixPath(found["reports"]).parent / ".prefect/prefect.db"),
    }


def _line_of(text: str, key: str) -> re.Match[str] | None:
    return re.search(rf"(?m)^{key}:[ \t]*([^#\n]+?)[ \t]*(?:#.*)?$", text)


# --- writing ----------------------------------------------------------------------------------


def _copy(place: Path, to: Path) -> None:
    """A file or folder; SQLite's through its own backup, which is whole whoever writes to it."""
    if not place.exists():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        for one in sorted(place.iterdir()):
            if not (one.is_symlink() or _is_of_now(one)):
                _copy(one, to / one.name)
        return
    if place.suffix in SQLITE:
        source = f"file:{quote(str(place))}?mode=ro"
        with (
            closing(sqlite3.connect(source, uri=True)) as here,
            closing(sqlite3.connect(to)) as there,
        ):
            here.backup(there)
        return
    shutil.copy2(place, to)


def _is_of_now(one: Path) -> bool:
    """Whether a file or folder belongs to a running process alone. Pipelines and nights give
    folders their names, so that a folder's name says nothing."""
    if one.is_dir():
        # The lease is the one that this backup holds, and would seem held where it is restored.
        return one.name == TABLE and (one / "_delta_log").is_dir()
    database, dash, ending = one.name.rpartition("-")
    beside = database.endswith(SQLITE) and dash + ending in BESIDE_SQLITE
    return beside or one.name.endswith(RUNNING)


def _has_all(settings: Settings, manifest: dict[str, Any]) -> None:
    """See that every pipeline that has nights is in the backup.

    Raises: NightError naming one that is not.
    """
    for name in settings.pipelines:
        there = any(file.startswith(f"lake/{name}/nights/") for file in manifest["files"])
        if not there and lake_of(settings, name).nights():
            raise NightError(
                f"backup: {name} has nights, and its tables at {lake_of(settings, name).root} did "
                "not come along; a link in place of a folder is not followed. Nothing was "
                "written. Give `lake` the real path."
            )


def _without_secrets(text: str) -> tuple[str, list[str]]:
    """The pipelines file with a ${VARIABLE} in place of every secret that is written out."""
    import yaml

    found: list[tuple[int, int, str, str]] = []
    for path, node in _scalars(yaml.compose(text, Loader=yaml.SafeLoader), ()):
        name = ".".join(path)
        in_url = re.search(r"://[^/@:]*:[^/@]+@", node.value)
        if (SECRETS.search(name) or in_url) and not VARIABLE.search(node.value):
            variable = re.sub(r"\W+", "_", f"NIGHTSHIFT_{name}").upper()
            found.append((node.start_mark.index, node.end_mark.index, name, variable))
    for start, end, _, variable in reversed(found):
        text = f'{text[:start]}"${{{variable}}}"{text[end:]}'
    return text, [f"{name} (now ${{{variable}}})" for _, _, name, variable in found]


def _scalars(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _scalars(value, (*path, str(place)))
    elif isinstance(node, yaml.ScalarNode):
        yield path, node


def _manifest(settings: Settings, folder: Path, left_out: list[str]) -> dict[str, Any]:
    names = sorted(one for one in folder.rglob("*") if one.is_file())
    files = {
        one.relative_to(folder).as_posix(): [one.stat().st_size, _digest(one)] for one in names
    }
    parts: dict[str, list[int]] = {}
    for name, (size, _) in files.items():
        part = parts.setdefault(name.split("/")[0], [0, 0])
        part[0], part[1] = part[0] + 1, part[1] + int(size)
    artifacts = _places(settings)["mlflow/artifacts"]
    return {
        "format": FORMAT,
        "nightshift": nightshift.__version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "artifacts": str(artifacts),
        "left_out": left_out,
        "parts": parts,
        "files": files,
    }


def _pack(folder: Path, to: Path) -> None:
    mode = "w:gz" if ".tar.gz" in to.name or ".tgz" in to.name else "w"
    descriptor = os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode=mode) as tar:
        # What the list of files says comes first: a reader knows what to expect.
        tar.add(folder / MANIFEST, MANIFEST)
        for one in sorted(folder.rglob("*")):
            if one.is_file() and one.name != MANIFEST:
                tar.add(one, one.relative_to(folder).as_posix())


def _flush(path: Path) -> None:
    """On the disk before the name says that it is a backup."""
    for one in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- reading ----------------------------------------------------------------------------------


def _unpack(source: Path, to: Path) -> None:
    """Plain files alone, each at the place and with the size that the archive's list names."""
    to.mkdir(mode=0o700, parents=True)
    try:
        with tarfile.open(source) as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST or not first.isreg():
                raise ConfigError(_no_backup(source))
            tar.extract(first, to, filter="data")
            sizes = {name: size for name, (size, _) in _listed(to, source)["files"].items()}
            for one in tar:
                if one.name == MANIFEST:
                    continue
                if not one.isreg() or sizes.get(one.name) != one.size:
                    raise NightError(
                        f"restore: {source} holds {one.name!r} ({one.size} bytes), which its list "
                        "does not name so. It was altered; nothing was restored."
                    )
                tar.extract(one, to, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise NightError(
            f"restore: {source} cannot be read: {error}. Nothing was restored."
        ) from error


def _listed(folder: Path, source: Path | None = None) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, _ = found["format"], found["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(_no_backup(source or folder)) from error
    if version > FORMAT:
        raise ConfigError(
            f"restore: {source or folder} is of format {version}, and this Nightshift knows "
            f"{FORMAT}. Upgrade it."
        )
    return found


def _no_backup(source: Path) -> str:
    return f"restore: {source} is no backup: it has no {MANIFEST}. Give what `backup` wrote."


def _verified(folder: Path) -> dict[str, Any]:
    """The list of files, each of which is there as it was, and no other.

    Raises: NightError naming those that are not.
    """
    manifest = _listed(folder)
    there = {
        one.relative_to(folder).as_posix()
        for one in folder.rglob("*")
        if (one.is_symlink() or not one.is_dir()) and one != folder / MANIFEST
    }
    wrong = [
        name for name, (size, digest) in manifest["files"].items()
        if name not in there or (folder / name).is_symlink()
        or (folder / name).stat().st_size != size or _digest(folder / name) != digest
    ]  # fmt: skip
    wrong += sorted(there - manifest["files"].keys())
    if wrong:
        raise NightError(
            f"restore: found {len(wrong)} files missing, altered or not listed, such as "
            f"{', '.join(wrong[:3])}. Nothing was restored; take another backup."
        )
    return manifest


def _lay_out(folder: Path, to: Path, manifest: dict[str, Any]) -> None:
    """Every part where the pipelines file has it, and MLflow's own places with it."""
    config = folder / CONFIG
    text = _inside(config.read_text(encoding="utf-8"))
    config.write_text(text, encoding="utf-8")
    targets = _targets(text)
    for part, target in targets.items():
        if (folder / part).exists():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            if (folder / part) != (folder / target):
                (folder / part).rename(folder / target)
    if not any((folder / "mlflow").glob("*")):
        _remove(folder / "mlflow")
    database = folder / targets["mlflow/mlflow.db"]
    if database.exists():
        _move_places(database, manifest["artifacts"], to / targets["mlflow/artifacts"])


def _inside(text: str) -> str:
    """A pipelines file whose stores lie in its own folder, wherever they lay before."""
    for key, prefix, default in (
        ("lake", "", "data/lake"), ("mlflow", "sqlite:///", "data/mlflow.db"),
        ("reports", "", "data/reports"),
    ):  # fmt: skip
        line = _line_of(text, key)
        place = line[1].strip("'\"").removeprefix("file://").removeprefix(prefix) if line else ""
        parts = PurePosixPath(place).parts
        if line and (place.startswith("/") or ".." in parts or "$" in place or not parts):
            text = f"{text[: line.start(1)]}{prefix}{default}{text[line.end(1) :]}"
    return text


def _move_places(database: Path, old: str, new: Path) -> None:
    """Let MLflow look for its artifacts where they are now."""
    before, after = Path(old).as_uri(), new.as_uri()
    with closing(sqlite3.connect(database)) as opened, opened:
        tables = {name for (name,) in opened.execute("select name from sqlite_schema")}
        for table, columns in MLFLOW_PLACES.items():
            known = {row[1] for row in opened.execute(f"pragma table_info({table})")}
            for column in columns if table in tables else ():
                if column in known:
                    opened.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "
                        f"where {column} = ? or {column} like ? || '/%'",
                        (after, len(before) + 1, before, before),
                    )


def _digest(path: Path) -> str:
    hasher = blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _is_archive(to: Path) -> bool:
    return to.name.endswith(ENDINGS)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
