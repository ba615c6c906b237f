"""From YAML text to a closed config model, with errors that name the line.

Every stage keeps its own config class beside its code; this file only holds what they share.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from .errors import ConfigError
from .showing import masked

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MOST_NODES = 100_000
"""Keys and values of a YAML text, aliases written out: a few lines of them can mean billions."""
DESCRIBED = __name__ == "nightshift.config"
"""Whether fields have their docstrings as descriptions. The copy in a registered model needs none:
pydantic looks through every module there is for each of its classes."""
VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class Config(BaseModel):
    """Base of every config model: unknown keys are refused, instances do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=DESCRIBED
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Fields to show: addresses without their passwords."""
        for name, value in super().__repr_args__():
            yield name, _masked_within(value)


def _masked_within(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list):
        return [_masked_within(one) for one in value]
    if isinstance(value, dict):
        return {key: _masked_within(one) for key, one in value.items()}
    return value


Model = TypeVar("Model", bound=BaseModel)
Path = tuple[str | int, ...]


def read_yaml(text: str, where: str) -> tuple[Any, dict[Path, int]]:
    """Parse YAML safely; also tell on which line (from 1) every key stands.

    Raises: ConfigError for text that is not YAML, a key given twice, or more than MOST_NODES.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Path, int] = {}
        # Before anything walks it as if aliases were written out, or merges them.
        _refuse_a_bomb(root, where)
        _note_lines(root, (), lines, where)
        return yaml.safe_load(text), lines
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date such as 2026-13-45; RecursionError: an anchor inside itself.
        mark = getattr(error, "problem_mark", None)
        at = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{where}{at}: not valid YAML: {problem}.") from error


def _refuse_a_bomb(root: Any, where: str) -> None:
    """Raises: ConfigError for more nodes than anybody writes, RecursionError for endless ones."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            inside = node.value if isinstance(node.value, list) else []
            pairs = (one if isinstance(one, tuple) else (one,) for one in inside)
            sizes[id(node)] = 1 + sum(size(one) for pair in pairs for one in pair)
        return sizes[id(node)]

    if root is not None and size(root) > MOST_NODES:
        raise ConfigError(
            f"{where}: found {size(root)} keys and values, aliases written out, expected at most "
            f"{MOST_NODES}. Use fewer anchors."
        )


def _note_lines(node: Any, path: Path, lines: dict[Path, int], where: str) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(
                    f"{where} line {key.start_mark.line + 1}: found braces or brackets as a key, "
                    "expected a name. Quote the value if it starts with { or [."
                )
            child = (*path, key.value)
            if child in lines:
                raise ConfigError(
                    f"{where} line {key.start_mark.line + 1}: '{key.value}' is given twice "
                    f"(first on line {lines[child]}). Keep one of them."
                )
            lines[child] = key.start_mark.line + 1
            _note_lines(value, child, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _note_lines(value, (*path, index), lines, where)


def expand_variables(value: Any, where: str) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in every string by the environment's value.

    Raises: ConfigError naming the variable when it is not set and has no default.
    """
    if isinstance(value, dict):
        return {key: expand_variables(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        found = os.environ.get(match["name"], match["default"])
        if found is None:
            raise ConfigError(
                f"{where}: ${{{match['name']}}} is used, but that environment variable is not "
                f"set. Export it, or write ${{{match['name']}:-default}}."
            )
        return found

    return VARIABLE.sub(replace, value)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`, mapping by mapping; lists and values are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = merge(below, value) if both else value  # pyright: ignore[reportArgumentType]
    return merged


def build(model: type[Model], data: Any, where: str, lines: dict[Path, int]) -> Model:
    """Validate `data`; every problem becomes one line that says where and what to do.

    Raises: ConfigError listing all problems, each with its line and the nearest known key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for item in error.errors():
            what, why = _explain(item, model, where, lines)
            problems.setdefault(what, []).append(why)
        # A value of two possible types has a problem with each: one line for both.
        shown = [f"{what} {' Or: '.join(dict.fromkeys(whys))}" for what, whys in problems.items()]
        raise ConfigError("\n".join(shown)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'text'?`, or the list of what is known when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known) or 'none'}."


def _explain(
    error: ErrorDetails, model: type[BaseModel], where: str, lines: dict[Path, int]
) -> tuple[str, str]:
    """Where a problem is and what was found there; what was expected."""
    path = tuple(error["loc"])
    depth = next((n for n in range(len(path), 0, -1) if path[:n] in lines), 0)
    place = f"{where} line {lines[path[:depth]]}" if depth else where
    name = ".".join(str(part) for part in path)
    if error["type"] == "extra_forbidden":
        return f"{place}: {name}: unknown key;", nearest(str(path[-1]), _keys_at(model, path[:-1]))
    if error["type"] == "refused_key":  # by a validator of ours; its value does not matter
        return f"{place}: {name}:", error["msg"]
    if error["type"] == "missing":
        return f"{place}: {name} is missing.", "Add it."
    # Below the deepest key of the file pydantic only says which possible type it tried.
    name = ".".join(str(part) for part in path[:depth]) or name
    expected = error["msg"].removeprefix("Value error, ")
    found = "a secret" if _is_secret(model, path) else _shown(error["input"])
    return f"{place}: {name}: found {found}.", f"{expected}."


def _is_secret(model: type[BaseModel], path: Path) -> bool:
    """Whether a value at a path would be kept secret, if it could be."""
    here: Any = model
    for part in path:
        inside = next((one for one in _unpack(here) if _is_model(one)), None)
        field = inside.model_fields.get(str(part)) if inside is not None else None
        here = field.annotation if field is not None else here
    return SecretStr in _unpack(here)


def _shown(found: Any) -> str:
    # Never what is inside a mapping: it may hold a secret of a neighbouring key.
    if isinstance(found, dict | list):
        return "a mapping" if isinstance(found, dict) else "a list"
    shown = masked(repr(found))
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _keys_at(model: type[BaseModel], path: Path) -> list[str]:
    """The keys a config model knows at a path, through nested models and mappings of them."""
    here: Any = model
    for part in path:
        if _is_model(here):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:  # a mapping or list: the part is a name or place in it
            here = next((item for item in _unpack(here) if _is_model(item)), None)
    return sorted(here.model_fields) if _is_model(here) else []


def _unpack(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(inner for item in arguments for inner in _unpack(item))]


def _is_model(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)
