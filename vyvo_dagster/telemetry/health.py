"""A few lines of HTTP for probes and scrapes, so that the orchestrator needs no web framework."""

import asyncio
from collections.abc import Awaitable, Callable

from vyvo_dagster.telemetry import metrics

__all__ = ["probes", "serve"]

Answer = Callable[[str], Awaitable[tuple[int, str, bytes]]]


async def serve(port: int, answer: Answer, host: str = "127.0.0.1") -> None:
    """Answer GET requests on `port`, one a connection, until canceled."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n\r\n")
                parts = request.split(b" ", 2)
                if parts[0] != b"GET" or len(parts) < 3:
                    status, kind, body = 405, "text/plain", b"GET only\n"
                else:
                    status, kind, body = await answer(parts[1].decode("ascii", "replace"))
                head = f"HTTP/1.1 {status} .\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (
            TimeoutError,
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass  # A probe that goes away or talks nonsense is no event.
        finally:
            writer.close()

    server = await asyncio.start_server(handle, host, port)
    async with server:
        await server.serve_forever()


async def probes(path: str) -> tuple[int, str, bytes]:
    """What a service answers: its metrics, and that it lives."""
    if path == "/metrics":
        return 200, metrics.CONTENT_TYPE, metrics.exposition()
    if path == "/healthz":
        return 200, "application/json", b'{"status":"ok"}'
    return 404, "application/json", b'{"status":"no such path"}'
