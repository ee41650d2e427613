"""The no-op task on Celery; `python celery_app.py N` sends N of them by two threads.

`python celery_app.py latency N` sends them one at a time and prints how long each took to start.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery

app = Celery("rival", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app.conf.task_default_queue = "rival"


# Named, because the sender knows this module as __main__.
@app.task(name="echo")
def echo(value: dict[str, Any]) -> dict[str, Any]:
    """What comes in goes out."""
    return value


@app.task(name="clock")
def clock() -> float:
    """When the task began, in seconds of the epoch."""
    return time.time()


def one_at_a_time(count: int) -> list[float]:
    """Seconds from sending a task to its start."""
    took: list[float] = []
    for _ in range(count):
        sent = time.time()
        took.append(float(clock.delay().get(timeout=30)) - sent)
        time.sleep(0.03)
    return took


def send(numbers: range) -> None:
    """Send one task for each number."""
    for n in numbers:
        echo.delay({"n": n})


if __name__ == "__main__":
    if sys.argv[1] == "latency":
        print(json.dumps(one_at_a_time(int(sys.argv[2]))))
        sys.exit()
    count = int(sys.argv[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, [range(count // 2), range(count // 2, count)]))
