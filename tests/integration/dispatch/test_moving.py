"""What is loaded on nodes that are lost or drained moves where it fits, once."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from tests.integration.dispatch.conftest import World
from vyvo_dagster.dispatch.loading import Loading
from vyvo_dagster.dispatch.moving import Mover
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.dispatches import Dispatch
from vyvo_dagster.store.records import Assignment, Node

GIB = 2**30


@dataclass
class Cluster:
    """Nodes by name, and what is on them."""

    world: World
    ids: dict[str, UUID]

    async def join(self, name: str, free_gib: int) -> None:
        async with self.world.database.transaction() as store:
            self.ids[name], _ = await store.nodes.join(
                id=uuid7(), name=name, boot_id=(boot := uuid7()), labels={}, capabilities={}
            )
        gpu = {"index": 0, "memory_total_bytes": free_gib * GIB, "memory_used_bytes": 0}
        assert await self.world.beat(self.ids[name], boot, gpus=[gpu]) is not None

    async def assign(self, name: str, version: UUID, *, on_demand: bool = False) -> UUID:
        async with self.world.database.transaction() as store:
            made = await store.assignments.request(
                id=uuid7(), node_id=self.ids[name], version_id=version, on_demand=on_demand
            )
        await self.observe(name, made.id, AssignmentState.READY)
        return made.id

    async def observe(self, name: str, id: UUID, state: AssignmentState) -> None:
        async with self.world.database.transaction() as store:
            await store.assignments.observe([(self.ids[name], Observation(id, state, None, 1))])

    async def lose(self, name: str) -> None:
        async with self.world.database.transaction() as store:
            before = frozenset(NodeState) - {NodeState.LOST}
            assert await store.nodes.set_state(self.ids[name], before, NodeState.LOST)

    async def on(self, name: str) -> dict[UUID, Assignment]:
        """What is in force there, by version."""
        async with self.world.database.transaction() as store:
            return {a.version_id: a for a in await store.assignments.of_node(self.ids[name])}

    async def story(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Its history, oldest first."""
        async with self.world.database.transaction() as store:
            found = await store.nodes.events(self.ids[name], None, 100)
        return [(event.kind, dict(event.detail)) for event in reversed(found)]

    async def node(self, name: str) -> Node:
        async with self.world.database.transaction() as store:
            found = await store.nodes.get(self.ids[name])
        assert found is not None
        return found

    async def turn(self) -> None:
        """Of two orchestrators at a time, until one has had it."""
        await asyncio.gather(
            *(
                Mover(self.world.database, self.world.redis, int).move_assignments()
                for _ in range(2)
            )
        )

    async def drain(self, name: str, deadline: timedelta | None = None) -> None:
        async with self.world.database.transaction() as store:
            await store.nodes.set_flags(self.ids[name], cordoned=True, draining=True)
            await store.nodes.set_deadline(self.ids[name], deadline)

    async def run(self, name: str, assignment: UUID) -> UUID:
        """A job in flight there."""
        (job_id,) = await self.world.submit(Priority.STANDARD)
        placed = [Dispatch(job_id, self.ids[name], assignment)]
        async with self.world.database.transaction() as store:
            assert await store.dispatches.claim(placed, timedelta(seconds=60))
        return job_id


@pytest.fixture
async def cluster(own_world: World) -> Cluster:
    made = Cluster(own_world, {})
    await made.join("a", 80)
    return made


async def test_a_lost_nodes_models_move_where_they_fit_and_once(cluster: Cluster) -> None:
    world = cluster.world
    _, large = await world.version(30 * GIB)
    _, small = await world.version(20 * GIB)
    _, huge = await world.version(60 * GIB)
    _, asked = await world.version(1 * GIB)
    old = {v: await cluster.assign("a", v) for v in (large, small, huge)}
    await cluster.assign("a", asked, on_demand=True)
    await cluster.join("b", 35)
    await cluster.join("c", 25)
    async with world.database.transaction() as store:
        await store.nodes.set_state(
            cluster.ids["a"], frozenset({NodeState.READY}), NodeState.SUSPECT
        )
    await cluster.turn()
    assert len(await cluster.on("a")) == 4, "nothing moves from a node that is suspect"

    await cluster.lose("a")
    for _ in range(3):
        await cluster.turn()
    assert set(await cluster.on("a")) == {huge}, "what fits nowhere stays"
    assert set(await cluster.on("b")) == {large}
    assert set(await cluster.on("c")) == {small}
    moved = [d for kind, d in await cluster.story("a") if kind == "assignment_moved"]
    assert {(d["assignment_id"], d["to"]) for d in moved} == {
        (str(old[large]), "b"), (str(old[small]), "c"),
    }  # fmt: skip
    assert len(moved) == 2
    ((kind, detail),) = [e for e in await cluster.story("b") if e[0] == "assigned"]
    assert (kind, detail["by"]) == ("assigned", "moved from a")
    # It comes back: fenced by its new start, with only what has not moved.
    await cluster.join("a", 80)
    await cluster.turn()
    assert set(await cluster.on("a")) == {huge}
    await cluster.lose("a")
    await cluster.join("d", 64)
    await cluster.turn()
    assert set(await cluster.on("d")) == {huge}
    assert await cluster.on("a") == {}


async def test_what_was_loaded_on_demand_meanwhile_is_kept(cluster: Cluster) -> None:
    _, version = await cluster.world.version(5 * GIB)
    await cluster.assign("a", version)
    await cluster.join("b", 10)
    kept = await cluster.assign("b", version, on_demand=True)
    await cluster.lose("a")
    await cluster.turn()
    found = (await cluster.on("b"))[version]
    assert (found.id, found.on_demand, found.state) == (kept, False, "ready")
    assert await cluster.on("a") == {}


async def test_a_drain_waits_for_jobs_and_moves_models_at_once(cluster: Cluster) -> None:
    world = cluster.world
    await cluster.join("b", 80)
    busy = await cluster.assign("a", world.version_id)
    _, idle = await world.version(5 * GIB)
    await cluster.assign("a", idle)
    job_id = await cluster.run("a", busy)
    await cluster.drain("a")
    await cluster.turn()
    assert set(await cluster.on("b")) == {world.version_id, idle}
    there = await cluster.on("a")
    assert there[idle].state == "removing"
    assert there[world.version_id].state == "ready", "it runs a job"
    async with world.database.transaction() as store:
        left = (await store.moves.counts([cluster.ids["a"]]))[cluster.ids["a"]]
    assert (left.jobs, list(left.to_move), left.loaded) == (1, [], 2)
    await cluster.observe("a", there[idle].id, AssignmentState.REMOVED)
    await world.execute(
        "update jobs set state = 'succeeded', completed_at = now() where id = :id", id=job_id
    )
    await cluster.turn()
    await cluster.observe("a", busy, AssignmentState.REMOVED)
    assert (await cluster.node("a")).drained_at is None
    await cluster.turn()
    await cluster.turn()
    assert (await cluster.node("a")).drained_at is not None
    kinds = [kind for kind, _ in await cluster.story("a")]
    assert kinds.count("drained") == 1
    assert kinds.count("assignment_moved") == 2


async def test_at_its_deadline_a_drain_ends_jobs_uncharged_and_says_so(cluster: Cluster) -> None:
    world = cluster.world
    alone = await cluster.assign("a", world.version_id)
    job_id = await cluster.run("a", alone)
    await cluster.drain("a", timedelta(hours=1))
    await cluster.turn()
    assert (await world.job(job_id)).state == "dispatched"
    await world.execute(
        "update nodes set drain_deadline_at = now() where id = :id", id=cluster.ids["a"]
    )
    for _ in range(2):
        await cluster.turn()
    job = await world.job(job_id)
    assert (job.state, job.handed_back) == ("queued", 1)
    async with world.database.transaction() as store:
        (attempt,) = await store.attempts.of_job(job_id)
    assert (attempt.outcome, attempt.error_code) == ("handed_back", "drain_deadline")
    assert (await cluster.node("a")).drained_at is not None
    (said,) = [d for kind, d in await cluster.story("a") if kind == "drain_deadline"]
    assert (said["jobs_ended"], said["jobs"]) == (1, [str(job_id)])
    assert said["models_left"] == [f"{world.model_id}@1"], "it has nowhere to go"
    # Taken back, it serves again.
    async with world.database.transaction() as store:
        await store.nodes.set_flags(cluster.ids["a"], cordoned=False, draining=False)
    node = await cluster.node("a")
    assert (node.drain_started_at, node.drain_deadline_at, node.drained_at) == (None, None, None)
    assert set(await cluster.on("a")) == {world.version_id}


async def test_what_is_idle_makes_room_the_longest_first_and_ends_by_itself(
    cluster: Cluster,
) -> None:
    world = cluster.world
    gpu = {"index": 0, "memory_total_bytes": 80 * GIB, "memory_used_bytes": 70 * GIB}
    boot = (await cluster.node("a")).boot_id
    await world.beat(cluster.ids["a"], boot, gpus=[gpu])
    names = {}
    for name, minutes in (("older", 20), ("newer", 10), ("old", 40)):
        _, names[name] = await world.version(30 * GIB)
        id_ = await cluster.assign("a", names[name], on_demand=True)
        await world.execute(
            "update assignments set used_at = now() - :m * interval '1 minute',"
            " ready_at = now() - interval '1 hour', created_at = now() - interval '1 hour'"
            " where id = :id", m=minutes, id=id_,
        )  # fmt: skip
    loading = Loading(world.database, world.redis, timedelta(minutes=30))

    async def removing() -> set[UUID]:
        return {v for v, a in (await cluster.on("a")).items() if a.state == "removing"}

    await loading.load_on_demand()
    assert await removing() == {names["old"]}
    for version, found in (await cluster.on("a")).items():
        if version == names["old"]:
            await cluster.observe("a", found.id, AssignmentState.REMOVED)
    await world.execute(
        "update model_versions set resources = cast(:r as jsonb) where id = :id",
        r=f'{{"gpu_memory_bytes": {35 * GIB}}}', id=world.version_id,
    )  # fmt: skip
    await world.submit(Priority.STANDARD)
    for _ in range(2):
        await loading.load_on_demand()
    assert await removing() == {names["older"]}, "one at a time, the longest unused"
    found = (await cluster.on("a"))[names["older"]]
    await cluster.observe("a", found.id, AssignmentState.REMOVED)
    gpu["memory_used_bytes"] = 40 * GIB
    await world.beat(cluster.ids["a"], boot, gpus=[gpu])
    await loading.load_on_demand()
    assert set(await cluster.on("a")) == {names["newer"], world.version_id}


async def test_what_fits_nowhere_is_looked_at_seldom_until_something_changes(
    cluster: Cluster,
) -> None:
    world, looks, notices = cluster.world, 0, 0
    _, huge = await world.version(60 * GIB)
    await cluster.assign("a", huge)
    await cluster.join("b", 10)
    await cluster.lose("a")

    class Watched(Database):
        @asynccontextmanager
        async def transaction(self) -> AsyncGenerator[Store]:
            nonlocal looks
            looks += 1
            async with world.database.transaction() as store:
                yield store

    mover = Mover(Watched(world.settings.postgres_dsn, 0), world.redis, lambda: notices)
    began = time.monotonic()
    for _ in range(200):
        await mover.move_assignments()
    assert looks <= 2 + (time.monotonic() - began)
    assert huge not in await cluster.on("b")
    await cluster.join("c", 70)
    notices += 1
    await mover.move_assignments()
    assert huge in await cluster.on("c")


async def test_memory_that_becomes_free_is_found_without_a_notice(cluster: Cluster) -> None:
    world = cluster.world
    _, large = await world.version(60 * GIB)
    await cluster.assign("a", large)
    await cluster.join("b", 10)
    await cluster.lose("a")
    mover = Mover(world.database, world.redis, int)
    await mover.move_assignments()
    gpu = {"index": 0, "memory_total_bytes": 80 * GIB, "memory_used_bytes": 0}
    await world.beat(cluster.ids["b"], (await cluster.node("b")).boot_id, gpus=[gpu])
    async with asyncio.timeout(60):
        while large not in await cluster.on("b"):
            await mover.move_assignments()
            await asyncio.sleep(0.1)
