"""Containers that should be gone: an engine that does not answer is asked again until they are."""

import asyncio
import logging
from typing import Any, Final

from docker.errors import DockerException, NotFound

from vyvo_dagster.agent.runners.engine import Engine
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.errors import Unavailable

__all__ = ["Remains"]

_log = logging.getLogger(__name__)

_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 15.0


class Remains:
    """Removals that are still to be done, by id or by name.

    What is left when the agent ends is swept by its next start.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def remove(self, container: str) -> None:
        """Remove a container now; where that fails, later, without holding the caller up."""
        self._left.add(container)
        await self._try(container)
        self._go_on()

    def later(self, container: str) -> None:
        """Remove a container that may yet appear: whose creation was asked for and not answered."""
        self._left.add(container)
        self._go_on()

    def keep(self, container: str) -> None:
        """Leave a name alone from now on: it is about to be another container's."""
        self._left.discard(container)

    async def aclose(self) -> None:
        """Ask no more."""
        if self._task is not None:
            await cancel_all([self._task])

    def _go_on(self) -> None:
        if self._left and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        delay = _FIRST_DELAY
        while self._left:
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            for container in tuple(self._left):
                await self._try(container)

    async def _try(self, container: str) -> None:
        try:
            found: Any = await self._engine.call(self._engine.client.containers.get, container)
            # A name may have been given back while the engine was asked.
            if container in self._left:
                await self._engine.call(found.remove, force=True, v=True)
        except NotFound:
            pass
        except (DockerException, Unavailable) as error:
            _log.warning("container %s cannot be removed yet: %s", container[:60], error)
            return
        self._left.discard(container)
