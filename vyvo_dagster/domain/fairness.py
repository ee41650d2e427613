"""Whose job goes next: strict priority classes with aging, weighted fair shares inside a class.

What competes for the slots of one model version is decided by one `Share`. Inside a class it is
start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): each tenant has a virtual clock that a
job moves by 1 / weight, the earliest clock goes first, and a tenant that comes back is set to the
present, so that idling earns no credit.

Between classes the most urgent goes first. A class whose head has waited longer than AGING is
overdue, and is owed one slot for every OWED_EVERY that more urgent classes take meanwhile. So a
long flood of urgent jobs starves nobody, and ten thousand overdue batch jobs owe an interactive
job nothing: it has the next free slot, or the one after it.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from vyvo_dagster.domain.job import Priority

__all__ = ["AGING", "OWED_EVERY", "Backlog", "Rivals", "Share", "Weighing", "place", "rivals"]

AGING: Final = timedelta(seconds=120)
"""Waiting after which a class is owed a part of the slots."""
OWED_EVERY: Final = 4
"""Slots of more urgent classes for each slot that an overdue class is owed."""

_ROUNDING: Final = 1e-9

_AGING_MS: Final = int(AGING.total_seconds() * 1000)
_CLASSES: Final = tuple(Priority)


class Weighing:
    """Weights by (tenant, model id); model id None stands for all models. Where none is set it is 1."""

    def __init__(self, weights: Mapping[tuple[str, str | None], float]) -> None:
        self._weights = dict(weights)

    def weight(self, tenant: str, model_id: str) -> float:
        """A tenant's weight among those that wait for a version of this model."""
        own = self._weights.get((tenant, model_id))
        return own if own is not None else self._weights.get((tenant, None), 1.0)

    def of(self, model_id: str) -> Callable[[str], float]:
        """The weight by tenant, for one model."""
        return lambda tenant: self.weight(tenant, model_id)


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs of one tenant that wait in one class; `head_at` is the first one's creation in ms."""

    tenant: str
    priority: Priority
    count: int
    head_at: int


class _Class:
    """Virtual clocks of the tenants of one class."""

    def __init__(self) -> None:
        self._now = 0.0
        self._clocks: dict[str, float] = {}
        self._left: dict[str, int] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._head_at = 0
        self.credit = 0
        """Slots that more urgent classes took while this one was overdue."""

    def begin(self, waiting: Iterable[Backlog]) -> None:
        """Take over what waits now."""
        self._left = {}
        self._heap = []
        self._head_at = 0
        for backlog in waiting:
            if backlog.count > 0:
                start = max(self._clocks.get(backlog.tenant, 0.0), self._now)
                self._left[backlog.tenant] = backlog.count
                self._heap.append((start, backlog.head_at, backlog.tenant))
                self._head_at = min(self._head_at or backlog.head_at, backlog.head_at)
        heapq.heapify(self._heap)
        if not self._heap:
            # Nobody waits: nobody is owed anything, and the clocks start over.
            self._now, self._clocks, self.credit = 0.0, {}, 0

    @property
    def waits(self) -> bool:
        return bool(self._heap)

    def overdue(self, now_ms: int) -> bool:
        return bool(self._heap) and now_ms - self._head_at > _AGING_MS

    def next(self, weight: Callable[[str], float]) -> str:
        """The tenant whose job goes now, one fewer of which waits then."""
        start, head_at, tenant = heapq.heappop(self._heap)
        self._now = start
        after = start + 1.0 / weight(tenant)
        self._clocks[tenant] = after
        self._left[tenant] -= 1
        if self._left[tenant]:
            heapq.heappush(self._heap, (after, head_at, tenant))
        return tenant

    def end(self) -> None:
        """Forget clocks that the present has passed: they say nothing any more."""
        self._clocks = {t: c for t, c in self._clocks.items() if c > self._now}


class Share:
    """Shares out the slots of one model version; keeps the clocks between calls."""

    def __init__(self) -> None:
        self._classes = {priority: _Class() for priority in _CLASSES}

    def take(
        self,
        waiting: Iterable[Backlog],
        slots: int,
        now_ms: int,
        weight: Callable[[str], float] = lambda _: 1.0,
    ) -> list[tuple[str, Priority]]:
        """Whose jobs get the next free slots, in order: as many as there are slots or jobs.

        Args:
            waiting: all that waits for this version, at most one backlog per tenant and class.
            slots: how many slots are free.
            now_ms: the time, in ms since the epoch.
            weight: a tenant's weight, above 0; its share is this over the sum of those that wait.
        """
        by_class: dict[Priority, list[Backlog]] = {priority: [] for priority in _CLASSES}
        for backlog in waiting:
            by_class[backlog.priority].append(backlog)
        for priority, members in by_class.items():
            self._classes[priority].begin(members)
        taken: list[tuple[str, Priority]] = []
        while len(taken) < slots:
            priority = self._next_class(now_ms)
            if priority is None:
                break
            taken.append((self._classes[priority].next(weight), priority))
        for each in self._classes.values():
            each.end()
        return taken

    def _next_class(self, now_ms: int) -> Priority | None:
        waiting = [p for p in _CLASSES if self._classes[p].waits]
        if not waiting:
            return None
        owed = (
            p
            for p in waiting[1:]
            if self._classes[p].credit >= OWED_EVERY and self._classes[p].overdue(now_ms)
        )
        chosen = next(owed, waiting[0])
        for priority in waiting[waiting.index(chosen) + 1 :]:
            members = self._classes[priority]
            members.credit = members.credit + 1 if members.overdue(now_ms) else 0
        self._classes[chosen].credit = 0
        return chosen


Rivals = Counter[tuple[float, int]]
"""How many tenants of one class have this weight and so many jobs that wait."""


def rivals(waiting: Mapping[str, int], weight: Callable[[str], float]) -> Rivals:
    """The tenants with jobs that wait, told apart by weight and number only.

    There are few of these pairs however many the tenants are, which keeps `place` cheap.
    """
    return Counter((weight(tenant), count) for tenant, count in waiting.items() if count > 0)


def place(urgent: int, ahead: int, weight: float, others: Rivals) -> int:
    """The place in the order of service, from 1, of a job that waits.

    As `Share` would take them when every clock stands level and no class is overdue. A tie goes to
    the other tenant, which waited first in the case that matters, a job that is new: so of each
    other tenant at most one job is counted too many.

    Args:
        urgent: jobs of more urgent classes.
        ahead: jobs of the same tenant and class before this one.
        weight: its tenant's weight, above 0.
        others: the other tenants of its class.
    """
    # Of a tenant with weight w the job that n precede starts at n / w on its clock.
    start = ahead / weight + _ROUNDING
    before = sum(
        tenants * min(count, math.floor(start * other) + 1)
        for (other, count), tenants in others.items()
    )
    return urgent + ahead + before + 1
