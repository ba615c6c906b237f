"""What answers: a model (weights, tokenizer, calibration), and with clusters beside it a bundle.

A folder of plain files, no pickle:

    weights.safetensors   the network, the wide path and the reject score, or the corpus vectors
    tokenizer.json        readable by Hugging Face tokenizers
    model.json            kind, labels, blend, thresholds, recipe, text preparation
    clusters.json         ids, names and keywords      (bundle only)
    centroids.safetensors float32 (clusters, width)    (bundle only)
    code/                 these very modules, so that the bundle answers without Nightshift
    files.json            the digest of each of these files    (bundle only)

`model_id` is the digest of the first three. The modules in `code/` import one another relatively:
two bundles of different versions live in one process under different package names.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import torch as tensors

from .batches import Documents, Watch, unwatched
from .cleaning import CleaningConfig, clean, reject_reason
from .deciding import Blend, Reject, Spaces, Threshold, apply_threshold
from .encoders import Network
from .errors import BundleError, ConfigError
from .inference import forward, pick_device
from .integrity import CODE, digest, note_files, require, verify
from .nearest import UNASSIGNED, Cells, unit
from .pretrained import Pretrained
from .recipe import ModelConfig
from .tokenizer import Tokenizer
from .vectors import CorpusVectors
from .wide import Wide

WEIGHTS, TOKENIZER, MODEL = "weights.safetensors", "tokenizer.json", "model.json"
CLUSTERS, CENTROIDS = "clusters.json", "centroids.safetensors"
MODULES = [
    "__init__", "batches", "bundle", "cells", "cleaning", "config", "deciding", "encoders",
    "errors", "inference", "integrity", "nearest", "pretrained", "recipe", "showing", "tokenizer",
    "vectors", "wide",
]  # fmt: skip
BATCH_TOKENS = 16_384
ONE_PATH = Blend(1.0, 1.0, 1.0)
NEVER = Reject("probability", -math.inf, {}, {})
"""Keeps nothing back."""


@dataclass(frozen=True)
class Answers:
    """What a model says of documents; all but the vectors are None without a classifier.

    vectors: unit length, float32 (documents, width). probabilities: float32 (documents, classes).
    choice: int64 (documents,), the class said. scope: float32 (documents,), the reject score,
    little where a document is out of scope. abstained: bool (documents,). network, wide:
    probabilities of each path alone, None where there is none. untempered: the blend's, with no
    temperature fitted.
    """

    vectors: np.ndarray
    probabilities: np.ndarray | None = None
    choice: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    scope: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    abstained: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    network: np.ndarray | None = None
    wide: np.ndarray | None = None
    untempered: np.ndarray | None = None


@dataclass
class Model:
    """A network with its labels; without any, one that learned groups, with corpus vectors beside
    it, or these alone.

    With the tokenizer it was made with.
    """

    kind: Literal["network", "encoder", "vectors"]
    tokenizer: Tokenizer
    config: ModelConfig
    cleaning: CleaningConfig
    network: Network | None = None
    wide: Wide | None = None
    corpus: CorpusVectors | None = None
    labels: list[str] = field(default_factory=list)
    blend: Blend = ONE_PATH
    reject: Reject | None = None
    positive: int | None = None
    """The class that is said from a threshold on, where one is declared."""
    threshold: Threshold | None = None
    groups: np.ndarray | None = None
    """Centres of what an encoder learned to tell apart, float32 (groups, width)."""

    @property
    def pretrained(self) -> Pretrained | None:
        """The encoder of Hugging Face inside the network, where there is one."""
        return self.network.pretrained if self.network is not None else None

    def documents(self, texts: list[str]) -> Documents:
        """Cleaned texts -> token ids."""
        return Documents.from_lists(self.tokenizer.encode(texts))

    def answer(
        self,
        documents: Documents,
        texts: list[str],
        device: str = "auto",
        watch: Watch = unwatched,
    ) -> Answers:
        """One pass over each path; a document's answer is the same whatever shares its batch.

        Args: token ids and cleaned texts of the same documents.
        """
        documents = documents.cut(int(self.config.max_tokens), self.config.truncation)
        if self.network is None:
            assert self.corpus is not None
            return Answers(self.corpus.embed(documents))
        there = pick_device(device)
        scores, raw = forward(self.network.to(there), documents, BATCH_TOKENS, there, watch)
        if self.kind == "encoder":
            assert self.corpus is not None
            # It puts a topic that it has not learned among the others; to their words it is new.
            return Answers(unit(np.hstack([unit(raw), self.corpus.embed(documents)])))
        wide = self.wide.scores(texts) if self.wide is not None else None
        said = self.blend.probabilities(scores, wide)
        reject = self.reject or NEVER
        scope = reject.scores(said, spaces(raw, wide))
        return Answers(
            unit(raw).astype(np.float32),
            said,
            self.chosen(said),
            scope,
            scope < reject.threshold,
            self.blend.probabilities(scores, None),
            None if wide is None else self.blend.probabilities(None, wide),
            self.blend.untempered().probabilities(scores, wide),
        )

    def chosen(self, probabilities: np.ndarray) -> np.ndarray:
        """Float32 (documents, classes) -> the class said, int64 (documents,)."""
        if self.positive is None or self.threshold is None:
            return probabilities.argmax(1)
        return apply_threshold(probabilities, self.positive, self.threshold.value)

    def save(self, folder: Path) -> str:
        """Write the three files; returns the model_id."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.network is not None:
            weights = {name: value.cpu() for name, value in self.network.state_dict().items()}
            weights |= self.wide.tensors() if self.wide else {}
            kept = self.reject.tensors() if self.reject else {}
            weights |= {name: torch.from_numpy(value) for name, value in kept.items()}
            if self.groups is not None:
                weights["groups"] = torch.from_numpy(self.groups)
        else:
            weights = {}
        if self.corpus is not None:
            weights["words"] = torch.from_numpy(self.corpus.words)
            weights["common"] = torch.from_numpy(self.corpus.common)
        tensors.save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS)
        (folder / TOKENIZER).write_text(self.tokenizer.serialized, encoding="utf-8")
        about = {
            "kind": self.kind,
            "unit": self.tokenizer.unit,
            "tokenizer": self.tokenizer.digest,
            "labels": self.labels,
            "blend": self.blend.as_json(),
            "reject": self.reject.as_json() if self.reject else None,
            "positive": self.positive,
            "threshold": self.threshold.as_json() if self.threshold else None,
            "wide": self.wide.about() if self.wide else None,
            "pretrained": self.pretrained.about() if self.pretrained else None,
            "model": self.config.model_dump(),
            "cleaning": self.cleaning.model_dump(),
        }
        _write_json(folder / MODEL, about)
        return model_id(folder)

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read what `save` wrote.

        Raises: BundleError when a file is missing or damaged, or the parts do not belong together.
        """
        require(folder, (WEIGHTS, TOKENIZER, MODEL))
        try:
            return cls._read(folder)
        except (BundleError, ConfigError):  # the latter where an extra is missing
            raise
        except Exception as error:  # tokenizers raises nothing more special for a damaged file
            raise BundleError(
                f"{folder}: the model cannot be read ({error}). Its files are damaged, or of "
                "another version of Nightshift; roll back to another version or train again."
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> Model:
        about = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        tokenizer = Tokenizer((folder / TOKENIZER).read_text(encoding="utf-8"), about["unit"])
        if about["tokenizer"] != tokenizer.digest:
            raise BundleError(
                f"{folder}: found tokenizer {tokenizer.digest[:8]}, but the weights were trained "
                f"with {about['tokenizer'][:8]}. These files are of different models; train again."
            )
        model = cls(
            kind=about["kind"],
            tokenizer=tokenizer,
            config=ModelConfig.model_validate(about["model"]),
            cleaning=CleaningConfig.model_validate(about["cleaning"]),
            labels=about["labels"],
            blend=Blend(**about["blend"]),
            positive=about["positive"],
            threshold=Threshold(**about["threshold"]) if about["threshold"] else None,
        )
        weights = tensors.load_file(folder / WEIGHTS)
        if "words" in weights:
            words, common = weights.pop("words"), weights.pop("common")
            model.corpus = CorpusVectors(words.numpy(), common.numpy())
        if model.kind == "vectors":
            return model
        # The encoder's weights lie among the others: nobody is asked for them.
        given = about.get("pretrained")
        pretrained = Pretrained.blank(given, tokenizer) if given else None
        groups = weights.pop("groups", None)
        if groups is not None:
            model.groups = groups.numpy()
        heads = len(model.labels) if groups is None else len(groups)
        model.network = Network(model.config, tokenizer.size, heads, pretrained)
        parts = {"wide": dict[str, torch.Tensor](), "reject": dict[str, torch.Tensor]()}
        for name in list(weights):
            part = name.partition(".")[0]
            if part in parts:
                parts[part][name] = weights.pop(name)
        model.network.load_state_dict(weights)
        model.network.eval()
        if about["reject"]:
            kept = {name: value.numpy() for name, value in parts["reject"].items()}
            model.reject = Reject.from_json(about["reject"], kept)
        if about["wide"]:
            model.wide = Wide.from_parts(parts["wide"], about["wide"])
        return model


def spaces(vectors: np.ndarray, wide: np.ndarray | None) -> Spaces:
    """Where distances are measured: in the network's vectors and in the wide path's scores."""
    return {"network": vectors} | ({} if wide is None else {"wide": wide})


@dataclass(frozen=True)
class Clusters:
    """Where the clusters are, with one id, name and list of keywords each."""

    cells: Cells
    ids: list[str]
    names: list[str]
    keywords: list[list[str]]

    def save(self, folder: Path) -> None:
        """Write clusters.json and the centroids."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"ids": self.ids, "names": self.names, "keywords": self.keywords}
        _write_json(folder / CLUSTERS, about)
        kept = {
            "centroids": torch.from_numpy(self.cells.centroids).contiguous(),
            "scales": torch.from_numpy(self.cells.scales).contiguous(),
            "radius": torch.tensor([self.cells.radius], dtype=torch.float32),
        }
        tensors.save_file(kept, folder / CENTROIDS)

    @classmethod
    def load(cls, folder: Path) -> Clusters:
        """Read what `save` wrote.

        Raises: BundleError when a file is missing or damaged.
        """
        require(folder, (CENTROIDS,))
        try:
            about = json.loads((folder / CLUSTERS).read_text(encoding="utf-8"))
            kept = tensors.load_file(folder / CENTROIDS)
            cells = Cells(kept["centroids"].numpy(), kept["scales"].numpy(), float(kept["radius"]))
            return cls(cells, about["ids"], about["names"], about["keywords"])
        except Exception as error:  # as many kinds as there are ways to be damaged
            raise BundleError(
                f"{folder}: the clusters cannot be read ({error}). Their files are damaged; roll "
                "back to another version or run the night that made it again."
            ) from error


@dataclass(frozen=True)
class Bundle:
    """A model with the clusters of its space: everything an answer needs."""

    model: Model
    clusters: Clusters | None

    def save(self, folder: Path, model_folder: Path) -> str:
        """Copy the model, write the clusters and the code; returns the bundle's digest."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, TOKENIZER, MODEL):
            shutil.copyfile(model_folder / name, folder / name)
        if self.clusters is not None:
            self.clusters.save(folder)
        (folder / CODE).mkdir(exist_ok=True)
        for name in MODULES:
            shutil.copyfile(Path(__file__).with_name(f"{name}.py"), folder / CODE / f"{name}.py")
        return note_files(folder)

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read what `save` wrote.

        Raises: BundleError when a file is missing, cut, altered, or not of this model.
        """
        verify(folder)
        model = Model.load(folder)
        there = (folder / CLUSTERS).is_file()
        return cls(model, Clusters.load(folder) if there else None)

    def answer(self, texts: list[str], top: int = 3, vectors: bool = False) -> list[dict[str, Any]]:
        """One answer per text, in order; a text that cannot be used gets an `error` instead."""
        cleaned = [clean(text, self.model.cleaning) for text in texts]
        problems = [reject_reason(text, self.model.cleaning) for text in cleaned]
        usable = [text for text, problem in zip(cleaned, problems, strict=True) if not problem]
        given = iter(self._answers(usable, top, vectors) if usable else [])
        return [{"error": problem} if problem else next(given) for problem in problems]

    def _answers(self, texts: list[str], top: int, vectors: bool) -> Iterator[dict[str, Any]]:
        said = self.model.answer(self.model.documents(texts), texts)
        places, distances = self._nearest(said.vectors)
        for row in range(len(texts)):
            answer: dict[str, Any] = {"label": None, "probability": None, "abstained": None}
            if said.probabilities is not None:
                answer = self._label(said, row, top)
            if self.clusters is not None:
                place = places[row]
                answer["cluster_id"] = self.clusters.ids[place] if place >= 0 else UNASSIGNED
                answer["cluster_name"] = self.clusters.names[place] if place >= 0 else None
                answer["distance"] = round(float(distances[row]), 6)
            if vectors:
                answer["vector"] = said.vectors[row].tolist()
            yield answer

    def _nearest(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.clusters is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self.clusters.cells.assign(vectors)

    def _label(self, said: Answers, row: int, top: int) -> dict[str, Any]:
        assert said.probabilities is not None
        probabilities, choice = said.probabilities[row], said.choice[row]
        order = np.argsort(-probabilities, kind="stable")
        labels = self.model.labels
        return {
            "label": labels[choice],
            "probability": round(float(probabilities[choice]), 6),
            "abstained": bool(said.abstained[row]),
            "top": [
                {"label": labels[one], "probability": round(float(probabilities[one]), 6)}
                for one in order[: max(top, 0)]
            ],
        }


def model_id(folder: Path) -> str:
    """Digest of weights, tokenizer and calibration, 16 hexadecimal digits."""
    return digest(folder, [folder / name for name in (WEIGHTS, TOKENIZER, MODEL)])[:16]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)
    path.write_text(text, encoding="utf-8")
