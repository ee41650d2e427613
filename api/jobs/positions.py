"""Places in the queue: counted exactly where a queue is short, at most a second old where it is long."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from vyvo_dagster.domain.job import Priority
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

    def unknown(self, jobs: Sequence[NewJob]) -> list[str]:
        """The models whose waiting jobs are to be counted with the writing of `jobs`."""
        now = time.monotonic()
        models = {job.model_id for job in jobs}
        return sorted(m for m in models if m not in self._long or self._long[m][1] <= now)

    def of(
        self, jobs: Sequence[NewJob], counted: Sequence[str],
        depths: Mapping[tuple[str, Priority], int],
    ) -> list[int]:  # fmt: skip
        """The place of each new job among those of its model.

        Args:
            counted: the models that `depths` is of, counted before the jobs were written.
        """
        fresh = {model: Counter[Priority]() for model in counted}
        for (model, priority), count in depths.items():
            fresh[model][priority] = count
        kept = {j.model_id for j in jobs} - fresh.keys()
        waiting = fresh | {model: self._long[model][0] for model in kept}
        places = _places(jobs, waiting)
        self._keep(fresh)
        return places

    def _keep(self, counted: Mapping[str, Counter[Priority]]) -> None:
        if len(self._long) >= _KEPT:
            self._long.clear()
        until = time.monotonic() + _KEPT_SECONDS
        for model_id, counts in counted.items():
            if counts.total() >= _LONG:
                self._long[model_id] = (counts, until)
            else:
                self._long.pop(model_id, None)


def _places(jobs: Sequence[NewJob], waiting: Mapping[str, Counter[Priority]]) -> list[int]:
    coming = Counter((job.model_id, job.priority) for job in jobs)
    places: list[int] = []
    for job in jobs:
        counts = waiting[job.model_id]
        counts[job.priority] += 1
        coming[job.model_id, job.priority] -= 1
        ahead = sum(counts[p] + coming[job.model_id, p] for p in _URGENCY[job.priority])
        places.append(ahead + counts[job.priority])
    return places
