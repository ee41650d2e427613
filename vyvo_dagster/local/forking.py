"""Parts that are forked from one warm process instead of started: the client of the fork server."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.parts import Part
from vyvo_dagster.local.process import Child, kept_small, spawn, stop, tail

__all__ = ["ForkedProcess", "Forkserver"]

_FORK_TIMEOUT = 120.0


class Forkserver:
    """One fork server and the processes forked from it; started at once, again when it died.

    Args:
        modules: what it imports.
        env: environment of it and of all that it forks.
        logs: directory of the log files.

    """

    def __init__(self, modules: Sequence[str], *, env: Mapping[str, str], logs: Path) -> None:
        self._modules = ",".join(modules)
        self._env = dict(env)
        self._logs = logs
        self._child: Child | None = None
        self._connection: socket.socket | None = None
        self._pending = b""
        self._generation = 0
        self._pids: dict[str, int] = {}
        self._statuses: dict[int, int] = {}

    def start(self) -> None:
        """Start it where it does not run. Call in the main thread."""
        if self._child is not None and self._child.running():
            return
        self._close()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            self._connection, self._pending = ours, b""
            self._generation += 1
            self._statuses.clear()
            self._child = spawn(
                "forkserver",
                [
                    *(sys.executable, "-P", "-m", "vyvo_dagster.local.forkserver"),
                    *(str(theirs.fileno()), self._modules),
                ],
                env=self._env,
                log=self._logs / "forkserver.log",
                pass_fds=(theirs.fileno(),),
            )

    async def fork(self, part: Part) -> Child:
        """Start a part; its `argv` is `module:function` and the arguments for it.

        Raises:
            Unavailable: the fork server does not start.

        """
        self.start()
        assert self._connection is not None
        assert self._child is not None
        log = kept_small(self._logs / f"{part.name}.log")
        log.touch()
        log_start = log.stat().st_size
        request = {
            "name": part.name,
            "entry": part.argv[0],
            "argv": [part.name, *part.argv[1:]],
            "log": str(log),
            "signal": int(part.stop_signal),
        }
        self._pids.pop(part.name, None)
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + _FORK_TIMEOUT
        try:
            await loop.sock_sendall(self._connection, json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise Unavailable(f"{part.name}: the fork server is gone: {error}") from error
        while part.name not in self._pids:
            self.drain()
            if not self._child.running() or time.monotonic() > deadline:
                raise Unavailable(
                    f"{part.name}: the fork server did not answer; its log is {self._child.log}",
                    log_tail=tail(self._child.log, since=self._child.log_start),
                )
            await asyncio.sleep(0.01)
        process = ForkedProcess(self, self._pids.pop(part.name), self._generation)
        return Child(part.name, process, log, log_start, part.stop_signal, part.stop_grace)

    def drain(self) -> None:
        """Take in what the fork server has said so far."""
        while self._connection is not None:
            try:
                received = self._connection.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            if not received:
                self._close()
                return
            *lines, self._pending = (self._pending + received).split(b"\n")
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "status" in message:
                    self._statuses[message["pid"]] = message["status"]
                else:
                    # A pid that comes round again is a new process.
                    self._statuses.pop(message["pid"], None)
                    self._pids[message["name"]] = message["pid"]

    def status(self, pid: int, generation: int) -> int | None:
        """Exit status of a process, negative for a signal; None while it runs.

        `generation` counts the fork servers: of a process whose own has died nobody knows the
        status, and it is given as ended by the SIGTERM that the server's death sent it.
        """
        self.drain()
        if generation == self._generation and self._connection is not None:
            return self._statuses.get(pid)
        return None if _exists(pid) else -int(signal.SIGTERM)

    async def stop(self) -> None:
        """End the fork server, after its processes."""
        self._close()
        if self._child is not None:
            await stop(self._child)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ForkedProcess:
    """A process forked by the fork server, as `subprocess.Popen` shows one."""

    def __init__(self, server: Forkserver, pid: int, generation: int) -> None:
        self._server = server
        self._generation = generation
        self._status: int | None = None
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """Exit status where it has ended."""
        return self.poll()

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        if self._status is None:
            self._status = self._server.status(self.pid, self._generation)
        return self._status

    def send_signal(self, sig: int, /) -> None:
        """Send a signal to a process that has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
