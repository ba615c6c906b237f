"""The only file that talks to MLflow: runs, figures, models, the registry and its aliases."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# Whatever the environment says: opening a pickle runs whatever code it holds.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# The schema's migrations and every model logged are announced otherwise.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow's own patience is minutes a call; after half a minute the stage is tried again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunInfo, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.uri import is_local_uri

from nightshift.errors import BundleError, ConfigError, PassingError
from nightshift.integrity import verify
from nightshift.pipeline import Settings, masked
from nightshift.tables import TableRef, digest_of

# Whole, before there are threads: MLflow's and Prefect's would else import halves of it at once.
import_module("sqlalchemy.orm")

log = logging.getLogger(__name__)

BUNDLE = "bundle"
"""The folder's name inside a logged model; MLflow keeps the name it is given."""
CHAMPION, CHALLENGER = "champion", "challenger"
BUNDLE_TAG, MODEL_TAG = "nightshift.bundle", "nightshift.model_id"
MODEL_REF_TAG = "nightshift.model"
STUDY_TAG, NIGHT_TAG, PRUNED_TAG = "nightshift.study", "nightshift.night", "nightshift.pruned"
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""How MLflow says that a model, version or alias is not there."""


@dataclass(frozen=True)
class Tracking:
    """One night's MLflow run."""

    uri: str = field(repr=False)
    run_id: str

    @property
    def _client(self) -> MlflowClient:
        # The registry is named, too: MLflow would else take the one this process used last.
        return MlflowClient(self.uri, self.uri)

    def figures(self, figures: dict[str, float], step: int = 0, run_id: str | None = None) -> None:
        """Log numbers in one call."""
        now = int(time.time() * 1000)
        metrics = [Metric(_name(key), float(value), now, step) for key, value in figures.items()]
        with _passing("logging figures"):
            self._client.log_batch(run_id or self.run_id, metrics=metrics)

    def params(self, params: dict[str, Any], run_id: str | None = None) -> None:
        """Log parameters, nested ones by dotted names, in one call."""
        flat = [Param(_name(key), str(value)[:5900]) for key, value in _flat(params)]
        with _passing("logging parameters"), _same_again():
            self._client.log_batch(run_id or self.run_id, params=flat)

    def text(self, text: str, name: str) -> None:
        """Keep a page or a picture beside the run."""
        with _passing(f"keeping {name}"):
            self._client.log_text(self.run_id, text, name)

    def keep(self, folder: Path, name: str) -> str:
        """Keep a folder as an artifact of the night; returns the URI to fetch it by."""
        with _passing(f"keeping {name}"):
            self._client.log_artifacts(self.run_id, str(folder), name)
        return f"runs:/{self.run_id}/{name}"

    def fetch(self, uri: str) -> Path:
        """The folder behind an artifact's URI, on this machine until `put_away`; fetched once."""
        with _passing(f"fetching {uri}"):
            return _fetched(self.uri, uri)

    def read_from(self, refs: list[TableRef], lake_root: str, context: str) -> None:
        """Note which table versions a stage read: MLflow's datasets."""
        from mlflow.data.delta_dataset_source import DeltaDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for ref in refs:
            source = DeltaDatasetSource(
                path=f"{masked(lake_root)}/{ref.table}", delta_table_version=ref.version
            )
            # MLflow keeps the first source of a name and digest: that of rows is of many versions.
            digest = digest_of([ref.version, ref.digest])
            dataset = MetaDataset(source, name=ref.table, digest=digest)
            tags = [InputTag("mlflow.data.context", context)]
            inputs.append(DatasetInput(dataset._to_mlflow_entity(), tags))
        with _passing("logging datasets"):
            self._client.log_inputs(self.run_id, inputs)

    @contextmanager
    def attempt(self, name: str, params: dict[str, Any]) -> Iterator[str]:
        """A nested run for one try of a stage, with the machine's figures; yields its id."""
        mlflow.set_tracking_uri(self.uri)
        with _passing(f"logging the run {name}", (MlflowException,)):
            experiment = self._client.get_run(self.run_id).info.experiment_id
            _close_attempts(self._client, experiment, self.run_id)
            with mlflow.start_run(
                run_name=name,
                experiment_id=experiment,
                parent_run_id=self.run_id,
                nested=True,
                log_system_metrics=True,
            ) as run:
                self.params(params, run.info.run_id)
                yield run.info.run_id

    def open_child(self, name: str, tags: dict[str, str]) -> str:
        """A nested run, open until `close`, beside others that are; returns its id."""
        with _passing(f"opening the run {name}"):
            experiment = self._client.get_run(self.run_id).info.experiment_id
            tags = {**tags, "mlflow.parentRunId": self.run_id}
            return self._client.create_run(experiment, run_name=name, tags=tags).info.run_id

    def close(self, run_id: str, state: str) -> None:
        """Close a nested run as FINISHED, FAILED or KILLED."""
        with _passing("closing a run"):
            self._client.set_terminated(run_id, state)

    def file(self, path: Path, name: str) -> None:
        """Keep one file beside the run, in the folder `name`."""
        with _passing(f"keeping {path.name}"):
            self._client.log_artifact(self.run_id, str(path), name)

    def finish_if_open(self) -> None:
        """Close the run as FINISHED where a killed process left it open."""
        with _passing(f"opening MLflow at {masked(self.uri)}"):
            run = _run_if_any(self._client, self.run_id)
            if run is not None and run.status == "RUNNING":
                _close_attempts(self._client, run.experiment_id, self.run_id)
                self._client.set_terminated(self.run_id, "FINISHED")

    def finish(self, state: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        with _passing(f"closing the run at {masked(self.uri)}"):
            self._client.set_terminated(self.run_id, state)

    def link(self) -> str:
        """Where a person finds the run: a URL on a server, else the command that shows it."""
        with _passing(f"opening MLflow at {masked(self.uri)}"):
            run = self._client.get_run(self.run_id)
        if self.uri.startswith("http"):
            # Without a login, which a browser asks for by itself.
            place = re.sub(r"://[^/]*@", "://", self.uri)
            return f"{place}/#/experiments/{run.info.experiment_id}/runs/{self.run_id}"
        return f"run {self.run_id} in {masked(self.uri)}"


@dataclass(frozen=True)
class Registry:
    """MLflow's model registry: one registered model per pipeline."""

    uri: str = field(repr=False)

    @property
    def _client(self) -> MlflowClient:
        # Said twice: the second is else what some other call last made MLflow's default.
        return MlflowClient(self.uri, self.uri)

    def register(
        self,
        run_id: str,
        pipeline: str,
        folder: Path,
        digest: str,
        tags: dict[str, str],
        requirements: list[str],
    ) -> int:
        """Register a bundle as a version, once: the same digest finds the version again."""
        known = self._version_of(pipeline, digest)
        if known is not None:
            return known
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        with _passing("registering the model"), _quiet():
            with suppress(MlflowException):
                self._client.create_registered_model(
                    pipeline, description="Nightshift: labels and clusters of this pipeline's text."
                )
            logged = _log_pyfunc(run_id, folder, requirements)
            version = self._client.create_model_version(
                pipeline,
                logged.model_uri,
                run_id=run_id,
                model_id=logged.model_id,
                tags={**tags, BUNDLE_TAG: digest},
            )
        return int(version.version)

    def _version_of(self, pipeline: str, digest: str) -> int | None:
        with _passing("searching the registry"):
            found = self._client.search_model_versions(
                f"name = '{pipeline}' and tags.`{BUNDLE_TAG}` = '{digest}'"
            )
        return max((int(one.version) for one in found), default=None)

    def tag(self, pipeline: str, version: int, said: dict[str, str]) -> None:
        """Write down on a version what was decided about it, and why."""
        with _passing(f"tagging version {version}"):
            for key, value in said.items():
                self._client.set_model_version_tag(
                    pipeline, str(version), f"nightshift.{key}", value[:5000]
                )

    def tags(self, pipeline: str, version: int) -> dict[str, str] | None:
        """What is written down on a version; None where there is no such version."""
        with _passing(f"asking for version {version}"), _quiet():
            try:
                return dict(self._client.get_model_version(pipeline, str(version)).tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def alias(self, pipeline: str, alias: str, version: int) -> None:
        """Point an alias at a version; nothing is sent when it points there already."""
        with _passing(f"setting the alias {alias}"):
            with suppress(MlflowException):
                there = self._client.get_model_version_by_alias(pipeline, alias)
                if int(there.version) == version:
                    return
            self._client.set_registered_model_alias(pipeline, alias, str(version))


@dataclass(frozen=True)
class Attic:
    """What a pipeline's past nights left in MLflow: looked at, closed, thrown away."""

    uri: str
    pipeline: str

    @property
    def _client(self) -> MlflowClient:
        return MlflowClient(self.uri, self.uri)

    def size_of_version(self, version: int, with_model: bool) -> tuple[int, int]:
        """Files and bytes of a version; `with_model`, of what its training kept, too."""
        with _passing(f"looking at version {version}"), _quiet():
            found = [self._logged(version), self._trained(version) if with_model else None]
            sizes = [size for place in found if place for size in _sizes(self.uri, *place)]
        return len(sizes), sum(sizes)

    def remove_version(self, version: int, models: Collection[str]) -> None:
        """Delete a version and its files, and what its training kept if its model is one of
        `models`; harmless to repeat, as the version goes last."""
        with _passing(f"deleting version {version}"), _quiet():
            tags = self._client.get_model_version(self.pipeline, str(version)).tags
            trained = self._trained(version) if tags.get(MODEL_TAG) in models else None
            for place in (self._logged(version), trained):
                if place is not None:
                    _delete(self.uri, *place)
            logged = self._client.get_model_version(self.pipeline, str(version)).model_id
            if logged:
                with suppress(MlflowException):
                    self._client.delete_logged_model(logged)
            self._client.delete_model_version(self.pipeline, str(version))

    def full_runs(self) -> set[str]:
        """Runs whose files were not thrown away yet."""
        return {run.info.run_id for run in self._runs() if PRUNED_TAG not in run.data.tags}

    def size_of_run(self, run_id: str) -> tuple[int, int]:
        """Files and bytes of a run, models aside."""
        with _passing(f"looking at run {run_id}"), _quiet():
            place = self._client.get_run(run_id).info.artifact_uri or ""
            sizes = [size for top in self._loose(run_id) for size in _sizes(self.uri, place, top)]
        return len(sizes), sum(sizes)

    def empty_run(self, run_id: str) -> None:
        """Delete a run's files, models aside; harmless to repeat."""
        with _passing(f"emptying run {run_id}"), _quiet():
            place = self._client.get_run(run_id).info.artifact_uri or ""
            for top in self._loose(run_id):
                _delete(self.uri, place, top)
            self._client.set_tag(run_id, PRUNED_TAG, time.strftime("%Y-%m-%d"))

    def open_runs(self) -> dict[str, str]:
        """Runs that MLflow believes to be running, nested ones too, and their names."""
        found = (run for run in self._runs() if run.info.status == "RUNNING")
        return {run.info.run_id: run.info.run_name or "" for run in found}

    def close_run(self, run_id: str, state: str) -> None:
        """Close a run that nobody works on any more."""
        with _passing(f"closing run {run_id}"), _quiet():
            self._client.set_terminated(run_id, state)

    def aliases(self) -> dict[str, int]:
        """The versions behind the registered model's aliases; empty without one."""
        with _passing(f"asking MLflow at {masked(self.uri)} for aliases"), _quiet():
            try:
                found = self._client.get_registered_model(self.pipeline).aliases
            except MlflowException as error:
                if error.error_code not in ABSENT:
                    raise
                return {}
        return {name: int(version) for name, version in found.items()}

    def page(self, run_id: str, name: str) -> str | None:
        """A text that a run keeps; None without it."""
        with tempfile.TemporaryDirectory() as folder, suppress(MlflowException, OSError), _quiet():
            path = self._client.download_artifacts(run_id, name, folder)
            return Path(path).read_text(encoding="utf-8")
        return None

    def _runs(self) -> Iterator[Any]:
        with _store_lock(self.uri), _passing(f"opening MLflow at {masked(self.uri)}"), _quiet():
            experiment = self._client.get_experiment_by_name(self.pipeline)
            token = None
            while experiment is not None:
                page = self._client.search_runs(
                    [experiment.experiment_id], max_results=1000, page_token=token
                )
                yield from page
                token = page.token
                if not token:
                    return

    def _loose(self, run_id: str) -> list[str]:
        return [
            one.path for one in self._client.list_artifacts(run_id) if one.path not in _OF_MODELS
        ]

    def _logged(self, version: int) -> tuple[str, str] | None:
        """Where a version's own files are."""
        model_id = self._client.get_model_version(self.pipeline, str(version)).model_id
        if not model_id:
            return None
        with suppress(MlflowException):
            return self._client.get_logged_model(model_id).artifact_location, ""
        return None

    def _trained(self, version: int) -> tuple[str, str] | None:
        """Where the run that trained a version's model keeps it."""
        ref = self._client.get_model_version(self.pipeline, str(version)).tags.get(MODEL_REF_TAG)
        found = re.match(r"runs:/([^/]+)/(.+)", json.loads(ref)["uri"]) if ref else None
        if not found:
            return None
        return self._client.get_run(found[1]).info.artifact_uri or "", found[2]


_OF_MODELS = ("models", BUNDLE)


def _repository(uri: str, place: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=uri)


def _sizes(uri: str, place: str, path: str) -> Iterator[int]:
    """Bytes of every file at or below a path of an artifact store; nothing where it is gone."""
    repository = _repository(uri, place)
    found = repository.list_artifacts(path or None)
    if not found and path:
        above = repository.list_artifacts(path.rpartition("/")[0] or None)
        found = [one for one in above if one.path == path and not one.is_dir]
    for one in found:
        if one.is_dir:
            yield from _sizes(uri, place, one.path)
        else:
            yield int(one.file_size or 0)


def _delete(uri: str, place: str, path: str) -> None:
    repository = _repository(uri, place)
    if any(True for _ in _sizes(uri, place, path)):
        repository.delete_artifacts(path or None)


def _log_pyfunc(run_id: str, folder: Path, requirements: list[str]) -> Any:
    """Log the bundle as a model from code: plain files and a script, nothing pickled."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    likely = Object([Property("label", DataType.string), Property("probability", DataType.double)])
    answer: dict[str, Any] = {
        **dict.fromkeys(("label", "cluster_id", "cluster_name", "error"), DataType.string),
        **dict.fromkeys(("probability", "distance"), DataType.double),
        "abstained": DataType.boolean,
        "top": Array(likely),
        "vector": Array(DataType.double),
    }
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "text")]),
        # Of each some answers have none: without a classifier a label, of a bad text everything.
        outputs=Schema([ColSpec(kind, name, required=False) for name, kind in answer.items()]),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.long, 3),
                ParamSpec("embeddings", DataType.boolean, False),
            ]
        ),
    )
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(), _uncompiled():
        # It asks for type hints, which would make it guess the signature that is given here.
        warnings.filterwarnings("ignore", message=".*type hints.*")
        return mlflow.pyfunc.log_model(
            name=BUNDLE,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={BUNDLE: str(folder)},
            signature=signature,
            input_example=pd.DataFrame({"text": ["a text to classify"]}),
            pip_requirements=requirements,
        )


def open_run(
    settings: Settings, pipeline: str, night: str, run_id: str | None, tags: dict[str, str]
) -> Tracking:
    """Open a night's run, or go on with the one an earlier try left."""
    # Several processes that meet a fresh SQLite store crash in its migration.
    with (
        _store_lock(settings.mlflow),
        _passing(f"opening MLflow at {masked(settings.mlflow)}"),
        _quiet(),
    ):
        client = MlflowClient(settings.mlflow, settings.mlflow)
        experiment = client.get_experiment_by_name(pipeline)
        if experiment is None:
            root = _artifact_root(settings.mlflow, pipeline)
            experiment_id = client.create_experiment(pipeline, artifact_location=root)
        else:
            experiment_id = experiment.experiment_id
        run_id = run_id or _left_open(client, experiment_id, night)
        if run_id is not None and _run_if_any(client, run_id) is not None:
            client.update_run(run_id, status="RUNNING")
            _close_attempts(client, experiment_id, run_id)
            for key, value in tags.items():  # another flow run goes on with it
                client.set_tag(run_id, key, value)
            return Tracking(settings.mlflow, run_id)
        run = client.create_run(experiment_id, run_name=night, tags=tags)
    return Tracking(settings.mlflow, run.info.run_id)


def _run_if_any(client: MlflowClient, run_id: str) -> RunInfo | None:
    try:
        return client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def _left_open(client: MlflowClient, experiment_id: str, night: str) -> str | None:
    """The run of a night that was killed before it could note which run it has."""
    open_one = f"tags.`{NIGHT_TAG}` = '{night}' and attributes.status = 'RUNNING'"
    found = client.search_runs([experiment_id], open_one, max_results=1)
    return found[0].info.run_id if found else None


def run_of_study(uri: str, pipeline: str, study: str) -> str | None:
    """The run that was opened with this tag of a study; None without one."""
    with _store_lock(uri), _passing(f"opening MLflow at {masked(uri)}"), _quiet():
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name(pipeline)
        if experiment is None:
            return None
        tagged = f"tags.`{STUDY_TAG}` = '{study}'"
        found = client.search_runs([experiment.experiment_id], tagged, max_results=1)
    return found[0].info.run_id if found else None


def _close_attempts(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Nested runs that a killed process left open."""
    open_ones = f"tags.mlflow.parentRunId = '{run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], open_ones):
        client.set_terminated(run.info.run_id, "KILLED")


def open_store(uri: str) -> None:
    """Make the store ready to answer; a new SQLite file takes MLflow three seconds to lay out."""
    with _store_lock(uri), _passing(f"opening MLflow at {masked(uri)}"), _quiet():
        MlflowClient(uri, uri).search_experiments(max_results=1)


def be_brief() -> None:
    """Ask a server twice at most, where the environment does not say otherwise: somebody waits."""
    if os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4":
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def reach(uri: str) -> str:
    """What is found at a tracking URI, in words; raises PassingError when nothing answers."""
    be_brief()
    with _store_lock(uri), _passing(f"opening MLflow at {masked(uri)}"), _quiet():
        client = MlflowClient(uri, uri)
        experiments = len(client.search_experiments())
        models = len(client.search_registered_models())
    return f"{experiments} experiments, {models} registered models"


def bundle_digest(uri: str, pipeline: str, version: int) -> str | None:
    """The digest of a registered version's bundle; None where the registry has no such version."""
    with _passing(f"asking MLflow at {masked(uri)} for version {version}"), _quiet():
        client = MlflowClient(uri, uri)
        found = client.search_model_versions(f"name = '{pipeline}' and version_number = {version}")
    return found[0].tags.get(BUNDLE_TAG) if found else None


def versions_of(uri: str, pipeline: str) -> list[dict[str, Any]]:
    """Every registered version: its number, model_id, night and run, the oldest first."""
    with _store_lock(uri), _passing(f"asking MLflow at {masked(uri)} for its versions"), _quiet():
        found = MlflowClient(uri, uri).search_model_versions(
            f"name = '{pipeline}'", max_results=10_000
        )
    rows = [
        {
            "version": int(one.version),
            "model_id": one.tags.get(MODEL_TAG),
            "night": one.tags.get("nightshift.night"),
            "run": one.run_id,
        }
        for one in found
    ]
    return sorted(rows, key=lambda row: row["version"])


def rewrite_artifacts(
    uri: str, pipeline: str, kinds: Collection[str], edit: Callable[[str, str], str]
) -> list[str]:
    """Edit what a pipeline's runs keep, models aside; returns `run/path` of all that changed.

    Args: endings of the files to look at; their text and ending -> the text to keep instead.
    """
    changed: list[str] = []
    with _passing(f"cleaning what MLflow at {masked(uri)} keeps"), _quiet():
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name(pipeline)
        if experiment is None:
            return []
        for run_id in _runs(client, experiment.experiment_id):
            for path in _files(client, run_id):
                if Path(path).suffix not in kinds:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    there = client.download_artifacts(run_id, path, folder)
                    # Whatever somebody keeps there: what is no UTF-8 stops no forgetting.
                    before = Path(there).read_text(encoding="utf-8", errors="replace")
                after = edit(before, Path(path).suffix)
                if after != before:
                    client.log_text(run_id, after, path)
                    changed.append(f"{run_id}/{path}")
    return changed


def _runs(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    """All runs of an experiment, those that were deleted, too."""
    token = None
    while True:
        page = client.search_runs([experiment_id], "", ViewType.ALL, 1000, page_token=token)
        yield from (run.info.run_id for run in page)
        token = page.token
        if not token:
            return


def _files(client: MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    """Paths of a run's artifacts; models, whose files belong together, are left out."""
    for one in client.list_artifacts(run_id, folder):
        if one.is_dir and one.path not in ("models", BUNDLE):
            yield from _files(client, run_id, one.path)
        elif not one.is_dir:
            yield one.path


def champion_version(uri: str, pipeline: str) -> int | None:
    """The version behind the alias `champion`; None without one.

    Raises: PassingError when the registry does not answer.
    """
    with _passing(f"asking MLflow at {masked(uri)} for the champion"), _quiet():
        try:
            return int(
                MlflowClient(uri, uri).get_model_version_by_alias(pipeline, CHAMPION).version
            )
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise


def champion_bundle(uri: str, pipeline: str) -> tuple[int, Path] | None:
    """Version and folder of the bundle behind the alias `champion`; None without one.

    Raises: as `champion_version` and `bundle_of`.
    """
    number = champion_version(uri, pipeline)
    return None if number is None else (number, bundle_of(uri, pipeline, number))


def bundle_of(uri: str, pipeline: str, version: int, to: Path | None = None) -> Path:
    """The bundle's folder of a registered version: below `to`, or where it is, or, of another
    machine, a copy until `put_away`.

    Raises: ConfigError for a version that does not exist, BundleError when its files are not those
    that were registered, PassingError when the registry or its store does not answer.
    """
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client, source = MlflowClient(uri, uri), f"models:/{pipeline}/{version}"
    with _passing(f"fetching version {version} of {pipeline} from {masked(uri)}"), _quiet():
        try:
            tags = client.get_model_version(pipeline, str(version)).tags
            kept = client.get_model_version_download_uri(pipeline, str(version))
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            raise ConfigError(
                f"{pipeline}: found no version {version} in {masked(uri)}. "
                f"`nightshift status {pipeline}` lists those of its nights under `model`."
            ) from error
        if to is None and not is_local_uri(kept, is_tracking_or_registry_uri=False):
            to = Path(_on_the_shelf())
        there = mlflow.artifacts.download_artifacts(source, dst_path=str(to) if to else None)
    folder = Path(there) / "artifacts" / BUNDLE
    found, registered = verify(folder), tags.get(BUNDLE_TAG)
    if found != registered:
        raise BundleError(
            f"version {version} of {pipeline}: found files with the digest {found[:8]}, but the "
            f"registry expects {(registered or 'none')[:8]}: they are another bundle's, or were "
            "altered. Roll back to another version, or run a night that registers a new one."
        )
    return folder


def _artifact_root(uri: str, pipeline: str) -> str | None:
    """Artifacts beside a SQLite file: MLflow's default is the folder one happens to stand in."""
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///"))
    return (database.parent / "mlflow-artifacts" / pipeline).as_uri()


@contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    import fcntl

    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        handle = database.with_suffix(".lock").open("w")
    except OSError as error:
        raise PassingError(
            f"opening MLflow at {uri}: {error}. Make the folder writable."
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _passing(
    doing: str, kinds: tuple[type[Exception], ...] = (OSError, MlflowException)
) -> Iterator[None]:
    """A store that does not answer is worth a retry; a request it refuses is a bug of ours."""
    try:
        yield
    except kinds as error:
        raise PassingError(
            f"{doing}: {_why(error)} Yesterday stays published; run the night again when MLflow "
            "answers."
        ) from error


def _why(error: Exception) -> str:
    """An error's first line; of a server that does not answer, which one, without how often it was
    asked and by which objects."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    silent = re.search(r"API request to (\S+?)/api/\S+ failed with exception", line)
    return f"MLflow's server at {masked(silent[1])} does not answer." if silent else line


@contextmanager
def _same_again() -> Iterator[None]:
    """A resumed night logs its parameters again; MLflow keeps the first and refuses others."""
    try:
        yield
    except MlflowException as error:
        if "Changing param values" not in str(error):
            raise
        log.info("parameters differ from the first try of this night; MLflow keeps the first")


@contextmanager
def _quiet() -> Iterator[None]:
    """Alembic and MLflow announce themselves; a night's log is for its reader."""
    names = ["alembic", "mlflow", "mlflow.store.db.utils"]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """MLflow runs a model's script in the folder that it registers: what Python compiles of it
    would be registered as well, and be run instead of the script that a person can read."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _flat(params: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _name(key: str) -> str:
    """MLflow allows letters, digits, _ - . / : and spaces in names."""
    return "".join(one if one.isalnum() or one in "_-./: " else "_" for one in key)[:250]


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a model's files on their way to or from MLflow."""
    return tempfile.TemporaryDirectory(prefix="nightshift-")


@cache
def _shelf() -> tempfile.TemporaryDirectory[str]:
    """What this process fetched; left alone, MLflow makes a folder for each that nobody removes."""
    return tempfile.TemporaryDirectory(prefix="nightshift-", ignore_cleanup_errors=True)


def _on_the_shelf() -> str:
    return tempfile.mkdtemp(dir=_shelf().name)


@cache
def _fetched(store: str, uri: str) -> Path:
    found = mlflow.artifacts.download_artifacts(uri, dst_path=_on_the_shelf(), tracking_uri=store)
    return Path(found)


def put_away() -> None:
    """Remove what this process fetched from MLflow, when nothing reads it any more: a process works
    one night at a time. What is left at its end goes then, unless it is killed."""
    shelf = _shelf() if _shelf.cache_info().currsize else None
    _shelf.cache_clear()
    _fetched.cache_clear()
    if shelf is not None:
        shelf.cleanup()
