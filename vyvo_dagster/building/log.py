"""The log of one build: followed live in Redis, kept whole in the object store.

Every line has a number from 1 and appears once, in order, in three places:

- a spool file on the build host, one JSON object a line: `{"n", "t", "step", "text"}`, and `fields`
  where a line has some;
- a Redis stream, entry id `<n>-0`, fields `n`, `t`, `step`, `text`, `fields` (JSON), for those who
  follow. An id that is there already is refused by Redis, so a batch that is sent again after a lost
  answer adds nothing. The last entry has `end`, the build's terminal state;
- after close, the object `builds/<build_id>.log` in the bucket `log`, the same JSON lines.

The steps of a build may run in several processes one after another: a sink that is opened again
goes on where the last one stopped.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import redis

from vyvo_dagster.building.masking import Masker
from vyvo_dagster.building.spool import Spool
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.objects import ObjectStore

__all__ = ["BuildLog", "LogSink"]

_FLUSH_SECONDS: Final = 0.05
_BATCH: Final = 500
_LINE_BYTES: Final = 16 << 10
_TOTAL_BYTES: Final = 64 << 20
_OPEN_TTL: Final = 7 * 86400
# Those who follow read on to the end; everybody else reads the object.
_CLOSED_TTL: Final = 3600


class LogSink(Protocol):
    """Takes the lines of a build."""

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Record text under a step; text with line breaks becomes several lines."""
        ...

    def flush(self) -> None:
        """Return once all lines so far can be read by followers, or after a few seconds."""
        ...

    def close(self, state: BuildState) -> str:
        """End the log; return the URL of the whole of it."""
        ...


class BuildLog:
    """LogSink over a spool file, a Redis stream and the object store. Threads may share one.

    Lines after the end are dropped, those of a sink that is opened after it too: nobody follows
    any more, and the stored log must be what followers saw.

    Args:
        build_id: names the object.
        spool: file on the build host.
        connection: Redis.
        key: of the stream.
        store: where the whole log goes on close.
        secrets: values replaced by `***`, see Masker.

    Raises:
        Unavailable: Redis does not answer when the log is opened.
    """

    def __init__(
        self,
        build_id: str,
        spool: Path,
        connection: "redis.Redis",
        key: str,
        store: ObjectStore,
        *,
        secrets: Iterable[str] = (),
    ) -> None:
        self._build_id, self._redis, self._key = build_id, connection, key
        self._store = store
        self._masked = Masker(secrets)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._stopping = self._cut = self._closed = False
        self._pending: list[dict[str, str]] = []
        self._ended = False
        self._file = Spool(spool)
        try:
            self._restore()
        except BaseException:
            self._file.close()
            raise
        self._flusher = threading.Thread(target=self._run, name=f"log-{build_id}", daemon=True)
        self._flusher.start()

    @property
    def lines(self) -> int:
        """How many lines the log has."""
        return self._file.lines

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Record text under a step.

        Never raises for a Redis that does not answer, or a disk that is full.

        Args:
            step: of the build.
            text: text with line breaks becomes several lines, a very long line several pieces.
            fields: what else is known of it, as JSON; kept with the first of these.
        """
        text = self._masked(text)
        known = self._masked.fields(fields) if fields else None
        with self._wake:
            if self._closed or self._ended:
                return
            for part in text.splitlines() or [""]:
                for piece in _pieces(part):
                    self._add(step, piece, known)
                    known = None
            self._wake.notify()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until followers can read all lines so far, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._wake:
            while self._pending and (left := deadline - time.monotonic()) > 0:
                self._wake.notify()
                self._wake.wait(min(left, _FLUSH_SECONDS))

    def detach(self) -> None:
        """Stop without ending the log: another process goes on with it."""
        self._stop()

    def close(self, state: BuildState) -> str:
        """End the log with the build's terminal state.

        The whole log is stored before the stream says that it ended, so that a follower who sees
        the end can read the object. Closing again stores again and adds no second end.

        Returns:
            `s3://<prefix>log/builds/<build_id>.log`.

        Raises:
            Unavailable: the object store or Redis did not answer. Calling again is safe.
        """
        self._stop()
        bucket, key = self._store.bucket(Modality.LOG), f"builds/{self._build_id}.log"
        url = self._file.store(self._store, bucket, key)
        n = self.lines + 1
        end = {"n": str(n), "t": f"{time.time():.3f}", "step": "", "text": "", "end": str(state)}
        try:
            if self._pending:
                self._send(self._pending)
                self._pending = []
            if not self._ended:
                self._send([end])
                self._ended = True
            self._redis.expire(self._key, _CLOSED_TTL)
        except redis.RedisError as error:
            raise Unavailable(
                f"Redis did not take the end of the log of build {self._build_id}"
            ) from error
        return url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _add(self, step: str, text: str, fields: Mapping[str, Any] | None) -> None:
        if self._cut:
            return
        if self._file.bytes > _TOTAL_BYTES:
            self._cut, step, fields = True, "log", None
            text = f"the log is cut here, at {_TOTAL_BYTES >> 20} MiB"
        row: dict[str, Any] = {"n": self._file.lines + 1, "t": round(time.time(), 3), "step": step}
        row |= {"text": text} | ({"fields": dict(fields)} if fields else {})
        self._file.append(row)
        self._pending.append(_entry(row))

    def _stop(self) -> None:
        self.flush()
        with self._wake:
            self._closed = self._stopping = True
            self._wake.notify_all()
        self._flusher.join(timeout=5.0)
        self._file.close()

    def _run(self) -> None:
        pause = _FLUSH_SECONDS
        while True:
            with self._wake:
                while not self._pending and not self._stopping:
                    self._wake.wait()
                if self._stopping and (not self._pending or pause > _FLUSH_SECONDS):
                    return
                if not self._stopping and len(self._pending) < _BATCH:
                    # What comes within this time travels in the same batch.
                    self._wake.wait_for(lambda: self._stopping, timeout=pause)
                batch = self._pending[:_BATCH]
            try:
                self._send(batch)
            except redis.RedisError:
                # The spool has the lines; followers get them when Redis is back.
                pause = min(pause * 2, 2.0)
                continue
            pause = _FLUSH_SECONDS
            with self._wake:
                del self._pending[: len(batch)]
                self._wake.notify_all()

    def _send(self, batch: list[dict[str, str]]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for entry in batch:
            pipeline.xadd(self._key, cast("Any", entry), id=f"{entry['n']}-0")
        pipeline.expire(self._key, _OPEN_TTL)
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            # "equal or smaller than the target stream top item": sent before, answer lost.
            if isinstance(answer, redis.RedisError) and "equal or smaller" not in str(answer):
                raise answer

    def _restore(self) -> None:
        """Go on with what earlier sinks of this build wrote, here or on another host."""
        try:
            streamed = self._streamed()
            while self._file.lines < streamed and self._take_over():
                pass
        except redis.RedisError as error:
            raise Unavailable("Redis does not answer; the build's log cannot be opened") from error
        # What a Redis that was away, or flushed since, never got.
        self._pending = [_entry(row) for row in self._file.rows(streamed)]

    def _take_over(self) -> bool:
        """Add the next lines that only Redis has to the file; whether there were any."""
        start = self._file.lines
        found = cast("list[Any]", self._redis.xrange(self._key, f"{start + 1}-0", count=_BATCH))
        for _, raw in found:
            fields = {_text(k): _text(v) for k, v in cast("dict[Any, Any]", raw).items()}
            if "end" in fields or int(fields["n"]) != self._file.lines + 1:
                break
            row: dict[str, Any] = {"n": int(fields["n"]), "t": float(fields["t"])}
            row |= {"step": fields["step"], "text": fields["text"]}
            if "fields" in fields:
                row["fields"] = json.loads(fields["fields"])
            self._file.append(row)
        return self._file.lines > start

    def _streamed(self) -> int:
        """Number of the stream's last line; 0 for a stream that is empty or gone."""
        last = cast("list[Any]", self._redis.xrevrange(self._key, count=1))
        if not last:
            return 0
        entry_id, fields = last[0]
        self._ended = any(_text(name) == "end" for name in cast("dict[Any, Any]", fields))
        return int(_text(entry_id).partition("-")[0])


def _entry(row: dict[str, Any]) -> dict[str, str]:
    entry = {"n": str(row["n"]), "t": f"{row['t']:.3f}", "step": row["step"], "text": row["text"]}
    return entry | ({"fields": json.dumps(row["fields"])} if "fields" in row else {})


def _pieces(text: str) -> list[str]:
    """A line in pieces of at most 16 KiB of UTF-8."""
    if len(text) * 4 <= _LINE_BYTES or len(text.encode(errors="replace")) <= _LINE_BYTES:
        return [text.encode(errors="replace").decode()]
    data, out = text.encode(errors="replace"), []
    while data:
        end = min(_LINE_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        out.append(data[:end].decode())
        data = data[end:]
    return out


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
