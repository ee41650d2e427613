"""Artifacts by the client: `client.artifacts.list(type="image")`."""

import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from vyvo_dagster.client.calls import Call, Id
from vyvo_dagster.client.models import Artifact, Page
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.domain.retention import SWEEP, ArtifactState, SweepState

__all__ = ["Artifacts", "AsyncArtifacts", "StoredArtifact", "Sweep"]

T = TypeVar("T")


class StoredArtifact(Artifact):
    """An artifact beside its job."""

    job_id: UUID
    created_at: datetime
    state: ArtifactState = ArtifactState.STORED
    deleted_at: datetime | None = None


class Sweep(BaseModel):
    """A pass that collects artifacts; `report` once it has ended."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UUID
    status: SweepState
    dry_run: bool
    run_id: str | None
    report: Mapping[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, a good one or not."""
        return self.status in SWEEP.terminal


class _Sync(Protocol):
    def send(self, call: Call[T]) -> T: ...


class _Async(Protocol):
    async def send(self, call: Call[T]) -> T: ...


def _list(
    type: Modality | str | None, job_id: Id | None, state: ArtifactState | str | None,
    cursor: str | None, limit: int,
) -> Call[Page[StoredArtifact]]:  # fmt: skip
    given = {"type": type, "job_id": job_id, "state": state, "cursor": cursor, "limit": limit}
    params = {name: str(value) for name, value in given.items() if value is not None}
    return Call("GET", "/api/artifacts", Page[StoredArtifact].model_validate, params=params)


def _get(artifact_id: Id, presign_seconds: int | None) -> Call[StoredArtifact]:
    path = f"/api/artifacts/{quote(str(artifact_id), safe='')}"
    params = {} if presign_seconds is None else {"presign_seconds": presign_seconds}
    return Call("GET", path, StoredArtifact.model_validate, params=params)


def _collect(dry_run: bool, force: bool, grace_hours: float | None) -> Call[Sweep]:
    body: dict[str, Any] = {"dry_run": dry_run, "force": force}
    if grace_hours is not None:
        body["grace_hours"] = grace_hours
    return Call(
        "POST", "/api/artifacts/sweeps", Sweep.model_validate, body, key=uuid.uuid4().hex
    )  # fmt: skip


def _sweep(sweep_id: Id) -> Call[Sweep]:
    path = f"/api/artifacts/sweeps/{quote(str(sweep_id), safe='')}"
    return Call("GET", path, Sweep.model_validate)


class Artifacts:
    """What jobs made, by a Client's connections."""

    def __init__(self, client: _Sync) -> None:
        self._client = client

    def list(
        self, *, type: Modality | str | None = None, job_id: Id | None = None,
        state: ArtifactState | str | None = None, cursor: str | None = None, limit: int = 50,
    ) -> Page[StoredArtifact]:  # fmt: skip
        """A page of artifacts, newest first."""
        return self._client.send(_list(type, job_id, state, cursor, limit))

    def get(self, artifact_id: Id, *, presign_seconds: int | None = None) -> StoredArtifact:
        """One artifact; its URL lives for so long, or as long as the server gives."""
        return self._client.send(_get(artifact_id, presign_seconds))

    def collect(
        self, *, dry_run: bool = False, force: bool = False, grace_hours: float | None = None
    ) -> Sweep:
        """Have ended artifacts and objects without a row deleted; an admin's. See `sweep`."""
        return self._client.send(_collect(dry_run, force, grace_hours))

    def sweep(self, sweep_id: Id) -> Sweep:
        """A pass that was asked for."""
        return self._client.send(_sweep(sweep_id))

    def wait(self, sweep_id: Id, timeout: float) -> Sweep:
        """The pass once it has ended; raises TimeoutError after `timeout` seconds."""
        deadline, pause = time.monotonic() + timeout, 0.1
        while not (found := self.sweep(sweep_id)).ended:
            if time.monotonic() + pause > deadline:
                raise TimeoutError(f"pass {sweep_id} did not end within {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)
        return found


class AsyncArtifacts:
    """As Artifacts, awaited, by an AsyncClient's connections."""

    def __init__(self, client: _Async) -> None:
        self._client = client

    async def list(
        self, *, type: Modality | str | None = None, job_id: Id | None = None,
        state: ArtifactState | str | None = None, cursor: str | None = None, limit: int = 50,
    ) -> Page[StoredArtifact]:  # fmt: skip
        """A page of artifacts, newest first."""
        return await self._client.send(_list(type, job_id, state, cursor, limit))

    async def get(self, artifact_id: Id, *, presign_seconds: int | None = None) -> StoredArtifact:
        """One artifact; its URL lives for so long, or as long as the server gives."""
        return await self._client.send(_get(artifact_id, presign_seconds))

    async def collect(
        self, *, dry_run: bool = False, force: bool = False, grace_hours: float | None = None
    ) -> Sweep:
        """Have ended artifacts and objects without a row deleted; an admin's. See `sweep`."""
        return await self._client.send(_collect(dry_run, force, grace_hours))

    async def sweep(self, sweep_id: Id) -> Sweep:
        """A pass that was asked for."""
        return await self._client.send(_sweep(sweep_id))
