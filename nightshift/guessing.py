"""From a data file to a pipeline: which column is the text, which the label, in what language.

    first rows (heads.py) -> a role for each column (roles.py)
                          -> the YAML of one pipeline -> pipelines.yaml, every old line kept

A guess is only a first draft for a person: what was doubtful is said in `Guess.notes`.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import roles
from .cleaning import detect_languages
from .config import read_yaml
from .errors import ConfigError, SourceError
from .heads import read_head
from .rows import as_name

PREVIEW_ROWS = 5
LANGUAGE_ROWS = 200
# Only tags that running text is marked up with: <name> in angle brackets is often a placeholder.
HTML = re.compile(r"</?(?:br|p|div|span|strong|em|ul|li|td|h[1-6])\b[^<>]*>|<a\s+href", re.I)
HTML_SHARE = 0.05  # of the texts: fewer are more likely quoted code

# In the order of deciding: what is most certain first, and a column has one role only.
RULES = {
    "split": roles.choose_split,
    "time": roles.choose_time,
    "id": roles.choose_id,
    "text": roles.choose_text,
    "label": roles.choose_label,
}
REASONS = {
    "text": "text: the most varied strings of several words",
    "label": "label: few values that repeat",
    "id": "id: named like one, every value different",
    "split": "split: nothing but train, validation and test",
    "time": "time: dates",
    "": "not used",
}


@dataclass(frozen=True)
class Guess:
    """What `nightshift init` shows and writes."""

    config: dict[str, Any]
    """Fields of the source, without its paths; only what differs from the defaults."""
    columns: dict[str, str]
    """Every column with what it holds and what it is taken for."""
    rows: list[dict[str, Any]]
    """The first rows as parsed, all columns."""
    languages: dict[str, int]
    """Documents per language among the first, the most frequent first."""
    labels: dict[str, int]
    """Documents per label among the rows looked at, the most frequent first."""
    notes: list[str]
    """Doubts, in sentences."""


def guess_source(path: str) -> Guess:
    """Look at the first rows of a data file (path or fsspec URL) and propose its source.

    Raises: SourceError when the file cannot be opened, holds no rows, or no column of text.
    """
    head = read_head(path)
    if not head.rows:
        raise SourceError(f"{path}: no rows found. Name a file that has at least one.")
    columns = roles.profile(head.rows)
    chosen, doubts = assign_roles(columns)
    if "text" not in chosen:
        held = "; ".join(f"{column.name}: {roles.describe(column)}" for column in columns)
        raise SourceError(
            f"{path}: found no column of text among {held}. Expected one with sentences or "
            "headlines. Check delimiter and encoding, or write the pipeline by hand."
        )
    values = {column.name: column.values for column in columns}
    names = [as_name(label, untyped=True)[0] for label in values.get(chosen.get("label", ""), [])]
    labels = Counter(name for name in names if name)
    if "label" in chosen and len(labels) == 1:
        doubts.append(
            f"only one label among the first {len(head.rows):,} rows: the file may be sorted by "
            "it. The night reads all of it."
        )
    texts = [str(text) for text in values[chosen["text"]]]
    tagged = sum(bool(HTML.search(text)) for text in texts)
    if tagged > HTML_SHARE * len(texts):
        doubts.append(
            f"{tagged:,} of {len(texts):,} texts hold HTML tags: `cleaning: {{html: true}}` beside "
            "the source reads them as a browser would."
        )
    taken = {name: role for role, name in chosen.items()}
    return Guess(
        config={**head.config, **chosen},
        columns={
            column.name: f"{REASONS[taken.get(column.name, '')]}; {roles.describe(column)}"
            for column in columns
        },
        rows=head.rows[:PREVIEW_ROWS],
        languages=count_languages(texts),
        labels=dict(labels.most_common()),
        notes=head.notes + doubts,
    )


def assign_roles(columns: list[roles.Column]) -> tuple[dict[str, str], list[str]]:
    """Role -> column name, as a source declares them, and what was doubtful about it."""
    chosen: dict[str, str] = {}
    doubts: list[str] = []
    for role, choose in RULES.items():
        taken = {"", *chosen.values()}  # a column without a name cannot be declared
        found, said = choose([column for column in columns if column.name not in taken])
        doubts += said
        if found:
            chosen[role] = found.name
    return {role: chosen[role] for role in REASONS if role in chosen}, doubts


def count_languages(texts: list[str]) -> dict[str, int]:
    """Documents per language among the first, the most frequent first."""
    return dict(Counter(detect_languages(texts[:LANGUAGE_ROWS])).most_common())


# --- pipelines.yaml -------------------------------------------------------------------------

NEW_FILE = """\
# What Nightshift works on. `nightshift check` reads it over, `nightshift schema` explains it.
lake: data/lake                   # folder or URI for the tables
mlflow: sqlite:///data/mlflow.db  # tracking and registry

pipelines:
"""


def pipeline_block(name: str, guess: Guess, path_in_yaml: str) -> str:
    """The YAML of one pipeline, indented by two spaces, as a person would write and comment it."""
    lines = [
        f"  {to_yaml(name)}:",
        "    source:",
        f"      paths: [{to_yaml(path_in_yaml, quoted=True)}]  # add globs as more files arrive",
    ]
    for key, value in guess.config.items():
        lines.append(f"      {key}: {to_yaml(value)}")
        if key == "label" and len(guess.labels) > 1:
            lines[-1] += f"  # {len(guess.labels)} seen: {_some(guess.labels)}"
        if key == "text" and guess.languages:
            lines[-1] += f"  # {_some(_frequent(guess.languages))}"
    return "\n".join(lines) + "\n"


def to_yaml(value: Any, quoted: bool = False) -> str:
    """A scalar as YAML on one line, in quotes where it needs them or `quoted` asks for them."""
    import yaml

    text = yaml.safe_dump(
        value,
        allow_unicode=True,
        default_flow_style=True,
        default_style='"' if quoted or not str(value).isprintable() else None,
        width=1_000_000,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _frequent(counts: dict[str, int]) -> list[str]:
    """Those with at least a twentieth of all: fewer are a detector's slips on short texts."""
    return [name for name, count in counts.items() if count >= 0.05 * sum(counts.values())]


def _some(names: Iterable[str], limit: int = 4) -> str:
    """`a, b, c, d and 6 more`, fit to stand in a comment."""
    names = list(names)
    shown = ["".join(c for c in name if c.isprintable())[:30] for name in names[:limit]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def add_pipeline(existing: str | None, name: str, block: str) -> str:
    """The text of pipelines.yaml with one pipeline more, every old line and comment kept.

    Args: `existing`, the file's text, None where there is no file; `block`, the pipeline as
        `pipeline_block` writes it.
    Raises: ConfigError when the file is not valid, has a pipeline of that name, or is written
        so that the block has to be pasted by hand.
    """
    if existing is None or not existing.strip():
        return NEW_FILE + block
    before, lines = read_yaml(existing, "pipelines.yaml")
    if ("pipelines", name) in lines:
        raise ConfigError(
            f"pipelines.yaml line {lines['pipelines', name]}: there is a pipeline '{name}' "
            "already. Give the new one another name, or edit that one."
        )
    added, _ = read_yaml(block, "the new pipeline")
    try:
        after = _insert(existing, block)
        found, _ = read_yaml(after, "pipelines.yaml")
        pipelines = {**(before.get("pipelines") or {}), **added}
        if found == {**before, "pipelines": pipelines}:
            return after
    except (ConfigError, AttributeError, TypeError, ValueError):
        pass
    raise ConfigError(
        "pipelines.yaml: the new pipeline could not be added without changing what is there. "
        f"Paste it under `pipelines:` by hand:\n{block}"
    )


def _insert(existing: str, block: str) -> str:
    """Put the block behind the last line of the `pipelines:` mapping, at that mapping's indent."""
    import yaml

    root = yaml.compose(existing, Loader=yaml.SafeLoader)
    found = next((pair for pair in root.value if pair[0].value == "pipelines"), None)
    newline = "\r\n" if "\r\n" in existing else "\n"
    lines = existing.splitlines()
    if found is None:
        return newline.join([*lines, "", "pipelines:", *block.splitlines(), ""])
    key, pipelines = found
    indent = key.start_mark.column + 2
    if isinstance(pipelines, yaml.MappingNode) and not pipelines.flow_style:
        indent = pipelines.value[0][0].start_mark.column
    addition = textwrap.indent(textwrap.dedent(block), " " * indent).splitlines()
    end = _behind_comments(lines, _last_line(pipelines, key.end_mark.line) + 1, indent)
    if isinstance(pipelines, yaml.MappingNode) and pipelines.flow_style and not pipelines.value:
        line, start = lines[pipelines.start_mark.line], pipelines.start_mark.column
        lines[pipelines.start_mark.line] = (
            line[:start] + line[start:].replace("{}", "", 1)
        ).rstrip()
    if isinstance(pipelines, yaml.MappingNode) and pipelines.value:
        addition.insert(0, "")
    if end < len(lines) and lines[end].strip():
        addition.append("")
    return newline.join([*lines[:end], *addition, *lines[end:], ""])


def _behind_comments(lines: list[str], end: int, indent: int) -> int:
    """Where the next pipeline may stand: comments as deep as a pipeline belong to the last one."""
    for at in range(end, len(lines)):
        if not lines[at].strip():
            continue
        if not lines[at].startswith(" " * indent) or not lines[at].lstrip().startswith("#"):
            break
        end = at + 1
    return end


def _last_line(node: Any, line: int) -> int:
    """The last line (from 0) that a node's own text stands on; block ends point behind it."""
    import yaml

    if isinstance(node, yaml.ScalarNode) or node.flow_style:
        return max(line, node.end_mark.line - (node.end_mark.column == 0))
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            line = max(line, _last_line(part, line))
    return line
