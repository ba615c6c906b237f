"""`nightshift serve`: the champion over HTTP. A thread follows the registry's alias, one answers.

    registry -> Follower.current -> request -> Desk -> answers

A request takes the champion of its moment with it, so a swap is one assignment and disturbs none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response

from flows.asked import MOST_BYTES, Asked, RefusedError, of_invocation, of_predict, parsed
from flows.meters import CONTENT_TYPE, Meters
from flows.predicting import ANSWERED
from nightshift.errors import ConfigError, NightshiftError, PassingError
from nightshift.pipeline import Settings

if TYPE_CHECKING:
    from nightshift.bundle import Bundle

log = logging.getLogger(__name__)

TOGETHER = 256
"""Texts of waiting requests that are answered in one pass."""
AGAIN_SECONDS = 60.0
"""A version that could not be loaded is tried again after this."""
GRACE_SECONDS = 30
"""How long requests may take to finish once the server was told to stop."""
IDLE_SECONDS = 75
"""A connection that says nothing is closed after this."""


# --- which model ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Champion:
    """A loaded bundle and the version it is."""

    version: int
    bundle: Bundle


class Follower:
    """Loads whatever the registry's alias points at, beside what answers until then."""

    def __init__(self, settings: Settings, pipeline: str, meters: Meters):
        self._uri, self._pipeline, self._meters = settings.mlflow, pipeline, meters
        self.current: Champion | None = None
        self.problem: str | None = "the champion is still being loaded"
        """Why `current` may not be what the registry says; None where it is."""
        self._refused: tuple[int, float] = (0, 0.0)

    def follow(self, every: float, stopped: threading.Event) -> None:
        """Look at the alias every few seconds, until stopped."""
        while not stopped.is_set():
            self.look()
            stopped.wait(every)

    def look(self) -> None:
        """Ask once, and load the champion where it is another one; nothing raises."""
        from tasks.tracking import champion_version

        try:
            wanted = champion_version(self._uri, self._pipeline)
        except Exception as error:
            self._meters.reached.set(0)
            self._say(str(error))
            return
        self._meters.reached.set(1)
        if wanted is None:
            self._say(f"{self._pipeline} has no champion. Run a night: nightshift run "
                      f"{self._pipeline}")  # fmt: skip
        elif self.current is not None and self.current.version == wanted:
            self._say(None)
        elif self._refused[0] != wanted or time.monotonic() >= self._refused[1]:
            self._swap(wanted)

    def _swap(self, wanted: int) -> None:
        started = time.monotonic()
        try:
            loaded = Champion(wanted, self._load(wanted))
        except Exception as error:
            # A store that was away may be back at the next look; damaged files stay damaged.
            wait = 0.0 if isinstance(error, PassingError) else AGAIN_SECONDS
            self._refused = (wanted, time.monotonic() + wait)
            self._meters.failed.inc()
            words = str(error) if isinstance(error, NightshiftError) else repr(error)
            self._say(f"version {wanted} is champion, but cannot answer: {words}")
            return
        before, self.current = self.current, loaded
        self._refused = (0, 0.0)
        self._meters.swaps.inc()
        self._meters.version.set(wanted)
        self.problem = None
        log.info(
            "serve     version %d of %s answers%s; loaded in %.1f s", wanted, self._pipeline,
            f" in place of {before.version}" if before else "", time.monotonic() - started,
        )  # fmt: skip

    def _load(self, version: int) -> Bundle:
        from nightshift.integrity import load_as_made
        from tasks.tracking import bundle_of, scratch

        with scratch() as folder:
            bundle = load_as_made(bundle_of(self._uri, self._pipeline, version, Path(folder)))
        # What is made at a first answer is made now; one that cannot answer is never swapped in.
        bundle.answer(["a text to begin with", "第一个文本"], vectors=True)
        return bundle

    def _say(self, problem: str | None) -> None:
        """Note what is wrong, and log it when it is new."""
        if problem and problem != self.problem:
            still = f"; version {self.current.version} still answers" if self.current else ""
            log.warning("serve     %s%s", problem, still)
        elif self.problem and not problem and self.current:
            log.info("serve     version %d is the registry's champion", self.current.version)
        self.problem = problem


# --- who answers ----------------------------------------------------------------------------


@dataclass
class Job:
    """A request's texts, the champion of the moment it came, and where its answers go."""

    champion: Champion
    asked: Asked
    rows: Future[list[dict[str, Any]]] = field(default_factory=Future)

    def fits(self, other: Job) -> bool:
        """Whether one pass can answer both."""
        return other.champion is self.champion and other.asked.vectors == self.asked.vectors


class Desk:
    """One thread answers, and takes all that came meanwhile into its next pass.

    Torch uses the cores within a pass: passes beside one another only wait for each other.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def ask(self, job: Job) -> Future[list[dict[str, Any]]]:
        """Put a request behind those that wait."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.rows

    def close(self) -> None:
        """Let the thread end when nothing waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def work(self) -> None:
        """Answer until closed."""
        while jobs := self._take():
            jobs = [job for job in jobs if job.rows.set_running_or_notify_cancel()]
            try:
                _answer(jobs)
            except Exception:
                # One text must not cost the others their answers.
                for job in jobs:
                    try:
                        _answer([job])
                    except Exception as error:
                        job.rows.set_exception(error)

    def _take(self) -> list[Job]:
        """The oldest request and those behind it that fit into its pass; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            jobs: list[Job] = []
            texts = 0
            while self._waiting and (not jobs or jobs[0].fits(self._waiting[0])):
                texts += len(self._waiting[0].asked.texts)
                if jobs and texts > TOGETHER:
                    break
                jobs.append(self._waiting.popleft())
            return jobs


def _answer(jobs: list[Job]) -> None:
    """Answer requests of one champion in one pass."""
    if not jobs:
        return
    texts = [text for job in jobs for text in job.asked.texts]
    top = max(job.asked.top for job in jobs)
    rows = iter(jobs[0].champion.bundle.answer(texts, top, jobs[0].asked.vectors))
    answers = [[_row(next(rows), job.asked) for _ in job.asked.texts] for job in jobs]
    for job, answer in zip(jobs, answers, strict=True):
        job.rows.set_result(answer)


def _row(answer: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """All keys, whatever the model and the text; as many labels as this request wants."""
    row = {**ANSWERED, **({"vector": None} if asked.vectors else {}), **answer}
    return {**row, "top": row["top"][: asked.top]} if row["top"] else row


# --- HTTP -----------------------------------------------------------------------------------


def build_app(follower: Follower, desk: Desk, meters: Meters) -> FastAPI:
    """The endpoints; threads that follow and answer are the caller's."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def reply(
        request: Request, read: Callable[[dict[str, Any]], Asked], key: str
    ) -> Response:
        started = time.perf_counter()
        response = await _reply(follower, desk, meters, request, read, key)
        meters.seconds.labels(request.url.path).observe(time.perf_counter() - started)
        meters.requests.labels(request.url.path, response.status_code).inc()
        return response

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        return await reply(request, of_invocation, "predictions")

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        return await reply(request, of_predict, "answers")

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        there = _where(follower)
        return _json(there, 200 if there["ready"] else 503)

    @app.get("/version")
    async def version() -> Response:
        return _json({"model_version": _where(follower)["model_version"]})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(meters.page(), media_type=CONTENT_TYPE)

    return app


async def _reply(
    follower: Follower,
    desk: Desk,
    meters: Meters,
    request: Request,
    read: Callable[[dict[str, Any]], Asked],
    key: str,
) -> Response:
    try:
        asked = read(parsed(await _body(request)))
    except RefusedError as refused:
        return _json(refused.as_json(), refused.status)
    champion = follower.current
    if champion is None:
        return _json(
            {"error_code": "TEMPORARILY_UNAVAILABLE", "message": str(follower.problem)}, 503
        )
    try:
        rows = await asyncio.wrap_future(desk.ask(Job(champion, asked)))
    except Exception:
        log.exception("serve     version %d could not answer", champion.version)
        words = f"version {champion.version} could not answer; the server's log says why."
        return _json({"error_code": "INTERNAL_ERROR", "message": words}, 500)
    meters.count(rows)
    return _json({key: rows, "model_version": champion.version})


def _where(follower: Follower) -> dict[str, Any]:
    there = follower.current
    return {
        "ready": there is not None,
        "model_version": there.version if there else None,
        "problem": follower.problem,
    }


async def _body(request: Request) -> bytes:
    """The request's body. Raises: RefusedError where it is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        # What is too long is read, not kept: a client that still writes would not see the answer.
        if size <= MOST_BYTES:
            parts.append(part)
        elif size > 16 * MOST_BYTES:
            break
    if size > MOST_BYTES:
        expected = f"at most {MOST_BYTES} bytes in one request"
        raise RefusedError("body", f"{size} bytes", expected, 413)
    return b"".join(parts)


def _json(found: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(found), status, media_type="application/json")


# --- the process ----------------------------------------------------------------------------


def serve(settings: Settings, pipeline: str, host: str, port: int, every: float) -> None:
    """Answer until the process is told to stop; requests that are being answered finish.

    Raises: ConfigError for an address that cannot be listened on.
    """
    # A registry that is away is asked again at the next look: MLflow's own patience is minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    listening = listen(host, port)
    meters, desk, stopped = Meters(), Desk(), threading.Event()
    follower = Follower(settings, pipeline, meters)
    threads = [
        threading.Thread(target=desk.work, name="answers", daemon=True),
        threading.Thread(target=follower.follow, args=(every, stopped), name="alias", daemon=True),
    ]
    for thread in threads:
        thread.start()
    log.info("serve     %s at http://%s:%d", pipeline, host, listening.getsockname()[1])
    # Uvicorn finishes what it has begun, and then raises the signal again for whoever was here.
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: None)
    server(build_app(follower, desk, meters)).run(sockets=[listening])
    stopped.set()
    desk.close()
    threads[0].join(GRACE_SECONDS)
    log.info("serve     stopped")


def server(app: FastAPI) -> uvicorn.Server:
    """The HTTP server, quiet and patient."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises: ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it. Else the body waits 40 ms for the client to confirm the headers.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(
            f"--host, --port: cannot listen on {host}:{port} ({why}). Give another, or stop what "
            "listens there."
        ) from error
