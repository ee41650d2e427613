"""Rows to records, and newest-first pages."""

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

import sqlalchemy as sa

__all__ = ["page", "record"]

T = TypeVar("T")


@cache
def _converters(cls: type[Any]) -> dict[str, Callable[[Any], Any] | None]:
    """Field → its StrEnum where it has one; the driver already gives all other types."""
    hints = get_type_hints(cls)
    found: dict[str, Callable[[Any], Any] | None] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if get_origin(hint) is UnionType:
            hint = next(a for a in get_args(hint) if a is not NoneType)
        found[field.name] = hint if isinstance(hint, type) and issubclass(hint, StrEnum) else None
    return found


def record(cls: type[T], row: Mapping[Any, Any]) -> T:
    """The record of one row; columns that the record does not name are left out."""
    return cls(
        **{
            name: enum(row[name]) if enum is not None and row[name] is not None else row[name]
            for name, enum in _converters(cls).items()
        }
    )


def page(
    statement: sa.Select[Any], key: sa.ColumnElement[Any], cursor: UUID | None, limit: int
) -> sa.Select[Any]:
    """Newest first, after `cursor`; one row more than `limit` tells whether there is a next page.

    UUIDv7 sorts by time, so the id alone is the cursor and no offset is counted.
    """
    if cursor is not None:
        statement = statement.where(key < cursor)
    return statement.order_by(key.desc()).limit(limit + 1)
