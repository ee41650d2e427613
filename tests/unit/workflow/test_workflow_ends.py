"""Random graphs with random outcomes: every run ends, and no step starts early or twice."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workflow.test_workflow_progress import BAD, NOW, OK, RUN_ID, ids
from vyvo_dagster.domain.workflow.definition import Definition, parse
from vyvo_dagster.domain.workflow.progress import Decision, advance
from vyvo_dagster.domain.workflow.run import Outcome, Run, Step, finish, first_steps
from vyvo_dagster.domain.workflow.state import ACTIVE, RunState, StepErrorCode, StepState
from vyvo_dagster.domain.workflow.validation import check


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 7))):
        name = f"s{index}"
        needs = draw(st.sets(st.sampled_from([s["name"] for s in steps]))) if steps else set()
        step: dict[str, Any] = {"name": name, "needs": sorted(needs)}
        kind = draw(st.sampled_from(["model", "model", "http", "pure", "fail"]))
        if kind == "model":
            step |= {"model": "t/m", "input": {"x": "${{ item }}"}}
        elif kind == "http":
            step |= {"operation": "http", "input": {"url": "http://x/"}}
        elif kind == "pure":
            step |= {"operation": "concat", "input": {"values": ["a"]}}
        else:
            step |= {"operation": "fail", "input": {"message": "no"}}
        if draw(st.booleans()):
            step["for_each"] = draw(st.lists(st.integers(0, 3), max_size=4))
            step["limit"] = draw(st.integers(1, 3))
        elif kind == "model":
            step["input"] = {}
        if draw(st.booleans()):
            step["retries"] = {"attempts": draw(st.integers(1, 3)), "backoff_seconds": 1}
        if draw(st.integers(0, 3)) == 0:
            step["when"] = draw(st.sampled_from(["${{ true }}", "${{ false }}"]))
        step["continue_on_failure"] = draw(st.integers(0, 3)) == 0
        steps.append(step)
    order = draw(st.permutations(steps))
    document: dict[str, Any] = {"name": "w", "steps": list(order)}
    if draw(st.integers(0, 4)) == 0:
        document["timeout_seconds"] = draw(st.integers(1, 6))
    return document


OUTCOMES = [
    OK, OK, OK, BAD, Outcome(StepState.EXPIRED), Outcome(StepState.CANCELED, error_code="canceled"),
]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(documents(), st.data())
def test_every_run_ends_and_no_step_starts_early_or_twice(
    document: dict[str, Any], data: st.DataObject
) -> None:
    assert check(document, {}) == [] or all(p.code == "unknown_model" for p in check(document, {}))
    definition = parse(document)
    new_id = ids()
    rows = {s.key: s for s in first_steps(definition, RUN_ID, new_id, NOW)}
    run, now = Run(RUN_ID, {}, NOW), NOW
    started: set[tuple[str, int]] = set()
    cancel_at = data.draw(st.integers(0, 60))
    for turn in range(400):
        if turn == cancel_at:
            run = dataclasses.replace(run, cancel_requested=True)
        decision = advance(definition, run, rows, now, new_id=new_id)
        before = dict(rows)
        rows |= {row.key: row for row in decision.changed}
        for start in decision.start:
            step = start.step
            attempt = (step.key, step.attempt)
            assert attempt not in started
            started.add(attempt)
            assert step.attempt <= definition.steps[step.name].retries.attempts
            assert all(rows[need].ended for need in definition.steps[step.name].needs)
            assert before.get(step.key) is None or before[step.key].state is StepState.PENDING
            assert not run.cancel_requested
        for step in definition.steps.values():
            busy = [
                r for r in rows.values()
                if r.name == step.name and r.map_index is not None and r.state in ACTIVE
            ]  # fmt: skip
            assert step.limit is None or len(busy) <= step.limit
        again = advance(definition, run, rows, now, new_id=new_id)
        assert (again.changed, again.start) == ((), ())
        if decision.end is not None:
            assert all(row.ended for row in rows.values())
            _judge(definition, run, rows, decision)
            return
        active = [
            r for r in rows.values()
            if r.state in ACTIVE and not (definition.steps[r.name].mapped and r.map_index is None)
        ]  # fmt: skip
        if active:
            row = data.draw(st.sampled_from(active))
            outcome = data.draw(st.sampled_from(OUTCOMES))
            rows[row.key] = finish(definition, row, outcome, now)
        else:
            assert decision.wake_at is not None, "nothing runs, and nothing will"
            now = decision.wake_at
    raise AssertionError("the run did not end")


def _judge(definition: Definition, run: Run, rows: Mapping[str, Step], decision: Decision) -> None:
    """A run has succeeded exactly where nothing that counts has failed."""
    assert decision.end is not None
    bad = {StepState.FAILED, StepState.EXPIRED, StepState.CANCELED}
    counted = [
        s for s in definition.steps.values()
        if rows[s.name].state in bad and not s.continue_on_failure
    ]  # fmt: skip
    halted = any(
        rows[s.name].error_code in {StepErrorCode.RUN_CANCELED, StepErrorCode.RUN_TIMEOUT}
        for s in definition.steps.values()
    )
    if counted or halted:
        assert decision.end.state is not RunState.SUCCEEDED
