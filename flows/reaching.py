"""The Prefect server: a client of it, or why there is none; runs that are started on it, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Crashed, Scheduled

from nightshift.errors import ConfigError, PassingError
from nightshift.pipeline import masked

TAG = "nightshift"
"""On every deployment and its runs."""
LOST = timedelta(hours=1)
"""A worker that took a run begins it within seconds."""


@dataclass(frozen=True)
class Cause:
    """Why a run is started by itself."""

    pipeline: str
    kind: str
    """new_files, new_labels, drift, registry, missed or unfinished."""
    flow: str
    key: str
    """The same for the same cause: Prefect starts one run for it, whoever asks how often."""
    words: str
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the Prefect server that PREFECT_API_URL names.

    Raises: ConfigError when none is named, PassingError when it does not answer or refuses.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError(
            "found no Prefect server: deployments live on one. Set PREFECT_API_URL, as "
            "http://127.0.0.1:4200/api, or start one with its schedules here: nightshift up"
        )
    try:
        with get_client(sync_client=True) as api:
            problem = api.api_healthcheck()
            if problem is not None:
                raise problem
            yield api
    except (PrefectException, OSError) as error:
        raise _unanswered(url, error) from error
    except Exception as error:
        # What Prefect's client raises where nobody listens is none of Prefect's errors.
        if "httpx" in type(error).__module__:
            raise _unanswered(url, error) from error
        raise


def _unanswered(url: str, error: BaseException) -> PassingError:
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    return PassingError(
        f"Prefect at {masked(url)}: {words[:300].rstrip('.')}. Nothing more was changed. Set "
        "PREFECT_API_URL to a server that answers (and PREFECT_API_AUTH_STRING if it has a "
        "password), or start one here: nightshift up"
    )


def start(api: SyncPrefectClient, cause: Cause) -> UUID:
    """Start a run for a cause, once; returns the run's id.

    Raises: ConfigError when the pipeline is not deployed.
    """
    title = f"{cause.flow}/{cause.pipeline}"
    try:
        deployment = api.read_deployment_by_name(title)
    except ObjectNotFound:
        raise ConfigError(
            f"found no deployment {title} on the Prefect server, so nothing can be started. "
            "Make it: nightshift deploy"
        ) from None
    run = api.create_flow_run_from_deployment(
        deployment.id,
        parameters=cause.parameters,
        idempotency_key=cause.key,
        tags=[TAG, cause.pipeline, f"cause:{cause.kind}"],
    )
    return run.id


def is_over(api: SyncPrefectClient, run: UUID) -> bool:
    """Whether a run has ended, is no longer known, or was lost by the worker that took it."""
    try:
        state = api.read_flow_run(run).state
    except ObjectNotFound:
        return True
    if state is None or state.is_final():
        return True
    return state.is_pending() and datetime.now(UTC) - state.timestamp > LOST


def reap(api: SyncPrefectClient) -> int:
    """Put in order what workers left that are known to be dead; returns how many runs.

    A run that had not begun is begun again; one that had is marked as crashed.
    """
    kinds = FlowRunFilterStateType(
        any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    )  # fmt: skip
    left = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[TAG]), state=FlowRunFilterState(type=kinds)
    )  # fmt: skip
    runs = api.read_flow_runs(flow_run_filter=left)
    for run in runs:
        begun = run.state is not None and not run.state.is_pending()
        words = "its worker died; another run finishes what it left"
        state = Crashed(message=words) if begun else Scheduled()
        api.set_flow_run_state(run.id, state, force=True)
    return len(runs)
