"""`nightshift review`: the page. Forms and links alone; the script only gives them keys.

    request -> guard (Host, Origin, headers) -> session -> a form, its token -> Review -> template

Every answer is a redirect, so that going back or reloading never says anything twice.
"""

from __future__ import annotations

import logging
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cache
from html import unescape
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.access import NAME_COOKIE, SESSION_SECONDS, Door, Session
from flows.reviewing import FOLDER, LANGUAGES, LOAN_MINUTES, NotDoneError, Review, strings
from flows.serving import listen, server
from nightshift.errors import ConfigError, NightshiftError, PassingError
from nightshift.journal import LONGEST, MOST_PARTS, CircleError, WordsError, cleaned, is_person
from nightshift.pictures import clean
from nightshift.pipeline import Settings
from nightshift.queues import QUEUES, Doc

log = logging.getLogger(__name__)

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
POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]+)"')
STATIC = {"review.css": "text/css; charset=utf-8", "review.js": "text/javascript; charset=utf-8",
          "icon.svg": "image/svg+xml"}  # fmt: skip


class SignInError(Exception):
    """Nobody is signed in, or has said who they are."""


class NotNotedError(Exception):
    """A form whose session has ended: it may be sent again, and nobody types its words twice."""

    def __init__(self, form: dict[str, str]):
        super().__init__()
        self.form = form


class FromElsewhereError(Exception):
    """A link on another site was followed. Strict cookies did not come along; they will with the
    next request, which is from a page of ours."""


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
    app.exception_handler(NotNotedError)(_say_again)
    app.exception_handler(FromElsewhereError)(_come_in)
    app.exception_handler(NightshiftError)(_say_error)
    app.exception_handler(sqlite3.Error)(_say_error)
    for path, page in (
        ("/", home), ("/review", question), ("/search", results), ("/clusters", clusters),
        ("/report", report), ("/signin", sign_in_page), ("/health", health),
        ("/static/{name}", static),
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
    for key, value in HEADERS.items():
        answered.headers.setdefault(key, value)
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

    @property
    def language(self) -> str:
        """The person's."""
        return _language(self.request)

    def to(self, path: str, **query: str | None) -> Response:
        """On to another page."""
        asked = urlencode({key: value for key, value in query.items() if value})
        return self.answer(RedirectResponse(f"{path}?{asked}" if asked else path, 303))

    def answer(self, response: Response) -> Response:
        """With the cookie of a session that has just begun."""
        if self._cookie is not None:
            name = _session_cookie(self.request)
            _set_cookie(response, self.door, name, self._cookie, SESSION_SECONDS)
        return response


def _session_cookie(request: Request) -> str:
    """The name of this page's cookie."""
    door: Door = request.app.state.door
    return door.cookie((request.scope.get("server") or ("", 0))[1] or 0)


def _session(request: Request) -> Session | None:
    door: Door = request.app.state.door
    return door.session(request.cookies.get(_session_cookie(request)))


def _name(request: Request) -> str:
    """Who somebody has said they are, in any session; empty where they have not."""
    try:
        said = cleaned(unquote(request.cookies.get(NAME_COOKIE, "")), "by")
    except ConfigError:
        return ""
    return said if is_person(said) else ""


def _visit(request: Request) -> Visit:
    door: Door = request.app.state.door
    session = _session(request)
    if session is not None:
        return Visit(request, session, None)
    elsewhere = request.headers.get("sec-fetch-site") == "cross-site"
    if elsewhere and "here" not in request.query_params:
        raise FromElsewhereError
    if door.users is not None:
        raise SignInError
    return Visit(request, *door.open(_name(request)))


async def _here(request: Request) -> Visit:
    visit = _visit(request)
    if not visit.by:
        raise SignInError
    return visit


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM:
            raise NotDoneError("form_long", 413, most=MOST_FORM)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body)))
    except (UnicodeDecodeError, ValueError) as error:
        raise NotDoneError("form_broken", problem=error) from error


async def _posted(request: Request, form: Annotated[dict[str, str], Depends(_form)]) -> Visit:
    session = _session(request)
    door: Door = request.app.state.door
    if session is None or not door.is_token(session, form.get("token", "")):
        raise NotNotedError(form)
    if not session.name and request.url.path != "/settings":
        raise NotNotedError(form)
    return Visit(request, session, None)


Here = Annotated[Visit, Depends(_here)]
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
        token=door.token(session) if session else "", here=str(request.url.path),
        report=review.report is not None, longest=max(LONGEST, review.longest), **values,
    )  # fmt: skip


def _language(request: Request) -> str:
    chosen = request.cookies.get("lang")
    if chosen in LANGUAGES:
        return chosen
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"


def _theme(request: Request) -> str:
    chosen = request.cookies.get("theme", "")
    return chosen if chosen in THEMES else THEMES[0]


def _set_cookie(
    response: Response, door: Door, name: str, value: str, seconds: int, lax: bool = False
) -> None:
    response.set_cookie(
        name, value, max_age=seconds, httponly=True, samesite="lax" if lax else "strict",
        secure=door.secure,
    )  # fmt: skip


def _page(page: str, status: int = 200) -> Response:
    return Response(page, status, media_type="text/html; charset=utf-8")


def _to_sign_in(request: Request, _: Exception) -> Response:
    """Ask who it is, and go on to what was asked for."""
    door: Door = request.app.state.door
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if door.users is not None:
        return RedirectResponse(f"/signin?{urlencode({'to': path})}" if path != "/" else "/signin",
                                303)  # fmt: skip
    return _visit(request).page("who.html", to=path, login=door.login)


def _come_in(request: Request, _: Exception) -> Response:
    """A page that asks for the same again, now from here."""
    asked = urlencode([*request.query_params.multi_items(), ("here", "1")])
    return _page(render(request, "here.html", to=f"{request.url.path}?{asked}"))


def _say_again(request: Request, error: Exception) -> Response:
    """Nothing was noted, and the same words need only be sent again."""
    assert isinstance(error, NotNotedError)
    door: Door = request.app.state.door
    session = _session(request)
    if session is not None and session.name:
        return _again(Visit(request, session, None), request.url.path, error.form)
    if door.users is None:
        nonce = session.nonce if session else None
        visit = Visit(request, *door.open(_name(request) or door.login, nonce))
        return _again(visit, request.url.path, error.form)
    form = urlencode({**_words(error.form), "path": request.url.path})
    page = render(request, "signin.html", wrong=False, seconds=0, to="", again=form)
    return _page(page, 403)


AGAIN = ("/say", "/undo", "/cluster", "/settings")


def _again(visit: Visit, path: str, form: dict[str, str]) -> Response:
    if path not in AGAIN:
        return visit.to("/")
    return visit.page("again.html", 403, path=path, form=_words(form))


def _words(form: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in form.items() if key not in ("token", "path")}


def _inside(path: str) -> str:
    """A path of ours to go on to; a form might name another site's."""
    return path if re.fullmatch(r"/(?![/\\])[^\x00-\x20\\]*", path) else "/"


def _say_error(request: Request, error: Exception) -> Response:
    review: Review = request.app.state.review
    # A document was forgotten, and the file with it; or no file is made yet.
    preparing = review.shelf.index is None or isinstance(error, sqlite3.Error)
    status = getattr(error, "status", 503 if preparing else 400)
    page = render(
        request, "message.html", session=_session(request), preparing=preparing,
        message=None if review.shelf.progress else _told(error, _language(request)),
    )  # fmt: skip
    return _page(page, status)


def _told(error: Exception, language: str) -> str:
    """An error in a person's language; what only an operator can mend stays as it is."""
    say = strings()[language]
    if isinstance(error, NotDoneError):
        return error.told(language)
    if language == "en":
        return str(error)
    if isinstance(error, WordsError):
        return say["words_wrong"].format(
            what=say.get(error.what, error.what), length=error.length, most=error.most
        )
    if isinstance(error, CircleError):
        word = error.word
        return say["circle"].format(one=word.cluster_id, other=word.other, by=word.by)
    if isinstance(error, PassingError):
        return f"{say['passing']} {error}"
    return str(error)


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
    visit: Here, queue: str = "unsure", doc: str = "", note: str = "", whole: str = ""
) -> Response:
    """One document, and what may be said of it."""
    review, others, reader = visit.review, False, visit.session.nonce
    if not review.is_queue(queue):
        # A cluster may have ended under its reviewer, and an old link may name anything.
        note, queue = note or ("queue_gone" if queue else ""), QUEUES[0]
    if doc:
        found = review.doc(doc)
        others = review.journal.lend([doc], reader, LOAN_MINUTES) is None
    else:
        found = review.next(queue, visit.by, reader)
    kind, _, rest = queue.partition(" ")
    left = review.left(queue, visit.by) if queue in QUEUES else None
    shared = {"queue": queue, "kind": kind, "rest": rest, "left": left, "note": note}
    if found is None:
        return visit.page("done.html", **shared)
    classes = review.classes()
    label, by = review.words.label(found)
    return visit.page(
        "question.html", doc=found, label=label, by=by, classes=classes, keyed=classes[:KEYED],
        others=others, cut=whole != "1" and len(found.text) > SHORT,
        text=found.text if whole == "1" else found.text[:SHORT],
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


def report(visit: Here) -> Response:
    """The newest night's page, as its file is; its own policy allows its own script and no more."""
    path = visit.review.report
    policy = None
    if path is not None:
        with path.open(encoding="utf-8", errors="replace") as stream:
            policy = POLICY.search(stream.read(64 * 1024))
    if path is None or policy is None:
        raise NotDoneError("no_report", 404)
    headers = {"Content-Security-Policy": f"{unescape(policy[1])}; frame-ancestors 'none'"}
    return visit.answer(FileResponse(path, headers=headers, media_type="text/html; charset=utf-8"))


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
    review, doc, queue = visit.review, form.get("doc", ""), form.get("queue", "")
    does = form.get("do", "")
    if does == "skip":
        review.skip(doc, queue, visit.by)
    elif does == "none":
        review.say(doc, None, queue, visit.by)
    elif does == "label":
        label = form.get("label", "")
        if (near := _meant(visit, form, review.doc(doc), label, "label")) is not None:
            return near
        review.say(doc, label, queue, visit.by)
    else:
        raise NotDoneError("no_verb", found=does[:20], expected="label, none, skip")
    return visit.to("/review", queue=queue)


def _meant(
    visit: Visit, form: dict[str, str], doc: Doc | None, said: str, field: str
) -> Response | None:
    """Ask before a slip of the pen makes a class; None where nothing needs to be asked."""
    own = (doc.label, doc.said) if doc else ()
    if form.get("sure") == "1" or said in own:
        return None
    near = visit.review.meant(said, field)
    if near is None:
        return None
    path = visit.request.url.path
    return visit.page("sure.html", 409, path=path, form=_words(form), field=field, near=near)


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
        # A field that is not there says nothing; an empty one takes the class back.
        of_class = form["class"].strip() if "class" in form else None
        if of_class and (near := _meant(visit, form, None, of_class, "class")) is not None:
            return near
        review.name(cluster_id, form.get("name", ""), of_class, by)
    elif does == "forget":
        review.journal.forget_name(cluster_id, by)
    elif does == "merge":
        review.merge(cluster_id, form.get("other", "").strip(), by)
    elif does == "split":
        parts = form.get("parts", "")
        number = int(parts) if re.fullmatch("[0-9]{1,3}", parts) else 0
        if not 2 <= number <= MOST_PARTS:
            raise NotDoneError("parts_wrong", found=parts[:20], most=MOST_PARTS)
        review.journal.split(cluster_id, number, by)
    elif does == "leave":
        review.journal.leave(cluster_id, by)
    else:
        raise NotDoneError("no_verb", found=does[:20],
                           expected="name, forget, merge, split, leave")  # fmt: skip
    return visit.to("/clusters", cluster=cluster_id)


def settle(visit: Posted, form: Form) -> Response:
    """Language, theme, and where there is no password, the name."""
    name = form.get("name", "")
    if visit.door.users is None and name:
        name = cleaned(name, "name")
        if not is_person(name):
            raise NotDoneError("no_person", found=name)
        visit = Visit(visit.request, *visit.door.open(name, visit.session.nonce))
    response = visit.answer(RedirectResponse(_inside(form.get("to", "/")), 303))
    if visit.door.users is None and name:
        # Lax: a link on another site must not make somebody else of this person.
        _set_cookie(response, visit.door, NAME_COOKIE, quote(name), 365 * 86_400, lax=True)
    for key, known in (("lang", LANGUAGES), ("theme", THEMES)):
        if form.get(key) in known:
            _set_cookie(response, visit.door, key, form[key], 365 * 86_400)
    return response


# --- signing in -------------------------------------------------------------------------------


def sign_in_page(request: Request, to: str = "") -> Response:
    """Name and password."""
    return _page(render(request, "signin.html", wrong=False, seconds=0, to=to, again=""))


def sign_in(request: Request, form: Form) -> Response:
    """Begin a session, or say no; who guesses waits."""
    door: Door = request.app.state.door
    if door.users is None:
        return RedirectResponse("/", 303)
    name, address = form.get("name", "")[:80], request.client.host if request.client else ""
    keys = (f"name {name}", f"address {address}")
    seconds = door.guesses.wait(*keys)
    if not seconds and door.users.right(name, form.get("password", "")[:1024]):
        visit = Visit(request, *door.open(name))
        if again := dict(parse_qsl(form.get("again", ""), keep_blank_values=True)):
            return _again(visit, again.get("path", ""), again)
        return visit.answer(RedirectResponse(_inside(form.get("to", "")), 303))
    if not seconds:
        door.guesses.wrong(*keys)
        log.warning("review    wrong name or password from %s", address)
    page = render(request, "signin.html", wrong=not seconds, seconds=round(seconds + 0.5),
                  to=form.get("to", ""), again=form.get("again", ""))  # fmt: skip
    headers = {"Retry-After": str(round(seconds + 0.5))} if seconds else {}
    return Response(page, 429 if seconds else 403, headers,
                    media_type="text/html; charset=utf-8")  # fmt: skip


def sign_out(visit: Posted) -> Response:
    """End the session in this browser."""
    response = RedirectResponse("/signin", 303)
    response.delete_cookie(_session_cookie(visit.request))
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
