"""`nightshift review`: the page. Forms and links alone; the script only gives them keys.

    request -> guard (Host, Origin, headers) -> session -> a form, its token -> Review -> template

Every answer is a redirect, so that going back or reloading never says anything twice.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.access import COOKIE as SESSION
from flows.access import SESSION_SECONDS, Door, Session
from flows.reviewing import Review
from flows.serving import listen, server
from nightshift.errors import ConfigError, NightshiftError
from nightshift.journal import person
from nightshift.pictures import clean
from nightshift.pipeline import Settings
from nightshift.queues import QUEUES

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "review"
LANGUAGES = ("en", "zh")
THEMES = ("auto", "light", "dark")
KEYED = 9
"""Classes that have a number key."""
SHORT = 4_000
"""Characters of a text that are shown until all are asked for."""
SNIPPET = 240
FOUND = 30
"""Documents on a page of results."""
MOST_FORM = 64 * 1024
"""Bytes of a form."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC = {"review.css": "text/css; charset=utf-8", "review.js": "text/javascript; charset=utf-8",
          "icon.svg": "image/svg+xml"}  # fmt: skip


class RefusedError(ConfigError):
    """A request that is not answered, with its status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class SignInError(Exception):
    """Nobody is signed in."""


@cache
def strings() -> dict[str, dict[str, str]]:
    """All words of the interface by language."""
    table = json.loads((FOLDER / "strings.json").read_text(encoding="utf-8"))
    return {
        language: {key: row[place] for key, row in table.items()}
        for place, language in enumerate(LANGUAGES)
    }


@cache
def templates() -> Environment:
    """The pages; every value is escaped."""
    found = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {
        "fit": lambda text: clean(str(text)),
        "count": lambda number: f"{number:,}",
        "share": lambda number: f"{number:.0%}",
        "query": urlencode,
        "language": lambda lang: lang if re.fullmatch(r"[a-z]{2,3}", lang or "") else "",
        "snippet": lambda text: clean(text[:SNIPPET]) + ("…" if len(text) > SNIPPET else ""),
    }
    return found


# --- the app ----------------------------------------------------------------------------------


def build_app(review: Review, door: Door) -> FastAPI:
    """The pages; the thread that looks for newer nights is the caller's."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.review, app.state.door = review, door
    app.middleware("http")(_guard)
    app.exception_handler(SignInError)(_to_sign_in)
    app.exception_handler(NightshiftError)(_say_error)
    app.exception_handler(sqlite3.Error)(_say_error)
    for path, page in (
        ("/", home), ("/review", question), ("/search", results), ("/clusters", clusters),
        ("/signin", sign_in_page), ("/health", health), ("/static/{name}", static),
    ):  # fmt: skip
        app.get(path, response_model=None)(page)
    for path, done in (
        ("/say", say), ("/undo", undo), ("/cluster", shape), ("/settings", settle),
        ("/signin", sign_in), ("/signout", sign_out),
    ):  # fmt: skip
        app.post(path, response_model=None)(done)
    return app


async def _guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what was not meant for us, or comes from a page of another site."""
    door: Door = request.app.state.door
    host = request.headers.get("host", "")
    if not door.is_host(host):
        return Response("This is not the address of this page; see --url.\n", 421, dict(HEADERS))
    if request.method == "POST" and not door.is_origin(request.headers.get("origin"), host):
        return Response("This form is not from this page.\n", 403, dict(HEADERS))
    answered = await answer(request)
    answered.headers.update(HEADERS)
    return answered


class Visit:
    """A request of a known person, and the page that answers it."""

    def __init__(self, request: Request, session: Session, cookie: str | None):
        self.request, self.session = request, session
        self.door: Door = request.app.state.door
        self.review: Review = request.app.state.review
        self.by = session.name
        self._cookie = cookie

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A template, in the person's language."""
        return self.answer(Response(
            render(self.request, name, session=self.session, **values), status,
            media_type="text/html; charset=utf-8",
        ))  # fmt: skip

    def to(self, path: str, **query: str | None) -> Response:
        """On to another page."""
        asked = urlencode({key: value for key, value in query.items() if value})
        return self.answer(RedirectResponse(f"{path}?{asked}" if asked else path, 303))

    def answer(self, response: Response) -> Response:
        """With the cookie of a session that has just begun."""
        if self._cookie is not None:
            _set_cookie(response, self.door, SESSION, self._cookie, SESSION_SECONDS)
        return response


async def _visit(request: Request) -> Visit:
    door: Door = request.app.state.door
    session = door.session(request.cookies.get(SESSION))
    if session is not None:
        return Visit(request, session, None)
    if door.users is not None or request.method == "POST":
        raise SignInError
    return Visit(request, *door.open(door.login))


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM:
            raise RefusedError(413, f"form: more than {MOST_FORM} bytes.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body)))
    except (UnicodeDecodeError, ValueError) as error:
        raise RefusedError(400, f"form: cannot be read ({error}).") from error


async def _posted(request: Request, form: Annotated[dict[str, str], Depends(_form)]) -> Visit:
    visit = await _visit(request)
    if not visit.door.is_token(visit.session, form.get("token", "")):
        raise RefusedError(403, "form: its token is of another session. Load the page again.")
    return visit


Here = Annotated[Visit, Depends(_visit)]
Posted = Annotated[Visit, Depends(_posted)]
Form = Annotated[dict[str, str], Depends(_form)]


def render(request: Request, name: str, session: Session | None = None, **values: Any) -> str:
    """A page as text."""
    door: Door = request.app.state.door
    review: Review = request.app.state.review
    language = _language(request)
    there = review.shelf.index
    return templates().get_template(name).render(
        say=strings()[language], lang=language, theme=_theme(request), pipeline=review.pipeline,
        night=there.about["night"] if there else None, progress=review.shelf.progress,
        problem=review.shelf.problem, session=session, signs_in=door.users is not None,
        token=door.token(session) if session else "", here=str(request.url.path), **values,
    )  # fmt: skip


def _language(request: Request) -> str:
    chosen = request.cookies.get("lang")
    if chosen in LANGUAGES:
        return chosen
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"


def _theme(request: Request) -> str:
    chosen = request.cookies.get("theme", "")
    return chosen if chosen in THEMES else THEMES[0]


def _set_cookie(response: Response, door: Door, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name, value, max_age=seconds, httponly=True, samesite="strict", secure=door.secure
    )


def _to_sign_in(request: Request, _: Exception) -> Response:
    if request.app.state.door.users is None:  # a form that was open when the page was restarted
        return RedirectResponse("/", 303)
    return RedirectResponse("/signin", 303)


def _say_error(request: Request, error: Exception) -> Response:
    review: Review = request.app.state.review
    # A document was forgotten, and the file with it; or no file is made yet.
    preparing = review.shelf.index is None or isinstance(error, sqlite3.Error)
    status = getattr(error, "status", 503 if preparing else 400)
    page = render(
        request, "message.html", message=None if review.shelf.progress else str(error),
        session=request.app.state.door.session(request.cookies.get(SESSION)), preparing=preparing,
    )  # fmt: skip
    return Response(page, status, media_type="text/html; charset=utf-8")


# --- pages ------------------------------------------------------------------------------------


def home(visit: Here) -> Response:
    """The queues, and who did how much."""
    review = visit.review
    about = review.index.about
    rows = [(queue, review.left(queue, visit.by), about["counts"].get(queue, 0))
            for queue in QUEUES]  # fmt: skip
    people = review.words.since(about["words"]).most_common()
    return visit.page("home.html", queues=rows, people=people, documents=about["documents"],
                      clusters=review.clusters()[:12])  # fmt: skip


def question(
    visit: Here, queue: str = "unsure", doc: str = "", note: str = "", whole: int = 0
) -> Response:
    """One document, and what may be said of it."""
    review, others = visit.review, False
    if doc:
        found = review.doc(doc)
        others = review.journal.lend([doc], visit.by, 10.0) is None
    else:
        found = review.next(queue, visit.by)
    kind, _, rest = queue.partition(" ")
    left = review.left(queue, visit.by) if queue in QUEUES else None
    shared = {"queue": queue, "kind": kind, "rest": rest, "left": left, "note": note}
    if found is None:
        return visit.page("done.html", **shared)
    classes = review.classes()
    label, by = review.words.label(found)
    return visit.page(
        "question.html", doc=found, label=label, by=by, classes=classes, keyed=classes[:KEYED],
        others=others, cut=not whole and len(found.text) > SHORT,
        text=found.text if whole else found.text[:SHORT],
        cluster=review.index.clusters.get(found.cluster_id or ""), **shared,
    )  # fmt: skip


def results(visit: Here, q: str = "") -> Response:
    """Documents that have some words."""
    review = visit.review
    review.words.read_on()
    hits = review.index.search(q[:200], FOUND)
    docs = [(one, *review.words.label(one)) for one in review.index.docs(hits)]
    return visit.page("results.html", q=q[:200], docs=docs, most=FOUND)


def clusters(visit: Here, cluster: str = "") -> Response:
    """The clusters: names, classes, mergers, splits."""
    review = visit.review
    rows = review.clusters()
    if cluster:
        review.living(cluster)
    return visit.page("clusters.html", clusters=rows, chosen=cluster, classes=review.classes())


def health() -> Response:
    """Whether the process answers at all."""
    return Response("alive\n", media_type="text/plain")


@cache
def _static(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def static(name: str) -> Response:
    """The style and the script."""
    if name not in STATIC:
        return Response("no such file\n", 404)
    return Response(_static(name), media_type=STATIC[name])


# --- forms ------------------------------------------------------------------------------------


def say(visit: Posted, form: Form) -> Response:
    """A label, no class, or a skip; then the next document."""
    review, doc, queue = visit.review, form.get("doc", ""), form.get("queue", "unsure")
    review.members(queue)
    does = form.get("do", "")
    if does == "skip":
        review.skip(doc, queue, visit.by)
    elif does == "none":
        review.say(doc, None, queue, visit.by)
    elif does == "label":
        review.say(doc, form.get("label", ""), queue, visit.by)
    else:
        raise RefusedError(400, f"do: found {does[:20]!r}, expected label, none or skip.")
    return visit.to("/review", queue=queue)


def undo(visit: Posted, form: Form) -> Response:
    """Take the newest word back, and show its document again."""
    word = visit.review.journal.undo(visit.by)
    if word is None:
        return visit.to("/review", queue=form.get("queue"), note="nothing_to_undo")
    return visit.to("/review", queue=word.queue, doc=word.doc_id, note="undone")


def shape(visit: Posted, form: Form) -> Response:
    """Name, class, merge, split or leave a cluster."""
    review, by = visit.review, visit.by
    cluster_id = review.living(form.get("id", ""))
    does = form.get("do", "")
    if does == "name":
        of_class = form.get("class", "").strip() or None
        review.name(cluster_id, form.get("name", ""), of_class, by)
    elif does == "forget":
        review.journal.forget_name(cluster_id, by)
    elif does == "merge":
        review.journal.merge(cluster_id, review.living(form.get("other", "").strip()), by)
    elif does == "split":
        parts = form.get("parts", "")
        review.journal.split(cluster_id, int(parts) if parts.isdecimal() else 0, by)
    elif does == "leave":
        review.journal.leave(cluster_id, by)
    else:
        raise RefusedError(400, f"do: found {does[:20]!r}, expected name, forget, merge, split "
                           "or leave.")  # fmt: skip
    return visit.to("/clusters", cluster=cluster_id)


def settle(visit: Posted, form: Form) -> Response:
    """Language, theme, and where there is no password, the name."""
    if form.get("name") and visit.door.users is None:
        visit = Visit(visit.request, *visit.door.open(person(form["name"])))
    response = visit.to("/")
    for key, known in (("lang", LANGUAGES), ("theme", THEMES)):
        if form.get(key) in known:
            _set_cookie(response, visit.door, key, form[key], 365 * 86_400)
    return response


# --- signing in -------------------------------------------------------------------------------


def sign_in_page(request: Request) -> Response:
    """Name and password."""
    page = render(request, "signin.html", wrong=False, seconds=0)
    return Response(page, media_type="text/html; charset=utf-8")


def sign_in(request: Request, form: Form) -> Response:
    """Begin a session, or say no; who guesses waits."""
    door: Door = request.app.state.door
    if door.users is None:
        return RedirectResponse("/", 303)
    name, address = form.get("name", "")[:80], request.client.host if request.client else ""
    keys = (f"name {name}", f"address {address}")
    seconds = door.guesses.wait(*keys)
    if not seconds and door.users.right(name, form.get("password", "")[:1024]):
        _, cookie = door.open(name)
        response = RedirectResponse("/", 303)
        _set_cookie(response, door, SESSION, cookie, SESSION_SECONDS)
        return response
    if not seconds:
        door.guesses.wrong(*keys)
        log.warning("review    wrong name or password from %s", address)
    page = render(request, "signin.html", wrong=not seconds, seconds=round(seconds + 0.5))
    headers = {"Retry-After": str(round(seconds + 0.5))} if seconds else {}
    return Response(page, 429 if seconds else 403, headers,
                    media_type="text/html; charset=utf-8")  # fmt: skip


def sign_out(visit: Posted) -> Response:
    """End the session in this browser."""
    response = RedirectResponse("/signin", 303)
    response.delete_cookie(SESSION)
    return response


# --- the process ------------------------------------------------------------------------------


def serve_review(
    settings: Settings, pipeline: str, config: Path, door: Door, host: str, port: int
) -> None:
    """Serve the page until the process is told to stop.

    Raises: ConfigError for an address that cannot be listened on.
    """
    listening = listen(host, port)
    review, stopped = Review(settings, pipeline, config), threading.Event()
    thread = threading.Thread(target=review.shelf.watch, args=(stopped,), daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    log.info("review    %s at http://%s:%d", pipeline, shown, listening.getsockname()[1])
    if door.users is not None and not door.secure:
        log.warning("review    passwords travel in the clear: put a server with TLS in front, and "
                    "give its address with --url https://...")  # fmt: skip
    started = time.monotonic()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: None)
    server(build_app(review, door)).run(sockets=[listening])
    stopped.set()
    review.shelf.stop()
    log.info("review    stopped after %.0f s, %s", time.monotonic() - started,
             datetime.now(UTC).isoformat(timespec="seconds"))  # fmt: skip
