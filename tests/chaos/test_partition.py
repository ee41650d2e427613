"""A node that the network cuts off for 45 s, with the clocks of a fresh installation.

Where the kernel can be asked to, all that the node sends is dropped (to api, Redis and object store);
elsewhere a proxy before the api stands still.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.chaos.network import can_drop, dropping
from tests.chaos.stack import MODEL, NODES, Stack, stack
from tests.chaos.test_nodes import assign, attempts, job, kinds, on, register, state, submit
from vyvo_dagster.settings import S3Settings

pytestmark = pytest.mark.xdist_group("chaos")

A, B = NODES
MINE = "chaos/cut"
CUT_SECONDS = 45.0
# Of nobody, and another for each process of tests.
GROUP = 3_000_000 + os.getpid() if can_drop() else None
DEFAULTS = {"VYVO_MAX_ATTEMPTS": "3"}


def silence(made: Stack, name: str) -> float:
    """Seconds since the node's last heartbeat."""
    query = "select extract(epoch from now() - last_heartbeat_at) from nodes where name = %s"
    return float(made.rows(query, name)[0][0])


@asynccontextmanager
async def cut(made: Stack) -> AsyncIterator[None]:
    if GROUP is not None:
        with dropping(GROUP):
            yield
        return
    made.proxies[A].cut()
    yield
    made.proxies[A].mend()


async def test_a_node_that_is_cut_off_for_a_while_keeps_its_work(
    tmp_path: Path, s3_settings: S3Settings
) -> None:
    """Suspect, not lost; nothing moves; what ran goes on, what ended meanwhile is told once."""
    async with (
        stack(
            tmp_path, s3_settings, clocks=DEFAULTS,
            groups={} if GROUP is None else {A: GROUP}, cut_off=[A] if GROUP is None else [],
        ) as made,
        made.client() as client,
    ):  # fmt: skip
        await register(client, MINE, "noop://cut")
        await assign(client, A, MINE)
        await made.until(lambda: on(made, A).get(MINE) == "ready", "it is loaded", 60)
        long, short = await submit(client, MINE, 60), await submit(client, MINE, 20)
        for each in (long, short):
            await made.until(lambda each=each: job(made, each) == ("running", A), "it runs", 30)
        # Room for a slow machine: at its worst a node is heard again 4.5 s after the cut.
        await made.until(lambda: silence(made, A) < 4, "a fresh heartbeat", 30)
        began = time.monotonic()
        async with cut(made):
            await made.until(lambda: state(made, A) == "suspect", "the node is suspect", 40)
            # Who is suspect gets no work.
            others = [await submit(client, MODEL, 0) for _ in range(4)]
            for other in others:
                await made.until(
                    lambda other=other: job(made, other) == ("succeeded", B), "the other node", 10
                )
            await asyncio.sleep(began + CUT_SECONDS - time.monotonic())
            assert state(made, A) == "suspect"
            assert job(made, short) == ("running", A)
        await made.until(lambda: state(made, A) == "ready", "the node is heard again", 15)
        for each in (long, short):
            await made.until(lambda each=each: job(made, each)[0] == "succeeded", "it ended", 60)
            assert attempts(made, each) == [(A, "succeeded", None)]
        told = await kinds(client, A)
        assert told[-2:] == ["suspect", "ready"]
        assert not {"lost", "assignment_moved"} & set(told)
        assert MINE not in on(made, B)
