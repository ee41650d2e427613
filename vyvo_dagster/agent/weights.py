"""The node's cache of weights, addressed by their SHA-256."""

import asyncio
import re
import shutil
from collections import defaultdict
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from vyvo_dagster.errors import InvalidWeightsUri, RunnerFailed, Unavailable
from vyvo_dagster.objects import ObjectStore

__all__ = ["WeightsCache"]

_HEX = re.compile(r"[0-9a-f]{64}")
# What a download leaves free for the rest of the host.
_RESERVE_BYTES: Final = 256 << 20


class WeightsCache:
    """Weights under `<root>/sha256/<hex>`, read-only, each file whole and verified or absent.

    Args:
        root: folder of the cache; made when first needed.
        executor: threads for downloads.
    """

    def __init__(self, root: Path, executor: Executor) -> None:
        self._folder = root / "sha256"
        self._executor = executor
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def sweep(self) -> None:
        """Delete what downloads of an agent that was killed left behind."""
        for partial in self._folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)

    async def fetch(
        self, store: ObjectStore, url: str, checksum: str, size_bytes: int | None = None
    ) -> Path:
        """The local path of the weights at `url`, downloaded unless they are here.

        Args:
            store: where `url` is.
            url: `s3://bucket/key`.
            checksum: SHA-256 of the bytes in hex, with or without `sha256:`.
            size_bytes: size, where known.

        Raises:
            InvalidWeightsUri: the checksum is none.
            RunnerFailed: no room on the disk.
            Conflict: the bytes are not those of the checksum.
            NotFound, Unavailable: as the store answers.
        """
        digest = checksum.removeprefix("sha256:").lower()
        if not _HEX.fullmatch(digest):
            raise InvalidWeightsUri(
                f"weights need a checksum sha256:<64 hex digits>; got {checksum[:80]!r}"
            )
        path = self._folder / digest
        async with self._locks[digest]:
            if path.is_file() and size_bytes in {None, path.stat().st_size}:
                return path
            self._check_room(size_bytes or 0)
            await self._download(store, url, path, digest)
        return path

    async def _download(self, store: ObjectStore, url: str, path: Path, digest: str) -> None:
        # A thread cannot be canceled: the flag ends it at its next chunk.
        abandoned = False

        def check(_done: int) -> None:
            if abandoned:
                raise Unavailable("the download was abandoned")

        def download() -> None:
            store.get_to_file(url, path, sha256=digest, progress=check)
            path.chmod(0o444)

        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, download)
        finally:
            abandoned = True

    def _check_room(self, size_bytes: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if size_bytes + _RESERVE_BYTES > free:
            raise RunnerFailed(
                f"the weights take {size_bytes} bytes and {self._folder} has {free} free; make room there"
            )
