"""Environments and wheelhouses on this host, as what may be removed. See `caches`."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vyvo_dagster.building.caches import tree_size

__all__ = ["Removable", "environments", "wheelhouses"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ASIDE: Final = ".removed"


@dataclass(frozen=True, slots=True)
class Removable:
    """One folder of a cache. `name` is what versions and builds call it."""

    name: str
    path: Path

    def size_bytes(self) -> int:
        """Bytes of its files."""
        return tree_size(self.path)

    def set_aside(self, unused_since: float) -> bool:
        """Take it out of the cache, at once and whole; False where it was used meanwhile, or is gone."""
        try:
            if self.path.stat().st_mtime > unused_since:
                return False
            self.path.rename(self._aside)
        except OSError:
            return False
        return True

    def delete(self) -> None:
        """Delete what was set aside."""
        shutil.rmtree(self._aside, ignore_errors=True)

    @property
    def _aside(self) -> Path:
        return self.path.with_name(f".{self.path.name}{_ASIDE}")


def environments(root: Path, unused_since: float) -> Iterator[Removable]:
    """Environments of the venv backend that were not used since a time, in seconds since the epoch."""
    return _unused(root / "venvs", "venv://sha256:", unused_since)


def wheelhouses(root: Path, unused_since: float) -> Iterator[Removable]:
    """Wheelhouses, named by their lock, that were not used since a time."""
    return _unused(root / "wheelhouses", "sha256:", unused_since)


def _unused(folder: Path, prefix: str, unused_since: float) -> Iterator[Removable]:
    if not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") and entry.name.endswith(_ASIDE):
            # Of a run that was killed while it deleted.
            shutil.rmtree(entry.path, ignore_errors=True)
        elif _DIGEST.fullmatch(entry.name) and entry.stat().st_mtime <= unused_since:
            yield Removable(f"{prefix}{entry.name}", Path(entry.path))
