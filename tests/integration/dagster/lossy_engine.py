"""A real engine behind a socket that loses the answer to a request: what was asked for is done."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Lossy:
    """Loses the answers to the next requests of these kinds, one each."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._losing: list[re.Pattern[bytes]] = []
        self.lost = 0

    def lose(self, *requests: bytes) -> None:
        """The answers to the next requests whose first lines match, one for each pattern."""
        self._losing = [re.compile(request) for request in requests]
        self.lost = 0

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        engine.connect(self._engine)
        back = threading.Thread(target=_pump, args=(engine, client), daemon=True)
        back.start()
        with client, engine, suppress(OSError):
            while some := client.recv(1 << 16):
                lost = self._is_lost(some)
                if lost:
                    # What was answered before has been read, or this would not be asked.
                    client.shutdown(socket.SHUT_WR)
                engine.sendall(some)
                if lost:
                    # It answers when it has done it; that goes nowhere, and ends the other side.
                    back.join(30)
                    return

    def _is_lost(self, some: bytes) -> bool:
        with self._lock:
            if self._losing and self._losing[0].match(some.split(b"\r\n", 1)[0]):
                self._losing.pop(0)
                self.lost += 1
                return True
            return False


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while some := source.recv(1 << 16):
            target.sendall(some)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def started(path: Path, engine: str) -> Iterator[Lossy]:
    """Listen at `path` for an engine at a unix:// URL."""
    lossy = Lossy(engine.removeprefix("unix://"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        threading.Thread(target=lossy.serve, args=(listener,), daemon=True).start()
        try:
            yield lossy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            path.unlink()
