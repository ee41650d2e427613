"""The no-op task on taskiq's Redis streams; `python taskiq_app.py N` sends N, 100 at a time."""

import asyncio
import os
import sys
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(os.environ["BROKER_URL"]).with_result_backend(
    RedisAsyncResultBackend(os.environ["RESULT_URL"])
)


@broker.task(task_name="echo")
async def echo(value: dict[str, Any]) -> dict[str, Any]:
    """What comes in goes out."""
    return value


async def send(count: int) -> None:
    """Send `count` tasks."""
    await broker.startup()
    for start in range(0, count, 100):
        await asyncio.gather(*(echo.kiq({"n": n}) for n in range(start, min(start + 100, count))))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1])))
