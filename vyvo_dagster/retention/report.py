"""What a pass did, as JSON that people and programs read."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol, TypeVar

from vyvo_dagster.store.database import Store

__all__ = ["ExpiryReport", "OrphanReport", "Transactions", "note"]

T = TypeVar("T")
_NAMED: Final = 100


class Transactions(Protocol):
    """Does work in one transaction: committed where it returns, rolled back where it raises."""

    def call(self, work: Callable[[Store], Awaitable[T]]) -> T: ...


def _texts() -> dict[str, str]:
    return {}


@dataclass(slots=True)
class ExpiryReport:
    """Of artifacts whose end has come. Sizes in bytes."""

    expired: int = 0
    """Marked by this pass; with a dry run, that would be."""
    deleted: int = 0
    deleted_bytes: int = 0
    shared: int = 0
    """Rows that ended, whose object another row still needs."""
    failed: int = 0
    errors: dict[str, str] = field(default_factory=_texts)
    """The first hundred that could not be deleted, and why; tried again by the next pass."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass(slots=True)
class OrphanReport:
    """Of objects without a row, and rows without an object. Sizes in bytes."""

    listed: int = 0
    young: int = 0
    spared: int = 0
    """Without a row of their own; another refers to them, or their job has not ended."""
    orphans: int = 0
    orphan_bytes: int = 0
    examples: list[str] = field(default_factory=list[str])
    deleted: int = 0
    failed: int = 0
    errors: dict[str, str] = field(default_factory=_texts)
    refused: str | None = None
    """Why no orphan was deleted, where that was for the database's sake."""
    left_for_later: int = 0
    """Orphans beyond what one pass deletes."""
    rows_checked: int = 0
    rows_missing: int = 0
    rows_found_again: int = 0
    missing: list[str] = field(default_factory=list[str])
    """The first hundred URLs of rows whose object is not there."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def note(errors: dict[str, str], uri: str, why: str) -> None:
    """Keep a fault, as long as there are few."""
    if len(errors) < _NAMED:
        errors[uri] = why
