"""Host process of the tests' servers: one set for all xdist workers, gone with pytest.

Started by `conftest.py` as `python embedded_servers.py DIRECTORY PYTEST_PID`. Writes
`servers.json` once everything answers; ends, and removes the directory, on SIGTERM or when the
pytest process is gone.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from vyvo_dagster.local.parts import start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.postgres import postgres
from vyvo_dagster.local.process import Child, stop
from vyvo_dagster.local.servers import s3

# Test data need not survive the machine, so PostgreSQL need not wait for the disk.
VOLATILE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


async def host(directory: Path, pytest_pid: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    ports = Ports(directory / "ports.json")
    storage = s3(directory, ports, access_key="vyvo-test", secret_key="vyvo-test-secret")
    database = postgres(
        directory, port=ports.take("postgres"), password="vyvo-test", settings=VOLATILE
    )
    children: list[Child] = []

    async def up(part) -> None:
        children.append(await start_part(part, logs=directory / "logs"))

    try:
        async with asyncio.TaskGroup() as tasks:
            for part in (database, storage.part):
                tasks.create_task(up(part))
        answer = {
            "postgres_dsn": database.url,
            "s3_endpoint": storage.endpoint,
            "s3_access_key": storage.access_key,
            "s3_secret_key": storage.secret_key,
        }
        draft = directory / "servers.tmp"
        draft.write_text(json.dumps(answer))
        draft.replace(directory / "servers.json")
        while not ended.is_set() and Path(f"/proc/{pytest_pid}").exists():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), timeout=0.5)
    finally:
        # Nobody reads this data again: a short grace will do.
        await asyncio.gather(*(stop(child, grace=1.0) for child in children))
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    os.umask(0o022)
    asyncio.run(host(Path(sys.argv[1]), int(sys.argv[2])))
