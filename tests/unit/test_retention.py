"""What a sweep may delete, before it deletes anything."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from vyvo_dagster.domain.retention import GRACE, Orphans, owner_of

NOW = datetime(2026, 1, 31, tzinfo=UTC)
JOB = UUID("0190b0f1-7a00-7000-8000-000000000001")


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        (f"2026/01/31/{JOB}.2/abc.png", JOB),
        (f"2026/01/31/{JOB}/abc.png", JOB),
        ("2026/01/31/abc.png", None),
        ("2026/01/31/by-hand/abc.png", None),
        (f"2026/01/31/{JOB}.2/deeper/abc.png", None),
        ("", None),
    ],
)
def test_a_key_names_its_job(key: str, owner: UUID | None) -> None:
    assert owner_of(key) == owner


def test_what_is_younger_than_the_grace_is_not_judged() -> None:
    found = Orphans(NOW)
    assert found.is_young(NOW - GRACE + timedelta(seconds=1))
    assert not found.is_young(NOW - GRACE)
    # A store whose clock is ahead of ours.
    assert found.is_young(NOW + timedelta(days=1))


@pytest.mark.parametrize(
    ("listed", "young", "orphans", "refused"),
    [
        (100, 0, 100, False),  # few, however large a part
        (1000, 0, 500, False),
        (1000, 0, 501, True),
        (1000, 800, 101, True),  # of those that are old enough to judge
        (1000, 700, 150, False),
        (0, 0, 0, False),
    ],
)
def test_most_of_a_store_is_not_deleted_unasked(
    listed: int, young: int, orphans: int, refused: bool
) -> None:
    found = Orphans(NOW, listed=listed, young=young, orphans=orphans)
    assert (found.refusal() is not None) is refused
