"""What an environment variable may be called and hold, on its way from the api to a runner.

The api and the agent ask here, so that what the one takes the other can write. systemd reads such
a file (`EnvironmentFile=`) with rules of its own: it passes over a variable whose value is no valid
UTF-8, where it counts Unicode's noncharacters as invalid.
"""

import re
from typing import Final

__all__ = ["NAME_PATTERN", "VALUE_BYTES", "refused_name", "refused_value"]

NAME_PATTERN: Final = r"[A-Za-z_][A-Za-z0-9_]*"
VALUE_BYTES: Final = 64 << 10
"""What one value may have at most. Linux takes 128 KiB, name included (MAX_ARG_STRLEN)."""

_NAME = re.compile(NAME_PATTERN)
_NAME_CHARS: Final = 128
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef" + "".join(f"{chr(p << 16 | 0xFFFE)}{chr(p << 16 | 0xFFFF)}" for p in range(17)) + "]"
)  # fmt: skip


def refused_name(name: str) -> str | None:
    """Why `name` cannot name a variable; None if it can."""
    if _NAME.fullmatch(name) and len(name) <= _NAME_CHARS:
        return None
    return f"env name {name[:64]!r} must match {NAME_PATTERN} ({_NAME_CHARS} at most)"


def refused_value(name: str, value: str, most_bytes: int = VALUE_BYTES) -> str | None:
    """Why the variable `name` cannot have `value`; None if it can. The value is never quoted."""
    if _CONTROL.search(value):
        return f"env value of {name} holds a newline, NUL or other control character"
    if _NONCHARACTER.search(value):
        return f"env value of {name} holds a Unicode noncharacter, which systemd does not take"
    size = len(value.encode())
    if size > most_bytes:
        return f"env value of {name} is {size} bytes; at most {most_bytes}"
    return None
