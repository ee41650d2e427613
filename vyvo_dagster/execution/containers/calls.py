"""What is asked of a host's engine for the containers of steps. Blocking; each call has a time limit."""

import contextlib
import http
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from vyvo_dagster.domain.workflow.container import INPUT_FILE, OUTPUT_FILE
from vyvo_dagster.execution.routing.engines import ENGINE_ERRORS, HOLDING, Engines, Labels
from vyvo_dagster.execution.routing.hosts import DockerHost, Placement
from vyvo_dagster.execution.routing.limits import contended, limits
from vyvo_dagster.execution.routing.pulls import Pulls
from vyvo_dagster.workflows.json_text import stored_json

__all__ = ["Ended", "Refused", "StepContainers", "Waits", "Wanted", "running"]

_STEP_LABEL: Final = "vyvo/workflow_step"
_OUTPUT_BYTES: Final = 1 << 20
_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 1500


@dataclass(frozen=True, slots=True)
class Wanted:
    """A container to make.

    Args:
        run_id: Dagster's, by which a sweep tells that it is over.
        login: of the image's registry, `username` and `password`.
    """

    name: str
    run_id: str
    key: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    input: Any
    placement: Placement
    login: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """It is not started yet; with `elsewhere` another host may have it."""

    reason: str
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """It will not be started, as the engine says."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How one ended. `fault` says why there is no output; `tail` is the end of what it printed."""

    status: int
    out_of_memory: bool
    output: Any = None
    fault: str | None = None
    tail: str = ""


class StepContainers:
    """The containers of steps on hosts' engines. Methods raise one of ENGINE_ERRORS.

    Args:
        network: of the containers; None is the engine's own.
    """

    def __init__(self, engines: Engines, network: str | None) -> None:
        self._engines = engines
        self._network = network
        self._pulls = Pulls(engines)

    def states(self, host: DockerHost) -> dict[str, str]:
        """Name → state of every container of a step on the host."""
        # Of each only what the list tells: this is asked often.
        found: list[dict[str, Any]] = self._engines.client(host).api.containers(
            all=True, filters={"label": _STEP_LABEL}
        )
        return {c["Labels"][_STEP_LABEL]: c["State"] for c in found}

    def start(self, wanted: Wanted) -> Waits | Refused | None:
        """Make and start a container that was not started before; None where it runs."""
        host = wanted.placement.host
        try:
            return self._start(self._engines.client(host), host, wanted)
        except ImageNotFound:
            return self._pull(host, wanted)
        except APIError as error:
            if error.status_code == http.HTTPStatus.CONFLICT:
                # One of its name is being made or removed, for a request of before.
                return Waits(f"engine of {host.name}: {_said(error)}")
            self.remove(host, wanted.name)
            return Refused(_said(error))

    def ended(self, host: DockerHost, name: str) -> Ended:
        """What became of a container that runs no more."""
        container = self._engines.client(host).containers.get(name)
        state: Mapping[str, Any] = container.attrs["State"]
        status, killed = int(state.get("ExitCode") or 0), bool(state.get("OOMKilled"))
        if status or killed:
            tail = container.logs(tail=_TAIL_LINES)[-_TAIL_BYTES:].decode(errors="replace")
            return Ended(status, killed, tail=tail.replace("\0", "").strip())
        output, fault = _output(container)
        return Ended(status, killed, output, fault)

    def signal(self, host: DockerHost, name: str, signal: str) -> None:
        """Send a signal to a container; one that has ended meanwhile is no error."""
        try:
            self._engines.client(host).containers.get(name).kill(signal)
        except APIError as error:
            if error.status_code not in {http.HTTPStatus.CONFLICT, http.HTTPStatus.NOT_FOUND}:
                raise

    def remove(self, host: DockerHost, name: str) -> None:
        """Remove a container, whatever it does; one that is gone already is no error."""
        with contextlib.suppress(NotFound):
            self._engines.client(host).containers.get(name).remove(force=True, v=True)

    def _start(self, client: Any, host: DockerHost, wanted: Wanted) -> Waits | None:
        with contextlib.suppress(NotFound):
            left = client.containers.get(wanted.name)
            if left.status != "created":
                return None
            # Its input may never have reached it.
            left.remove(force=True)
        placement = wanted.placement
        container = client.containers.create(
            wanted.image, name=wanted.name, command=list(wanted.command) or None,
            environment=dict(wanted.env), network=self._network, init=True, detach=True,
            labels={
                _STEP_LABEL: wanted.name, Labels.RUN: wanted.run_id, Labels.STEP: wanted.key,
                Labels.DEVICES: ",".join(placement.devices),
            },
            **limits(placement),
        )  # fmt: skip
        if contended(self._engines, host, wanted.name, placement.devices):
            container.remove(force=True)
            return Waits(f"{host.name} has no GPU free", elsewhere=True)
        container.put_archive("/", _archive(wanted.input))
        container.start()
        return None

    def _pull(self, host: DockerHost, wanted: Wanted) -> Waits | Refused | None:
        try:
            ready = self._pulls.ready(host, wanted.image, wanted.login)
        except DockerException as error:
            return Refused(f"{wanted.image} cannot be pulled: {_said(error)}")
        except ENGINE_ERRORS as error:
            return Waits(f"engine of {host.name}: {error}")
        # Where it has just been pulled, the next turn starts it.
        return Waits(f"{host.name} {'has pulled' if ready else 'pulls'} {wanted.image}")


def _archive(given: Any) -> bytes:
    """A tar of the folder that the container reads and writes, whoever it runs as."""
    folder, _, file = INPUT_FILE.strip("/").rpartition("/")
    text = json.dumps(given, ensure_ascii=False).encode()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o777
        tar.addfile(entry)
        entry = tarfile.TarInfo(f"{folder}/{file}")
        entry.size, entry.mode = len(text), 0o644
        tar.addfile(entry, io.BytesIO(text))
    return made.getvalue()


def _output(container: Any) -> tuple[Any, str | None]:
    """What a container has left as its output, and why that is none; null where it left nothing."""
    try:
        chunks, stat = container.get_archive(OUTPUT_FILE)
    except NotFound:
        return None, None
    with contextlib.closing(chunks):
        if stat["size"] > _OUTPUT_BYTES:
            return None, f"{OUTPUT_FILE} has more than {_OUTPUT_BYTES} bytes"
        archive = bytearray()
        for chunk in chunks:
            archive += chunk
            # A header, and what fills up the last blocks.
            if len(archive) > _OUTPUT_BYTES + (64 << 10):
                return None, f"{OUTPUT_FILE} has more than {_OUTPUT_BYTES} bytes"
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.next()
            source = tar.extractfile(member) if member is not None and member.isfile() else None
            if source is None:
                return None, f"{OUTPUT_FILE} is no file"
            return stored_json(source.read().decode()), None
    except (tarfile.TarError, ValueError, RecursionError) as error:
        return None, f"{OUTPUT_FILE} is no JSON that can be stored: {str(error)[:200]}"


def _said(error: DockerException) -> str:
    return str(getattr(error, "explanation", None) or error)


def running(state: str | None) -> bool:
    """Whether a container in this state may still run."""
    return state in HOLDING and state != "created"
