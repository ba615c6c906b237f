"""Words that others wrote, fit to be shown: no password, and nothing that steers a terminal.

A file name, a label, a cluster's words, a server's error: all of them reach logs and terminals.
Travels in served bundles with the errors, and needs nothing but the standard library.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Sequence
from typing import Any

# Up to the last @ of the run: a password may hold one, and who forgot to encode it is not told
# on. A port is no password.
_LOGIN = re.compile(r"(?<=://)([^\s/@:'\"]{0,255}):(?!:|\d{1,5}/)[^\s'\"<>]{0,1000}@")
# Of these a name alone is a token; elsewhere it is a user or a container.
_TOKEN = re.compile(r"(?:(?<=https://)|(?<=http://))[^\s/@:'\"]{1,1000}@")
_QUERY = re.compile(
    r"(?i)([?&][^=&\s'\"]{0,60}(?:token|sig|secret|password|credential|key)[^=&\s'\"]{0,60}=)"
    r"[^&#\s'\"]+"
)
_STEERING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    "|\r(?!\n)"
)


def masked(text: str) -> str:
    """A text to show: without the passwords and tokens of the addresses in it."""
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1***", _TOKEN.sub("***@", _LOGIN.sub(r"\1:***@", text)))


def unmasked(uri: str, places: Sequence[str]) -> str:
    """The address to open: with the login, or the signature, of the declared place it is of."""
    if "***" not in uri:
        return uri
    for place in places:
        if masked(place) == uri:
            return place
        for login in re.findall(r"://[^\s/]*@[^\s/]*", place):
            uri = uri.replace(masked(login), login)
    return uri


def plain(text: str) -> str:
    r"""A text to print: controls, overrides and halves of characters are written as \u001b.

    So JSON writes them, too, and printed JSON means the same afterwards.
    """
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """The same for a name: tabs and ends of lines are spelled out, too."""
    return re.sub("[\t\r\n]", lambda match: f"\\u{ord(match[0]):04x}", plain(text))


class PlainRecord(logging.LogRecord):
    """A log record whose message and traceback are masked and plain, whoever handles it."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = plain(masked("".join(traceback.format_exception(*self.exc_info))))

    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        """The message with its arguments."""
        return plain(masked(super().getMessage()))


def plain_logs() -> None:
    """From here on every log record of this process is masked and plain; harmless to repeat."""
    logging.setLogRecordFactory(PlainRecord)
