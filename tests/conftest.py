"""Real servers for the integration tests: started by the first test that asks, one set a run.

`postgres_dsn` is a migrated database of this xdist worker's own, `redis_url` a server of its
own, `s3_settings` the shared server with bucket names of its own. Tests of one worker share
them, so each test uses unique names.
"""

import asyncio
import fcntl
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vyvo_dagster.settings import S3Settings

CONTROLLER = "VYVO_TEST_CONTROLLER_PID"
START_TIMEOUT = 90.0


def _directory() -> Path:
    return Path(tempfile.gettempdir()) / f"vyvo-tests-{os.environ[CONTROLLER]}"


def pytest_configure(config: pytest.Config) -> None:
    # Tests that install from an index trust what the machine trusts.
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")
    if not hasattr(config, "workerinput"):  # the controller of xdist, or the only process
        os.environ[CONTROLLER] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers with the run, so that nothing is left when pytest has returned."""
    if hasattr(config, "workerinput"):
        return
    try:
        pid = int((_directory() / "host.pid").read_text())
    except (OSError, ValueError):
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20.0
    while _directory().exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    _directory().with_suffix(".log").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def _servers() -> dict[str, str]:
    """Addresses of the run's servers; the first caller of all workers starts them."""
    directory = _directory()
    directory.mkdir(mode=0o755, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = directory / "servers.json"
        if not answer.exists():
            host = _start_host(directory)
            deadline = time.monotonic() + START_TIMEOUT
            while not answer.exists():
                if _ended(host) or time.monotonic() > deadline:
                    log = directory.with_suffix(".log").read_text()
                    pytest.fail(f"the test servers did not start:\n{log[-4000:]}", pytrace=False)
                time.sleep(0.05)
            _migrated_template(json.loads(answer.read_text())["postgres_dsn"])
        return json.loads(answer.read_text())


def _start_host(directory: Path) -> int:
    """Start the servers' host, which outlives this worker; its pid."""
    script = str(Path(__file__).with_name("embedded_servers.py"))
    with directory.with_suffix(".log").open("wb") as log:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, script, str(directory), os.environ[CONTROLLER]],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setsid=True,
        )
    (directory / "host.pid").write_text(str(pid))
    return pid


def _ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG) != (0, 0)


def _database(dsn: str, name: str) -> str:
    return f"{dsn.rpartition('/')[0]}/{name}"


def _execute(dsn: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        connection.execute(statement.encode())


def _migrated_template(dsn: str) -> None:
    from vyvo_dagster.store.migrate import upgrade

    _execute(dsn, "CREATE DATABASE vyvo_template")
    upgrade(_database(dsn, "vyvo_template"))


@pytest.fixture(scope="session")
def postgres_dsn(_servers: dict[str, str]) -> str:
    """libpq URL of a migrated database that only this worker uses."""
    dsn = _servers["postgres_dsn"]
    name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{secrets.token_hex(3)}"
    _execute(dsn, f"CREATE DATABASE {name} TEMPLATE vyvo_template")
    return _database(dsn, name)


@pytest.fixture(scope="session")
def make_database(_servers: dict[str, str]) -> Callable[[str], str]:
    """Makes a database that nobody else has and gives its libpq URL; `migrated` or `empty`."""

    def make(kind: str) -> str:
        name = f"own_{secrets.token_hex(4)}"
        template = {"migrated": " TEMPLATE vyvo_template", "empty": ""}[kind]
        _execute(_servers["postgres_dsn"], f"CREATE DATABASE {name}{template}")
        return _database(_servers["postgres_dsn"], name)

    return make


@pytest.fixture(scope="session")
def empty_postgres_dsn(_servers: dict[str, str]) -> str:
    """libpq URL of a database without tables, for what brings its own (migrations, Dagster)."""
    dsn, name = _servers["postgres_dsn"], f"empty_{secrets.token_hex(4)}"
    _execute(dsn, f"CREATE DATABASE {name}")
    return _database(dsn, name)


@pytest.fixture
def fresh_postgres_dsn(_servers: dict[str, str]) -> str:
    """libpq URL of a database without tables that only this test uses."""
    dsn, name = _servers["postgres_dsn"], f"fresh_{secrets.token_hex(4)}"
    _execute(dsn, f"CREATE DATABASE {name}")
    return _database(dsn, name)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis-protocol server that only this worker uses, so that FLUSHALL is allowed."""
    with own_redis(tmp_path_factory) as url:
        yield url


@contextmanager
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis-protocol server for as long as the block runs; its URL."""
    from vyvo_dagster.local.parts import start_part
    from vyvo_dagster.local.ports import Ports
    from vyvo_dagster.local.process import stop
    from vyvo_dagster.local.servers import valkey

    home = tmp_path_factory.mktemp("redis")
    part = valkey(home, port=Ports(home / "ports.json").take("redis"), password="vyvo-test")
    child = asyncio.run(start_part(part, logs=home / "logs"))
    try:
        yield part.url
    finally:
        asyncio.run(stop(child))


@pytest.fixture(scope="session")
def s3_settings(_servers: dict[str, str]) -> S3Settings:
    """The shared S3 server, with bucket names that only this worker uses; the buckets exist."""
    from vyvo_dagster.objects.store import ObjectStore

    settings: dict[str, Any] = {
        "endpoint": _servers["s3_endpoint"],
        "access_key": _servers["s3_access_key"],
        "secret_key": _servers["s3_secret_key"],
        "bucket_prefix": f"t{secrets.token_hex(4)}-",
    }
    built = S3Settings(**settings)
    ObjectStore(built).ensure_buckets()
    return built
