"""What many nodes ask for at about the same moment, done together.

A lone request is served at once. Where many come, groups begin at least `_GAP_SECONDS` apart, so
that each is large enough to be cheap; what a node costs falls as their number grows.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from uuid import UUID

from vyvo_dagster.errors import StaleBoot, Unavailable

__all__ = ["Groups"]

_log = logging.getLogger(__name__)

_GROUP: Final = 500
_WAITING: Final = 20_000
_GAP_SECONDS: Final = 0.02
_SERVE_SECONDS: Final = 10.0

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class _Waiter(Generic[T, R]):
    node_id: UUID
    asked: T
    answer: "asyncio.Future[R]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def settle(self, found: R | Exception) -> None:
        if self.answer.done():  # it may have given up
            return
        if isinstance(found, Exception):
            self.answer.set_exception(found)
        else:
            self.answer.set_result(found)


class Groups(Generic[T, R]):
    """Takes one thing of one node, and serves those of many together.

    Args:
        serve: answers by node, for what each asked; in one transaction, so that a group that fails
            has changed nothing. A node that it leaves out is told that its boot is not the current
            one; an answer may also be an error.
    """

    def __init__(
        self, serve: Callable[[Mapping[UUID, T]], Awaitable[Mapping[UUID, R | Exception]]]
    ) -> None:
        self._serve = serve
        self._waiters: list[_Waiter[T, R]] = []
        self._asked = asyncio.Event()

    async def take(self, node_id: UUID, asked: T) -> R:
        """What came of it.

        Raises:
            StaleBoot: another start of the agent took over, or the node was given up as lost.
            Unavailable: the database is away, or too many wait for it.
        """
        if len(self._waiters) >= _WAITING:
            raise Unavailable("too many heartbeats wait to be written; try again shortly")
        waiter: _Waiter[T, R] = _Waiter(node_id, asked)
        self._waiters.append(waiter)
        self._asked.set()
        try:
            async with asyncio.timeout(2 * _SERVE_SECONDS):
                return await waiter.answer
        except TimeoutError as error:
            raise Unavailable("the database does not answer; try again shortly") from error

    async def run(self) -> None:
        """Serve what waits, until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._asked.wait()
            began = loop.time()
            group = self._next()
            try:
                await self._answer(group)
            finally:
                for waiter in group:  # where this was canceled
                    waiter.settle(Unavailable("the api stops; try again shortly"))
            await asyncio.sleep(max(began + _GAP_SECONDS - loop.time(), 0))

    def _next(self) -> list[_Waiter[T, R]]:
        """Of each node one: a second request of it is of the next group."""
        group: dict[UUID, _Waiter[T, R]] = {}
        later: list[_Waiter[T, R]] = []
        for waiter in self._waiters:
            if waiter.answer.done():
                continue
            if waiter.node_id in group or len(group) >= _GROUP:
                later.append(waiter)
            else:
                group[waiter.node_id] = waiter
        self._waiters = later
        if not later:
            self._asked.clear()
        return list(group.values())

    async def _answer(self, group: list[_Waiter[T, R]]) -> None:
        asked = {waiter.node_id: waiter.asked for waiter in group}
        try:
            async with asyncio.timeout(_SERVE_SECONDS):
                found = await self._serve(asked)
        except Exception as error:  # noqa: BLE001 - it is the answer of those who wait
            failed = Unavailable(str(error)) if isinstance(error, TimeoutError) else error
            if isinstance(failed, Unavailable) or len(group) == 1:
                for waiter in group:
                    waiter.settle(failed)
                return
            # What one node says of itself must not silence the others.
            _log.warning("%d heartbeats are written one by one: %s", len(group), error)
            for waiter in group:
                await self._answer([waiter])
            return
        for waiter in group:
            known = waiter.node_id in found
            waiter.settle(
                found[waiter.node_id]
                if known
                else StaleBoot("this start of the agent is not the node's current one; join again")
            )
