"""Models and their versions: ids, states, resources."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from vyvo_dagster.domain.state import StateMachine
from vyvo_dagster.errors import InvalidInput, InvalidModelId

__all__ = [
    "VERSION",
    "Modality",
    "Resources",
    "VersionState",
    "file_stem",
    "parse_model_id",
    "parse_version",
    "rebuilt_names",
]


class VersionState(StrEnum):
    """States of a model version in the registry."""

    DRAFT = "draft"
    BUILDING = "building"
    READY = "ready"
    ACTIVE = "active"
    RETIRED = "retired"


class Modality(StrEnum):
    """What a model makes, and the buckets there are."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    TEXT = "text"
    MODEL = "model"
    LOG = "log"


VERSION: StateMachine[VersionState] = StateMachine(
    "model version",
    {
        VersionState.DRAFT: frozenset(
            {VersionState.BUILDING, VersionState.READY, VersionState.RETIRED}
        ),
        # A build that fails gives the version back to DRAFT, so that it can be built again.
        VersionState.BUILDING: frozenset({VersionState.READY, VersionState.DRAFT}),
        VersionState.READY: frozenset({VersionState.ACTIVE, VersionState.RETIRED}),
        VersionState.ACTIVE: frozenset({VersionState.READY, VersionState.RETIRED}),
        VersionState.RETIRED: frozenset(),
    },
)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one loaded copy of a version takes on a node. Bytes; 0 means none needed.

    `timeout_seconds` is how long a prediction may take whose job does not say; 0 is the default.
    """

    gpu_memory_bytes: int = 0
    memory_bytes: int = 0
    timeout_seconds: int = 0


# One part of an OCI repository path, so that owner/name is usable in an image reference once
# lowered; upper case is allowed in the id itself (chetwinlow1/Ovi).
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[._-](?=[A-Za-z0-9])){0,63}")
# OCI tags allow this and 128 characters; half is plenty. No `@`, `/` or space.
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}")


def parse_model_id(value: str) -> str:
    """Return `value` if it is `owner/name`, else raise InvalidModelId.

    Each part is 1 to 64 letters, digits and single `.`, `_`, `-` between them.
    """
    owner, slash, name = value.partition("/")
    if not slash or not _PART.fullmatch(owner) or not _PART.fullmatch(name):
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise InvalidModelId(
            f"model_id must be owner/name, each 1 to 64 letters, digits, and single . _ - "
            f"between them; got {shown!r}"
        )
    return value


def parse_version(value: str) -> str:
    """Return `value` if it can be a version name, else raise InvalidInput."""
    if not _VERSION.fullmatch(value):
        raise InvalidInput(
            "version must be 1 to 64 letters, digits and . _ + - ; it cannot start with . + -"
        )
    return value


def rebuilt_names(version: str, now: datetime) -> list[str]:
    """Names for a rebuild of a version, the first that is free is taken.

    `<version>+<date>` is build metadata in the words of Semantic Versioning.
    """
    stem = f"{version.partition('+')[0][:50]}+{now:%Y%m%d}"
    return [stem, *(f"{stem}.{n}" for n in range(2, 100))]


def file_stem(model_id: str) -> str:
    """A file name for a checked model id: `owner--name`.

    One-to-one, since a checked part never holds two punctuation characters in a row.
    """
    return parse_model_id(model_id).replace("/", "--")
