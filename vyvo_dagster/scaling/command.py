"""One program run to its end: its lines as they come, bounded in time, ended in order."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vyvo_dagster.errors import ScalingFailed

__all__ = ["run"]

_LINE_BYTES: Final = 64 * 1024
_GRACE_SECONDS: Final = 20.0


async def run(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, seconds: float,
    line: Callable[[str], None] | None = None, most_bytes: int = 64 << 20,
) -> bytes:  # fmt: skip
    """Run `argv`, without a shell; what it wrote to stdout where `line` is None.

    With `line`, each line of stdout and stderr is handed to it instead. A program that takes
    longer, and one whose caller is canceled, is interrupted as by Ctrl-C, and killed with all that
    it started 20 s later.

    Raises:
        ScalingFailed: it cannot be started, took too long, said too much, or ended with another
            status than 0.
    """
    what = (
        f"{Path(argv[0]).name} {next((a for a in argv[1:] if not a.startswith('-')), '')}".strip()
    )
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, env=dict(env), cwd=cwd, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, start_new_session=True,
            stderr=asyncio.subprocess.DEVNULL if line is None else asyncio.subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise ScalingFailed(f"{what} cannot be started: {error}") from error
    kept = bytearray()
    try:
        async with asyncio.timeout(seconds):
            assert process.stdout is not None
            async for each in _lines(process.stdout):
                if line is not None:
                    line(each.decode(errors="replace").rstrip())
                elif len(kept) + len(each) > most_bytes:
                    raise ScalingFailed(f"{what} answers more than {most_bytes} bytes")
                else:
                    kept += each
            status = await process.wait()
    except TimeoutError as error:
        raise ScalingFailed(f"{what} took longer than {seconds:g} s") from error
    finally:
        if process.returncode is None:
            await _to_its_end(_end(process))
    if status != 0:
        raise ScalingFailed(f"{what} ended with status {status}; the log says why")
    return bytes(kept)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines, the overlong ones in parts."""
    rest = b""
    while chunk := await stream.read(_LINE_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for each in lines:
            yield each + b"\n"
        if len(rest) > _LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await process.wait()
                return


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` however often this task is canceled meanwhile."""
    task = asyncio.create_task(work)
    canceled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            canceled = True
    task.result()
    if canceled:
        raise asyncio.CancelledError
