"""A TCP proxy that lets requests through and now and then loses the answer.

What was asked for has then been done, and who asked sees a connection that broke: the case that a
timeout hides. Works for any protocol that answers what it is asked.
"""

import asyncio
import contextlib
import random

__all__ = ["LossyProxy"]

_CHUNK = 65536


class LossyProxy:
    """Forwards connections to a port of loopback.

    `loss` is the share of the server's packets that end their connection instead of arriving.
    Between `cut` and `mend` nothing arrives at either side, and no connection ends of it: what the
    network drops, TCP sends again.
    """

    def __init__(self, port: int, target: int, dice: random.Random) -> None:
        self.port, self._target, self._dice = port, target, dice
        self.loss = 0.0
        self.lost = 0
        self._passing = asyncio.Event()
        self._passing.set()
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Let nothing through."""
        self._passing.clear()

    def mend(self) -> None:
        """Let through again, also what was sent meanwhile."""
        self._passing.set()

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        # Ended by `close`, as every other end of a connection.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._joined(reader, writer)
        writer.transport.abort()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        ways = {
            asyncio.create_task(self._copy(reader, forth, lossy=False)),
            asyncio.create_task(self._copy(back, writer, lossy=True)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forth.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, lossy: bool
    ) -> None:
        while chunk := await source.read(_CHUNK):
            if lossy and self._dice.random() < self.loss:
                self.lost += 1
                return
            await self._passing.wait()
            sink.write(chunk)
            await sink.drain()
