"""Which requests `nightshift serve` lets in: who has the token, what fits into memory, in time."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from flows.asked import RefusedError
from nightshift.errors import ConfigError

MOST_BYTES = 16 << 20
"""A longer body is refused."""
MOST_HELD = 256 << 20
"""Bytes of all bodies that are read, wait or are answered; what comes beyond is refused."""
BODY_SECONDS = 60.0
"""How long a client may take to send its body."""
TOKEN = "NIGHTSHIFT_SERVE_TOKEN"
LEAST_TOKEN = 16


class Door:
    """Checks and reads requests. Only the event loop's thread uses it, so it needs no lock."""

    def __init__(self, token: str | None = None):
        self._token = token.encode() if token else None
        self._held = 0

    def knows(self, request: Request) -> bool:
        """Whether the request has the token, where one is asked for."""
        if self._token is None:
            return True
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(said.strip().encode("latin-1"), self._token)
        return same and scheme.lower() == "bearer"

    def check(self, request: Request) -> None:
        """Raises: RefusedError where a token is asked for, and the request has none or another."""
        if not self.knows(request):
            found = "another token" if "authorization" in request.headers else "none"
            expected = "Bearer and the token that this server was started with"
            raise RefusedError("Authorization", found, expected, 401)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """The request's body, which counts as held until it is answered.

        Raises: RefusedError where it is too long or too slow, or too much is held.
        """
        kept = bytearray()
        try:
            size = await self._read(request, kept)
            if size > MOST_BYTES:
                expected = f"at most {MOST_BYTES} bytes in one request"
                raise RefusedError("body", f"{size} bytes", expected, 413)
            if size > len(kept):
                found = f"{self._held} bytes of other requests"
                raise RefusedError("server", found, "fewer; ask again later", 503)
            yield kept
        finally:
            self._held -= len(kept)

    async def _read(self, request: Request, kept: bytearray) -> int:
        """Read all, keep what there is room for; returns the bytes that came."""
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    # What is too much is read, not kept: a client that still writes would not see
                    # the answer.
                    if size <= MOST_BYTES and self._held + len(part) <= MOST_HELD:
                        kept += part
                        self._held += len(part)
                    elif size > 16 * MOST_BYTES:
                        break
        except TimeoutError:
            found = f"{size} bytes and no end within {BODY_SECONDS:g} s"
            raise RefusedError("body", found, "all of it", 408) from None
        except ClientDisconnect:
            raise RefusedError("body", f"{size} bytes and no end", "all of it") from None
        return size


def token_of(file: Path | None) -> str | None:
    """The token of a file, else of the environment; None without either.

    Raises: ConfigError for one that cannot be read, or is too short to be a secret.
    """
    where = f"--token-file {file}" if file else TOKEN
    try:
        found = file.read_text(encoding="utf-8") if file else os.environ.get(TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot be read ({error}). Give another file.") from error
    if found is None:
        return None
    token = found.strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: found {len(token)} characters, expected {LEAST_TOKEN} or more, of ASCII and "
            "without blanks. Make one: openssl rand -hex 32"
        )
    return token
