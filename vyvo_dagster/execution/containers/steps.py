"""The containers of steps under way: placed, started, looked after and removed, on any number of hosts.

No thread and no task waits for a container. Each host that has some is asked for the state of all of
them together, a few times a second, in a thread of its own for as long as the answer takes: an
engine that does not answer holds up no other.

A container is made only once its host stands in the step's row, which only the engine that has the
run can write. So whoever takes the run over knows where to look, and no attempt runs on two hosts.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

from vyvo_dagster.domain.workflow.container import INPUT_FILE, OUTPUT_FILE
from vyvo_dagster.domain.workflow.run import Outcome, Start, Step
from vyvo_dagster.domain.workflow.state import StepState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.execution.containers.asking import Answer, Asking, Gone, Runs
from vyvo_dagster.execution.containers.attempt import ContainerAttempt, Phase, Verb
from vyvo_dagster.execution.containers.calls import Waits, Wanted
from vyvo_dagster.execution.hosts import HostEngines
from vyvo_dagster.execution.routing.engines import Engines
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy, Placement
from vyvo_dagster.execution.routing.waits import Waits as Notices
from vyvo_dagster.security.secrets import Secrets, registry_host
from vyvo_dagster.store.records import Node
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.workflows.attempts import Told
from vyvo_dagster.workflows.live import Attempt, Note

__all__ = ["ContainerSteps"]

_LOOK_SECONDS: Final = 0.5
_PLACE_SECONDS: Final = 2.0
_THREADS: Final = 16


class ContainerSteps:
    """Makes the attempts of steps with a container; implements Attempts.

    Args:
        nodes: every node that is not lost; raises Unavailable.
        env: of every container, beside what a step says.
        secrets: logins of the registries that images are pulled from.
    """

    def __init__(
        self, told: Told, *, nodes: Callable[[], Awaitable[Sequence[Node]]], hosts: HostEngines,
        engines: Engines, network: str | None, env: Mapping[str, str], secrets: Secrets,
    ) -> None:  # fmt: skip
        self._told = told
        self._nodes = nodes
        self._hosts = hosts
        self._engines = engines
        self._asking = Asking(engines, network)
        self._env = {**env, "VYVO_INPUT": INPUT_FILE, "VYVO_OUTPUT": OUTPUT_FILE}
        self._secrets = secrets
        self._live: dict[Attempt, ContainerAttempt] = {}
        self._working: set[str] = set()
        self._notices = Notices()
        self._asked = asyncio.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="step-containers")

    def begin(self, run: WorkflowRun, starts: Sequence[Start]) -> None:
        """Make attempts, or go on with those that another process has begun."""
        for start in starts:
            step, attempt = start.step, (start.step.id, start.step.attempt)
            if start.container is None or attempt in self._live:
                continue
            made = ContainerAttempt(run.id, run.dagster_run_id or str(run.id), start)
            self._live[attempt] = made
            if step.host is not None:
                self._go_on(attempt, made, step)
        self._asked.set()

    def _go_on(self, attempt: Attempt, made: ContainerAttempt, step: Step) -> None:
        assert step.host is not None
        host = self._hosts.of(step.host)
        if host is None:
            said = f"VYVO_HOSTS_ENGINES names no engine of {step.host} any more"
            self._end(attempt, made, made.failed("host_unreachable", said))
            return
        devices: Sequence[str] = (step.placement or {}).get("devices", ())
        made.placement = self._hosts.placement(host, devices, made.spec.request)
        made.phase = Phase.COMMITTED if step.started_at is None else Phase.RUNNING
        made.started_at = step.started_at

    def committed(self, steps: Iterable[Step]) -> None:
        """Go on with what stands in the rows by now."""
        for step in steps:
            for number in range(1, step.attempt + 1):
                made = self._live.get((step.id, number))
                if made is None:
                    continue
                if number < step.attempt or step.ended or step.state is StepState.PENDING:
                    self._over((step.id, number), made)
                elif made.phase is Phase.PLACED and step.placement == made.row:
                    made.phase = Phase.COMMITTED
                    self._asked.set()

    def _over(self, attempt: Attempt, made: ContainerAttempt) -> None:
        self._notices.end(made.name)
        if made.placement is None:
            del self._live[attempt]
        else:
            made.phase = Phase.OVER
            self._asked.set()

    def cancel(self, steps: Iterable[Step]) -> None:
        """Stop containers: told at first, killed ten seconds later."""
        for step in steps:
            attempt = (step.id, step.attempt)
            made = self._live.get(attempt)
            if made is None or made.stop is not None or made.phase in {Phase.ENDED, Phase.OVER}:
                continue
            made.stop = Outcome(StepState.CANCELED, None, "canceled", "the container was stopped")
            if made.phase in {Phase.WAITING, Phase.PLACED}:
                made.placement = None
                self._end(attempt, made, made.stop)
            self._asked.set()

    def leave(self, steps: Iterable[Step]) -> None:
        """Leave containers to whoever has their run; those of ended attempts are removed all the same."""
        for step in steps:
            for number in range(1, step.attempt + 1):
                made = self._live.get((step.id, number))
                if made is not None and made.phase is not Phase.OVER:
                    del self._live[step.id, number]
                    self._notices.end(made.name)

    def loops(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """One loop, which sleeps while there are no containers."""
        return {"containers": self._run()}

    async def stop(self) -> None:
        """Let go of the hosts; containers go on, and the next engine finds them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engines.close()

    def _end(self, attempt: Attempt, made: ContainerAttempt, outcome: Outcome) -> None:
        made.phase = Phase.ENDED
        self._told(made.run_id, attempt, outcome)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            placed_at = 0.0
            while True:
                wait = _PLACE_SECONDS if self._waiting() else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._asked.wait()
                self._asked.clear()
                if self._waiting():
                    await asyncio.sleep(max(placed_at + _LOOK_SECONDS - time.monotonic(), 0.0))
                    await self._place()
                    placed_at = time.monotonic()
                for made in self._live.values():
                    host = None if made.placement is None else made.placement.host
                    busy = made.phase in {Phase.COMMITTED, Phase.RUNNING, Phase.OVER}
                    if host is not None and busy and host.name not in self._working:
                        self._working.add(host.name)
                        tasks.create_task(self._work(host), name=f"containers of {host.name}")

    # Where they go

    def _waiting(self) -> list[tuple[Attempt, ContainerAttempt]]:
        return [(a, made) for a, made in self._live.items() if made.phase is Phase.WAITING]

    async def _place(self) -> None:
        """Find hosts for those that wait, the oldest first."""
        now = datetime.now(UTC)
        try:
            nodes = await self._nodes()
        except (Unavailable, TimeoutError) as error:
            for attempt, made in self._waiting():
                self._note_wait(attempt, made, f"the registry of nodes does not answer: {error}")
            return
        hosts = [host for host in map(self._hosts.of, {n.name for n in nodes}) if host is not None]
        seen = await self._in_thread(self._engines.occupancy, hosts)
        for attempt, made in self._waiting():
            found = self._hosts.choose(made.spec.request, nodes, self._held(seen))
            if isinstance(found, Placement):
                made.placement, made.phase = found, Phase.PLACED
                self._told(made.run_id, attempt, Note(made.row))
            elif made.expired(now):
                said = f"no host took it in time: {found.reason}"
                self._end(attempt, made, Outcome(StepState.EXPIRED, None, "expired", said))
            else:
                self._note_wait(attempt, made, found.reason)

    def _held(self, seen: Mapping[str, Occupancy | None]) -> dict[str, Occupancy | None]:
        """What hosts have under way, those included that are placed there and not made yet."""
        held = dict(seen)
        for made in self._live.values():
            at = made.placement
            if at is None or made.phase not in {Phase.PLACED, Phase.COMMITTED}:
                continue
            known = held.get(at.host.name)
            if known is not None:
                held[at.host.name] = Occupancy(known.devices | {*at.devices}, known.steps + 1)
        return held

    def _note_wait(self, attempt: Attempt, made: ContainerAttempt, reason: str) -> None:
        if self._notices.note(made.name, reason):
            self._told(made.run_id, attempt, Note({"waiting": reason}))

    # What becomes of them there

    async def _work(self, host: DockerHost) -> None:
        """Look after all containers of a host, for as long as there are some."""
        try:
            while True:
                now = datetime.now(UTC)
                orders = [
                    (attempt, made, verb)
                    for attempt, made in self._live.items()
                    if made.placement is not None and made.placement.host == host
                    and (verb := made.verb(now)) is not None
                ]  # fmt: skip
                if not orders:
                    break
                wanted = [
                    (verb, await self._wanted(made) if verb is Verb.START else made.name)
                    for _, made, verb in orders
                ]
                answers = await self._in_thread(self._asking.ask, host, wanted)
                for (attempt, made, verb), answer in zip(orders, answers, strict=True):
                    if self._live.get(attempt) is made:
                        self._take(attempt, made, verb, answer)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._working.discard(host.name)

    async def _wanted(self, made: ContainerAttempt) -> Wanted:
        assert made.placement is not None
        login = None
        with contextlib.suppress(Unavailable):
            found = await self._secrets.registry_login(registry_host(made.spec.image))
            if found is not None:
                login = {"username": found.username, "password": found.password}
        step = made.start.step
        return Wanted(
            name=made.name, run_id=made.dagster_run_id, key=step.key, image=made.spec.image,
            command=made.spec.command, env={**made.spec.env, **self._env}, input=made.start.input,
            placement=made.placement, login=login,
        )  # fmt: skip

    def _take(
        self, attempt: Attempt, made: ContainerAttempt, verb: Verb, answer: Answer | Exception
    ) -> None:
        assert made.placement is not None
        host = made.placement.host
        if isinstance(answer, Exception):
            if not made.away(answer):
                return
            # Whatever is left there is for the sweep of all hosts, once the run is over.
            if verb is Verb.REMOVE:
                del self._live[attempt]
                return
            said = f"the engine of {host.name} gives no answer: {answer}"
            made.placement = None
            self._end(attempt, made, made.stop or made.failed("host_unreachable", said))
            return
        made.away_since = None
        if verb is Verb.REMOVE:
            del self._live[attempt]
        elif isinstance(answer, Runs):
            if made.phase is Phase.COMMITTED and made.stop is None:
                made.phase = Phase.RUNNING
                made.started_at = made.started_at or datetime.now(UTC)
                self._notices.end(made.name)
                self._told(made.run_id, attempt, Note(made.row, made.started_at))
        elif isinstance(answer, Waits):
            if answer.elsewhere and made.stop is None:
                made.placement, made.phase = None, Phase.WAITING
                self._asked.set()
                self._note_wait(attempt, made, answer.reason)
            elif self._notices.note(made.name, answer.reason):
                self._told(made.run_id, attempt, Note({**made.row, "waiting": answer.reason}))
        else:
            found = None if isinstance(answer, Gone) else answer
            self._end(attempt, made, made.outcome(found))

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)
