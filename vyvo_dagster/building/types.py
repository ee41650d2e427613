"""What a build is given and what it answers."""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed
from vyvo_dagster.telemetry import tracing

__all__ = [
    "BuildCanceled", "BuildContext", "BuildRequest", "BuildResult", "LockStore", "Log", "Phases", "Recipe",
]  # fmt: skip


class BuildCanceled(BuildFailed):
    """The build was stopped because someone asked for it."""

    code = "build_canceled"


class Log(Protocol):
    """Takes the lines of a build, in order."""

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Record one line, and what else is known of it; text with line breaks becomes several."""
        ...


class LockStore(Protocol):
    """Keeps locks by what was asked for, so that all build hosts lock equal inputs alike."""

    def get(self, asked: str) -> bytes | None:
        """The lock that was kept for `asked`, a hex SHA-256."""
        ...

    def keep(self, asked: str, lock: bytes) -> bytes:
        """Keep a lock, and give the one that is kept: an earlier one, where there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """A build context, laid out by `recipe.lay_out`; lock and wheels are added by the backend."""

    folder: Path
    """Dockerfile, docker-bake.hcl, requirements.in, `image/`, and `app/`, which becomes /src."""
    predictor: str = "predict.py:Predictor"
    requires_python: str = ""
    """PEP 440 specifier that the base image's Python must meet; empty takes any."""
    gpu: bool = False
    """Whether the runner sees the GPUs that its container is given."""
    foreign: bool = False
    """It holds a repository's code, which is run inside an image only."""
    prebuilt: bool = False
    """The base image is a runner already: nothing is locked or installed."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One build. All of it was validated before: nothing here reaches a shell."""

    build_id: str
    recipe: Recipe
    template_name: str
    template_hash: str
    model_id: str
    version: str
    base_image: str
    sdk_dir: Path
    """Source of the `vyvo_runner` package, put into every image."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Given to the runner when it runs, the check included; never part of the image."""
    weights_path: Path | None = None
    """Local copy of the weights for the health check; None checks only that the server answers."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to the image's labels."""
    needs_weights: bool = True
    """Whether setup cannot succeed without weights."""
    gpu: bool = False
    """Whether the model's setup needs a GPU; on a build host without one setup is not checked."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A built runner. Digests are `sha256:<hex>`; durations in seconds by phase."""

    backend: BuildBackend
    image: str
    """`registry/vyvo/owner/name@sha256:...` or `venv://sha256:...`: what an agent runs."""
    digest: str
    size_bytes: int
    """What the registry holds for it (compressed layers and config), or bytes on disk of a venv."""
    lock_sha256: str | None
    """None of an image that was built elsewhere."""
    lock: Path | None
    """The lock on this host's disk."""
    wheels: Path | None
    """The folder of its wheels."""
    base_digest: str | None
    python: str
    durations: Mapping[str, float]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]


class Phases:
    """Seconds by phase of a build, for BuildResult.durations."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        """Time what happens inside under `name`."""
        before = time.monotonic()
        try:
            with tracing.span(name):
                yield
        finally:
            self.seconds[name] = round(time.monotonic() - before, 3)

    def durations(self) -> dict[str, float]:
        """All phases, and `total` since this was made."""
        return {**self.seconds, "total": round(time.monotonic() - self._started, 3)}


def _ignore(_state: BuildState) -> None:
    return None


def _ignore_image(_image: str, _digest: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What surrounds a build.

    Args:
        data_dir: caches and scratch; the wheelhouses and environments are shared by all builds.
        log: where lines go.
        cancel: set by whoever wants the build to stop; looked at four times a second.
        timeout: seconds for each external command.
        ready_timeout: seconds that a runner may take until its health check says READY.
        on_state: told when the build goes on to BuildState.PUSHING.
        share: puts a file where others can read it by URL while the block runs; None cannot.
        locks: where locks are kept for all build hosts; None keeps them on this one.
        on_image: told the image and its digest once it is published, before its runner is checked.
        push_attempts: tries to push an image.
        runner_env: the platform's environment of a runner (VYVO_S3_*), for the health check.
    """

    data_dir: Path
    log: Log
    cancel: threading.Event = field(default_factory=threading.Event)
    timeout: float = 3600.0
    ready_timeout: float = 300.0
    on_state: Callable[[BuildState], None] = _ignore
    locks: LockStore | None = None
    share: Callable[[Path], AbstractContextManager[str]] | None = None
    on_image: Callable[[str, str], None] = _ignore_image
    push_attempts: int = 4
    runner_env: Mapping[str, str] = field(default_factory=dict[str, str])

    def scratch(self, build_id: str) -> Path:
        """The folder of one build, made; its log spool is there too."""
        folder = self.data_dir.resolve() / "builds" / build_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def check_canceled(self) -> None:
        """Raise BuildCanceled once someone asked for it."""
        if self.cancel.is_set():
            raise BuildCanceled("the build was canceled")
