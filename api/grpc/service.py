"""CompletionService: the agents' reports over gRPC, answered by what answers them over HTTP."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote
from uuid import UUID

import grpc
from google.protobuf.message import Message
from pydantic import ValidationError
from redis.exceptions import RedisError

from api.auth import own_node
from api.context import Context
from api.grpc.errors import abort, of_validation
from api.jobs.reports import Taken
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.scope import Scope, grants
from vyvo_dagster.errors import Forbidden, Unauthenticated, Unavailable, VyvoError
from vyvo_dagster.protocol.grpc import completion_pb2 as pb
from vyvo_dagster.protocol.grpc.completion_pb2_grpc import CompletionServiceServicer
from vyvo_dagster.protocol.job import ReportItem
from vyvo_dagster.protocol.messages import batch_items, completion_of, job_status, progress_of
from vyvo_dagster.telemetry import metrics

__all__ = ["CompletionService"]

log = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Message)

_BOUND_SECONDS: Final = 30.0


class CompletionService(CompletionServiceServicer):
    """One node's reports, fenced by the attempt's number; the node is its credential's."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._under_way: set[asyncio.Task[Message]] = set()

    async def ReportProgress(
        self, request: pb.ReportProgressRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> pb.ReportProgressResponse:
        """As `POST /api/jobs/{id}/progress`."""
        return await self._answer("ReportProgress", self._progress, request, context)

    async def CompleteJob(
        self, request: pb.CompleteJobRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> pb.CompleteJobResponse:
        """As `POST /api/jobs/{id}/complete`."""
        return await self._answer("CompleteJob", self._complete, request, context)

    async def ReportBatch(
        self, request: pb.ReportBatchRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> pb.ReportBatchResponse:
        """As `POST /api/nodes/{id}/reports`, of the credential's own node."""
        return await self._answer("ReportBatch", self._batch, request, context)

    async def close(self) -> None:
        """End what outlived its call."""
        await cancel_all(self._under_way)

    async def _progress(self, node_id: UUID, request: pb.ReportProgressRequest) -> Message:
        job_id, report = progress_of(request)
        item = ReportItem(job_id=job_id, progress=report)
        taken = await self._context.reports.take_one(node_id, item)
        return pb.ReportProgressResponse(
            status=job_status(taken.status), cancel_requested=taken.cancel_requested
        )

    async def _complete(self, node_id: UUID, request: pb.CompleteJobRequest) -> Message:
        job_id, report = completion_of(request)
        item = ReportItem(job_id=job_id, completion=report)
        taken = await self._context.reports.take_one(node_id, item)
        return pb.CompleteJobResponse(
            job_id=str(job_id), attempt=report.attempt, job_status=job_status(taken.status)
        )

    async def _batch(self, node_id: UUID, request: pb.ReportBatchRequest) -> Message:
        answers = await self._context.reports.take(node_id, batch_items(request))
        return pb.ReportBatchResponse(results=[_result(answer) for answer in answers])

    async def _answer(
        self,
        method: str,
        work: Callable[[UUID, Q], Awaitable[Message]],
        request: Q,
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> Any:
        with metrics.GRPC_REQUESTS.labels(method).time():
            try:
                node_id = await self._node(
                    context.invocation_metadata() or (), _address(context.peer())
                )
                task = asyncio.ensure_future(self._bounded(work, node_id, request))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                # A deadline or a cancel ends the call. The report that is being written is not
                # torn off between its commit and the events that tell of it.
                return await asyncio.shield(task)
            except ValidationError as error:
                await abort(context, of_validation(error))
            except VyvoError as error:
                await abort(context, error)
            except (RedisError, TimeoutError):
                await abort(context, Unavailable("the report was not taken; try again shortly"))
            except Exception:
                # The log has the trace; the caller learns nothing of the inside.
                log.exception("%s failed", method)
                await abort(context, VyvoError("the server failed; the error is in its log"))

    async def _bounded(
        self, work: Callable[[UUID, Q], Awaitable[Message]], node_id: UUID, request: Q
    ) -> Message:
        async with asyncio.timeout(_BOUND_SECONDS):
            return await work(node_id, request)

    async def _node(self, metadata: "grpc.aio.Metadata | tuple[()]", address: str | None) -> UUID:
        """The node that the call's credential is of.

        Raises:
            Unauthenticated, Forbidden: as the routes do.
        """
        sent: Mapping[str, str | bytes] = dict(metadata)
        scheme, _, token = str(sent.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("no credential; send metadata authorization: Bearer <key>")
        principal = await self._context.authenticator.authenticate(token.strip(), address)
        if not grants(principal.scopes, Scope.NODE):
            raise Forbidden(f"this key lacks the scope {Scope.NODE}")
        return own_node(principal)


def _address(peer: str) -> str | None:
    """The address in what gRPC calls a peer: `ipv4:10.0.0.7:4711`, `ipv6:%5B::1%5D:4711`."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else None


def _result(answer: Taken | VyvoError) -> pb.ReportResult:
    if isinstance(answer, VyvoError):
        return pb.ReportResult(
            problem=pb.ReportProblem(status=answer.status, code=answer.code, detail=answer.detail)
        )
    return pb.ReportResult(
        status=job_status(answer.status), cancel_requested=answer.cancel_requested
    )
