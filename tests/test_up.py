"""`nightshift up`, as its own processes: its page, kill -9, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import House, rows
from test_kills import BIN


def start(house: House, log: str) -> subprocess.Popen[bytes]:
    environment = {key: one for key, one in os.environ.items() if not key.startswith("PREFECT")}
    with (house.folder / log).open("w") as out:
        return subprocess.Popen(
            [BIN / "nightshift", "up", "--port", "0", "--config", str(house.config)],
            stdout=out, stderr=out, start_new_session=True, cwd=house.folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def told(house: House, log: str, words: str, seconds: float = 200) -> str:
    """The rest of the first line of a log with these words, once it is there."""
    until, text = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        text = (house.folder / log).read_text()
        for line in text.splitlines():
            if words in line:
                return line.partition(words)[2].strip()
        time.sleep(0.2)
    raise AssertionError(f"{words!r} was never said:\n{text}")


def ours(house: House) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("NIGHTSHIFT_UP") == str(house.folder / ".prefect"):
                found.append(one)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def home(house: House) -> Iterator[House]:
    """A house whose processes do not outlive the test."""
    yield house
    for one in ours(house):
        one.kill()


@pytest.mark.slow
def test_up_serves_its_page_survives_kill_9_and_ends_without_leaving_anybody(home: House) -> None:
    home.declare(schedule={"cron": "0 2 * * *", "timezone": "Europe/Berlin"})
    first = start(home, "first.log")
    page = told(home, "first.log", "page ")
    with urllib.request.urlopen(f"{page}/api/health", timeout=20) as answer:
        assert json.loads(answer.read()) is True
    with urllib.request.urlopen(page, timeout=20) as answer:
        assert b"<title>Prefect" in answer.read()
    # Only pages of reports are served, nothing beside them.
    pages = told(home, "first.log", "reports ")
    path = home.folder / "reports" / home.name / "n1.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("<p>morning</p>")
    (path.parent / ".night.lock").write_text("secret")
    with urllib.request.urlopen(f"{pages}/{home.name}/n1.html", timeout=20) as answer:
        assert answer.read() == b"<p>morning</p>"
    for elsewhere in ("", f"/{home.name}/", f"/{home.name}/.night.lock", "/../pipelines.yaml",
                      f"/{home.name}/%2e%2e%2f%2e%2e%2fpipelines.yaml"):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(pages + elsewhere, timeout=20)
        assert caught.value.code == 404
    second = start(home, "refused.log")
    assert second.wait(120) == 1
    assert page in (home.folder / "refused.log").read_text()
    told(home, "first.log", "next night")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = ours(home)
    assert left  # the server, at least, is an orphan now
    again = start(home, "again.log")
    told(home, "again.log", "left by one that was killed")
    told(home, "again.log", "Ctrl-C ends it")
    assert "12 deployments: 0 new, 0 changed" in (home.folder / "again.log").read_text()
    assert not any(one.is_running() and one.status() != "zombie" for one in left)
    again.send_signal(signal.SIGTERM)
    assert again.wait(120) == 0
    assert ours(home) == []
    assert not (home.folder / ".prefect" / "up.json").exists()


def test_a_port_that_is_taken_is_told_before_anything_starts(home: House) -> None:
    import socket

    home.drop("one.jsonl", rows(2))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        environment = {key: one for key, one in os.environ.items() if not key.startswith("PREFECT")}
        done = subprocess.run(
            [BIN / "nightshift", "up", "--port", str(number), "--config", str(home.config)],
            capture_output=True, text=True, env=environment, cwd=Path(home.folder), timeout=200,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"--port: {number} cannot be used (Address already in use)" in done.stderr
