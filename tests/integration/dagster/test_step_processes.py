"""Steps in processes of their own: nothing of them is left when their run is over."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vyvo_dagster.execution.routing.local import ProcessStepHandler

STEP = """
import signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
if "ends" not in sys.argv:
    time.sleep(600)
"""


def step(handler: ProcessStepHandler, *how: str) -> tuple["subprocess.Popen[bytes]", int]:
    """A process as the handler starts one, and the pid of what it has started itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, *how], stdout=subprocess.PIPE, start_new_session=True
    )
    handler._running[str(process.pid)] = process
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.stdout.close()
    return process, child


def gone(pid: int) -> bool:
    """Whether it has ended; killed just now, it may wait to be reaped by init."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("how", "stop", "status"),
    [
        ((), True, -signal.SIGTERM),
        (("deaf",), True, -signal.SIGKILL),
        (("ends",), False, 0),
        ((), False, -signal.SIGKILL),
    ],
)
def test_no_process_of_a_step_is_left(how: tuple[str, ...], stop: bool, status: int) -> None:
    handler = ProcessStepHandler()
    process, child = step(handler, *how)
    handler.close(1.0, stop=stop)
    assert process.returncode == status
    assert gone(child)
