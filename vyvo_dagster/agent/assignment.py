"""One assignment on this node: its weights, its environment file, its runner, until it is removed."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from vyvo_dagster.agent.runners.base import Launcher, RunnerSpec
from vyvo_dagster.agent.serving import Ended, Loaded, NotServing, ServingLimits, serve
from vyvo_dagster.agent.texts import clean
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.errors import RunnerFailed, Unavailable, VyvoError
from vyvo_dagster.protocol.node import DesiredAssignment, ObservedAssignment, RegistryAccess

__all__ = ["Assignment", "Limits", "Preparation"]

_log = logging.getLogger(__name__)

_DETAIL_CHARS: Final = 2000
_FORGET_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Times (seconds) and counts that an assignment keeps to.

    A runner that ends within `quick_death` of serving, `quick_deaths` times in a row, makes its
    assignment failed; that is tried again after `first_retry`, doubled up to `longest_retry`.
    An engine that does not answer is waited for `patience` before that.
    """

    serving: ServingLimits = field(default_factory=ServingLimits)
    slots: int = 1
    quick_death: float = 60.0
    quick_deaths: int = 4
    first_delay: float = 1.0
    longest_delay: float = 30.0
    first_retry: float = 60.0
    longest_retry: float = 900.0
    drain: float = 10.0
    patience: float = 30.0


class Preparation(Protocol):
    """What an assignment needs from the node."""

    async def registry_access(self, desired: DesiredAssignment) -> RegistryAccess | None:
        """As whom to pull its image; None: as the host's own login says, or as anyone."""
        ...

    async def weights(self, desired: DesiredAssignment) -> Path | None:
        """The local path of its weights; None when it has none."""
        ...

    def spec(self, desired: DesiredAssignment, weights: Path | None) -> RunnerSpec:
        """How its runner is started; its environment file is written. Raises VyvoError."""
        ...

    def forget(self, desired: DesiredAssignment) -> None:
        """Delete its environment file and give back its GPU."""
        ...


class Assignment:
    """Keeps one desired version loaded. `run` owns all of it and ends once it is removed.

    Args:
        desired: what is asked for.
        launchers: in order of preference; the first that accepts the image starts its runner.
        preparation: the node's side.
        limits: times and counts.
        changed: called after every change of state.
    """

    def __init__(
        self,
        desired: DesiredAssignment,
        launchers: Sequence[Launcher],
        preparation: Preparation,
        limits: Limits,
        changed: Callable[[], None],
    ) -> None:
        self.desired = desired
        self.state = AssignmentState.REQUESTED
        self.detail: str | None = None
        self._launchers = launchers
        self._preparation = preparation
        self._limits = limits
        self._changed = changed
        self._slots = asyncio.Semaphore(limits.slots)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._loaded: Loaded | None = None
        self._state_changed = asyncio.Event()
        self._turn = asyncio.Event()
        self._replaced = False
        self._drains = True
        self.removing = False
        self._left = False
        self._retry = asyncio.Event()

    @property
    def name(self) -> str:
        """`owner/name@version`."""
        return f"{self.desired.model_id}@{self.desired.version}"

    def observed(self) -> ObservedAssignment:
        """What a heartbeat reports."""
        return ObservedAssignment(
            assignment_id=self.desired.assignment_id,
            state=self.state,
            detail=self.detail,
            slots=self._limits.slots,
        )

    def remove(self, *, drain: bool = True) -> None:
        """Ask for its end: `run` drains, stops the runner, deletes the file, and returns."""
        self._drains, self.removing = drain, True
        self._turn.set()

    def leave(self) -> None:
        """Ask for its end as `remove` does, but keep its environment file: its runner goes on."""
        self._left = True
        self.remove(drain=False)

    def replace(self, desired: DesiredAssignment, preparation: Preparation) -> None:
        """Go on with what is asked for now: drain, stop the runner, and load anew."""
        self.desired, self._preparation, self._replaced = desired, preparation, True
        self._turn.set()

    def retry(self) -> None:
        """If it failed, try once more now."""
        self._retry.set()

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[Loaded]:
        """A slot on the runner, once there are both.

        Raises:
            NotServing: the assignment failed or is being removed.
        """
        async with self._slots:
            loaded = await self._serving()
            self._in_flight += 1
            self._idle.clear()
            try:
                yield loaded
            finally:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self._idle.set()

    async def run(self) -> None:
        """Load, serve, reload; return once removed."""
        while not self.removing:
            self._turn.clear()
            self._replaced = False
            work = asyncio.create_task(self._work())
            try:
                await self._turn.wait()
                if self.removing:
                    self._set(AssignmentState.REMOVING)
                else:
                    self._set(AssignmentState.LOADING, "what is asked for has changed")
                if self._drains:
                    await _bounded(self._idle, self._limits.drain)
            finally:
                work.cancel()
                await asyncio.wait({work})
                if not self._left:
                    await self._forget()
        self._set(AssignmentState.REMOVED)

    async def _forget(self) -> None:
        """Delete what it left on this host; a disk that refuses must not end the agent."""
        for left in reversed(range(_FORGET_TRIES)):
            try:
                self._preparation.forget(self.desired)
            except OSError as error:
                _log.error("%s: its environment file stays: %s", self.name, error)
            else:
                return
            if left:
                await asyncio.sleep(self._limits.first_delay)

    async def _work(self) -> None:
        wait = self._limits.first_retry
        while True:
            try:
                await self._load_and_serve()
            except Unavailable as error:
                # Nothing is wrong with the version: it is tried again as soon as may be.
                self._set(AssignmentState.FAILED, error.detail)
                self._retry.clear()
                await _bounded(self._retry, self._limits.longest_delay)
                continue
            except VyvoError as error:
                self._set(AssignmentState.FAILED, error.detail)
            except Exception as error:  # noqa: BLE001 - one assignment must not end the agent
                _log.exception("%s", self.name)
                self._set(AssignmentState.FAILED, f"internal error of the agent: {error!r}")
            self._retry.clear()
            await _bounded(self._retry, wait)
            wait = min(wait * 2, self._limits.longest_retry)

    async def _load_and_serve(self) -> None:
        """Serve for good; return only by raising VyvoError."""
        image = self.desired.runner_image
        launcher = next((one for one in self._launchers if one.accepts(image)), None)
        if launcher is None:
            raise RunnerFailed(
                f"{image} needs a container engine, and this node runs processes; "
                "start an engine here, or build the version with the venv backend"
            )
        weights = await self._pulled(launcher)
        spec = self._preparation.spec(self.desired, weights)
        quick, delay = 0, self._limits.first_delay
        away_since: float | None = None
        self._set(AssignmentState.LOADING)
        while True:
            try:
                ended = await self._served(launcher, spec)
            except Unavailable as error:
                # An engine that restarts is waited for; jobs are handed back if that takes long.
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if now - away_since >= self._limits.patience:
                    raise
                self._set(AssignmentState.LOADING, f"trying on: {error.detail}")
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._limits.longest_delay)
                continue
            away_since = None
            self._set(AssignmentState.LOADING, f"starting again: {ended.reason}")
            if ended.ordered:
                continue
            if ended.served_seconds >= self._limits.quick_death:
                quick, delay = 0, self._limits.first_delay
            quick += 1
            if quick >= self._limits.quick_deaths:
                raise RunnerFailed(f"the runner ended {quick} times in a row: {ended.reason}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._limits.longest_delay)

    async def _served(self, launcher: Launcher, spec: RunnerSpec) -> Ended:
        try:
            return await serve(launcher, spec, self._limits.serving, self._ready)
        finally:
            self._loaded = None

    def _ready(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._set(AssignmentState.READY)

    async def _pulled(self, launcher: Launcher) -> Path | None:
        """Weights and image on this host; a server that is away is waited for."""
        delay = self._limits.first_delay
        self._set(AssignmentState.PULLING)
        while True:
            try:
                await launcher.prepare(
                    self.desired.runner_image,
                    lambda: self._preparation.registry_access(self.desired),
                )
                return await self._preparation.weights(self.desired)
            except Unavailable as error:
                self._set(AssignmentState.PULLING, f"trying on: {error.detail}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._limits.longest_delay)

    async def _serving(self) -> Loaded:
        while True:
            if self.removing:
                raise NotServing(f"{self.name} is being removed from this node")
            if self._loaded is not None and not self._loaded.gone.is_set() and not self._replaced:
                return self._loaded
            if self.state is AssignmentState.FAILED:
                raise NotServing(f"{self.name} failed on this node: {self.detail}")
            await self._state_changed.wait()

    def _set(self, state: AssignmentState, detail: str | None = None) -> None:
        shown = None if detail is None else clean(detail)[:_DETAIL_CHARS]
        if (state, shown) == (self.state, self.detail):
            return
        level = logging.WARNING if state is AssignmentState.FAILED else logging.INFO
        _log.log(level, "%s is %s%s", self.name, state, f": {shown}" if shown else "")
        self.state, self.detail = state, shown
        self._state_changed.set()
        self._state_changed = asyncio.Event()
        self._changed()


async def _bounded(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
