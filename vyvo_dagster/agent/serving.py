"""One runner, from its start to its end."""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from vyvo_dagster.agent.cog_client import OUTPUT_BYTES
from vyvo_dagster.agent.runners.base import (
    Launcher,
    Runner,
    RunnerClient,
    RunnerSpec,
    until_serving,
)
from vyvo_dagster.errors import RunnerFailed, VyvoError

__all__ = ["Ended", "Loaded", "NotServing", "RunnerCrashed", "ServingLimits", "serve"]

_HEALTH_MISSES: Final = 3


class RunnerCrashed(RunnerFailed):
    """A runner ended by itself while it worked."""

    code = "runner_crashed"


class NotServing(RunnerFailed):
    """The version is not, or no longer, served on this node, for no fault of the job."""

    code = "not_serving"


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Seconds: for setup, between health checks, and of grace when a runner is stopped.

    `output_bytes` is what is read of one output.
    """

    setup: float = 1800.0
    health: float = 5.0
    stop: float = 2.0
    output_bytes: int = OUTPUT_BYTES


@dataclass(slots=True)
class Loaded:
    """A runner that serves. `gone` is set once it serves no longer, `reason` then says why."""

    runner: Runner
    client: RunnerClient
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    ordered: bool = False
    """This agent ended it, for another prediction's sake or with its assignment."""
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    _watchers: set[Callable[[], None]] = field(default_factory=set[Callable[[], None]])

    @contextmanager
    def watched(self, on_gone: Callable[[], None]) -> Generator[None]:
        """Have `on_gone` called if it stops serving while the block runs, or does not serve now."""
        self._watchers.add(on_gone)
        try:
            if self.gone.is_set():
                on_gone()
            yield
        finally:
            self._watchers.discard(on_gone)

    def end(self) -> None:
        """It serves no longer."""
        self.gone.set()
        for on_gone in tuple(self._watchers):
            on_gone()

    def kill(self, reason: str, *, ordered: bool = True) -> None:
        """End it at once; a repeat changes nothing. Not `ordered`, it counts as its own end."""
        if not self.killed.is_set() and not self.gone.is_set():
            self.reason, self.ordered = reason, ordered
            self.killed.set()

    def gone_error(self) -> RunnerFailed:
        """What its end means for a prediction that it had."""
        return NotServing(self.reason) if self.ordered else RunnerCrashed(self.reason)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a runner ended; `served_seconds` is 0 when its setup did not succeed."""

    reason: str
    served_seconds: float
    ordered: bool


async def serve(
    launcher: Launcher, spec: RunnerSpec, limits: ServingLimits, ready: Callable[[Loaded], None]
) -> Ended:
    """Start a runner and watch it until it ends; `ready` gets it once its setup has succeeded.

    Canceled, it stops the runner.

    Raises:
        RunnerFailed: it cannot be started, or its setup failed.
    """
    runner = await _launched(launcher, spec)
    grace = 0.0
    try:
        async with runner.connect(limits.output_bytes) as client:
            ended = asyncio.create_task(runner.wait())
            try:
                return await _watched_through(Loaded(runner, client), ended, limits, ready)
            finally:
                ended.cancel()
    except asyncio.CancelledError:
        grace = limits.stop
        raise
    finally:
        await asyncio.shield(runner.stop(grace))


async def _launched(launcher: Launcher, spec: RunnerSpec) -> Runner:
    # Canceled in the middle, a launch would leave behind what nobody knows of.
    launch = asyncio.create_task(launcher.launch(spec))
    try:
        return await asyncio.shield(launch)
    except asyncio.CancelledError:
        await asyncio.wait({launch})
        if not launch.cancelled() and launch.exception() is None:
            await launch.result().stop(0)
        raise


async def _watched_through(
    loaded: Loaded,
    ended: asyncio.Task[str],
    limits: ServingLimits,
    ready: Callable[[Loaded], None],
) -> Ended:
    setup = asyncio.create_task(until_serving(loaded.client, limits.setup))
    try:
        await asyncio.wait({setup, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return Ended(await _with_log(ended.result(), loaded.runner), 0.0, ordered=False)
        setup.result()
    finally:
        setup.cancel()
    since = time.monotonic()
    ready(loaded)
    try:
        reason = await _until_unfit(loaded, ended, limits.health)
    except asyncio.CancelledError:
        loaded.reason, loaded.ordered = "the version was taken off this node", True
        raise
    else:
        loaded.reason = loaded.reason if loaded.ordered else reason
    finally:
        loaded.end()
    served = time.monotonic() - since
    if loaded.ordered:
        return Ended(loaded.reason, served, ordered=True)
    return Ended(await _with_log(reason, loaded.runner), served, ordered=False)


async def _until_unfit(loaded: Loaded, ended: asyncio.Task[str], interval: float) -> str:
    """Wait until the runner ends, is killed, or misses its health check several times in a row."""
    killed = asyncio.create_task(loaded.killed.wait())
    misses = 0
    try:
        while misses < _HEALTH_MISSES:
            await asyncio.wait(
                {ended, killed}, timeout=interval, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done():
                return ended.result()
            if killed.done():
                return loaded.reason
            try:
                healthy = (await loaded.client.health()).serves
            except VyvoError:
                healthy = False
            misses = 0 if healthy else misses + 1
    finally:
        killed.cancel()
    return f"the runner failed its health check {misses} times in a row"


async def _with_log(reason: str, runner: Runner) -> str:
    tail = await runner.log_tail()
    return f"{reason}: {tail}" if tail else reason
