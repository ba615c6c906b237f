"""Who may use the review page: users with passwords, sessions, and what keeps other sites out.

    request -> Host is ours -> session cookie, signed -> a POST: Origin is ours, session's token

On the loopback there is no password: whoever is on the machine may review. A page of another site
in their browser must still not, so Host, Origin and token are looked at everywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import threading
import time
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from itsdangerous import BadData, URLSafeTimedSerializer

from nightshift.errors import ConfigError
from nightshift.journal import cleaned, person

COOKIE = "nightshift_review"
NAME_COOKIE = "nightshift_reviewer"
"""What somebody calls themselves where no password is asked for."""
SESSION_SECONDS = 12 * 3600
USERS_VARIABLE = "NIGHTSHIFT_REVIEW_USERS"
KEY_VARIABLE = "NIGHTSHIFT_REVIEW_KEY"
COST, BLOCK, LANES = 2**15, 8, 1
"""Of scrypt (Percival 2009): 32 MB and about a tenth of a second for each guess."""
SHORTEST = 12
"""Characters of a new password."""
FAILURES, WINDOW_SECONDS = 5, 300.0
"""Wrong passwords for one name, or from one address, after which nobody may try for a while."""
MOST_REMEMBERED = 10_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")


# --- users ------------------------------------------------------------------------------------


def hashed(password: str, salt: bytes | None = None) -> str:
    """A password as the users file holds it: scrypt, a salt and the digest."""
    salt = secrets.token_bytes(16) if salt is None else salt
    digest = hashlib.scrypt(
        password.encode(), salt=salt, n=COST, r=BLOCK, p=LANES, maxmem=2 * 128 * COST * BLOCK
    )
    return f"scrypt:{b64encode(salt).decode()}:{b64encode(digest).decode()}"


def matches(password: str, kept: str) -> bool:
    """Whether a password is the one that was kept."""
    _, salt, _ = kept.split(":")
    return hmac.compare_digest(hashed(password, b64decode(salt)), kept)


@cache
def _nobodys() -> str:
    return hashed("nobody has this password", b"\0" * 16)


class Users:
    """Names and hashed passwords, `name:scrypt:salt:digest` on each line; the file is read again
    when it changes."""

    def __init__(self, path: Path | None):
        self._path, self._read, self._seen = path, dict[str, str](), 0.0
        self.all()

    def all(self) -> dict[str, str]:
        """Hashed passwords by name. Raises: ConfigError for a file that is none of users."""
        if self._path is None:
            return parsed(os.environ.get(USERS_VARIABLE, ""), USERS_VARIABLE)
        try:
            changed = self._path.stat().st_mtime
            if changed != self._seen:
                self._read = parsed(self._path.read_text(encoding="utf-8"), str(self._path))
                self._seen = changed
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--users: {self._path} cannot be read ({error}). Make it: nightshift review "
                f"PIPELINE --users {self._path} --add-user NAME."
            ) from error
        return self._read

    def right(self, name: str, password: str) -> bool:
        """Whether the password is this user's; as slow for a name that nobody has."""
        kept = self.all().get(name)
        return matches(password, kept or _nobodys()) and kept is not None


def parsed(text: str, where: str) -> dict[str, str]:
    """Users from lines. Raises: ConfigError for a line that is none."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, kept = line.strip().partition(":")
        if not name or kept.count(":") != 2 or not kept.startswith("scrypt:"):
            raise ConfigError(
                f"{where} line {number}: expected name:scrypt:salt:digest, as `nightshift review "
                "PIPELINE --users FILE --add-user NAME` writes."
            )
        found[name] = kept
    return found


def add_user(path: Path, name: str, password: str) -> None:
    """Write a user into the file, in place of one of the same name; only its owner may read it.

    Raises: ConfigError for a name or password that is none.
    """
    name = person(cleaned(name, "--add-user"))
    if ":" in name:
        raise ConfigError(f"--add-user: found {name!r}, expected a name without a colon.")
    if len(password) < SHORTEST:
        raise ConfigError(
            f"password: found {len(password)} characters, expected {SHORTEST} or more."
        )
    users = Users(path).all() if path.exists() else {}
    lines = [f"{one}:{kept}\n" for one, kept in {**users, name: hashed(password)}.items()]
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.writelines(lines)
    beside.replace(path)


class Guesses:
    """Counts wrong passwords by name and by address; too many and nobody is let in for a while."""

    def __init__(self) -> None:
        self._wrong: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait(self, *keys: str) -> float:
        """Seconds until another try may be made, 0 when now."""
        now = time.monotonic()
        with self._lock:
            waits = [0.0]
            for key in keys:
                times = self._wrong.get(key, deque())
                while times and times[0] <= now - WINDOW_SECONDS:
                    times.popleft()
                if len(times) >= FAILURES:
                    waits.append(times[-FAILURES] + WINDOW_SECONDS - now)
            return max(waits)

    def wrong(self, *keys: str) -> None:
        """Note a wrong password."""
        with self._lock:
            if len(self._wrong) > MOST_REMEMBERED:
                self._wrong.clear()
            for key in keys:
                self._wrong.setdefault(key, deque(maxlen=2 * FAILURES)).append(time.monotonic())


# --- sessions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A person at a browser."""

    name: str
    nonce: str

    def as_json(self) -> dict[str, str]:
        """What the cookie holds."""
        return {"name": self.name, "nonce": self.nonce}


class Door:
    """Sessions and their tokens; which Host and Origin are ours.

    Args: the host that is listened on; the public address, where another server stands in front;
    users where a password is asked for; who probably reviews where none is; the pipeline; the key
    that signs, else one is made.
    """

    def __init__(
        self,
        host: str,
        url: str | None,
        users: Users | None,
        login: str,
        pipeline: str = "",
        key: str | None = None,
    ):
        self.users, self.login, self.guesses = users, login, Guesses()
        self._pipeline = pipeline
        public = urlsplit(url) if url else None
        if public and (public.scheme not in ("http", "https") or not public.hostname):
            raise ConfigError(f"--url: found {url!r}, expected such as https://review.example.org.")
        self.secure = public is not None and public.scheme == "https"
        self._hosts = (
            {public.hostname} if public else {host, socket.gethostname().lower(), *LOOPBACK}
        )
        key = os.environ.get(KEY_VARIABLE) or key or secrets.token_urlsafe(32)
        self._sessions = URLSafeTimedSerializer(key, salt="session")
        self._tokens = URLSafeTimedSerializer(key, salt="token")

    def is_host(self, host: str) -> bool:
        """Whether a Host header names us: a name that was made to point here is not ours."""
        return _hostname(f"//{host}") in self._hosts

    def is_origin(self, origin: str | None, host: str) -> bool:
        """Whether a form was sent from a page of ours; browsers say so with every POST."""
        if origin is None:
            return False
        there = urlsplit(origin)
        return there.scheme in ("http", "https") and there.netloc == host

    def cookie(self, port: int) -> str:
        """The name of the session's cookie: browsers send one to every port of a host, and a page
        must not take another's for its own."""
        return f"{COOKIE}_{self._pipeline}_{port}"

    def open(self, name: str, nonce: str | None = None) -> tuple[Session, str]:
        """A session and its cookie; a new one, or with its nonce an old one under another name."""
        session = Session(name, nonce or secrets.token_urlsafe(16))
        return session, self._sessions.dumps(session.as_json())

    def session(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None where it is none of ours, or its user is gone."""
        try:
            found = Session(**self._sessions.loads(cookie or "", max_age=SESSION_SECONDS))
        except (BadData, TypeError):
            return None
        known = self.users is None or found.name in self.users.all()
        return found if known else None

    def token(self, session: Session) -> str:
        """What every form of the session carries."""
        return str(self._tokens.dumps(session.nonce))

    def is_token(self, session: Session, token: str) -> bool:
        """Whether a form's token is of this session."""
        try:
            nonce = self._tokens.loads(token, max_age=SESSION_SECONDS)
        except BadData:
            return False
        return isinstance(nonce, str) and hmac.compare_digest(nonce, session.nonce)


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _kept_key(path: Path) -> str | None:
    """The key of an earlier start, or a new one that is kept; None where none can be kept.

    A form that was open while the page was started again is then still good.
    """
    try:
        if not path.exists():
            fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fresh, "w") as stream:
                stream.write(secrets.token_urlsafe(32))
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def door_of(
    host: str,
    url: str | None,
    users: Path | None,
    login: str,
    pipeline: str = "",
    keep: Path | None = None,
) -> Door:
    """The door of a page that listens on a host.

    Args: as Door; where a key is kept. With passwords none is: whoever reads the file could sign in
    as anybody.
    Raises: ConfigError beyond the loopback without users.
    """
    asks = users is not None or bool(os.environ.get(USERS_VARIABLE))
    known = Users(users) if asks else None
    if known is not None and not known.all():
        raise ConfigError("--users: found no user. Add one with --add-user NAME.")
    if known is None and (host not in LOOPBACK or url is not None):
        raise ConfigError(
            f"--host: {url or host} is reached from other machines, and then people must sign in. "
            "Make a user: nightshift review PIPELINE --users FILE --add-user NAME; and give "
            f"--users FILE, or the file's lines in {USERS_VARIABLE}."
        )
    key = _kept_key(keep) if keep is not None and known is None else None
    return Door(host, url, known, login, pipeline, key)
