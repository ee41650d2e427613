"""The file on the build host that holds a log while it is written: one JSON object a line.

A disk that is full must not keep a build from saying so: what the file does not take stays in
memory, and is stored with it.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any, Final, cast

from vyvo_dagster.objects import ObjectStore

__all__ = ["Spool", "encoded"]

_TYPE: Final = "application/x-ndjson"


def encoded(row: dict[str, Any]) -> str:
    """One line as it is stored, and as followers get it."""
    return json.dumps(row, separators=(",", ":"))


class Spool:
    """Lines numbered from 1, appended in order. Not for several threads at once.

    Args:
        path: of the file; what an earlier process wrote there is gone on with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines = self.bytes = 0
        self._unwritten: list[str] = []
        self._file: IO[bytes] | None = None
        self._restore()

    def append(self, row: dict[str, Any]) -> None:
        """Add the next line; never raises."""
        text = encoded(row) + "\n"
        self.lines += 1
        self.bytes += len(text)
        if self._unwritten or self._file is None:
            self._unwritten.append(text)
            return
        data = text.encode()
        try:
            whole = self._file.write(data) == len(data)
        except OSError:
            whole = False
        if whole:
            self._written += len(data)
        else:
            # What of it was written is passed over by `_all`, and cut off by the next sink.
            self._unwritten.append(text)

    def rows(self, after: int) -> Generator[dict[str, Any]]:
        """The lines after line `after`."""
        for row in self._all():
            if row["n"] > after:
                yield row

    def store(self, store: ObjectStore, bucket: str, key: str) -> str:
        """Store the whole of it; returns its URL."""
        if not self._unwritten:
            return store.put_file(bucket, key, self._path, _TYPE)
        data = "".join(encoded(row) + "\n" for row in self._all())
        return store.put_bytes(bucket, key, data.encode(), _TYPE)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _all(self) -> Generator[dict[str, Any]]:
        left = self._written
        if left:
            with self._path.open("rb") as file:
                while left > 0 and (raw := file.readline()):
                    left -= len(raw)
                    yield json.loads(raw)
        for text in self._unwritten:
            yield json.loads(text)

    def _restore(self) -> None:
        """Count what is there; half a line of a process that was killed is cut off."""
        self._written = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a process that is killed has written is in the file.
            self._file = self._path.open("a+b", buffering=0)
            with self._path.open("rb") as file:
                while raw := file.readline():
                    if not _is_line(raw, self.lines + 1):
                        break
                    self.lines += 1
                    self._written += len(raw)
            self._file.truncate(self._written)
        except OSError:
            self.close()
        self.bytes = self._written


def _is_line(raw: bytes, n: int) -> bool:
    if not raw.endswith(b"\n"):
        return False
    try:
        row: Any = json.loads(raw)
    except ValueError:
        return False
    return isinstance(row, dict) and cast("dict[str, Any]", row).get("n") == n
