"""What artifacts look like over REST."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from api.fields import Body
from vyvo_dagster.domain.retention import GRACE, ArtifactState, SweepState
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.artifact import Artifact
from vyvo_dagster.store.records import ArtifactRow, SweepRow

__all__ = [
    "ArtifactView", "SweepRequest", "SweepView", "artifact_view", "presigned", "sweep_view",
]  # fmt: skip


class ArtifactView(Artifact):
    """An artifact. `url` is where it is stored, `presigned_url` reads it without credentials for a while."""

    id: UUID
    job_id: UUID
    position: int = Field(description="Place in the job's output, from 0.")
    presigned_url: str | None = Field(description="null once it has expired, or is missing.")
    created_at: datetime
    state: ArtifactState = Field(
        description="`expired`: its object is about to be deleted. `missing`: it was not there when"
        " it was looked for."
    )
    deleted_at: datetime | None


class SweepRequest(Body):
    """What a pass is to do."""

    dry_run: bool = Field(default=False, description="Only tell what would be done.")
    force: bool = Field(
        default=False,
        description="Delete objects without a row even where more than half of all are without.",
    )
    grace_hours: float = Field(
        default=GRACE.total_seconds() / 3600, ge=1, le=24 * 366,
        description="Younger objects are spared: jobs that run may have made them.",
    )  # fmt: skip


class SweepView(BaseModel):
    """A pass that collects artifacts. `report` has `expiry` and `orphans`, counts and sizes in bytes."""

    id: UUID
    status: SweepState
    dry_run: bool
    run_id: str | None = Field(description="The Dagster run that does it.")
    report: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def presigned(objects: ObjectStore, url: Any, seconds: int) -> str | None:
    """A URL that reads `url` for `seconds`; None where there is no such location. No request is made."""
    try:
        return objects.presign_get(str(url), seconds)
    except VyvoError:
        return None


def artifact_view(row: ArtifactRow, objects: ObjectStore, seconds: int) -> ArtifactView:
    """An artifact's row as it is shown; its URL reads it for `seconds`, and not beyond its end."""
    left = seconds
    if row.expires_at is not None:
        left = min(seconds, int((row.expires_at - datetime.now(UTC)).total_seconds()))
    readable = row.state is ArtifactState.STORED and left > 0
    return ArtifactView(
        id=row.id, job_id=row.job_id, position=row.position, type=row.type, url=row.url,
        presigned_url=presigned(objects, row.url, left) if readable else None,
        size_bytes=row.size_bytes, mime_type=row.mime_type, expires_at=row.expires_at,
        created_at=row.created_at, state=row.state, deleted_at=row.deleted_at,
    )  # fmt: skip


def sweep_view(row: SweepRow) -> SweepView:
    """A pass as it is shown."""
    return SweepView(
        id=row.id, status=row.state, dry_run=row.dry_run, run_id=row.run_id, report=row.report,
        error=row.error, created_at=row.created_at, started_at=row.started_at,
        finished_at=row.finished_at,
    )  # fmt: skip
