"""A model's weights: fetched once, kept in the store under the checksum of their bytes."""

import hashlib
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx

from vyvo_dagster.building.addresses import stream_public
from vyvo_dagster.building.caches import file_lock, sha256_of
from vyvo_dagster.building.disk import full_disk_told
from vyvo_dagster.building.hub import Hub, fetch_from_hub
from vyvo_dagster.building.transfer import Broken, Open, Piece, Progress, download
from vyvo_dagster.building.types import Log
from vyvo_dagster.building.validation import parse_hf, validate_weights_uri
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import BuildFailed, Conflict, NotFound
from vyvo_dagster.objects import ObjectStore, format_s3_uri, parse_s3_uri

__all__ = [
    "Https",
    "WeightsRecord",
    "copy_weights",
    "local_weights",
    "store_weights",
    "validate_weights_uri",
    "weights_key",
]

_STEP: Final = "weights"
_PARTIAL_CONTENT: Final = 206
# Parts of transfers that nobody went on with.
_PART_SECONDS: Final = 7 * 86400
_LOCK_SECONDS: Final = 6 * 3600.0


class Https(Protocol):
    """Opens an https location for reading, with headers of the request."""

    def __call__(
        self, uri: str, *, headers: dict[str, str]
    ) -> AbstractContextManager[httpx.Response]:
        """A streaming response with status 200 or 206."""
        ...


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
    hub: Hub | None = None,
    wait: float = 1.0,
) -> WeightsRecord:
    """Bring weights into the store under their checksum; nothing is stored twice.

    Args:
        uri: as validate_weights_uri allows.
        store: where they go, bucket `model`.
        scratch_dir: local copies by checksum, `sha256/<hex>`, reused by the health check; and parts
            of transfers that broke off, which the next try goes on with.
        log: progress, a line per 256 MiB.
        check: called between chunks; raises to stop, such as BuildContext.check_canceled.
        https: opens an https location; the default refuses hosts that are not public.
        hub: where `hf://` leads and as whom; None for the public hub, as nobody.
        wait: seconds before a transfer that broke off is tried again the first time.

    Raises:
        InvalidWeightsUri: the location, or one it redirects to, is not allowed.
        BuildFailed: there is nothing, or it cannot be fetched; the detail says what to do.
    """
    validate_weights_uri(uri)
    log.line(_STEP, f"fetching {uri.partition('?')[0]}")
    folder, incoming = scratch_dir / "sha256", scratch_dir / "incoming"
    for each in (folder, incoming):
        each.mkdir(parents=True, exist_ok=True)
    _forget_old_parts(incoming)
    name = hashlib.sha256(uri.encode()).hexdigest()
    part = incoming / f"{name}.part"
    progress = Progress(_STEP, log, check)
    lock = file_lock(incoming / f".{name}.lock", timeout=_LOCK_SECONDS, check=check)
    with full_disk_told(_STEP, scratch_dir), lock:
        digest = _fetch(uri, part, store, progress, https=https, hub=hub, wait=wait)
        size = part.stat().st_size
        if size == 0:
            part.unlink()
            raise BuildFailed("weights: the file is empty")
        path = folder / digest
        # Runners read it as another user.
        part.chmod(0o444)
        part.replace(path)
    return WeightsRecord(_put(path, digest, size, store, log), f"sha256:{digest}", size, path)


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
    name, size = sha256_of(source), source.stat().st_size
    return WeightsRecord(_put(source, name, size, store, log), f"sha256:{name}", size, source)


def _put(path: Path, digest: str, size: int, store: ObjectStore, log: Log) -> str:
    bucket, key = store.bucket(Modality.MODEL), weights_key(digest)
    url = format_s3_uri(bucket, key)
    if _stored(url, size, store):
        log.line(_STEP, f"already stored as {url}")
    else:
        log.line(_STEP, f"storing {size} bytes as {url}")
        store.put_file(bucket, key, path)
    return url


def _stored(url: str, size: int, store: ObjectStore) -> bool:
    with suppress(NotFound):
        return store.stat(url).size_bytes == size
    return False


def _fetch(
    uri: str, part: Path, store: ObjectStore, progress: Progress, *, https: Https, hub: Hub | None,
    wait: float,
) -> str:  # fmt: skip
    """Fill `part`; the hex SHA-256 of it."""
    if uri.startswith("hf://"):
        repo, revision, file = parse_hf(uri.removeprefix("hf://"))
        fetch_from_hub(hub or Hub(), repo, revision, file, part, progress, wait=wait)
        return sha256_of(part)
    if uri.startswith("https://"):
        return download(part, _https_source(uri, https), progress, wait)
    digest = download(part, _store_source(uri, store), progress, wait)
    expected = _own_checksum(uri, store)
    if expected is not None and digest != expected:
        part.unlink()
        raise Conflict(f"{uri} has checksum sha256:{digest}, expected sha256:{expected}")
    return digest


def _own_checksum(uri: str, store: ObjectStore) -> str | None:
    """The checksum that weights of this store are named by already: the bytes must be those."""
    bucket, key = parse_s3_uri(uri)
    own = bucket == store.bucket(Modality.MODEL) and key.startswith(weights_key(""))
    return key.removeprefix(weights_key("")) if own else None


def _store_source(uri: str, store: ObjectStore) -> Open:
    @contextmanager
    def open_at(start: int, validator: str | None) -> Generator[Piece]:
        try:
            found = store.stat(uri)
            begin = start if validator == found.etag and start < found.size_bytes else 0
            with store.stream(uri, begin, found.etag) as chunks:
                yield Piece(begin, found.size_bytes, found.etag, chunks)
        except NotFound as error:
            raise BuildFailed(
                f"weights: {uri} does not exist; upload it first or correct weights_uri"
            ) from error

    return open_at


def _https_source(uri: str, https: Https) -> Open:
    @contextmanager
    def open_at(start: int, validator: str | None) -> Generator[Piece]:
        headers = {"Range": f"bytes={start}-", "If-Range": validator} if start and validator else {}
        try:
            with https(uri, headers=headers) as response:
                yield _piece(response)
        except httpx.HTTPError as error:
            raise Broken(str(error) or type(error).__name__) from error

    return open_at


def _piece(response: httpx.Response) -> Piece:
    # A weak tag (W/) names a meaning, not bytes.
    tag = response.headers.get("etag", "")
    validator = tag if tag.startswith('"') else None
    start, total = 0, response.headers.get("content-length", "")
    if response.status_code == _PARTIAL_CONTENT:
        unit, _, place = response.headers.get("content-range", "").partition(" ")
        span, _, total = place.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdigit():
            raise Broken("the server gave a part without saying which")
        start = int(first)
    # As they come: what is kept back to fill a chunk would be lost when the connection breaks.
    return Piece(start, int(total) if total.isdigit() else None, validator, response.iter_raw())


def _forget_old_parts(incoming: Path) -> None:
    for each in incoming.iterdir():
        with suppress(FileNotFoundError):
            if each.name[0] != "." and each.stat().st_mtime < time.time() - _PART_SECONDS:
                if each.is_dir():
                    shutil.rmtree(each, ignore_errors=True)
                else:
                    each.unlink()
