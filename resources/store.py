"""The registry database, for ops and sensors."""

import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dagster import ConfigurableResource, InitResourceContext
from pydantic import Field, PrivateAttr

from resources.loop import LoopThread
from vyvo_dagster.store.database import Database, Store

__all__ = ["StoreResource"]

T = TypeVar("T")


class StoreResource(ConfigurableResource[None]):
    """One transaction a call, from any thread of a run or a sensor's tick.

    Raises Unavailable where the database does not answer.
    """

    dsn: str = Field(description="libpq URL of the registry database.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds that one transaction may take.")

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _open: tuple[LoopThread, Database] | None = PrivateAttr(default=None)

    def call(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do `work` in one transaction: committed if it returns, rolled back if it raises."""
        loop, database = self._opened()

        async def transaction() -> T:
            async with database.transaction() as store:
                return await work(store)

        return loop.call(transaction())

    def teardown_after_execution(self, context: InitResourceContext) -> None:
        """Close the connections at the end of a run or a tick."""
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._lock:
            opened, self._open = self._open, None
        if opened is not None:
            loop, database = opened
            loop.call(database.close())
            loop.close()

    def _opened(self) -> tuple[LoopThread, Database]:
        with self._lock:
            if self._open is None:
                # One kept connection: the op's thread and the watcher of cancels share it.
                self._open = LoopThread("store", self.timeout), Database(self.dsn, pool_size=1)
            return self._open
