"""The embedded servers keep their data and their addresses, and say why they cannot start."""

import asyncio
import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis
from minio import Minio

from vyvo_dagster.errors import Conflict, Unavailable
from vyvo_dagster.local.credentials import load_or_create
from vyvo_dagster.local.parts import Part, start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.postgres import postgres
from vyvo_dagster.local.process import STACK_VARIABLE, Child, kill_marked, marked_pids, stop
from vyvo_dagster.local.servers import s3, valkey


async def test_servers_find_their_data_again_at_the_same_address(tmp_path: Path) -> None:
    urls: list[set[str]] = []
    for turn in (1, 2):
        ports = Ports(tmp_path / "ports.json")
        database = postgres(
            tmp_path, port=ports.take("postgres"), password="pw", databases=("vyvo", "dagster")
        )
        streams = valkey(tmp_path, port=ports.take("redis"), password="pw")
        storage = s3(tmp_path, ports, access_key="key", secret_key="secret-of-s3")
        parts = (database, streams, storage.part)
        children = await asyncio.gather(*(start_part(p, logs=tmp_path / "logs") for p in parts))
        try:
            assert await asyncio.to_thread(_visit, database.url, streams.url, storage.endpoint) == (
                turn,
                turn,
                turn,
            )
        finally:
            stopped = await asyncio.gather(*map(stop, children))
        assert stopped == [True, True, True]
        urls.append({part.url for part in parts})
    assert urls[0] == urls[1]


def _visit(dsn: str, redis_url: str, endpoint: str) -> tuple[int, int, int]:
    """Add one of each; how many of each there are."""
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now())")
        connection.execute("INSERT INTO visits DEFAULT VALUES")
        row = connection.execute("SELECT count(*) FROM visits").fetchone()
    with redis.Redis.from_url(redis_url) as client:
        entries = client.incr("visits")
    store = Minio(endpoint.removeprefix("http://"), "key", "secret-of-s3", secure=False)
    if not store.bucket_exists("visits"):
        store.make_bucket("visits")
    store.put_object("visits", secrets.token_hex(4), io.BytesIO(b"x" * 100_000), 100_000)
    objects = list(store.list_objects("visits"))
    assert row is not None
    return row[0], int(str(entries)), len(objects)


async def test_postgres_starts_after_a_kill_although_its_lock_names_a_living_process(
    tmp_path: Path,
) -> None:
    port = Ports(tmp_path / "ports.json").take("postgres")
    part = postgres(tmp_path, port=port, password="pw")
    first = await start_part(part, logs=tmp_path / "logs")
    first.popen.kill()
    first.popen.wait(10)
    lock = tmp_path / "postgres" / "data" / "postmaster.pid"
    # In a container the pid soon belongs to something else, here to this test.
    lock.write_text(lock.read_text().replace(str(first.pid), str(os.getpid()), 1))
    second = await start_part(part, logs=tmp_path / "logs")
    await stop(second)


async def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    port = Ports(tmp_path / "ports.json").take("redis")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(Unavailable) as caught:
        await start_part(valkey(tmp_path, port=port, password="pw"), logs=tmp_path / "logs")
    assert "redis ended with status" in caught.value.detail
    assert "Address already in use" in caught.value.extra["log_tail"]


async def test_a_silent_part_is_given_up_and_stopped(tmp_path: Path) -> None:
    mark = str(tmp_path)

    async def never(_: Child) -> None:
        raise Unavailable("still thinking")

    part = Part(
        name="mute",
        argv=(sys.executable, "-c", "import time; time.sleep(60)"),
        url="-",
        ready=never,
        env={STACK_VARIABLE: mark},
        start_timeout=0.5,
    )
    with pytest.raises(Unavailable, match=r"did not answer within 0 s \(still thinking\)"):
        await start_part(part, logs=tmp_path)
    assert marked_pids(mark) == []


def test_a_remembered_port_is_left_only_to_a_stranger(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = Ports(path).take("api")
    assert Ports(path).take("api") == first
    with socket.create_server(("127.0.0.1", first)):
        assert Ports(path).take("api") != first
        with pytest.raises(Conflict, match=f"port {first} for api is in use"):
            Ports(path).insist("api", first)


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(path) == made
    assert made.admin_key.startswith("vyk_")
    assert [len(piece) for piece in made.admin_key.split("_", 2)] == [3, 8, 43]


def test_a_child_dies_with_its_parent_and_the_mark_finds_the_rest(tmp_path: Path) -> None:
    mark = str(tmp_path)
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)], env={**os.environ, STACK_VARIABLE: mark}
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "grandchild").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int((tmp_path / "child").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    while child in marked_pids(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = marked_pids(mark)
    assert child not in left
    assert left == [int((tmp_path / "grandchild").read_text())]
    assert kill_marked(mark, grace=0.3) == left
    assert marked_pids(mark) == []


# A grandchild that ignores SIGTERM, in a session of its own, outlives its parents.
_PARENT = """
import os, sys, time
from pathlib import Path
from vyvo_dagster.local.process import spawn
here = Path(sys.argv[1])
grandchild = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + "/grandchild.tmp", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + "/grandchild.tmp", sys.argv[1] + "/grandchild")
time.sleep(60)
'''
child = f'''
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {grandchild!r}, {str(here)!r}], start_new_session=True).wait()
'''
started = spawn("child", [sys.executable, "-c", child], env=os.environ, log=here / "child.log")
(here / "child").write_text(str(started.pid))
time.sleep(60)
"""
