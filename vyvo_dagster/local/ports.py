"""Loopback ports, chosen once and remembered, so that URLs stay the same across restarts."""

import json
import random
import socket
from pathlib import Path

from vyvo_dagster.errors import Conflict

__all__ = ["LOOPBACK", "Ports", "is_free"]

LOOPBACK = "127.0.0.1"
# Below Linux' ephemeral range, so that no outgoing connection takes a remembered port.
_FIRST, _LAST = 20_000, 32_500


def is_free(port: int) -> bool:
    """Whether nothing listens on this loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections in TIME_WAIT do not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class Ports:
    """The ports of one data directory, kept in its `ports.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken: dict[str, int] = {}
        try:
            known = json.loads(path.read_text())
            self._known = {name: port for name, port in known.items() if isinstance(port, int)}
        except (OSError, ValueError, AttributeError):
            self._known = dict[str, int]()

    def take(self, name: str, *, default: int | None = None, beside: int = 0) -> int:
        """The remembered port, else the default, else a random one; whichever is free first.

        With `beside` the port that lies so much higher is free as well, and taken with it.
        """
        candidates = [self._known.get(name), default]
        port = next((p for p in candidates if p is not None and self._usable(p, beside)), None)
        while port is None:
            choice = random.randint(_FIRST, _LAST - beside)  # noqa: S311 - no secret
            known = self._known.values()
            port = choice if choice not in known and self._usable(choice, beside) else None
        if beside:
            self._remember(f"{name}+{beside}", port + beside)
        return self._remember(name, port)

    def insist(self, name: str, port: int) -> int:
        """The port that the caller asked for by number.

        Raises:
            Conflict: another program listens there.
        """
        if not self._usable(port):
            raise Conflict(f"port {port} for {name} is in use; choose another one or free it")
        return self._remember(name, port)

    def _usable(self, port: int, beside: int = 0) -> bool:
        return all(p not in self._taken.values() and is_free(p) for p in {port, port + beside})

    def _remember(self, name: str, port: int) -> int:
        self._taken[name] = self._known[name] = port
        self._path.write_text(json.dumps(self._known, indent=2, sort_keys=True) + "\n")
        return port
