"""What the engine keeps in memory of a run that it drives."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from vyvo_dagster.domain.workflow.definition import Definition
from vyvo_dagster.domain.workflow.run import Outcome, Step
from vyvo_dagster.store.workflow_records import WorkflowRun

__all__ = ["Attempt", "LiveRun"]

Attempt = tuple[UUID, int]
"""A step's id and its attempt."""


@dataclass(slots=True)
class LiveRun:
    """A run under way. Its rows are the truth; `steps` is what they were at the last commit."""

    row: WorkflowRun
    definition: Definition
    steps: dict[str, Step] | None = None
    """None where they are to be read: after a claim, and after a commit whose answer was lost."""
    requests: dict[Attempt, Outcome] = field(default_factory=dict[Attempt, Outcome])
    """HTTP steps' attempts that have ended and are not written yet."""
    stopping: set[UUID] = field(default_factory=set[UUID])
    """Jobs that were asked to stop."""
    wake_at: datetime | None = None
    told: bool = False
    """Whether its followers know that it has started."""
