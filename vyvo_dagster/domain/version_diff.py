"""What differs between two versions of a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Changes", "changes", "locked_packages"]

# `name==1.2.3 \` of a lock with hashes; names are compared as PEP 503 says.
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Changes:
    """By name: what only the second has, what only the first has, and (first, second) of the rest."""

    added: Mapping[str, Any]
    removed: Mapping[str, Any]
    changed: Mapping[str, tuple[Any, Any]]


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Changes:
    """How `second` differs from `first`."""
    both = sorted(first.keys() & second.keys())
    return Changes(
        {name: second[name] for name in sorted(second.keys() - first.keys())},
        {name: first[name] for name in sorted(first.keys() - second.keys())},
        {name: (first[name], second[name]) for name in both if first[name] != second[name]},
    )


def locked_packages(lock: str) -> dict[str, str]:
    """Version by package of a `requirements.lock`."""
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in _PINNED.finditer(lock)}
