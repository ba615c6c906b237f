"""A tiny corpus with three topics, and nights worked on it with real parts: an embedded Prefect, an
MLflow on SQLite, Delta tables in a folder."""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import prepare

SCRATCH = Path(tempfile.mkdtemp(prefix="nightshift-tests-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
# Before anything imports Prefect, which reads its settings once.
os.environ.pop("PREFECT_API_URL", None)
prepare(SCRATCH / "prefect")
# Tiny networks: threads that wait for one another cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TOPICS = {
    "cooking": "oven butter flour bake simmer garlic onion recipe dough pan roast salt taste stir",
    "sailing": "anchor sail mast harbour tide wind keel deck rope skipper wave port starboard hull",
    "chess": "pawn rook bishop queen castle gambit endgame check mate opening tempo knight board",
}
FILLER = "the a we then with some and later it was very good today again because nobody knew"

SMALL = {
    "tokenizer": {"vocabulary": 300},
    "model": {"hidden": 16, "embedding": 16, "vector": 16},
    "train": {"epochs": 6, "learning_rate": 0.02, "batch_tokens": 512},
    "clusters": {"k_max": 6},
    "report": {"map_points": 60, "explained": 1},
}


def texts(topic: str, count: int, seed: int = 0) -> list[str]:
    """Distinct short texts of a topic, always the same."""
    chance = random.Random(f"{topic}-{seed}")
    words = TOPICS[topic].split()
    found: dict[str, None] = {}
    while len(found) < count:
        picked = chance.choices(words, k=4) + chance.choices(FILLER.split(), k=5)
        chance.shuffle(picked)
        found[" ".join(picked)] = None
    return list(found)


def rows(
    count: int, seed: int = 0, topics: tuple[str, ...] = tuple(TOPICS)
) -> list[dict[str, Any]]:
    """`count` labelled rows of each topic."""
    return [
        {"text": text, "label": topic} for topic in topics for text in texts(topic, count, seed)
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: one that began last would keep the others waiting."""
    weight = Counter[Path]()
    for one in items:
        if one.get_closest_marker("slow"):
            weight[one.path] += 10 if one.get_closest_marker("timeout") else 1
    items.sort(key=lambda one: -weight[one.path])


@dataclass
class House:
    """A folder with a pipelines file and an inbox, in which nights can be worked."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    lake_uri: str = "lake"
    storage: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "pipelines.yaml"

    def declare(self, **changes: Any) -> None:
        """Write the pipelines file anew; keywords change the pipeline."""
        self.settings = {**self.settings, **changes}
        source = {"paths": ["inbox/*"], "text": "text", "label": "label"}
        pipeline = {
            **SMALL, **self.settings, "source": {**source, **self.settings.get("source", {})}
        }  # fmt: skip
        whole = {
            "lake": self.lake_uri,
            **({"storage": self.storage} if self.storage else {}),
            # One store for all tests: making a new one takes MLflow four seconds.
            "mlflow": f"sqlite:///{SCRATCH}/mlflow.db",
            "reports": "reports",
            "pipelines": {self.name: pipeline},
        }
        self.config.write_text(yaml.safe_dump(whole))

    @property
    def name(self) -> str:
        """The pipeline's name: the registry is shared, so each test has one of its own."""
        return self.folder.name.replace("_", "-").lower()[:60].strip("-")

    def drop(self, name: str, found: list[dict[str, Any]] | bytes) -> Path:
        """Put a file into the inbox, old enough not to look half-written."""
        path = self.folder / "inbox" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(found, bytes):
            path.write_bytes(found)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in found))
        old = time.time() - 3600
        os.utime(path, (old, old))
        return path

    def work(self, night: str, retry_from: str | None = None) -> Any:
        """Work a night in this process."""
        from flows.night import work

        return work(self.name, night, str(self.config), retry_from)

    def status(self) -> list[dict[str, Any]]:
        """What `status --json` prints."""
        from flows.reading import nights
        from nightshift.pipeline import load_settings

        return nights(load_settings(self.config), self.name)

    @property
    def lake(self) -> Any:
        from nightshift.tables import Lake

        local = "://" not in self.lake_uri
        return Lake(str(self.folder / "lake") if local else self.lake_uri, self.name, self.storage)

    def table(self, name: str) -> list[dict[str, Any]]:
        """A published table's rows."""
        return self.lake.read(name, version=self.lake.published()["versions"][name]).to_pylist()

    def digests(self, night: str) -> dict[str, Any]:
        """What every stage of a night left, without what differs between two equal nights."""
        from tasks.stage import stable

        return {name: stable(row["outputs"]) for name, row in self.lake.stages(night).items()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An empty house with the small recipe."""
    found = House(tmp_path)
    found.declare()
    (tmp_path / "inbox").mkdir()
    return found


@pytest.fixture(autouse=True)
def _logs_reach_caplog(request: pytest.FixtureRequest) -> None:
    # The command line takes the loggers for itself, and so does Prefect as it is imported; tests
    # want to read them.
    if "caplog" in request.fixturenames:
        importlib.import_module("prefect.main")
    for name in ("nightshift", "tasks", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).propagate = True
