"""What an artifact looks like: one model for runners, agents, the api and its documents.

The same file in the platform (`vyvo_dagster/protocol/`) and in the package `vyvo_runner`, which
installs alone; a test holds them equal. So: Python 3.8, pydantic 1.10 or any 2.
"""

from datetime import datetime, timezone
from typing import Any, Dict, Optional

from pydantic import BaseModel, Field

__all__ = ["Artifact"]


class Artifact(BaseModel):
    """One output of a job, kept in the object store."""

    type: str = Field(max_length=32, description="Modality: image, video, audio, text or model.")
    url: str = Field(
        max_length=2048,
        pattern=r"^s3://[a-z0-9.-]{3,63}/[^\s\x00]+$",
        description="Where it is stored, s3://bucket/key.",
    )
    size_bytes: int = Field(ge=0, le=(1 << 63) - 1)
    mime_type: str = Field(max_length=255, description="Told from its content.")
    expires_at: Optional[datetime] = Field(
        default=None, description="From then on it may be deleted; null keeps it."
    )

    def as_json(self) -> Dict[str, Any]:
        """The five members as JSON has them; `expires_at` is ISO 8601 in UTC, ending in Z."""
        expires_at = self.expires_at
        if expires_at is not None:
            moment = expires_at.astimezone(timezone.utc).replace(tzinfo=None)
            expires_at = moment.isoformat(timespec="seconds") + "Z"
        return {
            "type": self.type,
            "url": self.url,
            "size_bytes": self.size_bytes,
            "mime_type": self.mime_type,
            "expires_at": expires_at,
        }
