"""Heartbeats: what an agent sees goes in, what should be comes back.

In the steady state a heartbeat is a place in a group's two statements (`api.nodes.beats`), and its
answer is the one that was made before. Only what changed since the last one costs more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from api.context import Context
from api.nodes import gpus
from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.domain.model import Resources
from vyvo_dagster.domain.node import ASSIGNMENT, AssignmentState, NodeEventKind, NodeState
from vyvo_dagster.errors import StaleBoot
from vyvo_dagster.protocol.job import AttemptStatus
from vyvo_dagster.protocol.node import DesiredAssignment, Heartbeat, ObservedAssignment
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.beats import Beat
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Assignment, Job, ModelVersion

__all__ = ["heartbeat"]

_LEAVABLE = frozenset({NodeState.READY, NodeState.SUSPECT})
_TOLD = {
    AssignmentState.READY: NodeEventKind.ASSIGNMENT_READY,
    AssignmentState.FAILED: NodeEventKind.ASSIGNMENT_FAILED,
    AssignmentState.REMOVED: NodeEventKind.ASSIGNMENT_REMOVED,
}
_METRICS: Final = {"memory_available_bytes", "gpus", "running"}
_DRAIN_GRACE_SECONDS: Final = 2.5


@dataclass(slots=True)
class _Outcome:
    wake: bool = False
    changed: bool = False
    handed_back: list[Job] = field(default_factory=list[Job])


async def heartbeat(context: Context, node_id: UUID, body: Heartbeat) -> str:
    """Note a heartbeat; the JSON text of its `HeartbeatAnswer`.

    Raises:
        StaleBoot: another start of the agent took over, or the node was given up as lost.
    """
    now = datetime.now(UTC)
    sent_at = body.sent_at if body.sent_at.tzinfo else body.sent_at.replace(tzinfo=UTC)
    heard = await context.beats.take(
        Beat(
            node_id, body.boot_id, body.model_dump_json(include=_METRICS),
            (sent_at - now).total_seconds(), [(ref.job_id, ref.attempt) for ref in body.running],
        )
    )  # fmt: skip
    basis = (heard.fingerprint, body.boot_id, *_said(body))
    desired = None if body.leaving else context.heartbeat_answers.get(node_id, basis)
    outcome = _Outcome(wake=heard.state is not heard.before)
    if desired is None:
        desired = await _compared(context, node_id, body, outcome)
        if not outcome.changed:
            context.heartbeat_answers.keep(node_id, basis, desired)
    if outcome.changed or outcome.wake:
        context.registry.drop()
    if outcome.handed_back:
        context.relay.kick()
        count_ends(outcome.handed_back)
        await context.announcer.changes(outcome.handed_back)
    if outcome.wake:
        context.announcer.wake()
    fenced = [{"job_id": str(job_id), "attempt": attempt} for job_id, attempt in heard.fenced]
    grace = _DRAIN_GRACE_SECONDS if heard.overdue else None
    return (
        f'{{"server_time":"{now.isoformat()}","assignments":{desired},'
        f'"fenced":{json.dumps(fenced)},"fence_grace_seconds":{json.dumps(grace)}}}'
    )


def _said(body: Heartbeat) -> tuple[object, ...]:
    """What of a heartbeat may change rows other than the node's own."""
    return (
        tuple((a.assignment_id, a.state, a.detail, a.slots) for a in body.assignments),
        tuple((gpu.index, gpu.lost) for gpu in body.gpus),
    )


async def _compared(context: Context, node_id: UUID, body: Heartbeat, outcome: _Outcome) -> str:
    """Record what the rows do not say yet; the assignments that the node should have, as JSON."""
    async with context.database.transaction() as store:
        node = await store.nodes.current(node_id, body.boot_id)
        if node is None:
            raise StaleBoot("this start of the agent is not the node's current one; join again")
        if await gpus.observe(store, node, body.gpus):
            outcome.wake = outcome.changed = True
        loaded = await store.assignments.loaded_with(node_id)
        if await _observe(store, node_id, loaded, body.assignments, outcome):
            outcome.changed = True
            loaded = await store.assignments.loaded_with(node_id)
        if body.leaving:
            await _leave(store, node_id, outcome)
            outcome.changed = True
    shown = [_desired(a, v) for a, v in loaded if a.state is not AssignmentState.REMOVING]
    return f"[{','.join(desired.model_dump_json() for desired in shown)}]"


async def _observe(
    store: Store, node_id: UUID, loaded: Sequence[tuple[Assignment, ModelVersion]],
    reports: Sequence[ObservedAssignment], outcome: _Outcome,
) -> bool:  # fmt: skip
    """Record what changed; whether anything did."""
    seen = {report.assignment_id: report for report in reports}
    changed = False
    for assignment, _ in loaded:
        report = seen.get(assignment.id)
        if report is None:
            # The agent never had it, or forgot it in a restart: nothing is left to remove.
            if assignment.state is not AssignmentState.REMOVING:
                continue
            report = ObservedAssignment(assignment_id=assignment.id, state=AssignmentState.REMOVED)
        if not ASSIGNMENT.allows(assignment.state, report.state):
            continue
        detail = report.detail
        observed = Observation(
            report.assignment_id, report.state,
            None if detail is None else detail.replace("\0", "\ufffd"), report.slots,
        )  # fmt: skip
        if await store.assignments.observe(node_id, observed) is None:
            continue
        changed = True
        if report.state is AssignmentState.READY:
            outcome.wake = True
        kind = _TOLD.get(report.state)
        if kind is not None:
            about: dict[str, Any] = {
                "assignment_id": str(assignment.id), "model_id": assignment.model_id,
                "version": assignment.version, "detail": observed.detail,
            }  # fmt: skip
            await store.nodes.add_event(id=uuid7(), node_id=node_id, kind=kind, detail=about)
    return changed


async def _leave(store: Store, node_id: UUID, outcome: _Outcome) -> None:
    """The agent stops in order: what it still runs is handed back and not charged to the jobs."""
    for job in await store.attempts.of_node(node_id):
        changed = await requeue_lost(
            store, job, Gone(str(AttemptStatus.HANDED_BACK)), charged=False
        )
        if changed is not None:
            outcome.handed_back.append(changed)
    await store.assignments.restart(node_id)
    await store.nodes.set_state(node_id, _LEAVABLE, NodeState.JOINING)
    await store.nodes.add_event(
        id=uuid7(), node_id=node_id, kind=NodeEventKind.LEFT,
        detail={"handed_back": len(outcome.handed_back)},
    )  # fmt: skip


def _desired(assignment: Assignment, version: ModelVersion) -> DesiredAssignment:
    return DesiredAssignment(
        assignment_id=assignment.id, model_id=version.model_id, version=version.version,
        runner_image=version.runner_image or "", weights_url=version.weights_url,
        weights_sha256=version.weights_sha256, weights_size_bytes=version.weights_size_bytes,
        env=dict(version.env), resources=Resources(**version.resources),
    )  # fmt: skip
