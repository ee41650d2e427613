"""A run's lease in Redis: what tells a run that waits or works from one whose worker is gone.

Celery's own result says STARTED for ever once a worker was killed, and PENDING both for a run that
waits and for one whose message was lost.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

from redis.exceptions import RedisError

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import Redis

__all__ = ["Lease", "hold_lease", "note_queued", "read_lease"]

_QUEUED_SECONDS: Final = 7 * 86400
_LIFE_SECONDS: Final = 30
_RENEW_SECONDS: Final = 5.0


class Lease(StrEnum):
    """Where a run is."""

    QUEUED = "queued"
    """In Celery's queue."""
    RUNNING = "running"
    """In a worker that renewed its lease within the last half minute."""
    LOST = "lost"
    """Nowhere: its worker or its message is gone."""


def note_queued(redis: Redis, run_id: str) -> None:
    """The run's message is about to be sent."""
    redis.set(keys.run_lease(run_id), Lease.QUEUED, ex=_QUEUED_SECONDS)


def read_lease(redis: Redis, run_id: str) -> Lease:
    """Where the run is."""
    value = redis.get(keys.run_lease(run_id))
    return Lease.LOST if value is None else Lease(str(value))


@contextmanager
def hold_lease(redis: Redis, run_id: str) -> Generator[None]:
    """Renew the run's lease in a thread for as long as the block runs, then give it back."""
    key, done = keys.run_lease(run_id), threading.Event()

    def renew() -> None:
        while True:
            # It outlives a short outage; after a long one the run counts as lost, and is fenced.
            with suppress(RedisError):
                redis.set(key, Lease.RUNNING, ex=_LIFE_SECONDS)
            if done.wait(_RENEW_SECONDS):
                return

    thread = threading.Thread(target=renew, name=f"lease-{run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
        with suppress(RedisError):
            redis.delete(key)
