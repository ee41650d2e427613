"""systemctl, called with lists of arguments and a limit on every call."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vyvo_dagster.agent.runners.base import log_text
from vyvo_dagster.errors import RunnerFailed, Unavailable

__all__ = ["Systemctl", "UnitState"]

_ASK_SECONDS: Final = 10.0
_SAID_CHARS: Final = 500
_TAIL_LINES: Final = "40"
_RUNS: Final = frozenset({"active", "activating", "reloading"})
_PROPERTIES: Final = "LoadState,ActiveState,SubState,Result,ExecMainStatus,InvocationID"


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a unit; `invocation` names one run of it."""

    load: str
    active: str
    sub: str
    result: str
    exit_status: str
    invocation: str

    @property
    def runs(self) -> bool:
        """Whether it runs, or is being started; one that waits to be started again does not."""
        return self.active in _RUNS and self.sub != "auto-restart"

    @property
    def said(self) -> str:
        """The state in words."""
        if self.load not in {"loaded", ""}:
            return f"{self.load} (is deploy/systemd/vyvo-runner@.service installed?)"
        why = f", {self.result}" if self.result not in {"", "success"} else ""
        status = f", exit status {self.exit_status}" if self.exit_status not in {"", "0"} else ""
        return f"{self.active} ({self.sub}{why}{status})"


class Systemctl:
    """One manager: the system's, or with `user` that of this user.

    Args:
        user: whose manager.
        seconds: how long a start or a stop may take.

    Methods raise Unavailable when systemctl cannot be run, does not end in time, or reaches no
    manager; RunnerFailed with its words when it refuses.
    """

    def __init__(self, *, user: bool = False, seconds: float = 100.0) -> None:
        self._scope = ["--user"] if user else []
        self._seconds = seconds

    async def reload_or_restart(self, unit: str) -> None:
        """Have a unit take up its environment file: started if it does not run."""
        # One that failed often enough is not started again before that.
        await self._run("systemctl", ["reset-failed", "--", unit], _ASK_SECONDS, may_fail=True)
        await self._run("systemctl", ["reload-or-restart", "--", unit], self._seconds)

    async def stop(self, unit: str) -> None:
        """Stop a unit; one that does not run is no error."""
        await self._run("systemctl", ["stop", "--", unit], self._seconds)
        await self._run("systemctl", ["reset-failed", "--", unit], _ASK_SECONDS, may_fail=True)

    async def kill(self, unit: str) -> None:
        """SIGKILL to all of a unit's processes."""
        arguments = ["kill", "--signal=KILL", "--", unit]
        await self._run("systemctl", arguments, _ASK_SECONDS, may_fail=True)

    async def show(self, unit: str) -> UnitState:
        """A unit's state; an unknown unit's is `not-found`."""
        arguments = ["show", f"--property={_PROPERTIES}", "--", unit]
        text = await self._run("systemctl", arguments, _ASK_SECONDS)
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return UnitState(
            *(found.get(name, "") for name in _PROPERTIES.split(",")),
        )

    async def log_tail(self, unit: str) -> str:
        """The end of a unit's journal; empty where there is none."""
        flag = "--user-unit" if self._scope else "--unit"
        arguments = ["--quiet", "--no-pager", "--output=cat", f"--lines={_TAIL_LINES}"]
        try:
            text = await self._run(
                "journalctl", [*arguments, f"{flag}={unit}"], _ASK_SECONDS, scoped=False
            )
        except (RunnerFailed, Unavailable):
            return ""
        return log_text(text.encode())

    async def _run(
        self,
        program: str,
        arguments: Sequence[str],
        seconds: float,
        *,
        may_fail: bool = False,
        scoped: bool = True,
    ) -> str:
        command = [program, *(self._scope if scoped else []), *arguments]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=os.environ | {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"{program} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate()
        except TimeoutError:
            raise Unavailable(f"{' '.join(command[:3])} did not end within {seconds:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        said = " ".join(err.decode(errors="replace").split())[:_SAID_CHARS]
        if process.returncode and not may_fail:
            if "connect to bus" in said:
                raise Unavailable(f"{program} reaches no systemd: {said}")
            raise RunnerFailed(f"{program} {arguments[0]} failed: {said or process.returncode}")
        return out.decode(errors="replace")
