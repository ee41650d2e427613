"""In which order waiting jobs are offered a slot.

Classes go by urgency, and waiting lifts a job by one class for each AGING that it has waited, so
that no class starves while others are served. Inside a rank the earliest job goes first.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeVar
from uuid import UUID

from vyvo_dagster.domain.job import Priority

__all__ = ["AGING", "in_order", "rank"]

AGING: Final = timedelta(seconds=120)
"""Waiting that is worth one priority class."""

_CLASS: Final = {priority: place for place, priority in enumerate(Priority)}


class Waiting(Protocol):
    """What ordering needs to know of a job."""

    @property
    def id(self) -> UUID: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def created_at(self) -> datetime: ...


W = TypeVar("W", bound=Waiting)


def rank(priority: Priority, waited: timedelta) -> int:
    """Effective class of a job, the lower the more urgent; never below the most urgent class."""
    return max(_CLASS[priority] - int(waited / AGING), 0)


def in_order(jobs: Iterable[W], now: datetime) -> list[W]:
    """`jobs` as they are to be offered slots at `now`."""
    return sorted(
        jobs, key=lambda job: (rank(job.priority, now - job.created_at), job.created_at, job.id)
    )
