"""Firing triggers: cron, new artifacts, new model versions. Each firing is a run, once by its key.

Called by Dagster's sensors. A trigger's row is locked while it fires, and what it has fired is told
by its runs' trigger keys: two sensors, or one that runs twice, start nothing twice.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, cast

from vyvo_dagster.domain.workflow.cron import next_time
from vyvo_dagster.domain.workflow.expression import ExpressionError
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.domain.workflow.template import render
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.workflow_records import WorkflowTrigger, WorkflowVersion
from vyvo_dagster.workflows.starting import start_run

__all__ = ["Fired", "fire_artifacts", "fire_cron", "fire_model_versions"]

log = logging.getLogger(__name__)

_TRIGGERS: Final = 100
_EVENTS: Final = 100
# A transaction that began before it and commits after it is seen in time.
_OVERLAP: Final = timedelta(seconds=60)


@dataclass(slots=True)
class Fired:
    """What came of a look at triggers."""

    runs: int = 0
    refused: list[str] = field(default_factory=list[str])
    """Why triggers that fired started nothing."""

    def refuse(self, trigger: WorkflowTrigger, why: str) -> None:
        """A trigger's firing came to nothing."""
        said = f"{trigger.workflow}/{trigger.name}: {why}"
        log.warning("a trigger started no run: %s", said)
        self.refused.append(said)


async def fire_cron(store: Store, now: datetime) -> Fired:
    """Start the runs of cron triggers that are due: one each, however many times were missed."""
    fired = Fired()
    for trigger in await store.workflows.due_triggers(now, _TRIGGERS):
        at = trigger.next_at
        assert at is not None  # it is due
        event = {"scheduled_at": at.isoformat()}
        await _fire(store, trigger, event, f"cron:{trigger.name}:{at.isoformat()}", fired)
        later = next_time(trigger.spec["cron"], trigger.spec.get("timezone", "UTC"), now)
        await store.workflows.fired(trigger.id, next_at=later, fired_at=now)
    return fired


async def fire_artifacts(store: Store, now: datetime) -> Fired:
    """Start a run for each new artifact that a trigger asks for."""
    fired = Fired()
    for trigger in await store.workflows.event_triggers(TriggerKind.ARTIFACT):
        found = await store.workflows.new_artifacts(trigger, _OVERLAP, _EVENTS)
        for artifact, model_id, version in found:
            event = {
                "artifact": {
                    "id": str(artifact.id), "type": artifact.type, "url": artifact.url,
                    "size_bytes": artifact.size_bytes, "mime_type": artifact.mime_type,
                },
                "job_id": str(artifact.job_id), "model_id": model_id, "version": version,
            }  # fmt: skip
            await _fire(store, trigger, event, f"artifact:{trigger.name}:{artifact.id}", fired)
        seen = found[-1][0].created_at if len(found) == _EVENTS else now
        await store.workflows.fired(trigger.id, seen_until=seen, fired_at=now if found else None)
    return fired


async def fire_model_versions(store: Store, now: datetime) -> Fired:
    """Start a run for each model version that is ready anew, where a trigger asks for it."""
    fired = Fired()
    for trigger in await store.workflows.event_triggers(TriggerKind.MODEL_VERSION):
        found = await store.workflows.new_model_versions(trigger, _OVERLAP, _EVENTS)
        for version in found:
            event = {
                "model_id": version.model_id, "version": version.version,
                "version_id": str(version.id),
            }  # fmt: skip
            key = f"model_version:{trigger.name}:{version.id}"
            await _fire(store, trigger, event, key, fired)
        seen = found[-1].updated_at if len(found) == _EVENTS else now
        await store.workflows.fired(trigger.id, seen_until=seen, fired_at=now if found else None)
    return fired


async def _fire(
    store: Store, trigger: WorkflowTrigger, event: Mapping[str, Any], key: str, fired: Fired
) -> None:
    version = await _version(store, trigger)
    try:
        inputs: Any = render(trigger.inputs, {"event": event}, "inputs")
        async with store.connection.begin_nested():
            _, made = await start_run(
                store, version, cast("dict[str, Any]", inputs), trigger.kind, key=key
            )
    except ExpressionError as error:
        fired.refuse(trigger, error.detail)
    except VyvoError as error:
        fired.refuse(trigger, error.detail)
    else:
        fired.runs += made


async def _version(store: Store, trigger: WorkflowTrigger) -> WorkflowVersion:
    found = await store.workflows.version(trigger.workflow_id, trigger.latest_version)
    assert found is not None  # the workflow names it
    return found
