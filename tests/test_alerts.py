"""Alerts: what there is to tell, and a real web server and a real mail server that are told."""

from __future__ import annotations

import json
import logging
import socketserver
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from flows.alerts import say_test, send, tell_late, tell_published
from flows.watching import look
from nightshift.alerts import Alert, AlertConfig, EmailConfig, drifted, overdue, refused
from nightshift.config import build
from nightshift.pipeline import Pipeline, config_digest, config_to_keep, load_settings

if TYPE_CHECKING:
    from conftest import House

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADDRESS, PASSWORD = "night@example.org", "s3cret-of-the-mail"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-path", got
    server.shutdown()
    server.server_close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody else vouches for, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    own = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1)).add_extension(own, critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    return paths


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[tuple[int, list[str]]]:
    """A mail server of RFC 5321, as far as one message needs it; it wants a login, and encrypts
    where it is asked to (RFC 3207), by the certificate in the test's folder."""
    got: list[str] = []
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate(tmp_path))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            while line := self.rfile.readline().decode().strip():
                got.append(line)
                verb = line.split()[0].upper()
                if verb == "EHLO":
                    self.say("250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN")
                elif verb == "STARTTLS":
                    self.say("220 go ahead")
                    try:
                        self.request = tls.wrap_socket(self.request, server_side=True)
                    except OSError:
                        return  # who called does not believe the certificate
                    got.append("-- encrypted")
                    self.setup()
                elif verb == "AUTH":
                    self.say("235 welcome")
                elif verb == "DATA":
                    self.say("354 go on")
                    while (text := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                        got.append(text)
                    self.say("250 taken")
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 fine")

        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], got
        server.shutdown()


def email(port: int, **more: Any) -> dict[str, Any]:
    return {
        "host": "127.0.0.1", "port": port, "security": "none", "user": ADDRESS,
        "password": PASSWORD, "sender": ADDRESS, "to": ["oncall@example.org"], **more,
    }  # fmt: skip


def pipeline(**keys: Any) -> Pipeline:
    return build(Pipeline, {"source": {"paths": ["x"]}, **keys}, "test", {})


def night(number: int, **figures: Any) -> dict[str, Any]:
    return {"night": f"n{number}", "number": number, "state": "published",
            "finished": NOON + timedelta(days=number), "figures": figures}  # fmt: skip


# --- what there is to tell --------------------------------------------------------------------


def test_figures_that_moved_further_than_they_may_are_told_with_both_values() -> None:
    before = night(1, quality={"macro_f1": 0.90}, rows=100, rejects=2, duplicates=0)
    now = night(2, quality={"macro_f1": 0.84}, rows=50, rejects=6, duplicates=0)
    limits = {"quality.macro_f1": 0.05, "rejects_share": 0.1, "clusters": 1}
    # The share of rejects moved from 0.02 to 0.12, which is not more than 0.1 but for rounding.
    [first, *_] = drifted(now, before, limits | {"rejects_share": 0.11})
    assert first == "quality.macro_f1 is 0.84, 0.9 in night n1 (may move by 0.05)"
    [_, second] = drifted(now, before, limits | {"rejects_share": 0.09})
    assert second == "rejects_share is 0.12, 0.02 in night n1 (may move by 0.09)"
    assert drifted(now, now, limits) == []


def test_a_challenger_that_was_not_promoted_is_told_and_no_other_night() -> None:
    assert refused(night(1, trained=True, promoted=False, outcome="too slow")) == "too slow"
    assert refused(night(1, trained=True, promoted=True)) is None
    assert refused(night(1, trained=False, promoted=False)) is None
    assert refused(night(1, trained=True, promoted=False, turn={"kind": "promote"})) is None


def test_a_night_is_late_when_none_was_published_since_it_was_due() -> None:
    due = [NOON + timedelta(days=day) for day in (1, 2, 3)]
    rows = [night(1), {**night(2), "state": "failed"}]  # n1 was published on day 1, at noon
    now = NOON + timedelta(days=2, minutes=90)
    assert overdue(due, rows, 60, now) == [due[1]]
    assert overdue(due, rows, 120, now) == []
    assert overdue(due, [], 60, now) == due[:2]


def test_thresholds_of_unknown_figures_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match=r"did you mean 'quality\.macro_f1'"):
        AlertConfig(drift={"quality.macro_f2": 0.1})
    with pytest.raises(ValidationError, match="above 0"):
        AlertConfig(drift={"clusters": 0})


# --- telling ----------------------------------------------------------------------------------


def test_an_alert_reaches_the_webhook_and_the_mailbox(
    hook: tuple[str, list[Any]], mail: tuple[int, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    declared = pipeline(webhook=hook[0], alerts={"email": email(mail[0])})
    alert = Alert("failed", "headlines", "n7", "The disk\nis full.")
    assert send(declared, alert) == {"webhook": True, "e-mail": True}
    [posted] = hook[1]
    assert posted["text"] == "Nightshift: night n7 of headlines failed. The disk\nis full."
    assert (posted["kind"], posted["state"]) == ("failed", "failed")
    assert f"mail FROM:<{ADDRESS}>" in " ".join(mail[1])
    assert "Subject: Nightshift: night n7 of headlines failed." in mail[1]
    assert "To: oncall@example.org" in mail[1]
    assert any("AUTH PLAIN" in line for line in mail[1])
    assert send(pipeline(webhook=hook[0], alerts={"on": ["late"]}), alert) == {}
    assert not caplog.records


def test_a_channel_that_does_not_answer_is_logged_without_its_secrets(
    caplog: pytest.LogCaptureFixture, mail: tuple[int, list[str]]
) -> None:
    nobody = "http://127.0.0.1:1/secret-path"
    declared = pipeline(
        webhook=nobody, alerts={"email": email(mail[0], security="starttls", timeout_seconds=5)}
    )
    with caplog.at_level(logging.DEBUG):
        # This server offers no encryption: the password is not sent in the open.
        assert say_test(declared, "headlines") == {"webhook": False, "e-mail": False}
    assert "did not take the message" in caplog.text
    for secret in ("secret-path", ADDRESS, PASSWORD):
        assert secret not in caplog.text
    assert not any("AUTH" in line for line in mail[1])


def test_secrets_of_alerts_stay_out_of_repr_manifest_and_digest() -> None:
    declared = pipeline(webhook="http://x/secret-path", alerts={"email": email(25)})
    shown = repr(declared) + json.dumps(config_to_keep(declared)) + declared.model_dump_json()
    for secret in ("secret-path", ADDRESS, PASSWORD, "oncall"):
        assert secret not in shown
    assert config_digest(declared) == config_digest(pipeline(keep={"nights": 3}))


def test_mail_is_sent_encrypted_to_a_server_whose_certificate_is_vouched_for(
    mail: tuple[int, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, got = mail
    alerts = {"email": email(port, security="starttls")}
    alert = Alert("failed", "headlines", "n1", "It fell over.")
    assert send(pipeline(alerts=alerts), alert) == {"e-mail": False}
    assert not any("AUTH" in line or "It fell" in line for line in got)
    got.clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    assert send(pipeline(alerts=alerts), alert) == {"e-mail": True}
    assert got.index("-- encrypted") < next(n for n, one in enumerate(got) if "AUTH" in one)
    assert any("It fell over." in line for line in got)


def test_a_password_is_never_declared_for_an_open_connection_to_elsewhere() -> None:
    with pytest.raises(ValidationError, match="in the open"):
        EmailConfig(**email(25, host="mail.example.org"))
    with pytest.raises(ValidationError, match="belong together"):
        EmailConfig(**email(25, password=None))


def test_a_late_night_is_told_once(house: House, hook: tuple[str, list[Any]]) -> None:
    house.declare(webhook=hook[0])
    settings, due = load_settings(house.config), [datetime(2026, 11, 22, 2, tzinfo=UTC)]
    late = due[0] + timedelta(hours=2)
    assert tell_late(settings, house.name, due, due[0]) is None  # not yet
    assert tell_late(settings, house.name, due, late) is not None
    assert tell_late(settings, house.name, due, late) is None
    [posted] = hook[1]
    assert posted["kind"] == "late"
    assert "none has begun since" in posted["text"]
    # The next one is another.
    again = [*due, due[0] + timedelta(days=1)]
    assert tell_late(settings, house.name, again, late + timedelta(days=1)) is not None
    assert len(hook[1]) == 2


def test_the_watcher_tells_of_a_late_night_and_not_of_a_paused_pipeline(
    house: House, hook: tuple[str, list[Any]]
) -> None:
    every_minute = {"cron": "* * * * *"}
    house.declare(webhook=hook[0], schedule=every_minute, alerts={"late_minutes": 0})
    memory = house.folder / "reports" / house.name / ".watch.json"
    assert look(load_settings(house.config)) == []  # it has only begun to look
    memory.write_text(json.dumps({"since": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}))
    [told] = look(load_settings(house.config))
    assert told.startswith(f"{house.name}: A night was due at ")
    house.declare(schedule={**every_minute, "paused": True})
    memory.with_name(".alerts.json").unlink()
    assert look(load_settings(house.config)) == []
    assert [one["kind"] for one in hook[1]] == ["late"]


def test_a_late_night_nobody_could_be_told_of_is_told_again(house: House, tmp_path: Path) -> None:
    house.declare(webhook="http://127.0.0.1:1/")
    settings, due = load_settings(house.config), [datetime(2026, 11, 22, 2, tzinfo=UTC)]
    for _ in range(2):
        assert tell_late(settings, house.name, due, due[0] + timedelta(hours=2)) is not None


def test_a_published_night_tells_of_drift_and_of_a_refused_challenger(
    house: House, hook: tuple[str, list[Any]]
) -> None:
    house.declare(webhook=hook[0], alerts={"drift": {"quality.accuracy": 0.05}})
    declared = load_settings(house.config).pipeline(house.name)
    house.lake.write_night(night(1, quality={"accuracy": 0.9}))
    house.lake.write_night(
        night(2, quality={"accuracy": 0.8}, trained=True, promoted=False, outcome="not better")
    )
    tell_published(declared, house.name, house.lake)
    assert [one["kind"] for one in hook[1]] == ["refused", "drift"]
    assert "not better" in hook[1][0]["text"]
    assert "quality.accuracy is 0.8" in hook[1][1]["text"]
