"""Steps of a run as rows, and what an ended attempt makes of one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.container import ContainerStep
from vyvo_dagster.domain.workflow.definition import Definition, ModelRef, StepDefinition
from vyvo_dagster.domain.workflow.state import STEP, RunState, StepErrorCode, StepState

__all__ = [
    "Outcome",
    "Run",
    "RunEnd",
    "Start",
    "Step",
    "finish",
    "first_steps",
    "kept_for_retry",
    "mapped_key",
]

MESSAGE_CHARS: Final = 2000

# Trying again would end the same.
_FINAL: Final = frozenset(
    {
        StepErrorCode.EXPRESSION_FAILED, StepErrorCode.OPERATION_FAILED,
        StepErrorCode.TOO_MANY_ITEMS, "input_schema_mismatch", "not_found",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A row of workflow_steps.

    `key` is the step's name, or `name[3]` for the fourth item of a mapped one. The row of a mapped
    step itself holds its items: `input` is `{"items": [...]}`, `output` the list of their outputs.
    """

    id: UUID
    run_id: UUID
    key: str
    name: str
    map_index: int | None = None
    state: StepState = StepState.PENDING
    attempt: int = 0
    """Of the attempt under way or the last one, from 1; 0 before the first."""
    job_id: UUID | None = None
    placement: Mapping[str, Any] | None = None
    """Of a container: `{"host": ..., "devices": [...]}`, or `{"waiting": why}` before it has a host."""
    input: Any = None
    output: Any = None
    error_code: str | None = None
    error_message: str | None = None
    retry_at: datetime | None = None
    attempts: Sequence[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    """Earlier ones: attempt, job_id, submitted_at, started_at, completed_at, error_code, error_message, host."""
    created_at: datetime
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in STEP.terminal

    @property
    def host(self) -> str | None:
        """Where its container is, once that is settled."""
        return None if self.placement is None else self.placement.get("host")

    @property
    def waiting(self) -> str | None:
        """Why its container has no host yet."""
        return None if self.placement is None else self.placement.get("waiting")

    def ends(
        self, state: StepState, now: datetime, *, output: Any = None, code: str | None = None,
        message: str | None = None,
    ) -> "Step":  # fmt: skip
        """The step, ended."""
        STEP.check(self.state, state)
        return dataclasses.replace(
            self, state=state, output=output, error_code=code,
            error_message=None if message is None else message[:MESSAGE_CHARS], retry_at=None,
            completed_at=now,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What the course of a run depends on beside its steps."""

    id: UUID
    inputs: Mapping[str, Any]
    started_at: datetime
    cancel_requested: bool = False
    priority: Priority | None = None
    """Of all its jobs, where whoever started it said so."""


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt to start: a job of `model`, the HTTP request that `http` says, or a container.

    `step` is the row to write in the same transaction: submitted (or running), its attempt counted.
    """

    step: Step
    model: ModelRef | None
    http: Mapping[str, Any] | None
    container: ContainerStep | None
    input: Mapping[str, Any]
    priority: Priority
    timeout_seconds: int | None


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    state: RunState
    outputs: Mapping[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: SUCCEEDED with an output, else FAILED, EXPIRED or CANCELED with a code."""

    state: StepState
    output: Any = None
    error_code: str | None = None
    error_message: str | None = None
    started_at: datetime | None = None


def mapped_key(name: str, index: int) -> str:
    """Key of a mapped step."""
    return f"{name}[{index}]"


def finish(definition: Definition, step: Step, outcome: Outcome, now: datetime) -> Step:
    """The row of a step whose attempt has ended: ended too, or pending until it is tried again."""
    ran = dataclasses.replace(step, started_at=outcome.started_at or step.started_at)
    if outcome.state is StepState.SUCCEEDED:
        return ran.ends(StepState.SUCCEEDED, now, output=outcome.output)
    code = outcome.error_code or outcome.state.value
    message = (outcome.error_message or "")[:MESSAGE_CHARS]
    retries = definition.steps[step.name].retries
    again = outcome.state in {StepState.FAILED, StepState.EXPIRED} and code not in _FINAL
    if not again or step.attempt >= retries.attempts:
        return ran.ends(outcome.state, now, code=code, message=message)
    STEP.check(step.state, StepState.PENDING)
    attempt = {
        "attempt": step.attempt, "job_id": None if step.job_id is None else str(step.job_id),
        "submitted_at": _iso(step.submitted_at), "started_at": _iso(ran.started_at),
        "completed_at": _iso(now), "error_code": code, "error_message": message,
        **({} if step.host is None else {"host": step.host}),
    }  # fmt: skip
    return dataclasses.replace(
        step, state=StepState.PENDING, job_id=None, placement=None, attempts=[*step.attempts, attempt],
        error_code=code, error_message=message, retry_at=now + retries.delay(step.attempt),
        submitted_at=None, started_at=None, completed_at=None,
    )  # fmt: skip


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def first_steps(
    definition: Definition, run_id: UUID, new_id: Callable[[], UUID], now: datetime
) -> list[Step]:
    """The rows that a new run begins with: one for each step of the definition."""
    return [
        Step(id=new_id(), run_id=run_id, key=step.name, name=step.name, created_at=now)
        for step in definition.order
    ]


def kept_for_retry(
    definition: Definition, steps: Mapping[str, Step], run_id: UUID, new_id: Callable[[], UUID],
    now: datetime,
) -> list[Step]:  # fmt: skip
    """The rows that a retry of a run begins with: what is done, and what is to be done again.

    A step is done if it has succeeded, or was skipped by its condition, and all that it needs is
    done. Of a mapped step that is to be done again, the items that succeeded are done.
    """
    done: set[str] = set()
    rows: list[Step] = []
    for step in definition.order:
        old = steps.get(step.name)
        settled = all(need in done for need in step.needs)
        if old is not None and settled and _done(old):
            done.add(step.name)
            rows.append(_copy(old, run_id, new_id()))
        else:
            rows.append(
                Step(id=new_id(), run_id=run_id, key=step.name, name=step.name, created_at=now)
            )
        if step.mapped and settled:
            rows += [_copy(s, run_id, new_id()) for s in _items(steps, step) if _kept(s)]
    return rows


def _copy(step: Step, run_id: UUID, id: UUID) -> Step:
    return dataclasses.replace(step, id=id, run_id=run_id)


def _kept(step: Step) -> bool:
    return step.state is StepState.SUCCEEDED


def _done(step: Step) -> bool:
    return step.state is StepState.SUCCEEDED or (
        step.state is StepState.SKIPPED and step.error_code == StepErrorCode.CONDITION_FALSE
    )


def _items(steps: Mapping[str, Step], step: StepDefinition) -> list[Step]:
    found = [s for s in steps.values() if s.name == step.name and s.map_index is not None]
    return sorted(found, key=lambda s: s.map_index or 0)
