"""An event loop in a thread of its own, so that ops and sensors, which block, can use async code.

A call from the op's thread waits on a future and never runs the loop itself: an interrupt that
Dagster raises in the op's thread leaves a transaction to be finished, not torn.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from vyvo_dagster.errors import Unavailable

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for any thread.

    Args:
        name: of the thread.
        timeout: seconds that a call may take before it is canceled.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end; raises what it raises.

        Raises:
            Unavailable: it took longer than the timeout, and was canceled.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._timeout)
        except TimeoutError as error:
            if future.done():
                raise
            future.cancel()
            raise Unavailable(
                f"a server did not answer within {self._timeout:g} s; try again"
            ) from error

    def close(self) -> None:
        """Stop the loop and end the thread; calls under way are given up."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()
