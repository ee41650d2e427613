"""Put an output into the bucket of its modality, and describe it as an artifact."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO, Dict, NamedTuple, Optional, Union, cast

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from .artifact import Artifact
from .errors import UploadError
from .media import HEAD_BYTES, MODALITIES, extension_of, modality_of, sniff
from .object_key import object_key
from .prediction import prediction_id, span
from .settings import StorageSettings

__all__ = ["upload"]

CONNECT_SECONDS = 5
READ_SECONDS = 60
PART_BYTES = 16 * 1024 * 1024
_BUCKET_EXISTS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


class _Content(NamedTuple):
    stream: BinaryIO
    size: int
    sha256: str
    mime_type: str


class _Digesting:
    """A stream that takes the checksum of what is read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


def upload(
    source: Union[str, os.PathLike[str], bytes, bytearray, memoryview],
    modality: Optional[str] = None,
    *,
    filename: Optional[str] = None,
) -> Dict[str, Any]:
    """Store one output and return its artifact, for the predictor to return or yield.

    The members are those of `Artifact`, as JSON. A file is streamed in parts, four of which are in
    memory at a time, and never read whole. The bucket is made if it is missing. The object's key
    derives from the date, the prediction and the content, so that a repeated attempt at the same
    output overwrites it; without the storage's secret key nothing leads to it.

    Args:
        source: a file's path, or the content itself.
        modality: image, video, audio, text or model; left out, it follows from the content, and
            what is neither image, video nor audio goes with the texts.
        filename: the name to end the key with; left out, it is the content's digest. Its
            extension is kept when it has one.

    Raises:
        UploadError: nothing to read at that path, an unknown modality, a file that changes while it
            is sent, or a storage server that refuses or does not answer.
        SettingsError: the environment does not say where outputs go.
    """
    with span("upload artifact"):
        return _upload(source, modality, filename)


def _upload(
    source: Union[str, os.PathLike[str], bytes, bytearray, memoryview],
    modality: Optional[str],
    filename: Optional[str],
) -> Dict[str, Any]:
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
) -> Dict[str, Any]:
    modality = _modality(content, modality)
    bucket = settings.bucket_prefix + modality
    now = datetime.now(timezone.utc).replace(microsecond=0)
    key = object_key(
        settings.secret_key,
        now,
        prediction_id() or "",
        content.sha256,
        extension_of(content.mime_type),
        filename,
    )
    artifact = Artifact(
        type=modality,
        url=f"s3://{bucket}/{key}",
        size_bytes=content.size,
        mime_type=content.mime_type,
        expires_at=now + timedelta(seconds=settings.ttl_seconds),
    ).as_json()
    metadata = {"sha256": content.sha256, "expires-at": artifact["expires_at"]}
    _put(settings, bucket, key, content, metadata)
    return artifact


def _modality(content: _Content, modality: Optional[str]) -> str:
    chosen = modality if modality is not None else modality_of(content.mime_type)
    if chosen not in MODALITIES:
        raise UploadError(f"unknown modality {chosen[:40]!r}; use one of {', '.join(MODALITIES)}")
    return chosen


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
        sent = _Digesting(content.stream)
        client.put_object(
            bucket,
            key,
            cast("BinaryIO", sent),
            content.size,
            content_type=content.mime_type,
            metadata=metadata,
            part_size=PART_BYTES,
        )
        if sent.digest.hexdigest() != content.sha256:
            client.remove_object(bucket, key)
            raise UploadError("the output changed while it was sent; write it whole, then upload")

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
