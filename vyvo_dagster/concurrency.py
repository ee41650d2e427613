"""Ending tasks for sure."""

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["cancel_all"]


async def cancel_all(tasks: Iterable[asyncio.Task[Any]], again_after: float = 0.1) -> None:
    """Cancel tasks until each has ended.

    One cancel is not enough before Python 3.12: `asyncio.wait_for`, which client libraries use
    inside, swallows one that arrives as its future completes, and a loop then goes on for ever.
    Errors of the tasks are left for their owner (a TaskGroup) to raise.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again_after)
