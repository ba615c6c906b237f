"""A bundle's files: whole, unaltered, and read by the code they came with.

`files.json` names the digest of every other file, and the registry the digest of `files.json`. It
travels in served bundles, and needs nothing but the standard library.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import json
import sys
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .errors import BundleError

FILES, CODE = "files.json", "code"


def note_files(folder: Path) -> str:
    """Write down what is in the folder; returns the digest of all of it."""
    names = sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
    noted = {name: digest(folder, [folder / name]) for name in names if name != FILES}
    text = json.dumps(noted, ensure_ascii=False, indent=1, sort_keys=True)
    (folder / FILES).write_text(text, encoding="utf-8")
    return digest(folder, [folder / FILES])


def verify(folder: Path) -> str:
    """Compare every file with what was written down; returns the digest of all of it.

    Raises: BundleError naming each file that is missing, cut, altered, or was not there.
    """
    require(folder, (FILES,))
    try:
        noted: dict[str, str] = json.loads((folder / FILES).read_text(encoding="utf-8"))
        require(folder, tuple(noted))
        altered = [name for name, was in noted.items() if digest(folder, [folder / name]) != was]
    except (ValueError, AttributeError, OSError) as error:  # a name may be none that a file has
        raise BundleError(f"{folder}: {FILES} cannot be read ({error}). {_NEXT}") from error
    if altered:
        raise BundleError(
            f"{folder}: found {', '.join(altered)} cut or altered since the night that wrote "
            f"{'it' if len(altered) == 1 else 'them'}. {_NEXT}"
        )
    added = sorted({*_there(folder)} - {*noted, FILES})
    if added:
        raise BundleError(
            f"{folder}: found {', '.join(added)}, which the night that wrote this bundle did not "
            f"write: nothing of it is run. {_NEXT}"
        )
    return digest(folder, [folder / FILES])


def _there(folder: Path) -> list[str]:
    """Files and links of a folder; what Python compiles beside a source is never run from here."""
    return [
        one.relative_to(folder).as_posix()
        for one in folder.rglob("*")
        if (one.is_symlink() or not one.is_dir()) and "__pycache__" not in one.parts
    ]


_NEXT = "Fetch these files again, or roll back to another version."


def require(folder: Path, names: tuple[str, ...]) -> None:
    """Raises: BundleError naming the files that are missing."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            f"{folder}: found no {', '.join(missing)}, without which a model cannot answer. "
            "Run the night that made it again, or roll back to another version."
        )


def digest(folder: Path, files: list[Path]) -> str:
    """Names, sizes and bytes of files, 32 hexadecimal digits."""
    hasher = blake2b(digest_size=16)
    for file in files:
        hasher.update(f"{file.relative_to(folder).as_posix()}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()


def load_as_made(folder: Path) -> Any:
    """A bundle, verified and read by the code that it brings: it answers as on the night it was
    made, whatever version of Nightshift this is.

    Returns: the `Bundle` of that code. Raises: BundleError when it cannot be read.
    """
    verify(folder)
    try:
        return _own_code(folder).Bundle.load(folder)
    except BundleError:
        raise
    except Exception as error:  # errors of that code are classes of its own
        raise BundleError(str(error) or type(error).__name__) from error


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules of a package from bytes that were verified: no file is looked for, so neither
    one that was added nor what Python compiled of another is ever run."""

    def __init__(self, package: str, folder: Path, sources: dict[str, bytes]) -> None:
        self._folder = folder
        self._sources = {
            package if name == "__init__" else f"{package}.{name}": source
            for name, source in sources.items()
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Those of the package, and no others."""
        if name not in self._sources:
            return None
        return importlib.util.spec_from_loader(name, self, is_package="." not in name)

    def exec_module(self, module: Any) -> None:
        """Compile it now."""
        name = module.__name__
        file = self._folder / f"{name.partition('.')[2] or '__init__'}.py"
        code = compile(self._sources[name], str(file), "exec", dont_inherit=True)
        exec(code, module.__dict__)


_LOADING = threading.RLock()


def _own_code(folder: Path) -> Any:
    """The bundle's module `bundle`, in a package that is named by what stands in its files."""
    sources = _sources(folder)
    name = f"nightshift_bundle_{_named_by(sources)}"
    with _LOADING:
        if f"{name}.bundle" not in sys.modules:
            _import(name, _Sources(name, folder / CODE, sources), sorted(sources))
        return sys.modules[f"{name}.bundle"]


def _sources(folder: Path) -> dict[str, bytes]:
    """The listed modules, read once: what is run is what was compared.

    Raises: BundleError for one that is not as it was written down.
    """
    noted: dict[str, str] = json.loads((folder / FILES).read_text(encoding="utf-8"))
    listed = [one for one in noted if one.startswith(f"{CODE}/") and one.endswith(".py")]
    found = {Path(one).stem: (folder / one).read_bytes() for one in sorted(listed)}
    altered = [one for one in listed if _digest_of(one, found[Path(one).stem]) != noted[one]]
    if altered:
        raise BundleError(f"{folder}: found {', '.join(altered)} altered. {_NEXT}")
    return found


def _digest_of(name: str, content: bytes) -> str:
    """As `digest` has it of one file."""
    head = f"{name}\n{len(content)}\n".encode()
    return blake2b(head + content, digest_size=16).hexdigest()


def _named_by(sources: dict[str, bytes]) -> str:
    return blake2b(repr(sorted(sources.items())).encode(), digest_size=16).hexdigest()


def _import(name: str, finder: _Sources, modules: list[str]) -> None:
    """All modules now: functions that import a neighbour later find it here."""
    sys.meta_path.insert(0, finder)
    try:
        for module in modules:
            importlib.import_module(name if module == "__init__" else f"{name}.{module}")
    except BaseException:
        # Half of a package would answer the next time as if it were whole.
        for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[one]
        raise
    finally:
        sys.meta_path.remove(finder)
