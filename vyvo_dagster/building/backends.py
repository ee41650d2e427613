"""Which backend builds: asked for by name, or chosen by what this host has."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple, Protocol

import docker.errors
import requests

from vyvo_dagster.building.buildx import BuildxBackend
from vyvo_dagster.building.container_check import engine_client
from vyvo_dagster.building.github_actions import GitHubActionsBackend
from vyvo_dagster.building.github_api import GitHubTarget
from vyvo_dagster.building.registry import registry_answers
from vyvo_dagster.building.types import BuildContext, BuildRequest, BuildResult
from vyvo_dagster.building.venv import VenvBackend
from vyvo_dagster.domain.build import BuildBackend
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.settings import EngineChoice

__all__ = ["Backend", "Choice", "choose", "why_not_buildx"]


class Backend(Protocol):
    """Makes a runner out of a template."""

    kind: BuildBackend

    def build(self, request: BuildRequest, context: BuildContext) -> BuildResult:
        """Build, publish and check one runner; BuildFailed or RunnerFailed when it does not work."""
        ...


class Choice(NamedTuple):
    """A backend, and why it is that one, for the log."""

    backend: Backend
    reason: str


def choose(
    asked: BuildBackend,
    *,
    registry: str,
    docker_host: str | None = None,
    engine: EngineChoice = "auto",
    venv_root: Path | None = None,
    builder: str | None = None,
    github: GitHubTarget | None = None,
) -> Choice:
    """The backend for a build.

    Args:
        asked: what the build or the settings name; AUTO takes buildx where it can work.
        registry: `host:port` that images are pushed to.
        docker_host: engine; None for Docker's default.
        engine: "process" keeps AUTO from looking for an engine, "docker" forbids it the venv.
        builder: address of a BuildKit daemon that builds in the engine's place.
        github: where workflows build; None allows no github_actions.
        venv_root: where environments stand; None for `<data_dir>/venvs`.

    Raises:
        Unavailable: a backend is asked for and cannot work here; the detail says what is missing.
    """
    venv = VenvBackend(venv_root)
    if asked is BuildBackend.VENV:
        return Choice(venv, "asked for")
    if asked is BuildBackend.AUTO and engine == "process":
        return Choice(venv, "runners are processes here (VYVO_ENGINE=process)")
    missing = why_not_buildx(registry, docker_host)
    if asked is BuildBackend.GITHUB_ACTIONS:
        if github is None:
            missing = "set VYVO_GITHUB_REPOSITORY and VYVO_GITHUB_TOKEN"
        if github is None or missing is not None:
            raise Unavailable(f"the build backend github_actions cannot work here: {missing}")
        return Choice(GitHubActionsBackend(github, registry, docker_host), "asked for")
    if missing is None:
        reason = (
            "asked for" if asked is BuildBackend.BUILDX else "a Docker engine and a registry answer"
        )
        return Choice(BuildxBackend(registry, docker_host, builder), reason)
    if asked is BuildBackend.BUILDX or engine == "docker":
        raise Unavailable(f"the build backend buildx cannot work here: {missing}")
    return Choice(venv, missing)


def why_not_buildx(registry: str, docker_host: str | None = None) -> str | None:
    """What is missing for image builds on this host, or None."""
    if shutil.which("docker") is None:
        return "the docker command is not installed"
    try:
        client = engine_client(docker_host, timeout=3.0)
        try:
            client.ping()
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException):
        return f"no Docker engine answers at {docker_host or 'the default socket'}"
    buildx = subprocess.run(
        ["docker", "buildx", "version"], capture_output=True, timeout=20, check=False
    )
    if buildx.returncode != 0:
        return "docker has no buildx plugin"
    if not registry_answers(registry):
        return f"no registry answers at {registry}"
    return None
