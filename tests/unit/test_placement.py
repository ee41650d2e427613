"""Placement and fairness, as properties over generated clusters."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.fairness import AGING, in_order, rank
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.node import AssignmentState, HeartbeatPolicy, NodeState
from vyvo_dagster.domain.placement import Candidate, choose

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    slots = draw(st.integers(1, 4))
    return Candidate(
        node_id=draw(st.uuids()),
        assignment_id=draw(st.uuids()),
        node_state=draw(st.sampled_from(NodeState)),
        assignment_state=draw(st.sampled_from(AssignmentState)),
        schedulable=draw(st.booleans()),
        slots=slots,
        in_flight=draw(st.integers(0, slots + 1)),
        free_gpu_memory_bytes=draw(st.integers(0, 80 * 2**30)),
    )


def usable(candidate: Candidate) -> bool:
    return (
        candidate.node_state is NodeState.READY
        and candidate.assignment_state is AssignmentState.READY
        and candidate.schedulable
        and candidate.in_flight < candidate.slots
    )


@given(st.lists(candidates(), max_size=12))
def test_a_job_is_placed_exactly_when_some_node_can_take_it(found: list[Candidate]) -> None:
    chosen = choose(found)
    assert (chosen is not None) == any(usable(c) for c in found)
    assert chosen is None or usable(chosen)


@given(st.lists(candidates(), max_size=12), st.randoms())
def test_placement_does_not_depend_on_the_order_of_nodes(
    found: list[Candidate], random: object
) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a, b = choose(found), choose(shuffled)
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert (a.node_id, a.in_flight / a.slots) == (b.node_id, b.in_flight / b.slots)


@given(st.lists(candidates(), min_size=1, max_size=12))
def test_a_node_that_failed_is_taken_only_when_no_other_can(found: list[Candidate]) -> None:
    avoid = frozenset({found[0].node_id})
    chosen = choose(found, avoid)
    if chosen is not None and chosen.node_id in avoid:
        assert not any(usable(c) for c in found if c.node_id not in avoid)


@dataclass(frozen=True)
class Job:
    id: UUID
    priority: Priority
    created_at: datetime


jobs = st.builds(
    Job,
    id=st.uuids(),
    priority=st.sampled_from(Priority),
    created_at=st.timedeltas(timedelta(0), timedelta(hours=1)).map(lambda ago: NOW - ago),
)


@given(st.lists(jobs, max_size=20))
def test_order_is_by_rank_then_age(found: list[Job]) -> None:
    ordered = in_order(found, NOW)
    keys = [(rank(j.priority, NOW - j.created_at), j.created_at) for j in ordered]
    assert keys == sorted(keys)
    assert sorted(j.id for j in ordered) == sorted(j.id for j in found)


def test_waiting_lifts_a_batch_job_past_a_new_interactive_one() -> None:
    old = Job(UUID(int=2), Priority.BATCH, NOW - 2 * AGING)
    new = Job(UUID(int=1), Priority.INTERACTIVE, NOW)
    assert in_order([new, old], NOW) == [old, new]
    assert in_order([new, Job(old.id, Priority.BATCH, NOW)], NOW)[0] == new


def test_silence_makes_a_node_suspect_then_lost_and_lost_stays() -> None:
    policy = HeartbeatPolicy(timedelta(seconds=30), timedelta(seconds=60))
    at = [
        policy.state(NodeState.READY, NOW, NOW + timedelta(seconds=s)) for s in (0, 29, 30, 59, 60)
    ]
    assert at == ["ready", "ready", "suspect", "suspect", "lost"]
    assert policy.state(NodeState.LOST, NOW, NOW) is NodeState.LOST
