"""PostgreSQL's own pg_dump and pg_restore. No password on a command line, where others may read it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from vyvo_dagster.errors import Conflict, InvalidInput, Unavailable
from vyvo_dagster.local.postgres import postgres_binaries

__all__ = ["dump", "restore"]

_SECONDS: Final = 12 * 3600
_LINES: Final = 3


def dump(dsn: str, path: Path) -> None:
    """Write a database as it is at this moment to `path`, in pg_dump's custom format.

    Raises:
        Unavailable: pg_dump is not installed, or failed; its last words are the detail.
    """
    _run(["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={path}"], dsn)


def restore(dsn: str, path: Path) -> None:
    """Bring a dump into an empty database: all of it, or none.

    Raises:
        Unavailable: pg_restore is not installed, or failed.
    """
    command = ["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error"]
    _run([*command, "--single-transaction"], dsn, str(path), option="--dbname=")


def _run(command: list[str], dsn: str, *rest: str, option: str = "--dbname=") -> None:
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # Not with the URL in it, which holds a password.
        raise InvalidInput("the URL of a database is none that libpq reads") from error
    password = parts.pop("password", None)
    parts.setdefault("connect_timeout", 10)
    env = {**os.environ, **({} if password is None else {"PGPASSWORD": str(password)})}
    program = _program(command[0])
    try:
        done = subprocess.run(
            [program, *command[1:], f"{option}{make_conninfo('', **parts)}", *rest],
            env=env, check=False, capture_output=True, text=True, timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} did not end within {_SECONDS / 3600:.0f} h") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split("\n")[:_LINES]).strip()
        kind = Conflict if "already exists" in said else Unavailable
        raise kind(f"{command[0]} failed: {said[:1000]}")


def _program(name: str) -> str:
    """Of the embedded server where that is installed, else the one on PATH."""
    try:
        beside = postgres_binaries() / name
        if beside.exists():
            return str(beside)
    except Unavailable:
        pass
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed (Debian: postgresql-client)")
    return found
