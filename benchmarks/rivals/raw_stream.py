"""A bare stream: `worker BATCH` reads, stores a result, acknowledges; `send N BATCH` adds entries."""

import os
import sys
from typing import Any

from redis import Redis

STREAM, GROUP = "raw", "raw"


def main() -> None:
    """Run one side."""
    broker = Redis.from_url(os.environ["BROKER_URL"], decode_responses=True)
    results = Redis.from_url(os.environ["RESULT_URL"], decode_responses=True)
    if sys.argv[1] == "worker":
        work(broker, results, int(sys.argv[2]))
    else:
        send(broker, int(sys.argv[2]), int(sys.argv[3]))


def send(broker: Redis, count: int, batch: int) -> None:
    """Add `count` entries, `batch` in a round trip."""
    for start in range(0, count, batch):
        pipe = broker.pipeline(transaction=False)
        for n in range(start, min(start + batch, count)):
            pipe.xadd(STREAM, {"id": str(n), "body": f'{{"n":{n}}}'})
        pipe.execute()


def work(broker: Redis, results: Redis, batch: int) -> None:
    """Read `batch` at a time, for ever."""
    broker.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    while True:
        answer: Any = broker.xreadgroup(GROUP, "w", {STREAM: ">"}, count=batch, block=1000)
        entries = answer[0][1] if answer else []
        if entries:
            pipe = results.pipeline(transaction=False)
            for _, fields in entries:
                pipe.set(f"result:{fields['id']}", fields["body"])
            pipe.execute()
            broker.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))


if __name__ == "__main__":
    main()
