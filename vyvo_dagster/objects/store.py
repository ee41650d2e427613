"""The object store of artifacts, weights and logs, over the minio SDK.

Synchronous: the agent and the api run it in threads. Nothing here knows a database.
"""

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject

from vyvo_dagster.domain.artifact import OUTPUTS, is_output
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import Conflict, InvalidInput, NotFound
from vyvo_dagster.objects.buckets import ensure_bucket, set_lifecycle
from vyvo_dagster.objects.connection import MISSING, connect, connection_pool, mapped
from vyvo_dagster.objects.object_key import object_key
from vyvo_dagster.objects.uri import S3Uri, format_s3_uri, parse_s3_uri
from vyvo_dagster.settings import S3Settings

__all__ = ["ListedObject", "ObjectStat", "ObjectStore"]

_CHUNK: Final = 1 << 20
_PART: Final = 16 << 20
_OURS: Final = "x-amz-meta-"
_ARTIFACT_TTL: Final = 7 * 86400
_LOG_TTL: Final = 90 * 86400


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What the store says of one object."""

    uri: str
    size_bytes: int
    etag: str
    content_type: str
    modified_at: datetime
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a listing; `modified_at` by the store's clock."""

    uri: str
    size_bytes: int
    modified_at: datetime


class ObjectStore:
    """One S3 endpoint as one identity.

    Args:
        settings: endpoint, credentials and bucket prefix.
        artifact_ttl_seconds: age at which the store may expire objects of output buckets.
        log_ttl_seconds: the same for build logs. Weights never expire.
        connect_timeout: seconds to reach the endpoint.
        read_timeout: seconds of silence after which a transfer is given up.

    Methods raise Unavailable when the endpoint does not answer or refuses the credentials,
    NotFound for a missing object or bucket, InvalidInput for a malformed location.
    """

    def __init__(
        self,
        settings: S3Settings,
        *,
        artifact_ttl_seconds: int = _ARTIFACT_TTL,
        log_ttl_seconds: int = _LOG_TTL,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
    ) -> None:
        self._settings = settings
        self._artifact_ttl = artifact_ttl_seconds
        self._log_ttl = log_ttl_seconds
        pool = connection_pool(connect_timeout, read_timeout)
        self._client = connect(settings.endpoint, settings, pool)
        # A signature covers the host, so URLs for clients are signed by a client that has theirs.
        public = settings.public_endpoint or settings.endpoint
        self._public = connect(public, settings, pool)

    def bucket(self, modality: Modality) -> str:
        """Name of the bucket of a modality, such as `vyvo-image`."""
        return f"{self._settings.bucket_prefix}{modality}"

    def is_output(self, uri: str) -> bool:
        """Whether a job may have made what is there: an output's key in an output's bucket.

        Raises:
            InvalidInput: it is no location of an object.
        """
        bucket, key = parse_s3_uri(uri)
        return any(
            bucket == self.bucket(modality) and is_output(modality, key) for modality in OUTPUTS
        )

    def output_key(self, moment: datetime, owner: str, sha256: str, extension: str) -> str:
        """Key of an output of `owner`, a prediction; see object_key."""
        secret = self._settings.secret_key.get_secret_value()
        return object_key(secret, moment, owner, sha256, extension)

    def ensure_buckets(self) -> list[str]:
        """Create the bucket of every modality, set its lifecycle rules; return those left without.

        A store without lifecycle rules keeps its objects; the expiry pass deletes them then.
        """
        without: list[str] = []
        for modality in Modality:
            name = self.bucket(modality)
            with self._mapped(name):
                ensure_bucket(self._client, name, self._settings.region)
                if not set_lifecycle(self._client, name, self._ttl(modality)):
                    without.append(name)
        return without

    def put_file(
        self,
        bucket: str,
        key: str,
        path: Path,
        content_type: str = "application/octet-stream",
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Stream a file into the store; return its `s3://` location."""
        uri = format_s3_uri(bucket, key)
        with path.open("rb") as file:
            self._put(
                uri,
                bucket,
                key,
                file,
                os.fstat(file.fileno()).st_size,
                content_type=content_type,
                metadata=metadata,
            )
        return uri

    def put_bytes(
        self,
        bucket: str,
        key: str,
        data: bytes,
        content_type: str = "application/octet-stream",
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Store bytes; return their `s3://` location."""
        uri = format_s3_uri(bucket, key)
        self._put(
            uri,
            bucket,
            key,
            io.BytesIO(data),
            len(data),
            content_type=content_type,
            metadata=metadata,
        )
        return uri

    def get_to_file(
        self,
        uri: str,
        path: Path,
        *,
        sha256: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        """Download an object to `path`, which appears whole or not at all.

        Args:
            uri: `s3://bucket/key`.
            path: destination; its folder is made.
            sha256: what the bytes must hash to, in hex, with or without `sha256:`.
            progress: called with the bytes so far.

        Returns:
            The hex SHA-256 of the bytes.

        Raises:
            Conflict: the bytes are not those of the checksum.
        """
        bucket, key = parse_s3_uri(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
        try:
            with self._mapped(uri):
                found = self._stream(bucket, key, partial, progress)
            wanted = sha256.removeprefix("sha256:").lower() if sha256 else found
            if found != wanted:
                raise Conflict(f"{uri} has checksum sha256:{found}, expected sha256:{wanted}")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return found

    @contextmanager
    def stream(self, uri: str, start: int, etag: str) -> Generator[Generator[bytes]]:
        """An object's bytes from `start` on, in chunks of at most 1 MiB.

        Raises:
            Unavailable: the object is another than `etag` by now, or the connection broke.
        """
        bucket, key = parse_s3_uri(uri)
        with self._mapped(uri):
            response: Any = self._client.get_object(
                bucket_name=bucket, object_name=key, offset=start,
                request_headers={"If-Match": f'"{etag.strip(chr(34))}"'},
            )  # fmt: skip
            try:
                yield response.stream(_CHUNK)
            finally:
                response.close()
                response.release_conn()

    def get_bytes(self, uri: str, *, max_bytes: int = 64 << 20) -> bytes:
        """A small object's bytes; InvalidInput if it is larger than `max_bytes`."""
        bucket, key = parse_s3_uri(uri)
        with self._mapped(uri):
            response: Any = self._client.get_object(bucket_name=bucket, object_name=key)
            try:
                data: bytes = response.read(max_bytes + 1)
            finally:
                response.close()
                response.release_conn()
        if len(data) > max_bytes:
            raise InvalidInput(f"{uri} is larger than {max_bytes} bytes")
        return data

    def get_range(self, uri: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; empty at and after the end. NotFound as get_bytes."""
        left = self.stat(uri).size_bytes - offset
        if left <= 0:
            return b""
        bucket, key = parse_s3_uri(uri)
        with self._mapped(uri):
            response: Any = self._client.get_object(
                bucket_name=bucket, object_name=key, offset=offset, length=min(length, left)
            )
            try:
                data: bytes = response.read()
            finally:
                response.close()
                response.release_conn()
        return data

    def stat(self, uri: str) -> ObjectStat:
        """Size, type, time and user metadata of an object."""
        bucket, key = parse_s3_uri(uri)
        with self._mapped(uri):
            found = self._client.stat_object(bucket_name=bucket, object_name=key)
        # What the SDK calls metadata are all headers of the answer.
        meta = {
            k.lower().removeprefix(_OURS): str(v)
            for k, v in (found.metadata or {}).items()
            if k.lower().startswith(_OURS)
        }
        return ObjectStat(
            uri=uri,
            size_bytes=found.size or 0,
            etag=found.etag or "",
            content_type=found.content_type or "application/octet-stream",
            modified_at=found.last_modified or datetime.now(UTC),
            metadata=meta,
        )

    def copy(self, source: str, bucket: str, key: str) -> str:
        """Copy inside the store, without moving bytes through here; return the new location."""
        origin = parse_s3_uri(source)
        uri = format_s3_uri(bucket, key)
        with self._mapped(source):
            self._client.copy_object(
                bucket_name=bucket,
                object_name=key,
                source=CopySource(bucket_name=origin.bucket, object_name=origin.key),
            )
        return uri

    def presign_get(self, uri: str, expires_seconds: int, *, filename: str | None = None) -> str:
        """A URL that reads the object without credentials for `expires_seconds` (1 to 604800).

        Signed for `public_endpoint` where that is set; no request is made.
        """
        bucket, key = parse_s3_uri(uri)
        headers: Any = None
        if filename is not None:
            quoted = "".join(c if c.isalnum() or c in "._- " else "_" for c in filename)
            headers = {"response-content-disposition": f'inline; filename="{quoted}"'}
        with self._mapped(uri):
            return self._public.presigned_get_object(
                bucket_name=bucket,
                object_name=key,
                expires=timedelta(seconds=expires_seconds),
                response_headers=headers,
            )

    def delete(self, uri: str) -> None:
        """Delete an object; one that is gone already is no error."""
        bucket, key = parse_s3_uri(uri)
        with suppress(NotFound), self._mapped(uri):
            self._client.remove_object(bucket_name=bucket, object_name=key)

    def delete_many(self, uris: Iterable[str]) -> dict[str, str]:
        """Delete objects, a thousand a request; by location, why one could not be deleted.

        Those that are gone already are no error.

        Raises:
            Unavailable: the store does not answer; some may be deleted, and a repeat does no harm.
        """
        failed: dict[str, str] = {}
        by_bucket: dict[str, list[str]] = {}
        for uri in uris:
            bucket, key = parse_s3_uri(uri)
            by_bucket.setdefault(bucket, []).append(key)
        for bucket, keys in by_bucket.items():
            with self._mapped(bucket):
                for fault in self._client.remove_objects(
                    bucket_name=bucket, delete_object_list=[DeleteObject(key) for key in keys]
                ):
                    if fault.code not in MISSING:
                        failed[f"s3://{bucket}/{fault.name}"] = f"{fault.code}: {fault.message}"
        return failed

    def list(self, bucket: str, prefix: str = "") -> Generator[S3Uri]:
        """Every object under `prefix`, in key order."""
        for entry in self.entries(bucket, prefix):
            yield parse_s3_uri(entry.uri)

    def entries(self, bucket: str, prefix: str = "") -> Generator[ListedObject]:
        """As list, with what a listing tells of each; objects that no location can name are left out."""
        with self._mapped(bucket):
            for item in self._client.list_objects(
                bucket_name=bucket, prefix=prefix, recursive=True
            ):
                if not item.object_name or item.is_dir or item.last_modified is None:
                    continue
                with suppress(InvalidInput):
                    uri = format_s3_uri(bucket, item.object_name)
                    yield ListedObject(uri, item.size or 0, item.last_modified)

    def _put(
        self,
        uri: str,
        bucket: str,
        key: str,
        data: Any,
        length: int,
        *,
        content_type: str,
        metadata: Mapping[str, str] | None,
    ) -> None:
        with self._mapped(uri):
            self._client.put_object(
                bucket_name=bucket,
                object_name=key,
                data=data,
                length=length,
                content_type=content_type,
                metadata=dict(metadata) if metadata else None,
                part_size=_PART if length > _PART else 0,
            )

    def _stream(
        self, bucket: str, key: str, partial: Path, progress: Callable[[int], None] | None
    ) -> str:
        digest, done = hashlib.sha256(), 0
        response: Any = self._client.get_object(bucket_name=bucket, object_name=key)
        try:
            with partial.open("wb") as file:
                for chunk in response.stream(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done)
                file.flush()
                os.fsync(file.fileno())
        finally:
            response.close()
            response.release_conn()
        return digest.hexdigest()

    def _ttl(self, modality: Modality) -> int | None:
        if modality is Modality.MODEL:
            return None
        return self._log_ttl if modality is Modality.LOG else self._artifact_ttl

    def _mapped(self, what: str) -> AbstractContextManager[None]:
        return mapped(self._settings.endpoint, what)
