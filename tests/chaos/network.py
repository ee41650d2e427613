"""A network that drops what one node sends, by the kernel's own packet filter."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["can_drop", "dropping"]


def can_drop() -> bool:
    """Whether this machine lets us: as root, with iptables and its match of owners."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("iptables", "setpriv"))):
        return False
    return _iptables("-C", 1, check=False) != 0 and _tried()


def _tried() -> bool:
    if _iptables("-I", 1, check=False) != 0:
        return False
    _iptables("-D", 1)
    return True


@contextmanager
def dropping(group: int) -> Iterator[None]:
    """While this is open every packet is dropped that processes of `group` send over loopback.

    Neither what they ask nor what they acknowledge arrives: connections stand still, and new ones get
    no answer.
    """
    _iptables("-I", group)
    try:
        yield
    finally:
        _iptables("-D", group)


def _iptables(action: str, group: int, *, check: bool = True) -> int:
    rule = ["OUTPUT", "-o", "lo", "-m", "owner", "--gid-owner", str(group), "-j", "DROP"]
    command = ["iptables", "--wait", "10", action, *rule]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0 or not check, done.stderr
    return done.returncode
