"""Artifacts after they were made: their states, and passes that collect what is no longer wanted."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from vyvo_dagster.domain.state import StateMachine

__all__ = [
    "ARTIFACT", "GRACE", "SWEEP", "ArtifactState", "Orphans", "SweepState", "owner_of",
]  # fmt: skip

GRACE: Final = timedelta(hours=24)
"""Younger objects without a row may be outputs of jobs that run."""
_FEW: Final = 100
_MOST: Final = 0.5


class ArtifactState(StrEnum):
    """States of an artifact's row."""

    STORED = "stored"
    EXPIRED = "expired"
    """Its end has come: no URL is given any more, its object is to be deleted."""
    DELETED = "deleted"
    MISSING = "missing"
    """Its object was looked for and is not there; looked for again at each sweep."""


ARTIFACT: Final[StateMachine[ArtifactState]] = StateMachine(
    "artifact",
    {
        ArtifactState.STORED: frozenset({ArtifactState.EXPIRED, ArtifactState.MISSING}),
        ArtifactState.MISSING: frozenset({ArtifactState.STORED, ArtifactState.EXPIRED}),
        ArtifactState.EXPIRED: frozenset({ArtifactState.DELETED}),
        ArtifactState.DELETED: frozenset(),
    },
)


class SweepState(StrEnum):
    """States of a pass that collects artifacts."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


SWEEP: Final[StateMachine[SweepState]] = StateMachine(
    "sweep",
    {
        SweepState.QUEUED: frozenset({SweepState.RUNNING, SweepState.FAILED}),
        # To itself: the retry of a run whose worker died takes its pass over.
        SweepState.RUNNING: frozenset(
            {SweepState.RUNNING, SweepState.SUCCEEDED, SweepState.FAILED}
        ),
        SweepState.SUCCEEDED: frozenset(),
        SweepState.FAILED: frozenset(),
    },
)


@dataclass(slots=True)
class Orphans:
    """What a listing of the buckets of outputs found so far; judges before anything is deleted."""

    now: datetime
    grace: timedelta = GRACE
    listed: int = 0
    young: int = 0
    spared: int = 0
    """Without a row of its own, but some live row refers to it, or its job has not ended."""
    orphans: int = 0
    orphan_bytes: int = 0

    def is_young(self, modified_at: datetime) -> bool:
        """Whether an object is too young to be judged."""
        return modified_at > self.now - self.grace

    def refusal(self) -> str | None:
        """Why these orphans are not to be deleted: so many speak of a database that is not this store's."""
        old = self.listed - self.young
        if self.orphans <= _FEW or self.orphans <= old * _MOST:
            return None
        return (
            f"{self.orphans} of {old} objects have no row: that looks like the store of another "
            "database, or one restored from an old backup; ask for it with force if it is meant"
        )


def owner_of(key: str) -> UUID | None:
    """The job in an output's key, `YYYY/MM/DD/<job>.<attempt>/<name>`; None where it names none."""
    parts = key.split("/")
    if len(parts) != 5:
        return None
    try:
        return UUID(parts[3].partition(".")[0])
    except ValueError:
        return None
