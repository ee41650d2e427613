"""Places in the queue: counted exactly where a queue is short, at most a second old where it is long."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.submissions import NewJob

__all__ = ["Positions"]

_LONG: Final = 256
_KEPT_SECONDS: Final = 1.0
_KEPT: Final = 4096
_URGENCY: Final = {priority: tuple(Priority)[:n] for n, priority in enumerate(Priority)}


class Positions:
    """Counts of waiting jobs by model; those of long queues are kept for a second."""

    def __init__(self) -> None:
        self._long: dict[str, tuple[Counter[Priority], float]] = {}

    async def of(self, store: Store, jobs: Sequence[NewJob]) -> list[int]:
        """The place of each new job, which is not written yet, among those of its model."""
        models = {job.model_id for job in jobs}
        now = time.monotonic()
        waiting = {m: kept[0] for m in models if (kept := self._long.get(m)) and kept[1] > now}
        unknown = sorted(models - waiting.keys())
        if unknown:
            waiting |= {m: Counter[Priority]() for m in unknown}
            for (model_id, priority), count in (await store.submissions.depths(unknown)).items():
                waiting[model_id][priority] = count
            self._keep({m: waiting[m] for m in unknown}, now)
        return _places(jobs, waiting)

    def _keep(self, counted: dict[str, Counter[Priority]], now: float) -> None:
        if len(self._long) >= _KEPT:
            self._long.clear()
        for model_id, counts in counted.items():
            if counts.total() >= _LONG:
                self._long[model_id] = (counts, now + _KEPT_SECONDS)
            else:
                self._long.pop(model_id, None)


def _places(jobs: Sequence[NewJob], waiting: dict[str, Counter[Priority]]) -> list[int]:
    coming = Counter((job.model_id, job.priority) for job in jobs)
    places: list[int] = []
    for job in jobs:
        counts = waiting[job.model_id]
        counts[job.priority] += 1
        coming[job.model_id, job.priority] -= 1
        urgent = _URGENCY[job.priority]
        ahead = sum(counts[p] + coming[job.model_id, p] for p in urgent)
        places.append(ahead + counts[job.priority])
    return places
