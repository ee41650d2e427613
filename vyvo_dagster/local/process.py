"""One child process: started so that it cannot outlive us, stopped with a bounded grace."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = [
    "STACK_VARIABLE",
    "Child",
    "Process",
    "die_with_parent",
    "kept_small",
    "kill_marked",
    "marked_pids",
    "rename_process",
    "spawn",
    "stop",
    "tail",
]

STACK_VARIABLE = "VYVO_STACK"
"""Environment variable that every process of a stack inherits: `<data directory>#<start>`.

It is how the guardian finds what a killed `vyvo up` left behind, and how the next start on the
same data directory finds what even the guardian missed.
"""

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_LOG_LIMIT_BYTES = 16 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Process(Protocol):
    """What is needed of a `subprocess.Popen`, so that a forked process can stand for one."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def send_signal(self, sig: int, /) -> None: ...


@dataclass(slots=True)
class Child:
    """A started process and how it wants to be stopped."""

    name: str
    popen: Process
    log: Path
    log_start: int = 0
    """Size of the log when it was started: what lies before is of earlier starts."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace: float = 10.0
    started_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path | None = None,
    user: tuple[int, int] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    stop_grace: float = 10.0,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start `argv` in its own session with both outputs appended to `log`.

    Call it from the main thread: Linux delivers the parent-death signal when the *thread* that
    forked ends, not the process.

    `env` is the whole environment of the child, `user` a (uid, gid) to run as, which needs root;
    `stop_signal` and `stop_grace` (seconds) are for `stop`, and for the parent's death.

    Raises:
        OSError: the program cannot be started.
    """
    with kept_small(log).open("ab") as output:
        log_start = output.tell()
        popen = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=[] if user else None,
            pass_fds=tuple(pass_fds),
            preexec_fn=_before_exec(stop_signal),  # noqa: PLW1509 - one system call, no lock
        )
    return Child(name, popen, log, log_start, stop_signal, stop_grace)


def kept_small(log: Path) -> Path:
    """The log file to append to; what has grown too long is put aside as `.log.1`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log


def _before_exec(death_signal: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()
    # After Popen has changed the user: a change of credentials clears the setting.
    return lambda: die_with_parent(death_signal, parent)


def die_with_parent(death_signal: signal.Signals, parent: int) -> None:
    """Have the kernel send this process the signal when its parent, of that pid, dies (Linux)."""
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:  # it died between the fork and the line above
        os._exit(1)


def rename_process(name: str) -> None:
    """Show `name` (its first 15 bytes) for this process in `ps` and `top` (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


async def stop(child: Child, *, grace: float | None = None) -> bool:
    """Ask `child` to stop, then kill its whole process group after the grace (seconds).

    Returns:
        Whether it stopped by itself.
    """
    if child.running():
        child.popen.send_signal(child.stop_signal)
    polite = await _ended(child, child.stop_grace if grace is None else grace)
    # Also after a polite end: what it left in its group (a worker, a shell) goes with it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    await _ended(child, 5.0)
    return polite


async def _ended(child: Child, within: float) -> bool:
    deadline = time.monotonic() + within
    while child.running():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def tail(log: Path, *, lines: int = 15, since: int = 0) -> str:
    """The last lines of a log file, or an empty string where there is none.

    Args:
        log: the file.
        lines: how many at most.
        since: offset in bytes before which nothing is read.

    """
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(since, file.tell() - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def marked_pids(mark: str) -> list[int]:
    """Pids of the processes whose mark begins with `mark`, without ourselves and our ancestors."""
    spared = {os.getpid(), *_ancestors()}
    needle = f"{STACK_VARIABLE}={mark}".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid in spared:
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            if any(item.startswith(needle) for item in environ) and _alive(entry):
                found.append(pid)
        except OSError:
            continue
    return found


def _alive(proc: Path) -> bool:
    """Whether the process is more than a zombie that its parent has yet to reap."""
    return (proc / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def _ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getppid()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def kill_marked(mark: str, *, grace: float) -> list[int]:
    """End all whose mark begins with `mark`: SIGTERM, then SIGKILL after the grace (seconds).

    Blocks, for 10 s beyond the grace at most. Returns the pids that were found.
    """
    found = marked_pids(mark)
    _signal_all(found, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while left := marked_pids(mark):
        if time.monotonic() >= deadline:
            _signal_all(left, signal.SIGKILL)
        if time.monotonic() >= deadline + 10.0:
            break  # it waits in the kernel, or is another user's
        time.sleep(0.05)
    return found


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
