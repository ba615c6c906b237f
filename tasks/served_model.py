"""The script MLflow keeps with every registered version and runs when it is loaded.

It needs nothing of Nightshift installed: the bundle brings the modules it was made with, and they
are imported under a name made of their own digest, so that two versions never share code.
"""

import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import sys
import threading
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

EMPTY = dict.fromkeys(
    ["label", "probability", "abstained", "top", "cluster_id", "cluster_name", "distance", "error"]
)
"""Every answer has these columns, whatever the model and the text."""


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from bytes that were compared: no file that was added, and nothing that
    Python compiled of another, is ever run."""

    def __init__(self, folder, sources):
        self.folder, self.sources = folder, sources

    def find_spec(self, name, path=None, target=None):
        """Those of the bundle, and no others."""
        if name in self.sources:
            return importlib.util.spec_from_loader(name, self, is_package="." not in name)
        return None

    def exec_module(self, module):
        """Compile it now."""
        file = self.folder / f"{module.__name__.partition('.')[2] or '__init__'}.py"
        exec(compile(self.sources[module.__name__], str(file), "exec"), module.__dict__)


def _listed_code(folder):
    """The modules that the bundle lists, read once: what is run is what was compared.

    The rest is compared with the same list by that code, when it reads it.
    """
    noted = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    sources = {}
    for name in sorted(one for one in noted if one.startswith("code/") and one.endswith(".py")):
        body = (folder / name).read_bytes() if (folder / name).is_file() else b""
        head = f"{name}\n{len(body)}\n".encode()
        if hashlib.blake2b(head + body, digest_size=16).hexdigest() != noted[name]:
            raise MlflowException(
                f"{folder}: found {name} missing, cut or altered since the night that wrote it. "
                "Fetch these files again, or roll back to another version."
            )
        sources[Path(name).stem] = body
    return sources


def _load_code(folder):
    """The bundle's module `bundle`, in a package that is named by what stands in its files."""
    sources = _listed_code(folder)
    digest = hashlib.blake2b(repr(sorted(sources.items())).encode(), digest_size=8).hexdigest()
    package = f"nightshift_bundle_{digest}"
    named = {
        package if name == "__init__" else f"{package}.{name}": sources[name] for name in sources
    }
    with _LOADING:
        if f"{package}.bundle" not in sys.modules:
            _import(_Sources(folder / "code", named))
        return sys.modules[f"{package}.bundle"]


def _import(finder):
    """All of them now: functions that import a neighbour later find it there."""
    sys.meta_path.insert(0, finder)
    try:
        for name in sorted(finder.sources):
            importlib.import_module(name)
    except BaseException:
        # Half of a package would answer the next time as if it were whole.
        for name in finder.sources:
            sys.modules.pop(name, None)
        raise
    finally:
        sys.meta_path.remove(finder)


_LOADING = threading.RLock()


def _text(value, place):
    """A value of the frame as a text; a missing one is empty. Others are a 400 over HTTP."""
    if isinstance(value, str):
        return value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    raise MlflowException.invalid_parameter_value(
        f"text[{place}]: found {value!r}, expected a text."
    )


class Served(mlflow.pyfunc.PythonModel):
    """Texts in, labels and clusters out."""

    def load_context(self, context):
        """Read the bundle's files."""
        folder = Path(context.artifacts["bundle"])
        self.bundle = _load_code(folder).Bundle.load(folder)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        """A frame with a column `text` -> one row of answers per text, in order.

        MLflow itself makes text of the numbers, and of the nulls, in a request's `inputs`.
        """
        params = params or {}
        texts = [_text(value, place) for place, value in enumerate(model_input["text"].tolist())]
        top = int(params.get("top_k", 3))
        if top < 0:
            raise MlflowException.invalid_parameter_value(
                f"params.top_k: found {top}, expected a whole number from 0."
            )
        vectors = bool(params.get("embeddings", False))
        answers = self.bundle.answer(texts, top=top, vectors=vectors)
        # Objects with None: a missing number or vector would become NaN, which is no JSON.
        empty = {**EMPTY, "vector": None} if vectors else EMPTY
        rows = [{**empty, **answer} for answer in answers]
        return pd.DataFrame(rows, index=model_input.index, dtype=object)


mlflow.models.set_model(Served())
