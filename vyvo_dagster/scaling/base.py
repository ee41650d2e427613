"""What every scaler is, and what it is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from vyvo_dagster.domain.pool import Change

__all__ = ["Scaler", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One operation, as a scaler sees it."""

    operation_id: UUID
    pool: str
    config: Mapping[str, Any]
    change: Change
    dry_run: bool = False
    say: Callable[[str], None] = field(default=lambda line: None)
    """Adds a line to the operation's log; may be called from the loop only."""


class Scaler(Protocol):
    """Makes and removes the machines, or the agents, of pools.

    Nodes must join under the names that the change gives them. Both calls may come again for the
    same change, from another process, and must then end as if they had come once.
    """

    async def plan(self, task: Task) -> Mapping[str, Any]:
        """What `apply` would do, as a JSON object; changes nothing.

        Raises:
            ScalingRefused: it may not be done.
            ScalingFailed: it cannot be told.
        """
        ...

    async def apply(self, task: Task) -> None:
        """Do what the last `plan` of this task said; what leaves has been drained.

        Raises:
            ScalingRefused, ScalingFailed: some of it may have been done.
        """
        ...

    async def keep(self, pools: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> None:
        """Look after what runs already: pool → its config and the names that it should have."""
        ...
