"""What a part of the stack is, and how one is started and waited for."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vyvo_dagster.errors import Unavailable, VyvoError
from vyvo_dagster.local.process import Child, spawn, stop, tail

__all__ = ["Part", "Probe", "await_ready", "launch", "start_part"]

Probe = Callable[[Child], Awaitable[None]]
"""Returns when the part answers as it should; raises `Unavailable` with the reason until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process of the stack.

    `prepare` runs before every start (configuration files, initdb), `settle` after the part
    first answers (databases). Both are repeated on a restart and so are idempotent.

    A part with `preloads` is started at once and does its imports while its `needs` still come
    up; it waits at the gate (`local/gate.py`) until they answer. A part that is `one_shot` is
    ready when it has ended with status 0. Parts are stopped by ascending `stop_rank`.
    """

    name: str
    argv: tuple[str, ...]
    url: str
    ready: Probe
    needs: tuple[str, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Added to the stack's environment; None takes a variable away."""
    cwd: Path | None = None
    user: tuple[int, int] | None = None
    spawner: "Callable[[Part], Awaitable[Child]] | None" = None
    """Starts the process instead of `spawn`; env, cwd and user are then its own business."""
    prepare: Callable[[], Awaitable[None]] | None = None
    settle: Callable[[], Awaitable[None]] | None = None
    preloads: bool = False
    one_shot: bool = False
    start_timeout: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace: float = 10.0
    stop_rank: int = 9


async def start_part(part: Part, *, logs: Path, env: Mapping[str, str] | None = None) -> Child:
    """Start a part and wait until it answers.

    Args:
        part: what to start.
        logs: directory of the log files.
        env: environment that the part's own is added to; this process's own where None.

    Raises:
        Unavailable: it ended or stayed silent past `start_timeout`; `extra["log_tail"]` holds
            the end of its log. Nothing of it is left running.

    """
    child = await launch(part, logs=logs, env=os.environ if env is None else env)
    await await_ready(part, child)
    return child


async def launch(part: Part, *, logs: Path, env: Mapping[str, str]) -> Child:
    """Start a part's process and do not wait for it."""
    if part.prepare is not None:
        await part.prepare()
    if part.spawner is not None:
        return await part.spawner(part)
    merged = {**env, **part.env}
    try:
        return spawn(
            part.name,
            part.argv,
            env={name: value for name, value in merged.items() if value is not None},
            log=logs / f"{part.name}.log",
            cwd=part.cwd,
            user=part.user,
            stop_signal=part.stop_signal,
            stop_grace=part.stop_grace,
        )
    except OSError as error:
        raise Unavailable(f"{part.name} cannot be started: {error}") from error


async def await_ready(part: Part, child: Child) -> None:
    """Wait until a launched part answers; stop it where it does not. Raises as `start_part`."""
    try:
        await _answers(part, child)
        if part.settle is not None:
            await part.settle()
    except BaseException as error:
        await asyncio.shield(stop(child, grace=min(part.stop_grace, 3.0)))
        if isinstance(error, VyvoError):
            error.extra.setdefault("log_tail", tail(child.log, since=child.log_start))
        raise


async def _answers(part: Part, child: Child) -> None:
    deadline = time.monotonic() + part.start_timeout
    pause, reason = 0.02, "no answer yet"
    while time.monotonic() < deadline:
        status = child.popen.poll()
        if status == 0 and part.one_shot:
            return
        if status is not None:
            raise Unavailable(
                f"{part.name} ended with status {status} while it started; its log is {child.log}"
            )
        try:
            await asyncio.wait_for(part.ready(child), timeout=5.0)
        except (Unavailable, TimeoutError) as error:
            reason = str(error) or "the probe timed out"
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.25)
    raise Unavailable(
        f"{part.name} did not answer within {part.start_timeout:.0f} s ({reason}); "
        f"its log is {child.log}"
    )
