"""Placement, as properties over generated clusters."""

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.loading import Host
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.domain.placement import Candidate, Homeless, choose, place, rehome


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


NODES = [UUID(int=n) for n in range(1, 6)]
VERSIONS = [UUID(int=n) for n in range(10, 14)]
homeless = st.lists(
    st.builds(
        Homeless,
        assignment_id=st.uuids(),
        version_id=st.sampled_from(VERSIONS),
        gpu_memory_bytes=st.integers(0, 100),
    ),
    max_size=8,
    unique_by=lambda h: h.assignment_id,
)
hosts = st.lists(
    st.builds(
        Host,
        node_id=st.sampled_from(NODES),
        state=st.sampled_from(NodeState),
        schedulable=st.booleans(),
        free_gpu_bytes=st.lists(st.integers(0, 100), max_size=3),
        assignments=st.integers(0, 3),
    ),
    max_size=5,
    unique_by=lambda host: host.node_id,
)
present = st.dictionaries(st.sampled_from(VERSIONS), st.sets(st.sampled_from(NODES)))


@given(homeless, hosts, present)
def test_what_moves_fits_and_goes_only_where_it_is_not_yet(
    moving: list[Homeless], found: list[Host], there: dict[UUID, set[UUID]]
) -> None:
    placed = rehome(moving, found, there, {})
    by_id = {host.node_id: host for host in found}
    by_assignment = {each.assignment_id: each for each in moving}
    pairs = [(by_assignment[a].version_id, node) for a, node in placed.items()]
    assert len(set(pairs)) == len(pairs)
    for version, node in pairs:
        assert node not in there.get(version, set())
        assert by_id[node].takes_work
    for node, host in by_id.items():
        loads = sorted(by_assignment[a].gpu_memory_bytes for a, n in placed.items() if n == node)
        assert sum(loads) <= sum(host.free_gpu_bytes)
        assert not loads or loads[-1] <= max(host.free_gpu_bytes, default=0)


@given(homeless, hosts, present)
def test_nothing_stays_behind_that_a_node_has_room_for(
    moving: list[Homeless], found: list[Host], there: dict[UUID, set[UUID]]
) -> None:
    placed = rehome(moving, found, there, {})
    for each in moving:
        if each.assignment_id in placed or any(each.version_id == m.version_id for m in moving
                                               if m.assignment_id in placed):  # fmt: skip
            continue
        for host in found:
            if not host.takes_work or host.node_id in there.get(each.version_id, set()):
                continue
            # Where nothing else went, it did not fit.
            if host.node_id not in placed.values():
                assert host.room(each.gpu_memory_bytes) is None


@given(homeless, hosts, present, st.randoms())
def test_where_to_does_not_depend_on_the_order(
    moving: list[Homeless], found: list[Host], there: dict[UUID, set[UUID]], random: object
) -> None:
    placed = rehome(moving, found, there, {})
    random.shuffle(moving)  # type: ignore[attr-defined]
    random.shuffle(found)  # type: ignore[attr-defined]
    assert rehome(moving, found, there, {}) == placed


@given(homeless, hosts, present)
def test_what_was_loaded_on_demand_is_kept_first_and_once(
    moving: list[Homeless], found: list[Host], there: dict[UUID, set[UUID]]
) -> None:
    placed = rehome(moving, found, there, there)
    working = {host.node_id for host in found if host.takes_work}
    for version in VERSIONS:
        asked = [m.assignment_id for m in moving if m.version_id == version]
        spare = there.get(version, set()) & working
        nodes = [placed[a] for a in asked if a in placed]
        assert len(set(nodes)) == len(nodes)
        assert len(spare & set(nodes)) == min(len(asked), len(spare))
