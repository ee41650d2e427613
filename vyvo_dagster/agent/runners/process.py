"""Runners as processes: environments of the venv build backend, for hosts without an engine."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.agent.cog_client import OUTPUT_BYTES, CogClient
from vyvo_dagster.agent.runners.base import Access, Runner, RunnerSpec, log_text
from vyvo_dagster.errors import RunnerFailed

__all__ = ["ProcessLauncher", "ProcessRunner", "free_port"]

_SCHEME: Final = "venv://sha256:"
_IMAGE = re.compile(re.escape(_SCHEME) + r"(?P<hex>[0-9a-f]{64})")
_HOST: Final = "127.0.0.1"
# What a runner may see of the agent's own environment, which also holds secrets.
_INHERITED: Final = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRAMPOLINE: Final = Path(__file__).with_name("die_with_parent.py")
_TAIL_BYTES: Final = 8192
_LOG_BYTES: Final = 32 << 20
_LOG_CHECK_SECONDS: Final = 30.0
_KILL_SECONDS: Final = 5.0


class ProcessLauncher:
    """Starts `venv://sha256:<hex>` runners, each in its own session, on a free loopback port.

    Args:
        venv_dir: folder that holds `<hex>/` with `venv/`, `app/` and `runner.json`.
        state_dir: folder for the runners' logs and home folders.
    """

    def __init__(self, venv_dir: Path, state_dir: Path) -> None:
        self._venv_dir = venv_dir.absolute()
        self._logs = state_dir.absolute() / "logs"
        self._homes = state_dir.absolute() / "homes"

    def accepts(self, image: str) -> bool:
        """Whether `image` is an environment of the venv backend."""
        return image.startswith("venv://")

    async def prepare(self, image: str, access: Access | None = None) -> None:
        """Check that the environment is here; environments are not fetched."""
        await asyncio.to_thread(self._manifest, image)

    async def launch(self, spec: RunnerSpec) -> Runner:
        """Start the environment's command."""
        root, manifest = await asyncio.to_thread(self._manifest, spec.image)
        log = self._logs / f"{spec.assignment_id}.log"
        home = self._homes / str(spec.assignment_id)
        for folder in (self._logs, home):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        port = spec.port or free_port()
        env = _environment(spec, root, manifest, port, home)
        command = [
            sys.executable,
            "-I",
            "-S",
            str(_TRAMPOLINE),
            str(os.getpid()),
            *manifest.command,
        ]
        try:
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *command, cwd=manifest.cwd, env=env, stdin=asyncio.subprocess.DEVNULL,
                    stdout=output, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise RunnerFailed(f"the runner of {spec.image} cannot be started: {error}") from error
        return ProcessRunner(process, f"http://{_HOST}:{port}", log)

    async def sweep(self, keep: Iterable[UUID]) -> None:
        """Nothing is left of an earlier start: runners die with their agent."""

    def leave(self) -> None:
        """Processes of the agent end with it whatever it does."""

    async def aclose(self) -> None:
        """Nothing is held."""

    def _manifest(self, image: str) -> tuple[Path, "_Manifest"]:
        found = _IMAGE.fullmatch(image)
        if found is None:
            raise RunnerFailed(
                f"an environment is named {_SCHEME}<64 hex digits>; got {image[:120]!r}"
            )
        root = self._venv_dir / found["hex"]
        path = root / "runner.json"
        try:
            members: Any = json.loads(path.read_text())
            return root, _Manifest.of(members, root)
        except FileNotFoundError as error:
            raise RunnerFailed(
                f"{image} is not on this node (no {path}); build it here, or build an image instead"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunnerFailed(f"{path} cannot be used: {error}") from error


@dataclass(frozen=True, slots=True)
class _Manifest:
    command: list[str]
    cwd: Path
    env: dict[str, str]

    @classmethod
    def of(cls, members: Mapping[str, Any], root: Path) -> "_Manifest":
        first, *rest = (str(part) for part in members["command"])
        cwd = root / str(members.get("cwd", "app"))
        if not cwd.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"cwd {cwd} is outside the environment")
        # A bare name is looked up on the PATH, which starts with the environment's own.
        command = str(root / first) if "/" in first else first
        env = {str(k): str(v) for k, v in members.get("env", {}).items()}
        return cls([command, *rest], cwd, env)


class ProcessRunner:
    """A running process and all that it started, in one session."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self._process = process
        self._log = log
        self.url = url

    def connect(self, output_bytes: int = OUTPUT_BYTES) -> CogClient:
        """A client of its Cog server."""
        return CogClient(self.url, output_bytes)

    async def wait(self) -> str:
        """Return once the process has ended; meanwhile its log is kept from growing without end."""
        ended = asyncio.ensure_future(self._process.wait())
        try:
            while not (await asyncio.wait({ended}, timeout=_LOG_CHECK_SECONDS))[0]:
                self._bound_log()
        finally:
            ended.cancel()
        code = self._process.returncode or 0
        if code >= 0:
            return f"the runner exited with code {code}"
        return f"the runner was killed by {signal.Signals(-code).name}"

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM to the server, which lets a prediction end; then SIGKILL to the whole session."""
        if grace_seconds > 0 and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                await self._process.wait()

    async def log_tail(self) -> str:
        """The end of the log file."""
        return await asyncio.to_thread(_tail, self._log)

    def _bound_log(self) -> None:
        # The writer appends, so that it goes on at the new end.
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _LOG_BYTES:
                os.truncate(self._log, 0)


def _environment(
    spec: RunnerSpec, root: Path, manifest: _Manifest, port: int, home: Path
) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = f"{root / 'venv' / 'bin'}:{_SYSTEM_PATH}"
    env = {"COG_PREDICT_TYPE_STUB": "predict.py:Predictor", "PYTHONUNBUFFERED": "1"}
    env |= inherited | manifest.env | dict(spec.env)
    # coglet starts its worker as `python`, found on the PATH, and reads its port from PORT.
    env |= {"PATH": path, "VIRTUAL_ENV": str(root / "venv"), "HOME": str(home), "PORT": str(port)}
    env["CUDA_VISIBLE_DEVICES"] = spec.gpu_uuid or ""
    if spec.weights is not None:
        env["VYVO_WEIGHTS"] = str(spec.weights)
    return env


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    # Another process may take it before the runner does; the runner then ends and is started anew.
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _TAIL_BYTES, 0))
            return log_text(file.read())
    except OSError:
        return ""
