"""A TCP proxy before the real api that loses, refuses or cuts connections as a test says."""

import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Fault = Callable[[socket.socket, socket.socket], None]


def answering(raw: bytes) -> Fault:
    """Answer `raw` without asking the api."""

    def fault(client: socket.socket, _api: socket.socket) -> None:
        client.recv(65536)
        client.sendall(raw)

    return fault


def dropping(client: socket.socket, _api: socket.socket) -> None:
    """Take the request and hang up."""
    client.recv(65536)


def _request(client: socket.socket) -> bytes:
    """One request, whole: its head and its body may come apart."""
    read = client.recv(65536)
    while b"\r\n\r\n" not in read and (more := client.recv(65536)):
        read += more
    head, _, body = read.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    left = int(found[1]) - len(body) if found else 0
    while left > 0 and (more := client.recv(65536)):
        read += more
        left -= len(more)
    return read


def swallowing(client: socket.socket, api: socket.socket) -> None:
    """Let the api do what is asked, and lose its answer."""
    api.sendall(_request(client))
    api.recv(65536)


def cutting(after: int) -> Fault:
    """Pass on so many bytes of the answer, then cut."""

    def fault(client: socket.socket, api: socket.socket) -> None:
        api.sendall(_request(client))
        left = after
        while left > 0 and (some := api.recv(min(left, 65536))):
            client.sendall(some)
            left -= len(some)

    return fault


@dataclass
class FaultyProxy:
    """Each connection meets the next fault; once they are used up, all pass."""

    target: str
    faults: list[Fault] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        at = urlsplit(self.target)
        self._address = (at.hostname or "", at.port or 80)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            fault = self.faults.pop(0) if self.faults else _passing
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: Fault) -> None:
        with client, socket.create_connection(self._address) as api:
            client.settimeout(20)
            api.settimeout(20)
            try:
                fault(client, api)
            except OSError:
                return


def _passing(client: socket.socket, api: socket.socket) -> None:
    back = threading.Thread(target=_pump, args=(api, client), daemon=True)
    back.start()
    _pump(client, api)
    back.join()


def _pump(source: socket.socket, to: socket.socket) -> None:
    try:
        while some := source.recv(65536):
            to.sendall(some)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        return
