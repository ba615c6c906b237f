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
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response

from flows.asked import CODES, Asked, RefusedError, of_invocation, of_predict, parsed
from flows.desk import Champion, Desk, Job
from flows.door import TOKEN, Door, token_of
from flows.meters import CONTENT_TYPE, Meters
from nightshift.errors import ConfigError, NightshiftError, PassingError
from nightshift.pipeline import Settings

if TYPE_CHECKING:
    from nightshift.bundle import Bundle

log = logging.getLogger(__name__)

RETRY_SECONDS = 1
"""When to come again: about so long the desk takes for a few passes."""
AGAIN_SECONDS = 60.0
"""A version that could not be loaded is tried again after this."""
GRACE_SECONDS = 30
"""How long requests may take to finish once the server was told to stop."""
IDLE_SECONDS = 75
"""A connection that says nothing is closed after this."""


# --- which model ----------------------------------------------------------------------------


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
        from tasks.tracking import be_brief

        be_brief()
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


# --- HTTP -----------------------------------------------------------------------------------


def build_app(follower: Follower, desk: Desk, meters: Meters, token: str | None = None) -> FastAPI:
    """The endpoints; threads that follow and answer are the caller's.

    Args: `token`, which all but /health and /ready ask for where there is one.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    door = Door(token)
    meters.waiting.set_function(lambda: desk.texts)

    async def reply(
        request: Request, read: Callable[[dict[str, Any]], Asked], key: str
    ) -> Response:
        started = time.perf_counter()
        response = await _reply(follower, desk, meters, door, request, read, key)
        meters.seconds.labels(request.url.path).observe(time.perf_counter() - started)
        meters.requests.labels(request.url.path, response.status_code).inc()
        return response

    def told(request: Request) -> Response | None:
        """What is said to who lacks the token; None to all others."""
        try:
            door.check(request)
        except RefusedError as refused:
            meters.requests.labels(request.url.path, refused.status).inc()
            return _refusal(refused)
        return None

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
    async def ready(request: Request) -> Response:
        there = _where(follower)
        if not door.knows(request):
            # A probe has no token, and names no store.
            there = {"ready": there["ready"]}
        return _json(there, 200 if there["ready"] else 503)

    @app.get("/version")
    async def version(request: Request) -> Response:
        found = _json({"model_version": _where(follower)["model_version"]})
        return told(request) or found

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return told(request) or Response(meters.page(), media_type=CONTENT_TYPE)

    return app


async def _reply(
    follower: Follower,
    desk: Desk,
    meters: Meters,
    door: Door,
    request: Request,
    read: Callable[[dict[str, Any]], Asked],
    key: str,
) -> Response:
    try:
        door.check(request)
        async with door.body(request) as body:
            asked, champion = read(parsed(body)), follower.current
            if champion is not None:
                return await _answered(desk, meters, champion, asked, key)
    except RefusedError as refused:
        return _refusal(refused)
    words = {"error_code": CODES[503], "message": str(follower.problem)}
    return _json(words, 503, {"Retry-After": str(RETRY_SECONDS)})


async def _answered(
    desk: Desk, meters: Meters, champion: Champion, asked: Asked, key: str
) -> Response:
    try:
        rows = await asyncio.wrap_future(desk.ask(Job(champion, asked)))
    except RefusedError:
        raise
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


def _refusal(refused: RefusedError) -> Response:
    more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
    return _json(refused.as_json(), refused.status, more.get(refused.status))


def _json(
    found: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(json.dumps(found), status, headers, "application/json")


# --- the process ----------------------------------------------------------------------------


def serve(
    settings: Settings,
    pipeline: str,
    host: str,
    port: int,
    every: float,
    token_file: Path | None = None,
) -> None:
    """Answer until the process is told to stop; requests that are being answered finish.

    Raises: ConfigError for an address that cannot be listened on, or a token that is none.
    """
    token, listening = token_of(token_file), listen(host, port)
    meters, desk, stopped = Meters(), Desk(), threading.Event()
    follower = Follower(settings, pipeline, meters)
    threads = [
        threading.Thread(target=desk.work, name="answers", daemon=True),
        threading.Thread(target=follower.follow, args=(every, stopped), name="alias", daemon=True),
    ]
    for thread in threads:
        thread.start()
    address, number = listening.getsockname()[:2]
    log.info("serve     %s at http://%s:%d", pipeline, host, number)
    if token is None and not ip_address(address.partition("%")[0]).is_loopback:
        log.warning(
            "serve     whoever reaches %s may ask, since no token is asked for: give one with "
            "--token-file or %s", address, TOKEN,
        )  # fmt: skip
    # Uvicorn finishes what it has begun, and then raises the signal again for whoever was here.
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: None)
    server(build_app(follower, desk, meters, token)).run(sockets=[listening])
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
