"""Migrations, applied by whoever starts the stack; safe to run from several hosts at once."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from vyvo_dagster.store.database import async_dsn
from vyvo_dagster.store.tables import metadata

__all__ = ["differences", "revise", "upgrade"]

# Any constant of ours: one migrating host at a time, the others wait and find nothing to do.
_LOCK = 0x7679766F


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def upgrade(dsn: str) -> None:
    """Bring the schema of the database at `dsn` to the newest revision."""
    engine = sa.create_engine(async_dsn(dsn))
    try:
        with engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
            connection.commit()
            try:
                command.upgrade(_config(connection), "head")
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK)))
                connection.commit()
    finally:
        engine.dispose()


def differences(dsn: str) -> list[object]:
    """What the tables of the code have that the database at `dsn` lacks, or the other way round."""
    engine = sa.create_engine(async_dsn(dsn))
    try:
        with engine.connect() as connection:
            return list(compare_metadata(MigrationContext.configure(connection), metadata))
    finally:
        engine.dispose()


def revise(dsn: str, message: str, revision: str) -> None:
    """Write a new revision from the difference to the database at `dsn`, which is at head."""
    engine = sa.create_engine(async_dsn(dsn))
    try:
        with engine.connect() as connection:
            command.revision(
                _config(connection), message=message, rev_id=revision, autogenerate=True
            )
    finally:
        engine.dispose()
