"""Node pools: their operations, their scaling policy, which nodes come and which go."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from vyvo_dagster.domain.state import StateMachine
from vyvo_dagster.errors import InvalidInput

__all__ = [
    "OPERATION",
    "POOL_LABEL",
    "Change",
    "Decision",
    "Member",
    "OperationState",
    "Policy",
    "ScalerKind",
    "change",
    "check_size",
    "decide",
    "leaving",
    "member_names",
    "parse_pool_name",
]

POOL_LABEL: Final = "pool"
"""The label by which a node says of which pool it is."""


class ScalerKind(StrEnum):
    """What makes and removes the nodes of a pool."""

    LOCAL = "local"
    TERRAFORM = "terraform"
    WEBHOOK = "webhook"


class OperationState(StrEnum):
    """States of one change of a pool's size."""

    QUEUED = "queued"
    PLANNING = "planning"
    DRAINING = "draining"
    APPLYING = "applying"
    JOINING = "joining"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


_O = OperationState
OPERATION: Final[StateMachine[OperationState]] = StateMachine(
    "pool operation",
    {
        _O.QUEUED: frozenset({_O.PLANNING, _O.FAILED}),
        # A dry run ends with its plan. One whose worker died begins again from its plan.
        _O.PLANNING: frozenset({_O.DRAINING, _O.APPLYING, _O.SUCCEEDED, _O.FAILED, _O.PLANNING}),
        _O.DRAINING: frozenset({_O.APPLYING, _O.FAILED, _O.PLANNING}),
        _O.APPLYING: frozenset({_O.JOINING, _O.FAILED, _O.PLANNING}),
        _O.JOINING: frozenset({_O.SUCCEEDED, _O.FAILED, _O.PLANNING}),
        _O.SUCCEEDED: frozenset(),
        _O.FAILED: frozenset(),
    },
)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a pool follows its queue.

    Attributes:
        queue_depth_target: waiting jobs that one node may have before another is wanted; None
            keeps the size as it was last asked for, within the bounds.
        cool_down: least time between two changes by the policy.
    """

    min_size: int
    max_size: int
    queue_depth_target: int | None
    cool_down: timedelta


@dataclass(frozen=True, slots=True)
class Decision:
    """The size that a pool should have, and why in one sentence."""

    size: int
    reason: str


def decide(
    policy: Policy, *, size: int, waiting: int, busy: int, scaled_at: datetime | None, now: datetime
) -> Decision:
    """The size that the policy wants.

    It grows to as many nodes as the queue asks for, and shrinks by one node at a time: only while
    one is idle, and only where half of what the smaller pool may have waiting would not be
    reached. So a queue that stays within a factor of two never makes it go up and down. The bounds
    hold at once; all else waits for the cool-down.

    Args:
        size: nodes that the pool should have now.
        waiting: jobs that no node has yet.
        busy: nodes of the pool that run something.
        scaled_at: when its size last changed.
    """
    if size < policy.min_size:
        return Decision(policy.min_size, f"{size} is below the least size {policy.min_size}")
    if size > policy.max_size:
        return Decision(policy.max_size, f"{size} is above the greatest size {policy.max_size}")
    target = policy.queue_depth_target
    if target is None:
        return Decision(size, "the pool has no queue depth target")
    wanted = min(max(-(-waiting // target), policy.min_size), policy.max_size)
    smaller = size - 1
    if wanted > size:
        found = Decision(wanted, f"{waiting} jobs wait, {target} are meant for a node")
    elif smaller >= max(policy.min_size, busy) and 2 * waiting <= target * smaller:
        found = Decision(smaller, f"{waiting} jobs wait and {size - busy} of {size} nodes are idle")
    else:
        return Decision(size, f"{waiting} jobs wait for {size} nodes, {busy} of them busy")
    if scaled_at is not None and now - scaled_at < policy.cool_down:
        left = (scaled_at + policy.cool_down - now).total_seconds()
        return Decision(size, f"cooling down for {left:.0f} s more; then {found.size}")
    return found


def check_size(policy: Policy, size: int) -> int:
    """`size`, if the pool may have it; else InvalidInput."""
    if not policy.min_size <= size <= policy.max_size:
        raise InvalidInput(
            f"the pool may have {policy.min_size} to {policy.max_size} nodes, not {size}"
        )
    return size


@dataclass(frozen=True, slots=True)
class Member:
    """A node of a pool, as the choice of which to remove sees it."""

    name: str
    running: int
    ready: bool = True
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What one operation does: the names that the pool has after it, and those that leave."""

    pool: str
    size: int
    keep: tuple[str, ...]
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the pool has after it."""
        return tuple(sorted((*self.keep, *self.add), key=_in_order))


def leaving(members: Iterable[Member], count: int) -> list[str]:
    """Names of `count` members to remove: those that are not ready first, then idle, then the newest."""
    ranked = sorted(
        members,
        key=lambda m: (
            m.ready,
            not m.cordoned,
            m.running,
            tuple(-x for x in _in_order(m.name)[:1]),
        ),
    )
    return [member.name for member in ranked[:count]]


def member_names(pool: str, taken: Collection[str], count: int) -> list[str]:
    """`count` new names: the pool's with the smallest numbers that are free."""
    found: list[str] = []
    number = 1
    while len(found) < count:
        name = f"{pool}-{number}"
        if name not in taken:
            found.append(name)
        number += 1
    return found


def change(pool: str, members: Sequence[Member], size: int, taken: Collection[str] = ()) -> Change:
    """From the members that a pool has to the size that it should have.

    Args:
        taken: names that others have, which none of its new nodes may get.
    """
    gone = set(leaving(members, max(len(members) - size, 0)))
    names = sorted((m.name for m in members), key=_in_order)
    return Change(
        pool=pool,
        size=size,
        keep=tuple(name for name in names if name not in gone),
        add=tuple(member_names(pool, {*names, *taken}, max(size - len(members), 0))),
        remove=tuple(name for name in names if name in gone),
    )


def _in_order(name: str) -> tuple[int, str]:
    """a-2 before a-10."""
    tail = name.rpartition("-")[2]
    return (int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 10 else 0, name)


_NAME: Final = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")


def parse_pool_name(value: str) -> str:
    """Return `value` if it is 1 to 40 lower-case letters, digits and inner hyphens, else raise InvalidInput.

    With a number added it is a node's name, and it can stand in a path.
    """
    if not _NAME.fullmatch(value):
        raise InvalidInput(
            "a pool's name must be 1 to 40 lower-case letters, digits and hyphens, such as gpu-a100"
        )
    return value
