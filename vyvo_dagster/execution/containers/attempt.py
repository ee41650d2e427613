"""One attempt of a step as a container: how far it is, and what an engine's answer makes of it."""

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.domain.job import DEFAULT_TIMEOUT, DEFAULT_TTL
from vyvo_dagster.domain.workflow.container import ContainerStep, container_name
from vyvo_dagster.domain.workflow.run import Outcome, Start
from vyvo_dagster.domain.workflow.state import StepState
from vyvo_dagster.execution.containers.calls import Ended, Refused
from vyvo_dagster.execution.routing.hosts import Placement

__all__ = ["ContainerAttempt", "Phase", "Verb"]

log = logging.getLogger(__name__)

_GRACE_SECONDS: Final = 10.0
_UNREACHABLE_SECONDS: Final = 120.0


class Phase(Enum):
    """How far an attempt is."""

    WAITING = auto()
    """For a host."""
    PLACED = auto()
    """Its host is told, and not in its row yet: nothing is made before it is."""
    COMMITTED = auto()
    """Its host may have its container, and is to start it."""
    RUNNING = auto()
    ENDED = auto()
    """Its end is told, and not in its row yet: nothing is removed before it is."""
    OVER = auto()
    """Its container is to be removed."""


class Verb(Enum):
    """What is to be asked of its host's engine next."""

    START = auto()
    LOOK = auto()
    TERMINATE = auto()
    KILL = auto()
    REMOVE = auto()


@dataclass(slots=True)
class ContainerAttempt:
    """An attempt under way.

    Args:
        dagster_run_id: of its run in Dagster.
        placement: where it is; None while it waits.
    """

    run_id: UUID
    dagster_run_id: str
    start: Start
    placement: Placement | None = None
    phase: Phase = Phase.WAITING
    started_at: datetime | None = None
    stop: Outcome | None = None
    """What it ends as, since it was told to."""
    told_at: float | None = None
    """When its container was sent SIGTERM."""
    away_since: float | None = None
    """Since when its host's engine gives no answer about it."""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = container_name(self.start.step.id, self.start.step.attempt)

    @property
    def spec(self) -> ContainerStep:
        """What it runs."""
        assert self.start.container is not None
        return self.start.container

    @property
    def row(self) -> dict[str, Any]:
        """Its placement as its row holds it."""
        assert self.placement is not None
        return {"host": self.placement.host.name, "devices": list(self.placement.devices)}

    def verb(self, now: datetime) -> Verb | None:
        """What to ask for; None where nothing is to be done on its host."""
        if self.phase is Phase.OVER:
            return Verb.REMOVE
        if self.phase not in {Phase.COMMITTED, Phase.RUNNING}:
            return None
        seconds = self.start.timeout_seconds or DEFAULT_TIMEOUT
        late = self.started_at is not None and now - self.started_at >= timedelta(seconds=seconds)
        if late and self.stop is None:
            said = f"the container did not end within {seconds:g} s"
            self.stop = Outcome(StepState.FAILED, None, "timed_out", said)
        if self.stop is None:
            return Verb.START if self.phase is Phase.COMMITTED else Verb.LOOK
        if self.told_at is None:
            self.told_at = time.monotonic()
            return Verb.TERMINATE
        return Verb.KILL if time.monotonic() - self.told_at >= _GRACE_SECONDS else Verb.LOOK

    def away(self, error: Exception) -> bool:
        """Its host's engine gave no answer; whether that has been so for long."""
        now = time.monotonic()
        if self.away_since is None:
            log.warning("container %s: no answer: %s", self.name, error)
            self.away_since = now
        return now - self.away_since >= _UNREACHABLE_SECONDS

    def expired(self, now: datetime) -> bool:
        """Whether it has waited for a host for longer than a job would in the queue."""
        since = self.start.step.submitted_at or now
        return now - since >= DEFAULT_TTL[self.start.priority]

    def outcome(self, found: Ended | Refused | None) -> Outcome:
        """How it ended; for None its container is gone."""
        if self.stop is not None:
            return Outcome(
                self.stop.state, None, self.stop.error_code, self.stop.error_message,
                self.started_at,
            )  # fmt: skip
        if found is None:
            return self.failed("container_removed", "the container was removed by someone else")
        if isinstance(found, Refused):
            return self.failed("container_refused", f"the engine refuses it: {found.reason}")
        if found.out_of_memory:
            limit = self.spec.request.memory_bytes
            return self.failed("out_of_memory", f"it used more memory than {limit} bytes")
        if found.status:
            said = f"the container ended with status {found.status}\n{found.tail}"
            return self.failed("container_failed", said.rstrip())
        if found.fault is not None:
            return self.failed("bad_output", found.fault)
        return Outcome(StepState.SUCCEEDED, found.output, started_at=self._began())

    def failed(self, code: str, message: str) -> Outcome:
        """It has failed."""
        return Outcome(StepState.FAILED, None, code, message.replace("\0", ""), self.started_at)

    def _began(self) -> datetime:
        return self.started_at or datetime.now(UTC)
