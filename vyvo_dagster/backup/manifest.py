"""What a backup folder holds.

manifest.json     written last: a folder without one is no backup
registry.dump     pg_dump's custom format; dagster.dump beside it where there is Dagster
objects.jsonl     one object a line: bucket, key, sha256, size_bytes, content_type, metadata
objects/ab/<sha256>   contents, each once
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vyvo_dagster.errors import InvalidInput

__all__ = ["FORMAT", "Manifest", "StoredObject", "content_path", "digest_of", "read_manifest"]

FORMAT: Final = 1
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of the store."""

    bucket: str
    key: str
    sha256: str
    size_bytes: int
    content_type: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`databases` and `files` are SHA-256 by file name; times are ISO 8601, UTC."""

    format: int
    version: str
    began_at: str
    ended_at: str
    databases: dict[str, str]
    files: dict[str, str]
    bucket_prefix: str
    objects: int
    object_bytes: int
    vanished: int
    """Objects that were deleted between the listing and the copy: expired, or orphans."""

    def write(self, folder: Path) -> None:
        """Make the folder a backup."""
        draft = folder / "manifest.json.partial"
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n")
        draft.replace(folder / "manifest.json")

    def objects_of(self, folder: Path) -> Iterator[StoredObject]:
        """Every object, in the order of the copy."""
        with (folder / "objects.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield StoredObject(**json.loads(line))


def read_manifest(folder: Path) -> Manifest:
    """The manifest, with the dumps and the list of objects checked against it.

    Raises:
        InvalidInput: it is no backup, one of a newer version, or not as it was written.
    """
    try:
        told: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        if told["format"] != FORMAT:
            raise InvalidInput(f"{folder} is a backup of format {told['format']}, not {FORMAT}")
        manifest = Manifest(**told)
    except FileNotFoundError as error:
        raise InvalidInput(f"{folder} is no complete backup: it has no manifest.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{folder}/manifest.json cannot be read: {error}") from error
    for name, sha256 in {**manifest.databases, **manifest.files}.items():
        path = folder / name
        if not path.is_file() or digest_of(path) != sha256:
            raise InvalidInput(f"{path} is missing or not as it was written")
    return manifest


def content_path(folder: Path, sha256: str) -> Path:
    """Where contents are."""
    return folder / "objects" / sha256[:2] / sha256


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
