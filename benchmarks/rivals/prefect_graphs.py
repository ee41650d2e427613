"""A chain and a fan-out of no-op tasks by Prefect; prints JSON. Runs in an environment of its own."""

import json
import sys
import time

from prefect import flow, task  # pyright: ignore[reportMissingImports]

CHAIN, FAN = (int(argument) for argument in sys.argv[1:3])


@task
def step(n: int) -> int:
    """Return at once."""
    return n


@flow
def chain() -> None:
    """One after the other."""
    value = 0
    for _ in range(CHAIN):
        value = step(value)


@flow
def fan() -> None:
    """One for each item."""
    step.map(list(range(FAN))).wait()


def seconds(run) -> float:
    """How long a run takes; the second one, when the server that Prefect starts is up."""
    run()
    began = time.monotonic()
    run()
    return time.monotonic() - began


if __name__ == "__main__":
    one, many = seconds(chain), seconds(fan)
    print(json.dumps({"chain_run": one, "fan_run": many}))
