"""Whether a built runner works: it starts, becomes ready with its weights, and tells its schema."""

import json
import time
from typing import Any, Final, Protocol, cast

import httpx

from vyvo_dagster.building.schema import Schemas, read_schemas
from vyvo_dagster.building.types import BuildContext, BuildRequest
from vyvo_dagster.errors import RunnerFailed

__all__ = ["RunnerUnderCheck", "check_runner", "runner_environment"]

_STEP: Final = "check"
_OK: Final = 200
_POLL_SECONDS: Final = 0.1
_READY: Final = frozenset({"READY", "BUSY"})
_FAILED: Final = frozenset({"SETUP_FAILED", "DEFUNCT"})
_TAIL_LINES: Final = 20


class RunnerUnderCheck(Protocol):
    """A started runner, container or process."""

    url: str

    def exited(self) -> str | None:
        """How it ended, or None while it runs."""
        ...

    def output(self) -> str:
        """The last lines it printed."""
        ...

    def schema_file(self) -> bytes | None:
        """Its `.cog/openapi_schema.json`, which is there before setup is over; None if absent."""
        ...


def runner_environment(
    request: BuildRequest, context: BuildContext, weights: str | None
) -> dict[str, str]:
    """What a runner's process gets: the build's env, then the platform's own, which wins."""
    platform = {"VYVO_MODEL_ID": request.model_id, "VYVO_MODEL_VERSION": request.version}
    if weights is not None:
        platform["VYVO_WEIGHTS"] = weights
    return {**request.env, **context.runner_env, **platform}


def check_runner(runner: RunnerUnderCheck, context: BuildContext, *, setup: bool) -> Schemas:
    """Wait until a runner is ready, and read its schemas.

    Args:
        runner: just started.
        context: log, cancel, ready_timeout.
        setup: whether its setup can succeed here (weights and GPU are there). If not, it is
            enough that the server answers and has a schema.

    Raises:
        RunnerFailed: it exited, its setup failed, or it was not ready in time; the detail and the
            log hold what it printed.
        BuildCanceled: the build was canceled.
    """
    deadline = time.monotonic() + context.ready_timeout
    said = ""
    with httpx.Client(base_url=runner.url, timeout=5.0, trust_env=False) as client:
        while True:
            context.check_canceled()
            if (ended := runner.exited()) is not None:
                raise _failed(runner, context, f"the runner exited ({ended})")
            health = _health(client)
            status = str(health.get("status", ""))
            if status != said and status:
                context.log.line(_STEP, f"health check: {status}")
                said = status
            if status in _READY:
                return _schemas(client, runner, context)
            if not setup and status and (document := runner.schema_file()):
                return read_schemas(document)
            if status in _FAILED:
                logs = str(cast("dict[str, Any]", health.get("setup") or {}).get("logs") or "")
                raise _failed(
                    runner, context, f"the runner's setup failed: {_last_line(logs)}", logs
                )
            if time.monotonic() > deadline:
                state = f"it says {said}" if said else "it never answered"
                raise _failed(
                    runner,
                    context,
                    f"the runner was not ready within {context.ready_timeout:g} s; {state}",
                )
            time.sleep(_POLL_SECONDS)


def _health(client: httpx.Client) -> dict[str, Any]:
    try:
        answer = client.get("/health-check").json()
    except (httpx.HTTPError, json.JSONDecodeError):
        # Not listening yet, or in between; the deadline bounds how often.
        return {}
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}


def _schemas(client: httpx.Client, runner: RunnerUnderCheck, context: BuildContext) -> Schemas:
    try:
        answer = client.get("/openapi.json")
    except httpx.HTTPError as error:
        raise _failed(
            runner, context, f"the runner's /openapi.json cannot be read ({error})"
        ) from error
    if answer.status_code != _OK:
        raise _failed(
            runner,
            context,
            f"the runner's /openapi.json answered {answer.status_code}; "
            "the image must hold .cog/openapi_schema.json (python -m vyvo_runner.schema writes it)",
        )
    return read_schemas(answer.content)


def _failed(
    runner: RunnerUnderCheck, context: BuildContext, why: str, logs: str = ""
) -> RunnerFailed:
    for line in [*logs.splitlines(), *runner.output().splitlines()][-_TAIL_LINES:]:
        context.log.line(_STEP, line)
    context.log.line(_STEP, why)
    return RunnerFailed(why)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it printed nothing"
