"""What a database holds and who uses it, before something is restored into it."""

import psycopg

from vyvo_dagster.errors import Unavailable

__all__ = ["others_connected", "tables_of"]

_TABLES = """
    select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and n.nspname not in ('pg_catalog', 'information_schema')
"""
_OTHERS = """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
        and backend_type = 'client backend'
"""


def tables_of(dsn: str) -> int:
    """How many tables a database has; raises Unavailable where it does not answer."""
    return _count(dsn, _TABLES)


def others_connected(dsn: str) -> int:
    """How many other sessions a database has; raises Unavailable where it does not answer."""
    return _count(dsn, _OTHERS)


def _count(dsn: str, query: str) -> int:
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            row = connection.execute(query.encode()).fetchone()
    except psycopg.Error as error:
        raise Unavailable(
            f"the database does not answer: {str(error).splitlines()[0][:300]}"
        ) from error
    return 0 if row is None else int(row[0])
