"""What makes a function a stage of the night: done once, retried, timed, logged.

A stage is done when the table `stages` has a row of its night with its digest: of its inputs, the
part of the config it reads, and the code. A kill between its last commit and that row repeats the
stage, which replaces the same rows. Prefect sees a task; whether it is done is ours to know.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, get_type_hints

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote
from pydantic import BaseModel, ConfigDict

import nightshift
from nightshift.errors import BundleError, PassingError
from nightshift.leases import on_device
from nightshift.machine import machine, of_torch
from nightshift.pipeline import Pipeline, Settings, config_to_keep
from nightshift.tables import Lake, TableRef, digest_of

from .tracking import Tracking, scratch

if TYPE_CHECKING:
    # torch takes a second to import, and a night without news needs none.
    from nightshift.bundle import Model

log = logging.getLogger(__name__)

STAGES = (
    "files", "ingest", "tokens", "train", "evaluate", "promote", "embed", "cluster", "report",
    "publish",
)  # fmt: skip
RETRY_DELAYS_SECONDS: list[float] = [2, 15, 60]
"""A server that is restarted, or a store that is away for a minute, costs no night."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""A disk that takes nothing more."""

GIVEN = "given"
"""Digest of a stage whose outcome was brought from elsewhere, and stands for its night."""
UNSTABLE = {"version", "uri", "run_id", "registry_version", "seconds", "modified"}
"""Keys of an outcome that differ between two equal nights."""


class Outcome(BaseModel):
    """What a stage hands on: references and figures, never rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    figures: dict[str, float] = {}
    """Numbers for MLflow and the status."""


class ModelRef(BaseModel):
    """A trained model: what it is, and where MLflow keeps it."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str
    uri: str
    kind: str
    """network; without a classifier, encoder (a network that learned clusters) or vectors."""


class Turn(BaseModel):
    """A person's decision that a night of its own carries out: this model answers from now on."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    kind: Literal["promote", "rollback"]
    version: int
    """Of the registry, as the person said."""
    model: ModelRef
    by: str
    reason: str
    runs: list[str] = []
    """Flow runs that were started for it; one that is given to another worker finds its night."""


class Asked(BaseModel):
    """What one night alone is asked for, beside what its pipeline declares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["night", "ingest", "train", "reclassify", "recluster"] = "night"
    """How much of a night: `ingest` takes files in, the others work on what is there."""
    force: bool = True
    """For `train`: also when `train.when` sees no reason."""
    which: Literal["new", "all", "window"] = "new"
    """For `reclassify`: what the champion has not read, everything, or a window of time."""
    first: date | None = None
    last: date | None = None
    """The window: of a document's event time, else of the night it came in; both days included."""
    until: datetime | None = None
    """Files that changed later wait for a later night."""
    changes: dict[str, Any] = {}
    """Keys of the pipeline's config that are other for this night."""
    cause: str = ""
    """What started it, in words, where nobody did."""
    runs: list[str] = []
    """Flow runs that were started for it; one that is given to another worker finds its night."""

    @property
    def reads_files(self) -> bool:
        """Whether files are taken in."""
        return self.part in ("night", "ingest")


@dataclass(frozen=True)
class Night:
    """One night of one pipeline, as every stage gets it."""

    pipeline_name: str
    pipeline: Pipeline
    settings: Settings
    name: str
    number: int
    tracking: Tracking
    previous: dict[str, Any] | None
    """The row of the newest published night, or None on the first."""
    redo: frozenset[str] = field(default_factory=frozenset)
    """Stages to do again although they are done."""
    turn: Turn | None = None
    """Where a person turned to another model: no file is read, and nothing trained."""
    asked: Asked = field(default_factory=Asked)
    """What is other this night."""
    waits: list[float] = field(default_factory=list[float], compare=False, repr=False)
    """Seconds for which the stage at work has waited for its device."""

    @functools.cached_property
    def lake(self) -> Lake:
        """The pipeline's tables."""
        return Lake(self.settings.lake, self.pipeline_name, self.settings.storage_options())

    @property
    def before(self) -> dict[str, Any]:
        """Figures of the newest published night."""
        return self.previous["figures"] if self.previous else {}

    @property
    def champion(self) -> ModelRef | None:
        """The model of the newest published night."""
        found = self.before.get("model")
        return ModelRef.model_validate(found) if found else None

    def load(self, ref: ModelRef) -> Model:
        """A model from where MLflow keeps it.

        Raises: BundleError where its files are not those that were kept.
        """
        from nightshift.bundle import Model, model_id

        folder = self.tracking.fetch(ref.uri)
        model = Model.load(folder)
        if model_id(folder) != ref.model_id:
            raise BundleError(
                f"{ref.uri}: found model {model_id(folder)}, expected {ref.model_id}: its files "
                "were altered. Put back what was there, or roll back to another version."
            )
        return model

    def keep(self, model: Model) -> ModelRef:
        """Give a model to MLflow."""
        with scratch() as folder:
            model_id = model.save(Path(folder))
            uri = self.tracking.keep(Path(folder), f"models/{model_id}")
        return ModelRef(model_id=model_id, uri=uri, kind=model.kind)

    @contextmanager
    def device(self) -> Iterator[None]:
        """Compute on the pipeline's device, on which no other pipeline then does."""
        from nightshift.inference import device_name

        wanted = self.pipeline.train.device
        with on_device(device_name(wanted), f"night {self.name} of {self.pipeline_name}") as waited:
            self.waits.append(waited)
            self._note(of_torch(wanted))
            yield

    def _note(self, used: dict[str, Any]) -> None:
        """Say in the manifest what the night is computed with, once it is."""
        row = next(one for one in self.lake.nights() if one["night"] == self.name)
        known = row["manifest"]["machine"]
        # A published night is closed, though its page be written again.
        if row["state"] == "running" and known | used != known:
            said = {**row["manifest"], "machine": known | used}
            self.lake.write_night({**row, "manifest": said})


Inputs = ParamSpec("Inputs")
Result = TypeVar("Result", bound=Outcome)
Stage = Callable[Concatenate[Night, Inputs], Result]


def stage(
    name: str, config: str = "", once: bool = False
) -> Callable[[Callable[Concatenate[Night, Inputs], Result]], Stage[Inputs, Result]]:
    """Make a function a stage.

    Args: its name; the keys of the pipeline's config it reads, by spaces; `once` for a stage whose
    first outcome stands for the whole night, whatever changes.
    """

    def decorate(work: Callable[Concatenate[Night, Inputs], Result]) -> Stage[Inputs, Result]:
        outcome: type[Result] = get_type_hints(work)["return"]

        @functools.wraps(work)
        def run(night: Night, *given: Inputs.args, **named: Inputs.kwargs) -> Result:
            digest = name if once else _digest(night, name, config, given)
            done = night.lake.stages(night.name).get(name)
            if done and done["digest"] in (digest, GIVEN) and name not in night.redo:
                log.info("%-9s done before, kept", name)
                return outcome.model_validate(done["outputs"])
            night.lake.check_held()
            night.waits.clear()
            with _room(name):
                started = time.perf_counter()
                result = work(night, *given, **named)
            # Another pipeline's hours on the device are none of this stage's.
            seconds = time.perf_counter() - started - sum(night.waits)
            night.tracking.figures(
                {f"{name}/{key}": value for key, value in result.figures.items()}
                | {f"seconds/{name}": seconds}
            )
            night.lake.write_stage(
                night.name,
                {
                    "stage": name,
                    "digest": digest,
                    "outputs": result.model_dump(mode="json"),
                    "figures": result.figures,
                    "seconds": seconds,
                    "at": datetime.now(UTC),
                },
            )
            return result

        made = task(
            name=name,
            task_run_name=name,
            retries=len(RETRY_DELAYS_SECONDS),
            retry_delay_seconds=RETRY_DELAYS_SECONDS,
            retry_condition_fn=_may_pass,
            cache_policy=NO_CACHE,
            persist_result=False,
        )(run)

        @functools.wraps(work)
        def begin(night: Night, *given: Inputs.args, **named: Inputs.kwargs) -> Result:
            # Prefect looks for other tasks' results in every setting; they are among the outcomes.
            return made(quote(night), *given, **named)  # pyright: ignore[reportArgumentType]

        return begin

    return decorate


@contextmanager
def _room(name: str) -> Iterator[None]:
    """A full disk is told as one; room may be made while the stage waits for its next try."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise PassingError(
            f"{name}: {error}. Nothing half-written is visible and yesterday stays published; make "
            "room, then run the night again: it goes on here."
        ) from error


def patiently(doing: Callable[[], Any]) -> Any:
    """The same patience for what stands outside of stages."""
    for delay in RETRY_DELAYS_SECONDS:
        try:
            return doing()
        except PassingError as error:
            log.warning("%s", error)
            time.sleep(delay)
    return doing()


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    """Only a store or server that did not answer is asked again; a bug would fail the same way."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, PassingError):
        log.warning("%s: %s", run.name, error)
        return True
    return False


def _digest(night: Night, name: str, config: str, given: tuple[Any, ...]) -> str:
    declared = night.pipeline.model_dump(mode="json", include=set(config.split()))
    before = night.previous["night"] if night.previous else None
    said = night.turn.model_dump(mode="json", exclude={"runs"}) if night.turn else None
    asked = night.asked.model_dump(mode="json", exclude={"changes", "cause", "runs"})
    stood = [stable(one) for one in given]
    return digest_of([name, before, declared, code_digest(), said, asked, stood])


def stable(value: Any) -> Any:
    """An outcome without what differs between two equal nights."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, TableRef):
        value = value.as_json()
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in UNSTABLE}
    if isinstance(value, list | tuple):
        return [stable(item) for item in value]
    return value


@cache
def code_files() -> dict[str, str]:
    """Digest of every file of the library and the tasks, by its name below the checkout."""
    return {
        f"{folder.name}/{file.name}": blake2b(file.read_bytes(), digest_size=8).hexdigest()
        for folder in (Path(nightshift.__file__).parent, Path(__file__).parent)
        for kind in ("*.py", "*.html", "*.css", "*.js")
        for file in sorted(folder.glob(kind))
    }


@cache
def code_digest() -> str:
    """Digest of the library's and the tasks' source: changed code makes stages undone."""
    return digest_of(code_files())[:16]


def manifest(pipeline: Pipeline) -> dict[str, Any]:
    """What it takes to work a night again, and to tell why it came out otherwise: its config, the
    code, the machine."""
    return {
        "config": config_to_keep(pipeline),
        "code": code_files(),
        "machine": machine() | pipeline.compute.about(),
    }


def code_version() -> str:
    """The library's version and the digest of its source, as in 0.1.0+3f2a."""
    return f"{nightshift.__version__}+{code_digest()[:8]}"
