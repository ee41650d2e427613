"""Client of a Cog HTTP server: health, predictions with live progress, cancellation.

Written against coglet 0.23. Runners of other Cog versions answer without server-sent events; the
prediction then runs the same, without progress on the way.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, Protocol, Self

import httpx

from vyvo_dagster.agent.texts import clean
from vyvo_dagster.errors import RunnerFailed, Unavailable
from vyvo_dagster.protocol.sse import Decoder, ServerSentEvent

__all__ = [
    "OUTPUT_BYTES",
    "CogClient",
    "Health",
    "HealthStatus",
    "Listener",
    "OutputTooLarge",
    "Prediction",
    "PredictionStatus",
    "WorkerCrashed",
]

_CONNECT_SECONDS: Final = 5.0
# A prediction may be silent for hours; whoever awaits it watches the runner's life beside it.
_STREAM: Final = httpx.Timeout(None, connect=_CONNECT_SECONDS, write=60.0, pool=None)
_SHORT: Final = httpx.Timeout(_CONNECT_SECONDS)
_BUSY_FIRST: Final = 0.02
_BUSY_LONGEST: Final = 1.0
_MESSAGE_CHARS: Final = 8000
# What `vyvo_runner.span` tells.
_SPAN: Final = "vyvo_span"
_SPAN_CHARS: Final = 1024
_HEALTH_BYTES: Final = 4 << 20
# What coglet says of every prediction that its worker had.
_WORKER_CRASHED: Final = "Worker crashed"
OUTPUT_BYTES: Final = 64 << 20
"""What is read of one answer, unless said otherwise."""


class WorkerCrashed(RunnerFailed):
    """The process that held the predictor ended; its server answers on, and serves no more."""

    code = "runner_crashed"


class OutputTooLarge(RunnerFailed):
    """A runner answered more than is read of one prediction."""

    code = "output_too_large"


class HealthStatus(StrEnum):
    """`status` of `GET /health-check`."""

    STARTING = "STARTING"
    READY = "READY"
    BUSY = "BUSY"
    SETUP_FAILED = "SETUP_FAILED"
    DEFUNCT = "DEFUNCT"
    UNHEALTHY = "UNHEALTHY"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Health:
    """What a runner says of itself; `setup_logs` holds the reason of a failed setup."""

    status: HealthStatus
    setup_logs: str = ""

    @property
    def serves(self) -> bool:
        """Whether setup is over and predictions are taken, now or once a slot is free."""
        return self.status in {HealthStatus.READY, HealthStatus.BUSY}


class PredictionStatus(StrEnum):
    """How a prediction ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Prediction:
    """An ended prediction."""

    status: PredictionStatus
    output: Any = None
    error: str | None = None
    size_bytes: int = 0
    """Of the runner's text that told of it."""


class Listener(Protocol):
    """Who hears of a prediction on its way."""

    def on_started(self) -> None: ...

    def on_progress(self, fraction: float) -> None: ...

    def on_log(self, text: str) -> None: ...

    def on_span(self, text: str) -> None: ...


class CogClient:
    """One runner.

    Args:
        url: where the runner listens.
        output_bytes: what is read of one event or answer at most; memory is bounded by it.

    Raises Unavailable when the runner does not answer or breaks off, RunnerFailed when it answers
    what no Cog server does, OutputTooLarge when it answers more than is read.
    """

    def __init__(self, url: str, output_bytes: int = OUTPUT_BYTES) -> None:
        self._streams = True
        self._output_bytes = output_bytes
        # No proxy of the host's environment stands between an agent and its own runners.
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=_SHORT,
            trust_env=False,
            # What is counted is what is decoded.
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; a prediction that is followed is thereby canceled."""
        await self._http.aclose()

    async def health(self) -> Health:
        """The runner's own word on its state."""
        try:
            async with self._http.stream("GET", "/health-check") as answer:
                body: Any = json.loads(await _read(answer, _HEALTH_BYTES))
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        except (ValueError, RecursionError) as error:
            raise RunnerFailed("the runner's health check is no JSON") from error
        members: Mapping[str, Any] = body if isinstance(body, dict) else {}
        setup = members.get("setup")
        logs = setup.get("logs") if isinstance(setup, dict) else None
        status = str(members.get("status"))
        known = status in HealthStatus.__members__
        return Health(
            HealthStatus(status) if known else HealthStatus.UNKNOWN, clean(str(logs or ""))
        )

    async def predict(
        self,
        prediction_id: str,
        input: Mapping[str, Any],
        listener: Listener,
        *,
        context: Mapping[str, str] | None = None,
        traceparent: str | None = None,
    ) -> Prediction:
        """Run one prediction to its end; waits while all the runner's slots are taken.

        Canceling this call closes the stream, which cancels the prediction on the runner.
        """
        content = json.dumps({"input": dict(input), "context": dict(context or {})}).encode()
        headers = {"Content-Type": "application/json"}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        delay = _BUSY_FIRST
        while True:
            streams = self._streams
            headers["Accept"] = "text/event-stream" if streams else "application/json"
            try:
                found = await self._attempt(prediction_id, content, headers, listener)
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            if found is not None:
                return found
            if streams is self._streams:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _BUSY_LONGEST)

    async def cancel(self, prediction_id: str) -> bool:
        """Ask for a prediction's end; whether it was running."""
        try:
            async with self._http.stream("POST", f"/predictions/{prediction_id}/cancel") as answer:
                return answer.is_success
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    async def _attempt(
        self, prediction_id: str, content: bytes, headers: Mapping[str, str], listener: Listener
    ) -> Prediction | None:
        """The ended prediction; None when it is to be asked again."""
        async with self._http.stream(
            "PUT",
            f"/predictions/{prediction_id}",
            content=content,
            headers=headers,
            timeout=_STREAM,
        ) as answer:
            if answer.is_success and answer.headers.get("content-type", "").startswith(
                "text/event-stream"
            ):
                return await _followed(answer, listener, self._output_bytes)
            body = await _read(answer, self._output_bytes)
        if answer.status_code == HTTPStatus.NOT_ACCEPTABLE:
            self._streams = False
            return None
        if answer.status_code in {HTTPStatus.CONFLICT, HTTPStatus.ACCEPTED}:
            return None
        return _ended(answer.status_code, body, listener)


async def _followed(answer: httpx.Response, listener: Listener, output_bytes: int) -> Prediction:
    async for event in _events(answer, output_bytes):
        data = _json(event.data)
        match event.event:
            case "start":
                listener.on_started()
            case "log":
                listener.on_log(str(data.get("data", "")))
            case "metric" if data.get("name") == "progress":
                _progress(data.get("value"), listener.on_progress)
            case "metric" if data.get("name") == _SPAN:
                listener.on_span(str(data.get("value"))[:_SPAN_CHARS])
            case "completed":
                return _prediction(data, len(event.data))
            case "error":
                raise Unavailable(f"the runner's event stream broke: {data.get('error')}")
            case _:
                pass
    raise Unavailable("the runner broke off the prediction's event stream")


async def _events(answer: httpx.Response, output_bytes: int) -> AsyncIterator[ServerSentEvent]:
    decoder, since_event = Decoder(), 0
    async for chunk in answer.aiter_raw():
        since_event += len(chunk)
        if since_event > output_bytes:
            raise _too_large(output_bytes)
        for event in decoder.feed(chunk):
            since_event = 0
            yield event


async def _read(answer: httpx.Response, most_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    return bytes(body)


def _too_large(most_bytes: int) -> OutputTooLarge:
    return OutputTooLarge(
        f"the runner answered more than {most_bytes} bytes; "
        "upload large outputs and answer their artifacts"
    )


def _ended(status: int, body: bytes, listener: Listener) -> Prediction:
    data = _json(body)
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return Prediction(PredictionStatus.FAILED, error=_input_problem(data))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise Unavailable(f"the runner is not ready: {data.get('error') or data.get('detail')}")
    if not httpx.codes.is_success(status) and "status" not in data:
        raise RunnerFailed(
            f"the runner answered HTTP {status}: {body[:500].decode(errors='replace')}"
        )
    if logs := data.get("logs"):
        listener.on_log(str(logs))
    return _prediction(data, len(body))


def _prediction(data: Mapping[str, Any], size_bytes: int) -> Prediction:
    status = str(data.get("status"))
    if status not in {*PredictionStatus}:
        raise RunnerFailed(f"the runner ended a prediction with status {status[:64]!r}")
    error = data.get("error")
    if error == _WORKER_CRASHED:
        raise WorkerCrashed("the runner's worker crashed")
    if error is None and status == PredictionStatus.FAILED:
        error = "the predictor failed without a message"
    return Prediction(
        PredictionStatus(status),
        data.get("output"),
        None if error is None else str(error)[:_MESSAGE_CHARS],
        size_bytes,
    )


def _input_problem(data: Mapping[str, Any]) -> str:
    detail = data.get("detail")
    if not isinstance(detail, list):
        return f"the runner refuses the input: {str(detail or data.get('error'))[:_MESSAGE_CHARS]}"
    parts: list[str] = []
    for item in detail:
        loc = item.get("loc", []) if isinstance(item, dict) else []
        message = item.get("msg", item) if isinstance(item, dict) else item
        parts.append(f"{'.'.join(str(p) for p in loc if p != 'body')}: {message}")
    return f"the runner refuses the input: {'; '.join(parts)}"[:_MESSAGE_CHARS]


def _progress(value: Any, tell: Callable[[float], None]) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        tell(min(max(float(value), 0.0), 1.0))


def _json(text: str | bytes) -> Mapping[str, Any]:
    try:
        data: Any = json.loads(text)
        # An output may be large, and is cleaned once, by who keeps it.
        members = data.items() if isinstance(data, dict) else ()
        return {key: value if key == "output" else clean(value) for key, value in members}
    except ValueError as error:
        raise RunnerFailed("the runner sent what is no JSON") from error
    except RecursionError as error:
        raise RunnerFailed("the runner sent JSON that is nested too deep") from error


def _unreachable(error: httpx.HTTPError) -> Unavailable:
    return Unavailable(f"the runner does not answer ({type(error).__name__})")
