"""What compose's one-shot services and state.sh have Prefect and the lake do.

Usage: steps.py automate | pause | resume [POOL ...] | hold
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState

from flows.locking import alone
from nightshift.pipeline import load_settings

CONFIG = Path(os.environ["NIGHTSHIFT_CONFIG"])
TAKEN_OVER = "TakenOver"
SILENCE = timedelta(seconds=90)
"""Three heartbeats."""


def automate() -> None:
    """Give a flow run whose worker died to the next worker, which finishes the night.

    A run sends a heartbeat every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds, and a word at its end.
    """
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Scheduled", TAKEN_OVER)
    heartbeat = "prefect.flow-run.heartbeat"
    wanted = AutomationCore(
        name="nightshift: a run whose worker died is taken over",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{end}" for end in ends)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, name=TAKEN_OVER, force=True,
                message="its worker died; the next one goes on with it",
            )
        ],
    )  # fmt: skip
    with get_client(sync_client=True) as api:
        for old in api.read_automations_by_name(wanted.name):
            api.delete_automation(old.id)
        api.create_automation(wanted)


def pause() -> None:
    """Let no pool begin a flow run; prints those that were not paused before."""
    with get_client(sync_client=True) as api:
        for pool in api.read_work_pools():
            if not pool.is_paused:
                api.update_work_pool(pool.name, WorkPoolUpdate(is_paused=True))
                print(pool.name)


def resume(pools: list[str]) -> None:
    """Let these pools go on."""
    with get_client(sync_client=True) as api:
        for pool in pools:
            api.update_work_pool(pool, WorkPoolUpdate(is_paused=False))


def hold() -> None:
    """Wait until no night runs, then let none begin, until this process is ended."""
    settings = load_settings(CONFIG)
    with ExitStack() as held:
        for name, declared in settings.pipelines.items():
            patient = declared.model_copy(update={"when_busy": "wait"})
            held.enter_context(alone(settings, name, patient))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("held", flush=True)
        signal.pause()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["automate"]:
            automate()
        case ["pause"]:
            pause()
        case ["resume", *pools]:
            resume(pools)
        case ["hold"]:
            hold()
        case _:
            sys.exit(__doc__)
