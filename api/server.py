"""The api process: `vyvo api`."""

import asyncio
import logging
import socket
import sys
from typing import Final

import uvicorn

from api.app import create_app
from vyvo_dagster import collector
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.settings import Settings

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
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # httpx writes a line per request to Dagster.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings()  # pyright: ignore[reportCallIssue]
    try:
        app = create_app(settings)
    except VyvoError as error:
        sys.exit(f"the api cannot start: {error.detail}")
    config = uvicorn.Config(
        app, host=settings.api_host, port=settings.api_port, loop="uvloop", http="httptools",
        ws="none", access_log=False, log_config=None, lifespan="on", server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS, timeout_keep_alive=30,
    )  # fmt: skip
    Server(config).run()
