"""Heartbeats written in groups: those that came during one write share the next one.

A lone heartbeat is written at once. Where many come, writes begin at least `_GAP_SECONDS` apart, so
that a group is large enough to be cheap; what a node costs falls as their number grows.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from vyvo_dagster.domain.node import HeartbeatPolicy
from vyvo_dagster.errors import StaleBoot, Unavailable
from vyvo_dagster.store.beats import Beat, Heard
from vyvo_dagster.store.database import Database

__all__ = ["Beats"]

_log = logging.getLogger(__name__)

_GROUP: Final = 500
_WAITING: Final = 20_000
_GAP_SECONDS: Final = 0.02
_WRITE_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Waiter:
    beat: Beat
    answer: asyncio.Future[Heard] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def settle(self, found: Heard | Exception) -> None:
        if self.answer.done():  # it may have given up
            return
        if isinstance(found, Exception):
            self.answer.set_exception(found)
        else:
            self.answer.set_result(found)


class Beats:
    """Takes heartbeats, one at a time, and writes them together.

    Args:
        policy: what a heartbeat makes of a node.
        lease: of the attempts that heartbeats name.
    """

    def __init__(self, database: Database, policy: HeartbeatPolicy, lease: timedelta) -> None:
        self._database = database
        self._policy = policy
        self._lease = lease
        self._waiters: list[_Waiter] = []
        self._asked = asyncio.Event()

    async def take(self, beat: Beat) -> Heard:
        """Note a heartbeat.

        Raises:
            StaleBoot: another start of the agent took over, or the node was given up as lost.
            Unavailable: the database is away, or too many wait for it.
        """
        if len(self._waiters) >= _WAITING:
            raise Unavailable("too many heartbeats wait to be written; try again shortly")
        waiter = _Waiter(beat)
        self._waiters.append(waiter)
        self._asked.set()
        try:
            async with asyncio.timeout(2 * _WRITE_SECONDS):
                return await waiter.answer
        except TimeoutError as error:
            raise Unavailable("the database does not answer; try again shortly") from error

    async def run(self) -> None:
        """Write what waits, until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._asked.wait()
            began = loop.time()
            group = self._next()
            try:
                await self._write(group)
            finally:
                for waiter in group:  # where this was canceled
                    waiter.settle(Unavailable("the api stops; try again shortly"))
            await asyncio.sleep(max(began + _GAP_SECONDS - loop.time(), 0))

    def _next(self) -> list[_Waiter]:
        """Of each node one: a second heartbeat of it is of the next group."""
        group: dict[UUID, _Waiter] = {}
        later: list[_Waiter] = []
        for waiter in self._waiters:
            if waiter.answer.done():
                continue
            if waiter.beat.node_id in group or len(group) >= _GROUP:
                later.append(waiter)
            else:
                group[waiter.beat.node_id] = waiter
        self._waiters = later
        if not later:
            self._asked.clear()
        return list(group.values())

    async def _write(self, group: list[_Waiter]) -> None:
        beats = {waiter.beat.node_id: waiter.beat for waiter in group}
        try:
            async with asyncio.timeout(_WRITE_SECONDS), self._database.transaction() as store:
                heard = await store.beats.take(beats, self._policy, self._lease)
        except Exception as error:  # noqa: BLE001 - it is the answer of those who wait
            failed = Unavailable(str(error)) if isinstance(error, TimeoutError) else error
            if isinstance(failed, Unavailable) or len(group) == 1:
                for waiter in group:
                    waiter.settle(failed)
                return
            # What one node says of itself must not silence the others.
            _log.warning("%d heartbeats are written one by one: %s", len(group), error)
            for waiter in group:
                await self._write([waiter])
            return
        for waiter in group:
            found = heard.get(waiter.beat.node_id)
            waiter.settle(
                StaleBoot("this start of the agent is not the node's current one; join again")
                if found is None
                else found
            )
