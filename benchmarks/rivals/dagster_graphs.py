"""A chain and a fan-out of no-op ops by stock Dagster's multiprocess executor; prints JSON."""

import json
import sys
from typing import Any

from dagster import (
    DagsterInstance,
    DynamicOut,
    DynamicOutput,
    JobDefinition,
    execute_job,
    job,
    multiprocess_executor,
    op,
    reconstructable,
)

CHAIN, FAN = (int(argument) for argument in sys.argv[1:3]) if len(sys.argv) > 2 else (10, 50)


@op
def begin() -> int:
    """The chain's first."""
    return 0


@op
def go_on(n: int) -> int:
    """Any other."""
    return n


@op(out=DynamicOut(int))
def items() -> Any:
    """The items of the fan-out."""
    for n in range(FAN):
        yield DynamicOutput(n, mapping_key=str(n))


@job(executor_def=multiprocess_executor)
def chain() -> None:
    """One after the other."""
    value = begin()
    for n in range(1, CHAIN):
        value = go_on.alias(f"go_on_{n}")(value)


@job(executor_def=multiprocess_executor)
def fan() -> None:
    """One for each item."""
    items().map(go_on)


def chain_job() -> JobDefinition:
    """For the processes that execute it."""
    return chain


def fan_job() -> JobDefinition:
    """For the processes that execute it."""
    return fan


def seconds(made: Any) -> float:
    """From the run's start to its end, by Dagster's own record."""
    with DagsterInstance.get() as instance:
        result = execute_job(reconstructable(made), instance)
        assert result.success
        record = instance.get_run_record_by_id(result.run_id)
    assert record is not None
    assert record.start_time is not None
    assert record.end_time is not None
    return record.end_time - record.start_time


if __name__ == "__main__":
    one, many = seconds(chain_job), seconds(fan_job)
    print(json.dumps({"chain_run": one, "fan_run": many}))
