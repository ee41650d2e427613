"""Text of strangers (runners, engines), made such that every part of the platform can hold it."""

from typing import Any

__all__ = ["clean"]


def clean(value: Any) -> Any:
    r"""`value` with every NUL and every lone surrogate in it replaced.

    PostgreSQL stores no NUL, in text or in JSON. A lone surrogate, which JSON's `\ud800` gives,
    is in no UTF-8, and so in no report.
    """
    if isinstance(value, str):
        text = value.replace("\0", "\ufffd")
        return text if text.isascii() else text.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {clean(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean(inner) for inner in value]
    return value
