"""What follows in a run from its rows as they are: a pure function, called after every change."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from vyvo_dagster.domain.workflow.definition import Definition, StepDefinition
from vyvo_dagster.domain.workflow.expression import Expression, ExpressionError
from vyvo_dagster.domain.workflow.fitting import mismatch
from vyvo_dagster.domain.workflow.names import Names, Sign
from vyvo_dagster.domain.workflow.operations import (
    HTTP,
    OPERATIONS,
    Operation,
    OperationFailed,
)
from vyvo_dagster.domain.workflow.run import Run, RunEnd, Start, Step, mapped_key
from vyvo_dagster.domain.workflow.state import (
    ACTIVE,
    RunErrorCode,
    RunState,
    StepErrorCode,
    StepState,
)
from vyvo_dagster.domain.workflow.template import render

__all__ = ["Decision", "advance"]

T = TypeVar("T")

_BAD: Final = frozenset({StepState.FAILED, StepState.EXPIRED, StepState.CANCELED})


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be written and done now.

    `changed` holds every row that is new or different, those of `start` included, in order;
    `stop` those whose attempt is to be canceled. `end` is set once every row has ended. Without a
    change of a row or a cancel, nothing follows before `wake_at`.
    """

    changed: Sequence[Step] = ()
    start: Sequence[Start] = ()
    stop: Sequence[Step] = ()
    end: RunEnd | None = None
    wake_at: datetime | None = None


def advance(
    definition: Definition, run: Run, steps: Mapping[str, Step], now: datetime,
    *, new_id: Callable[[], UUID], sign: Sign | None = None,
) -> Decision:  # fmt: skip
    """Everything that follows from a run's rows at once.

    Args:
        steps: all rows of the run by key.
        new_id: ids of new rows.
        sign: `s3://` location → URL that can be fetched, for `artifacts[i].presigned_url`.

    Calling it again with what it decided applied decides nothing new, but names those to stop
    again until they have ended. It starts an attempt only of
    a row that is pending, so no attempt is started twice.
    """
    return _Turn(definition, run, dict(steps), now, new_id, sign).take()


@dataclass
class _Turn:
    definition: Definition
    run: Run
    rows: dict[str, Step]
    now: datetime
    new_id: Callable[[], UUID]
    sign: Sign | None
    changed: dict[str, Step] = field(default_factory=dict[str, Step])
    start: list[Start] = field(default_factory=list[Start])
    stop: list[Step] = field(default_factory=list[Step])
    wakes: list[datetime] = field(default_factory=list[datetime])

    def take(self) -> Decision:
        self.items: dict[str, list[Step]] = {}
        for row in self.rows.values():
            if row.map_index is not None:
                self.items.setdefault(row.name, []).append(row)
        self.names = Names(self.definition, self.run, self.rows, self.sign)
        stopped = self._stopped()
        for step in self.definition.order:
            if step.name not in self.rows:
                self._set(self._new(step, None))
            if stopped is not None:
                self._end_step(step, stopped)
            elif not self.rows[step.name].ended:
                self._step(step)
        end = self._run_end(stopped)
        return Decision(
            changed=tuple(self.changed.values()), start=tuple(self.start), stop=tuple(self.stop),
            end=end, wake_at=min(self.wakes, default=None) if end is None else None,
        )  # fmt: skip

    def _stopped(self) -> StepErrorCode | None:
        if self.run.cancel_requested:
            return StepErrorCode.RUN_CANCELED
        if self.definition.timeout_seconds is None:
            return None
        deadline = self.run.started_at + timedelta(seconds=self.definition.timeout_seconds)
        if deadline <= self.now:
            return StepErrorCode.RUN_TIMEOUT
        self.wakes.append(deadline)
        return None

    def _step(self, step: StepDefinition) -> None:
        row = self.rows[step.name]
        if row.state is StepState.PENDING and row.attempt == 0:
            verdict = self._needs(step)
            if verdict is None:
                return
            if not verdict:
                self._set(row.ends(
                    StepState.SKIPPED, self.now, code=StepErrorCode.UPSTREAM_FAILED,
                    message=f"{', '.join(self._failed_needs(step))} did not succeed",
                ))  # fmt: skip
                return
            if step.when is not None and not self._condition(step, row, step.when):
                return
        if not step.mapped:
            if row.state is StepState.PENDING:
                self._begin(step, row)
        elif row.state is not StepState.PENDING or self._expand(step, row):
            self._map(step)

    def _needs(self, step: StepDefinition) -> bool | None:
        """Whether what it needs lets it go on; None while that is not known."""
        verdict: bool | None = True
        for need in step.needs:
            row = self.rows[need]
            if not row.ended:
                verdict = None
            elif self._blocks(row):
                return False
        return verdict

    def _blocks(self, row: Step) -> bool:
        if row.state in _BAD:
            return not self.definition.steps[row.name].continue_on_failure
        return row.state is StepState.SKIPPED and row.error_code != StepErrorCode.CONDITION_FALSE

    def _failed_needs(self, step: StepDefinition) -> list[str]:
        return [n for n in step.needs if self.rows[n].ended and self._blocks(self.rows[n])]

    def _condition(self, step: StepDefinition, row: Step, when: Expression) -> bool:
        said = f"when: {when.text} must be true or false"
        verdict = self._value(step, row, "when", when, bool, said)
        if verdict is None:
            return False
        if not verdict:
            self._set(row.ends(
                StepState.SKIPPED, self.now, code=StepErrorCode.CONDITION_FALSE,
                message=f"{when.text} is false",
            ))  # fmt: skip
        return verdict

    def _value(
        self, step: StepDefinition, row: Step, member: str, given: Any, kind: type[T], said: str
    ) -> T | None:  # fmt: skip
        """The value of a member of a step, of the right type; None where that has failed the step."""
        try:
            names = self.names.of(step)
            value = given.evaluate(names) if isinstance(given, Expression) else render(given, names)
        except ExpressionError as error:
            self._fail(row, StepErrorCode.EXPRESSION_FAILED, f"{member}: {error.detail}")
            return None
        if not isinstance(value, kind):
            said = f"{said}, not {type(value).__name__}"
            self._fail(row, StepErrorCode.EXPRESSION_FAILED, said)
            return None
        return value

    def _expand(self, step: StepDefinition, row: Step) -> bool:
        """Add the rows of a mapped step's items; whether it now runs."""
        said = "for_each must be a list"
        found = cast(
            "list[Any] | None", self._value(step, row, "for_each", step.for_each, list, said)
        )
        if found is None:
            return False
        if len(found) > step.max_items:
            self._fail(
                row, StepErrorCode.TOO_MANY_ITEMS,
                f"for_each has {len(found)} items; max_items is {step.max_items}",
            )  # fmt: skip
            return False
        self._set(dataclasses.replace(
            row, state=StepState.RUNNING, attempt=1, input={"items": found},
            submitted_at=self.now, started_at=self.now,
        ))  # fmt: skip
        for index in range(len(found)):
            if mapped_key(step.name, index) not in self.rows:
                self._set(self._new(step, index))
        return True

    def _map(self, step: StepDefinition) -> None:
        """Begin items as far as the limit allows; end the step with the last of them."""
        busy = sum(row.state in ACTIVE for row in self._items(step))
        for row in self._items(step):
            if step.limit is not None and busy >= step.limit:
                break
            if row.state is StepState.PENDING:
                self._begin(step, row)
                busy += self.rows[row.key].state in ACTIVE
        rows = self._items(step)
        if not all(row.ended for row in rows):
            return
        row, bad = self.rows[step.name], [r for r in rows if r.state in _BAD]
        output = [r.output for r in rows]
        if bad:
            self._set(row.ends(
                StepState.FAILED, self.now, output=output, code=StepErrorCode.ITEMS_FAILED,
                message=f"{len(bad)} of {len(rows)} items failed; "
                f"{bad[0].key}: {bad[0].error_code}: {bad[0].error_message or ''}",
            ))  # fmt: skip
        else:
            self._set(row.ends(StepState.SUCCEEDED, self.now, output=output))

    def _items(self, step: StepDefinition) -> list[Step]:
        found = [self.rows[row.key] for row in self.items.get(step.name, ())]
        return sorted(found, key=lambda r: r.map_index or 0)

    def _begin(self, step: StepDefinition, row: Step) -> None:
        """Start an attempt, or do a pure operation."""
        if row.retry_at is not None and row.retry_at > self.now:
            self.wakes.append(row.retry_at)
            return
        operation = None if step.operation is None else OPERATIONS[step.operation]
        try:
            names = self.names.of(step, row.map_index)
            later = frozenset[str]() if operation is None else operation.each_item
            given = {
                key: value if key in later else render(value, names, f"input.{key}")
                for key, value in step.input.items()
            }
            if operation is not None:
                _check_input(operation, given)
                if operation.act is not None:
                    self._set(self._done(row, given, operation.act(given, names)))
                    return
        except OperationFailed as error:
            self._fail(row, StepErrorCode.OPERATION_FAILED, error.detail)
            return
        except ExpressionError as error:
            self._fail(row, StepErrorCode.EXPRESSION_FAILED, error.detail)
            return
        http = step.operation == HTTP
        started = dataclasses.replace(
            row, state=StepState.RUNNING if http else StepState.SUBMITTED, attempt=row.attempt + 1,
            job_id=None, placement=None, input=given, error_code=None, error_message=None, retry_at=None,
            submitted_at=self.now, started_at=self.now if http else None,
        )  # fmt: skip
        self._set(started)
        self.start.append(Start(
            step=started, model=step.model, http=given if http else None,
            container=step.container, input=given,
            priority=self.run.priority or self.definition.priority_of(step),
            timeout_seconds=step.timeout_seconds,
        ))  # fmt: skip

    def _done(self, row: Step, given: Mapping[str, Any], output: Any) -> Step:
        begun = dataclasses.replace(
            row, attempt=row.attempt + 1, input=given, submitted_at=self.now, started_at=self.now
        )
        return begun.ends(StepState.SUCCEEDED, self.now, output=output)

    def _fail(self, row: Step, code: StepErrorCode, message: str) -> None:
        self._set(row.ends(StepState.FAILED, self.now, code=code, message=message))

    def _new(self, step: StepDefinition, index: int | None) -> Step:
        key = step.name if index is None else mapped_key(step.name, index)
        return Step(
            id=self.new_id(), run_id=self.run.id, key=key, name=step.name, map_index=index,
            created_at=self.now,
        )  # fmt: skip

    def _set(self, row: Step) -> None:
        if row.key not in self.rows and row.map_index is not None:
            self.items.setdefault(row.name, []).append(row)
        self.rows[row.key] = self.changed[row.key] = row
        self.names.forget(row.name)

    def _end_step(self, step: StepDefinition, code: StepErrorCode) -> None:
        """Of a run that is to stop: end what waits, stop what runs."""
        message = "the run was canceled" if code is StepErrorCode.RUN_CANCELED else (
            "the run took longer than its timeout"
        )  # fmt: skip
        for row in self._items(step):
            self._halt(row, code, message)
        row = self.rows[step.name]
        if not step.mapped or row.state is not StepState.RUNNING:
            self._halt(row, code, message)
        elif all(r.ended for r in self._items(step)):
            self._map(step)
            row = self.rows[step.name]
            if any(r.state is StepState.CANCELED for r in self._items(step)):
                self._set(dataclasses.replace(
                    row, state=StepState.CANCELED, error_code=code, error_message=message
                ))  # fmt: skip

    def _halt(self, row: Step, code: StepErrorCode, message: str) -> None:
        if row.state is StepState.PENDING:
            self._set(row.ends(StepState.CANCELED, self.now, code=code, message=message))
        elif not row.ended:
            self.stop.append(row)

    def _run_end(self, stopped: StepErrorCode | None) -> RunEnd | None:
        if not all(row.ended for row in self.rows.values()):
            return None
        rows = [self.rows[step.name] for step in self.definition.order]
        if any(row.state is StepState.CANCELED for row in rows):
            if stopped is StepErrorCode.RUN_CANCELED:
                return RunEnd(
                    RunState.CANCELED, None, RunErrorCode.CANCELED, "the run was canceled"
                )
            if stopped is StepErrorCode.RUN_TIMEOUT:
                return RunEnd(
                    RunState.FAILED, None, RunErrorCode.TIMEOUT,
                    f"the run took longer than {self.definition.timeout_seconds} s",
                )  # fmt: skip
        bad = [row for row in rows if row.state in _BAD and self._blocks(row)]
        if bad:
            first = bad[0]
            return RunEnd(
                RunState.FAILED, None, RunErrorCode.STEP_FAILED,
                f"step {first.key}: {first.error_code}: {first.error_message or ''}".rstrip(": "),
            )  # fmt: skip
        try:
            outputs = render(self.definition.outputs, self.names.of(None), "outputs")
        except ExpressionError as error:
            return RunEnd(RunState.FAILED, None, RunErrorCode.OUTPUTS_FAILED, error.detail)
        return RunEnd(RunState.SUCCEEDED, outputs)


def _check_input(operation: Operation, given: Mapping[str, Any]) -> None:
    now = {key: value for key, value in given.items() if key not in operation.each_item}
    if (fault := mismatch(now, operation.input_schema, operation.each_item)) is not None:
        raise OperationFailed(fault)
