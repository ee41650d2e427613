"""What artifacts look like over REST."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from vyvo_dagster.errors import VyvoError
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.artifact import Artifact
from vyvo_dagster.store.records import ArtifactRow

__all__ = ["ArtifactView", "artifact_view", "presigned"]


class ArtifactView(Artifact):
    """An artifact. `url` is where it is stored, `presigned_url` reads it without credentials for a while."""

    id: UUID
    job_id: UUID
    position: int = Field(description="Place in the job's output, from 0.")
    presigned_url: str | None
    created_at: datetime


def presigned(objects: ObjectStore, url: Any, seconds: int) -> str | None:
    """A URL that reads `url` for `seconds`; None where there is no such location. No request is made."""
    try:
        return objects.presign_get(str(url), seconds)
    except VyvoError:
        return None


def artifact_view(row: ArtifactRow, objects: ObjectStore, seconds: int) -> ArtifactView:
    """An artifact's row as it is shown."""
    return ArtifactView(
        id=row.id, job_id=row.job_id, position=row.position, type=row.type, url=row.url,
        presigned_url=presigned(objects, row.url, seconds), size_bytes=row.size_bytes,
        mime_type=row.mime_type, expires_at=row.expires_at, created_at=row.created_at,
    )  # fmt: skip
