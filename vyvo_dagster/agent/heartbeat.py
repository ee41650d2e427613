"""The heartbeat: what this node sees goes out, what it should do comes back."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from vyvo_dagster.agent.backoff import Backoff
from vyvo_dagster.agent.control_plane import ControlPlane, Unreachable
from vyvo_dagster.agent.join import Session
from vyvo_dagster.errors import Conflict, Forbidden, NotFound, Unauthenticated, VyvoError
from vyvo_dagster.protocol.node import Heartbeat, HeartbeatAnswer
from vyvo_dagster.telemetry import metrics

__all__ = ["Heartbeats"]

_log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.5
_UNREACHABLE: Final = 2.0
# Changes that come together (an order, a state) go out together.
_GATHER_SECONDS: Final = 0.01


class Heartbeats:
    """Heartbeats of one session.

    A node must not be given up for an outage that is shorter than the time after which it is lost
    (a minute, with a heartbeat each 10 s): its last heartbeat may be 10 s old when the network goes, so
    an api that cannot be reached is asked again every 2 s. One that answers that it cannot is given
    more time, up to the interval.

    Args:
        control_plane: whom to tell.
        session: as whom.
        due: event that asks for a heartbeat now.
        compose: makes the body.
        applied: gets each answer and the body that it answers.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        session: Session,
        due: asyncio.Event,
        compose: Callable[[datetime], Awaitable[Heartbeat]],
        applied: Callable[[Heartbeat, HeartbeatAnswer], Awaitable[None]],
    ) -> None:
        self._control_plane = control_plane
        self._session = session
        self._due = due
        self._compose = compose
        self._applied = applied

    async def run(self) -> str:
        """Beat until the control plane no longer knows this boot; return why. Then join again."""
        interval = self._session.heartbeat_seconds
        refused, cut_off = (
            Backoff(_FIRST_RETRY, min(longest, interval)) for longest in (interval, _UNREACHABLE)
        )
        said = ""
        while True:
            self._due.clear()
            try:
                await self.beat()
            except (Conflict, Unauthenticated, Forbidden, NotFound) as error:
                return error.detail
            except VyvoError as error:
                if error.detail != said:
                    said = error.detail
                    _log.warning("no heartbeat: %s; trying on", said)
                backoff = cut_off if isinstance(error, Unreachable) else refused
                await asyncio.sleep(backoff.next())
                continue
            wait = interval
            if said:
                _log.info("heartbeats are answered again")
                # Nodes that come back at one moment must not beat at one moment ever after.
                wait *= random.uniform(0.2, 1.0)  # noqa: S311 - no secret hangs on it
            refused.reset()
            cut_off.reset()
            said = ""
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it can swallow a cancellation (bpo-37658).
                async with asyncio.timeout(wait):
                    await self._due.wait()
                await asyncio.sleep(_GATHER_SECONDS)

    async def beat(self) -> None:
        """One heartbeat."""
        body = await self._compose(datetime.now(UTC))
        with metrics.AGENT_HEARTBEAT.time():
            answer = await self._control_plane.heartbeat(self._session.node_id, body)
        await self._applied(body, answer)

    async def leave(self, seconds: float) -> None:
        """The last one: the agent stops. Bounded; a failure is only logged."""
        try:
            body = await self._compose(datetime.now(UTC))
            body.leaving = True
            await self._control_plane.heartbeat(self._session.node_id, body, seconds=seconds)
        except VyvoError as error:
            _log.warning("could not tell the api that this node leaves: %s", error.detail)
