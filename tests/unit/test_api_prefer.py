"""`Prefer: wait=N` as RFC 7240 writes it."""

import pytest

from api.jobs.waiting import seconds_of


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None), ("", None), ("wait=5", 5), ("Wait = 5", 5), ('wait="5"', 5),
        ("respond-async, wait=10", 10), ("wait=10; foo=bar", 10), ("wait=3, wait=9", 3),
        ("wait=61", 60), ("wait=999999999", 60), ("wait=0", None), ("wait=-1", None),
        ("wait", None), ("wait=1.5", None), ("await=5", None), ("wait=" + "9" * 40, None),
    ],
)  # fmt: skip
def test_the_time_that_a_client_would_wait(prefer: str | None, seconds: int | None) -> None:
    assert seconds_of(prefer) == seconds
