"""Steps with a container: what they ask for, and what an attempt leaves in the row."""

import dataclasses
from datetime import timedelta
from typing import Any

from tests.unit.workflow.test_workflow_progress import BAD, NOW, World
from vyvo_dagster.domain.host import OpRequest
from vyvo_dagster.domain.workflow.run import finish
from vyvo_dagster.domain.workflow.state import StepState

STEP: dict[str, Any] = {
    "name": "up", "container": {"image": "a/b:1", "command": ["x", "${HOME}"], "env": {"A": "1"}},
    "run_on": {"pool": "p", "gpu": "h100:2", "memory": "1GiB", "cpus": 2}, "input": {"n": 1},
}  # fmt: skip


def test_it_starts_as_a_container_and_waits_for_its_host() -> None:
    world = World(STEP)
    (start,) = world.started
    assert (start.model, start.http, start.input) == (None, None, {"n": 1})
    assert start.container is not None
    # No shell and no expression reads a command.
    assert start.container.command == ("x", "${HOME}")
    assert start.container.request == OpRequest(
        pool="p", gpus=2, gpu_name="h100", memory_bytes=1 << 30, cpus=2.0
    )
    assert (world.state("up"), world.rows["up"].attempt) == (StepState.SUBMITTED, 1)


def test_an_attempt_that_failed_keeps_its_host_and_the_next_has_none() -> None:
    world = World({**STEP, "retries": {"attempts": 2, "backoff_seconds": 5}})
    placed = dataclasses.replace(
        world.rows["up"], state=StepState.RUNNING, started_at=NOW,
        placement={"host": "gpu-1", "devices": ["GPU-1"]},
    )  # fmt: skip
    assert (placed.host, placed.waiting) == ("gpu-1", None)
    again = finish(world.definition, placed, BAD, NOW)
    assert (again.state, again.host) == (StepState.PENDING, None)
    assert [attempt["host"] for attempt in again.attempts] == ["gpu-1"]
    world.rows["up"] = again
    world.now = NOW + timedelta(seconds=6)
    world.turn()
    assert [start.step.attempt for start in world.started] == [1, 2]
