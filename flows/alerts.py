"""Telling people: a webhook that Slack understands, and e-mail.

An alert that cannot be sent is logged and fails nothing. Addresses, passwords and URLs are secrets:
of what goes wrong only the kind of error is told, for the words of some quote them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightshift.alerts import Alert, EmailConfig, drifted, overdue, refused
from nightshift.pipeline import Pipeline, Settings
from nightshift.tables import Lake

if TYPE_CHECKING:
    from smtplib import SMTP

log = logging.getLogger(__name__)

WEBHOOK_SECONDS = 10


def send(pipeline: Pipeline, alert: Alert) -> dict[str, bool]:
    """Tell an alert by every channel that is declared, if its kind is wanted; who took it."""
    if alert.kind not in pipeline.alerts.on:
        return {}
    channels = {
        "webhook": (pipeline.webhook, lambda: _webhook(pipeline, alert)),
        "e-mail": (pipeline.alerts.email, lambda: _mail(pipeline.alerts.email, alert)),
    }
    return {name: _tried(name, how) for name, (given, how) in channels.items() if given}


def _tried(channel: str, how: Any) -> bool:
    try:
        how()
    except (OSError, ValueError) as error:  # smtplib's errors are OSErrors
        log.warning("%-9s did not take the message: %s", channel, type(error).__name__)
        return False
    return True


def _webhook(pipeline: Pipeline, alert: Alert) -> None:
    import urllib.request

    assert pipeline.webhook is not None
    url = pipeline.webhook.get_secret_value()
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected an http or https URL")
    body = json.dumps(alert.as_json()).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
        pass


def _mail(config: EmailConfig | None, alert: Alert) -> None:
    from email.message import EmailMessage

    assert config is not None
    message = EmailMessage()
    message["Subject"] = " ".join(alert.subject.split())
    message["From"] = config.sender.get_secret_value()
    message["To"] = ", ".join(one.get_secret_value() for one in config.to)
    message.set_content(f"{alert.as_json()['text']}\n")
    with _connected(config) as server:
        if config.user and config.password:
            server.login(config.user.get_secret_value(), config.password.get_secret_value())
        server.send_message(message)


def _connected(config: EmailConfig) -> SMTP:
    """A connection to the mail server, encrypted as declared, its certificate verified."""
    import smtplib
    import ssl

    at, seconds = (config.host, config.port), config.timeout_seconds
    if config.security == "ssl":
        return smtplib.SMTP_SSL(*at, timeout=seconds, context=ssl.create_default_context())
    server = smtplib.SMTP(*at, timeout=seconds)
    try:
        if config.security == "starttls":
            server.starttls(context=ssl.create_default_context())
    except Exception:
        server.close()
        raise
    return server


# --- what there is to tell --------------------------------------------------------------------


def say_test(pipeline: Pipeline, name: str) -> dict[str, bool]:
    """A message by every declared channel, whatever is wanted; who took it."""
    wanted = pipeline.alerts.model_copy(update={"on": ["failed"]})
    alert = Alert("failed", name, "test", "This is a test; no night failed.")
    return send(pipeline.model_copy(update={"alerts": wanted}), alert)


def tell_failed(pipeline: Pipeline, name: str, night: str, words: str) -> None:
    """Say that a night failed."""
    send(pipeline, Alert("failed", name, night, words))


def tell_published(pipeline: Pipeline, name: str, lake: Lake) -> None:
    """Say what the newest published night has that somebody should look at."""
    done = [row for row in lake.nights() if row["state"] == "published"]
    for alert in _noticed(pipeline, name, done):
        send(pipeline, alert)


def _noticed(pipeline: Pipeline, name: str, done: list[dict[str, Any]]) -> Iterator[Alert]:
    now = done[-1]
    said = refused(now)
    if said is not None:
        yield Alert("refused", name, now["night"], said)
    moved = drifted(now, done[-2], pipeline.alerts.drift) if len(done) > 1 else []
    if moved:
        yield Alert("drift", name, now["night"], "; ".join(moved))


def tell_late(
    settings: Settings, name: str, due: Iterable[datetime], now: datetime | None = None
) -> Alert | None:
    """Say, once for each, that a night did not come that was due; returns the alert.

    Args: moments with a time zone at which nights were due; later ones do no harm.
    """
    pipeline, now = settings.pipeline(name), now or datetime.now(UTC)
    nights = Lake(settings.lake, name, settings.storage_options()).nights()
    late = overdue(due, nights, pipeline.alerts.late_minutes, now)
    path = Path(settings.reports) / name / ".alerts.json"
    told = _told(path)
    new = [one for one in late if told is None or one > told]
    if not new:
        return None
    alert = Alert("late", name, nights[-1]["night"] if nights else "", _late_words(new, nights))
    if all(send(pipeline, alert).values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"late": new[-1].isoformat()}), encoding="utf-8")
    return alert


def _told(path: Path) -> datetime | None:
    """The newest due moment of which somebody was told."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        return datetime.fromisoformat(json.loads(text)["late"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        log.warning("alerts    %s is not what Nightshift wrote (%s); it is begun anew", path,
                    type(error).__name__)  # fmt: skip
        return None


def _late_words(late: list[datetime], nights: list[dict[str, Any]]) -> str:
    first = f"A night was due at {late[0].astimezone():%Y-%m-%d %H:%M %Z}"
    more = f", and {len(late) - 1} since" if len(late) > 1 else ""
    newest = nights[-1] if nights else None
    if newest is None or newest["state"] == "published":
        return f"{first}{more}; none has begun since. See that the schedule runs."
    state = {"running": "is running", "failed": f"failed: {newest['error']}"}[newest["state"]]
    return f"{first}{more}; none is published since. Night {newest['night']} {state}"
