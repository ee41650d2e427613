"""Carries out what is asked of pools: one operation a pool at a time, each by one worker.

A worker holds a lease on its operation. If it dies, another begins again from the plan; all steps
end the same when they are done twice.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.node import NodeEventKind, NodeState
from vyvo_dagster.domain.pool import Change, OperationState, ScalerKind, change
from vyvo_dagster.errors import ScalingFailed, ScalingRefused, Unavailable, VyvoError
from vyvo_dagster.scaling.base import Scaler, Task
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.pools import Operation, Pool

__all__ = ["PoolWorker"]

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_PRESENT: Final = frozenset({NodeState.READY, NodeState.SUSPECT})
_LOG_CHARS: Final = 256 * 1024
_LINE_CHARS: Final = 4096
_RETURN_SECONDS: Final = 5.0


class _Taken(Exception):
    """Another worker has the operation now."""


class PoolWorker:
    """Works until canceled.

    Args:
        scalers: those that this installation has.
        host: name of this machine and its data: local pools of others are left to them.
        placed: called when nodes take jobs again, or no more.
        poll_seconds: between looks for operations that nobody told of.
    """

    def __init__(
        self, database: Database, scalers: Mapping[ScalerKind, Scaler], host: str,
        placed: Callable[[], None], *, lease: timedelta = timedelta(seconds=30),
        poll_seconds: float = 2.0,
    ) -> None:  # fmt: skip
        self._database = database
        self._scalers = scalers
        self.host = host
        self._placed = placed
        self._lease = lease
        self._poll = poll_seconds
        self._id = uuid7()
        self._due = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, kind: ScalerKind) -> None:
        """Raise ScalingRefused unless this installation has such a scaler."""
        if kind not in self._scalers:
            raise ScalingRefused(f"this installation has no {kind} scaler: see its settings")

    def kick(self) -> None:
        """An operation was written: look now."""
        self._due.set()

    async def run(self) -> None:
        """Claim and carry out; survives a database that goes away."""
        try:
            while True:
                self._due.clear()
                try:
                    await self._claim()
                    await self._keep()
                except Unavailable as error:
                    log.warning("pools wait: %s", error.detail)
                except VyvoError as error:
                    log.error("looking after local pools: %s", error.detail)
                except Exception:
                    # What one turn meets must not end all operations for ever.
                    log.exception("looking after pools")
                try:
                    async with asyncio.timeout(self._poll):
                        await self._due.wait()
                except TimeoutError:
                    continue
        finally:
            await cancel_all(self._tasks)

    async def _claim(self) -> None:
        while len(self._tasks) < _AT_ONCE:
            async with self._database.transaction() as store:
                claimed = await store.pools.claim(
                    self._id, self.host, self._scalers.keys(), self._lease
                )
            if claimed is None:
                return
            task = asyncio.create_task(self._carry_out(*claimed))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._due.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease runs out, and the operation is taken over.
            log.error("a pool's operation broke off", exc_info=error)

    async def _keep(self) -> None:
        scaler = self._scalers.get(ScalerKind.LOCAL)
        if scaler is None:
            return
        async with self._database.transaction() as store:
            pools = [p for p in await store.pools.all() if p.host == self.host]
            idle = [p for p in pools if not await store.pools.under_way(p.id)]
        await scaler.keep({pool.name: (pool.config, pool.members) for pool in idle})

    async def _carry_out(self, operation: Operation, pool: Pool) -> None:
        said: list[str] = []
        renewing = asyncio.create_task(self._renew(operation.id, said))
        working = asyncio.create_task(self._work(operation, pool, said))
        try:
            await asyncio.wait({renewing, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                log.warning("operation %s of pool %s was taken over", operation.id, pool.name)
        finally:
            await cancel_all([renewing, working])
            if working.cancelled():
                await self._give_back(operation.id)
        if not working.cancelled() and (error := working.exception()) is not None:
            raise error

    async def _give_back(self, id: UUID) -> None:
        """Let another worker begin at once; if that cannot be told, the lease runs out."""
        try:
            async with asyncio.timeout(_RETURN_SECONDS), self._database.transaction() as store:
                await store.pools.renew(id, self._id, timedelta(0), "", _LOG_CHARS)
        except (Unavailable, TimeoutError) as error:
            log.warning("operation %s waits for its lease to end: %s", id, error)

    async def _renew(self, id: UUID, said: list[str]) -> None:
        """Hold the lease and write the log until the operation is another's."""
        pause = min(self._lease.total_seconds() / 4, 0.5)
        loop = asyncio.get_running_loop()
        held_until = loop.time() + self._lease.total_seconds()
        while True:
            await asyncio.sleep(pause)
            try:
                if not await self._flush(id, said):
                    return
                held_until = loop.time() + self._lease.total_seconds()
            except Unavailable:
                if loop.time() > held_until:
                    return

    async def _flush(self, id: UUID, said: list[str]) -> bool:
        lines, said[:] = list(said), []
        text = "".join(f"{line}\n" for line in lines)
        try:
            async with self._database.transaction() as store:
                return await store.pools.renew(id, self._id, self._lease, text, _LOG_CHARS)
        except Unavailable:
            said[:0] = lines
            raise

    async def _work(self, operation: Operation, pool: Pool, said: list[str]) -> None:
        drained: list[str] = []

        def say(line: str) -> None:
            said.append(line.replace("\0", "\ufffd")[:_LINE_CHARS])

        try:
            await self._steps(operation, pool, say, drained)
        except _Taken:
            return
        except VyvoError as error:
            say(f"failed: {error.detail}")
            await self._flags(drained, pool, leave=False)
            await self._end(operation, said, OperationState.FAILED, error.code, error.detail)
        except Exception as error:
            log.exception("operation %s of pool %s", operation.id, pool.name)
            await self._flags(drained, pool, leave=False)
            await self._end(operation, said, OperationState.FAILED, "internal", repr(error))
        else:
            await self._end(operation, said, OperationState.SUCCEEDED)

    async def _steps(
        self, operation: Operation, pool: Pool, say: Callable[[str], None], drained: list[str]
    ) -> None:
        scaler = self._scalers[pool.scaler]
        # What an earlier worker drained for this operation is given back with the rest if it fails.
        drained.extend(operation.plan.get("drain", ()))
        async with self._database.transaction() as store:
            members = await store.pools.members(pool)
            taken = await store.pools.taken_names(pool)
        made = change(pool.name, members, operation.size, taken)
        task = Task(operation.id, pool.name, pool.config, made, operation.dry_run, say)
        plan = await scaler.plan(task)
        told = {"keep": made.keep, "add": made.add, "remove": made.remove, **plan}
        if operation.dry_run:
            await self._advance(operation, OperationState.PLANNING, plan=told)
            return
        if made.remove:
            open_ones = {m.name for m in members if not m.cordoned} & set(made.remove)
            drained[:] = sorted(open_ones.union(drained))
            told["drain"] = list(drained)
            await self._advance(operation, OperationState.DRAINING, plan=told)
            await self._drain(pool, made.remove, say)
        await self._advance(operation, OperationState.APPLYING, plan=told)
        # A name that is used again may be that of a node that was drained.
        await self._flags(made.add, pool, leave=False)
        await scaler.apply(task)
        await self._advance(operation, OperationState.JOINING)
        async with self._database.transaction() as store:
            await store.pools.set_members(pool.id, made.names)
            # Not ready until it joins again: a new machine of that name is not taken for joined.
            for node_id in (await store.pools.node_ids(made.remove)).values():
                await store.nodes.set_state(node_id, _PRESENT, NodeState.JOINING)
        drained[:] = set(drained) - set(made.remove)
        await self._flags(drained, pool, leave=False)
        drained.clear()
        await self._joined(pool, made, say)

    async def _advance(
        self, operation: Operation, to: OperationState, **values: Mapping[str, object]
    ) -> None:
        async with self._database.transaction() as store:
            if not await store.pools.advance(operation.id, self._id, to, **values):
                raise _Taken

    async def _end(
        self, operation: Operation, said: list[str], to: OperationState,
        code: str | None = None, detail: str | None = None,
    ) -> None:  # fmt: skip
        await self._flush(operation.id, said)
        async with self._database.transaction() as store:
            await store.pools.advance(
                operation.id, self._id, to, error_code=code,
                error=None if detail is None else detail.replace("\0", "\ufffd")[:_LINE_CHARS],
            )  # fmt: skip

    async def _drain(self, pool: Pool, names: Sequence[str], say: Callable[[str], None]) -> None:
        """Cordon nodes and wait until none of them runs anything."""
        ids = await self._flags(names, pool, leave=True)
        deadline = asyncio.get_running_loop().time() + pool.drain_seconds
        told = ""
        while True:
            running: dict[str, int] = {}
            async with self._database.transaction() as store:
                for name, node_id in ids.items():
                    if count := len(await store.attempts.of_node(node_id)):
                        running[name] = count
            if not running:
                say(f"drained {', '.join(names)}")
                return
            now = ", ".join(f"{name} runs {count}" for name, count in running.items())
            if now != told:
                say(f"draining: {now}")
                told = now
            if asyncio.get_running_loop().time() > deadline:
                raise ScalingFailed(f"not drained within {pool.drain_seconds} s: {now}")
            await asyncio.sleep(0.5)

    async def _flags(self, names: Sequence[str], pool: Pool, *, leave: bool) -> dict[str, UUID]:
        """Cordon and drain nodes that leave, or take that back; the ids of those that are known."""
        if not names:
            return {}
        kind = NodeEventKind.DRAINING if leave else NodeEventKind.UNCORDONED
        async with self._database.transaction() as store:
            ids = await store.pools.node_ids(names)
            for node_id in ids.values():
                node = await store.nodes.get(node_id)
                if node is not None and (node.cordoned, node.draining) != (leave, leave):
                    await store.nodes.set_flags(node_id, cordoned=leave, draining=leave)
                    await store.nodes.add_event(
                        id=uuid7(), node_id=node_id, kind=kind, detail={"by": f"pool {pool.name}"}
                    )
        self._placed()
        return ids

    async def _joined(self, pool: Pool, made: Change, say: Callable[[str], None]) -> None:
        """Wait until the nodes that were added are ready."""
        deadline = asyncio.get_running_loop().time() + pool.join_seconds
        missing = list(made.add)
        while missing:
            async with self._database.transaction() as store:
                ids = await store.pools.node_ids(missing)
                for name, node_id in ids.items():
                    node = await store.nodes.get(node_id)
                    if node is not None and node.state is NodeState.READY:
                        missing.remove(name)
                        say(f"{name} has joined")
            if not missing:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise ScalingFailed(
                    f"not joined within {pool.join_seconds} s: {', '.join(missing)}"
                )
            await asyncio.sleep(0.5)
