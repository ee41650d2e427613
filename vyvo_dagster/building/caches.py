"""Folders that builds share: made once, whole, named by what is in them."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vyvo_dagster.building.types import BuildContext
from vyvo_dagster.errors import BuildFailed

__all__ = ["NOT_SOURCE", "cached_folder", "file_lock", "sha256_of", "tree_hash", "tree_size"]

NOT_SOURCE: Final = (
    "__pycache__",
    "*.pyc",
    ".venv",
    ".git",
    "dist",
    "build",
    "*.egg-info",
    ".*_cache",
)
"""Names that are made from a source tree and are no part of it."""

_POLL_SECONDS: Final = 0.1


def cached_folder(folder: Path, make: Callable[[Path], None], context: BuildContext) -> Path:
    """Let `make` fill a folder that then appears whole under its name, or return what is there.

    Of several builds that want it at once one makes it and the others wait.

    Raises:
        BuildFailed: another build was at it for longer than the context's timeout.
        Whatever `make` raises; nothing is left then.
    """
    if _used(folder):
        return folder
    lock = folder.with_name(f".{folder.name}.lock")
    with file_lock(lock, timeout=context.timeout, check=context.check_canceled):
        if not _used(folder):
            with _partial(folder) as partial:
                make(partial)
                partial.chmod(0o755)
                partial.rename(folder)
    return folder


def _used(folder: Path) -> bool:
    """Whether it is there; its time says from now on that it was used now."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def file_lock(path: Path, *, timeout: float, check: Callable[[], None]) -> Generator[None]:
    """Hold an advisory lock on `path`, which is made and stays.

    The kernel frees it when the holder dies, however it dies.

    Args:
        path: lock file.
        timeout: seconds to wait for another holder.
        check: called while waiting; raises to stop.

    Raises:
        BuildFailed: another process held it all that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                if time.monotonic() > deadline:
                    raise BuildFailed(
                        f"another build has held {path.name} for {timeout:g} s"
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(folder: Path, *, without: frozenset[str] = frozenset()) -> str:
    """Hex SHA-256 over names and bytes of a folder's source files, but those named in `without`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        ignored = any(Path(part).match(pattern) for part in parts for pattern in NOT_SOURCE)
        if path.is_file() and not ignored and parts[0] not in without:
            data = path.read_bytes()
            digest.update(f"{'/'.join(parts)}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()


def tree_size(folder: Path) -> int:
    """Bytes of all files under a folder; links count as themselves."""
    return sum(
        (Path(root) / name).lstat().st_size for root, _, names in os.walk(folder) for name in names
    )


@contextmanager
def _partial(folder: Path) -> Generator[Path]:
    # Leftovers of a build that was killed: nobody else can be at work on it under the lock.
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    name = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
