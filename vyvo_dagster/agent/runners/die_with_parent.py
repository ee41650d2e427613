"""Run a command that is killed when the process that started this one dies, however it dies.

    python -I -S die_with_parent.py <parent pid> <command> [argument ...]

Linux only (prctl(2), PR_SET_PDEATHSIG). A file of its own, run and not imported: the setting is
made in the child before exec, and code between fork and exec of a process with threads is unsafe.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Replace this process by the command; returns only by raising."""
    parent, command = int(argv[1]), argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execvp(command[0], command)  # noqa: S606 - an argument vector, no shell


if __name__ == "__main__":
    main(sys.argv)
