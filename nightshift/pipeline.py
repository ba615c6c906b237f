"""pipelines.yaml <-> config models. Each stage's own config lives beside its code."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from .alerts import AlertConfig
from .checks import ChecksConfig
from .cleaning import CleaningConfig
from .clustering import ClusterConfig
from .compute import ComputeConfig
from .config import Config, build, expand_variables, merge, nearest, read_yaml
from .errors import ConfigError
from .evaluation import EvaluationConfig
from .journal import Journal, open_journal
from .promotion import PromotionConfig
from .recipe import (
    PREFIX,
    AnswerConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
    TuneConfig,
    WideConfig,
)
from .reports import ReportConfig
from .retention import KeepConfig
from .schedule import ScheduleConfig
from .showing import masked
from .sources import SLICES, SourceConfig
from .splits import SplitConfig
from .stores import S3, open_to_sources, problem_of
from .tables import digest_of
from .tokenizer import TokenizerConfig
from .triggers import TriggersConfig

OF_NO_NIGHT = {"webhook", "alerts", "keep", "tune", "schedule", "triggers", "compute"}
"""Keys that change nothing in a night's tables; secrets stand in some of them."""
MOST_BYTES = 4 << 20
"""Of a pipelines file; what is longer is something else, and may have no end."""
PIPELINE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Pipeline(Config):
    """A stream of texts that is worked on every night."""

    source: SourceConfig
    """Where the text comes from, and which columns hold what."""
    language: str = Field(default="auto", pattern=r"^(auto|[a-z]{2,3})$")
    """Language of every row as an ISO 639 code; auto detects it row by row."""
    cleaning: CleaningConfig = CleaningConfig()
    """What is done to a text before anything reads it."""
    splits: SplitConfig = SplitConfig()
    """Shares of validation, gate and test where the source declares no split."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """What a token is."""
    model: ModelConfig = ModelConfig()
    """The recurrent network."""
    pretrain: PretrainConfig = PretrainConfig()
    """What it learns from text alone."""
    train: TrainConfig = TrainConfig()
    """When a challenger is trained, and how."""
    wide: WideConfig = WideConfig()
    """The linear model beside it."""
    answers: AnswerConfig = AnswerConfig()
    """When nothing should be said, and which mistakes cost more."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is looked at beside the scores."""
    checks: ChecksConfig = ChecksConfig()
    """What it is expected to say, whatever its scores."""
    promotion: PromotionConfig = PromotionConfig()
    """When it replaces the champion."""
    clusters: ClusterConfig = ClusterConfig()
    """How documents are grouped."""
    report: ReportConfig = ReportConfig()
    """What the morning's page shows."""
    tune: TuneConfig = TuneConfig()
    """How `nightshift tune` looks for a better recipe."""
    schedule: ScheduleConfig = ScheduleConfig()
    """When its nights start by themselves."""
    triggers: TriggersConfig = TriggersConfig()
    """What else starts them."""
    keep: KeepConfig = KeepConfig()
    """What stays of past nights."""
    alerts: AlertConfig = AlertConfig()
    """What is told to people at once, and how it reaches them."""
    compute: ComputeConfig = ComputeConfig()
    """Where a night is computed."""
    when_busy: Literal["wait", "leave"] = "wait"
    """What a second night of this pipeline does while one runs."""
    webhook: SecretStr | None = None
    """URL that gets a JSON message for every alert (Slack reads its `text`)."""

    @model_validator(mode="after")
    def _floors_are_of_slices(self) -> Pipeline:
        known = [*SLICES, *self.source.columns]
        for kind in self.promotion.floors:
            if kind not in known:
                raise ValueError(f"promotion.floors: no slices by {kind!r}; {nearest(kind, known)}")
        return self

    @property
    def tells_late(self) -> bool:
        """Whether somebody wants to hear of a night that is due and does not come."""
        told = bool(self.webhook or self.alerts.email) and "late" in self.alerts.on
        return told and self.schedule.is_set and not self.schedule.paused

    @property
    def is_watched(self) -> bool:
        """Whether the watcher has anything to look at: a night of a schedule may die, too."""
        return self.triggers.is_set or (self.schedule.is_set and not self.schedule.paused)


class Settings(Config):
    """The whole of pipelines.yaml."""

    lake: str = "data/lake"
    """Folder or URI of the tables; a relative folder starts at this file."""
    mlflow: str = "sqlite:///data/mlflow.db"
    """MLflow tracking URI; also the registry."""
    reports: str = "data/reports"
    """Folder of the morning pages."""
    journal: SecretStr = SecretStr("")
    """What people say between nights: a Postgres URL, for people on several machines (secrets from
    ${VARIABLES}); else a SQLite file beside the tables."""
    lease_seconds: float = Field(default=60, ge=1)
    """A night that has given no sign of life for so long is taken over by another machine."""
    storage: dict[str, SecretStr] = Field(default_factory=dict)
    """Options of the tables' object store, such as AWS_ENDPOINT_URL; secrets from ${VARIABLES}."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Keys that every pipeline starts from."""
    pipelines: dict[str, Pipeline] = Field(min_length=1)
    """The pipelines by name."""

    @field_validator("pipelines")
    @classmethod
    def _names_fit_folders_and_urls(cls, found: dict[str, Pipeline]) -> dict[str, Pipeline]:
        for name in found:
            if not PIPELINE_NAME.fullmatch(name):
                raise ValueError(
                    f"pipeline name {name!r} must be lower-case letters, digits, - and _"
                )
        return found

    @field_validator("storage")
    @classmethod
    def _two_writers_are_safe(cls, found: dict[str, SecretStr]) -> dict[str, SecretStr]:
        problem = problem_of({key: value.get_secret_value() for key, value in found.items()})
        if problem:
            raise ValueError(problem)
        return found

    def pipeline(self, name: str) -> Pipeline:
        """A pipeline by name.

        Raises: ConfigError with the nearest known name.
        """
        if name not in self.pipelines:
            raise ConfigError(
                f"no pipeline '{name}' in pipelines.yaml; {nearest(name, self.pipelines)}"
            )
        return self.pipelines[name]

    def journal_of(self, pipeline: str) -> Journal:
        """The journal of a pipeline.

        Raises: ConfigError for a URL that is none of Postgres.
        """
        return open_journal(self.journal.get_secret_value(), self.lake, pipeline, self.reports)

    def storage_options(self) -> dict[str, str]:
        """The object store's options with their secrets in the open; never log them."""
        return {key: value.get_secret_value() for key, value in self.storage.items()}


def load_settings(path: Path) -> Settings:
    """Read a pipelines file; relative places in it start at its folder.

    Raises: ConfigError listing every problem with its line.
    """
    where = path.name
    try:
        with path.open("rb") as stream:
            read = stream.read(MOST_BYTES + 1)
        text = read.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). Give another with --config, or write one: "
            "`nightshift init FILE`."
        ) from error
    if len(read) > MOST_BYTES:
        raise ConfigError(f"{path}: found more than {MOST_BYTES} bytes, expected a pipelines file.")
    data, lines = read_yaml(text, where)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: found no keys, expected at least `pipelines:`. See README.")
    data = _with_defaults(expand_variables(data, where), lines, where)
    settings = build(Settings, data, where, lines)
    if any(S3.match(one) for its in settings.pipelines.values() for one in its.source.paths):
        open_to_sources(settings.storage_options())
    return _resolve(settings, path.resolve().parent)


def _with_defaults(
    data: dict[str, Any], lines: dict[tuple[str | int, ...], int], where: str
) -> dict[str, Any]:
    """Lay every pipeline on `defaults`; an error in them is reported on their own line."""
    defaults, pipelines = data.get("defaults") or {}, data.get("pipelines")
    if not isinstance(defaults, dict) or not isinstance(pipelines, dict):
        return data
    for path, line in list(lines.items()):
        if path[0] == "defaults":
            for name in pipelines:
                lines.setdefault(("pipelines", name, *path[1:]), line)
    merged = {
        str(name): merge(defaults, one if one is not None else {})
        if isinstance(one, dict | None)
        else one
        for name, one in pipelines.items()
    }
    return {**data, "pipelines": merged}


LOGIN = re.compile(r":[^/@]*@")


def _resolve(settings: Settings, folder: Path) -> Settings:
    """Make every relative place absolute."""

    def at(place: str, key: str = "source.paths") -> str:
        if "://" in place:
            return place
        if LOGIN.search(place):  # not shown: nobody knows where its password ends
            raise ConfigError(
                f"{key}: found what looks like an address with a login, but no ://, expected one "
                "such as postgresql://user:password@host/name, or a path. Correct it."
            )
        return str(folder / place)

    def source(one: Pipeline) -> Pipeline:
        paths = [at(path) for path in one.source.paths]
        model = one.model
        if model.embeddings not in ("learned", "corpus"):
            model = model.model_copy(update={"embeddings": at(model.embeddings)})
        _, _, place = model.encoder.partition(PREFIX)
        # A name of the hub looks like a folder; it is one where there is one.
        if place and (place.startswith(".") or (folder / place).is_dir()):
            model = model.model_copy(update={"encoder": f"{PREFIX}{folder / place}"})
        return one.model_copy(
            update={"source": one.source.model_copy(update={"paths": paths}), "model": model}
        )

    mlflow = settings.mlflow
    file = re.fullmatch(r"sqlite:///(?!/)(.+)", mlflow)
    if file:
        mlflow = f"sqlite:///{folder / file[1]}"
    elif "://" not in mlflow and not mlflow.startswith("databricks"):
        mlflow = at(mlflow, "mlflow")
    return settings.model_copy(
        update={
            "lake": at(settings.lake, "lake"),
            "reports": at(settings.reports, "reports"),
            "mlflow": mlflow,
            "pipelines": {name: source(one) for name, one in settings.pipelines.items()},
        }
    )


CHANGEABLE = (
    "cleaning", "tokenizer", "model", "pretrain", "train", "wide", "answers", "evaluation",
    "checks", "promotion", "clusters", "report",
)  # fmt: skip
"""Parts of a pipeline that one night alone may have otherwise; sides and sources stay."""


def changed(pipeline: Pipeline, changes: dict[str, Any]) -> Pipeline:
    """The pipeline with some keys otherwise, mapping by mapping.

    Raises: ConfigError naming each key that is unknown, may not change, or does not fit.
    """
    if not changes:
        return pipeline
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigError(
                f"changes: {key}: not a part that one night may have otherwise; "
                f"{nearest(key, CHANGEABLE)}"
            )
    declared = {name: getattr(pipeline, name) for name in Pipeline.model_fields}
    parts = pipeline.model_dump(include={*changes})
    return build(Pipeline, merge(declared, merge(parts, changes)), "changes", {})


def config_digest(pipeline: Pipeline) -> str:
    """Digest of everything declared about a pipeline's nights but its secrets."""
    return digest_of(config_to_keep(pipeline))


def config_to_keep(pipeline: Pipeline) -> dict[str, Any]:
    """The same in full, to be kept with a night: passwords in addresses are masked."""
    kept = pipeline.model_dump(mode="json", exclude=OF_NO_NIGHT)
    kept["source"]["paths"] = [masked(path) for path in pipeline.source.paths]
    kept["model"]["embeddings"] = masked(pipeline.model.embeddings)
    return kept


def json_schema() -> dict[str, Any]:
    """The JSON Schema of pipelines.yaml, for editors."""
    schema = Settings.model_json_schema()
    parts: dict[str, Any] = schema["$defs"]
    # Defaults are a pipeline of which nothing is required.
    for name in ("Pipeline", "SourceConfig"):
        partial = copy.deepcopy(parts[name])
        partial.pop("required", None)
        parts[f"{name}Defaults"] = partial
    parts["PipelineDefaults"]["properties"]["source"] = {"$ref": "#/$defs/SourceConfigDefaults"}
    schema["properties"]["defaults"] = {
        "$ref": "#/$defs/PipelineDefaults",
        "description": schema["properties"]["defaults"]["description"],
    }
    pipelines = schema["properties"]["pipelines"]
    pipelines["additionalProperties"] = {
        "anyOf": [{"$ref": "#/$defs/Pipeline"}, {"$ref": "#/$defs/PipelineDefaults"}]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "pipelines.yaml of Nightshift",
    }


def reference() -> str:
    """The reference page of pipelines.yaml in Markdown, made from the same models."""
    schema = json_schema()
    lines = [
        "# pipelines.yaml",
        "",
        "Made by `nightshift schema --page`; do not edit. All but `source.paths` has a default.",
        "`${NAME}` and `${NAME:-default}` in any value are taken from the environment. What stands",
        "under `defaults` is laid under every pipeline.",
    ]
    parts = schema["$defs"]
    _describe("The file", schema, parts, lines)
    _describe("A pipeline", parts["Pipeline"], parts, lines)
    for key, field in parts["Pipeline"]["properties"].items():
        if "$ref" in field:
            part = parts[field["$ref"].rsplit("/", 1)[1]]
            _describe(f"`{key}`", part, parts, lines)
            for inner, its in part["properties"].items():
                for one in its.get("anyOf", []):  # keys, or nothing
                    if "properties" in (inside := parts.get(_target(one), {})):
                        _describe(f"`{key}.{inner}`", inside, parts, lines)
    return "\n".join(lines) + "\n"


def _target(field: dict[str, Any]) -> str:
    """The part that a field refers to."""
    return field.get("$ref", "").rsplit("/", 1)[-1]


def _describe(title: str, part: dict[str, Any], parts: dict[str, Any], lines: list[str]) -> None:
    lines += ["", f"## {title}", "", part.get("description", ""), ""]
    lines += ["| key | values | default | what it does |", "|---|---|---|---|"]
    for key, field in part["properties"].items():
        shown = "" if "default" not in field or "$ref" in field else f"`{field['default']}`"
        if isinstance(field.get("default"), dict):
            shown = ""
        inside = parts.get(_target(field), {})
        said = field.get("description", inside.get("description", "")).replace("\n", " ")
        lines.append(f"| `{key}` | {_values(field)} | {shown} | {said} |".replace("  ", " "))


def _values(field: dict[str, Any]) -> str:
    """What a key may hold, in words."""
    if "anyOf" in field:
        return " or ".join(_values(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return "keys, below"
    if field.get("type") == "array":
        inside = _values(field["items"]).removesuffix(", below") if "items" in field else ""
        return f"list of {inside}" if inside else "list"
    names = {
        "integer": "whole number", "number": "number", "object": "keys", "null": "nothing",
        "string": "text", "boolean": "true or false",
    }  # fmt: skip
    kind = names.get(field.get("type", ""), "any")
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    return kind if low is None else f"{kind}, from {low}"
