"""When a step that waits is spoken of."""

from vyvo_dagster.execution.routing.waits import Waits


def test_a_reason_is_told_once_and_then_at_long_intervals() -> None:
    now = 0.0
    waits = Waits(lambda: now)
    told: list[float] = []
    for second in range(1000):
        now = float(second)
        if waits.note("step", "no node matches vyvo/host=a"):
            told.append(now)
    assert told == [0, 300, 600, 900]


def test_reasons_that_come_and_go_are_told_seldom_and_a_new_one_soon() -> None:
    now = 0.0
    waits = Waits(lambda: now)
    told: list[float] = []
    for second in range(60):
        now = float(second)
        if waits.note("step", f"reason {second % 2}"):
            told.append(now)
    assert told == [0, 15, 30, 45]


def test_who_waits_again_is_told_of_again() -> None:
    waits = Waits(lambda: 0.0)
    assert waits.note("a", "no GPU")
    assert "a" in waits
    assert not waits.note("a", "no GPU")
    assert waits.note("b", "no GPU")
    waits.end("a")
    assert "a" not in waits
    assert "b" in waits
    assert waits.note("a", "no GPU")
