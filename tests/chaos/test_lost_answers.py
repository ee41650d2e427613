"""Writes that succeeded while whoever made them saw the connection break."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.chaos.check import check_events, check_record, left_over, table, unended
from tests.chaos.load import Load
from tests.chaos.stack import stack
from vyvo_dagster.settings import S3Settings

JOBS = 800
PER_SECOND = 100.0
# Of the server's packets; a connection of the api carries dozens in a second.
LOSS = {"postgres": 0.01, "redis": 0.02, "api": 0.05}


@pytest.mark.xdist_group("chaos")
@pytest.mark.parametrize("part", sorted(LOSS))
async def test_an_answer_that_is_lost_changes_nothing(
    part: str, tmp_path: Path, s3_settings: S3Settings
) -> None:
    async with stack(tmp_path, s3_settings, behind_proxies=[part]) as made:
        proxy = made.proxies[part]
        load = Load(made, JOBS, PER_SECOND, random.Random(part))
        proxy.loss = LOSS[part]
        async with asyncio.timeout(90):
            await load.run()
        proxy.loss = 0.0
        await made.none_left(lambda: unended(made), "every job has ended", 60)
        counts = check_record(made, load.accepted, load.canceled)
        await made.none_left(lambda: left_over(made), "streams and outbox are empty", 30)
        check_events(made)
        print(
            table(
                f"answers of {part} lost",
                {
                    "answers lost": proxy.lost,
                    "acknowledged": len(load.accepted),
                    **dict(sorted(counts.items())),
                    "answers of 503": load.refusals,
                    "connections broken": load.breaks,
                },
            )
        )
        assert proxy.lost > 10, "too few answers were lost to prove anything"
