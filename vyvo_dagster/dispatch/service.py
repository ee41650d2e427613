"""The process around a service that runs until it is told to stop."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

import uvloop

from vyvo_dagster import collector

__all__ = ["run_service"]


def run_service(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `serve` with an event that SIGINT and SIGTERM set; returns when it does."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        collector.settle()
        await serve(stop)

    uvloop.run(main())
