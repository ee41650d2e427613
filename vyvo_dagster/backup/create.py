"""Back up a running installation.

The order is what loses nothing: the registry first, as of one moment; then Dagster's database; then the
objects. An object is stored before a row names it, so that whatever the dumped rows name is in the store
when it is copied. What came later is more than the rows know, and is swept after a restore. Redis is left
out: all that it holds is written again from the rows.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Final

from vyvo_dagster.backup.dumps import dump
from vyvo_dagster.backup.manifest import FORMAT, Manifest, StoredObject, content_path, digest_of
from vyvo_dagster.backup.site import Site
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import Conflict, NotFound
from vyvo_dagster.objects import ListedObject, ObjectStore, parse_s3_uri

__all__ = ["create_backup"]

_THREADS: Final = 8
_AT_ONCE: Final = 256

Progress = Callable[[str], None]


def create_backup(site: Site, folder: Path, progress: Progress) -> Manifest:
    """Write a backup to `folder`, which appears when it is whole.

    Raises:
        Conflict: the folder exists.
        Unavailable: a server does not answer.
    """
    if folder.exists():
        raise Conflict(f"{folder} exists; a backup is a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    # Others' data, and secrets of webhooks among them.
    draft.mkdir(mode=0o700)
    try:
        manifest = _write(site, draft, progress)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return manifest


def _write(site: Site, folder: Path, progress: Progress) -> Manifest:
    began, databases = datetime.now(UTC), dict[str, str]()
    for name, dsn in site.databases.items():
        path = folder / f"{name}.dump"
        dump(dsn, path)
        databases[path.name] = digest_of(path)
        progress(f"database {name}: {path.stat().st_size} bytes")
    objects = ObjectStore(site.s3)
    count = size = vanished = 0
    with (folder / "objects.jsonl").open("w", encoding="utf-8") as lines:
        for copied in _copied(objects, folder):
            if copied is None:
                vanished += 1
                continue
            lines.write(json.dumps(asdict(copied)) + "\n")
            count, size = count + 1, size + copied.size_bytes
            if count % 1000 == 0:
                progress(f"{count} objects, {size} bytes")
    progress(f"{count} objects, {size} bytes")
    manifest = Manifest(
        format=FORMAT, version=version("vyvo-dagster"), began_at=began.isoformat(),
        ended_at=datetime.now(UTC).isoformat(), databases=databases,
        files={"objects.jsonl": digest_of(folder / "objects.jsonl")},
        bucket_prefix=site.s3.bucket_prefix, objects=count, object_bytes=size, vanished=vanished,
    )  # fmt: skip
    # The manifest vouches for what is on the disk, not on its way there.
    os.sync()
    manifest.write(folder)
    return manifest


def _copied(objects: ObjectStore, folder: Path) -> Iterator[StoredObject | None]:
    """Every object, copied; None for one that went meanwhile."""
    entries = _entries(objects)
    with ThreadPoolExecutor(_THREADS, "backup") as threads:
        while batch := list(islice(entries, _AT_ONCE)):
            copies: list[Future[StoredObject | None]] = [
                threads.submit(_copy, objects, folder, entry) for entry in batch
            ]
            for copy in as_completed(copies):
                yield copy.result()


def _entries(objects: ObjectStore) -> Iterator[ListedObject]:
    for modality in Modality:
        try:
            yield from objects.entries(objects.bucket(modality))
        except NotFound:
            continue


def _copy(objects: ObjectStore, folder: Path, entry: ListedObject) -> StoredObject | None:
    part = folder / "objects" / f"{secrets.token_hex(8)}.partial"
    try:
        sha256 = objects.get_to_file(entry.uri, part)
        stat = objects.stat(entry.uri)
    except NotFound:
        part.unlink(missing_ok=True)
        return None
    size = part.stat().st_size
    path = content_path(folder, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)
    bucket, key = parse_s3_uri(entry.uri)
    return StoredObject(bucket, key, sha256, size, stat.content_type, dict(stat.metadata))
