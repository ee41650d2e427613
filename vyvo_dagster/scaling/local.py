"""`local`: a pool's nodes are agents on this machine, each a process of its own.

They outlive the api that started them. Nothing is remembered of them but their folders: which of
them run is read from the processes' own environment, so a crash between a start and its note
cannot leave one unknown.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vyvo_dagster.domain.pool import POOL_LABEL
from vyvo_dagster.errors import ScalingFailed, ScalingRefused
from vyvo_dagster.scaling.base import Task

__all__ = ["LocalScaler"]

log = logging.getLogger(__name__)

_MARK: Final = b"VYVO_AGENT_DATA_DIR="
_STACK: Final = "VYVO_STACK"
_STOP_SECONDS: Final = 25.0
_LOCK_SECONDS: Final = 60.0
_LOG_BYTES: Final = 16 << 20


class LocalScaler:
    """Starts and stops agents.

    Args:
        root: folder of all local pools; nodes live in `<pool>/<node>`.
        environment: what this process was started with; agents inherit it but for `VYVO_*`.
        agent: the `VYVO_AGENT_*` variables that all agents get: where the api is, the join token.
        limit: agents of all pools together that this machine may run.
    """

    def __init__(
        self, root: Path, *, environment: Mapping[str, str], agent: Mapping[str, str], limit: int
    ) -> None:
        self._root = root.absolute()
        self._limit = limit
        withheld = ("VYVO_", "DAGSTER_")
        self._env = {
            name: value for name, value in environment.items()
            if name == _STACK or name.startswith("VYVO_AGENT_") or not name.startswith(withheld)
        } | dict(agent)  # fmt: skip
        self._children: set[int] = set()

    async def plan(self, task: Task) -> Mapping[str, Any]:
        """Which agents start and which stop."""
        running = await asyncio.to_thread(self._running)
        others = sum(pool != task.pool for pool, _ in running)
        if others + task.change.size > self._limit:
            raise ScalingRefused(
                f"this machine may run {self._limit} agents of local pools (VYVO_LOCAL_AGENTS) and "
                f"{others} of other pools run already; {task.change.size} more do not fit"
            )
        here = {name for pool, name in running if pool == task.pool}
        starts = [name for name in task.change.names if name not in here]
        stops = sorted(here - set(task.change.names))
        for name in starts:
            task.say(f"start agent {name}")
        for name in stops:
            task.say(f"stop agent {name}")
        return {"start": starts, "stop": stops}

    async def apply(self, task: Task) -> None:
        """Start those that are missing and stop those that leave."""
        await asyncio.to_thread(self._bring, task.pool, task.config, task.change.names)
        task.say(f"{task.pool} has {task.change.size} agents")

    async def keep(self, pools: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> None:
        """Start those that died, stop those that belong to no pool any more."""
        await asyncio.to_thread(self._keep, pools)

    def _keep(self, pools: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> None:
        with contextlib.suppress(BlockingIOError), self._locked(wait=False):
            for pool, (config, names) in pools.items():
                try:
                    self._converge(pool, config, names)
                except ScalingFailed as error:
                    # One pool whose folder cannot be made must not leave the others alone.
                    log.error("node pool %s: %s", pool, error.detail)

    def _bring(self, pool: str, config: Mapping[str, Any], names: Sequence[str]) -> None:
        with self._locked(wait=True):
            self._converge(pool, config, names)

    def _converge(self, pool: str, config: Mapping[str, Any], names: Sequence[str]) -> None:
        running = self._running()
        for name in names:
            if (pool, name) not in running:
                log.info("starting agent %s", name)
                self._start(pool, name, config)
            else:
                _rotate(self._root / pool / name / "agent.log")
        self._stop([pid for (of, name), pids in running.items() if of == pool and name not in names
                    for pid in pids])  # fmt: skip

    def _start(self, pool: str, name: str, config: Mapping[str, Any]) -> None:
        home = self._root / pool / name
        env = self._env | {
            "VYVO_AGENT_NAME": name,
            "VYVO_AGENT_DATA_DIR": str(home),
            "VYVO_AGENT_ENV_DIR": str(home / "env"),
            "VYVO_AGENT_LABELS": json.dumps({**config.get("labels", {}), POOL_LABEL: pool}),
            "VYVO_AGENT_SLOTS": str(config.get("slots", 1)),
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            _rotate(home / "agent.log")
            pid = os.posix_spawn(
                sys.executable, [sys.executable, "-m", "vyvo_dagster.agent.main"], env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(home / "agent.log"), flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )  # fmt: skip
        except OSError as error:
            raise ScalingFailed(f"agent {name} cannot be started: {error}") from error
        self._children.add(pid)

    def _stop(self, pids: Sequence[int]) -> None:
        """End agents in order; those that do not heed are killed."""
        left = set(pids)
        for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, 5.0)):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while left and time.monotonic() < deadline:
                left &= {pid for pids in self._running().values() for pid in pids}
                if left:
                    time.sleep(0.1)
        if left:
            raise ScalingFailed(f"agents did not end: pids {sorted(left)}")

    def _running(self) -> dict[tuple[str, str], list[int]]:
        """(pool, node) → pids of its agent, by the environment that it was started with."""
        self._reap()
        found: dict[tuple[str, str], list[int]] = {}
        prefix = _MARK + os.fsencode(self._root) + b"/"
        for pid, environ in _environments():
            for variable in environ:
                parts = variable.removeprefix(prefix).split(b"/")
                if variable.startswith(prefix) and len(parts) == 2 and _is_agent(pid):
                    found.setdefault((parts[0].decode(), parts[1].decode()), []).append(pid)
        return found

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                self._children.discard(pid)

    @contextmanager
    def _locked(self, *, wait: bool) -> Generator[None]:
        """One process at a time changes what runs here.

        Raises:
            BlockingIOError: another does, and `wait` is false.
            ScalingFailed: another did all the while, or the folder cannot be written.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ScalingFailed(f"local pools have no folder to live in: {error}") from error
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not wait:
                        raise
                    if time.monotonic() > deadline:
                        raise ScalingFailed("another process scales local pools here") from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(handle)


def _environments() -> Iterable[tuple[int, list[bytes]]]:
    """Each process whose environment we may read; those that ended have none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "environ").read_bytes().split(b"\0")


def _rotate(path: Path) -> None:
    """Keep an agent's log, and one of before it, within bounds.

    Copied and cut, as the agent goes on writing to the open file, at its end. Where that fails the
    log grows until the next look: an agent is worth more than its log.
    """
    try:
        if path.stat().st_size > _LOG_BYTES:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("log %s is not rotated: %s", path, error)


def _is_agent(pid: int) -> bool:
    """Whether it is the agent itself and not a runner that inherited its environment."""
    try:
        return b"vyvo_dagster.agent.main" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
