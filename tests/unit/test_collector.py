"""What a settled process still collects, in a process of its own since it cannot be undone."""

import subprocess
import sys
from typing import Final

_PROGRAM: Final = """
import gc, weakref
from vyvo_dagster import collector

class Node: pass

def cycle():
    node = Node()
    node.self = node
    return weakref.ref(node)

gc.disable()
old = Node()
collector.settle()
assert not any(each is old for each in gc.get_objects()), "what is old is gone through"
gc.enable()
dropped = cycle()
kept = [[] for _ in range(2 * gc.get_threshold()[0])]
assert dropped() is None, "a cycle that nothing holds stays"
"""


def test_settling_leaves_out_what_is_old_and_still_collects_what_is_new() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
