"""Runners as instances of a systemd unit, for hosts whose services systemd looks after.

A runner is `vyvo-runner@<file>.service`; its environment file says what it is (`unit_main`, which
the shipped unit runs, reads that). systemd starts it again when it ends, and keeps it while the
agent is away; the agent finds it again by what it wrote down, and takes it over if it still serves.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.agent.cog_client import OUTPUT_BYTES, CogClient
from vyvo_dagster.agent.envfile import EnvDirectory
from vyvo_dagster.agent.runners.base import Access, Launcher, Runner, RunnerSpec
from vyvo_dagster.agent.runners.process import free_port
from vyvo_dagster.agent.runners.systemctl import Systemctl, UnitState
from vyvo_dagster.domain.unit import instance_unit
from vyvo_dagster.errors import InvalidInput, RunnerFailed, Unavailable

__all__ = ["SystemdLauncher"]

_log = logging.getLogger(__name__)

_TEMPLATE: Final = "vyvo-runner"
_HOST: Final = "127.0.0.1"
_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Started:
    """What was written down of a runner that was started."""

    unit: str
    port: int
    digest: str


class SystemdLauncher:
    """Starts runners through systemd.

    Args:
        systemctl: the manager.
        inner: launchers of the kinds of images that units of this host can run; they accept and
            prepare images, and the unit's own process launches them.
        env_files: where units read what they run.
        state_dir: folder for what was started.
        runner_env: what every unit is told of this host, beside the runner's own (`VYVO_RUNNER_*`).
    """

    def __init__(
        self,
        systemctl: Systemctl,
        inner: Sequence[Launcher],
        env_files: EnvDirectory,
        state_dir: Path,
        runner_env: Mapping[str, str],
    ) -> None:
        self._systemctl = systemctl
        self._inner = inner
        self._env_files = env_files
        self._state_dir = state_dir
        self._runner_env = runner_env
        self._leaving = False

    def accepts(self, image: str) -> bool:
        """Whether a unit of this host can run `image`."""
        return any(launcher.accepts(image) for launcher in self._inner)

    async def prepare(self, image: str, access: Access | None = None) -> None:
        """Have `image` on this host."""
        launcher = next(one for one in self._inner if one.accepts(image))
        await launcher.prepare(image, access)

    async def launch(self, spec: RunnerSpec) -> Runner:
        """Start the unit, or take over the one that runs what is asked for."""
        known = await asyncio.to_thread(self._known, spec.assignment_id)
        if known is not None and known.digest == spec.digest:
            adopted = await self._adopted(known, spec)
            if adopted is not None:
                return adopted
        port = free_port()
        try:
            path = await asyncio.to_thread(self._write, spec, port)
            unit = instance_unit(_TEMPLATE, path.stem)
            if known is not None and known.unit != unit:
                await self._end(spec.assignment_id, known)
            started = _Started(unit, port, spec.digest)
            await asyncio.to_thread(self._write_down, spec.assignment_id, started)
        except (OSError, InvalidInput) as error:
            raise RunnerFailed(f"its unit cannot be set up: {error}") from error
        _log.info("reload-or-restart %s", unit)
        refused = ""
        try:
            await self._systemctl.reload_or_restart(unit)
        except RunnerFailed as error:
            refused = error.detail
        state = await self._systemctl.show(unit)
        if refused or not state.runs:
            why = refused or await self._systemctl.log_tail(unit)
            raise RunnerFailed(f"{unit} is {state.said}{f': {why}' if why else ''}")
        return self._runner(spec.assignment_id, started, state)

    async def sweep(self, keep: Iterable[UUID]) -> None:
        """Stop the units that this agent started before, but those of the assignments `keep`."""
        keep = list(keep)
        for launcher in self._inner:
            await launcher.sweep(keep)
        kept = {str(assignment_id) for assignment_id in keep}
        for file in await asyncio.to_thread(lambda: sorted(self._state_dir.glob("*.json"))):
            if file.stem in kept:
                continue
            try:
                assignment_id = UUID(file.stem)
            except ValueError:
                continue
            if known := await asyncio.to_thread(self._known, assignment_id):
                _log.info("stopping %s of an earlier start", known.unit)
                await self._end(assignment_id, known)

    def leave(self) -> None:
        """From now on runners are left to systemd."""
        self._leaving = True

    async def aclose(self) -> None:
        """Release what the inner launchers hold."""
        for launcher in self._inner:
            await launcher.aclose()

    async def _adopted(self, known: _Started, spec: RunnerSpec) -> "SystemdRunner | None":
        state = await self._systemctl.show(known.unit)
        if not state.runs:
            return None
        # Written by whoever made the spec, the file says no longer how the unit starts.
        try:
            await asyncio.to_thread(self._write, spec, known.port)
        except OSError as error:
            raise RunnerFailed(f"its environment file cannot be written: {error}") from error
        runner = self._runner(spec.assignment_id, known, state)
        with contextlib.suppress(RunnerFailed, Unavailable):
            async with runner.connect() as client:
                if (await client.health()).serves:
                    _log.info("adopted %s of an earlier start", known.unit)
                    return runner
        return None

    def _runner(self, assignment_id: UUID, started: _Started, state: UnitState) -> "SystemdRunner":
        return SystemdRunner(self, self._systemctl, assignment_id, started, state.invocation)

    async def end(self, assignment_id: UUID, started: _Started, grace_seconds: float) -> None:
        """Stop a unit and forget it, unless units are left alone by now."""
        if self._leaving:
            return
        if grace_seconds <= 0:
            await self._systemctl.kill(started.unit)
        await self._end(assignment_id, started)

    async def _end(self, assignment_id: UUID, started: _Started) -> None:
        await self._systemctl.stop(started.unit)
        await asyncio.to_thread(self._file(assignment_id).unlink, missing_ok=True)

    def _write(self, spec: RunnerSpec, port: int) -> Path:
        env = {
            **spec.env,
            **self._runner_env,
            "VYVO_RUNNER_NAMES": " ".join(sorted(spec.env)),
            "VYVO_RUNNER_ASSIGNMENT_ID": str(spec.assignment_id),
            "VYVO_RUNNER_IMAGE": spec.image,
            "VYVO_RUNNER_PORT": str(port),
            "VYVO_RUNNER_MEMORY_BYTES": str(spec.memory_bytes),
            "VYVO_RUNNER_LOOPBACK_UPLOADS": str(int(spec.loopback_uploads)),
        }
        if spec.gpu_uuid is not None:
            env["VYVO_RUNNER_GPU_UUID"] = spec.gpu_uuid
        if spec.weights is not None:
            env |= {"VYVO_RUNNER_WEIGHTS": str(spec.weights), "VYVO_WEIGHTS": str(spec.weights)}
        model_id, version = spec.env["VYVO_MODEL_ID"], spec.env["VYVO_MODEL_VERSION"]
        return self._env_files.write(spec.assignment_id, model_id, version, env)

    def _file(self, assignment_id: UUID) -> Path:
        return self._state_dir / f"{assignment_id}.json"

    def _write_down(self, assignment_id: UUID, started: _Started) -> None:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self._file(assignment_id).with_suffix(".partial")
        members = {"unit": started.unit, "port": started.port, "digest": started.digest}
        partial.write_text(json.dumps(members))
        partial.replace(self._file(assignment_id))

    def _known(self, assignment_id: UUID) -> _Started | None:
        try:
            members: Any = json.loads(self._file(assignment_id).read_text())
            return _Started(str(members["unit"]), int(members["port"]), str(members["digest"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class SystemdRunner:
    """A started unit."""

    def __init__(
        self,
        launcher: SystemdLauncher,
        systemctl: Systemctl,
        assignment_id: UUID,
        started: _Started,
        invocation: str,
    ) -> None:
        self._launcher = launcher
        self._systemctl = systemctl
        self._assignment_id = assignment_id
        self._started = started
        self._invocation = invocation
        self.url = f"http://{_HOST}:{started.port}"

    def connect(self, output_bytes: int = OUTPUT_BYTES) -> CogClient:
        """A client of its Cog server."""
        return CogClient(self.url, output_bytes)

    async def wait(self) -> str:
        """Return once this run of the unit has ended, also where systemd has begun another."""
        unit = self._started.unit
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                state = await self._systemctl.show(unit)
            except Unavailable as error:
                _log.debug("systemctl: %s", error.detail)
                continue
            if not state.runs:
                return f"{unit} is {state.said}"
            if state.invocation != self._invocation:
                return f"{unit} was started again by systemd"

    async def stop(self, grace_seconds: float) -> None:
        """Stop the unit as it says how; killed first where there is no grace."""
        try:
            await self._launcher.end(self._assignment_id, self._started, grace_seconds)
        except (RunnerFailed, Unavailable) as error:
            # The next start of this agent sweeps what is written down.
            _log.error("%s may still run: %s", self._started.unit, error.detail)

    async def log_tail(self) -> str:
        """The end of the unit's journal."""
        return await self._systemctl.log_tail(self._started.unit)
