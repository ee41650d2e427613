"""The shape of an artifact, the same in a runner's answer, a completion, a row and the api."""

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

__all__ = ["ARTIFACT_FIELDS", "ArtifactShape", "artifacts_in"]

ARTIFACT_FIELDS = frozenset({"type", "url", "size_bytes", "mime_type", "expires_at"})


class ArtifactShape(TypedDict):
    """Metadata of one artifact. `url` is `s3://bucket/key`; `expires_at` ISO 8601, UTC, or None."""

    type: str
    url: str
    size_bytes: int
    mime_type: str
    expires_at: str | None


def artifacts_in(output: Any) -> Iterator[ArtifactShape]:
    """Every artifact inside a runner's output, at any depth, in order."""
    if isinstance(output, Mapping):
        if output.keys() >= ARTIFACT_FIELDS and str(output["url"]).startswith("s3://"):
            yield ArtifactShape(
                type=str(output["type"]),
                url=str(output["url"]),
                size_bytes=int(output["size_bytes"]),
                mime_type=str(output["mime_type"]),
                expires_at=None if output["expires_at"] is None else str(output["expires_at"]),
            )
            return
        for value in output.values():
            yield from artifacts_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from artifacts_in(value)
