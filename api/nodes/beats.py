"""Heartbeats of many nodes, written and compared in groups: a group is one transaction."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from api.nodes.comparison import Compared, compare
from api.nodes.groups import Groups
from vyvo_dagster.domain.node import HeartbeatPolicy
from vyvo_dagster.protocol.node import Heartbeat
from vyvo_dagster.store.beats import Beat, Heard
from vyvo_dagster.store.database import Database

__all__ = ["Beats", "Comparisons", "beats", "comparisons"]

Beats = Groups[Beat, Heard]
Comparisons = Groups[Heartbeat, Compared]


def beats(database: Database, policy: HeartbeatPolicy, lease: timedelta) -> Beats:
    """Writes heartbeats.

    Args:
        policy: what a heartbeat makes of a node.
        lease: of the attempts that heartbeats name.
    """

    async def write(asked: Mapping[UUID, Beat]) -> Mapping[UUID, Heard | Exception]:
        async with database.transaction() as store:
            return await store.beats.take(asked, policy, lease)

    return Groups(write)


def comparisons(database: Database) -> Comparisons:
    """Compares heartbeats with the rows."""

    async def compared(asked: Mapping[UUID, Heartbeat]) -> Mapping[UUID, Compared | Exception]:
        async with database.transaction() as store:
            return await compare(store, asked)

    return Groups(compared)
