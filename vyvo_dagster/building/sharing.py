"""A file handed to others by a signed URL, for as long as they need it."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vyvo_dagster.domain.model import Modality
from vyvo_dagster.objects import ObjectStore

__all__ = ["shared_file"]

_SECONDS: Final = 6 * 3600


@contextmanager
def shared_file(store: ObjectStore, build_id: str, path: Path) -> Generator[str]:
    """The URL of `path` in the store, until the block ends; then it is deleted.

    In the bucket of logs, whose objects expire, should this host die before that.
    """
    uri = store.put_file(store.bucket(Modality.LOG), f"handed-over/{build_id}/{path.name}", path)
    try:
        yield store.presign_get(uri, _SECONDS)
    finally:
        store.delete(uri)
