"""Places in the queue: counted exactly where a queue is short, at most a second old where it is long.

Jobs compete with those of the same version, and a tenant's place follows from the shares that its
slots are given out by, not from when its jobs came.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from vyvo_dagster.domain.fairness import Rivals, Weighing, place, rivals
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.store.submissions import Depths, NewJob

__all__ = ["Positions"]

_LONG: Final = 256
_KEPT_SECONDS: Final = 1.0
_KEPT: Final = 4096
_URGENCY: Final = {priority: tuple(Priority)[:n] for n, priority in enumerate(Priority)}

_Counts = defaultdict[tuple[str, Priority], Counter[str]]
"""Waiting jobs of a model by version and class, then by tenant."""


class Positions:
    """Counts of waiting jobs by model; those of long queues are kept for a second.

    Args:
        weighing: the weights that are in force.
    """

    def __init__(self, weighing: Callable[[], Weighing]) -> None:
        self._weighing = weighing
        self._long: dict[str, tuple[_Counts, float]] = {}

    def unknown(self, jobs: Sequence[NewJob]) -> list[str]:
        """The models whose waiting jobs are to be counted before `jobs` are written."""
        now = time.monotonic()
        models = {job.model_id for job in jobs}
        return sorted(m for m in models if m not in self._long or self._long[m][1] <= now)

    def of(self, jobs: Sequence[NewJob], counted: Sequence[str], depths: Depths) -> list[int]:
        """The place of each new job among those of its version.

        Args:
            counted: the models that `depths` is of.
        """
        fresh: dict[str, _Counts] = {model: defaultdict(Counter) for model in counted}
        for (model, version, priority, tenant), count in depths.items():
            fresh[model][version, priority][tenant] = count
        kept = {j.model_id for j in jobs} - fresh.keys()
        # Dropped meanwhile by another's write where there are very many: taken as nothing waits.
        waiting = fresh | {
            model: self._long[model][0] if model in self._long else defaultdict(Counter)
            for model in kept
        }
        places = _places(jobs, waiting, self._weighing())
        self._keep(fresh)
        return places

    def _keep(self, counted: Mapping[str, _Counts]) -> None:
        if len(self._long) >= _KEPT:
            self._long.clear()
        until = time.monotonic() + _KEPT_SECONDS
        for model_id, counts in counted.items():
            if sum(tenants.total() for tenants in counts.values()) >= _LONG:
                self._long[model_id] = (counts, until)
            else:
                self._long.pop(model_id, None)


def _places(
    jobs: Sequence[NewJob], waiting: Mapping[str, _Counts], weighing: Weighing
) -> list[int]:
    coming = Counter((job.model_id, job.version, job.priority) for job in jobs)
    others: dict[tuple[str, str, Priority], Rivals] = {}
    places: list[int] = []
    for job in jobs:
        model_id, version = job.model_id, job.version
        counts = waiting[model_id]
        coming[model_id, version, job.priority] -= 1
        urgent = sum(
            counts[version, p].total() + coming[model_id, version, p]
            for p in _URGENCY[job.priority]
        )
        tenants = counts[version, job.priority]
        weight = weighing.weight(job.tenant, model_id)
        key = model_id, version, job.priority
        if key not in others:
            others[key] = rivals(tenants, weighing.of(model_id))
        ahead = tenants[job.tenant]
        if ahead:
            others[key][weight, ahead] -= 1
        places.append(place(urgent, ahead, weight, others[key]))
        tenants[job.tenant] += 1
        others[key][weight, ahead + 1] += 1
    return places
