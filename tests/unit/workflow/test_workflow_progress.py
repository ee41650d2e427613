"""The course of a run, as properties over random graphs and as single cases."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from vyvo_dagster.domain.workflow.definition import Definition, parse
from vyvo_dagster.domain.workflow.progress import Decision, advance
from vyvo_dagster.domain.workflow.run import (
    Outcome,
    Run,
    Start,
    Step,
    finish,
    first_steps,
    kept_for_retry,
)
from vyvo_dagster.domain.workflow.state import (
    ACTIVE,
    RunErrorCode,
    RunState,
    StepErrorCode,
    StepState,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN_ID = UUID(int=1)
ARTIFACT = {
    "type": "image", "url": "s3://vyvo-image/a.png", "size_bytes": 3, "mime_type": "image/png",
    "expires_at": None,
}  # fmt: skip
OK = Outcome(StepState.SUCCEEDED, output={"n": 1})
BAD = Outcome(StepState.FAILED, error_code="prediction_failed", error_message="boom")


def ids() -> Callable[[], UUID]:
    numbers = count(100)
    return lambda: UUID(int=next(numbers))


class World:
    """A run that is driven step by step, as an engine does it."""

    def __init__(
        self, *steps: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        declared = {name: {} for name in inputs or {}}
        document = {"name": "w", "inputs": declared, "steps": list(steps), **more}
        self.definition: Definition = parse(document)
        self.now = NOW
        self.run = Run(RUN_ID, inputs or {}, NOW)
        self.new_id = ids()
        self.rows: dict[str, Step] = {
            s.key: s for s in first_steps(self.definition, RUN_ID, self.new_id, NOW)
        }
        self.started: list[Start] = []
        self.last = Decision()
        self.turn()

    def turn(self) -> Decision:
        self.last = advance(
            self.definition, self.run, self.rows, self.now, new_id=self.new_id,
            sign=lambda url: f"https://signed/{url}",
        )  # fmt: skip
        self.rows |= {row.key: row for row in self.last.changed}
        self.started += self.last.start
        return self.last

    def end(self, key: str, outcome: Outcome = OK) -> None:
        self.rows[key] = finish(self.definition, self.rows[key], outcome, self.now)
        self.turn()

    def state(self, key: str) -> str:
        return str(self.rows[key].state)

    @property
    def active(self) -> list[str]:
        return [s.step.key for s in self.started if self.rows[s.step.key].state in ACTIVE]


def model(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "t/m", **more}


def test_a_chain_runs_in_order_and_hands_on_what_it_made() -> None:
    world = World(
        model("b", input={"x": "${{ steps.a.output.n }}", "u": "${{ steps.a.artifacts[0].presigned_url }}"}),
        model("a", input={"s": "${{ inputs.s }}"}),
        inputs={"s": 5}, outputs={"y": "${{ steps.b.output }}"},
    )  # fmt: skip
    assert world.active == ["a"]
    assert world.started[0].input == {"s": 5}
    world.end("a", Outcome(StepState.SUCCEEDED, output={"n": 7, "image": ARTIFACT}))
    assert world.active == ["b"]
    assert world.started[1].input == {"x": 7, "u": "https://signed/s3://vyvo-image/a.png"}
    world.end("b")
    end = world.last.end
    assert end is not None
    assert (end.state, end.outputs) == (RunState.SUCCEEDED, {"y": {"n": 1}})


def test_branches_run_at_the_same_time_and_one_that_fails_leaves_the_other() -> None:
    world = World(
        model("a"), model("left", needs=["a"]), model("right", needs=["a"]),
        model("after", needs=["left"]), model("both", needs=["left", "right"]),
    )  # fmt: skip
    world.end("a")
    assert world.active == ["left", "right"]
    world.end("left", BAD)
    assert [world.state(k) for k in ("after", "both", "right")] == [
        "skipped",
        "skipped",
        "submitted",
    ]
    assert world.rows["after"].error_code == StepErrorCode.UPSTREAM_FAILED
    assert world.last.end is None
    world.end("right")
    assert world.last.end is not None
    assert world.last.end.error_code == RunErrorCode.STEP_FAILED
    assert world.last.end.error_message == "step left: prediction_failed: boom"


def test_a_condition_skips_its_step_and_not_what_needs_it() -> None:
    world = World(
        model("a", when="${{ inputs.n > 3 }}"), model("b", when="${{ inputs.n <= 3 }}"),
        model("c", input={"v": "${{ coalesce(steps.a.output.n, steps.b.output.n) }}"}),
        inputs={"n": 1},
    )  # fmt: skip
    assert world.state("a") == "skipped"
    world.end("b")
    assert world.started[-1].input == {"v": 1}


def test_a_failure_that_may_be_lets_the_run_go_on() -> None:
    world = World(
        model("a", continue_on_failure=True),
        model("b", when="${{ steps.a.state == 'failed' }}", input={"e": "${{ steps.a.error_code }}"}),
    )  # fmt: skip
    world.end("a", BAD)
    assert world.started[-1].input == {"e": "prediction_failed"}
    world.end("b")
    assert world.last.end is not None
    assert world.last.end.state is RunState.SUCCEEDED


def test_a_list_is_mapped_within_its_limit_and_its_outputs_keep_their_order() -> None:
    world = World(
        model("each", for_each="${{ inputs.xs }}", limit=2, input={"x": "${{ item }}", "i": "${{ index }}"}),
        {"name": "all", "operation": "select",
         "input": {"items": "${{ steps.each.output }}", "value": "${{ item * 10 + index }}"}},
        inputs={"xs": [5, 6, 7, 8]}, outputs={"all": "${{ steps.all.output }}"},
    )  # fmt: skip
    assert world.active == ["each[0]", "each[1]"]
    world.end("each[1]", Outcome(StepState.SUCCEEDED, output=1))
    assert world.active == ["each[0]", "each[2]"]
    for key, made in (("each[2]", 2), ("each[3]", 3), ("each[0]", 0)):
        world.end(key, Outcome(StepState.SUCCEEDED, output=made))
    assert world.rows["each"].output == [0, 1, 2, 3]
    assert [s.input for s in world.started] == [{"x": 5 + i, "i": i} for i in (0, 1, 2, 3)]
    assert world.last.end is not None
    assert world.last.end.outputs == {"all": [0, 11, 22, 33]}


def test_an_empty_list_is_done_at_once() -> None:
    world = World(model("a", for_each=[]), outputs={"o": "${{ steps.a.output }}"})
    assert world.last.end is not None
    assert world.last.end.outputs == {"o": []}


def test_more_items_than_it_takes_fail_the_step() -> None:
    world = World(model("a", for_each="${{ inputs.xs }}", max_items=2), inputs={"xs": [1, 2, 3]})
    assert world.rows["a"].error_code == StepErrorCode.TOO_MANY_ITEMS


def test_items_that_fail_fail_the_step_once_all_have_ended() -> None:
    world = World(model("a", for_each=[1, 2]), model("b", needs=["a"]))
    world.end("a[0]", BAD)
    assert world.state("a") == "running"
    world.end("a[1]")
    assert (world.state("a"), world.state("b")) == ("failed", "skipped")
    assert world.rows["a"].error_message == "1 of 2 items failed; a[0]: prediction_failed: boom"
    assert world.rows["a"].output == [None, {"n": 1}]


def test_a_failed_attempt_is_tried_again_after_its_backoff() -> None:
    world = World(model("a", retries={"attempts": 3, "backoff_seconds": 2, "backoff_factor": 3}))
    world.end("a", BAD)
    assert world.state("a") == "pending"
    assert world.last.wake_at == NOW + timedelta(seconds=2)
    assert world.turn().start == ()
    world.now += timedelta(seconds=2)
    world.turn()
    assert world.rows["a"].attempt == 2
    world.end("a", Outcome(StepState.EXPIRED, error_code="expired"))
    assert world.last.wake_at == world.now + timedelta(seconds=6)
    world.now += timedelta(seconds=6)
    world.turn()
    world.end("a", BAD)
    assert world.state("a") == "failed"
    assert [a["error_code"] for a in world.rows["a"].attempts] == ["prediction_failed", "expired"]
    assert world.last.end is not None


@pytest.mark.parametrize("outcome", [
    Outcome(StepState.FAILED, error_code="input_schema_mismatch"),
    Outcome(StepState.CANCELED, error_code="canceled"),
])  # fmt: skip
def test_what_would_end_the_same_is_not_tried_again(outcome: Outcome) -> None:
    world = World(model("a", retries={"attempts": 3}))
    world.end("a", outcome)
    assert world.rows["a"].state is outcome.state


def test_a_cancel_ends_what_waits_at_once_and_stops_what_runs() -> None:
    world = World(model("a"), model("m", for_each=[1, 2, 3], limit=1), model("z", needs=["a"]))
    world.run = dataclasses.replace(world.run, cancel_requested=True)
    world.turn()
    assert [s.key for s in world.last.stop] == ["a", "m[0]"]
    assert [world.state(k) for k in ("z", "m[1]", "m[2]", "m")] == ["canceled"] * 3 + ["running"]
    world.end("m[0]", Outcome(StepState.CANCELED, error_code="canceled"))
    assert world.state("m") == "canceled"
    world.end("a")
    assert world.last.end is not None
    assert world.last.end.state is RunState.CANCELED


def test_a_run_that_takes_too_long_fails() -> None:
    world = World(model("a"), model("b", needs=["a"]), timeout_seconds=60)
    assert world.last.wake_at == NOW + timedelta(seconds=60)
    world.now += timedelta(seconds=60)
    assert [s.key for s in world.turn().stop] == ["a"]
    world.end("a", Outcome(StepState.CANCELED, error_code="canceled"))
    assert world.last.end is not None
    assert (world.last.end.state, world.last.end.error_code) == (
        RunState.FAILED,
        RunErrorCode.TIMEOUT,
    )


def test_an_expression_without_a_value_fails_its_step_with_the_place() -> None:
    world = World(model("a"), model("b", input={"x": ["${{ steps.a.output.m }}"]}))
    world.end("a")
    assert world.rows["b"].error_code == StepErrorCode.EXPRESSION_FAILED
    assert world.rows["b"].error_message == (
        "input.x[0]: steps.a.output.m: there is no 'm'; there is n"
    )


def test_outputs_without_a_value_fail_the_run() -> None:
    world = World(model("a"), outputs={"o": "${{ steps.a.output.m }}"})
    world.end("a")
    assert world.last.end is not None
    assert world.last.end.error_code == RunErrorCode.OUTPUTS_FAILED


@pytest.mark.parametrize(("operation", "given", "made"), [
    ("concat", {"values": [[1], [2, 3]]}, [1, 2, 3]),
    ("concat", {"values": ["a", 1, "b"], "separator": ", "}, "a, 1, b"),
    ("filter", {"items": [1, 5, 9], "where": "${{ item > 3 and index < 2 }}"}, [5]),
    ("select", {"items": [{"a": 1}, {"a": 2}], "value": {"b": "${{ item.a + inputs.n }}"}}, [{"b": 11}, {"b": 12}]),
    ("merge", {"objects": [{"a": 1}, None, {"a": 2, "b": 3}]}, {"a": 2, "b": 3}),
    ("zip", {"lists": {"a": [1, 2], "b": ["x", "y"]}}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ("chunk", {"items": [1, 2, 3], "size": 2}, [[1, 2], [3]]),
])  # fmt: skip
def test_operations(operation: str, given: Mapping[str, Any], made: Any) -> None:
    world = World({"name": "o", "operation": operation, "input": given}, inputs={"n": 10})
    assert world.rows["o"].output == made, world.rows["o"].error_message


@pytest.mark.parametrize(("operation", "given", "says"), [
    ("concat", {"values": [[1], "a"]}, "lists only"),
    ("concat", {"values": "${{ inputs.n }}"}, r"\$.values: must be array, not integer"),
    ("filter", {"items": [1], "where": "${{ item }}"}, "true or false"),
    ("zip", {"lists": {"a": [1], "b": []}}, "one length: a has 1, b has 0"),
    ("fail", {"message": "n is ${{ inputs.n }}"}, "n is 10"),
    ("http", {"url": "${{ inputs.n }}"}, "must be string"),
])  # fmt: skip
def test_operations_say_what_is_wrong(operation: str, given: Mapping[str, Any], says: str) -> None:
    world = World({"name": "o", "operation": operation, "input": given}, inputs={"n": 10})
    assert world.state("o") == "failed"
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(world.rows["o"].error_message)


def test_a_retry_keeps_what_succeeded_and_does_the_rest() -> None:
    world = World(
        model("a"), model("m", for_each=[1, 2], needs=["a"]), model("b", needs=["m"]),
        model("off", when="${{ false }}"), model("c", needs=["a"]),
    )  # fmt: skip
    world.end("a")
    world.end("m[0]", BAD)
    world.end("m[1]")
    world.end("c")
    assert world.last.end is not None
    kept = kept_for_retry(world.definition, world.rows, UUID(int=2), world.new_id, NOW)
    again = World(model("a"))
    again.definition, again.run = world.definition, dataclasses.replace(world.run, id=UUID(int=2))
    again.rows, again.started = {s.key: s for s in kept}, []
    again.turn()
    assert [s.step.key for s in again.started] == ["m[0]"]
    assert {again.state(k) for k in ("a", "c", "m[1]")} == {"succeeded"}
    again.end("m[0]")
    again.end("b")
    assert again.last.end is not None
    assert again.last.end.state is RunState.SUCCEEDED
    assert not {s.id for s in kept} & {s.id for s in world.rows.values()}
