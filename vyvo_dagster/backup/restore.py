"""Restore a backup into an installation whose servers run and whose services do not.

Objects first, the databases after them, so that no row ever names what is not there yet; a restore that
dies in the objects leaves empty databases, and is begun again. Redis is emptied: its streams are of another past, and the
orchestrator writes them again from the rows.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from vyvo_dagster.backup.dumps import restore
from vyvo_dagster.backup.manifest import (
    Manifest,
    StoredObject,
    content_path,
    digest_of,
    read_manifest,
)
from vyvo_dagster.backup.site import REGISTRY, Site
from vyvo_dagster.errors import Conflict, InvalidInput, Unavailable
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.inspection import others_connected, tables_of
from vyvo_dagster.store.migrate import upgrade
from vyvo_dagster.streams.client import connect_sync, unavailable

__all__ = ["check_backup", "restore_backup"]

_THREADS: Final = 8
_AT_ONCE: Final = 256

Progress = Callable[[str], None]


def check_backup(folder: Path, progress: Progress) -> Manifest:
    """Read every byte of a backup.

    Raises:
        InvalidInput: something is missing, or not as it was written.
    """
    manifest, seen = read_manifest(folder), set[str]()
    for count, each in enumerate(manifest.objects_of(folder), 1):
        if each.sha256 not in seen:
            _whole(folder, each)
            seen.add(each.sha256)
        if count % 1000 == 0:
            progress(f"{count} of {manifest.objects} objects are whole")
    return manifest


def restore_backup(site: Site, folder: Path, progress: Progress) -> Manifest:
    """Bring a backup back.

    Raises:
        InvalidInput: it is no whole backup, or its buckets have other names than this installation's.
        Conflict: a database is not empty, or somebody uses it.
        Unavailable: a server does not answer.
    """
    manifest = read_manifest(folder)
    _check_target(site, manifest)
    objects = ObjectStore(site.s3)
    objects.ensure_buckets()
    entries, count = manifest.objects_of(folder), 0
    with ThreadPoolExecutor(_THREADS, "restore") as threads:
        while batch := list(islice(entries, _AT_ONCE)):
            puts: list[Future[None]] = [
                threads.submit(_put, objects, folder, each) for each in batch
            ]
            for put in as_completed(puts):
                put.result()
                count += 1
            progress(f"{count} of {manifest.objects} objects")
    for name, dsn in site.databases.items():
        dump = folder / f"{name}.dump"
        if dump.name in manifest.databases:
            restore(dsn, dump)
            progress(f"database {name}")
    try:
        upgrade(site.databases[REGISTRY])
        with unavailable(), connect_sync(site.redis_url) as redis:
            redis.flushdb()
    except (SQLAlchemyError, RedisError) as error:
        said = str(error).splitlines()[0][:300]
        raise Unavailable(
            f"all is back but the last step, which can be done by hand (`vyvo migrate`, then FLUSHDB"
            f" of Redis): {said}"
        ) from error
    return manifest


def _check_target(site: Site, manifest: Manifest) -> None:
    if manifest.bucket_prefix != site.s3.bucket_prefix:
        raise InvalidInput(
            f"rows name buckets {manifest.bucket_prefix}*, and here they are {site.s3.bucket_prefix}*;"
            f" set VYVO_S3_BUCKET_PREFIX={manifest.bucket_prefix}"
        )
    for name, dsn in site.databases.items():
        if others_connected(dsn):
            raise Conflict(f"somebody uses the database {name}; stop all services first")
        if tables_of(dsn):
            raise Conflict(f"the database {name} is not empty; restore into a new one")


def _put(objects: ObjectStore, folder: Path, each: StoredObject) -> None:
    path = _whole(folder, each)
    objects.put_file(each.bucket, each.key, path, each.content_type, metadata=each.metadata or None)


def _whole(folder: Path, each: StoredObject) -> Path:
    path = content_path(folder, each.sha256)
    if not path.is_file() or digest_of(path) != each.sha256:
        raise InvalidInput(f"{path} is missing or not as it was written")
    return path
