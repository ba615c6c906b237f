"""What a killed night leaves open in Prefect, and on this machine: runs that look alive, a server.

Each run says which process works it. Where that process is gone, the run has crashed, and whoever
comes next writes it down; Prefect itself would show it running for ever.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from nightshift.errors import PassingError
from nightshift.leases import Entry

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

NIGHTS = (
    "night", "ingest", "train", "reclassify", "recluster", "report", "backfill", "promote",
    "rollback",
)  # fmt: skip
"""Flows that hold the pipeline's lease while they work."""
OTHERS = ("tune", "replay")
"""Flows of a pipeline that may run beside a night, for days."""
OPEN = ["RUNNING", "PENDING", "CANCELLING"]
SILENT = timedelta(hours=1)
"""A run that holds no lease, or that a worker took and did not begin, is lost after so long."""
SETTLED = timedelta(seconds=10)
"""What Prefect's server hears of tasks it writes down a moment later."""
PAGE = 200
LABEL = "nightshift.process"
WORDS = "its process died; another run finishes the night"
AGAIN_SECONDS = (0.0, 1.0, 3.0)
SERVER = "prefect.server.api.server:create_app"


def begin(run: str) -> None:
    """Say on a flow run which process works it, and bury those whose process is dead.

    Prefect may be away: whoever comes next does it then.
    """
    from prefect.client.orchestration import get_client

    open_ones: list[FlowRun] = []
    forgotten: list[FlowRun] = []

    def look() -> None:
        with get_client(sync_client=True) as api:
            api.update_flow_run_labels(UUID(run), {LABEL: _this()})
            open_ones[:] = _open_runs(api)
            forgotten[:] = _with_open_tasks(api)

    _asked(look)
    dead = [one for one in open_ones if _is_dead(str(one.labels.get(LABEL, "")))]
    for one in [*dead, *forgotten]:
        if str(one.id) != run:
            bury(str(one.id))
    if not os.environ.get("PREFECT_API_URL"):
        reap_servers()


def after(before: Entry | None) -> None:
    """Bury the flow run of whoever held the lease before, if it was taken over."""
    if before is not None:
        log.info("night     taking over from %s, which is gone", before.holder)
        bury(before.run)


def bury(run: str | None) -> None:
    """Mark the flow run of a killed process, and its open tasks, as crashed."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
    from prefect.runtime import flow_run
    from prefect.states import Cancelled, Crashed

    if not run or run == str(flow_run.get_id()):
        return  # none, or the same run, given to another worker

    def close() -> None:
        with get_client(sync_client=True) as api:
            number = UUID(run)
            state = api.read_flow_run(number).state
            if state is not None and not state.is_final():
                ended = Cancelled if state.is_cancelling() else Crashed
                api.set_flow_run_state(number, ended(message=WORDS), force=True)
            tasks = api.read_task_runs(
                flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [number]}}),
                task_run_filter=TaskRunFilter.model_validate(
                    {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
                ),
            )
            for one in tasks:
                api.set_task_run_state(one.id, Crashed(message=WORDS), force=True)

    _asked(close)


def _asked(doing: Callable[[], None]) -> Exception | None:
    """Ask Prefect, and again where it fails: after its database was away it answers 500 for a
    while. In the end whoever comes next asks.

    Returns: what it said last, where it never answered.
    """
    from httpx import HTTPError
    from prefect.exceptions import PrefectException

    said: Exception | None = None
    for pause in AGAIN_SECONDS:
        time.sleep(pause)
        try:
            doing()
        except (PrefectException, HTTPError, OSError, ValueError, RuntimeError) as error:
            said = error  # the last where none starts
        else:
            return None
    return said


def left_running(pipeline: str) -> list[tuple[str, str, str]]:
    """Ids, names and states of a pipeline's flow runs that Prefect shows open, and nobody works.

    Whoever asks knows that no night runs. A run whose process lives, and waits for the lease, is
    none of them; nor is one of another machine that may just have begun.
    Raises: PassingError when Prefect does not answer.
    """
    from prefect.client.orchestration import get_client

    runs: list[FlowRun] = []
    ended: list[FlowRun] = []
    flows: dict[UUID, str] = {}

    def look() -> None:
        with get_client(sync_client=True) as api:
            runs[:] = _open_runs(api, [*NIGHTS, *OTHERS])
            flows.update({one: api.read_flow(one).name for one in {run.flow_id for run in runs}})
            ended[:] = _with_open_tasks(api)

    error = _asked(look)
    if error is not None:
        raise PassingError(f"Prefect did not answer: {error or type(error).__name__}") from error
    left = [
        (run, run.state.name.lower() if run.state and run.state.name else "open")
        for run in runs if _is_left(run, flows[run.flow_id] in NIGHTS)
    ]  # fmt: skip
    left += [(run, "ended with a task that runs") for run in ended]
    return [(str(run.id), run.name, words) for run, words in left
            if run.parameters.get("pipeline") == pipeline]  # fmt: skip


def _open_runs(api: SyncPrefectClient, flows: list[str] | None = None) -> list[FlowRun]:
    """Flow runs that have begun and not ended, page by page."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter

    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": OPEN}}})
    named = FlowFilter.model_validate({"name": {"any_": flows}}) if flows else None
    found: list[FlowRun] = []
    while page := api.read_flow_runs(
        flow_filter=named, flow_run_filter=wanted, limit=PAGE, offset=len(found)
    ):  # fmt: skip
        found += page
        if len(page) < PAGE:
            break
    return found


def _with_open_tasks(api: SyncPrefectClient) -> list[FlowRun]:
    """Flow runs that have ended, with tasks that have not: the server's database was away when it
    heard of their end, and nobody tells it twice."""
    from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter

    final = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    tasks = api.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate(final),
        task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": OPEN}}}),
        limit=PAGE,
    )
    found = [api.read_flow_run(one) for one in {task.flow_run_id for task in tasks} if one]
    before = datetime.now(UTC) - SETTLED
    return [run for run in found if run.end_time is not None and run.end_time < before]


def _is_left(run: FlowRun, holds_lease: bool) -> bool:
    """Whether nobody works an open run any more, as far as this machine can tell."""
    label = str(run.labels.get(LABEL, ""))
    if label.startswith(f"{_machine()}@"):
        return _is_dead(label)
    if not holds_lease and not (run.state and run.state.is_pending()):
        return False  # it may be at work elsewhere
    since = run.state.timestamp if run.state else run.expected_start_time
    return since is None or datetime.now(UTC) - since > SILENT


def reap_servers() -> None:
    """End embedded Prefect servers of this folder whose night was killed: 200 MB each."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid() or SERVER not in process.cmdline():
                continue
            ours = process.environ().get("PREFECT_HOME") == os.environ.get("PREFECT_HOME")
            # The embedded kind alone: a server that somebody started has no such variable.
            embedded = "PREFECT__SERVER_EPHEMERAL" in process.environ()
            if ours and embedded and _orphaned(process.ppid()):
                log.info("night     ending the Prefect server that a killed night left")
                process.terminate()


def _orphaned(parent: int) -> bool:
    """Whether a process was handed to init, or to whatever stands in for it."""
    import psutil

    if parent <= 1:
        return True
    with suppress(psutil.Error):
        return "python" not in " ".join(psutil.Process(parent).cmdline()).lower()
    return True


def _this() -> str:
    return f"{_machine()}@{os.getpid()}:{_started(os.getpid())}"


def _is_dead(label: str) -> bool:
    """Whether a process of this machine is gone; of another machine's nothing is known."""
    machine, _, rest = label.rpartition("@")
    pid, _, started = rest.partition(":")
    return machine == _machine() and pid.isdigit() and _started(int(pid)) != started


@cache
def _machine() -> str:
    """This boot of this machine, and whose numbers of processes these are."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    import uuid

    return f"{uuid.getnode():x}"


def _started(pid: int) -> str:
    """When a process began, since numbers are used again; empty when it is gone."""
    import psutil

    with suppress(psutil.Error):
        found = psutil.Process(pid)
        if found.status() != psutil.STATUS_ZOMBIE:
            return f"{found.create_time():.2f}"
    return ""
