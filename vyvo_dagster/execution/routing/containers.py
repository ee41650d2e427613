"""Steps as containers of the hosts that a resolver chooses: dagster-docker's step handler, widened.

The name of a container is derived from run, step and attempt, so that who launches a step again
finds what was launched before. Its labels say whose it is, so that a sweep finds what was lost.
"""

import contextlib
import http
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dagster import DagsterEvent
from dagster._core.events import EngineEventData
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandlerContext
from dagster._core.utils import parse_env_var
from dagster_docker.container_context import DockerContainerContext
from dagster_docker.docker_executor import DockerStepHandler
from dagster_docker.utils import validate_docker_image
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from typing_extensions import override

from vyvo_dagster.execution.routing.engines import ENGINE_ERRORS, HOLDING, Engines, Labels
from vyvo_dagster.execution.routing.hosts import DockerHost, HostResolver, Placement, Unplaced
from vyvo_dagster.execution.routing.limits import contended, limits
from vyvo_dagster.execution.routing.local import step_key
from vyvo_dagster.execution.routing.pulls import Pulls
from vyvo_dagster.execution.routing.sweep import remove_containers, sweep_finished
from vyvo_dagster.execution.routing.waits import Waits

__all__ = ["HostStepHandler"]

_log = logging.getLogger(__name__)

_UNREACHABLE_SECONDS: Final = 120.0
_SILENT_SECONDS: Final = 60.0
_TAIL_LINES: Final = 20


class HostStepHandler(DockerStepHandler):
    """Runs each step in a container on the host that the resolver chooses.

    A step for which there is no host waits, and is placed at one of the next health checks.

    Args:
        resolver: chooses.
        engines: reaches the hosts.
        image: where the code location names none.
        container_context: network, environment and more, of every container.
        entry_point: the command of Dagster in the image.
    """

    def __init__(
        self,
        resolver: HostResolver,
        engines: Engines,
        image: str | None,
        container_context: DockerContainerContext,
        entry_point: Sequence[str],
    ) -> None:
        super().__init__(image, container_context)
        self._resolver = resolver
        self._engines = engines
        self._entry_point = list(entry_point)
        self._placements: dict[str, Placement | DockerHost] = {}
        self._asked: dict[str, Placement] = {}
        self._pulls = Pulls(engines)
        self._pulling: dict[str, Placement] = {}
        self._waits = Waits()
        self._failed: dict[str, str] = {}
        self._since: dict[str, float] = {}

    @property
    @override
    def name(self) -> str:
        return "HostStepHandler"

    @override
    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        name, key = self._get_container_name(step_handler_context), step_key(step_handler_context)
        try:
            outcome = self._launched(step_handler_context, name)
        except ValueError as error:
            self._failed[name] = str(error)
            return
        if isinstance(outcome, Placement):
            self._waits.end(name)
        elif self._waits.note(name, outcome.reason):
            yield DagsterEvent.engine_event(
                step_handler_context.get_step_context(key),
                f'Step "{key}" waits for a host: {outcome.reason}.',
                EngineEventData(),
            )

    @override
    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        name = self._get_container_name(step_handler_context)
        if name in self._waits:
            for _ in self.launch_step(step_handler_context):
                pass
        if (reason := self._failed.pop(name, None)) is not None:
            self._waits.end(name)
            return CheckStepHealthResult.unhealthy(reason)
        if name in self._waits:
            return CheckStepHealthResult.healthy()
        host = self._host(name)
        if host is None:
            return CheckStepHealthResult.unhealthy(f"no host has a container {name}")
        try:
            container = self._engines.client(host).containers.get(name)
        except NotFound:
            return CheckStepHealthResult.unhealthy(f"container {name} on {host.name} was removed")
        except ENGINE_ERRORS as error:
            self._engines.forget(host)
            if self._for_long(f"away {name}", _UNREACHABLE_SECONDS):
                return CheckStepHealthResult.unhealthy(f"engine of {host.name}: {error}")
            return CheckStepHealthResult.healthy()
        self._since.pop(f"away {name}", None)
        return self._judged(host, name, container)

    @override
    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        name, key = self._get_container_name(step_handler_context), step_key(step_handler_context)
        self._waits.end(name)
        host = self._host(name)
        if host is None:
            return
        yield DagsterEvent.engine_event(
            step_handler_context.get_step_context(key),
            f"Stopping container {name} on {host.name}.",
            EngineEventData(),
        )
        # Told, not waited for: all steps have the same grace, which `close` gives them.
        with contextlib.suppress(*ENGINE_ERRORS):
            self._engines.client(host).containers.get(name).kill("SIGTERM")

    def close(self, run_id: str, grace_seconds: float, *, stop: bool) -> None:
        """Leave no container of the run on the hosts that were used.

        One that still runs may end by itself within the grace; with `stop` it is told to.

        Raises nothing: what an engine that is away keeps is for the sweep of all hosts.
        """
        hosts = {p.host if isinstance(p, Placement) else p for p in self._placements.values()}
        hosts |= {placement.host for placement in self._asked.values()}
        label = f"{Labels.RUN}={run_id}"
        for line in remove_containers(self._engines, hosts, label, grace_seconds, stop=stop):
            _log.warning("containers of run %s may be left, for a sweep: %s", run_id, line)
        self._engines.close()

    def _launched(self, context: StepHandlerContext, name: str) -> Placement | Unplaced:
        """The container started, or why that has to wait.

        Raises:
            ValueError: it will never be started; the message is for a person.
        """
        if (asked := self._asked.get(name)) is not None:
            found = self._found(name, asked)
            if found is not None:
                return found
        outcome = self._pulling.get(name)
        if outcome is None:
            tags = context.step_tags[step_key(context)]
            hosts = self._resolver.hosts(tags)
            outcome = self._resolver.place(tags, self._engines.occupancy(hosts))
        if isinstance(outcome, Unplaced):
            return outcome
        try:
            return self._start(context, name, outcome)
        except APIError as error:
            if error.status_code == http.HTTPStatus.CONFLICT:
                # One of its name is being made, for a request of before, or removed.
                return Unplaced(f"engine of {outcome.host.name}: {_said(error)}")
            self._pulling.pop(name, None)
            self._asked.pop(name, None)
            self._remove(outcome.host, name)
            raise ValueError(f"the engine refuses its container: {_said(error)}") from error
        except ENGINE_ERRORS as error:
            self._pulling.pop(name, None)
            self._engines.forget(outcome.host)
            return Unplaced(f"engine of {outcome.host.name}: {error}")

    def _found(self, name: str, asked: Placement) -> Placement | Unplaced | None:
        """What has become of a container whose engine did not answer when it was asked for it.

        The engine may have made and started it all the same. None: it did not, or it made it only,
        and it is gone; the step may be placed anew.

        Raises:
            ValueError: the engine has been away for long, and may have it.
        """
        host, away = asked.host, f"asked {name}"
        try:
            container = self._engines.client(host).containers.get(name)
            if container.status == "created":
                container.remove(force=True)
                container = None
        except NotFound:
            container = None
        except ENGINE_ERRORS as error:
            self._engines.forget(host)
            said = f"engine of {host.name}, which may have its container: {error}"
            if self._for_long(away, _UNREACHABLE_SECONDS):
                self._asked.pop(name, None)
                self._since.pop(away, None)
                # Where the run ends, and the sweep of all hosts, look there again.
                self._placements[name] = asked
                raise ValueError(said) from error
            return Unplaced(said)
        self._asked.pop(name, None)
        self._since.pop(away, None)
        if container is None:
            return None
        self._placements[name] = asked
        return asked

    def _start(
        self, context: StepHandlerContext, name: str, placement: Placement
    ) -> Placement | Unplaced:
        key, host = step_key(context), placement.host
        client = self._engines.client(host)
        image = self._get_image(context)
        validate_docker_image(image)
        settings = self._get_docker_container_context(context)
        if name in self._pulling:
            if not self._pulls.ready(host, image, settings.registry):
                return _pulls(image, host)
            del self._pulling[name]
        sweep_finished(self._engines, host, context.instance)
        with contextlib.suppress(NotFound):
            left = client.containers.get(name)
            if left.status == "running":
                self._placements[name] = placement
                return placement
            left.remove(force=True)
        self._asked[name] = placement
        try:
            container = self._create(client, settings, image, context, name, placement)
        except ImageNotFound:
            del self._asked[name]
            self._pulling[name] = placement
            self._pulls.ready(host, image, settings.registry)
            return _pulls(image, host)
        if contended(self._engines, host, name, placement.devices):
            container.remove(force=True)
            del self._asked[name]
            return Unplaced(f"{host.name} has no GPU free")
        for network in settings.networks[1:]:
            client.networks.get(network).connect(container)
        DagsterEvent.step_worker_starting(
            context.get_step_context(key),
            message=f'Launching step "{key}" in a container on {host.name}.',
            metadata={
                "Docker container id": container.id,
                "Host": host.name,
                "Image": image,
                "GPUs": ", ".join(placement.devices),
            },
        )
        container.start()
        self._placements[name] = placement
        del self._asked[name]
        return placement

    def _create(
        self,
        client: Any,
        settings: DockerContainerContext,
        image: str,
        context: StepHandlerContext,
        name: str,
        placement: Placement,
    ) -> Any:
        key, args = step_key(context), context.execute_step_args
        env = dict(parse_env_var(variable) for variable in settings.env_vars)
        env |= {"DAGSTER_RUN_JOB_NAME": context.dagster_run.job_name, "DAGSTER_RUN_STEP_KEY": key}
        command = list(args.get_command_args())
        extra = dict(settings.container_kwargs)
        extra.pop("stop_timeout", None)
        labels = {
            **extra.pop("labels", {}),
            Labels.RUN: args.run_id,
            Labels.STEP: key,
            Labels.DEVICES: ",".join(placement.devices),
        }
        own = limits(placement)
        volumes = {**extra.pop("volumes", {}), **own.pop("volumes", {})}
        return client.containers.create(
            image,
            name=name,
            # What stands before `api` is the interpreter of this machine, not the image's.
            command=[*self._entry_point, *command[command.index("api") :]],
            environment=env,
            labels=labels,
            detach=True,
            network=settings.networks[0] if settings.networks else None,
            volumes=volumes or None,
            **{"init": True, **extra, **own},
        )

    def _host(self, name: str) -> DockerHost | None:
        """Where the container is; one of before this process is looked for on every host."""
        if name not in self._placements:

            def has(host: DockerHost) -> bool:
                try:
                    self._engines.client(host).containers.get(name)
                except NotFound:
                    return False
                return True

            found = self._engines.each(self._resolver.hosts(), has)
            for host in (host for host, answer in found.items() if answer is True):
                self._placements[name] = host
        placed = self._placements.get(name)
        return placed.host if isinstance(placed, Placement) else placed

    def _judged(self, host: DockerHost, name: str, container: Any) -> CheckStepHealthResult:
        if container.status in HOLDING:
            return CheckStepHealthResult.healthy()
        state: Mapping[str, Any] = container.attrs["State"]
        if state.get("OOMKilled"):
            reason = "was killed for using more memory than its limit"
        elif code := state.get("ExitCode"):
            reason = f"exited with code {code}"
        elif self._for_long(f"silent {name}", _SILENT_SECONDS):
            reason = "ended without reporting the end of its step"
        else:
            return CheckStepHealthResult.healthy()
        tail = ""
        with contextlib.suppress(*ENGINE_ERRORS):
            tail = container.logs(tail=_TAIL_LINES).decode(errors="replace")[-4000:]
        return CheckStepHealthResult.unhealthy(f"container {name} on {host.name} {reason}\n{tail}")

    def _for_long(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        return now - self._since.setdefault(what, now) >= seconds

    def _remove(self, host: DockerHost, name: str) -> None:
        with contextlib.suppress(*ENGINE_ERRORS):
            self._engines.client(host).containers.get(name).remove(force=True)


def _pulls(image: str, host: DockerHost) -> Unplaced:
    return Unplaced(f"{host.name} pulls {image}")


def _said(error: DockerException) -> str:
    return str(getattr(error, "explanation", None) or error)
