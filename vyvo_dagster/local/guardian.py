"""Ends what a killed `vyvo up` leaves: the children's own children, which nobody else would.

The parent-death signal reaches only the direct children. This process waits on its standard
input, a pipe that only `vyvo up` holds: a line means an orderly end, end-of-file a death.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

from vyvo_dagster.local.process import kill_marked, marked_pids

__all__ = ["Guardian"]

_GRACE = 5.0


class Guardian:
    """Handle of the guardian of one start of the stack."""

    def __init__(self, mark: str, log: Path) -> None:
        """Start the guardian over all that carries `mark`; its own output goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, mark],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def dismiss(self) -> None:
        """Tell it that all is stopped, and wait for its end. Blocks for milliseconds."""
        try:
            self._process.communicate(b"stopped\n", timeout=5.0)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait(5.0)


def _main(mark: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.readline():
        return
    # The direct children have had their signal from the kernel and are stopping.
    deadline = time.monotonic() + _GRACE
    while marked_pids(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    kill_marked(mark, grace=2.0)


if __name__ == "__main__":
    _main(sys.argv[1])
