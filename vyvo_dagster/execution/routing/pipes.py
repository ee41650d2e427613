"""Docker Pipes on the host that a resolver chooses: for images without Dagster, from within an op.

The op itself runs where its run does; its container has a derived name, and labels by which the
sweep finds it, as those of routed steps have.
"""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from dagster import AssetExecutionContext, OpExecutionContext, PipesMessageReader
from dagster._core.pipes.client import PipesClientCompletedInvocation
from dagster._core.pipes.context import PipesMessageHandler
from dagster._core.pipes.utils import PipesEnvContextInjector, open_pipes_session
from dagster_pipes import (
    PIPES_PROTOCOL_VERSION_FIELD,
    DagsterPipesError,
    PipesDefaultMessageWriter,
    PipesExtras,
    PipesParams,
)
from dagster_shared.serdes.utils import hash_str
from docker.errors import APIError, ImageNotFound, NotFound

from vyvo_dagster.execution.routing.engines import ENGINE_ERRORS, HOLDING, Engines, Labels
from vyvo_dagster.execution.routing.hosts import DockerHost, HostResolver, Placement, Unplaced
from vyvo_dagster.execution.routing.limits import contended, limits
from vyvo_dagster.execution.routing.pulls import pull
from vyvo_dagster.execution.routing.sweep import sweep_finished
from vyvo_dagster.execution.routing.waits import Waits

__all__ = ["HostPipesClient"]

_RETRY_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 2.0
_UNREACHABLE_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 5
_LINE_BYTES: Final = 1 << 20
_QUEUED_LINES: Final = 10_000
_STREAMS: Final = ("stdout", "stderr")

Context = OpExecutionContext | AssetExecutionContext


class _Messages(PipesMessageReader):
    """Messages among the lines that a container prints; all other lines go to the op's log."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handler: PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Generator[PipesParams]:
        self._handler = handler
        try:
            yield {PipesDefaultMessageWriter.STDIO_KEY: PipesDefaultMessageWriter.STDERR}
        finally:
            self._handler = None

    def take(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        assert self._handler is not None
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if isinstance(message, dict) and PIPES_PROTOCOL_VERSION_FIELD in message:
            self._handler.handle_message(message)  # pyright: ignore[reportArgumentType]
        elif text.strip():
            self._context.log.info("%s", text.rstrip())

    def no_messages_debug_text(self) -> str:
        return "Attempted to read messages from what the container prints."


class HostPipesClient:
    """Runs containers on the hosts of a resolver, from within ops.

    Args:
        resolver: chooses the host, for the tags of each call.
        engines: reaches the hosts.
    """

    def __init__(self, resolver: HostResolver, engines: Engines) -> None:
        self._resolver = resolver
        self._engines = engines
        self._calls = 0

    def run(
        self,
        *,
        context: Context,
        image: str,
        tags: Mapping[str, str],
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        network: str | None = None,
        extras: PipesExtras | None = None,
    ) -> PipesClientCompletedInvocation:
        """Wait for a host, run the container to its end, and remove it, however this ends.

        Raises:
            DagsterPipesError: it ended with another status than 0, or its engine went away.
            ValueError: the tags say nothing that could ever be met.
        """
        self._calls += 1
        run, attempt = context.run, getattr(context, "retry_number", 0)
        key = context.op_execution_context.get_step_execution_context().step.key
        name = f"dagster-pipes-{hash_str(run.run_id + key)}-{attempt}-{self._calls}"
        messages = _Messages(context)
        with open_pipes_session(
            context=context,
            context_injector=PipesEnvContextInjector(),
            message_reader=messages,
            extras=extras,
        ) as session:
            options = {
                "name": name,
                "command": None if command is None else list(command),
                "environment": {**(env or {}), **session.get_bootstrap_env_vars()},
                "network": network,
                "labels": {Labels.RUN: run.run_id, Labels.STEP: key},
                "init": True,
            }
            with self._container(context, image, tags, options) as (placement, container):
                context.log.info("container %s on %s", container.id, placement.host.name)
                self._follow(placement, container, messages)
        return PipesClientCompletedInvocation(session)

    @contextmanager
    def _container(
        self, context: Context, image: str, tags: Mapping[str, str], options: dict[str, Any]
    ) -> Generator[tuple[Placement, Any]]:
        """A container that was started, for as long as the block runs."""
        tried: set[DockerHost] = set()
        waits, name = Waits(), str(options["name"])
        try:
            while isinstance(found := self._try(context, image, tags, options, tried), str):
                if waits.note(name, found):
                    context.log.info("waiting for a host: %s", found)
                time.sleep(_RETRY_SECONDS)
            yield found
        finally:
            # By its name on every host that was asked: an interrupt may come at any moment.
            for host in tried:
                with contextlib.suppress(*ENGINE_ERRORS):
                    left = self._engines.client(host).containers.get(name)
                    if left.status in HOLDING:
                        left.stop(timeout=_STOP_SECONDS)
                    left.remove(force=True, v=True)

    def _try(
        self,
        context: Context,
        image: str,
        tags: Mapping[str, str],
        options: dict[str, Any],
        tried: set[DockerHost],
    ) -> tuple[Placement, Any] | str:
        """Start the container; or why that has to wait.

        Raises:
            DagsterPipesError: its engine went away when it was asked for it, and may run it.
        """
        outcome = self._resolver.place(tags, self._engines.occupancy(self._resolver.hosts(tags)))
        if isinstance(outcome, Unplaced):
            return outcome.reason
        host = outcome.host
        tried.add(host)
        try:
            container = self._create(context, image, outcome, options)
        except APIError:
            raise  # The engine answers, and refuses.
        except ENGINE_ERRORS as error:
            # At most made, never started: it is removed by its name.
            self._engines.forget(host)
            return f"engine of {host.name}: {error}"
        if container is None:
            return f"{host.name} has no GPU free"
        try:
            container.start()
        except APIError:
            raise
        except ENGINE_ERRORS as error:
            self._engines.forget(host)
            container = self._begun(host, str(options["name"]), error)
        return outcome, container

    def _begun(self, host: DockerHost, name: str, why: Exception) -> Any:
        """A container whose engine did not answer when it was told to start it.

        It may run; so it is looked for and never started elsewhere.

        Raises:
            DagsterPipesError: the engine stays away.
        """
        deadline = time.monotonic() + _UNREACHABLE_SECONDS
        while True:
            try:
                container = self._engines.client(host).containers.get(name)
                if container.status == "created":
                    container.start()
                    container.reload()
            except NotFound as error:
                raise DagsterPipesError(f"container {name} was removed") from error
            except ENGINE_ERRORS as error:
                self._engines.forget(host)
                why = error
            else:
                return container
            if time.monotonic() > deadline:
                raise DagsterPipesError(f"engine of {host.name}: {why}") from why
            time.sleep(_RETRY_SECONDS)

    def _create(
        self, context: Context, image: str, placement: Placement, options: dict[str, Any]
    ) -> Any:
        """The container, not started; None where another took its GPU meanwhile."""
        host = placement.host
        client = self._engines.client(host)
        sweep_finished(self._engines, host, context.instance)
        with contextlib.suppress(NotFound):
            client.containers.get(options["name"]).remove(force=True)
        labels = {**options["labels"], Labels.DEVICES: ",".join(placement.devices)}
        wanted = {**options, "labels": labels, **limits(placement)}
        try:
            container = client.containers.create(image, **wanted)
        except ImageNotFound:
            pull(self._engines, host, image, None)
            container = client.containers.create(image, **wanted)
        if contended(self._engines, host, options["name"], placement.devices):
            container.remove(force=True)
            return None
        return container

    def _follow(self, placement: Placement, container: Any, messages: _Messages) -> None:
        lines, closed = queue.Queue[bytes | None](_QUEUED_LINES), threading.Event()
        for stream in _STREAMS:
            threading.Thread(
                target=_read,
                args=(container, stream, lines, closed),
                name=f"{container.name}-{stream}",
                daemon=True,
            ).start()
        try:
            self._take(placement, container, lines, messages)
        finally:
            closed.set()
        state: Mapping[str, Any] = container.attrs["State"]
        if state.get("OOMKilled"):
            raise DagsterPipesError(f"it used more memory than {placement.memory_bytes} bytes")
        if state["ExitCode"] != 0:
            raise DagsterPipesError(f"container ended with status {state['ExitCode']}")

    def _take(
        self,
        placement: Placement,
        container: Any,
        lines: "queue.Queue[bytes | None]",
        messages: _Messages,
    ) -> None:
        """Hand on what the container prints, until it has ended."""
        away: float | None = None
        looked = time.monotonic()
        ended = 0
        # The streams may end before it does, as with a connection that is cut: then it is looked at.
        while ended < len(_STREAMS) or container.status in HOLDING:
            try:
                line = lines.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                pass
            else:
                if line is not None:
                    messages.take(line)
                ended += line is None
            if ended < len(_STREAMS) and time.monotonic() - looked < _LOOK_SECONDS:
                continue
            looked = time.monotonic()
            try:
                container.reload()
                away = None
            except NotFound as error:
                raise DagsterPipesError(f"container {container.name} was removed") from error
            except ENGINE_ERRORS as error:
                away = away or looked
                if looked - away > _UNREACHABLE_SECONDS:
                    raise DagsterPipesError(f"engine of {placement.host.name}: {error}") from error


def _read(
    container: Any,
    stream: str,
    lines: "queue.Queue[bytes | None]",
    closed: threading.Event,
) -> None:
    """Put each line of one of the container's streams, from its first to its last, and then None.

    One stream apart from the other, as the engine cuts long lines and would mix their pieces.
    """

    def put(line: bytes | None) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                lines.put(line, timeout=0.5)
                return

    rest = b""
    # When the engine goes away, who takes the lines looks at the container itself.
    with contextlib.suppress(*ENGINE_ERRORS):
        only = {name: name == stream for name in _STREAMS}
        for data in container.logs(stream=True, follow=True, **only):
            *whole, rest = (rest + data).split(b"\n")
            if len(rest) > _LINE_BYTES:
                whole, rest = [*whole, rest], b""
            for line in whole:
                put(line)
    put(rest)
    put(None)
