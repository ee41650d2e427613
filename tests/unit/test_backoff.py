"""How long an agent waits before it tries again."""

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.agent.backoff import Backoff

SECONDS = st.floats(0.01, 1000)


@given(SECONDS, SECONDS, st.integers(1, 2000))
def test_waits_grow_to_the_longest_and_never_past_it(
    first: float, longest: float, count: int
) -> None:
    backoff = Backoff(first, longest)
    waits = [backoff.next() for _ in range(count)]
    assert all(min(first, longest) / 2 <= wait <= longest for wait in waits)
    if count > 20:
        assert waits[-1] >= longest / 2
    backoff.reset()
    assert backoff.next() <= min(first, longest)


def test_an_hour_of_silence_costs_few_requests() -> None:
    backoff, waited, tries = Backoff(0.5, 10.0), 0.0, 0
    while waited < 3600:
        waited += backoff.next()
        tries += 1
    assert 360 <= tries <= 730


def test_a_thousand_agents_do_not_come_back_at_once() -> None:
    last = sorted(
        sum(b.next() for _ in range(8)) for b in [Backoff(0.5, 10.0) for _ in range(1000)]
    )
    busiest = max(sum(1 for x in last if at <= x < at + 0.1) for at in last)
    assert busiest < 100
