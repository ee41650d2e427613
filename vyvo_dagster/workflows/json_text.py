"""JSON from outside that is to be stored."""

import json
from typing import Any

__all__ = ["stored_json"]


def stored_json(text: str) -> Any:
    """The value of JSON text, if a column can hold it and every reader reads it.

    Raises:
        ValueError: it is no JSON, or holds a number that JSON has not, a NUL or half a character.
        RecursionError: it is nested too deeply.
    """
    found = json.loads(text, parse_constant=_no_constant)
    again = json.dumps(found, ensure_ascii=False, allow_nan=False)
    again.encode()
    if "\\u0000" in again:
        raise ValueError("it holds a NUL character")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
