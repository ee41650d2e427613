"""External commands of a build: output, failure, cancel, timeout; nothing is left running."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vyvo_dagster.building.caches import file_lock
from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.errors import BuildFailed

# Says its child's pid, then both wait and ignore a polite request.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pid = os.fork()
if pid: print("child", pid, flush=True)
time.sleep(100)
"""

# A build worker whose command writes its pid and then takes long.
WORKER = """
import sys, threading
from vyvo_dagster.building.process import run_logged
class Log:
    def line(self, step, text, fields=None): pass
code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(100)"
argv = [sys.executable, "-c", code, sys.argv[1]]
run_logged(argv, step="s", log=Log(), cancel=threading.Event(), timeout=100)
"""
# Takes the lock and is killed while it has it.
HOLDER = """
import os, pathlib, signal, sys
from vyvo_dagster.building.caches import file_lock
with file_lock(pathlib.Path(sys.argv[1]), timeout=5, check=lambda: None):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        self.lines.append((step, text))


def _run(
    code: str, log: Lines, *, cancel: threading.Event | None = None, timeout: float = 30.0
) -> str:
    return run_logged(
        [sys.executable, "-u", "-c", code],
        step="step",
        log=log,
        cancel=cancel or threading.Event(),
        timeout=timeout,
    )


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_every_line_is_logged_in_order() -> None:
    log = Lines()
    _run("import sys\nfor n in range(2000): print(n, file=[sys.stdout, sys.stderr][n % 2])", log)
    assert [int(text) for _, text in log.lines] == list(range(2000))


def test_a_progress_bar_is_one_line_and_odd_bytes_survive() -> None:
    log = Lines()
    _run("import sys; sys.stdout.buffer.write(b'1%\\r50%\\r100%\\n\\xff\\xfe\\n\\n')", log)
    assert [text for _, text in log.lines] == ["100%", "\ufffd\ufffd"]


def test_a_failure_quotes_what_was_said() -> None:
    log = Lines()
    with pytest.raises(
        BuildFailed, match=r"^step failed with exit status 3: ERROR: no wheel \| because"
    ):
        _run("print('fine'); print('ERROR: no wheel'); print('because'); raise SystemExit(3)", log)


def test_a_child_that_keeps_the_pipe_does_not_hold_the_build() -> None:
    log, started = Lines(), time.monotonic()
    _run(
        "import os, time\nif os.fork() == 0: time.sleep(60)\nelse: print('done', os.getpid())", log
    )
    assert log.lines[0][1].startswith("done")
    assert time.monotonic() - started < 5.0


def test_a_missing_command_is_named() -> None:
    with pytest.raises(BuildFailed, match="no-such-command is not installed"):
        run_logged(["no-such-command"], step="s", log=Lines(), cancel=threading.Event(), timeout=5)


def test_arguments_reach_no_shell(tmp_path: Path) -> None:
    log = Lines()
    hostile = f"$(touch {tmp_path}/x); `id` | & \n"
    argv = [sys.executable, "-c", "import sys; print(repr(sys.argv[1]))", hostile]
    run_logged(argv, step="s", log=log, cancel=threading.Event(), timeout=10)
    assert log.lines == [("s", repr(hostile))]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("by", ["cancel", "timeout"])
def test_a_stopped_command_takes_its_children_along(by: str) -> None:
    log, cancel = Lines(), threading.Event()
    if by == "cancel":
        threading.Timer(1.0, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(BuildCanceled if by == "cancel" else BuildFailed):
        _run(STUBBORN, log, cancel=cancel, timeout=60 if by == "cancel" else 1.0)
    assert time.monotonic() - started < 6.0
    child = int(log.lines[0][1].split()[1])
    deadline = time.monotonic() + 2.0
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_leaves_no_command_running(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "pid")])
    deadline = time.monotonic() + 20.0
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.kill()
    worker.wait(timeout=5)
    command = int((tmp_path / "pid").read_text())
    while _alive(command):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lock_is_held_by_one_and_freed_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, timeout=5, check=lambda: None):
        waited = time.monotonic()
        with (
            pytest.raises(BuildFailed, match="another build"),
            file_lock(path, timeout=0.3, check=lambda: None),
        ):
            pytest.fail("two held it")
        assert time.monotonic() - waited < 2.0
    holder = subprocess.run([sys.executable, "-c", HOLDER, str(path)], timeout=30, check=False)
    assert holder.returncode == -signal.SIGKILL
    with file_lock(path, timeout=1, check=lambda: None):
        pass
