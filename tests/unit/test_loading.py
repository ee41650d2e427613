"""Loading on demand, as properties over generated clusters."""

from datetime import timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.loading import Host, Idle, Loaded, Step, evict, expired, next_step, reserve
from vyvo_dagster.domain.node import AssignmentState, NodeState

IDS = [UUID(int=n) for n in range(1, 6)]
hosts = st.lists(
    st.builds(
        Host,
        node_id=st.sampled_from(IDS),
        state=st.sampled_from(NodeState),
        schedulable=st.booleans(),
        free_gpu_bytes=st.lists(st.integers(0, 100), max_size=3),
        assignments=st.integers(0, 3),
    ),
    max_size=5,
    unique_by=lambda host: host.node_id,
)
loaded = st.lists(
    st.builds(Loaded, node_id=st.sampled_from(IDS), state=st.sampled_from(AssignmentState)),
    max_size=5,
    unique_by=lambda a: a.node_id,
)
UNDER_WAY = (AssignmentState.REQUESTED, AssignmentState.PULLING, AssignmentState.LOADING)


@given(hosts, loaded, st.integers(0, 120))
def test_one_load_at_a_time_on_a_node_that_can_and_has_not_failed(
    found: list[Host], there: list[Loaded], needed: int
) -> None:
    step = next_step(found, there, needed)
    working = {h.node_id for h in found if h.state is NodeState.READY and h.schedulable}
    states = {a.state for a in there if a.node_id in working}
    can = [
        h
        for h in found
        if h.node_id in working
        and h.node_id not in {a.node_id for a in there}
        and (needed == 0 or any(free >= needed for free in h.free_gpu_bytes))
    ]
    served, under_way = AssignmentState.READY in states, states & set(UNDER_WAY)
    assert (step.load_on is not None) == (not served and not under_way and bool(can))
    if step.load_on is not None:
        assert step.load_on in {h.node_id for h in can}
    if served:
        assert step == Step()
        assert not step.no_room
    elif under_way:
        assert step.state in UNDER_WAY
    elif step.state is AssignmentState.FAILED:
        assert not can


@given(hosts, loaded, st.integers(0, 120), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_nodes(
    found: list[Host], there: list[Loaded], needed: int, random: object
) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert next_step(found, there, needed).load_on == next_step(shuffled, there, needed).load_on


@given(st.lists(st.integers(0, 100), max_size=4), st.lists(st.integers(0, 120), max_size=4))
def test_what_is_being_loaded_is_not_given_twice(free: list[int], loads: list[int]) -> None:
    left = reserve(free, loads)
    assert len(left) == len(free)
    assert all(0 <= after <= before for after, before in zip(left, free, strict=True))
    assert sum(left) >= sum(free) - sum(loads)


def test_the_gpu_that_it_fits_most_tightly() -> None:
    wide, tight = (
        Host(id_, NodeState.READY, True, free, 0)
        for id_, free in zip(IDS, ([80, 10], [40, 24]), strict=False)
    )
    assert next_step([wide, tight], [], 20).load_on == tight.node_id
    assert next_step([wide, tight], [], 60).load_on == wide.node_id
    assert next_step([wide, tight], [], 90) == Step(no_room=True)


idle = st.lists(
    st.builds(
        Idle,
        assignment_id=st.uuids(),
        node_id=st.sampled_from(IDS),
        gpu_memory_bytes=st.integers(0, 60),
        idle_for=st.integers(0, 100).map(lambda s: timedelta(seconds=s)),
    ),
    max_size=8,
    unique_by=lambda i: i.assignment_id,
)


@given(hosts, idle, st.integers(1, 120), st.sets(st.sampled_from(IDS)))
def test_the_longest_idle_goes_where_that_helps_and_one_at_a_time(
    found: list[Host], unused: list[Idle], needed: int, unloading: set[UUID]
) -> None:
    gone = evict(found, unused, needed, unloading)
    useful = {
        h.node_id
        for h in found
        if h.takes_work
        and sum(h.free_gpu_bytes)
        + sum(i.gpu_memory_bytes for i in unused if i.node_id == h.node_id)
        >= needed
    }
    can = [i for i in unused if i.node_id in useful and i.gpu_memory_bytes > 0]
    assert (gone is not None) == (bool(can) and not useful & unloading)
    if gone is not None:
        assert gone in can
        assert gone.idle_for == max(i.idle_for for i in can)


@given(idle)
def test_idle_for_too_long(unused: list[Idle]) -> None:
    limit = timedelta(seconds=50)
    assert {i.assignment_id for i in expired(unused, limit)} == {
        i.assignment_id for i in unused if i.idle_for >= limit
    }
