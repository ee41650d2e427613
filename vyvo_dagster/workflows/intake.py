"""Runs asked for by the Redis stream `vyvo:workflow-runs`.

Fields of an entry: `workflow` (name), `tenant`, `inputs` (JSON object), and, where the sender has
them, `key` (the trigger key; without one it is the entry's id) and `priority`. An entry is
acknowledged once its run is committed; what cannot be read is put aside with its reason.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final, cast

from redis.exceptions import RedisError

from vyvo_dagster.dispatch.poison import storable
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.errors import InvalidInput, NotFound, Unavailable, VyvoError
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.streams import entries, keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.workflows.starting import start_run

__all__ = ["Intake"]

log = logging.getLogger(__name__)

_BATCH: Final = 100
_WAIT_MS: Final = 5_000
_AWAY_SECONDS: Final = 1.0
# What a reader holds for so long is another's to take: it is gone.
_TAKE_OVER_SECONDS: Final = 30.0
_KEY_CHARS: Final = 200


class Intake:
    """Reads the stream; any number of readers share it."""

    def __init__(self, database: Database, redis: AsyncRedis, consumer: str) -> None:
        self._database = database
        self._redis = redis
        self._consumer = consumer
        self._taken_over_at = -_TAKE_OVER_SECONDS

    async def run(self) -> None:
        """Read until canceled; survives servers that go away."""
        while True:
            try:
                await self.turn(_WAIT_MS)
            except (RedisError, Unavailable) as error:
                log.warning("the stream of runs is not read: %s", error)
                await asyncio.sleep(_AWAY_SECONDS)

    async def turn(self, wait_ms: int | None = None) -> int:
        """Take what is there, or what comes within `wait_ms`; how many entries it was."""
        group, stream = keys.GROUP_WORKFLOWS, keys.WORKFLOW_RUNS
        taken: list[entries.Entry] = []
        if time.monotonic() - self._taken_over_at >= _TAKE_OVER_SECONDS:
            taken = await entries.take_over(
                self._redis, group, self._consumer, stream, round(_TAKE_OVER_SECONDS * 1e3), _BATCH
            )
            if len(taken) < _BATCH:
                self._taken_over_at = time.monotonic()
        if not taken:
            taken = await entries.read_new(
                self._redis, group, self._consumer, stream, _BATCH, wait_ms
            )
        for entry in taken:
            await self._take(entry)
            await entries.acknowledge(self._redis, group, [entry])
        return len(taken)

    async def _take(self, entry: entries.Entry) -> None:
        try:
            async with self._database.transaction() as store:
                await _start(store, entry)
        except Unavailable:
            raise
        except VyvoError as error:
            log.warning("entry %s of %s starts no run: %s", entry.id, entry.stream, error.detail)
            await self._bury(entry, error.detail)
        except Exception:  # what one entry breaks must not end the engine, over and over
            log.exception("entry %s of %s starts no run", entry.id, entry.stream)
            await self._bury(entry, "the engine failed; the error is in its log")

    async def _bury(self, entry: entries.Entry, reason: str) -> None:
        async with self._database.transaction() as store:
            await store.dead_letters.bury([(entry.stream, entry.id, storable(entry), reason)])


async def _start(store: Store, entry: entries.Entry) -> None:
    fields = entry.fields
    tenant, name = fields.get("tenant", ""), fields.get("workflow", "")
    if not tenant or not name:
        raise InvalidInput("the fields tenant and workflow are required")
    key = fields.get("key") or entry.id
    if len(key) > _KEY_CHARS:
        raise InvalidInput(f"key has more than {_KEY_CHARS} characters")
    workflow = await store.workflows.get(tenant, name)
    if workflow is None:
        raise NotFound(f"no workflow {name}")
    version = await store.workflows.version(workflow.id, workflow.latest_version)
    assert version is not None  # the workflow names it
    await start_run(
        store, version, _inputs(fields.get("inputs", "{}")), TriggerKind.STREAM,
        key=f"stream:{key}", priority=_priority(fields.get("priority")),
    )  # fmt: skip


def _inputs(text: str) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("inputs is no JSON") from error
    if not isinstance(found, dict):
        raise InvalidInput("inputs must be a JSON object")
    return cast("dict[str, Any]", found)


def _priority(text: str | None) -> Priority | None:
    try:
        return None if text is None else Priority(text)
    except ValueError as error:
        raise InvalidInput(f"priority must be one of {', '.join(Priority)}") from error
