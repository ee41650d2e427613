"""Fields that several nouns share, and the checks that JSON alone does not make."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict

from vyvo_dagster.errors import InvalidInput

__all__ = ["Body", "Cursor", "Limit", "Listing", "Text", "check_json", "listing", "mended"]

T = TypeVar("T")

_DEPTH: Final = 64


class Body(BaseModel):
    """A request's body: unknown members are errors, so that a misspelt option is not silence."""

    model_config = ConfigDict(extra="forbid")


def _storable(text: str) -> str:
    if not _is_storable(text):
        raise ValueError("holds a NUL character or half of a surrogate pair")
    return text


def _is_storable(text: str) -> bool:
    """Postgres stores no NUL, and no text that UTF-8 cannot carry."""
    return "\0" not in text and (text.isascii() or not any(0xD800 <= ord(c) < 0xE000 for c in text))


Text = Annotated[str, AfterValidator(_storable)]
"""A string that can be stored."""

Cursor = Annotated[UUID | None, Query(description="`next_cursor` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]


class Listing(BaseModel, Generic[T]):
    """One page, newest first. `next_cursor` is null on the last."""

    items: list[T]
    next_cursor: str | None


class _Identified(Protocol):
    @property
    def id(self) -> UUID: ...


R = TypeVar("R", bound=_Identified)


def listing(rows: Sequence[R], limit: int) -> tuple[list[R], str | None]:
    """Split what a repository's page gave (one more than `limit`) into items and next cursor."""
    shown = list(rows[:limit])
    return shown, str(shown[-1].id) if len(rows) > limit else None


def check_json(value: Any, what: str) -> None:
    """Raise InvalidInput where JSON text was legal and a JSONB column could not hold it.

    That is: NUL or a lone surrogate in a string, NaN or infinity, nesting deeper than 64.
    """
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > _DEPTH:
            raise InvalidInput(f"{what} is nested more than {_DEPTH} deep")
        if isinstance(item, str):
            if not _is_storable(item):
                raise InvalidInput(f"{what} holds a NUL character or half of a surrogate pair")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise InvalidInput(f"{what} holds a number that is not finite")
        elif isinstance(item, dict):
            stack += [(key, depth) for key in item]
            stack += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            stack += [(child, depth + 1) for child in item]


def mended(value: Any, depth: int = 0) -> Any:
    """`value` with whatever check_json refuses replaced.

    For what a runner made: its agent could not do better by being refused.
    """
    if depth > _DEPTH:
        return None
    if isinstance(value, str):
        return value if _is_storable(value) else _mended_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_mended_text(str(k)): mended(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [mended(v, depth + 1) for v in value]
    return value


def _mended_text(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
