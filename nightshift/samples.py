"""A small real corpus that is on every machine: the docstrings of the installed packages.

    package on disk -> its .py files, read with ast and never imported
                    -> one document per documented module, class or function
                    -> night 1, 2 or 3, decided by module
                    -> night-1.csv, night-2.jsonl, night-3.parquet

Every choice (which night, which files, which documents stay unlabelled) hangs on a digest of a
name, so that the same installation gives the same three files, byte for byte.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib.util
import inspect
import json
import os
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

PACKAGES = {  # label (the name it is installed by) -> name it is imported by
    "numpy": "numpy",
    "pandas": "pandas",
    "torch": "torch",
    "scikit-learn": "sklearn",
    "pyarrow": "pyarrow",
    "mlflow": "mlflow",
    "prefect": "prefect",
    "python": "",  # the standard library
}
# Night three's newcomer: the first that is installed. Not pyarrow: most of it is Cython, and
# its .py files hold fewer than 200 docstrings.
NEWCOMERS = ("prefect", "mlflow", "torch")
NEWCOMER_DOCUMENTS = 600

NIGHT_SHARES = (0.6, 0.2, 0.2)  # of each package's modules
NIGHT_DOCUMENTS = (900, 300, 200)  # at most, per package and night; night three has the newcomer
MODULE_DOCUMENTS = 60  # at most, per file: pandas' DataFrame alone would fill a night
UNLABELLED_SHARE = 0.05

MIN_CHARACTERS = 40
MAX_CHARACTERS = 600
MAX_FILE_BYTES = 600_000  # larger ones are generated
MAX_COPIES = 2  # of one text: copied docstrings are real, and show how duplicates are met
MAX_SAME_OPENING = 4  # documents of a package with one first line: past it, boilerplate

SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "_testing", "__pycache__", "site-packages", "dist-packages"),
    *("vendor", "vendored", "_vendor", "_vendored", "externals", "third_party", "node_modules"),
    *("encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo"),
}
# A docstring that opens with one of these headings lacks its summary: it says nothing of its own.
SECTIONS = {
    *("args", "arguments", "parameters", "returns", "return", "yields", "raises", "attributes"),
    *("example", "examples", "note", "notes", "deprecated"),
}


@dataclass(frozen=True)
class Document:
    """One docstring; `id` is the dotted name of what it documents."""

    id: str
    text: str
    package: str

    @property
    def label(self) -> str:
        """The package's name, or empty for the few that a person would not have labelled yet."""
        return "" if share_of(self.id, "label") < UNLABELLED_SHARE else self.package


@dataclass(frozen=True)
class SampleFile:
    """One night's batch as written; `labels` counts the labelled documents per label."""

    path: Path
    documents: int
    labelled: int
    labels: dict[str, int]


def write_sample(folder: Path) -> list[SampleFile]:
    """Write three nights of docstrings to `folder`, one CSV, one JSON lines and one Parquet file.

    The columns are id, text and label; rows come in an order that mixes the packages.
    Raises: InputError when fewer than two packages have source files here, or the folder
        cannot be written.
    """
    nights = gather()
    writers = {
        "night-1.csv": write_csv,
        "night-2.jsonl": write_jsonl,
        "night-3.parquet": write_parquet,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _write(folder / name, write, documents)
            for (name, write), documents in zip(writers.items(), nights, strict=True)
        ]
    except OSError as error:
        raise InputError(
            f"{folder}: the sample cannot be written: {error.strerror or error}. "
            "Name a folder that you may write to."
        ) from error


def gather() -> list[list[Document]]:
    """The documents of each night, from whatever of PACKAGES is installed.

    Raises: InputError when fewer than two packages have source files here.
    """
    modules = {label: find_modules(label) for label in PACKAGES}
    found = [label for label in modules if modules[label]]
    if len(found) < 2:
        raise InputError(
            f"sample: source files of {len(found)} package(s) found here "
            f"({', '.join(found) or 'none'}), but labels need at least two of "
            f"{', '.join(PACKAGES)}. Install Nightshift with its dependencies (make install)."
        )
    # With two packages, night one needs both: a classifier has to tell something apart.
    newcomer = next((label for label in NEWCOMERS if label in found), None)
    newcomer = newcomer if len(found) > 2 else None
    copies: Counter[str] = Counter()
    nights: list[list[Document]] = [[], [], []]
    for label in found:
        if label == newcomer:
            limits, assign = (0, 0, NEWCOMER_DOCUMENTS), lambda _: 2
        else:
            limits, assign = NIGHT_DOCUMENTS, night_of
        for night, document in _choose(label, modules[label], limits, assign, copies):
            nights[night].append(document)
    return [sorted(night, key=lambda document: share_of(document.id, "order")) for night in nights]


def _choose(
    label: str,
    modules: dict[str, Path],
    limits: tuple[int, int, int],
    assign: Callable[[str], int],
    copies: Counter[str],
) -> Iterator[tuple[int, Document]]:
    """Read modules, in the order of their digests, until each night has its fill.

    Reading stops early on purpose: all of torch is 40 MB of source, and a tenth is enough.
    """
    room = list(limits)
    openings: Counter[str] = Counter()
    seen: set[str] = set()
    for module in sorted(modules, key=lambda name: share_of(name, "module")):
        night = assign(module)
        if not room[night]:
            continue
        documents = dict(documents_in(modules[module], module))
        taken = 0
        for name in sorted(documents, key=lambda name: share_of(name, "document")):
            text = documents[name]
            opening = text.partition("\n")[0]
            boilerplate = copies[text] >= MAX_COPIES or openings[opening] >= MAX_SAME_OPENING
            if boilerplate or name in seen:
                continue
            if not room[night] or taken == MODULE_DOCUMENTS:
                break
            seen.add(name)
            copies[text] += 1
            openings[opening] += 1
            taken += 1
            room[night] -= 1
            yield night, Document(name, text, label)


def night_of(module: str) -> int:
    """0, 1 or 2: a module and its neighbours (three levels of the name) share a night."""
    share = share_of(".".join(module.split(".")[:3]), "night")
    return sum(share >= bound for bound in (NIGHT_SHARES[0], NIGHT_SHARES[0] + NIGHT_SHARES[1]))


def share_of(name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the name alone, another one for each purpose."""
    digest = hashlib.sha256(f"{purpose}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def find_modules(label: str) -> dict[str, Path]:
    """Module name -> file, for every module of a package; empty when it is not installed.

    A package inside a zip file has no files to walk, and counts as not installed.
    """
    modules: dict[str, Path] = {}
    for root in _roots(PACKAGES[label]):
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if name not in SKIPPED_FOLDERS)
            for file in files:
                path = Path(folder, file)
                if path.suffix == ".py" and not file.startswith("test_"):
                    parts = [PACKAGES[label], *path.relative_to(root).with_suffix("").parts]
                    module = ".".join(part for part in parts if part not in ("", "__init__"))
                    modules.setdefault(module, path)
    modules.pop("", None)
    return modules


def _roots(package: str) -> list[Path]:
    if not package:
        folders = [sysconfig.get_paths()["stdlib"]]
    else:
        try:  # of a top-level name, find_spec looks and does not import
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            return []
        folders = list(spec.submodule_search_locations or []) if spec else []
    return [Path(folder) for folder in folders if Path(folder).is_dir()]


def documents_in(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Dotted name and shortened docstring of a file's module, classes, methods and functions.

    Nothing for a file that is too large, unreadable, or not valid in this version of Python.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(path.read_bytes())  # bytes: a coding cookie or a BOM is then honoured
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for name, docstring in _docstrings(tree, module):
        text = shorten(docstring)
        if is_prose(text):
            yield name, text


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield name, docstring
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return  # what is defined inside a function has no dotted name
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            yield from _docstrings(child, name)


def shorten(docstring: str) -> str:
    """The first paragraphs, up to MAX_CHARACTERS, without doctests and underlines.

    A first paragraph that is longer is cut between two words.
    """
    kept = ""
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        if ">>>" in paragraph:
            continue
        lines = [line.rstrip() for line in paragraph.splitlines() if line.strip(" -=~*+^\"'#")]
        addition = "\n".join(lines)
        if kept and len(kept) + 2 + len(addition) > MAX_CHARACTERS:
            break
        kept = f"{kept}\n\n{addition}" if kept and addition else kept or addition
    if len(kept) > MAX_CHARACTERS:
        kept = kept[: MAX_CHARACTERS + 1].rsplit(maxsplit=1)[0]
    return kept.strip()


def is_prose(text: str) -> bool:
    """Long enough, mostly letters, and starting with a sentence instead of a section."""
    letters = sum(character.isalpha() for character in text)
    opening = text.partition("\n")[0].strip(" .:*").lower()
    printable = all(character.isprintable() or character == "\n" for character in text)
    return (
        len(text) >= MIN_CHARACTERS
        and letters > 0.5 * len(text)
        and printable
        and opening not in SECTIONS
    )


def _write(
    path: Path, write: Callable[[Path, list[Document]], None], documents: list[Document]
) -> SampleFile:
    # Under a temporary name first: whoever watches the folder never sees half a file.
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary, documents)
        # One hour back: ingest leaves a file alone that changed in the last minute, as it may
        # still be being written. This one is complete, and the first night need not wait.
        an_hour_ago = time.time() - 3600
        os.utime(temporary, (an_hour_ago, an_hour_ago))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    labels = Counter(document.label for document in documents if document.label)
    return SampleFile(path, len(documents), labels.total(), dict(sorted(labels.items())))


def write_csv(path: Path, documents: list[Document]) -> None:
    """Comma-separated with a header; texts with newlines and quotes are quoted."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "text", "label"])
        writer.writerows([document.id, document.text, document.label] for document in documents)


def write_jsonl(path: Path, documents: list[Document]) -> None:
    """One JSON object per line; an unlabelled document's label is null."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            row = {"id": document.id, "text": document.text, "label": document.label or None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(path: Path, documents: list[Document]) -> None:
    """Three string columns; an unlabelled document's label is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": [document.id for document in documents],
        "text": [document.text for document in documents],
        "label": [document.label or None for document in documents],
    }
    schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")
