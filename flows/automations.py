"""Prefect automations: the server itself tells the webhook of runs that nobody else can tell of.

A night that fails tells people itself; one whose process was killed, or that no worker picked up,
cannot. The webhook's URL is kept in a block, as a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

from nightshift.pipeline import Settings

EVENTS = {
    "failed": ("Failed", "Crashed", "TimedOut"),
    "late": ("Late",),
}
"""By kind of alert, the states of a flow run that tell of it."""
PAGE = 200
"""Automations that the server tells at once."""
BODY = (
    "Flow run {{ flow_run.name }} of {{ flow.name }} is {{ flow_run.state.name }}. "
    "{{ flow_run.state.message or '' }}"
)


def declare(
    settings: Settings, deployments: dict[str, list[UUID]], dry_run: bool = False
) -> dict[str, str]:
    """Make the server's automations those of the pipelines file; harmless to repeat.

    Args: by pipeline, its deployments; one that left the file has none. Needs a Prefect server
    that stays.
    Returns: by the automation's name: new, changed, unchanged or removed.
    """
    from prefect.automations import Automation
    from prefect.client.orchestration import get_client

    wanted = {
        one.name: one
        for name, its in deployments.items() if name in settings.pipelines
        for one in _wanted(settings, name, its, dry_run)
    }  # fmt: skip
    told: dict[str, str] = {}
    with get_client(sync_client=True) as api:
        found = _read(api)
    for name, one in wanted.items():
        there = found.get(name)
        if there is None:
            if not dry_run:
                one.create()
            told[name] = "new"
        elif _same(one, there):
            told[name] = "unchanged"
        else:
            one.id = there.id
            if not dry_run:
                one.update()
            told[name] = "changed"
    for name, there in found.items():
        # Of pipelines that are not deployed now, nothing is known here.
        mine = any(name.startswith(f"nightshift {one}: ") for one in deployments)
        if mine and name not in wanted:
            if not dry_run:
                Automation.model_validate(there.model_dump()).delete()
            told[name] = "removed"
    return told


def _read(api: Any) -> dict[str, Any]:
    """The server's automations of ours, by name."""
    from prefect.automations import Automation

    rows = list[Any]()
    while True:
        asked = {"limit": PAGE, "offset": len(rows), "sort": "NAME_ASC"}
        answer = api._client.post("/automations/filter", json=asked)
        answer.raise_for_status()
        rows += (page := answer.json())
        if len(page) < PAGE:
            break
    ours = [one for one in rows if one["name"].startswith("nightshift ")]
    return {one["name"]: Automation.model_validate(one) for one in ours}


def _wanted(settings: Settings, name: str, deployments: Iterable[UUID], dry_run: bool) -> list[Any]:
    from prefect.automations import Automation, EventTrigger, Posture, SendNotification

    pipeline, its = settings.pipeline(name), sorted(str(one) for one in deployments)
    if pipeline.webhook is None or not (its or dry_run):
        return []
    block = _webhook(name, pipeline.webhook.get_secret_value(), dry_run)
    return [
        Automation(
            name=f"nightshift {name}: {kind}",
            description="Made by Nightshift from pipelines.yaml, and again when that changes.",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{state}" for state in states},
                match_related={
                    "prefect.resource.role": "deployment",
                    "prefect.resource.id": [f"prefect.deployment.{one}" for one in its],
                },  # pyright: ignore[reportArgumentType]
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                SendNotification(
                    block_document_id=block, subject=f"Nightshift: {name} {kind}.", body=BODY
                )
            ],
        )
        for kind, states in EVENTS.items()
        if kind in pipeline.alerts.on
    ]


def _webhook(name: str, url: str, dry_run: bool) -> UUID:
    """The block that holds the webhook's URL, made or brought up to date; a dry run finds it, or
    gives an id that nothing has."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.types import SecretDict

    block = CustomWebhookNotificationBlock(
        name=name,
        url="{{webhook}}",
        json_data={"text": "{{subject}} {{body}}", "pipeline": name},
        headers=None,
        cookies=None,
        secrets=SecretDict({"webhook": url}),
    )
    title = f"nightshift-{name.replace('_', '-')}"
    if dry_run:
        try:
            there = CustomWebhookNotificationBlock.load(title)
        except ValueError:
            return uuid4()
        assert isinstance(there, CustomWebhookNotificationBlock)
        return there._block_document_id or uuid4()
    saved = block.save(title, overwrite=True)
    assert isinstance(saved, UUID)
    return saved


def _same(one: Any, there: Any) -> bool:
    keys = {"trigger": {"expect", "match_related"}, "actions": True, "description": True}
    pair = (each.model_dump(mode="json", include=keys) for each in (one, there))
    mine, its = ({**each, "trigger": _sorted(each["trigger"])} for each in pair)
    return mine == its


def _sorted(trigger: dict[str, Any]) -> dict[str, Any]:
    return {**trigger, "expect": sorted(trigger["expect"])}
