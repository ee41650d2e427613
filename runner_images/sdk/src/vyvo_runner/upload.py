"""Put an output into the bucket of its modality, and describe it as an artifact."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Dict, NamedTuple, Optional, TypedDict, Union

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from .errors import UploadError
from .media import HEAD_BYTES, MODALITIES, extension_of, modality_of, sniff
from .prediction import prediction_id, span
from .settings import StorageSettings

__all__ = ["Artifact", "upload"]

CONNECT_SECONDS = 5
READ_SECONDS = 60
PART_BYTES = 16 * 1024 * 1024
_BUCKET_EXISTS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Artifact(TypedDict):
    """What `upload` returns; JSON as it is."""

    type: str
    """The modality: image, video, audio, text or model."""
    url: str
    """`s3://<bucket>/<key>`."""
    size_bytes: int
    mime_type: str
    expires_at: str
    """ISO 8601, UTC."""


class _Content(NamedTuple):
    stream: BinaryIO
    size: int
    sha256: str
    mime_type: str


def upload(
    source: Union[str, os.PathLike[str], bytes, bytearray, memoryview],
    modality: Optional[str] = None,
    *,
    filename: Optional[str] = None,
) -> Artifact:
    """Store one output and return its artifact, for the predictor to return or yield.

    A file is streamed, never read whole. The bucket is made if it is missing. The object's key
    derives from the date, the prediction and the content, so that a repeated attempt at the same
    output overwrites it, and a job's id alone does not lead to it.

    Args:
        source: a file's path, or the content itself.
        modality: image, video, audio, text or model; left out, it follows from the content.
        filename: the name to end the key with; left out, it is the content's digest. Its
            extension is kept when it has one.

    Raises:
        UploadError: nothing to read at that path, an unknown modality, content whose modality
            cannot be told, or a storage server that refuses or does not answer.
        SettingsError: the environment does not say where outputs go.
    """
    with span("upload artifact"):
        return _upload(source, modality, filename)


def _upload(
    source: Union[str, os.PathLike[str], bytes, bytearray, memoryview],
    modality: Optional[str],
    filename: Optional[str],
) -> Artifact:
    settings = StorageSettings.from_env()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _store(settings, _describe(io.BytesIO(bytes(source))), modality, filename)
    path = Path(os.fspath(source))
    try:
        with path.open("rb") as stream:
            return _store(settings, _describe(stream), modality, filename)
    except OSError as error:
        raise UploadError(
            f"cannot read the output {str(path)!r}: {error.strerror or error}"
        ) from error


def _describe(stream: BinaryIO) -> _Content:
    digest, size = hashlib.sha256(), 0
    head = stream.read(HEAD_BYTES)
    chunk = head
    while chunk:
        digest.update(chunk)
        size += len(chunk)
        chunk = stream.read(1024 * 1024)
    stream.seek(0)
    return _Content(stream, size, digest.hexdigest(), sniff(head, complete=size == len(head)))


def _store(
    settings: StorageSettings, content: _Content, modality: Optional[str], filename: Optional[str]
) -> Artifact:
    modality = _modality(content, modality)
    bucket = settings.bucket_prefix + modality
    now = datetime.now(timezone.utc).replace(microsecond=0)
    key = _key(now, content, filename)
    expires_at = _iso(now + timedelta(seconds=settings.ttl_seconds))
    metadata: Dict[str, Any] = {"sha256": content.sha256, "expires-at": expires_at}
    _put(settings, bucket, key, content, metadata)
    return {
        "type": modality,
        "url": f"s3://{bucket}/{key}",
        "size_bytes": content.size,
        "mime_type": content.mime_type,
        "expires_at": expires_at,
    }


def _modality(content: _Content, modality: Optional[str]) -> str:
    chosen = modality if modality is not None else modality_of(content.mime_type)
    if chosen is None:
        names = ", ".join(MODALITIES)
        raise UploadError(
            f"content of type {content.mime_type} has no modality; pass one of {names}"
        )
    if chosen not in MODALITIES:
        raise UploadError(f"unknown modality {chosen[:40]!r}; use one of {', '.join(MODALITIES)}")
    return chosen


def _key(now: datetime, content: _Content, filename: Optional[str]) -> str:
    name = content.sha256[:32]
    if filename is not None:
        # Only the last part of a path, so that no name climbs out of its folder.
        wanted = _UNSAFE.sub("-", Path(filename.replace("\\", "/")).name).strip(".-")[-100:]
        name = f"{name}-{wanted}" if wanted else name
    if not PurePosixPath(name).suffix:
        name += extension_of(content.mime_type)
    owner = _UNSAFE.sub("-", prediction_id() or "").strip(".-")[:128]
    return "/".join(part for part in (now.strftime("%Y/%m/%d"), owner, name) if part)


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.lru_cache(maxsize=4)
def _client(settings: StorageSettings) -> Minio:
    # Minio's own pool waits five minutes for a server that does not answer.
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(total=3, backoff_factor=0.3, status_forcelist=(500, 502, 503, 504)),
        maxsize=8,
    )
    return Minio(
        settings.endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        region=settings.region,
        secure=settings.secure,
        http_client=pool,
    )


def _put(
    settings: StorageSettings, bucket: str, key: str, content: _Content, metadata: Dict[str, Any]
) -> None:
    client = _client(settings)

    def put() -> None:
        content.stream.seek(0)
        client.put_object(
            bucket,
            key,
            content.stream,
            content.size,
            content_type=content.mime_type,
            metadata=metadata,
            part_size=PART_BYTES,
        )

    try:
        try:
            put()
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            _make_bucket(client, bucket)
            put()
    except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
        reason = str(error).splitlines()[0][:300]
        raise UploadError(
            f"cannot store the output at {settings.endpoint}/{bucket}: {reason}"
        ) from error


def _make_bucket(client: Minio, bucket: str) -> None:
    try:
        client.make_bucket(bucket)
    except S3Error as error:
        # Another runner made it first.
        if error.code not in _BUCKET_EXISTS:
            raise
