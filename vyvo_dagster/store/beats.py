"""Heartbeats, many at a time: each statement is for a whole batch.

Nodes are locked in the order of ids, then their jobs in the order of ids, so that batches of several
api processes cannot wait for each other in a circle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.node import AssignmentState, HeartbeatPolicy, NodeEventKind, NodeState
from vyvo_dagster.errors import Unauthenticated
from vyvo_dagster.store.jobs import IN_FLIGHT
from vyvo_dagster.store.node_tables import node_events
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, notify

__all__ = ["Beat", "BeatRepository", "Heard"]


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat. `metrics` is JSON text; `running` are attempts by job and number."""

    node_id: UUID
    boot_id: UUID
    key_id: UUID
    """The credential that it came with."""
    metrics: str
    clock_skew_seconds: float
    running: Sequence[tuple[UUID, int]] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """What a heartbeat met."""

    before: NodeState
    state: NodeState
    fingerprint: str
    """Changes with whatever of the rows says what should run there, or what is known of its GPUs."""
    overdue: bool
    """The deadline of its drain is over."""
    fenced: Sequence[tuple[UUID, int]]
    """Of `running`, what is not this node's any more."""


_LOCKED = sa.text(f"""
select n.id, n.boot_id, n.state, n.suspicions,
  coalesce(extract(epoch from now() - n.heard_since), 0) as heard_for,
  extract(epoch from now() - n.last_heartbeat_at) as silence,
  n.heard_since is null as unheard,
  n.draining and coalesce(n.drain_deadline_at <= now(), false) as overdue,
  (select coalesce(string_agg(
      a.id::text || a.state || greatest(a.updated_at, v.updated_at)::text, ' ' order by a.id), '')
    from assignments a join model_versions v on v.id = a.version_id
    where a.node_id = n.id and a.state <> '{AssignmentState.REMOVED}')
  || coalesce((select c.updated_at::text from node_capabilities c where c.node_id = n.id), '')
    as fingerprint,
  exists (select from api_keys k where k.id = g.key_id and k.node_id = n.id
    and k.revoked_at is null and coalesce(k.expires_at > now(), true)) as proven
from nodes n join unnest(cast(:ids as uuid[]), cast(:keys as uuid[])) as g (id, key_id) on g.id = n.id
order by n.id for update of n
""")  # noqa: S608 - members of an enum

_BEAT = sa.text("""
update nodes n set state = g.state, metrics = g.metrics::jsonb, last_heartbeat_at = now(),
  clock_skew_seconds = g.skew, heard_since = case when g.anew then now() else n.heard_since end
from unnest(cast(:ids as uuid[]), cast(:states as text[]), cast(:metrics as text[]),
  cast(:skews as float8[]), cast(:anew as bool[])) as g (id, state, metrics, skew, anew)
where n.id = g.id
""")

_RENEW = sa.text(f"""
with given as (
  select * from unnest(cast(:nodes as uuid[]), cast(:jobs as uuid[]), cast(:attempts as int[]))
    as g (node_id, job_id, attempt)
), held as (
  select j.id from jobs j join given g
    on j.id = g.job_id and j.attempt = g.attempt and j.node_id = g.node_id
  where j.state in ({", ".join(f"'{state}'" for state in IN_FLIGHT)})
  order by j.id for update of j
)
update jobs j set lease_expires_at = now() + :lease from held where j.id = held.id
returning j.node_id, j.id, j.attempt
""")  # noqa: S608 - members of an enum


class BeatRepository:
    """SQL of heartbeats."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def take(
        self, beats: Mapping[UUID, Beat], policy: HeartbeatPolicy, lease: timedelta
    ) -> dict[UUID, Heard | Exception]:
        """Note heartbeats and renew the leases of what they name; what was met, by node.

        Nodes that do not exist, are lost, or have another boot than the beat's are left out. A
        credential that is not good any more is Unauthenticated, and its heartbeat is not noted.
        """
        found = await self._connection.execute(
            _LOCKED, {"ids": list(beats), "keys": [b.key_id for b in beats.values()]}
        )
        locked = found.all()
        refused: dict[UUID, Heard | Exception] = {
            row.id: Unauthenticated("the node's credential is expired or revoked")
            for row in locked
            if not row.proven
        }
        rows = [
            row
            for row in locked
            if row.proven and beats[row.id].boot_id == row.boot_id and row.state != NodeState.LOST
        ]
        if not rows:
            return refused
        states: list[NodeState] = []
        anew: list[bool] = []
        for row in rows:
            gap = row.unheard or timedelta(seconds=float(row.silence)) >= policy.suspect_after
            heard_for = timedelta(0) if gap else timedelta(seconds=float(row.heard_for))
            states.append(policy.heard(NodeState(row.state), row.suspicions, heard_for))
            anew.append(gap)
        taken = [beats[row.id] for row in rows]
        await self._connection.execute(
            _BEAT,
            {
                "ids": [b.node_id for b in taken],
                "states": [str(state) for state in states],
                "metrics": [b.metrics for b in taken],
                "skews": [b.clock_skew_seconds for b in taken],
                "anew": anew,
            },
        )
        await self._tell(
            [
                (row.id, NodeState(row.state))
                for row, state in zip(rows, states, strict=True)
                if state is NodeState.READY and row.state != state
            ]
        )
        renewed = await self._renew(taken, lease)
        return refused | {
            row.id: Heard(
                NodeState(row.state),
                state,
                row.fingerprint,
                row.overdue,
                [ref for ref in beats[row.id].running if (row.id, *ref) not in renewed],
            )
            for row, state in zip(rows, states, strict=True)
        }

    async def _tell(self, ready: Sequence[tuple[UUID, NodeState]]) -> None:
        if not ready:
            return
        events: list[dict[str, Any]] = [
            {
                "id": uuid7(),
                "node_id": id_,
                "kind": NodeEventKind.READY,
                "detail": {"before": before},
            }
            for id_, before in ready
        ]
        await self._connection.execute(sa.insert(node_events), events)
        await notify(self._connection, REGISTRY_CHANNEL, str(ready[0][0]))

    async def _renew(self, beats: Sequence[Beat], lease: timedelta) -> set[tuple[UUID, UUID, int]]:
        refs = [(b.node_id, job_id, attempt) for b in beats for job_id, attempt in b.running]
        if not refs:
            return set()
        rows = await self._connection.execute(
            _RENEW,
            {
                "nodes": [r[0] for r in refs],
                "jobs": [r[1] for r in refs],
                "attempts": [r[2] for r in refs],
                "lease": lease,
            },
        )
        return {(row[0], row[1], row[2]) for row in rows}
