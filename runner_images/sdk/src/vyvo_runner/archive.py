"""Unpack weights that nobody vouches for."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

__all__ = ["unpack"]

_CHUNK = 1024 * 1024


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar's files into `folder`, and nothing else of it: no links, no devices, no modes.

    Raises:
        ValueError: an entry that would lie outside the folder, or is neither file nor folder.
    """
    root = folder.resolve()
    with tarfile.open(str(archive)) as tar:
        for member in tar:
            target = (root / member.name).resolve()
            source = tar.extractfile(member) if member.isfile() else None
            inside = target == root or root in target.parents
            if not inside or (source is None and not member.isdir()):
                raise ValueError(f"refusing the tar's entry {member.name[:100]!r}")
            if source is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
