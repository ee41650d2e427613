"""The state machines: every state is reachable, terminal states stay terminal."""

from enum import StrEnum

import pytest

from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.domain.job import JOB, JobState, after_lost_attempt, backoff
from vyvo_dagster.domain.model import VERSION, VersionState
from vyvo_dagster.domain.node import ASSIGNMENT, NODE, AssignmentState, NodeState
from vyvo_dagster.domain.pool import OPERATION, OperationState
from vyvo_dagster.domain.retention import ARTIFACT, SWEEP, ArtifactState, SweepState
from vyvo_dagster.domain.state import StateMachine
from vyvo_dagster.errors import IllegalTransition

MACHINES = [
    (BUILD, BuildState, BuildState.QUEUED),
    (JOB, JobState, JobState.QUEUED),
    (VERSION, VersionState, VersionState.DRAFT),
    (NODE, NodeState, NodeState.JOINING),
    (ASSIGNMENT, AssignmentState, AssignmentState.REQUESTED),
    (OPERATION, OperationState, OperationState.QUEUED),
    (ARTIFACT, ArtifactState, ArtifactState.STORED),
    (SWEEP, SweepState, SweepState.QUEUED),
]


@pytest.mark.parametrize(
    ("machine", "states", "first"), MACHINES, ids=lambda m: getattr(m, "name", None)
)
def test_every_state_can_be_reached(
    machine: StateMachine[StrEnum], states: type[StrEnum], first: StrEnum
) -> None:
    assert set(machine.arrows) == set(states)
    reached, todo = {first}, [first]
    while todo:
        for after in machine.arrows[todo.pop()] - reached:
            reached.add(after)
            todo.append(after)
    assert reached == set(states)


@pytest.mark.parametrize(
    ("machine", "terminal"),
    [
        (BUILD, {"succeeded", "failed", "canceled"}),
        (JOB, {"succeeded", "failed", "canceled", "expired"}),
        (VERSION, {"retired"}),
        (NODE, set[str]()),
        (ASSIGNMENT, {"removed"}),
        (OPERATION, {"succeeded", "failed"}),
    ],
)
def test_terminal_states(machine: StateMachine[StrEnum], terminal: set[str]) -> None:
    assert machine.terminal == terminal


def test_before_is_the_inverse_of_the_arrows() -> None:
    for after in JobState:
        assert JOB.before(after) == {s for s in JobState if JOB.allows(s, after)}


def test_an_arrow_that_is_not_there_names_both_states() -> None:
    with pytest.raises(IllegalTransition, match="job that is succeeded cannot become running"):
        JOB.check(JobState.SUCCEEDED, JobState.RUNNING)


@pytest.mark.parametrize(
    ("attempt", "handed_back", "state"),
    [(1, 0, "queued"), (2, 0, "queued"), (3, 0, "failed"), (3, 1, "queued"), (4, 1, "failed")],
)
def test_a_lost_attempt_is_charged_and_a_handed_back_one_is_not(
    attempt: int, handed_back: int, state: str
) -> None:
    after = after_lost_attempt(attempt, handed_back, max_attempts=3)
    assert after.state == state
    assert after.error_code == ("node_lost" if state == "failed" else None)


def test_the_wait_before_the_next_attempt_doubles_up_to_a_minute() -> None:
    assert [backoff(n).total_seconds() for n in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]
