"""A bundle's files: whole, unaltered, and read by the code they came with.

`files.json` names the digest of every other file, and the registry the digest of `files.json`. It
travels in served bundles, and needs nothing but the standard library.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
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

    Raises: BundleError naming each file that is missing, cut or altered.
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
    return digest(folder, [folder / FILES])


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
    """A verified bundle, read by the code that it brings: it answers as on the night it was made,
    whatever version of Nightshift this is.

    Returns: the `Bundle` of that code. Raises: BundleError when it cannot be read.
    """
    try:
        return _own_code(folder / CODE).Bundle.load(folder)
    except Exception as error:  # errors of that code are classes of its own
        raise BundleError(str(error) or type(error).__name__) from error


def _own_code(folder: Path) -> Any:
    """The bundle's module `bundle`, in a package that is named by what stands in its files."""
    files = sorted(folder.glob("*.py"))
    name = f"nightshift_bundle_{digest(folder, files)}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
            # All of them now: the folder may be gone when a function imports its neighbour.
            for file in files:
                importlib.import_module(f"{name}.{file.stem}")
        except BaseException:
            sys.modules.pop(name)
            raise
    return importlib.import_module(f"{name}.bundle")
