"""`nightshift up`: a Prefect server, its workers and the watcher, all below one process.

Whoever is killed with -9 leaves processes behind; they carry a mark in their environment, by which
the next `up` finds and ends them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from flows.environment import environment_of_up
from nightshift.errors import BusyError, ConfigError, NightError
from nightshift.pipeline import Settings
from nightshift.schedule import slots

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
MARK = "NIGHTSHIFT_UP"
READY_SECONDS = 180.0
"""A first start lays out a database, on a busy machine in tens of seconds."""
STOP_SECONDS = 30.0
"""What a night has to write down that it was interrupted, before it is killed."""
AGAIN_SECONDS = 5.0


@dataclass
class Child:
    """A process that is started again when it ends by itself."""

    name: str
    words: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    ended: float = 0.0

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C in the terminal is ours to pass on."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def keep(self) -> None:
        """Start it again, some seconds after it ended."""
        if self.process is None or self.process.poll() is None:
            return
        if not self.ended:
            self.ended = time.monotonic()
            log.warning("up        the %s ended (exit code %s), see %s; it is started again",
                        self.name, self.process.returncode, self.log)  # fmt: skip
        elif time.monotonic() - self.ended > AGAIN_SECONDS:
            self.ended = 0.0
            self.start()


def up(settings: Settings, config: Path, home: Path, port: int) -> None:
    """Serve until told to stop: SIGINT or SIGTERM.

    Args: the folder of the server's database and logs; the port of its page, 0 for a free one.
    Raises: BusyError when another `up` runs there, ConfigError for a port that is taken.
    """
    with _only_one(home):
        _end(_left_behind(home))
        (home / "up.json").unlink(missing_ok=True)
        os.environ[MARK] = str(home)
        stop = threading.Event()
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda *_: stop.set())
        pages = _serve_pages(Path(settings.reports), port + 1 if port else 0)
        os.environ["NIGHTSHIFT_REPORTS_URL"] = f"http://{HOST}:{pages.server_port}"
        children = list[Child]()
        try:
            own = "PREFECT_API_URL" not in os.environ
            if own:
                children.append(_start_server(home, port, stop))
            if not stop.is_set():
                children += _start_others(settings, config, home, own)
                _say(settings, home)
            while not stop.wait(1.0):
                for child in children:
                    child.keep()
            log.info("up        ending: nights at work write down how far they are")
        finally:
            _end_in_order(children)
            pages.shutdown()
            (home / "up.json").unlink(missing_ok=True)


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = environment_of_up(home).get("PREFECT_API_URL", "a page to come")
            raise BusyError(
                f"up: another `nightshift up` runs here, at {where}. "
                "Nothing was started. Stop it first, or use it."
            ) from None
        yield


def _start_server(home: Path, port: int, stop: threading.Event) -> Child:
    """The server, on a loopback port alone; from here on everything below us speaks to it."""
    number = _port(port)
    api = f"http://{HOST}:{number}/api"
    os.environ["PREFECT_API_URL"] = api
    words = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port"]
    child = Child("server", [*words, str(number)], home / "server.log")
    child.log.unlink(missing_ok=True)
    child.start()
    assert child.process is not None
    until = time.monotonic() + READY_SECONDS
    while not stop.is_set():
        with suppress(OSError), urllib.request.urlopen(f"{api}/health", timeout=2):
            break
        if child.process.poll() is not None or time.monotonic() > until:
            _end_in_order([child])
            raise NightError(f"up: the Prefect server did not start. {_last_line(child.log)}")
        stop.wait(0.3)
    names = ("PREFECT_API_URL", "NIGHTSHIFT_REPORTS_URL")
    told = {"pid": os.getpid(), "environment": {name: os.environ[name] for name in names}}
    (home / "up.json").write_text(json.dumps(told), encoding="utf-8")
    return child


def _start_others(settings: Settings, config: Path, home: Path, own: bool) -> list[Child]:
    """Deployments as the file says, a worker for them, the watcher where there is what to watch.

    Args: whether the server is ours, so that no worker can be alive that we did not start.
    """
    from flows.deploying import POOL, deploy
    from flows.reaching import reap, server
    from flows.watching import catch_up

    if own:
        with server() as api:
            lost = reap(api)
        if lost:
            log.info("up        %d runs had lost their worker; they are put in order", lost)
    # A server of our own has no other's: its folder may have moved, or been restored elsewhere.
    steps = deploy(settings, str(config), pool=POOL, force=own)
    number = {what: sum(one.what == what for one in steps) for what in ("new", "changed", "gone")}
    log.info("up        %d deployments: %d new, %d changed; %d gone from the file (see `nightshift "
             "deploy --prune`)", len(steps) - number["gone"], *number.values())  # fmt: skip
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type",
              "process", "--name", f"up-{socket.gethostname()}"]  # fmt: skip
    found = [Child("worker", worker, home / "worker.log")]
    if any(one.is_watched for one in settings.pipelines.values()):
        watcher = [sys.executable, "-m", "flows.cli", "watch", "--config", str(config)]
        found.append(Child("watcher", watcher, home / "watch.log"))
    for child in found:
        child.log.unlink(missing_ok=True)
        child.start()
    for words in catch_up(settings):
        log.info("up        %s", words)
    return found


def _say(settings: Settings, home: Path) -> None:
    page = os.environ["PREFECT_API_URL"].removesuffix("/api")
    log.info("up        page      %s", page)
    log.info("up        reports   %s", os.environ["NIGHTSHIFT_REPORTS_URL"])
    log.info("up        logs      %s", home)
    for name, pipeline in settings.pipelines.items():
        schedule, now = pipeline.schedule, datetime.now(UTC)
        ahead = slots(schedule, now, now + timedelta(days=400)) if schedule.is_set else iter(())
        at = next(ahead, None)
        when = "by hand" if at is None else f"{at.astimezone(schedule.zone):%Y-%m-%d %H:%M %Z}"
        paused = " (paused)" if schedule.is_set and schedule.paused else ""
        log.info("up        %-9s next night %s%s", name, when, paused)
    log.info("up        Ctrl-C ends it")


def _port(wanted: int) -> int:
    """A free port; the wanted one, or none.

    Raises: ConfigError when it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise ConfigError(
                f"--port: {wanted} cannot be used ({error.strerror}). Give another one, or 0 for "
                "any; if a Prefect server runs there already, set PREFECT_API_URL to it."
            ) from None
        return probe.getsockname()[1]


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"Its last line: {lines[-1][:300]} All of it: {path}" if lines else f"See {path}"


# --- the pages ------------------------------------------------------------------------------


class _Pages(SimpleHTTPRequestHandler):
    """The reports folder, pages alone: no lists of files, nothing hidden, no other kind."""

    def send_head(self) -> Any:
        parts = self.path.split("?")[0].strip("/").split("/")
        here = Path(self.directory).resolve()
        inside = Path(self.translate_path(self.path)).resolve().is_relative_to(here)
        page = len(parts) == 2 and parts[1].endswith(".html") and not parts[1].startswith(".")
        if not (inside and page):
            self.send_error(404)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
        log.debug(format, *args)


def _serve_pages(folder: Path, port: int) -> ThreadingHTTPServer:
    """The reports over HTTP: a browser opens no file from a link on a server's page."""
    handler = partial(_Pages, directory=str(folder))
    try:
        found = ThreadingHTTPServer((HOST, port), handler)
    except OSError:
        found = ThreadingHTTPServer((HOST, 0), handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    return found


# --- ending ---------------------------------------------------------------------------------


def _end_in_order(children: list[Child]) -> None:
    """Watcher and workers with their nights first, which still speak to the server; then it."""
    running = [one for one in children if one.process is not None]
    others = [one.process.pid for one in running if one.name != "server" and one.process]
    _end([tree for pid in others for tree in _tree(pid)])
    _end([tree for one in running if one.name == "server" and one.process
          for tree in _tree(one.process.pid)])  # fmt: skip
    for one in running:
        with suppress(Exception):
            assert one.process is not None
            one.process.wait(1)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return []


def _end(processes: list[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL for whoever is still there after a while."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.terminate()
    _, there = psutil.wait_procs(processes, STOP_SECONDS)
    for one in there:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(there, 5)


def _left_behind(home: Path) -> list[psutil.Process]:
    """Processes that an `up` of this folder started, and that outlived it."""
    found = list[psutil.Process]()
    for one in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if one.pid != os.getpid() and one.environ().get(MARK) == str(home):
                found.append(one)
    if found:
        log.info("up        %d processes were left by one that was killed; they are ended",
                 len(found))  # fmt: skip
    return found
