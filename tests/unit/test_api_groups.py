"""What many nodes ask for at once, served together."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from uuid import UUID, uuid4

import pytest

from api.nodes.groups import Groups
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.errors import InvalidInput, StaleBoot, Unauthenticated, Unavailable


class Served:
    """Doubles a number; what else it does the number says."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    async def __call__(self, asked: Mapping[UUID, int]) -> Mapping[UUID, int | Exception]:
        self.groups.append(list(asked.values()))
        await asyncio.sleep(0.01)
        if -1 in asked.values():
            raise InvalidInput("one that no column can hold")
        if -2 in asked.values():
            raise Unavailable("the database is away")
        answers: dict[UUID, int | Exception] = {
            node: 2 * number if number else Unauthenticated("zero")
            for node, number in asked.items()
            if number != 404
        }
        return answers


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def groups(served: Served) -> AsyncIterator["Groups[int, int]"]:
    made: Groups[int, int] = Groups(served)
    running = asyncio.create_task(made.run())
    yield made
    await cancel_all([running])


async def test_those_that_come_together_are_served_together(
    groups: "Groups[int, int]", served: Served
) -> None:
    answers = await asyncio.gather(*(groups.take(uuid4(), n) for n in range(1, 201)))
    assert answers == [2 * n for n in range(1, 201)]
    assert len(served.groups) <= 2


async def test_one_node_is_in_a_group_once(groups: "Groups[int, int]", served: Served) -> None:
    node = uuid4()
    assert await asyncio.gather(*(groups.take(node, n) for n in (1, 2, 3))) == [2, 4, 6]
    assert served.groups == [[1], [2], [3]]


async def test_each_gets_its_own_error(groups: "Groups[int, int]") -> None:
    one, absent, zero = await asyncio.gather(
        *(groups.take(uuid4(), n) for n in (1, 404, 0)), return_exceptions=True
    )
    assert one == 2
    assert isinstance(absent, StaleBoot)
    assert isinstance(zero, Unauthenticated)


async def test_what_one_asks_for_hurts_no_other(groups: "Groups[int, int]") -> None:
    good, bad = await asyncio.gather(
        *(groups.take(uuid4(), n) for n in (1, -1)), return_exceptions=True
    )
    assert good == 2
    assert isinstance(bad, InvalidInput)


async def test_a_database_that_is_away_is_asked_once_for_all(
    groups: "Groups[int, int]", served: Served
) -> None:
    found = await asyncio.gather(
        *(groups.take(uuid4(), n) for n in (1, -2, 3)), return_exceptions=True
    )
    assert all(isinstance(each, Unavailable) for each in found)
    assert len(served.groups) == 1


async def test_who_waits_when_it_stops_is_told(served: Served) -> None:
    groups: Groups[int, int] = Groups(served)
    running = asyncio.create_task(groups.run())
    waiting = asyncio.create_task(groups.take(uuid4(), 1))
    await asyncio.sleep(0.005)
    await cancel_all([running])
    with pytest.raises(Unavailable, match="stops"):
        await waiting
