"""What a turn tells once it is committed: jobs to dispatch, and events to who follows a run."""

import json
from typing import Any

from vyvo_dagster.dispatch.requeue import publish_job_changes
from vyvo_dagster.domain.job import JobEventKind, JobState
from vyvo_dagster.domain.workflow.events import RunEventKind, run_event, step_event
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.events import publish_many
from vyvo_dagster.streams.submissions import Announced, announce
from vyvo_dagster.workflows.turn import Turn, Turned

__all__ = ["tell"]


async def tell(redis: AsyncRedis, turn: Turn) -> list[int]:
    """Tell all that a committed turn made; the outbox entries that Redis has by that.

    What fails here is not lost: the relay writes the jobs' entries, and rows hold the rest.
    """
    told: list[Announced] = []
    for job in turn.jobs:
        data = {"status": JobState.QUEUED.value, "workflow_step_id": str(job.workflow_step_id)}
        told.append(
            Announced(job.stream, str(job.id), turn.at, JobEventKind.QUEUED, json.dumps(data))
        )
    if told:
        await announce(redis, told)
    await publish_job_changes(redis, turn.canceled)
    await publish_many(redis, [event for turned in turn.turned for event in _events(turned)])
    return list(turn.entries.values())


def _events(turned: Turned) -> list[tuple[str, str, dict[str, Any]]]:
    run, run_id = turned.row, str(turned.row.id)
    events: list[tuple[str, str, dict[str, Any]]] = []
    if not turned.live.told:
        turned.live.told = True
        data = run_event(workflow=run.name, version=run.version, state=RunState.RUNNING)
        events.append((run_id, RunEventKind.STARTED, data))
    events += [(run_id, RunEventKind.STEP, step_event(step)) for step in turned.changed.values()]
    if turned.end is not None:
        end = turned.end
        data = run_event(
            workflow=run.name, version=run.version, state=end.state, outputs=end.outputs,
            error_code=end.error_code, error_message=end.error_message,
        )  # fmt: skip
        events.append((run_id, RunEventKind.COMPLETED, data))
    return events
