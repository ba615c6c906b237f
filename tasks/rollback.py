"""rollback: an earlier champion answers again, at once; the next night labels what it must."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from nightshift.tables import rows_of

from .cluster import living
from .publish import follow
from .stage import Night, code_version
from .tracking import Registry

log = logging.getLogger(__name__)


def roll_back(night: Night) -> None:
    """Publish a night in which only the model is another; harmless to repeat.

    Weights, vocabulary, thresholds, centroids and names go back together: they are one version.
    The clusters of the tables stay as they are, for the next night carries them over.
    """
    turn, previous = night.turn, night.previous
    assert turn is not None
    assert previous is not None
    lake, replaced = night.lake, previous["registry_version"]
    then = _last_published_with(night, turn.version)
    clusters = [{**row, "event": "continued", "parents": []} for row in
                living(lake, previous["night"])]  # fmt: skip
    words = (
        f"{turn.by} rolled back from version {replaced} to version {turn.version}: {turn.reason}"
    )
    decision: dict[str, Any] = {
        "champion": previous["model_id"],
        "challenger": turn.model.model_id,
        "policy": night.pipeline.promotion.policy,
        "decision": "rolled_back",
        "reason": words,
        "by": turn.by,
        "at": datetime.now(UTC),
    }
    written = [
        lake.replace("clusters", night.name, rows_of("clusters", clusters)),
        lake.replace("assignments", night.name, []),
        lake.replace("promotions", night.name, rows_of("promotions", [decision])),
    ]
    Registry(night.settings.mlflow).tag(night.pipeline_name, replaced, {"rolled_back": words})
    row = next(one for one in lake.nights() if one["night"] == night.name)
    lake.write_night(
        {
            **row,
            "state": "published",
            "finished": datetime.now(UTC),
            "versions": previous["versions"] | {one.table: one.version for one in written},
            "config_digest": previous["config_digest"],
            "code_version": code_version(),
            "model_id": turn.model.model_id,
            "model_uri": turn.model.uri,
            "registry_version": turn.version,
            "error": None,
            "figures": {
                **previous["figures"],
                **dict.fromkeys(("rows", "documents", "duplicates", "rejects"), 0),
                "quality": then["figures"].get("quality"),
                "baseline": then["figures"].get("baseline"),
                "trained": False,
                "promoted": False,
                "outcome": words,
                "model": turn.model.model_dump(),
                "challenger_version": replaced,
                "report": "",
                "turn": turn.model_dump(),
                "asked": None,
            },
        }
    )
    # From here on the earlier version is champion; whatever follows is repaired by the next start.
    follow(night.settings.mlflow, night.pipeline_name, turn.version, replaced)
    log.info("rollback  %s", words)


def _last_published_with(night: Night, version: int) -> dict[str, Any]:
    done = [row for row in night.lake.nights() if row["state"] == "published"]
    return [row for row in done if row["registry_version"] == version][-1]
