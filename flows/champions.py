"""Who is champion, who was, and how a person changes it: `champion`, `promote`, `rollback`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from nightshift.bundle import Bundle
from nightshift.errors import ConfigError, NightError
from nightshift.journal import LONGEST_REASON, cleaned, login
from nightshift.pipeline import Settings, load_settings
from nightshift.retention import prunings, to_go_back_to, told
from nightshift.tables import Lake
from tasks.stage import ModelRef, Turn
from tasks.tracking import MODEL_REF_TAG, Registry, be_brief, bundle_of, versions_of

MADE = ("promoted", "rolled_back")
"""Decisions after which another model answers."""
MOST = 2**31 - 1
"""Versions that a registry's database can count to."""


def promote(
    pipeline: str, version: int, reason: str, by: str | None, config: str = "pipelines.yaml"
) -> Any:
    """Make a registered version's model champion, by a night of its own in its space.

    Returns: a `Finished` night.
    Raises: ConfigError for a version that does not exist or whose model is champion already, or no
    reason.
    """
    said, settings = _said(reason, by), load_settings(Path(config))
    lake = _lake(settings, pipeline)
    if before := _begun(lake):
        return _work(pipeline, before["night"], config, before["figures"]["turn"])
    model = _model_of(settings, pipeline, version)
    now = _published(lake, pipeline)[-1]
    if now["model_id"] == model.model_id:
        raise ConfigError(
            f"promote: the model of version {version} is champion already, as version "
            f"{now['registry_version']}. Nothing was changed."
        )
    return _turn("promote", settings, pipeline, version, model, said, config)


def roll_back(
    pipeline: str, version: int | None, reason: str, by: str | None,
    config: str = "pipelines.yaml",
) -> Any:  # fmt: skip
    """Let a version that was champion before answer again; by default that of the last other model
    that nobody went back from.

    Returns: a `Finished` night.
    Raises: ConfigError where there is nothing to go back to, the version was never champion, or no
    reason is given.
    """
    said, settings = _said(reason, by), load_settings(Path(config))
    if before := _begun(_lake(settings, pipeline)):
        return _work(pipeline, before["night"], config, before["figures"]["turn"])
    rows = _published(_lake(settings, pipeline), pipeline)
    now = rows[-1]
    if version is None:
        version = _last_good(rows, pipeline)
    if version == now["registry_version"]:
        raise ConfigError(f"rollback: version {version} is champion. Nothing was changed.")
    known = sorted({int(row["registry_version"]) for row in rows if row["registry_version"]})
    if version not in known:
        raise ConfigError(
            f"rollback: version {version} of {pipeline} was never champion; found "
            f"{', '.join(map(str, known))}. For another one: nightshift promote."
        )
    model = _model_of(settings, pipeline, version)
    return _turn("rollback", settings, pipeline, version, model, said, config)


def _last_good(rows: list[dict[str, Any]], pipeline: str) -> int:
    """The version that a rollback without `--to` goes to."""
    now, back = rows[-1], to_go_back_to(rows)
    if back is not None:
        return int(back["registry_version"])
    others = {int(row["registry_version"]) for row in rows
              if row["model_id"] not in (None, now["model_id"])}  # fmt: skip
    if not others:
        raise ConfigError(
            f"rollback: {pipeline} never had another model than that of version "
            f"{now['registry_version']}. Nothing was changed."
        )
    raise ConfigError(
        f"rollback: version {now['registry_version']} is champion, and of the other models that "
        f"were (versions {', '.join(map(str, sorted(others)))}) somebody went back from each. If "
        "you want one of them all the same, name it: --to VERSION. Nothing was changed."
    )


def _said(reason: str, by: str | None) -> dict[str, str]:
    return {
        "reason": cleaned(reason, "--reason", LONGEST_REASON),
        "by": cleaned(by or login(), "by"),
    }


def _turn(
    kind: Any,
    settings: Settings,
    pipeline: str,
    version: int,
    model: ModelRef,
    said: dict[str, str],
    config: str,
) -> Any:
    from flows.night import turn_name

    # A version that cannot answer must not become champion: the old one stays.
    Bundle.load(bundle_of(settings.mlflow, pipeline, version))
    turn = Turn(kind=kind, version=version, model=model, by=said["by"], reason=said["reason"])
    name = turn_name(_lake(settings, pipeline), turn)
    return _work(pipeline, name, config, turn.model_dump(mode="json"))


def _work(pipeline: str, name: str, config: str, turn: dict[str, Any]) -> Any:
    from prefect.runtime import flow_run

    from flows.night import night

    # Inside a flow run, such as one from Prefect's page, the night is that run.
    work = night.fn if flow_run.get_id() else night
    return work(pipeline, name, config, turn=turn)


def _begun(lake: Lake) -> dict[str, Any] | None:
    """The night of this flow run's turn, where it was killed and given to another worker: who is
    champion now may be its own doing."""
    from prefect.runtime import flow_run

    from flows.night import asked_before

    row = asked_before(lake, str(flow_run.get_id() or ""))
    return row if row and row["figures"].get("turn") else None


def _model_of(settings: Settings, pipeline: str, version: int) -> ModelRef:
    be_brief()
    gone = prunings(_lake(settings, pipeline), kind="model", subject=str(version))
    if gone:
        left = ", ".join(str(one["version"]) for one in versions_of(settings.mlflow, pipeline))
        raise ConfigError(
            f"version {version} of {pipeline} was {told(gone[-1])}; the registry still has "
            f"{left}. Nothing was changed."
        )
    known = 0 < version <= MOST
    tags = Registry(settings.mlflow).tags(pipeline, version) if known else None
    if tags is None or MODEL_REF_TAG not in tags:
        raise ConfigError(
            f"found no version {version} of {pipeline} that a night registered. See them: "
            f"nightshift champion {pipeline}, or the registry."
        )
    return ModelRef.model_validate_json(tags[MODEL_REF_TAG])


def _lake(settings: Settings, pipeline: str) -> Lake:
    return Lake(settings.lake, pipeline, settings.storage_options())


def _published(lake: Lake, pipeline: str) -> list[dict[str, Any]]:
    rows = [row for row in lake.nights() if row["state"] == "published"]
    if not rows:
        raise NightError(
            f"{pipeline} has no published night yet. Run one: nightshift run {pipeline}"
        )
    return rows


# --- the ledger -----------------------------------------------------------------------------


def champion_at(settings: Settings, pipeline: str, at: str | None = None) -> dict[str, Any]:
    """Who was champion at a moment, trained on what, with which figures, chosen by whom and why.

    Args: a date (its end, local time) or an ISO moment; now without one.
    Raises: ConfigError for anything else, NightError where there was no champion yet.
    """
    lake, when = _lake(settings, pipeline), moment(at)
    rows = _published(lake, pipeline)
    before = [row for row in rows if row["finished"] <= when]
    if not before or before[-1]["model_id"] is None:
        first = next((row["finished"] for row in rows if row["model_id"]), None)
        words = f"its first came at {_local(first)}" if first else "no night had a model"
        raise NightError(f"champion: {pipeline} had no champion at {_local(when)}; {words}.")
    now = before[-1]
    reign = _reign(rows, rows.index(now), "registry_version")
    # A night that finds other clusters makes another version of the model that it found champion.
    chosen = _reign(rows, rows.index(now), "model_id")
    until_now = {row["night"] for row in chosen if row["number"] <= now["number"]}
    own = _decisions(lake, rows, now["model_id"])
    made = [row for row in own if row["decision"] in MADE and row["night"] in until_now]
    after = rows[rows.index(reign[-1]) + 1 :]
    gone = prunings(lake, kind="model", subject=str(now["registry_version"]))
    return {
        "pipeline": pipeline,
        "at": when.isoformat(timespec="seconds"),
        "version": now["registry_version"],
        "model_id": now["model_id"],
        "night": now["night"],
        "since": reign[0]["finished"].isoformat(timespec="seconds"),
        "model_since": chosen[0]["finished"].isoformat(timespec="seconds"),
        "until": after[0]["finished"].isoformat(timespec="seconds") if after else None,
        "replaced_by": after[0]["registry_version"] if after else None,
        "figures": now["figures"].get("quality"),
        "trained": _trained(night_of_training(lake, rows, now["model_id"])),
        "decision": _told(made[-1]) if made else None,
        "gone": told(gone[-1]) if gone else None,
    }


def _decisions(lake: Lake, rows: list[dict[str, Any]], model_id: str) -> list[dict[str, Any]]:
    """All decisions about a model as a challenger, the first one first."""
    version = rows[-1]["versions"]["promotions"]
    own = lake.read("promotions", None, pc.field("challenger") == model_id, version).to_pylist()
    return sorted(own, key=lambda row: row["at"])


def night_of_training(
    lake: Lake, rows: list[dict[str, Any]], model_id: str
) -> dict[str, Any] | None:
    """The row of the night that made a model; a person may have made it champion much later.

    Args: the rows of all published nights.
    """
    first = next((row["night"] for row in _decisions(lake, rows, model_id)), None)
    return next((row for row in rows if row["night"] == first), None)


def moment(at: str | None) -> datetime:
    """A date (its end, local time) or an ISO moment; now without one. Raises: ConfigError."""
    if at is None:
        return datetime.now(UTC)
    try:
        with suppress(ValueError):
            day = date.fromisoformat(at) + timedelta(days=1)
            return datetime.combine(day, datetime.min.time()).astimezone()
        return datetime.fromisoformat(at).astimezone()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--at: found {at!r}, expected a date such as 2026-11-03, or 2026-11-03T08:00."
        ) from None


def _reign(rows: list[dict[str, Any]], place: int, key: str) -> list[dict[str, Any]]:
    """The nights on end in which one version, or one model, answered, around a night of them."""
    its, first, last = rows[place][key], place, place
    while first > 0 and rows[first - 1][key] == its:
        first -= 1
    while last + 1 < len(rows) and rows[last + 1][key] == its:
        last += 1
    return rows[first : last + 1]


def _trained(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    basis = row["figures"].get("basis") or {}
    return {
        "night": row["night"],
        "labels": basis.get("labels"),
        "classes": len(basis.get("classes") or []),
        "documents_version": row["versions"].get("documents"),
        "labels_version": row["versions"].get("labels"),
        "tokenizer": basis.get("tokenizer"),
        "code_version": row["code_version"],
        "config_digest": row["config_digest"],
        "mlflow_run": row["mlflow_run"],
        "prefect_run": row["prefect_run"],
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("night", "decision", "by", "reason", "policy", "rows", "rows_digest", "metric",
            "champion_score", "challenger_score", "low", "high", "p_value")  # fmt: skip
    return {key: row[key] for key in keys} | {"at": row["at"].isoformat(timespec="seconds")}


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a terminal."""
    since = _local(datetime.fromisoformat(found["since"]))
    yield f"{found['pipeline']}: version {found['version']} (model {found['model_id'][:12]})"
    until = f"until {_local(datetime.fromisoformat(found['until']))}" if found["until"] else "on"
    after = f", then version {found['replaced_by']}" if found["replaced_by"] else ""
    yield f"  champion  from {since} {until}{after}; last published by night {found['night']}"
    if found["model_since"] != found["since"]:
        its = _local(datetime.fromisoformat(found["model_since"]))
        yield f"  model     champion since {its}; this version has other clusters"
    if found["gone"]:
        yield f"  gone      the model was {found['gone']}: it cannot answer again"
    if found["decision"]:
        yield from _because(found["decision"])
    if found["trained"]:
        its = found["trained"]
        labels = f"{its['labels']:,} labels of {its['classes']} classes, " if its["labels"] else ""
        yield (
            f"  trained   in night {its['night']} on {labels}table documents at version "
            f"{its['documents_version']}, code {its['code_version']}"
        )
    if found["figures"]:
        its = found["figures"]
        yield (
            f"  test      accuracy {its['accuracy']:.4f}, macro-F1 {its['macro_f1']:.4f} on "
            f"{int(its['rows']):,} rows"
        )


def _because(made: dict[str, Any]) -> Iterator[str]:
    yield f"  because   {made['reason']}"
    policy = f", promotion.policy {made['policy']}" if made["policy"] else ""
    yield f"  decided   by {made['by']} in night {made['night']}{policy}"
    if made["rows"] and made["low"] is not None:
        yield (
            f"  compared  {made['metric']} {made['challenger_score']:.4f} against "
            f"{made['champion_score']:.4f} on {made['rows']:,} gate rows, 95% interval of the lead "
            f"{made['low']:+.4f} to {made['high']:+.4f}"
        )


def _local(when: datetime) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S")
