"""Locks in the object store, so that equal requirements are locked alike on every build host."""

from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import NotFound
from vyvo_dagster.objects import ObjectStore, format_s3_uri

__all__ = ["ObjectLocks"]


class ObjectLocks:
    """See `LockStore`. Kept beside the weights, where nothing expires.

    Two hosts that lock the same at the same time may each write; both then read what was written
    last, and so does everyone after them.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, asked: str) -> bytes | None:
        """The lock that was kept for `asked`, a hex SHA-256; Unavailable without the store."""
        try:
            return self._store.get_bytes(self._url(asked))
        except NotFound:
            return None

    def keep(self, asked: str, lock: bytes) -> bytes:
        """Keep a lock, and give the one that is kept."""
        earlier = self.get(asked)
        if earlier is not None:
            return earlier
        self._store.put_bytes(self._store.bucket(Modality.MODEL), _key(asked), lock, "text/plain")
        return self._store.get_bytes(self._url(asked))

    def _url(self, asked: str) -> str:
        return format_s3_uri(self._store.bucket(Modality.MODEL), _key(asked))


def _key(asked: str) -> str:
    return f"locks/{asked}/requirements.lock"
