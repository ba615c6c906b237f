"""The house rule: imports go down only, and what is heavy is loaded by what needs it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["nightshift", "tasks", "flows"]
LIBRARY = sorted(f"nightshift.{one.stem}" for one in (ROOT / "nightshift").glob("*.py"))


@cache
def modules() -> dict[str, Path]:
    """Every module of the three floors, by name; a package is its own name."""
    found = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _nodes(node: ast.AST, whole: bool) -> Iterator[ast.AST]:
    """Every statement, or only those that run at import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not whole and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _nodes(child, whole)


@cache
def imported(module: str, whole: bool = True) -> frozenset[str]:
    """The dotted names a module imports; with `whole`, inside functions too."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), whole):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(up if node.level else []), *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{one.name}" for one in node.names)}
    return frozenset(found)


def reached(module: str, whole: bool = True) -> set[str]:
    """What a module imports, with what its imports import, inside this house."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imported(waiting.pop(), whole) - found:
            found.add(name)
            parts = name.split(".")
            ours = {".".join(parts[: n + 1]) for n in range(len(parts))} & modules().keys()
            waiting.extend(ours - {module})
    return found


def tops(names: set[str] | frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def of_floor(floor: str) -> list[str]:
    return sorted(name for name in modules() if name.partition(".")[0] == floor)


# --- read -----------------------------------------------------------------------------------


def test_the_reader_of_imports_sees_all_kinds_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "probe.py"
    path.write_text(
        "import a.b, c as d\nfrom . import e\nfrom .f import g\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import unseen\n"
        "try:\n    import h\nexcept ImportError:\n    pass\ndef late():\n    from i.j import k\n"
    )
    monkeypatch.setitem(modules(), "tasks.probe", path)
    always = {"a.b", "c", "tasks.e", "tasks.f", "tasks.f.g", "h"}
    assert always <= imported("tasks.probe", False)
    assert "i.j" not in imported("tasks.probe", False)
    assert always | {"i.j", "i.j.k"} <= imported("tasks.probe")
    assert "unseen" not in imported("tasks.probe")


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_reaches_neither_prefect_nor_mlflow_nor_the_floors_above(module: str) -> None:
    name = module.removesuffix(".__init__")
    assert not tops(reached(name)) & {"prefect", "mlflow", "tasks", "flows"}


@pytest.mark.parametrize("module", of_floor("tasks"))
def test_tasks_never_import_flows(module: str) -> None:
    assert "flows" not in tops(reached(module))


def test_mlflow_is_imported_only_where_runs_are_tracked_and_models_served() -> None:
    found = {name for name in modules() if "mlflow" in tops(imported(name))}
    assert found == {"tasks.tracking", "tasks.served_model"}


def test_prefect_is_imported_by_tasks_and_flows_alone() -> None:
    found = {name for name in modules() if "prefect" in tops(imported(name))}
    assert "flows.night" in found
    assert tops(found) == {"tasks", "flows"}


@pytest.mark.parametrize("module", of_floor("flows"))
def test_flows_hold_no_tensors_tables_or_tracking_of_their_own(module: str) -> None:
    at_import = tops(imported(module, whole=False))
    assert not at_import & {"torch", "deltalake", "mlflow", "sklearn", "tokenizers"}
    assert not tops(imported(module)) & {"deltalake", "mlflow", "sklearn", "tokenizers"}


def test_no_module_of_the_library_imports_one_that_imports_it() -> None:
    for name in of_floor("nightshift"):
        for other in imported(name, whole=False) & modules().keys():
            assert other == name or name not in reached(other, whole=False), f"{name} <-> {other}"


def test_no_house_of_its_own_is_shadowed_by_the_standard_library() -> None:
    # A sibling script would otherwise hide the standard library's module of its name.
    stems = {path.stem for path in modules().values()} - {"__init__"}
    assert stems & sys.stdlib_module_names == set()


# --- run ------------------------------------------------------------------------------------

BLOCKED = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("prefect", "mlflow"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({one.partition(".")[0] for one in sys.modules})))
"""

LIGHT = """
import json, runpy, sys
import flows.cli
first = set(sys.modules)
sys.argv = ["nightshift", "--help"]
try:
    flows.cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps([sorted(first), sorted(sys.modules)]))
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_library_imports_where_prefect_and_mlflow_are_blocked() -> None:
    names = [name.removesuffix(".__init__") for name in LIBRARY]
    loaded = json.loads(run(BLOCKED, json.dumps(names)))
    assert "torch" in loaded
    assert not {"prefect", "mlflow", "tasks", "flows"} & set(loaded)


def test_the_command_line_starts_without_anything_heavy() -> None:
    lines = run(LIGHT).splitlines()
    heavy = {"torch", "mlflow", "prefect", "pandas", "numpy", "sklearn", "scipy", "pyarrow"}
    for loaded in json.loads(lines[-1]):
        assert not heavy & set(loaded)
    assert "Usage: " in lines[0]


def test_reading_the_config_and_the_tables_brings_neither_torch_nor_servers() -> None:
    words = (
        "import json, sys, nightshift.pipeline, flows.reading; print(json.dumps([*sys.modules]))"
    )
    loaded = json.loads(run(words))
    assert "pyarrow" in loaded
    assert not {"torch", "mlflow", "prefect", "sklearn", "scipy"} & set(loaded)
