"""The stack that the demo runs on: `vyvo up` as a child, as an operator would start it."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Stack", "StackFailed", "running_stack"]

_STOP_SECONDS = 60


class StackFailed(RuntimeError):
    """The stack did not start; what it said is on stderr already."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the parts of a running stack are."""

    api: str
    admin_key: str
    dagster: str
    s3: str
    process: subprocess.Popen[str]

    def wait(self) -> None:
        """Until the stack ends, by Ctrl-C or by itself."""
        self.process.wait()


@contextmanager
def running_stack(data_dir: Path, options: Sequence[str]) -> Generator[Stack]:
    """`vyvo up` for as long as the block runs; its progress goes to our stderr.

    It is a process group of its own, so that Ctrl-C reaches us first and we stop it in order.
    """
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vyvo_dagster.cli",
            "up",
            "--json",
            "--data-dir",
            str(data_dir),
            *options,
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip():
            process.wait(_STOP_SECONDS)
            raise StackFailed("the stack did not start")
        said = json.loads(line)
        yield Stack(said["api"], said["admin_key"], said["dagster"], said["s3"], process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
