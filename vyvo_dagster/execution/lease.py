"""A run's lease in Redis: what tells a run that waits or works from one whose worker is gone.

Celery's own result says STARTED for ever once a worker was killed, and PENDING both for a run that
waits and for one whose message was lost.
"""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

from redis.exceptions import RedisError

from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import Redis

__all__ = ["Lease", "ask_to_end", "hold_lease", "note_queued", "read_lease"]

_QUEUED_SECONDS: Final = 7 * 86400
_LIFE_SECONDS: Final = 30
_RENEW_SECONDS: Final = 5.0
# Dagster cleans up after the first signal, which a second one would interrupt.
_RENEWALS_PER_SIGNAL: Final = 6


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


def ask_to_end(redis: Redis, run_id: str) -> None:
    """Keep that the run is to end where its worker finds it, should it not hear of it otherwise.

    Celery tells its workers by a broadcast that nobody keeps for one that is connecting anew.
    """
    redis.set(keys.run_ending(run_id), "1", ex=_QUEUED_SECONDS)


@contextmanager
def hold_lease(redis: Redis, run_id: str) -> Generator[None]:
    """Renew the run's lease in a thread for as long as the block runs, then give it back.

    Where the run was asked to end and goes on for longer than a renewal takes, its process gets
    SIGTERM, again each half minute.
    """
    key, ending, done = keys.run_lease(run_id), keys.run_ending(run_id), threading.Event()

    def renew() -> None:
        overdue = 0
        while True:
            asked = False
            # It outlives a short outage; after a long one the run counts as lost, and is fenced.
            with suppress(RedisError), redis.pipeline(transaction=False) as pipeline:
                pipeline.set(key, Lease.RUNNING, ex=_LIFE_SECONDS)
                pipeline.exists(ending)
                asked = bool(pipeline.execute()[1])
            if done.wait(_RENEW_SECONDS):
                return
            if asked:
                if overdue % _RENEWALS_PER_SIGNAL == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                overdue += 1

    thread = threading.Thread(target=renew, name=f"lease-{run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
        with suppress(RedisError):
            redis.delete(key, ending)
