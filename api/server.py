"""The api process: `vyvo api`."""

import asyncio
import socket
import sys
from typing import Final

import uvicorn

from api.app import create_app
from vyvo_dagster import collector
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.settings import S3Settings, Settings
from vyvo_dagster.telemetry import logs, tracing

__all__ = ["Server", "run"]

_GRACE_SECONDS: Final = 5


class Server(uvicorn.Server):
    """A uvicorn server that ends event streams first: they would otherwise hold up its shutdown."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open everything, and then leave it to itself."""
        await super().startup(sockets)
        collector.settle()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, let requests finish, and close."""
        context = getattr(getattr(self.config.app, "state", None), "context", None)
        stopping: asyncio.Event | None = getattr(context, "stopping", None)
        if stopping is not None:
            stopping.set()
        await super().shutdown(sockets)


def run() -> None:
    """Serve until SIGINT or SIGTERM; requests under way get five seconds."""
    settings, s3 = Settings(), S3Settings()
    logs.configure(settings.log_format, secrets=logs.secrets_of(settings, s3))
    logs.always(service="api")
    tracing.start("api")
    try:
        app = create_app(settings, s3)
    except VyvoError as error:
        sys.exit(f"the api cannot start: {error.detail}")
    config = uvicorn.Config(
        app, host=settings.api_host, port=settings.api_port, loop="uvloop", http="httptools",
        ws="websockets-sansio", ws_max_size=1 << 20, access_log=False, log_config=None, lifespan="on", server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS, timeout_keep_alive=30,
    )  # fmt: skip
    try:
        Server(config).run()
    finally:
        tracing.stop()
