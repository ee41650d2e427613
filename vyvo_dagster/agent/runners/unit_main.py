"""What `vyvo-runner@.service` runs: one runner, as its environment file says, until a signal.

Its image is launched as the agent launches one, so that a runner is shut in the same whoever looks
after it.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from vyvo_dagster.agent.runners.base import Launcher, RunnerSpec
from vyvo_dagster.agent.runners.container import ContainerLauncher
from vyvo_dagster.agent.runners.engine import Engine
from vyvo_dagster.agent.runners.process import ProcessLauncher
from vyvo_dagster.errors import InvalidInput, VyvoError
from vyvo_dagster.settings import RunnerSettings

__all__ = ["run"]

_USAGE: Final = 2


def run() -> None:
    """Run the runner that the environment describes; exit with 0 after SIGTERM, with 1 if it ends itself.

    Exits with 2 when the environment describes none.
    """
    try:
        settings = RunnerSettings()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        sys.stderr.write(
            f"vyvo runner: VYVO_RUNNER_{name}: {first['msg']}; an agent writes these into the file "
            "that vyvo-runner@.service reads\n"
        )
        sys.exit(_USAGE)
    try:
        reason = asyncio.run(_serve(settings, os.environ))
    except (VyvoError, OSError) as error:
        sys.stderr.write(f"vyvo runner: {error}\n")
        sys.exit(_USAGE if isinstance(error, InvalidInput) else 1)
    if reason is not None:
        sys.stderr.write(f"vyvo runner: {reason}\n")
    sys.stderr.flush()
    # A thread in an engine's call cannot be ended; nothing waits for it.
    os._exit(0 if reason is None else 1)


async def _serve(settings: RunnerSettings, environ: Mapping[str, str]) -> str | None:
    """Serve until a signal; the reason, if the runner ended before."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    spec = _spec(settings, environ)
    launcher, engine = await _launcher(settings)
    try:
        runner = await launcher.launch(spec)
        ended = asyncio.create_task(runner.wait())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            tail = "" if stop.is_set() else await runner.log_tail()
            await runner.stop(settings.stop_seconds if stop.is_set() else 0)
        if stop.is_set():
            ended.cancel()
            return None
        return f"{ended.result()}: {tail}" if tail else ended.result()
    finally:
        await launcher.aclose()
        if engine is not None:
            await engine.aclose()


async def _launcher(settings: RunnerSettings) -> tuple[Launcher, Engine | None]:
    process = ProcessLauncher(settings.venv_dir, settings.state_dir)
    if process.accepts(settings.image):
        return process, None
    engine = await asyncio.to_thread(Engine.open, settings.docker_host)
    return ContainerLauncher(engine, settings.node_id), engine


def _spec(settings: RunnerSettings, environ: Mapping[str, str]) -> RunnerSpec:
    names = settings.names.split()
    lacking = [name for name in names if name not in environ]
    if lacking:
        raise InvalidInput(f"VYVO_RUNNER_NAMES names {lacking[0]}, which is not set")
    return RunnerSpec(
        assignment_id=settings.assignment_id,
        image=settings.image,
        env={name: environ[name] for name in names},
        weights=None if settings.weights is None else Path(settings.weights),
        gpu_uuid=settings.gpu_uuid,
        memory_bytes=settings.memory_bytes,
        loopback_uploads=settings.loopback_uploads,
        port=settings.port,
    )
