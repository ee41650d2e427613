"""The process around a service that runs until it is told to stop."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import uvloop

from vyvo_dagster import collector
from vyvo_dagster.settings import Settings
from vyvo_dagster.telemetry import logs, tracing

__all__ = ["run_service"]


def run_service(
    name: str, settings: Settings, serve: Callable[[asyncio.Event], Awaitable[None]]
) -> None:
    """Run `serve` with an event that SIGINT and SIGTERM set; returns when it does.

    Args:
        name: of the service, for its traces.
    """
    logs.configure(settings.log_format, secrets=logs.secrets_of(settings))
    logs.always(service=name)
    tracing.start(name)

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        collector.settle()
        await serve(stop)

    try:
        uvloop.run(main())
    finally:
        tracing.stop()
