"""Placement, as properties over generated clusters."""

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.domain.placement import Candidate, choose, place


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


@given(st.lists(candidates(), max_size=8), st.lists(st.integers(0, 8), max_size=20))
def test_placing_many_is_placing_one_after_the_other(
    found: list[Candidate], failed_on: list[int]
) -> None:
    """`place` is `choose` for each job in turn, only faster; slots are never exceeded."""
    avoid = [
        frozenset({found[n].node_id}) if n < len(found) else frozenset[UUID]() for n in failed_on
    ]
    one_by_one: list[UUID | None] = []
    left = list(found)
    for each in avoid:
        chosen = choose(left, each)
        one_by_one.append(None if chosen is None else chosen.assignment_id)
        if chosen is not None:
            at = left.index(chosen)
            left[at] = replace(chosen, in_flight=chosen.in_flight + 1)
    together = place(found, avoid)
    assert [None if c is None else c.assignment_id for c in together] == one_by_one
    for candidate in found:
        taken = sum(1 for c in together if c is not None and c == candidate)
        assert taken <= candidate.free_slots
