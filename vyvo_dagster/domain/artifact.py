"""The shape of an artifact, the same in a runner's answer, a completion, a row and the api."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypedDict

from vyvo_dagster.domain.model import Modality

__all__ = ["ARTIFACT_FIELDS", "OUTPUTS", "ArtifactShape", "artifacts_in", "is_output"]

ARTIFACT_FIELDS = frozenset({"type", "url", "size_bytes", "mime_type", "expires_at"})

OUTPUTS: Final = frozenset(Modality) - {Modality.LOG}
"""Whose buckets hold what jobs make."""
# Beside a day's folders the bucket of models holds weights, locks and bills of materials.
_OF_A_DAY: Final = re.compile(r"\d{4}/\d\d/\d\d/.+")


def is_output(modality: Modality, key: str) -> bool:
    """Whether a job may have made what is under this key of the modality's bucket."""
    if modality is Modality.MODEL:
        return _OF_A_DAY.fullmatch(key) is not None
    return modality in OUTPUTS


class ArtifactShape(TypedDict):
    """What protocol.artifact.Artifact is as JSON, for code that knows no pydantic."""

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
