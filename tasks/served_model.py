"""The script MLflow keeps with every registered version and runs when it is loaded.

It needs nothing of Nightshift installed: the bundle brings the modules it was made with, and they
are imported under a name made of their own digest, so that two versions never share code.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

EMPTY = dict.fromkeys(
    ["label", "probability", "abstained", "top", "cluster_id", "cluster_name", "distance", "error"]
)
"""Every answer has these columns, whatever the model and the text."""


def _refuse_altered_code(folder):
    """Before it runs; the rest is compared with the same list by that code, when it reads it."""
    noted = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    for name in (one for one in noted if one.startswith("code/")):
        body = (folder / name).read_bytes() if (folder / name).is_file() else b""
        head = f"{name}\n{len(body)}\n".encode()
        if hashlib.blake2b(head + body, digest_size=16).hexdigest() != noted[name]:
            raise MlflowException(
                f"{folder}: found {name} missing, cut or altered since the night that wrote it. "
                "Fetch these files again, or roll back to another version."
            )


def _load_code(folder):
    files = sorted(folder.glob("*.py"))
    digest = hashlib.blake2b(b"".join(one.read_bytes() for one in files), digest_size=8)
    name = f"nightshift_bundle_{digest.hexdigest()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.bundle")


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
        _refuse_altered_code(folder)
        self.bundle = _load_code(folder / "code").Bundle.load(folder)

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
