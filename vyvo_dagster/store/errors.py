"""What the database's errors mean to a caller, whichever layer raises them."""

from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from vyvo_dagster.errors import InvalidInput, Unavailable

__all__ = ["translated"]


@contextmanager
def translated() -> Generator[None]:
    """Raise Unavailable where the server is away, so that a caller can be told to try again, and
    InvalidInput for a value that no column can hold.
    """
    try:
        yield
    except (
        OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError,
        psycopg.errors.ReadOnlySqlTransaction,
    ) as error:  # fmt: skip
        raise Unavailable("the database does not answer; try again shortly") from error
    except (DataError, psycopg.DataError) as error:
        raise InvalidInput(
            "a value cannot be stored: a NUL character, or a number out of range"
        ) from error
    except DBAPIError as error:
        # A server that became a replica refuses writes until another one is found.
        if error.connection_invalidated or isinstance(
            error.orig, psycopg.errors.ReadOnlySqlTransaction
        ):
            raise Unavailable("the database went away; try again shortly") from error
        raise
    except PoolTimeoutError as error:
        raise Unavailable("all database connections are busy; try again shortly") from error
