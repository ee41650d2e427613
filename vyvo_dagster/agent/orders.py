"""Orders from this node's stream in Redis."""

import asyncio
import logging
import math
import time
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from vyvo_dagster.agent.attempts import Attempts
from vyvo_dagster.protocol.job import CancelOrder, OrderKind, RunOrder
from vyvo_dagster.streams import keys

__all__ = ["Orders"]

_log = logging.getLogger(__name__)

_COUNT: Final = 512
_BLOCK_MS: Final = 2000
_SOCKET_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5.0
_LONGEST_DELAY: Final = 5.0
_CANCEL_SECONDS: Final = 0.2
_CLOSE_SECONDS: Final = 1.0
# Much oftener than the stream's life asks for.
_KEEP_SECONDS: Final = 3600.0


class Orders:
    """Reads the stream of one node as one boot of its agent.

    Each start of an agent is a consumer of its own. What earlier ones were given and did not
    acknowledge is dropped: the control plane queues again what an older boot held, under a new
    attempt, as soon as a newer boot joins.

    An entry is acknowledged and deleted once its order is in this process's memory, together
    with the next read: from then on the attempt's lease guards it, which heartbeats renew.

    Args:
        redis_url: the server.
        node_id, boot_id: whose stream, as which consumer.
        attempts: takes run and cancel orders.
        sync: called for a sync order.
    """

    def __init__(
        self, redis_url: str, node_id: UUID, boot_id: UUID, attempts: Attempts, sync: Any
    ) -> None:
        self._redis: Redis = Redis.from_url(
            redis_url,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=_SOCKET_SECONDS,
            socket_connect_timeout=_CONNECT_SECONDS,
        )
        self._stream = keys.node(node_id)
        self._consumer = str(boot_id)
        self._attempts = attempts
        self._sync = sync
        self._taken: list[str] = []
        self._kept_at = -math.inf
        self._seen = True
        """Whether all that was given to this consumer has arrived here."""

    async def run(self) -> None:
        """Read until canceled; a server that is away or was emptied is waited for."""
        delay, ready, said = 0.1, False, ""
        while True:
            try:
                if not ready:
                    await self._join_group()
                    ready = True
                await self._read()
            except Exception as error:  # noqa: BLE001 - a node that reads no orders is no node
                if isinstance(error, ResponseError) and "NOGROUP" in str(error):
                    # Emptied: what it held is written again from the rows.
                    ready, self._taken, self._kept_at = False, [], -math.inf
                    continue
                # The answer of a read may be what was lost: it is asked for again.
                self._seen = False
                if str(error) != said:
                    said = str(error)
                    unforeseen = not isinstance(error, RedisError | OSError)
                    _log.warning("no orders: %s; trying on", said, exc_info=unforeseen)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
            else:
                delay, said = 0.1, ""

    async def end(self, reading: asyncio.Task[None]) -> None:
        """Cancel `reading`, which is `run`, acknowledge what was taken, and close."""
        while not reading.done():
            # Once is not enough: redis-py loses a cancellation that meets it while it connects.
            reading.cancel()
            await asyncio.wait({reading}, timeout=_CANCEL_SECONDS)
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                if self._taken:
                    await self._redis.xack(self._stream, keys.GROUP_AGENT, *self._taken)
                    await self._redis.xdel(self._stream, *self._taken)
        except (RedisError, OSError) as error:
            _log.debug("the last orders stay pending: %s", error)
        finally:
            await self._redis.aclose()

    async def _join_group(self) -> None:
        try:
            await self._redis.xgroup_create(self._stream, keys.GROUP_AGENT, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        consumers: list[dict[str, Any]] = await self._redis.xinfo_consumers(
            self._stream, keys.GROUP_AGENT
        )
        for name in (str(c["name"]) for c in consumers):
            if name != self._consumer:
                await self._drop_consumer(name)

    async def _drop_consumer(self, name: str) -> None:
        while True:
            pending: list[dict[str, Any]] = await self._redis.xpending_range(
                self._stream, keys.GROUP_AGENT, min="-", max="+", count=_COUNT, consumername=name
            )
            ids = [str(entry["message_id"]) for entry in pending]
            if not ids:
                break
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xack(self._stream, keys.GROUP_AGENT, *ids)
                pipe.xdel(self._stream, *ids)
                await pipe.execute()
        await self._redis.xgroup_delconsumer(self._stream, keys.GROUP_AGENT, name)

    async def _read(self) -> None:
        if not self._seen:
            await self._read_again()
        taken = self._taken
        async with self._redis.pipeline(transaction=False) as pipe:
            now = time.monotonic()
            keep = now - self._kept_at > _KEEP_SECONDS
            if keep:
                pipe.pexpire(self._stream, keys.NODE_MS)
            if taken:
                pipe.xack(self._stream, keys.GROUP_AGENT, *taken)
                pipe.xdel(self._stream, *taken)
            pipe.xreadgroup(
                keys.GROUP_AGENT, self._consumer, {self._stream: ">"}, count=_COUNT, block=_BLOCK_MS
            )
            answers: list[Any] = await pipe.execute()
        if keep:
            self._kept_at = now
        self._taken = []
        self._take_all(answers[-1])

    async def _read_again(self) -> None:
        """Take what this consumer was given and has not acknowledged; what it has taken, it knows."""
        last = "0"
        while True:
            answer: Any = await self._redis.xreadgroup(
                keys.GROUP_AGENT, self._consumer, {self._stream: last}, count=_COUNT
            )
            self._take_all(answer)
            ids = [entry_id for _stream, entries in answer or [] for entry_id, _ in entries]
            if not ids:
                break
            last = ids[-1]
        self._seen = True

    def _take_all(self, answer: Any) -> None:
        for _stream, entries in answer or []:
            for entry_id, fields in entries:
                self._take(fields)
                self._taken.append(entry_id)

    def _take(self, fields: dict[str, str] | None) -> None:
        fields = fields or {}
        try:
            match OrderKind(fields.get("kind", "")):
                case OrderKind.RUN:
                    self._attempts.take(RunOrder.model_validate_json(fields.get("body", "")))
                case OrderKind.CANCEL:
                    self._attempts.cancel(CancelOrder.model_validate_json(fields.get("body", "")))
                case OrderKind.SYNC:
                    self._sync()
        except (ValidationError, ValueError) as error:
            # Never run, never reported: its lease ends and the control plane decides.
            _log.error(
                "an order that cannot be read is dropped: %s", " ".join(str(error).split())[:500]
            )
        except Exception:  # noqa: BLE001 - read again, it would hold all orders behind it
            _log.exception("an order that cannot be taken is dropped")
