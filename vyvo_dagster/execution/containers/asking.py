"""One round of questions to the engine of a host, about all its containers of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vyvo_dagster.execution.containers.attempt import Verb
from vyvo_dagster.execution.containers.calls import (
    Ended,
    Refused,
    StepContainers,
    Waits,
    Wanted,
    running,
)
from vyvo_dagster.execution.routing.engines import Engines
from vyvo_dagster.execution.routing.hosts import DockerHost

__all__ = ["Answer", "Asking", "Gone", "Runs"]


@dataclass(frozen=True, slots=True)
class Runs:
    """The container runs, or has run."""


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such container, or it was never started."""


Answer = Runs | Gone | Ended | Refused | Waits


class Asking:
    """Asks engines. Blocking: called in a thread."""

    def __init__(self, engines: Engines, network: str | None) -> None:
        self._engines = engines
        self._calls = StepContainers(engines, network)

    def ask(
        self, host: DockerHost, orders: Sequence[tuple[Verb, Wanted | str]]
    ) -> list[Answer | Exception]:
        """An answer to each order: what to make, or the name of what was made. Raises nothing."""
        try:
            states = self._calls.states(host)
        except Exception as error:  # noqa: BLE001 - handed back; ssh has errors of its own
            self._engines.forget(host)
            return [error] * len(orders)
        answers: list[Answer | Exception] = []
        for verb, what in orders:
            try:
                answers.append(self._act(host, verb, what, states))
            except Exception as error:  # noqa: BLE001 - the same, of one container
                answers.append(error)
        return answers

    def _act(
        self, host: DockerHost, verb: Verb, what: Wanted | str, states: Mapping[str, str]
    ) -> Answer:
        if isinstance(what, Wanted):
            # One that was started for an order of before is not started again.
            if states.get(what.name, "created") != "created":
                return Runs()
            return self._calls.start(what) or Runs()
        if verb is Verb.REMOVE:
            self._calls.remove(host, what)
            return Gone()
        state = states.get(what)
        if state is None or state == "created":
            return Gone()
        if not running(state):
            return self._calls.ended(host, what)
        if verb is not Verb.LOOK:
            self._calls.signal(host, what, "SIGTERM" if verb is Verb.TERMINATE else "SIGKILL")
        return Runs()
