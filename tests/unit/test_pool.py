"""The scaling policy and the choice of nodes, as properties."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.pool import (
    Change,
    Member,
    Policy,
    change,
    check_size,
    decide,
    leaving,
    parse_pool_name,
)
from vyvo_dagster.errors import InvalidInput

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    least = draw(st.integers(0, 6))
    return Policy(
        min_size=least,
        max_size=least + draw(st.integers(0, 12)),
        queue_depth_target=draw(st.none() | st.integers(1, 20)),
        cool_down=timedelta(seconds=draw(st.integers(0, 600))),
    )


def step(policy: Policy, size: int, waiting: int, busy: int = 0) -> int:
    found = decide(policy, size=size, waiting=waiting, busy=busy, scaled_at=None, now=NOW)
    return found.size


@given(
    policies(), st.integers(0, 40), st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 900)
)
def test_never_below_the_least_nor_above_the_greatest_size(
    policy: Policy, size: int, waiting: int, busy: int, age: int
) -> None:
    found = decide(
        policy, size=size, waiting=waiting, busy=busy,
        scaled_at=NOW - timedelta(seconds=age), now=NOW,
    )  # fmt: skip
    assert policy.min_size <= found.size <= policy.max_size
    assert found.reason


@given(policies(), st.data())
def test_within_the_cool_down_a_size_in_bounds_stays(policy: Policy, data: st.DataObject) -> None:
    size = data.draw(st.integers(policy.min_size, policy.max_size))
    policy = replace(policy, cool_down=policy.cool_down + timedelta(seconds=1))
    age = data.draw(st.floats(0, policy.cool_down.total_seconds() - 0.001))
    found = decide(
        policy, size=size, waiting=data.draw(st.integers(0, 10_000)), busy=0,
        scaled_at=NOW - timedelta(seconds=age), now=NOW,
    )  # fmt: skip
    assert found.size == size


@given(policies(), st.data())
def test_out_of_bounds_is_mended_even_within_the_cool_down(
    policy: Policy, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, 40))
    found = decide(policy, size=size, waiting=0, busy=size, scaled_at=NOW, now=NOW)
    assert found.size == min(max(size, policy.min_size), policy.max_size)


@given(policies(), st.data())
def test_a_queue_within_a_factor_of_two_never_makes_it_go_up_and_down(
    policy: Policy, data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, 500))
    size = data.draw(st.integers(policy.min_size, policy.max_size))
    directions: set[bool] = set()
    for waiting in data.draw(st.lists(st.integers(low, 2 * low), min_size=1, max_size=20)):
        after = step(policy, size, waiting)
        if after != size:
            directions.add(after > size)
        size = after
    assert len(directions) < 2


@given(policies(), st.integers(0, 1000), st.data())
def test_an_even_queue_settles_at_once_upwards_and_one_by_one_downwards(
    policy: Policy, waiting: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(policy.min_size, policy.max_size))
    grown = step(policy, size, waiting)
    if grown > size:
        assert step(policy, grown, waiting) == grown
        assert grown == policy.max_size or grown * (policy.queue_depth_target or 0) >= waiting
    assert grown >= size - 1


@given(policies(), st.integers(0, 1000), st.data())
def test_it_never_shrinks_below_what_is_busy(
    policy: Policy, waiting: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(policy.min_size, policy.max_size))
    busy = data.draw(st.integers(0, size))
    assert step(policy, size, waiting, busy) >= busy


def test_an_idle_pool_goes_down_to_nothing_and_the_first_job_brings_a_node() -> None:
    policy = Policy(0, 4, 5, timedelta(0))
    sizes = [4]
    while (after := step(policy, sizes[-1], 0)) != sizes[-1]:
        sizes.append(after)
    assert sizes == [4, 3, 2, 1, 0]
    assert [step(policy, 0, waiting) for waiting in (0, 1, 5, 6, 100)] == [0, 1, 1, 2, 4]


@st.composite
def pools(draw: st.DrawFn) -> list[Member]:
    numbers = draw(st.sets(st.integers(1, 30), max_size=12))
    return [
        Member(f"a-{n}", draw(st.integers(0, 3)), draw(st.booleans()), draw(st.booleans()))
        for n in numbers
    ]


@given(pools(), st.integers(0, 20))
def test_a_change_ends_at_the_size_asked_with_nothing_twice(
    members: list[Member], size: int
) -> None:
    made = change("a", members, size)
    assert len(made.names) == len(set(made.names)) == size
    assert not set(made.add) & {m.name for m in members}
    assert set(made.keep) | set(made.remove) == {m.name for m in members}
    assert not (made.add and made.remove)
    # Asked for again when it is done, it changes nothing.
    assert change("a", [Member(name, 0) for name in made.names], size) == Change(
        "a", size, made.names
    )


@given(pools(), st.integers(0, 12))
def test_none_that_works_goes_while_one_that_does_not_stays(
    members: list[Member], count: int
) -> None:
    gone = set(leaving(members, count))
    assert len(gone) == min(count, len(members))

    def works(member: Member) -> int:
        return member.running if member.ready and not member.cordoned else 0

    stay = [m for m in members if m.name not in gone]
    assert not any(m.name in gone and works(m) > 0 and not s.ready for m in members for s in stay)
    plain = [m for m in members if m.ready and not m.cordoned]
    leave = [m.running for m in plain if m.name in gone]
    kept = [m.running for m in plain if m.name not in gone]
    assert not leave or not kept or max(leave) <= min(kept)


def test_of_equals_the_newest_goes_and_numbers_are_used_again() -> None:
    members = [Member(f"a-{n}", 0) for n in (1, 2, 10)]
    assert leaving(members, 1) == ["a-10"]
    assert change("a", members[:1] + members[2:], 3).add == ("a-2",)
    assert change("a", members, 2).names == ("a-1", "a-2")


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "a" * 41, "a\n", "..", "é"])
def test_names_that_are_no_pool_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="pool's name"):
        parse_pool_name(name)


def test_a_size_out_of_bounds_is_refused() -> None:
    policy = Policy(1, 3, None, timedelta(0))
    assert [check_size(policy, size) for size in (1, 3)] == [1, 3]
    for size in (0, 4):
        with pytest.raises(InvalidInput, match="1 to 3"):
            check_size(policy, size)
