"""A download that goes on where it broke off, within one build or in the next.

The part that is there is kept as `<name>.part`, and beside it `<name>.validator`, the entity tag of
what it is a part of: bytes of two versions of a file are never joined (RFC 9110, section 13.1.5).
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vyvo_dagster.building.types import Log
from vyvo_dagster.errors import BuildFailed, Unavailable

__all__ = ["Broken", "Open", "Piece", "Progress", "download"]

_CHUNK: Final = 1 << 20
_REPORT_BYTES: Final = 256 << 20
_TRIES: Final = 5
_LONGEST_WAIT: Final = 30.0
# What a download leaves free for the rest of the host.
_RESERVE_BYTES: Final = 64 << 20


class Broken(Exception):
    """A transfer broke off; it may go on."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a server gives: `chunks` from byte `start` on.

    `validator` names this version of the file for If-Range, None where the server has no strong
    name for it. `total` is the whole file's size, None where it does not say.
    """

    start: int
    total: int | None
    validator: str | None
    chunks: Iterator[bytes]


Open = Callable[[int, str | None], AbstractContextManager[Piece]]
"""Opens a file for reading from a byte on, if it still has this validator; else from its start."""


class Progress:
    """A line in the log per 256 MiB, and the moment to notice a cancel."""

    def __init__(self, step: str, log: Log, check: Callable[[], None]) -> None:
        self.log = log
        self._step, self._check, self._next = step, check, _REPORT_BYTES

    def __call__(self, done: int) -> None:
        """Tell of `done` bytes; raises what the check raises."""
        self._check()
        if done >= self._next:
            self.log.line(self._step, f"{done >> 20} MiB")
            self._next = done - done % _REPORT_BYTES + _REPORT_BYTES

    def say(self, text: str) -> None:
        """Log one line."""
        self.log.line(self._step, text)


def download(part: Path, open_at: Open, progress: Progress, wait: float = 1.0) -> str:
    """Fetch a file into `part`, going on with what is there; the hex SHA-256 of the whole.

    Args:
        part: what is there of it, or nothing; left as it is where this fails.
        open_at: opens the source.
        progress: told the bytes so far.
        wait: seconds before the second try, doubled with each that gets no further.

    Raises:
        BuildFailed: five tries in a row brought nothing, or the disk has no room.
        Whatever `open_at` raises but Broken and Unavailable.
    """
    failures, said = 0, ""
    while failures < _TRIES:
        before = _size(part)
        try:
            return _once(part, open_at, progress)
        except (Broken, Unavailable) as error:
            said = str(error)
        failures = failures + 1 if _size(part) <= before else 1
        progress.say(f"the transfer broke off at {_size(part)} bytes ({said}); trying again")
        _sleep(min(wait * 2 ** (failures - 1), _LONGEST_WAIT), progress, part)
    raise BuildFailed(f"weights: the transfer broke off {_TRIES} times ({said}); try again later")


def _once(part: Path, open_at: Open, progress: Progress) -> str:
    validator_file = part.with_suffix(".validator")
    have, validator = _size(part), None
    with suppress(FileNotFoundError):
        validator = validator_file.read_text() or None
    with open_at(have if validator else 0, validator if have else None) as piece:
        if piece.start not in {0, have}:
            raise Broken(f"asked for bytes from {have} on, got them from {piece.start} on")
        _check_room(part, piece)
        digest: Any = hashlib.sha256()
        with part.open("r+b" if piece.start else "wb") as file:
            if piece.start:
                progress.say(f"going on from {piece.start} bytes")
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    progress(0)
            validator_file.write_text(piece.validator or "")
            done = piece.start
            for chunk in piece.chunks:
                digest.update(chunk)
                file.write(chunk)
                done += len(chunk)
                progress(done)
            file.flush()
            os.fsync(file.fileno())
    if piece.total is not None and done != piece.total:
        raise Broken(f"got {done} of {piece.total} bytes")
    validator_file.unlink(missing_ok=True)
    return str(digest.hexdigest())


def _check_room(part: Path, piece: Piece) -> None:
    if piece.total is None:
        return
    status = os.statvfs(part.parent)
    free = status.f_bavail * status.f_frsize
    if piece.total - piece.start + _RESERVE_BYTES > free:
        raise BuildFailed(
            f"weights: {piece.total} bytes are to come and {part.parent} has {free} free; make room there"
        )


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _sleep(seconds: float, progress: Progress, part: Path) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        progress(_size(part))
        time.sleep(min(left, 0.25))
