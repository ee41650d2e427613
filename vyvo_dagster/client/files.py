"""Artifacts onto the disk: whole or not at all."""

import os
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import httpx

from vyvo_dagster.client.models import Artifact
from vyvo_dagster.errors import NotFound, Unavailable

__all__ = ["DOWNLOAD_TIMEOUT", "artifact_name", "draft_of", "raise_for_download", "store_away"]

DOWNLOAD_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def artifact_name(artifact: Artifact) -> str:
    """A file name for an artifact: its place in the output, and its own name without any path."""
    last = urlsplit(artifact.url).path.rpartition("/")[2]
    name = _UNSAFE.sub("_", last).lstrip(".")[-100:]
    return f"{artifact.position:02d}-{name or 'artifact'}"


@contextmanager
def draft_of(path: Path) -> Generator[IO[bytes]]:
    """A file that takes the name `path` once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            yield file
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def raise_for_download(status: int) -> None:
    """Raise NotFound for an artifact that is gone or whose URL has expired, Unavailable otherwise."""
    if status in {403, 404, 410}:
        raise NotFound(
            f"the artifact cannot be read ({status}): it has expired, or its presigned URL has;"
            " ask for the job again"
        )
    if not 200 <= status < 300:
        raise Unavailable(f"the object store answered {status}")


@contextmanager
def store_away() -> Generator[None]:
    """Turn a lost connection to the object store into Unavailable."""
    try:
        yield
    except httpx.TransportError as error:
        raise Unavailable(f"cannot reach the object store: {error}") from error
