"""Entry point of the node agent."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from vyvo_dagster import collector
from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.errors import Conflict, InvalidInput, VyvoError
from vyvo_dagster.settings import AgentSettings
from vyvo_dagster.telemetry import logs, tracing

__all__ = ["run"]

_USAGE: Final = 2


def run(config: Path | None = None) -> None:
    """Run the agent of this host until SIGTERM or SIGINT; a second signal ends it at once.

    Settings come from the environment (`AgentSettings`), and where it says nothing from `config`, a
    file of the same variables. Exits with 0 after an orderly end, with 2
    when the settings cannot work, with 1 when something that it needs is missing.
    """
    try:
        settings = AgentSettings(_env_file=config)  # pyright: ignore[reportCallIssue]
        logs.configure(settings.log_format, secrets=logs.secrets_of(settings), one_line=True)
        logs.always(service="agent")
        tracing.start("agent")
        try:
            code = uvloop.run(_serve(settings))
        finally:
            tracing.stop()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        sys.stderr.write(f"vyvo agent: VYVO_AGENT_{name}: {first['msg']}\n")
        code = _USAGE
    except (SettingsError, UnicodeDecodeError) as error:
        # A value that should be JSON and is not, or a file that is no text.
        sys.stderr.write(f"vyvo agent: {' '.join(str(error).split())}\n")
        code = _USAGE
    sys.stderr.flush()
    if threading.active_count() > 1:
        # A thread in a transfer or in an engine's call cannot be ended; nothing waits for it.
        os._exit(code)
    sys.exit(code)


async def _serve(settings: AgentSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    collector.settle()
    try:
        await Agent(settings).run(stop)
    except VyvoError as error:
        sys.stderr.write(f"vyvo agent: {error.detail}\n")
        return _USAGE if isinstance(error, InvalidInput | Conflict) else 1
    except OSError as error:
        sys.stderr.write(f"vyvo agent: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    run()
