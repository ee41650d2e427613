"""A model's weights: fetched once, kept in the store under the checksum of their bytes."""

import hashlib
import importlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from vyvo_dagster.building.addresses import stream_public
from vyvo_dagster.building.types import Log
from vyvo_dagster.building.validation import parse_hf, validate_weights_uri
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import BuildFailed, NotFound
from vyvo_dagster.objects import ObjectStore, format_s3_uri, parse_s3_uri

__all__ = [
    "WeightsRecord",
    "copy_weights",
    "local_weights",
    "store_weights",
    "validate_weights_uri",
    "weights_key",
]

_STEP: Final = "weights"
_CHUNK: Final = 1 << 20
_REPORT_BYTES: Final = 256 << 20

Https = Callable[[str], AbstractContextManager[httpx.Response]]
"""Opens an https location for reading."""


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """Weights in the store. `sha256` is `sha256:<hex>`; `path` is a verified local copy."""

    url: str
    sha256: str
    size_bytes: int
    path: Path


def weights_key(hex_digest: str) -> str:
    """Object key of weights with that hex SHA-256."""
    return f"weights/sha256/{hex_digest}"


def copy_weights(
    uri: str,
    store: ObjectStore,
    scratch_dir: Path,
    log: Log,
    *,
    check: Callable[[], None] = lambda: None,
    https: Https = stream_public,
) -> WeightsRecord:
    """Bring weights into the store under their checksum; nothing is stored twice.

    Args:
        uri: as validate_weights_uri allows.
        store: where they go, bucket `model`.
        scratch_dir: local copies by checksum, `sha256/<hex>`; reused by the health check.
        log: progress, a line per 256 MiB.
        check: called between chunks; raises to stop, such as BuildContext.check_canceled.
        https: opens an https location; the default refuses hosts that are not public.

    Raises:
        InvalidWeightsUri: the location, or one it redirects to, is not allowed.
        BuildFailed: there is nothing, or it cannot be fetched; the detail says what to do.
    """
    validate_weights_uri(uri)
    scheme = uri.partition("://")[0]
    log.line(_STEP, f"fetching {uri.partition('?')[0]}")
    folder = scratch_dir / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}.{os.urandom(8).hex()}.partial"
    try:
        if scheme == "s3":
            digest = _from_store(uri, store, partial, log, check)
        elif scheme == "https":
            digest = _from_https(uri, partial, log, check, https)
        else:
            digest = _from_hub(uri.removeprefix("hf://"), partial, log, check)
        size = partial.stat().st_size
        if size == 0:
            raise BuildFailed("weights: the file is empty")
        path = folder / digest
        # Runners read it as another user.
        partial.chmod(0o444)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    bucket, key = store.bucket(Modality.MODEL), weights_key(digest)
    url = format_s3_uri(bucket, key)
    if _stored(url, size, store):
        log.line(_STEP, f"already stored as {url}")
    else:
        log.line(_STEP, f"storing {size} bytes as {url}")
        store.put_file(bucket, key, path)
    return WeightsRecord(url, f"sha256:{digest}", size, path)


def local_weights(url: str, sha256: str, store: ObjectStore, scratch_dir: Path) -> Path:
    """A verified local copy of stored weights, downloaded unless one is there.

    A copy appears whole and verified or not at all, so one that is there is trusted.
    """
    path = scratch_dir / "sha256" / sha256.removeprefix("sha256:")
    if not path.is_file():
        store.get_to_file(url, path, sha256=sha256)
        path.chmod(0o444)
    return path


def store_weights(source: Path, store: ObjectStore, log: Log) -> WeightsRecord:
    """Put a local file that this system made (such as trained weights) into the store."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    name, size = digest.hexdigest(), source.stat().st_size
    bucket, key = store.bucket(Modality.MODEL), weights_key(name)
    url = format_s3_uri(bucket, key)
    if not _stored(url, size, store):
        log.line(_STEP, f"storing {size} bytes as {url}")
        store.put_file(bucket, key, source)
    return WeightsRecord(url, f"sha256:{name}", size, source)


def _stored(url: str, size: int, store: ObjectStore) -> bool:
    with suppress(NotFound):
        return store.stat(url).size_bytes == size
    return False


def _from_store(
    uri: str, store: ObjectStore, partial: Path, log: Log, check: Callable[[], None]
) -> str:
    bucket, key = parse_s3_uri(uri)
    report = _Report(log, check)
    # Named by checksum already: then the bytes must be those.
    own = bucket == store.bucket(Modality.MODEL) and key.startswith(weights_key(""))
    expected = key.removeprefix(weights_key("")) if own else None
    try:
        return store.get_to_file(uri, partial, sha256=expected, progress=report)
    except NotFound as error:
        raise BuildFailed(
            f"weights: {uri} does not exist; upload it first or correct weights_uri"
        ) from error


def _from_https(
    uri: str,
    partial: Path,
    log: Log,
    check: Callable[[], None],
    https: Https,
) -> str:
    with https(uri) as response:
        length = response.headers.get("content-length")
        try:
            digest, size = _write(response.iter_raw(_CHUNK), partial, _Report(log, check))
        except httpx.HTTPError as error:
            raise BuildFailed(f"weights: the transfer broke off ({error}); try again") from error
    if length is not None and length.isdigit() and int(length) != size:
        raise BuildFailed(f"weights: got {size} of {length} bytes; try again")
    return digest


def _from_hub(rest: str, partial: Path, log: Log, check: Callable[[], None]) -> str:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise BuildFailed(
            "weights: hf:// locations need the package huggingface_hub on the build host: "
            "pip install huggingface_hub, or give the file's https:// or s3:// location"
        ) from error
    repo, revision, name = parse_hf(rest)
    try:
        found = Path(str(hub.hf_hub_download(repo_id=repo, filename=name, revision=revision)))
    except Exception as error:
        raise BuildFailed(f"weights: {repo} {name}: {error}") from error
    with found.open("rb") as file:
        return _write(iter(lambda: file.read(_CHUNK), b""), partial, _Report(log, check))[0]


def _write(chunks: Iterable[bytes], partial: Path, report: "_Report") -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with partial.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
            report(size)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size


class _Report:
    """Progress into the log, and the moment to notice a cancel."""

    def __init__(self, log: Log, check: Callable[[], None]) -> None:
        self._log, self._check, self._next = log, check, _REPORT_BYTES

    def __call__(self, done: int) -> None:
        self._check()
        if done >= self._next:
            self._log.line(_STEP, f"{done >> 20} MiB")
            self._next = done + _REPORT_BYTES
