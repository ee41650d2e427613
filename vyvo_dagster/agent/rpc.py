"""The agent's gRPC client: reports of attempts, with the errors that the HTTP client raises."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import grpc

from vyvo_dagster.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidReport,
    NotFound,
    StaleAttempt,
    Unauthenticated,
    Unavailable,
    VyvoError,
)
from vyvo_dagster.protocol.grpc.completion_pb2_grpc import CompletionServiceStub
from vyvo_dagster.protocol.job import CompletionReport, ProgressReport, ReportItem, ReportResult
from vyvo_dagster.protocol.messages import (
    batch_request,
    batch_results,
    completion_request,
    progress_request,
)

__all__ = ["RpcReports"]

_TIMEOUT: Final = 15.0
_OPTIONS: Final = (
    # Whoever reports decides when to try again.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_ERRORS: Final[Mapping[grpc.StatusCode, type[VyvoError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.INTERNAL: VyvoError,
    grpc.StatusCode.UNKNOWN: VyvoError,
}

# Codes that are told apart within their status.
_BY_CODE: Final[Mapping[str, type[VyvoError]]] = {
    kind.code: kind for kind in (StaleAttempt, InvalidReport)
}


class RpcReports:
    """Reports to one api, as one node; open it on the loop that uses it.

    Args:
        url: `grpc://host:port`, or `grpcs://host:port` with TLS.
        ca: certificates that the api's is checked with; unset, those that gRPC brings.
        credential: gives the node's credential at the time of a call.

    Methods raise as `ControlPlane`'s do.

    Raises:
        InvalidInput: the URL has another form, or `ca` cannot be read.
    """

    def __init__(self, url: str, ca: Path | None, credential: Callable[[], str | None]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"grpc", "grpcs"} or not parts.netloc or parts.path.strip("/"):
            raise InvalidInput(
                f"VYVO_AGENT_GRPC_URL must look like grpc://host:port or grpcs://host:port; got {url!r}"
            )
        self.url = url
        self._credential = credential
        self._channel = (
            grpc.aio.insecure_channel(parts.netloc, options=_OPTIONS)
            if parts.scheme == "grpc"
            else grpc.aio.secure_channel(parts.netloc, _tls(ca), options=_OPTIONS)
        )
        self._stub = CompletionServiceStub(self._channel)

    async def aclose(self) -> None:
        """Close the connection; calls under way are canceled."""
        await self._channel.close()

    async def progress(self, job_id: UUID, report: ProgressReport) -> None:
        """Report an attempt's start, progress or log lines."""
        await self._call(self._stub.ReportProgress, progress_request(job_id, report))

    async def complete(self, job_id: UUID, report: CompletionReport) -> None:
        """Report an attempt's end; the api answers a repeat as it did the first."""
        await self._call(self._stub.CompleteJob, completion_request(job_id, report))

    async def report(self, items: Sequence[ReportItem]) -> list[ReportResult]:
        """Report many attempts at a time."""
        answer = await self._call(self._stub.ReportBatch, batch_request(items))
        return batch_results(answer)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        token = self._credential()
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        try:
            return await method(request, timeout=_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error

    def _error(self, error: grpc.aio.AioRpcError) -> VyvoError:
        detail = (error.details() or "")[:2000]
        status = error.code()
        told = dict(error.trailing_metadata() or ())
        kind = _BY_CODE.get(str(told.get("vyvo-code")))
        if kind is not None:
            return kind(detail)
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in detail:
            # gRPC's own words: the server has not read it.
            return InvalidInput(detail)
        if status in _ERRORS:
            return _ERRORS[status](detail)
        return Unavailable(f"the api at {self.url} answered {status.name}: {detail}")


def _tls(ca: Path | None) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
    except OSError as error:
        raise InvalidInput(f"VYVO_AGENT_GRPC_CA cannot be read: {error}") from error
