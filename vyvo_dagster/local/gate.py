"""A process that imports early and begins late: the imports overlap with the start of others.

`vyvo up` starts a part at once with `VYVO_GATE` naming a file, and makes the file when what the
part needs is up.
"""

import os
import sys
import time
from pathlib import Path

__all__ = ["GATE_VARIABLE", "wait_at_gate"]

GATE_VARIABLE = "VYVO_GATE"
_PATIENCE = 300.0


def wait_at_gate() -> None:
    """Return once the gate is open; at once where this process was given none."""
    gate = os.environ.pop(GATE_VARIABLE, None)
    if gate is None:
        return
    path, deadline = Path(gate), time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            sys.exit(f"{path} was not made within {_PATIENCE:.0f} s")
        time.sleep(0.02)
