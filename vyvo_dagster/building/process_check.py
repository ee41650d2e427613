"""A runner under check as a process of this host."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from vyvo_dagster.building.process import dying_with_us, stop_group

__all__ = ["ProcessRunner", "run_process"]

_TAIL_BYTES: Final = 8192


class ProcessRunner:
    """See `RunnerUnderCheck`."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", port: int, folder: Path, log_file: Path
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process, self._folder, self._log_file = process, folder, log_file

    def exited(self) -> str | None:
        """How it ended, or None while it runs."""
        code = self._process.poll()
        return None if code is None else f"exit status {code}"

    def output(self) -> str:
        """The end of what it printed."""
        return self._log_file.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")

    def schema_file(self) -> bytes | None:
        """The schema that the build wrote."""
        path = self._folder / "app" / ".cog" / "openapi_schema.json"
        return path.read_bytes() if path.is_file() else None


@contextmanager
def run_process(folder: Path, env: Mapping[str, str], log_file: Path) -> Generator[ProcessRunner]:
    """Run the environment in `folder` as its `runner.json` says; nothing of it is left afterwards.

    The port is given in the variable PORT, which is where a Cog server reads it.
    """
    spec = cast("dict[str, Any]", json.loads((folder / "runner.json").read_text()))
    port = _free_port()
    command = [str(folder / spec["command"][0]), *spec["command"][1:]]
    environment = {
        **_inherited(),
        **env,
        **cast("dict[str, str]", spec["env"]),
        "PATH": f"{folder / 'venv' / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "PORT": str(port),
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            dying_with_us(command, signal.SIGKILL),
            cwd=folder / spec["cwd"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield ProcessRunner(process, port, folder, log_file)
        finally:
            stop_group(process)


def _inherited() -> dict[str, str]:
    # The worker's own environment holds its secrets; a runner needs none of it.
    return {
        name: os.environ[name] for name in ("HOME", "LANG", "TZ", "TMPDIR") if name in os.environ
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
