"""Sockets of GraphQL subscriptions, relayed in both directions."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from vyvo_dagster.errors import VyvoError

__all__ = ["relay_socket"]

_log = logging.getLogger(__name__)

_PROTOCOL: Final = Subprotocol("graphql-ws")
_OPEN_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 30.0
_MAX_BYTES: Final = 16 << 20
_MAX_MESSAGE: Final = 1 << 20
_POLICY, _GONE, _AGAIN = 1008, 1001, 1013

Admit = Callable[[Any], Awaitable[Any]]


class _Over(Exception):
    """One side is over; `code` is what the other is told."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


async def relay_socket(
    socket: WebSocket, url: str, admit: Admit, still: Callable[[], Awaitable[None]],
    stopping: asyncio.Event,
) -> None:  # fmt: skip
    """Relay until either side closes, the api stops, or whoever asked may not any more.

    Args:
        admit: a client's message as it goes on; VyvoError closes the socket.
        still: raises VyvoError where the credential has ended; asked every 30 s.
    """
    try:
        async with connect(
            url, subprotocols=[_PROTOCOL], open_timeout=_OPEN_SECONDS, max_size=_MAX_BYTES,
            close_timeout=2, proxy=None,
        ) as upstream:  # fmt: skip
            await socket.accept(subprotocol=_PROTOCOL)
            code = await _both(socket, upstream, admit, still, stopping)
    except (OSError, TimeoutError, WebSocketException) as error:
        _log.warning("no socket to Dagster: %s", error or type(error).__name__)
        code = _AGAIN
    try:
        await socket.close(code)
    except (RuntimeError, WebSocketDisconnect, OSError):
        _log.debug("the client had closed")


async def _both(
    socket: WebSocket, upstream: ClientConnection, admit: Admit,
    still: Callable[[], Awaitable[None]], stopping: asyncio.Event,
) -> int:  # fmt: skip
    codes: list[int] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_to_dagster(socket, upstream, admit))
            group.create_task(_to_client(socket, upstream))
            group.create_task(_watch(still, stopping))
    except* _Over as over:
        codes += [each.code for each in over.exceptions if isinstance(each, _Over)]
    return codes[0] if codes else _GONE


async def _to_dagster(socket: WebSocket, upstream: ClientConnection, admit: Admit) -> None:
    try:
        while True:
            text = await socket.receive_text()
            if len(text) > _MAX_MESSAGE:
                raise _Over(1009)
            message = json.loads(text)
            if not isinstance(message, dict):
                raise _Over(_POLICY)
            await upstream.send(json.dumps(await admit(message)))
    except (WebSocketDisconnect, WebSocketException) as error:
        raise _Over(_GONE) from error
    except (VyvoError, ValueError, KeyError, RecursionError) as error:
        _log.info("a message to Dagster is refused: %s", error)
        raise _Over(_POLICY) from error


async def _to_client(socket: WebSocket, upstream: ClientConnection) -> None:
    try:
        async for message in upstream:
            text = message if isinstance(message, str) else message.decode()
            await socket.send_text(text)
    except (WebSocketDisconnect, WebSocketException, RuntimeError, OSError) as error:
        raise _Over(_GONE) from error
    raise _Over(_GONE)


async def _watch(still: Callable[[], Awaitable[None]], stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await stopping.wait()
        except TimeoutError:
            try:
                await still()
            except VyvoError as error:
                raise _Over(_POLICY) from error
    raise _Over(_GONE)
