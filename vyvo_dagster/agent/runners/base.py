"""What a runner is to the agent, however it is started."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self
from uuid import UUID

from vyvo_dagster.agent.cog_client import Health, HealthStatus, Listener, Prediction
from vyvo_dagster.agent.texts import clean
from vyvo_dagster.errors import RunnerFailed, Unavailable
from vyvo_dagster.protocol.node import RegistryAccess

__all__ = [
    "Access",
    "Launcher",
    "Runner",
    "RunnerClient",
    "RunnerSpec",
    "log_text",
    "until_serving",
]

_POLL_SECONDS: Final = 0.05
_LONGEST_POLL: Final = 0.5
_TAIL_CHARS: Final = 1500
_PREDICTION_NOTES: Final = "coglet::prediction"


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """All that decides how a runner is started.

    `env` is the runner's whole environment but `VYVO_WEIGHTS`, which each launcher sets to where
    it puts `weights`. `gpu_uuid` is the one GPU that the runner may use; None hides all.
    """

    assignment_id: UUID
    image: str
    env: Mapping[str, str]
    weights: Path | None = None
    gpu_uuid: str | None = None
    memory_bytes: int = 0
    loopback_uploads: bool = False
    """The object store listens on this host's loopback, which only host networking reaches."""

    port: int | None = None
    """Where it must listen on loopback; None leaves that to its launcher."""

    digest: str = field(init=False)
    """Identifies equal specs over restarts of the agent, wherever they listen."""

    def __post_init__(self) -> None:
        members = (
            str(self.assignment_id), self.image, dict(self.env), str(self.weights), self.gpu_uuid,
            self.memory_bytes, self.loopback_uploads,
        )  # fmt: skip
        canonical = json.dumps(members, sort_keys=True).encode()
        object.__setattr__(self, "digest", hashlib.sha256(canonical).hexdigest())


Access = Callable[[], Awaitable[RegistryAccess | None]]
"""Gives the login for a registry, at the time when it is needed."""


class RunnerClient(Protocol):
    """Asks one runner for predictions. `CogClient` says what each call means and raises."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def health(self) -> Health: ...

    async def predict(
        self,
        prediction_id: str,
        input: Mapping[str, Any],
        listener: Listener,
        *,
        context: Mapping[str, str] | None = None,
        traceparent: str | None = None,
    ) -> Prediction: ...

    async def cancel(self, prediction_id: str) -> bool: ...


class Runner(Protocol):
    """A started runner. It may not have finished, or passed, its setup."""

    def connect(self, output_bytes: int) -> RunnerClient:
        """A client of it, to be entered and left by who asks; it reads so much of an output."""
        ...

    async def wait(self) -> str:
        """Return once it has ended, with the reason."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """End it: asked first, killed after `grace_seconds`. Ended already is no error."""
        ...

    async def log_tail(self) -> str:
        """The last lines that it wrote."""
        ...


class Launcher(Protocol):
    """Starts runners of one kind."""

    def accepts(self, image: str) -> bool:
        """Whether `image` names something of this launcher's kind."""
        ...

    async def prepare(self, image: str, access: Access | None = None) -> None:
        """Have `image` on this host; `access` says as whom to fetch it, and is asked if need be.

        Raises:
            RunnerFailed: it cannot be had.
            Unavailable: not now.
        """
        ...

    async def launch(self, spec: RunnerSpec) -> Runner:
        """Start a runner, or find again the one that this spec started before.

        Raises:
            RunnerFailed: it cannot be started.
        """
        ...

    async def sweep(self, keep: Iterable[UUID]) -> None:
        """Remove runners of earlier starts of this agent, but those of the assignments `keep`."""
        ...

    def leave(self) -> None:
        """From now on `stop` leaves its runners alone, where they can outlive the agent."""
        ...

    async def aclose(self) -> None:
        """Release what the launcher itself holds; runners stay as they are."""
        ...


async def until_serving(client: RunnerClient, timeout_seconds: float) -> None:
    """Return once the runner's setup has succeeded.

    Raises:
        RunnerFailed: the setup failed (the detail has the end of its log) or took too long.
    """
    deadline = time.monotonic() + timeout_seconds
    delay = _POLL_SECONDS
    while True:
        try:
            health = await client.health()
        except Unavailable:
            health = None
        if health is not None:
            if health.serves:
                return
            if health.status in {HealthStatus.SETUP_FAILED, HealthStatus.DEFUNCT}:
                raise RunnerFailed(f"setup failed: {health.setup_logs[-_TAIL_CHARS:].strip()}")
        if time.monotonic() > deadline:
            state = "does not answer" if health is None else f"is {health.status}"
            raise RunnerFailed(f"the runner {state} {timeout_seconds:.0f} s after its start")
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, _LONGEST_POLL)


def log_text(raw: bytes) -> str:
    """The end of a runner's log as text: coglet's JSON lines become their messages.

    Its notes that a prediction began or ended are left out, and so is a first line cut short.
    """
    lines: list[str] = []
    for line in raw.decode(errors="replace").splitlines():
        try:
            record: Any = json.loads(line)
            message = str(record["fields"]["message"])
            if "source" not in record["fields"] and record.get("target") == _PREDICTION_NOTES:
                continue
        except (ValueError, KeyError, TypeError, RecursionError):
            message = line
            if not lines and '"target":"coglet' in line:
                continue
        if message.strip():
            lines.append(message.rstrip())
    return clean("\n".join(lines))[-_TAIL_CHARS:]
