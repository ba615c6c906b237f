"""What a request to `nightshift serve` asks: body -> texts, or a refusal that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_TEXTS = 1_000
"""A request with more texts is refused; `nightshift predict FILE --out` reads what is large."""
MOST_LABELS = 1_000
SHAPES = ("inputs", "instances", "dataframe_split", "dataframe_records")
"""Of MLflow's scoring protocol; exactly one of them is in a body."""
COLUMN = "text"
CODES = {
    400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 408: "REQUEST_TIMEOUT", 413: "REQUEST_TOO_LARGE",
    503: "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip
"""What MLflow calls a refusal, by its status."""


@dataclass(frozen=True)
class Asked:
    """Texts to answer, and how."""

    texts: list[str]
    top: int = 3
    vectors: bool = False


class RefusedError(Exception):
    """A request that cannot be answered; the message is for whoever sent it."""

    def __init__(self, field: str, found: str, expected: str, status: int = 400):
        super().__init__(f"{field}: found {found}, expected {expected}.")
        self.field, self.found, self.expected, self.status = field, found, expected, status

    def as_json(self) -> dict[str, Any]:
        """MLflow's keys, with the parts of the message beside them."""
        return {
            "error_code": CODES[self.status], "message": str(self),
            "field": self.field, "found": self.found, "expected": self.expected,
        }  # fmt: skip


def parsed(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a body.

    Raises: RefusedError for anything else.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError("body", f"no JSON ({error})", "a JSON object") from error
    if not isinstance(found, dict):
        raise RefusedError("body", _shown(found), "a JSON object")
    return found


def of_predict(body: dict[str, Any]) -> Asked:
    """`{"texts": [...], "top_k": 3, "embeddings": false}`.

    Raises: RefusedError.
    """
    _only(body, ("texts", *PARAMS), "")
    if "texts" not in body:
        raise RefusedError("texts", "nothing", "a list of texts")
    given = {name: read(name, body[name]) for name, (_, read) in PARAMS.items() if name in body}
    return _asked("texts", "texts[{}]", body["texts"], given)


def of_invocation(body: dict[str, Any]) -> Asked:
    """A body as `mlflow models serve` takes it; columns other than `text` are not looked at.

    Raises: RefusedError.
    """
    _only(body, (*SHAPES, "params"), "")
    shapes = [name for name in SHAPES if name in body]
    if len(shapes) != 1:
        raise RefusedError(
            "body", " and ".join(shapes) or "no texts", f"exactly one of {', '.join(SHAPES)}"
        )
    params = {} if body.get("params") is None else body["params"]
    if not isinstance(params, dict):
        raise RefusedError("params", _shown(params), "an object")
    _only(params, tuple(PARAMS), "params.")
    given = {name: PARAMS[name][1](f"params.{name}", value) for name, value in params.items()}
    [shape] = shapes
    read = _of_split if shape == "dataframe_split" else _of_columns
    return _asked(*read(shape, body[shape]), given)


def _asked(field: str, each: str, found: Any, given: dict[str, Any]) -> Asked:
    """Args: the list's name, and the name of one of its texts with {} for its place."""
    if not isinstance(found, list):
        raise RefusedError(field, _shown(found), "a list of texts")
    if len(found) > MOST_TEXTS:
        raise RefusedError(field, f"{len(found)} texts", f"at most {MOST_TEXTS} in one request")
    for place, text in enumerate(found):
        if not isinstance(text, str | None):
            raise RefusedError(each.format(place), _shown(text), "a text")
    named = {PARAMS[name][0]: value for name, value in given.items()}
    # MLflow answers a missing text as it does an empty one.
    return Asked([text or "" for text in found], **named)


def _of_columns(field: str, found: Any) -> tuple[str, str, Any]:
    """`{"text": [...]}`, or a list of `{"text": ...}`."""
    if isinstance(found, dict):
        if COLUMN not in found:
            raise RefusedError(f"{field}.{COLUMN}", _keys(found), "a list of texts")
        return f"{field}.{COLUMN}", f"{field}.{COLUMN}[{{}}]", found[COLUMN]
    if not isinstance(found, list):
        raise RefusedError(field, _shown(found), f"a list of objects with the key {COLUMN}")
    for place, row in enumerate(found):
        if not isinstance(row, dict) or COLUMN not in row:
            said = _keys(row) if isinstance(row, dict) else _shown(row)
            raise RefusedError(f"{field}[{place}].{COLUMN}", said, f"an object with {COLUMN}")
    return field, f"{field}[{{}}].{COLUMN}", [row[COLUMN] for row in found]


def _of_split(field: str, found: Any) -> tuple[str, str, Any]:
    """`{"columns": ["text"], "data": [["..."], ...]}`."""
    if not isinstance(found, dict):
        raise RefusedError(field, _shown(found), "an object with columns and data")
    columns, data = found.get("columns"), found.get("data")
    if not isinstance(columns, list) or COLUMN not in columns:
        named = columns if isinstance(columns, list) else []
        said = f"only {_cut(', '.join(map(str, named)))}" if named else _shown(columns)
        raise RefusedError(f"{field}.columns", said, f"a list with {COLUMN}")
    if not isinstance(data, list):
        raise RefusedError(f"{field}.data", _shown(data), "a list of rows")
    for place, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            raise RefusedError(
                f"{field}.data[{place}]", _shown(row), f"a list of {len(columns)} values"
            )
    place = columns.index(COLUMN)
    return f"{field}.data", f"{field}.data[{{}}][{place}]", [row[place] for row in data]


def _top(field: str, found: Any) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MOST_LABELS:
        raise RefusedError(field, _shown(found), f"a whole number from 0 to {MOST_LABELS}")
    return found


def _flag(field: str, found: Any) -> bool:
    if not isinstance(found, bool):
        raise RefusedError(field, _shown(found), "true or false")
    return found


PARAMS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "top_k": ("top", _top),
    "embeddings": ("vectors", _flag),
}
"""What a request may say beside its texts: its name in `Asked`, and how it is read."""


def _only(found: dict[str, Any], known: tuple[str, ...], inside: str) -> None:
    for key in found:
        if key not in known:
            raise RefusedError(
                f"{inside}{_cut(key)}", "an unknown name", f"one of {', '.join(known)}"
            )


def _keys(found: dict[str, Any]) -> str:
    return f"only the keys {_cut(', '.join(map(str, found)))}" if found else "no keys"


def _shown(found: Any) -> str:
    if isinstance(found, dict | list):
        return "an object" if isinstance(found, dict) else f"a list of {len(found)}"
    return _cut(json.dumps(found))


def _cut(shown: str) -> str:
    return shown if len(shown) <= 60 else shown[:57] + "..."
