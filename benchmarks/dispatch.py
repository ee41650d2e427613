"""How many jobs a second the dispatcher alone hands to its nodes, everything durable.

    python benchmarks/dispatch.py [--jobs 20000] [--slots 1024] [--nodes 4]

Starts PostgreSQL (fsync on) and a Redis server in a temporary folder, queues the jobs, and takes
turns. Only the turns are timed: between them, what is in flight is ended by one statement, since
completion is measured elsewhere.
"""

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
import uvloop
from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.board import Board
from vyvo_dagster.dispatch.dispatcher import Dispatcher
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.local.parts import start_part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.postgres import postgres
from vyvo_dagster.local.process import stop
from vyvo_dagster.local.servers import valkey
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.migrate import upgrade
from vyvo_dagster.streams import keys, queues
from vyvo_dagster.streams.client import connect

MODEL, VERSION, TENANTS = "bench/noop", "1", ("a", "b", "c")

_JOBS = sa.text("""
insert into jobs (id, tenant, model_id, version_id, version, priority, input, max_attempts,
  expires_at, state)
select id, (cast(:tenants as text[]))[1 + n % 3], :model, :version_id, :version, 'standard',
  '{"n": 1}', 3, now() + interval '1 day', 'queued'
from unnest(cast(:ids as uuid[])) with ordinality as g (id, n)
returning id, tenant
""")
_END = sa.text("""
update jobs set state = 'succeeded', completed_at = now(), lease_expires_at = null
where state = 'dispatched'
""")


async def fill(database: Database, jobs: int, slots: int, nodes: int, redis_url: str) -> None:
    redis = connect(redis_url)
    async with database.transaction() as store:
        await store.models.ensure(MODEL, "admin")
        version = await store.models.start_building(
            id=uuid7(), model_id=MODEL, version=VERSION, template="x", modality=Modality.TEXT,
            weights_uri=None, env={}, resources={}, build_id=uuid7(),
        )  # fmt: skip
        await store.models.move(version.id, VersionState.READY, runner_image="noop://")
        for number in range(nodes):
            node_id, _ = await store.nodes.join(
                id=uuid7(), name=f"n{number}", boot_id=uuid7(), labels={}, capabilities={}
            )
            made = await store.assignments.request(
                id=uuid7(), node_id=node_id, version_id=version.id
            )
            await store.assignments.observe(
                [(node_id, Observation(made.id, AssignmentState.READY, None, slots // nodes))]
            )
        rows = await store.connection.execute(
            _JOBS,
            {"ids": [uuid7() for _ in range(jobs)], "tenants": list(TENANTS), "model": MODEL,
             "version_id": version.id, "version": VERSION},
        )  # fmt: skip
        entries = [
            (keys.jobs(MODEL, VERSION, Priority.STANDARD, tenant), id_, int(time.time() * 1000))
            for id_, tenant in rows
        ]
    for start in range(0, jobs, 500):
        await queues.enqueue(redis, entries[start : start + 500])
    await redis.aclose()


async def measure(dsn: str, redis_url: str, args: argparse.Namespace) -> None:
    database, redis = Database(dsn, pool_size=4), connect(redis_url)
    await fill(database, args.jobs, args.slots, args.nodes, redis_url)
    board = Board(database, dsn, asyncio.Event())
    await board.refresh()
    dispatcher = Dispatcher(
        database, redis, board, asyncio.Event(), consumer="bench", lease=timedelta(minutes=5)
    )
    done = turns = 0
    spent = cpu = 0.0
    profile = cProfile.Profile()
    while done < args.jobs:
        started, started_cpu = time.perf_counter(), time.process_time()
        if args.profile:
            profile.enable()
        # A turn that finds nothing to do has waited for the hand-over of the one before it.
        while count := await dispatcher.turn():
            done, turns = done + count, turns + 1
        if args.profile:
            profile.disable()
        spent += time.perf_counter() - started
        cpu += time.process_time() - started_cpu
        async with database.transaction() as store:
            await store.connection.execute(_END)
    print(
        f"{done} jobs in {turns} turns, {args.slots} slots on {args.nodes} nodes: "
        f"{done / spent:,.0f} jobs/s, {1000 * spent / turns:.1f} ms a turn "
        f"({100 * cpu / spent:.0f} % of it this process)"
    )
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    import os

    if os.environ.get("STATS"):
        print(
            {
                k: (v["calls"], v["usec"])
                for k, v in (await redis.info("commandstats")).items()
                if v["usec"] > 3000
            }
        )
    left = await redis.keys("vyvo:queues*") + await redis.keys("vyvo:jobs:*")
    assert not left, left
    await redis.aclose()
    await database.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vyvo-bench-") as folder:
        home = Path(folder)
        ports = Ports(home / "ports.json")
        parts = [
            postgres(home, port=ports.take("postgres"), password="bench"),
            valkey(home, port=ports.take("redis"), password="bench"),
        ]
        children = [await start_part(part, logs=home / "logs") for part in parts]
        try:
            await asyncio.to_thread(upgrade, parts[0].url)
            await measure(parts[0].url, parts[1].url, args)
        finally:
            for child in reversed(children):
                await stop(child)


if __name__ == "__main__":
    uvloop.run(main())
