"""What people are told at once: a night that failed or did not come, figures that moved, a model
that was refused. This file says what there is to tell; `flows/alerts.py` tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from .config import Config, nearest

Kind = Literal["failed", "late", "drift", "refused"]

FIGURES = (
    "quality.accuracy", "quality.macro_f1", "quality.log_loss", "quality.calibration_error",
    "cluster_quality.silhouette", "cluster_quality.davies_bouldin", "cluster_quality.stability",
    "cluster_quality.cluster_accuracy", "clusters", "rejects_share", "duplicates_share",
)  # fmt: skip
"""What `drift` may name: figures of `nights` by dotted names, and shares of the night's rows."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST = 2_000
"""Characters of a message; what failed may quote a whole file."""


class EmailConfig(Config):
    """A mail server and who gets the alerts. Write addresses and password as ${VARIABLES}."""

    host: str
    """The mail server."""
    port: int = Field(default=587, ge=1, le=65_535)
    """Its port; 465 is usual with ssl."""
    security: Literal["starttls", "ssl", "none"] = "starttls"
    """How the connection is encrypted; none is for a server on this machine."""
    user: SecretStr | None = None
    """Login name, where the server wants one."""
    password: SecretStr | None = None
    """Its password."""
    sender: SecretStr
    """Address it comes from."""
    to: list[SecretStr] = Field(min_length=1)
    """Addresses it goes to."""
    timeout_seconds: float = Field(default=20, gt=0, le=300)
    """How long the server may take to answer."""

    @model_validator(mode="after")
    def _secrets_are_encrypted(self) -> EmailConfig:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together; give both or neither")
        if self.security == "none" and self.password and self.host not in LOOPBACK:
            raise ValueError("security: none would send the password in the open; use starttls")
        return self


class AlertConfig(Config):
    """What is told to people at once: by the pipeline's `webhook`, and by e-mail."""

    on: list[Kind] = Field(default_factory=lambda: ["failed", "late", "drift", "refused"])
    """Which are sent: failed; late (a due night is not published); drift; refused (a challenger was
    not promoted, or waits for a person)."""
    late_minutes: float = Field(default=60, ge=0, le=10_080)
    """How long after its due moment a night must be published."""
    drift: dict[str, float] = Field(default_factory=dict)
    """By figure of a night, such as quality.macro_f1 or rejects_share, how far it may move from one
    night to the next, either way."""
    email: EmailConfig | None = None
    """A mail server, where alerts shall come by e-mail."""

    @field_validator("drift")
    @classmethod
    def _figures_are_known(cls, found: dict[str, float]) -> dict[str, float]:
        for name, limit in found.items():
            if name not in FIGURES:
                raise ValueError(f"no figure {name!r}; {nearest(name, FIGURES)}")
            if not limit > 0:
                raise ValueError(f"{name}: expected a number above 0")
        return found


@dataclass(frozen=True)
class Alert:
    """One thing to tell: of which kind, about which night, in words."""

    kind: Kind
    pipeline: str
    night: str
    words: str

    @property
    def subject(self) -> str:
        """One line."""
        about = {"failed": f"night {self.night} of {self.pipeline} failed.",
                 "late": f"{self.pipeline} is late.",
                 "drift": f"figures of {self.pipeline} moved in night {self.night}.",
                 "refused": f"a challenger of {self.pipeline} was not promoted."}  # fmt: skip
        return f"Nightshift: {about[self.kind]}"

    def as_json(self) -> dict[str, Any]:
        """What a webhook gets; Slack reads `text`."""
        words = self.words[:LONGEST]
        return {
            "text": f"{self.subject} {words}",
            "kind": self.kind,
            "pipeline": self.pipeline,
            "night": self.night,
            "state": "failed" if self.kind in ("failed", "late") else "published",
            "error": words if self.kind == "failed" else None,
        }


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of FIGURES that a row of `nights` has."""
    told, found = row["figures"], dict[str, float]()
    for name in FIGURES:
        value: Any = told
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found[name] = float(value)
    rows = told.get("rows") or 0
    if rows:
        found |= {f"{one}_share": told[one] / rows for one in ("rejects", "duplicates")}
    return found


def drifted(
    now: Mapping[str, Any], before: Mapping[str, Any], limits: Mapping[str, float]
) -> list[str]:
    """Figures that moved further than they may between two rows of `nights`, in words."""
    new, old = figures_of(now), figures_of(before)
    return [
        f"{name} is {new[name]:.4g}, {old[name]:.4g} in night {before['night']} "
        f"(may move by {limit:g})"
        for name, limit in limits.items()
        if name in new and name in old and abs(new[name] - old[name]) > limit
    ]


def refused(row: Mapping[str, Any]) -> str | None:
    """What was decided of a challenger that did not become champion in this night."""
    told = row["figures"]
    if not told.get("trained") or told.get("promoted") or told.get("turn"):
        return None
    return str(told.get("outcome") or "no reason was noted")


def overdue(
    due: Iterable[datetime], nights: Iterable[Mapping[str, Any]], minutes: float, now: datetime
) -> list[datetime]:
    """Moments at which a night was due, long enough ago, and after which none was published."""
    finished = [row["finished"] for row in nights if row["state"] == "published"]
    newest, grace = max(finished, default=None), timedelta(minutes=minutes)
    return sorted(
        one for one in due if one + grace < now and (newest is None or newest < one)
    )  # fmt: skip
