"""Kill -9 of each part in turn, in an order and with pauses that the seed decides."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.stack import NODES, Stack

__all__ = ["strike"]


@dataclass(frozen=True)
class Fault:
    """Kill `part`, leave it down for a while, start it again."""

    part: str
    meanwhile: Callable[[Stack], None] = lambda _: None
    name: str = ""


async def strike(stack: Stack, dice: random.Random) -> list[str]:
    """All faults, one after the other; their names in order."""
    faults = [
        Fault(f"orchestrator-{dice.randint(1, 2)}"),
        Fault(dice.choice(NODES)),
        Fault("api"),
        Fault("redis", name="redis, keeps its data"),
        Fault("redis", Stack.empty_redis, "redis, loses its data"),
        Fault("postgres"),
    ]
    dice.shuffle(faults)
    for fault in faults:
        await asyncio.sleep(dice.uniform(0.5, 2.0))
        stack.kill(fault.part)
        await asyncio.sleep(dice.uniform(0.0, 1.5))
        fault.meanwhile(stack)
        await stack.start(fault.part)
    return [fault.name or fault.part for fault in faults]
