"""Removing containers that no run needs any more."""

import contextlib
import http
import logging
from collections.abc import Iterable
from typing import Any

from dagster import DagsterInstance
from docker.errors import APIError, NotFound

from vyvo_dagster.execution.routing.engines import ENGINE_ERRORS, HOLDING, Engines, Labels
from vyvo_dagster.execution.routing.hosts import DockerHost

__all__ = ["remove_containers", "sweep_finished"]

_log = logging.getLogger(__name__)


def remove_containers(
    engines: Engines,
    hosts: Iterable[DockerHost],
    label: str,
    grace_seconds: float,
    *,
    stop: bool,
) -> list[str]:
    """Remove all containers with the label; returns what could not be done, one line a host.

    A container that runs may end by itself for `grace_seconds`, with `stop` is told to, and is then
    killed. All hosts at once, and on each host all containers.
    """

    def of(host: DockerHost) -> None:
        found = engines.containers(host, label)
        running = [c for c in found if c.status in HOLDING]
        for container in running if stop else ():
            with contextlib.suppress(*ENGINE_ERRORS):
                container.kill("SIGTERM")
        for container, wait in zip(running, _shares(grace_seconds, len(running)), strict=True):
            # The first uses up the grace; those after it have had it meanwhile.
            with contextlib.suppress(*ENGINE_ERRORS):
                container.wait(timeout=wait)
        for container in found:
            _remove(container)

    answers = engines.each(hosts, of)
    return [f"{h.name}: {error}" for h, error in answers.items() if isinstance(error, Exception)]


def sweep_finished(engines: Engines, host: DockerHost, instance: DagsterInstance) -> list[str]:
    """Remove the host's containers of runs that have ended; returns their names.

    A run that the instance does not know may be another instance's: its containers stay.
    """
    removed: list[str] = []
    ended: dict[str, bool] = {}
    for container in engines.containers(host, Labels.RUN):
        run_id = container.labels[Labels.RUN]
        if run_id not in ended:
            run = instance.get_run_by_id(run_id)
            ended[run_id] = run is not None and run.is_finished
        if ended[run_id]:
            _log.info("removing %s on %s: its run %s has ended", container.name, host.name, run_id)
            _remove(container)
            removed.append(str(container.name))
    return removed


def _remove(container: Any) -> None:
    try:
        container.remove(force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        # Another sweep is removing it at this moment.
        if error.status_code != http.HTTPStatus.CONFLICT:
            raise


def _shares(grace_seconds: float, count: int) -> list[float]:
    """One wait of the whole grace, then only looks."""
    return [max(grace_seconds, 0.1), *[0.1] * (count - 1)][:count]
