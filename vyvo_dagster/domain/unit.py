"""Names of systemd units that are made from names of ours."""

import re
import string
from typing import Final

from vyvo_dagster.errors import InvalidInput

__all__ = ["escape", "instance_unit", "unescape"]

_PLAIN: Final = frozenset((string.ascii_letters + string.digits + ":_.").encode())
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
# UNIT_NAME_MAX, the NUL at its end included.
_LONGEST: Final = 255


def escape(text: str) -> str:
    r"""`text` as part of a unit's name, as systemd-escape(1) writes it.

    `/` becomes `-`; other bytes than letters, digits, `:`, `_` and `.` become `\xNN`, and so does a
    `.` at the start.
    """
    out: list[str] = []
    for place, byte in enumerate(text.encode()):
        if byte == ord("/"):
            out.append("-")
        elif byte in _PLAIN and not (byte == ord(".") and place == 0):
            out.append(chr(byte))
        else:
            out.append(f"\\x{byte:02x}")
    return "".join(out)


def unescape(escaped: str) -> str:
    """What `escape` was given."""
    slashes = escaped.encode().replace(b"-", b"/")
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), slashes).decode()


def instance_unit(template: str, instance: str) -> str:
    """The service `<template>@<instance escaped>.service`.

    Raises:
        InvalidInput: systemd takes no name that long.
    """
    name = f"{template}@{escape(instance)}.service"
    if len(name) > _LONGEST:
        raise InvalidInput(
            f"the unit of {instance} would have a name of {len(name)} characters; "
            f"systemd takes {_LONGEST}"
        )
    return name
