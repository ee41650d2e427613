"""The no-op task on Celery; `python celery_app.py N` sends N of them by two threads."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery

app = Celery("rival", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app.conf.task_default_queue = "rival"


@app.task
def echo(value: dict[str, Any]) -> dict[str, Any]:
    """What comes in goes out."""
    return value


def send(numbers: range) -> None:
    """Send one task for each number."""
    for n in numbers:
        echo.delay({"n": n})


if __name__ == "__main__":
    count = int(sys.argv[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, [range(count // 2), range(count // 2, count)]))
