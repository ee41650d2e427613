"""Imports once, forks often: Dagster's processes share one import of seconds, and its memory.

`python -m vyvo_dagster.local.forkserver FD MODULE,...` imports the modules and then serves
requests on the socket FD, a line of JSON each: `{"name", "entry", "argv", "log", "signal"}`
starts `entry` (`module:function`) in a session of its own and is answered `{"name", "pid"}`;
when a process ends, `{"pid", "status"}` follows, negative for a signal. Ends with its socket.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from types import FrameType
from typing import Any

from vyvo_dagster.local.process import die_with_parent, rename_process

__all__: list[str] = []


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests; returns in each forked process with its request, and None at the end."""
    wake, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    signal.signal(signal.SIGCHLD, _noted)
    signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
    pending = b""
    while True:
        readable, _, _ = select.select([connection, wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
            _report_ends(connection)
        if connection not in readable:
            continue
        received = connection.recv(65536)
        if not received:
            return None
        pending += received
        *lines, pending = pending.split(b"\n")
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (wake, wake_in, connection.detach()):
                    os.close(descriptor)
                return request
            _send(connection, {"name": request["name"], "pid": pid})


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGCHLD: only with a handler does its byte come through the wake-up pipe."""


def _report_ends(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(connection, {"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _become(request: dict[str, Any], parent: int) -> None:
    """Turn this fork into the process that was asked for; does not return."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    die_with_parent(signal.Signals(request["signal"]), parent)
    rename_process(f"vyvo-{request['name']}")
    module, _, function = request["entry"].partition(":")
    sys.argv = [*request["argv"]]
    sys.exit(getattr(importlib.import_module(module), function)())


def _main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for module in sys.argv[2].split(","):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that a collection in a fork does not copy what they share
    parent = os.getpid()
    request = _serve(connection)
    if request is not None:
        _become(request, parent)


if __name__ == "__main__":
    _main()
