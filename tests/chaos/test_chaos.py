"""3,000 jobs while each part of a real stack is killed -9 in turn.

The seeds are 1 and 2; `make chaos` runs ten, and `VYVO_CHAOS_SEEDS=7,8` runs those.
"""

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from tests.chaos.check import check_events, check_record, left_over, table, unended
from tests.chaos.faults import strike
from tests.chaos.load import Load
from tests.chaos.stack import MODEL, SLOTS, Stack, stack
from vyvo_dagster.settings import S3Settings

JOBS = 3000
PER_SECOND = 130.0
SEEDS = [int(seed) for seed in os.environ.get("VYVO_CHAOS_SEEDS", "1,2").split(",")]


@pytest.mark.xdist_group("chaos")
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_job_ends_once_whatever_is_killed(
    seed: int, tmp_path: Path, s3_settings: S3Settings
) -> None:
    dice = random.Random(seed)
    async with stack(tmp_path, s3_settings) as made:
        began = time.monotonic()
        load = Load(made, JOBS, PER_SECOND, random.Random(seed + 1))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            struck = tasks.create_task(strike(made, dice))
        submitted = time.monotonic() - began
        await made.none_left(lambda: unended(made), "every job has ended", 60)
        ended = time.monotonic() - began
        counts = check_record(made, load.accepted, load.canceled)
        await made.none_left(lambda: left_over(made), "streams and outbox are empty", 30)
        streams = check_events(made)
        await check_slots(made)
        print(
            table(
                f"seed {seed}: {', '.join(struck.result())}",
                {
                    "acknowledged": len(load.accepted),
                    **dict(sorted(counts.items())),
                    "event streams": streams,
                    "answers of 503": load.refusals,
                    "connections broken": load.breaks,
                    "all submitted after": f"{submitted:.1f} s",
                    "all ended after": f"{ended:.1f} s",
                },
            )
        )


async def check_slots(made: Stack) -> None:
    """As many jobs as there are slots run at a time, so none is held by a job that is over."""
    slots = 2 * SLOTS
    jobs = [{"model_id": MODEL, "input": {"sleep_seconds": 2.0}}] * slots
    async with made.client() as client:
        answer = await client.post("/api/jobs/batch", json={"jobs": jobs})
        assert answer.status_code == 202, answer.text
    await made.none_left(lambda: unended(made), "the last jobs have ended", 20)
    last = "from (select * from jobs order by id desc limit %s) last"
    ((started, completed),) = made.rows(
        f"select max(started_at), min(completed_at) {last}", slots
    )  # fmt: skip
    assert started < completed, f"{slots} jobs did not run at a time: a slot is leaked"
