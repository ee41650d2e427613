"""What the columns of all tables are made of."""

from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID as PG_UUID

__all__ = ["TIME", "UUID", "id_column", "metadata", "now_column", "one_of"]

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

UUID: Final = PG_UUID(as_uuid=True)
TIME: Final = sa.DateTime(timezone=True)


def id_column() -> sa.Column[object]:
    """The primary key that most tables have."""
    return sa.Column("id", UUID, primary_key=True)


def now_column(name: str = "created_at") -> sa.Column[object]:
    """A time that is the row's making unless it is given."""
    return sa.Column(name, TIME, nullable=False, server_default=sa.func.now())


def one_of(column: str, enum: type[StrEnum]) -> sa.CheckConstraint:
    """A check that a column holds a member of `enum`."""
    values = ", ".join(f"'{member.value}'" for member in enum)
    return sa.CheckConstraint(f"{column} in ({values})", name=column)
