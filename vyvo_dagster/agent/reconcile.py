"""From what the control plane desires to what runs here."""

import asyncio
import ipaddress
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from vyvo_dagster.agent.assignment import Assignment, Limits
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.agent.envfile import EnvDirectory
from vyvo_dagster.agent.gpus import GpuBooking
from vyvo_dagster.agent.join import Session
from vyvo_dagster.agent.runners.base import Launcher, RunnerSpec
from vyvo_dagster.agent.weights import WeightsCache
from vyvo_dagster.domain.node import AssignmentState
from vyvo_dagster.errors import InvalidWeightsUri, RunnerFailed, VyvoError
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.node import (
    DesiredAssignment,
    ObservedAssignment,
    RegistryAccess,
    S3Access,
)

__all__ = ["NodePreparation", "Reconciler"]

_log = logging.getLogger(__name__)

_APPEAR_SECONDS: Final = 10.0


class NodePreparation:
    """Weights, environment and GPU of assignments on this node, in one session.

    `store` is the object store of the session; `control_plane` gives registry logins.
    """

    def __init__(
        self,
        session: Session,
        store: ObjectStore,
        cache: WeightsCache,
        env_files: EnvDirectory,
        gpus: GpuBooking,
        control_plane: ControlPlane,
    ) -> None:
        self._session = session
        self._store = store
        self._cache = cache
        self._env_files = env_files
        self._gpus = gpus
        self._control_plane = control_plane

    async def registry_access(self, desired: DesiredAssignment) -> RegistryAccess | None:
        """As whom to pull the image now; asked for each time and kept nowhere."""
        answer = await self._control_plane.assignment_credentials(
            self._session.node_id, desired.assignment_id
        )
        return answer.registry

    async def weights(self, desired: DesiredAssignment) -> Path | None:
        """Fetch the weights unless they are here."""
        if desired.weights_url is None:
            return None
        if desired.weights_sha256 is None:
            raise InvalidWeightsUri(f"weights {desired.weights_url} come without a checksum")
        return await self._cache.fetch(
            self._store, desired.weights_url, desired.weights_sha256, desired.weights_size_bytes
        )

    def spec(self, desired: DesiredAssignment, weights: Path | None) -> RunnerSpec:
        """Book the GPU, write the environment file, and say how the runner starts."""
        env = runner_env(desired, self._session)
        local = env if weights is None else {**env, "VYVO_WEIGHTS": str(weights)}
        try:
            self._env_files.write(desired.assignment_id, desired.model_id, desired.version, local)
        except OSError as error:
            raise RunnerFailed(f"its environment file cannot be written: {error}") from error
        return RunnerSpec(
            assignment_id=desired.assignment_id,
            image=desired.runner_image,
            env=env,
            weights=weights,
            gpu_uuid=self._gpus.book(desired.assignment_id, desired.resources.gpu_memory_bytes),
            memory_bytes=desired.resources.memory_bytes,
            loopback_uploads=on_loopback(self._session.s3),
        )

    def forget(self, desired: DesiredAssignment) -> None:
        """Delete the environment file and give back the GPU."""
        self._gpus.release(desired.assignment_id)
        self._env_files.remove(desired.assignment_id)


def runner_env(desired: DesiredAssignment, session: Session) -> dict[str, str]:
    """A runner's environment: the version's own, and over it what every runner is told."""
    s3 = session.s3
    return desired.env | {
        "VYVO_MODEL_ID": desired.model_id,
        "VYVO_MODEL_VERSION": desired.version,
        "VYVO_S3_ENDPOINT": s3.endpoint,
        "VYVO_S3_ACCESS_KEY": s3.access_key,
        "VYVO_S3_SECRET_KEY": s3.secret_key,
        "VYVO_S3_REGION": s3.region,
        "VYVO_S3_BUCKET_PREFIX": s3.bucket_prefix,
        "VYVO_ARTIFACT_TTL_SECONDS": str(session.artifact_ttl_seconds),
    }


def on_loopback(s3: S3Access) -> bool:
    """Whether the object store is only reached from this host's own network."""
    host = urlsplit(s3.endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Reconciler:
    """All assignments of this node; each is a task of `group`.

    Args:
        launchers: in order of preference; the first that accepts an image starts its runner.
        env_files: where environment files are written.
        limits: for each assignment.
        group: owner of the tasks.
        changed: event set when an assignment's state changed.
    """

    def __init__(
        self,
        launchers: Sequence[Launcher],
        env_files: EnvDirectory,
        limits: Limits,
        group: asyncio.TaskGroup,
        changed: asyncio.Event,
    ) -> None:
        self.env_files = env_files
        self._launchers = launchers
        self._limits = limits
        self._group = group
        self._changed = changed
        self._assignments: dict[UUID, Assignment] = {}
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._terms: dict[UUID, tuple[DesiredAssignment, object]] = {}
        self._wanted: frozenset[UUID] = frozenset()
        self._appeared = asyncio.Event()
        self._swept = False
        self._closing = False

    async def apply(
        self, desired: Iterable[DesiredAssignment], session: Session, preparation: NodePreparation
    ) -> None:
        """Start what is new, remove what is desired no more; replace what is desired otherwise."""
        wanted = {d.assignment_id: d for d in desired}
        if self._closing:
            return
        if not self._swept:
            await self._sweep(wanted)
        self._wanted = frozenset(wanted)
        for known, assignment in self._assignments.items():
            if known not in wanted and not assignment.removing:
                assignment.remove()
        for new, asked in wanted.items():
            assignment = self._assignments.get(new)
            terms = (asked, _stable(session))
            # One that is desired again while it is removed starts anew once it is gone.
            if assignment is None or assignment.state is AssignmentState.REMOVED:
                self._start(new, asked, preparation)
            elif not assignment.removing and terms != self._terms[new]:
                assignment.replace(asked, preparation)
            self._terms[new] = terms
        self._appeared.set()
        self._appeared = asyncio.Event()

    def observed(self) -> list[ObservedAssignment]:
        """What a heartbeat reports.

        One that is desired again while it is removed is left out: its removal, told now, would
        end what has been asked for since.
        """
        return [
            assignment.observed()
            for known, assignment in self._assignments.items()
            if not (assignment.removing and known in self._wanted)
        ]

    def acknowledge(self, reported: Iterable[ObservedAssignment]) -> None:
        """Forget what the control plane now knows to be removed."""
        for observed in reported:
            known = observed.assignment_id
            if observed.state is AssignmentState.REMOVED and known in self._assignments:
                del self._assignments[known], self._tasks[known], self._terms[known]

    def retry_failed(self) -> None:
        """Try again at once what has failed."""
        for assignment in self._assignments.values():
            if assignment.state is AssignmentState.FAILED:
                assignment.retry()

    async def find(self, assignment_id: UUID) -> Assignment | None:
        """An assignment; one that is not known yet may come with the heartbeat under way."""
        if assignment_id not in self._assignments:
            self._changed.set()
        try:
            async with asyncio.timeout(_APPEAR_SECONDS):
                while assignment_id not in self._assignments:
                    await self._appeared.wait()
        except TimeoutError:
            return None
        return self._assignments[assignment_id]

    async def close(self, seconds: float, *, leave: bool = False) -> None:
        """Stop every runner, all at once, within `seconds`.

        With `leave`, runners that can outlive the agent are left for its next start to adopt.
        """
        self._closing = True
        if leave:
            for launcher in self._launchers:
                launcher.leave()
        for assignment in self._assignments.values():
            if leave:
                assignment.leave()
            else:
                assignment.remove(drain=False)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=seconds)
            for task in late:
                task.cancel()
        for launcher in self._launchers:
            await launcher.aclose()

    def _start(self, known: UUID, desired: DesiredAssignment, preparation: NodePreparation) -> None:
        assignment = Assignment(
            desired, self._launchers, preparation, self._limits, self._changed.set
        )
        self._assignments[known] = assignment
        self._tasks[known] = self._group.create_task(assignment.run(), name=f"assignment {known}")

    async def _sweep(self, wanted: Iterable[UUID]) -> None:
        """Once after the start: what an earlier agent left and nobody desires now."""
        keep = list(wanted)
        try:
            for launcher in self._launchers:
                await launcher.sweep(keep)
            for path in self.env_files.sweep(keep):
                _log.info("deleted %s of an earlier start", path)
        except (VyvoError, OSError) as error:
            _log.warning("cannot clean up after an earlier start: %s", error)
        else:
            self._swept = True


def _stable(session: Session) -> tuple[object, ...]:
    """What of a session a loaded runner depends on; a join anew does not change it by itself."""
    return session.s3, session.artifact_ttl_seconds
