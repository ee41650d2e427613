"""Heartbeats: what an agent sees goes in, what should be comes back.

In the steady state a heartbeat is a place in a group's two statements (`store.beats`), and its
answer is the one that was made before. Where something changed since the last one, or this process
has not heard the node yet, it is a place in a group's comparison too (`api.nodes.comparison`).
"""

import json
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from api.context import Context
from vyvo_dagster.dispatch.ends import count_ends
from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.domain.node import NodeEventKind, NodeState
from vyvo_dagster.errors import StaleBoot
from vyvo_dagster.protocol.job import AttemptStatus
from vyvo_dagster.protocol.node import Heartbeat
from vyvo_dagster.store.attempts import Gone
from vyvo_dagster.store.beats import Beat
from vyvo_dagster.store.records import Job

__all__ = ["heartbeat"]

_LEAVABLE = frozenset({NodeState.READY, NodeState.SUSPECT})
_METRICS: Final = {"memory_available_bytes", "gpus", "running"}
_DRAIN_GRACE_SECONDS: Final = 2.5


async def heartbeat(context: Context, node_id: UUID, key_id: UUID, body: Heartbeat) -> str:
    """Note a heartbeat that came with the credential `key_id`; the JSON text of its `HeartbeatAnswer`.

    Raises:
        StaleBoot: another start of the agent took over, or the node was given up as lost.
        Unauthenticated: the credential is not good any more.
    """
    now = datetime.now(UTC)
    sent_at = body.sent_at if body.sent_at.tzinfo else body.sent_at.replace(tzinfo=UTC)
    heard = await context.beats.take(
        node_id,
        Beat(
            node_id, body.boot_id, key_id, body.model_dump_json(include=_METRICS),
            (sent_at - now).total_seconds(), [(ref.job_id, ref.attempt) for ref in body.running],
        )
    )  # fmt: skip
    basis = (heard.fingerprint, body.boot_id, *_said(body))
    desired = None if body.leaving else context.heartbeat_answers.get(node_id, basis)
    wake, changed = heard.state is not heard.before, False
    if desired is None:
        compared = await context.comparisons.take(node_id, body)
        desired, changed, wake = compared.desired, compared.changed, wake or compared.wake
        if body.leaving:
            await _leave(context, node_id, body.boot_id)
            changed = True
        elif not changed:
            context.heartbeat_answers.keep(node_id, basis, desired)
    if changed or wake:
        context.registry.drop()
    if wake:
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


async def _leave(context: Context, node_id: UUID, boot_id: UUID) -> None:
    """The agent stops in order: what it still runs is handed back and not charged to the jobs."""
    handed_back: list[Job] = []
    async with context.database.transaction() as store:
        if not await store.nodes.current({node_id: boot_id}):
            raise StaleBoot("this start of the agent is not the node's current one; join again")
        for job in await store.attempts.of_node(node_id):
            changed = await requeue_lost(
                store, job, Gone(str(AttemptStatus.HANDED_BACK)), charged=False
            )
            if changed is not None:
                handed_back.append(changed)
        await store.assignments.restart(node_id)
        await store.nodes.set_state(node_id, _LEAVABLE, NodeState.JOINING)
        await store.nodes.add_event(
            id=uuid7(), node_id=node_id, kind=NodeEventKind.LEFT,
            detail={"handed_back": len(handed_back)},
        )  # fmt: skip
    if handed_back:
        context.relay.kick()
        count_ends(handed_back)
        await context.announcer.changes(handed_back)
