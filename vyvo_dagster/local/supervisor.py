"""Starts the parts by their needs, keeps them running, and stops them in order."""

import asyncio
import contextlib
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.gate import GATE_VARIABLE
from vyvo_dagster.local.parts import Part, await_ready, launch, start_part
from vyvo_dagster.local.process import Child, stop
from vyvo_dagster.local.report import Report

__all__ = ["Supervisor"]

_WATCH_SECONDS = 0.25
_BACKOFF_FIRST, _BACKOFF_LAST = 0.5, 30.0
# A part that ran this long has recovered: its next death is a new one.
_HEALTHY_SECONDS = 60.0


class Supervisor:
    """The processes of one stack.

    Args:
        parts: all parts; each `needs` names parts of the same list.
        env: environment that every part gets.
        logs: directory of the log files.
        gates: directory for the gates of parts that preload; emptied.
        report: where to say what happens.

    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        env: Mapping[str, str],
        logs: Path,
        gates: Path,
        report: Report,
    ) -> None:
        self._parts = tuple(parts)
        self._env = dict(env)
        self._logs = logs
        self._gates = gates
        self._report = report
        self._children: dict[str, Child] = {}
        self._up = {part.name: asyncio.Event() for part in parts}
        self._forced = asyncio.Event()
        shutil.rmtree(gates, ignore_errors=True)
        gates.mkdir(parents=True)

    @property
    def pids(self) -> dict[str, int]:
        """Pid of each part that is running, by name."""
        return {name: child.pid for name, child in self._children.items() if child.running()}

    async def start(self) -> None:
        """Start all parts, as much at a time as their needs allow.

        Raises:
            Unavailable: a part did not start; the others may be running, so call stop().

        """
        failed: Unavailable | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in self._parts:
                    tasks.create_task(self._bring_up(part), name=f"start {part.name}")
        except* Unavailable as group:
            failed = _first(group)
        # Out here: what is raised inside except* comes out as a group again.
        if failed is not None:
            raise failed

    async def _bring_up(self, part: Part) -> None:
        if part.preloads:
            gate = self._gates / part.name
            child = self._adopt(
                part,
                await launch(part, logs=self._logs, env={**self._env, GATE_VARIABLE: str(gate)}),
            )
            await self._needs_of(part)
            began = time.monotonic()
            gate.touch()
        else:
            await self._needs_of(part)
            began = time.monotonic()
            child = self._adopt(part, await launch(part, logs=self._logs, env=self._env))
        await await_ready(part, child)
        self._up[part.name].set()
        self._report.part(
            part.name,
            "done" if part.one_shot else "ready",
            part.url,
            time.monotonic() - began,
        )

    async def _needs_of(self, part: Part) -> None:
        for name in part.needs:
            await self._up[name].wait()

    def _adopt(self, part: Part, child: Child) -> Child:
        self._children[part.name] = child
        return child

    async def watch(self) -> None:
        """Restart parts that die, with growing pauses, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for part in self._parts:
                if not part.one_shot:
                    tasks.create_task(self._keep(part), name=f"watch {part.name}")

    async def _keep(self, part: Part) -> None:
        pauses = _pauses()
        while True:
            child = self._children[part.name]
            while child.running():  # noqa: ASYNC110 - a child's end is no event of the loop
                await asyncio.sleep(_WATCH_SECONDS)
            if time.time() - child.started_at > _HEALTHY_SECONDS:
                pauses = _pauses()
            pause = next(pauses)
            self._report.part(
                part.name,
                "died",
                f"status {child.popen.returncode}, log {child.log}; restarting in {pause:.1f} s",
            )
            await stop(child, grace=0.0)  # what it left in its process group
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                started = await start_part(part, logs=self._logs, env=self._env)
            except Unavailable as error:
                self._report.part(part.name, "failed", error.detail)
                continue
            self._adopt(part, started)
            self._report.part(part.name, "ready", part.url, time.monotonic() - began)

    async def stop(self) -> None:
        """Stop all that runs, by rank; parts of one rank at a time together."""
        ranks = itertools.groupby(
            sorted(self._parts, key=lambda part: part.stop_rank), key=lambda part: part.stop_rank
        )
        for _, group in ranks:
            running = [self._children[p.name] for p in group if p.name in self._children]
            await asyncio.gather(*(self._stop(child) for child in running))

    async def _stop(self, child: Child) -> None:
        if not child.running():
            await stop(child, grace=0.0)
            return
        began = time.monotonic()
        polite = asyncio.ensure_future(stop(child))
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait({polite, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not polite.done():
            polite.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await polite
            ended_itself = await stop(child, grace=0.0)
        else:
            ended_itself = polite.result()
        self._report.part(
            child.name, "stopped" if ended_itself else "killed", "", time.monotonic() - began
        )

    def force(self) -> None:
        """Turn a stop under way into SIGKILL for all that still runs."""
        self._forced.set()


def _pauses() -> "itertools.chain[float]":
    growing: list[float] = []
    pause = _BACKOFF_FIRST
    while pause < _BACKOFF_LAST:
        growing.append(pause)
        pause *= 2
    return itertools.chain(growing, itertools.repeat(_BACKOFF_LAST))


def _first(group: BaseExceptionGroup[Unavailable]) -> Unavailable:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Unavailable)
    return found
