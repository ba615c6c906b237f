"""pipelines.yaml as Prefect deployments: which there should be, and which there are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows import automations, night, parts, watching
from flows.environment import THREADS
from flows.reaching import TAG, server
from nightshift.errors import ConfigError
from nightshift.pipeline import CHANGEABLE, Pipeline, Settings
from nightshift.schedule import ANCHOR, ScheduleConfig, interval_of
from nightshift.tables import digest_of
from tasks.stage import STAGES

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.flows import Flow

POOL = "nightshift"
"""The work pool of `nightshift up`."""
PER_PIPELINE: tuple[Flow[..., Any], ...] = (
    night.night, parts.ingest, parts.train, parts.reclassify, parts.recluster, parts.report,
    parts.backfill, parts.tune, parts.replay, parts.promote, parts.rollback,
)  # fmt: skip
ENVIRONMENT = {
    # A worker that was started by Prefect's own command knows nothing of ours.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "nightshift,tasks,flows",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    **THREADS,
}
HELP = {
    "pipeline": "A pipeline of the file.",
    "night": "The night's name; by default today's local date.",
    "retry_from": "Do this stage of an unfinished night and all after it again.",
    "changes": "For this run alone; what is left as it is follows the file. It is kept with the "
    "night.",
    "force": "Also when train.when sees no reason.",
    "which": "What the champion has not read, everything, or a window of days.",
    "first": "The first day, as 2026-11-22.",
    "last": "The last day, as 2026-11-24.",
    "trials": "Recipes to try in all, else tune.trials.",
    "processes": "Trials at the same time, else tune.processes.",
    "restart": "Forget the trials of earlier runs.",
    "version": "A version of the registry.",
    "to": "A version that was champion; by default the last other model.",
    "reason": "Why, for whoever asks later.",
    "by": "Who says so.",
    "config": "The pipelines file, as the worker finds it.",
}
"""What Prefect's form says under each field; other parameters are the program's own."""


@dataclass(frozen=True)
class Declared:
    """A deployment as it should be."""

    flow: str
    name: str
    entrypoint: str
    description: str
    tags: list[str]
    parameters: dict[str, Any]
    schema: dict[str, Any]
    pool: str
    schedules: list[DeploymentScheduleCreate] = field(default_factory=list)

    @property
    def title(self) -> str:
        """As Prefect names it: `night/headlines`."""
        return f"{self.flow}/{self.name}"

    def facts(self) -> dict[str, Any]:
        """What is compared with the server's, by the words a person knows it by."""
        return _facts(self, self.pool, self.schema)


@dataclass(frozen=True)
class Step:
    """What deploying does, or would do, about one deployment."""

    title: str
    what: str
    """new, changed, unchanged, gone (left alone) or removed."""
    why: list[str]
    """Of a changed one: the facts that differ, with before and after where they are short."""


def deploy(
    settings: Settings,
    config: str,
    dry_run: bool = False,
    prune: bool = False,
    pool: str | None = None,
    force: bool = False,
) -> list[Step]:
    """Make the server's deployments those of the pipelines file; repeating it changes nothing.

    Args: the file's path as workers find it; whether deployments of pipelines that left the file
    are removed; a pool for all of them, whatever the file says; whether deployments of another file
    are taken over.
    Raises: ConfigError where another file has a pipeline of the same name there; as `server`.
    """
    with server() as api:
        there = _ours(api)
        declared = [_apart(one, there) for one in declare(settings, config, pool)]
        before = [_found(api, there, one) for one in declared]
        if not force:
            _refuse_others(declared, before)
        steps = [_step(one, found) for one, found in zip(declared, before, strict=True)]
        if not dry_run:
            _make_pools(api, {one.pool for one in declared})
            for one, step in zip(declared, steps, strict=True):
                if step.what != "unchanged":
                    _write(api, one, step.what == "new")
        wanted = {one.title for one in declared}
        for title, one in sorted(there.items()):
            if title not in wanted and one.parameters.get("config") == config:
                if prune and not dry_run:
                    api.delete_deployment(one.id)
                steps.append(Step(title, "removed" if prune else "gone", []))
        its = _by_pipeline(settings, _ours(api))
    if prune:
        gone = {step.title.partition("/")[2] for step in steps if step.what == "removed"}
        its |= {key: list[UUID]() for key in gone - its.keys()}
    told = automations.declare(settings, its, dry_run)
    return steps + [Step(f"automation/{name}", what, []) for name, what in sorted(told.items())]


# --- as declared ----------------------------------------------------------------------------


def declare(settings: Settings, config: str, pool: str | None = None) -> Iterator[Declared]:
    """The deployments of a pipelines file: per pipeline the night and its parts, and the watcher.

    Args: the file's path as workers find it; a pool that stands for those of the file.
    """
    for name, pipeline in settings.pipelines.items():
        schedule = pipeline.schedule
        for flow in PER_PIPELINE:
            nightly = flow is night.night and schedule.is_set
            yield Declared(
                flow.name,
                name,
                f"{flow.fn.__module__}.{flow.fn.__name__}",
                (flow.description or "").split("\n\nArgs:")[0],
                sorted({TAG, name, *schedule.tags}),
                {"pipeline": name, "config": config},
                form(flow, name, pipeline, config),
                pool or schedule.work_pool or POOL,
                [as_prefect(schedule)] if nightly else [],
            )
    watched = [one for one in settings.pipelines.values() if one.is_watched]
    if watched:
        flow = watching.watch
        yield Declared(
            flow.name, Path(config).stem, f"{flow.fn.__module__}.{flow.fn.__name__}",
            flow.description or "", [TAG], {"config": config},
            form(flow, "", watched[0], config), pool or watched[0].schedule.work_pool or POOL,
        )  # fmt: skip


def as_prefect(schedule: ScheduleConfig) -> DeploymentScheduleCreate:
    """The schedule as Prefect keeps it; its runs ask which nights are due."""
    if schedule.cron:
        found: Any = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    elif schedule.every:
        # Elapsed time from its anchor: in UTC no change of clocks comes between.
        anchor = ANCHOR.replace(tzinfo=schedule.zone).astimezone(UTC)
        found = IntervalSchedule(
            interval=interval_of(schedule.every), anchor_date=anchor, timezone="UTC"
        )
    else:
        found = RRuleSchedule(rrule=schedule.rrule or "", timezone=schedule.timezone)
    return DeploymentScheduleCreate(
        schedule=found,
        active=not schedule.paused,
        parameters={"scheduled": True},
        slug="nightshift",
    )


def form(flow: Flow[..., Any], name: str, pipeline: Pipeline, config: str) -> dict[str, Any]:
    """The JSON Schema of a flow's parameters, from which Prefect makes its form."""
    schema = parameter_schema(flow.fn).model_dump(exclude_unset=True)
    fields: dict[str, Any] = {
        key: one for key, one in schema["properties"].items() if key in HELP
    }  # fmt: skip
    for key, one in fields.items():
        one["description"] = HELP[key]
    if "pipeline" in fields:
        fields["pipeline"] |= {"enum": [name], "default": name}
    fields["config"]["default"] = config
    if "retry_from" in fields:
        stages = {"type": "string", "enum": list(STAGES[1:])}
        fields["retry_from"] = {**fields["retry_from"], "anyOf": [stages, {"type": "null"}]}
    definitions = schema.get("definitions", {})
    if "changes" in fields:
        fields["changes"], more = _changes(pipeline, fields["changes"])
        definitions |= more
    required = [one for one in schema.get("required", []) if "default" not in fields[one]]
    return {**schema, "properties": fields, "required": required, "definitions": definitions}


def _changes(
    pipeline: Pipeline, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The config models as fields of the form, with the pipeline's own values as defaults."""
    whole = Pipeline.model_json_schema(ref_template="#/definitions/{model}")
    models, declared = whole["$defs"], pipeline.model_dump(mode="json", include={*CHANGEABLE})
    fields: dict[str, Any] = {}
    for part in CHANGEABLE:
        about = whole["properties"][part]
        model = copy.deepcopy(models[about["$ref"].rsplit("/", 1)[1]])
        for key, value in declared[part].items():
            model["properties"][key]["default"] = value
        # A partial: what is left out stays as the file says.
        model.pop("required", None)
        fields[part] = {**model, "title": part, "description": about.get("description", "")}
    changes = {
        "title": "changes",
        "type": "object",
        "description": given["description"],
        "position": given["position"],
        "properties": fields,
        "additionalProperties": False,
    }
    return changes, _reached(fields, models)


def _reached(schema: Any, models: dict[str, Any]) -> dict[str, Any]:
    """The definitions that a schema names, and those that they name."""
    found: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            name = str(one.get("$ref", "")).rsplit("/", 1)[-1]
            if name in models and name not in found:
                found[name] = models[name]
                waiting.append(models[name])
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return found


# --- on the server --------------------------------------------------------------------------


def _ours(api: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Every deployment with our tag, by `flow/name`."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found, flows = list[DeploymentResponse](), dict[UUID, str]()
    while page := api.read_deployments(
        deployment_filter=tagged, limit=100, offset=len(found)
    ):  # fmt: skip
        found += page
    for one in found:
        if one.flow_id not in flows:
            flows[one.flow_id] = api.read_flow(one.flow_id).name
    return {f"{flows[one.flow_id]}/{one.name}": one for one in found}


def _by_pipeline(settings: Settings, there: dict[str, DeploymentResponse]) -> dict[str, list[UUID]]:
    """The deployments of each pipeline of the file; a dry run may find none yet."""
    return {
        name: [one.id for one in there.values() if one.parameters.get("pipeline") == name]
        for name in settings.pipelines
    }


def _found(
    api: SyncPrefectClient, there: dict[str, DeploymentResponse], one: Declared
) -> DeploymentResponse | None:
    """The deployment of that name, tagged by us or not."""
    if one.title in there:
        return there[one.title]
    try:
        return api.read_deployment_by_name(one.title)
    except ObjectNotFound:
        return None


def _apart(one: Declared, there: dict[str, DeploymentResponse]) -> Declared:
    """The watcher, which is named after its file, under another name where a file of the same name
    in another folder has that one."""
    found, config = there.get(one.title), one.parameters["config"]
    if one.flow != watching.watch.name or found is None or _config_of(found) in (None, config):
        return one
    return replace(one, name=f"{one.name}-{digest_of(config)[:6]}")


def _config_of(found: DeploymentResponse) -> str | None:
    return found.parameters.get("config")


def _refuse_others(declared: list[Declared], before: list[DeploymentResponse | None]) -> None:
    """Leave the deployments of another pipelines file alone.

    Raises: ConfigError naming the first.
    """
    for one, found in zip(declared, before, strict=True):
        config = one.parameters["config"]
        other = _config_of(found) if found else None
        if other is not None and other != config:
            raise ConfigError(
                f"deploy: {one.title} on the Prefect server is of the file {other}, and this one "
                f"is {config}. Nothing was changed. Give the pipeline another name; or, if its "
                "file moved, or workers find it elsewhere now: nightshift deploy --force"
            )


def _step(one: Declared, found: DeploymentResponse | None) -> Step:
    if found is None:
        return Step(one.title, "new", [])
    now = one.facts()
    before = _facts(found, found.work_pool_name, found.parameter_openapi_schema or {})
    differing = [key for key in now if before[key] != now[key]]
    why = [
        key if key in ("form", "description") else f"{key}: {_short(before[key])} -> "
        f"{_short(now[key])}"
        for key in differing
    ]  # fmt: skip
    what = "changed" if why else "unchanged"
    paused = ["paused on Prefect's page, and left so"] if found.paused else []
    return Step(one.title, what, why + paused)


def _facts(one: Any, pool: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    kinds = (CronSchedule, IntervalSchedule, RRuleSchedule)
    return {
        "schedule": [
            {
                **each.schedule.model_dump(mode="json"),
                "active": each.active,
                "parameters": each.parameters,
            }
            for each in one.schedules
            if isinstance(each.schedule, kinds)
        ],
        "work pool": pool,
        "tags": sorted(one.tags),
        "parameters": one.parameters,
        "entrypoint": one.entrypoint,
        "description": one.description,
        "environment": getattr(one, "job_variables", {"env": ENVIRONMENT}),
        "form": schema,
    }


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(_short(one) for one in value)
    if isinstance(value, dict) and "active" in value:
        what = value.get("cron") or value.get("rrule") or f"every {value.get('interval')} s"
        return f"{what} {value.get('timezone')}{'' if value['active'] else ' (paused)'}"
    return str(value) if len(str(value)) < 80 else str(value)[:77] + "..."


def _make_pools(api: SyncPrefectClient, names: set[str]) -> None:
    """Pools that do not exist yet, of processes; one that does keeps its type."""
    for name in sorted(names):
        try:
            api.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            api.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template)
            )


def _write(api: SyncPrefectClient, one: Declared, new: bool) -> None:
    """Make or change a deployment; the switch on Prefect's page is a person's."""
    api.create_deployment(
        flow_id=api.create_flow_from_name(one.flow),
        name=one.name,
        entrypoint=one.entrypoint,
        description=one.description,
        tags=one.tags,
        parameters=one.parameters,
        parameter_openapi_schema=one.schema,
        enforce_parameter_schema=True,
        schedules=one.schedules,
        work_pool_name=one.pool,
        job_variables={"env": ENVIRONMENT},
        pull_steps=[],
        paused=False if new else None,
    )
