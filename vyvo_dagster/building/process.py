"""External commands of a build: every line to the log, stopped by cancel or timeout."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from vyvo_dagster.building.masking import CUT
from vyvo_dagster.building.types import BuildCanceled, Log
from vyvo_dagster.errors import BuildFailed

__all__ = ["CancelFlag", "Shown", "dying_with_us", "run_logged", "stop_group"]

# PR_SET_PDEATHSIG (1): a build worker that is killed leaves nothing running. Set by a launcher
# after the fork, because Python code between fork and exec can dead-lock a threaded worker. It
# fires when the thread that forked ends, so that thread must be the one that waits.
_LAUNCHER = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,int(sys.argv[2]));"
    "os.getppid()==int(sys.argv[1]) or os._exit(1);os.execvp(sys.argv[3],sys.argv[3:])"
)
_POLL_SECONDS = 0.25
_SILENT_POLLS = 2
_GRACE_SECONDS = 3.0
_TAIL_LINES = 12
_LINE_BYTES = 1 << 20
_QUOTED_CHARS = 600

Shown = tuple[str, str] | tuple[str, str, Mapping[str, Any]]
"""A line for the log: step, text, and fields where it has some."""


class CancelFlag(Protocol):
    """A threading.Event, or what stands for one."""

    def is_set(self) -> bool:
        """Whether the build is to stop."""
        ...


def run_logged(
    argv: Sequence[str],
    *,
    step: str,
    log: Log,
    cancel: CancelFlag,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], Shown | list[Shown] | None] | None = None,
    watch: Callable[[], None] | None = None,
) -> str:
    """Run a command in its own process group and log what it prints.

    Args:
        argv: the command; no shell sees it.
        step: name of the step in the log and in errors.
        log: gets every line.
        cancel: once set, the group gets SIGTERM, then SIGKILL 3 s later.
        timeout: seconds until the same happens.
        env: added to this process's environment.
        cwd: working directory.
        on_line: turns a printed line into what is logged: a line, several, or None.
        watch: called with each line and four times a second in between; raises to stop the command.

    Returns:
        The last lines printed, for what a caller reads out of them.

    Raises:
        BuildCanceled: `cancel` was set.
        BuildFailed: the command is missing, ran too long, or exited non-zero; the detail holds
            its last lines.
    """
    if shutil.which(argv[0]) is None:
        raise BuildFailed(f"{step}: the command {argv[0]} is not installed on the build host")
    process = subprocess.Popen(
        # Politely, so that docker can tell the engine and its plugin.
        dying_with_us(argv, signal.SIGTERM),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    deadline = time.monotonic() + timeout
    try:
        for line in _until_end(process, lines, cancel):
            if time.monotonic() > deadline:
                raise BuildFailed(f"{step}: gave up after {timeout:g} s")
            if watch is not None:
                watch()
            for shown in _shown(line, step, on_line):
                if len(shown) == 3:
                    log.line(shown[0], shown[1], shown[2])
                else:
                    log.line(shown[0], shown[1])
                tail.append(shown[1])
        code = process.wait(timeout=max(deadline - time.monotonic(), 1.0))
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{step}: gave up after {timeout:g} s") from error
    finally:
        stop_group(process)
        reader.join(timeout=1.0)
        if process.stdout and not reader.is_alive():
            process.stdout.close()
    if code != 0:
        raise BuildFailed(f"{step} failed with exit status {code}: {_last(tail)}")
    return "\n".join(tail)


def _shown(
    line: str | None, step: str, on_line: Callable[[str], Shown | list[Shown] | None] | None
) -> Sequence[Shown]:
    if line is None:
        return ()
    if on_line is None:
        return ((step, line),)
    found = on_line(line)
    if found is None:
        return ()
    return found if isinstance(found, list) else (found,)


def _until_end(
    process: "subprocess.Popen[bytes]",
    lines: "queue.SimpleQueue[str | None]",
    cancel: CancelFlag,
) -> Generator[str | None]:
    """The lines of a process, and None four times a second in between; BuildCanceled on cancel."""
    silent = 0
    while silent < _SILENT_POLLS:
        if cancel.is_set():
            raise BuildCanceled("the build was canceled")
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            # A grandchild may hold the pipe open for ever after the command itself is gone.
            silent = silent + 1 if process.poll() is not None else 0
            yield None
            continue
        if line is None:
            return
        yield line


def dying_with_us(argv: Sequence[str], by: signal.Signals) -> list[str]:
    """A command that runs `argv` and gets the signal `by` when this thread or process ends."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(by))]
    return [*launcher, *argv]


def stop_group(process: "subprocess.Popen[bytes]", grace: float = _GRACE_SECONDS) -> None:
    """Terminate a process started with `start_new_session` and all of its group; wait for it."""
    running = process.poll() is None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM if running else signal.SIGKILL)
    if not running:
        return
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace)
    # Whatever of the group outlived the leader goes too.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=5.0)


def _read(stream: IO[bytes] | None, lines: "queue.SimpleQueue[str | None]") -> None:
    try:
        if stream is not None:
            while raw := stream.readline(_LINE_BYTES):
                # A progress bar redraws its line with \r: only the last drawing counts.
                text = raw.decode(errors="replace").rstrip("\r\n").rsplit("\r", 1)[-1]
                if not raw.endswith(b"\n") and len(raw) == _LINE_BYTES:
                    # In pieces, a secret could be cut in two and not be known again.
                    text += CUT
                    while (more := stream.readline(_LINE_BYTES)) and not more.endswith(b"\n"):
                        pass
                if text.strip():
                    lines.put(text)
    except (OSError, ValueError):
        pass
    finally:
        lines.put(None)


def _last(tail: "deque[str]") -> str:
    """What to quote: from the first line that speaks of an error, else the last lines."""
    lines = [text.strip() for text in tail]
    first = next((n for n, text in enumerate(lines) if "error" in text.lower()), len(lines) - 3)
    return " | ".join(lines[max(first, 0) :])[:_QUOTED_CHARS] or "it printed nothing"
