"""Runners as containers: images of the buildx backend, and any other Cog image.

Network: an object store on this host's loopback is only reached from the host's own network, so
then the container joins it, and the host's pids with it, and its server is told to listen on a
loopback port of our choice.
Otherwise it has a bridge of its own and its port is published on loopback alone. Either way nobody
but this host reaches a runner.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount

from vyvo_dagster.agent.cog_client import OUTPUT_BYTES, CogClient
from vyvo_dagster.agent.runners.base import Access, Runner, RunnerSpec, log_text
from vyvo_dagster.agent.runners.engine import Engine
from vyvo_dagster.agent.runners.process import free_port
from vyvo_dagster.agent.runners.remains import Remains
from vyvo_dagster.errors import RunnerFailed, Unavailable
from vyvo_dagster.protocol.node import RegistryAccess

__all__ = ["ContainerLauncher", "ContainerRunner"]

_log = logging.getLogger(__name__)

NODE_LABEL: Final = "vyvo.node"
ASSIGNMENT_LABEL: Final = "vyvo.assignment"
_SPEC_LABEL: Final = "vyvo.spec"
_PORT_LABEL: Final = "vyvo.port"
_HOST: Final = "127.0.0.1"
_CONTAINER_PORT: Final = 5000
_WEIGHTS: Final = "/weights"
_POLL_SECONDS: Final = 1.0
_PUBLISH_SECONDS: Final = 5.0
_TAIL_LINES: Final = 40
_PIDS: Final = 4096
_SHM_BYTES: Final = 1 << 30
_COG_SERVER: Final = "cog.server.http"


class ContainerLauncher:
    """Starts images on one engine, one container per assignment, named after it.

    Args:
        engine: the engine.
        node_id: label by which this node's containers are found again.
    """

    def __init__(self, engine: Engine, node_id: UUID) -> None:
        self._engine = engine
        self._node_id = node_id
        self._remains = Remains(engine)
        self._leaving = asyncio.Event()

    def accepts(self, image: str) -> bool:
        """Whether `image` is an image reference."""
        return "://" not in image

    async def prepare(self, image: str, access: Access | None = None) -> None:
        """Pull the image unless it is here; a login goes with this one pull and is kept nowhere."""
        images = self._engine.client.images
        try:
            await self._engine.call(images.get, image)
        except ImageNotFound:
            _log.info("pulling %s", image)
            login = None if access is None else await access()
            try:
                await self._engine.pull(image, None if login is None else _auth(login))
            except (ImageNotFound, NotFound) as error:
                raise RunnerFailed(f"no image {image} at its registry: {_said(error)}") from error
            except DockerException as error:
                raise Unavailable(f"{image} cannot be pulled: {_said(error)}") from error
        except DockerException as error:
            raise RunnerFailed(f"the engine cannot use image {image}: {_said(error)}") from error

    async def launch(self, spec: RunnerSpec) -> Runner:
        """Start the container, or adopt the one that an earlier agent left and that still serves."""
        containers = self._engine.client.containers
        name = f"vyvo-runner-{spec.assignment_id}"
        self._remains.keep(name)
        try:
            with contextlib.suppress(NotFound):
                left: Any = await self._engine.call(containers.get, name)
                if adopted := await self._adopted(left, spec):
                    return adopted
                await self._engine.call(left.remove, force=True)
            image: Any = await self._engine.call(self._engine.client.images.get, spec.image)
            options = _options(spec, image.attrs["Config"], self._node_id)
            try:
                container: Any = await self._engine.call(
                    containers.create, spec.image, name=name, **options
                )
            except Unavailable:
                # Asked for, and not answered: it may come into being yet.
                self._remains.later(name)
                raise
            runner = self._runner(container, spec)
            try:
                await self._engine.call(container.start)
                await runner.locate()
            except BaseException:
                await asyncio.shield(runner.stop(0))
                raise
        except DockerException as error:
            if isinstance(error, APIError) and error.status_code == HTTPStatus.CONFLICT:
                # A removal under way, or a container of this name that came into being late.
                raise Unavailable(f"the engine is not ready for {name}: {_said(error)}") from error
            raise RunnerFailed(f"the engine cannot run {spec.image}: {_said(error)}") from error
        return runner

    async def sweep(self, keep: Iterable[UUID]) -> None:
        """Remove this node's containers, but those of the assignments `keep`."""
        kept = {str(assignment_id) for assignment_id in keep}
        found: list[Any] = await self._engine.call(
            self._engine.client.containers.list,
            all=True,
            filters={"label": f"{NODE_LABEL}={self._node_id}"},
            ignore_removed=True,
        )
        for container in found:
            if container.labels.get(ASSIGNMENT_LABEL) not in kept:
                _log.info("removing container %s of an earlier start", container.name)
                await self._remains.remove(container.id)

    def leave(self) -> None:
        """Containers that run are left for the next start of the agent to adopt."""
        self._leaving.set()

    async def aclose(self) -> None:
        """Ask for no more removals. The engine belongs to who opened it."""
        await self._remains.aclose()

    def _runner(self, container: Any, spec: RunnerSpec) -> "ContainerRunner":
        return ContainerRunner(
            self._engine, self._remains, self._leaving, container, spec.memory_bytes
        )

    async def _adopted(self, container: Any, spec: RunnerSpec) -> "ContainerRunner | None":
        labels = container.labels
        same = labels.get(_SPEC_LABEL) == spec.digest and labels.get(NODE_LABEL) == str(
            self._node_id
        )
        if not same or container.status != "running":
            return None
        runner = self._runner(container, spec)
        try:
            await runner.locate()
            if spec.port is not None and runner.url != f"http://{_HOST}:{spec.port}":
                return None
            async with runner.connect() as client:
                serves = (await client.health()).serves
        except (RunnerFailed, Unavailable):
            return None
        if serves:
            _log.info("adopted container %s of an earlier start", container.name)
        return runner if serves else None


class ContainerRunner:
    """A started container. `url` is known after `locate`."""

    def __init__(
        self,
        engine: Engine,
        remains: Remains,
        leaving: asyncio.Event,
        container: Any,
        memory_bytes: int,
    ) -> None:
        self._engine = engine
        self._remains = remains
        self._leaving = leaving
        self._container = container
        self._memory_bytes = memory_bytes
        self.url = ""

    async def locate(self) -> None:
        """Find the loopback port: ours with host networking, else the one the engine published."""
        if port := self._container.labels.get(_PORT_LABEL):
            self.url = f"http://{_HOST}:{int(port)}"
            return
        deadline = time.monotonic() + _PUBLISH_SECONDS
        while True:
            await self._engine.call(self._container.reload)
            ports: Mapping[str, Any] = self._container.attrs["NetworkSettings"]["Ports"] or {}
            if bindings := ports.get(f"{_CONTAINER_PORT}/tcp"):
                self.url = f"http://{_HOST}:{int(bindings[0]['HostPort'])}"
                return
            if self._container.status not in {"created", "running"} or time.monotonic() > deadline:
                raise RunnerFailed(
                    f"the container ended or published no port: {await self.log_tail() or 'no output'}"
                )
            await asyncio.sleep(0.05)

    def connect(self, output_bytes: int = OUTPUT_BYTES) -> CogClient:
        """A client of its Cog server."""
        return CogClient(self.url, output_bytes)

    async def wait(self) -> str:
        """Return once the container has ended. An engine that is away says nothing about that."""
        while True:
            try:
                await self._engine.call(self._container.reload)
            except NotFound:
                return "the container was removed"
            except (DockerException, Unavailable) as error:
                _log.debug("engine: %s", error)
            else:
                if self._container.status not in {"created", "running", "paused", "restarting"}:
                    return self._ended()
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, SIGKILL after the grace, and remove; an engine that is away is asked again later."""
        if self._leaving.is_set():
            return
        with contextlib.suppress(DockerException, Unavailable):
            if grace_seconds > 0:
                await self._engine.call(self._container.stop, timeout=max(round(grace_seconds), 1))
        await self._remains.remove(self._container.id)

    async def log_tail(self) -> str:
        """The end of the container's log."""
        try:
            return log_text(await self._engine.call(self._container.logs, tail=_TAIL_LINES))
        except (DockerException, Unavailable):
            return ""

    def _ended(self) -> str:
        state: Mapping[str, Any] = self._container.attrs["State"]
        if state.get("OOMKilled"):
            return f"the runner used more memory than its {self._memory_bytes} bytes and was killed"
        return f"the container exited with code {state.get('ExitCode')}"


def _options(spec: RunnerSpec, config: Mapping[str, Any], node_id: UUID) -> dict[str, Any]:
    env = dict(spec.env)
    labels = {
        NODE_LABEL: str(node_id),
        ASSIGNMENT_LABEL: str(spec.assignment_id),
        _SPEC_LABEL: spec.digest,
    }
    options: dict[str, Any] = {
        # Files in an image may belong to a user that is not the one it runs as; nothing else of
        # a root's powers is of use to a predictor.
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": _PIDS,
        "init": not config.get("Entrypoint"),
        "log_config": LogConfig(type="json-file", config={"max-size": "16m", "max-file": "2"}),
    }
    if spec.loopback_uploads:
        port = spec.port or free_port()
        labels[_PORT_LABEL] = str(port)
        options["network_mode"] = "host"
        # Cog names its abstract sockets after the server's pid, and those names belong to the
        # network: two servers that are each pid 1 could not stand side by side on the host's.
        options |= {"pid_mode": "host", "init": False}
        command = [str(part) for part in config.get("Cmd") or []]
        if any(part.endswith(_COG_SERVER) for part in command):
            # The last --host wins: in the host's network the image's 0.0.0.0 would be everyone.
            options["command"] = [*command, "--host", _HOST]
    else:
        port = _CONTAINER_PORT
        options["ports"] = {f"{port}/tcp": (_HOST, spec.port)}
    env["PORT"] = str(port)
    if spec.weights is not None:
        inside = f"{_WEIGHTS}/{spec.weights.name}"
        env["VYVO_WEIGHTS"] = inside
        options["mounts"] = [
            Mount(inside, str(spec.weights.absolute()), type="bind", read_only=True)
        ]
    if spec.memory_bytes > 0:
        options["mem_limit"] = spec.memory_bytes
    if spec.gpu_uuid is not None:
        options["device_requests"] = [
            DeviceRequest(device_ids=[spec.gpu_uuid], capabilities=[["gpu"]])
        ]
        # Workers of torch pass tensors by shared memory; the engine's 64 MiB end in a bus error.
        options["shm_size"] = _SHM_BYTES
    return {**options, "environment": env, "labels": labels}


def _auth(login: RegistryAccess) -> dict[str, str]:
    """The engine API's AuthConfig."""
    if login.token is not None:
        return {"registrytoken": login.token}
    return {"username": login.username or "", "password": login.password or ""}


def _said(error: Exception) -> str:
    explanation = getattr(error, "explanation", None)
    return " ".join(str(explanation or error).split())[:500]
