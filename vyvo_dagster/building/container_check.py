"""A runner under check as a container of the engine."""

import io
import tarfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import docker
import docker.errors
import docker.types
import requests

from vyvo_dagster.building.gpu import host_has_gpu
from vyvo_dagster.errors import RunnerFailed

__all__ = [
    "ContainerRunner",
    "check_container_name",
    "engine_client",
    "remove_container",
    "run_container",
]

_PORT: Final = "5000/tcp"
_WEIGHTS: Final = "/weights"
_STOP_SECONDS: Final = 3
_ENGINE_ERRORS: Final = (docker.errors.DockerException, requests.RequestException)


def engine_client(docker_host: str | None, timeout: float = 30.0) -> "docker.DockerClient":
    """The engine at `docker_host`, or at Docker's default; the first call connects."""
    if docker_host:
        return docker.DockerClient(base_url=docker_host, timeout=int(timeout))
    return docker.from_env(timeout=int(timeout))


def check_container_name(build_id: str) -> str:
    """Derived, so that a build that is run again finds and removes what an earlier try left."""
    return f"vyvo-check-{build_id}"


class ContainerRunner:
    """See `RunnerUnderCheck`."""

    def __init__(self, container: Any, workdir: str) -> None:
        self._container, self._workdir = container, workdir
        self.url = ""

    def locate(self) -> None:
        """Find the loopback port that the engine chose."""
        self._container.reload()
        bindings = self._container.attrs["NetworkSettings"]["Ports"].get(_PORT) or []
        if bindings:
            self.url = f"http://127.0.0.1:{bindings[0]['HostPort']}"

    def exited(self) -> str | None:
        """How it ended, or None while it runs."""
        self._container.reload()
        state = cast("dict[str, Any]", self._container.attrs["State"])
        if state["Status"] in {"created", "running", "restarting"}:
            return None
        return "out of memory" if state.get("OOMKilled") else f"exit status {state['ExitCode']}"

    def output(self) -> str:
        """The end of what it printed."""
        with suppress(*_ENGINE_ERRORS):
            return cast("bytes", self._container.logs(tail=40)).decode(errors="replace")
        return ""

    def schema_file(self) -> bytes | None:
        """The schema inside the image."""
        try:
            chunks, _ = self._container.get_archive(f"{self._workdir}/.cog/openapi_schema.json")
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.next()
                file = archive.extractfile(member) if member else None
                return file.read() if file else None
        except (*_ENGINE_ERRORS, tarfile.TarError):
            return None


@contextmanager
def run_container(
    client: "docker.DockerClient",
    image: str,
    build_id: str,
    env: Mapping[str, str],
    weights: Path | None,
) -> Generator[ContainerRunner]:
    """Run an image with its weights mounted read-only; nothing of it is left afterwards.

    `VYVO_WEIGHTS` is set to where the weights are inside.

    Raises:
        RunnerFailed: the engine cannot start it.
    """
    name = check_container_name(build_id)
    _remove(client, name)
    inside = f"{_WEIGHTS}/{weights.name}" if weights else None
    volumes = {str(weights.resolve()): {"bind": inside, "mode": "ro"}} if weights else {}
    devices = (
        [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])] if host_has_gpu() else []
    )
    try:
        container = cast("Any", client.containers).create(
            image,
            name=name,
            labels={"vyvo.build": build_id},
            environment={**env, **({"VYVO_WEIGHTS": inside} if inside else {})},
            volumes=volumes,
            ports={_PORT: ("127.0.0.1", None)},
            device_requests=devices,
            init=True,
        )
        container.start()
        workdir = str(container.attrs["Config"].get("WorkingDir") or "/src")
        runner = ContainerRunner(container, workdir.rstrip("/"))
        runner.locate()
        if not runner.url:
            # It exited at once: then it has no port, and why is told by check_runner.
            runner.url = "http://127.0.0.1:9"
    except _ENGINE_ERRORS as error:
        _remove(client, name)
        raise RunnerFailed(f"the engine could not start the runner: {_reason(error)}") from error
    try:
        yield runner
    finally:
        _remove(client, name)


def remove_container(docker_host: str | None, name: str) -> None:
    """Remove a container by name, running or not; one that is not there is no error."""
    client = engine_client(docker_host)
    try:
        _remove(client, name)
    finally:
        client.close()


def _remove(client: "docker.DockerClient", name: str) -> None:
    with suppress(docker.errors.NotFound):
        container = cast("Any", client.containers).get(name)
        with suppress(docker.errors.APIError):
            container.stop(timeout=_STOP_SECONDS)
        container.remove(force=True, v=True)


def _reason(error: Exception) -> str:
    explanation = getattr(error, "explanation", None)
    return str(explanation or error)[:400]
