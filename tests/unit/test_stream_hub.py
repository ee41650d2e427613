"""What one client of the hub gets: in order, bounded, and told of what is missing."""

import json

from vyvo_dagster.streams.events import Event
from vyvo_dagster.streams.hub import Subscription


def event(n: int, kind: str = "progress") -> Event:
    return Event("a-job", f"{n}-0", kind, json.dumps({"n": n}))


async def test_what_came_together_is_given_together_and_in_order() -> None:
    subscription = Subscription()
    for n in range(600):
        subscription.offer(event(n))
    got: list[Event] = []
    while found := await subscription.next(0.01):
        got += found
    assert [e.data["n"] for e in got] == list(range(600))
    assert not subscription.gap()


async def test_a_slow_client_holds_a_bounded_number_and_learns_how_many_it_missed() -> None:
    subscription = Subscription()
    for n in range(5000):
        subscription.offer(event(n))
    kept = 0
    while found := await subscription.next(0.01):
        kept += len(found)
    assert kept < 5000
    assert subscription.missed() == 5000 - kept
    assert subscription.missed() == 0


async def test_what_is_not_accepted_takes_no_room() -> None:
    subscription = Subscription(lambda e: e.kind == "completed")
    for n in range(5000):
        subscription.offer(event(n))
    subscription.offer(event(5000, "completed"))
    assert [e.kind for e in await subscription.next(1)] == ["completed"]
    assert subscription.missed() == 0


async def test_a_disturbed_client_is_woken_at_once() -> None:
    subscription = Subscription()
    subscription.disturb()
    assert await subscription.next(60) == []
    assert subscription.gap()
    assert not subscription.gap()
