"""The policies of pools, over what the tables say now."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from uuid_utils.compat import uuid7

from vyvo_dagster.domain.pool import Decision, Member, decide
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.pools import Operation, Pool

__all__ = ["POLICY", "Outlook", "follow", "outlook"]

_AFTER_FAILURE: Final = timedelta(seconds=60)

POLICY = "policy"
"""Who asked, in operations that no person asked for."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """A pool, its nodes, its queue, and what its policy makes of them."""

    pool: Pool
    members: Sequence[Member]
    waiting: int
    decision: Decision


async def outlook(store: Store, pool: Pool, now: datetime) -> Outlook:
    """What a pool's policy would do now."""
    members = await store.pools.members(pool)
    waiting = await store.pools.waiting(pool)
    decision = decide(
        pool.policy, size=len(members), waiting=waiting, scaled_at=pool.scaled_at, now=now,
        busy=sum(member.running > 0 for member in members),
    )  # fmt: skip
    return Outlook(pool, members, waiting, decision)


async def follow(store: Store, now: datetime) -> list[tuple[Outlook, Operation | None]]:
    """Ask for what the policies want; each pool with what was asked for, if anything was.

    A pool with an operation under way is left alone.
    """
    found: list[tuple[Outlook, Operation | None]] = []
    for each in await store.pools.all():
        pool = await store.pools.get(each.name, lock=True)
        if pool is None or await store.pools.under_way(pool.id):
            continue
        seen = await outlook(store, pool, now)
        failed_at = await store.pools.failed_at(pool.id)
        if failed_at is not None:
            left = (failed_at + max(pool.policy.cool_down, _AFTER_FAILURE) - now).total_seconds()
            if left > 0:
                why = f"its last change failed; the next try is in {left:.0f} s"
                found.append((replace(seen, decision=Decision(len(seen.members), why)), None))
                continue
        asked: Operation | None = None
        if seen.decision.size != len(seen.members):
            asked = await store.pools.add_operation(
                pool, id=uuid7(), size=seen.decision.size, dry_run=False,
                reason=seen.decision.reason, requested_by=POLICY,
            )  # fmt: skip
        found.append((seen, asked))
    return found
