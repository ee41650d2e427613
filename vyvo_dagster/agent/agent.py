"""The agent's composition: joins, sessions, and an orderly end."""

import asyncio
import fcntl
import logging
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from pydantic import SecretStr

from vyvo_dagster.agent.assignment import Limits
from vyvo_dagster.agent.attempt import AttemptNode
from vyvo_dagster.agent.attempts import Attempts
from vyvo_dagster.agent.capabilities import detect, memory_available_bytes, node_name
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.agent.envfile import EnvDirectory
from vyvo_dagster.agent.gpus import GpuBooking
from vyvo_dagster.agent.heartbeat import Heartbeats
from vyvo_dagster.agent.join import CredentialFile, Session, join
from vyvo_dagster.agent.nvml import Nvml
from vyvo_dagster.agent.orders import Orders
from vyvo_dagster.agent.reconcile import NodePreparation, Reconciler
from vyvo_dagster.agent.reports import Reports
from vyvo_dagster.agent.rotation import rotate
from vyvo_dagster.agent.runners.engine import Engine, connect
from vyvo_dagster.agent.runners.launchers import make_launchers
from vyvo_dagster.agent.serving import ServingLimits
from vyvo_dagster.agent.uploads import Uploader
from vyvo_dagster.agent.weights import WeightsCache
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.errors import Conflict, InvalidInput
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.node import Capabilities, Heartbeat, HeartbeatAnswer, Register, S3Access
from vyvo_dagster.settings import AgentSettings, S3Settings
from vyvo_dagster.telemetry import logs
from vyvo_dagster.telemetry.health import probes, serve

__all__ = ["Agent"]

_log = logging.getLogger(__name__)

# Together within the eight seconds that a stop may take.
_HAND_BACK_SECONDS: Final = 4.0
_LEAVE_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 3.0
_REJOIN_SECONDS: Final = 1.0
_UPLOAD_THREADS: Final = 8
_DOWNLOAD_THREADS: Final = 4


class Agent:
    """One node's agent.

    Args:
        settings: where the control plane is and what this node may use.
        limits: times and counts for its assignments; unset, the usual ones with the settings'
            slots.
    """

    def __init__(self, settings: AgentSettings, limits: Limits | None = None) -> None:
        self._settings = settings
        self._limits = limits or Limits(
            serving=ServingLimits(output_bytes=settings.max_output_bytes), slots=settings.slots
        )
        self._name = node_name(settings.name)
        self._data_dir = settings.data_dir.absolute()
        self._due = asyncio.Event()
        # Apart: outputs of jobs do not wait for weights that take an hour.
        self._uploads = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload")
        self._downloads = ThreadPoolExecutor(_DOWNLOAD_THREADS, thread_name_prefix="download")
        self._cache = WeightsCache(self._data_dir / "weights", self._downloads)
        self._credential = CredentialFile(self._data_dir / "credential.json")
        self._node_id: UUID | None = None
        self._reconciler: Reconciler | None = None
        self._attempts: Attempts | None = None
        self._heartbeats: Heartbeats | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then hand back what runs, say so, and stop every runner.

        Raises:
            Conflict: another agent uses the data directory.
            Unavailable: a container engine is asked for and none answers.
            InvalidInput: the settings cannot work.
        """
        settings = self._settings
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _sole_user(self._data_dir):
            nvml = await asyncio.to_thread(Nvml)
            engine = await connect(settings.engine, settings.docker_host)
            version = None if engine is None else engine.version
            capabilities = await asyncio.to_thread(detect, nvml, version)
            self._cache.sweep()
            _log.info(
                "%s: %d CPUs, %d GPUs, runners are %s", self._name, capabilities.cpus, len(capabilities.gpus),
                "processes" if engine is None else f"containers (engine {engine.version})",
            )  # fmt: skip
            try:
                async with (
                    ControlPlane(
                        settings.api_url, _grpc_url(settings), settings.grpc_ca
                    ) as control_plane,
                    asyncio.TaskGroup() as group,
                ):
                    gpus = GpuBooking(capabilities.gpus)
                    reports = Reports(control_plane)
                    host = _Host(control_plane, reports, group, engine, nvml, capabilities, gpus)
                    failure = await self._until(stop, host)
            finally:
                for threads in (self._uploads, self._downloads):
                    threads.shutdown(wait=False, cancel_futures=True)
                if engine is not None:
                    await engine.aclose()
                nvml.close()
        if failure is not None:
            raise failure

    async def _until(self, stop: asyncio.Event, host: "_Host") -> BaseException | None:
        """Serve until the stop or until sessions cannot go on; return why they cannot."""
        sessions = asyncio.create_task(self._sessions(host))
        beside = [
            host.group.create_task(host.reports.run(), name="reports"),
            host.group.create_task(_serve_metrics(self._settings), name="metrics"),
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({sessions, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            sessions.cancel()
            await asyncio.wait({sessions})
            await self._leave()
            await cancel_all(beside)
        return None if sessions.cancelled() else sessions.exception()

    async def _sessions(self, host: "_Host") -> None:
        """Join, serve, and join again whenever the control plane no longer knows this boot."""
        token = self._settings.join_token
        while True:
            # A GPU may have been lost, or have come back, since the start.
            gpus = await asyncio.to_thread(host.nvml.gpus)
            body = Register(
                name=self._name, boot_id=uuid4(),
                capabilities=host.capabilities.model_copy(update={"gpus": gpus}),
                labels=self._settings.labels,
            )  # fmt: skip
            session = await join(
                host.control_plane,
                self._credential,
                None if token is None else token.get_secret_value(),
                body,
            )
            why = await self._serve(session, host)
            _log.warning("joining again: %s", why)
            if self._attempts is not None:
                self._attempts.fence_all()
            await asyncio.sleep(_REJOIN_SECONDS)

    async def _serve(self, session: Session, host: "_Host") -> str:
        """One session, until its boot is refused; return why."""
        host.reports.node_id = session.node_id
        logs.always(node=self._name, node_id=str(session.node_id))
        reconciler = await self._reconcilers(session, host)
        store = ObjectStore(_s3(session.s3), artifact_ttl_seconds=session.artifact_ttl_seconds)
        preparation = NodePreparation(
            session, store, self._cache, reconciler.env_files, host.gpus, host.control_plane
        )
        node = AttemptNode(
            reports=host.reports,
            uploader=Uploader(store, session.artifact_ttl_seconds, self._uploads),
            find=reconciler.find,
        )
        attempts = self._attempts = Attempts(node, host.group, self._due)

        async def compose(now: datetime) -> Heartbeat:
            readings = await asyncio.to_thread(host.nvml.metrics)
            host.gpus.note(readings)
            return Heartbeat(
                boot_id=session.boot_id,
                sent_at=now,
                leaving=False,
                memory_available_bytes=memory_available_bytes(),
                gpus=readings,
                running=attempts.running(),
                assignments=reconciler.observed(),
            )

        async def applied(body: Heartbeat, answer: HeartbeatAnswer) -> None:
            attempts.fence(answer.fenced, answer.fence_grace_seconds)
            reconciler.acknowledge(body.assignments)
            await reconciler.apply(answer.assignments, session, preparation)

        def sync() -> None:
            reconciler.retry_failed()
            self._due.set()

        heartbeats = self._heartbeats = Heartbeats(
            host.control_plane, session, self._due, compose, applied
        )
        orders = Orders(session.redis_url, session.node_id, session.boot_id, attempts, sync)
        reading = asyncio.create_task(orders.run())
        rotating = asyncio.create_task(rotate(host.control_plane, self._credential, session))
        try:
            return await heartbeats.run()
        finally:
            await cancel_all([rotating])
            await orders.end(reading)

    async def _reconcilers(self, session: Session, host: "_Host") -> Reconciler:
        """The reconciler of this node's id, which outlives sessions as runners do."""
        if self._reconciler is not None and self._node_id == session.node_id:
            return self._reconciler
        if self._reconciler is not None:
            await self._reconciler.close(_CLOSE_SECONDS)
        env_files = EnvDirectory(self._settings.env_dir.absolute(), session.node_id)
        launchers = make_launchers(
            self._settings, self._data_dir, session.node_id, host.engine, env_files
        )
        self._node_id = session.node_id
        self._reconciler = Reconciler(launchers, env_files, self._limits, host.group, self._due)
        return self._reconciler

    async def _leave(self) -> None:
        # Told first: what is handed back to a node that still counts as ready would come back to it.
        if self._heartbeats is not None:
            await self._heartbeats.leave(_LEAVE_SECONDS)
        if self._attempts is not None:
            await self._attempts.hand_back(_HAND_BACK_SECONDS)
        if self._reconciler is not None:
            await self._reconciler.close(_CLOSE_SECONDS, leave=self._settings.keeps_runners)
        _log.info("stopped")


@dataclass(frozen=True, slots=True)
class _Host:
    """What stays the same over the agent's sessions."""

    control_plane: ControlPlane
    reports: Reports
    group: asyncio.TaskGroup
    engine: Engine | None
    nvml: Nvml
    capabilities: Capabilities
    gpus: GpuBooking


def _s3(access: S3Access) -> S3Settings:
    return S3Settings(
        endpoint=access.endpoint,
        public_endpoint=None,
        access_key=access.access_key,
        secret_key=SecretStr(access.secret_key),
        region=access.region,
        bucket_prefix=access.bucket_prefix,
    )


async def _serve_metrics(settings: AgentSettings) -> None:
    if settings.metrics_port:
        try:
            await serve(settings.metrics_port, probes, settings.metrics_host)
        except OSError as error:
            # Jobs matter more than what is told of them.
            _log.error("metrics are not served: %s", error)


def _grpc_url(settings: AgentSettings) -> str | None:
    if settings.report_by == "grpc" and settings.grpc_url is None:
        raise InvalidInput("VYVO_AGENT_REPORT_BY is grpc: set VYVO_AGENT_GRPC_URL too")
    return settings.grpc_url if settings.report_by == "grpc" else None


@contextmanager
def _sole_user(data_dir: Path) -> Generator[None]:
    """Hold the data directory's lock; the kernel frees it however the process ends."""
    handle = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"another agent uses {data_dir}; stop it, or set VYVO_AGENT_DATA_DIR to another folder"
            ) from error
        yield
    finally:
        os.close(handle)
