"""A control plane that does as a test says: a real HTTP server that keeps what it was told."""

import asyncio
import socket
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from vyvo_dagster.protocol.job import (
    CompletionReport,
    ItemProblem,
    OrderKind,
    ProgressReport,
    ReportBatch,
    ReportBatchAnswer,
    ReportItem,
    ReportResult,
)
from vyvo_dagster.protocol.node import (
    AttemptRef,
    CredentialAnswer,
    DesiredAssignment,
    Heartbeat,
    HeartbeatAnswer,
    Register,
    RegisterAnswer,
    S3Access,
)
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.streams import keys

JOIN_TOKEN = "join-token-of-the-test"


class ControlPlane:
    """State, and knobs that make it misbehave."""

    def __init__(self, redis: Any, redis_url: str, s3: S3Settings) -> None:
        self.redis, self.redis_url, self.s3 = redis, redis_url, s3
        self.url = ""
        self.node_id = uuid4()
        self.credential = "credential-1"
        self.credential_seconds: float | None = None
        self.replaced = 0
        self.beat_tokens: list[str] = []
        self.boots: list[UUID] = []
        self.registered: list[Register] = []
        self.tokens: list[str] = []
        self.heartbeats: list[Heartbeat] = []
        self.desired: dict[UUID, DesiredAssignment] = {}
        self.fenced: list[AttemptRef] = []
        self.progress: list[tuple[UUID, ProgressReport]] = []
        self.completions: list[tuple[UUID, CompletionReport]] = []
        self.refusals: dict[str, deque[tuple[int, str]]] = {
            "register": deque(),
            "heartbeat": deque(),
            "progress": deque(),
            "complete": deque(),
            "credential": deque(),
            "reports": deque(),
        }
        self.told: defaultdict[UUID, list[str]] = defaultdict(list)
        self.batches: list[int] = []
        self.takes_batches = True
        self.largest_batch = 256
        self.cancel_requested: set[UUID] = set()
        self.changed = asyncio.Event()

    async def order(self, kind: OrderKind, body: Any = None) -> None:
        """Put an order into the node's stream."""
        text = "" if body is None else body.model_dump_json()
        await self.redis.xadd(keys.node(self.node_id), {"kind": kind.value, "body": text})

    async def until(self, condition: Any, seconds: float = 60.0) -> Any:
        """Wait until `condition()` is true, looking whenever something was told."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):
                self.changed.clear()
                try:
                    await asyncio.wait_for(self.changed.wait(), 0.05)
                except TimeoutError:
                    continue
            return found

    def state(self, assignment_id: UUID) -> str | None:
        """The latest observed state of an assignment."""
        if not self.heartbeats:
            return None
        seen = {a.assignment_id: a.state.value for a in self.heartbeats[-1].assignments}
        return seen.get(assignment_id)

    def states(self, assignment_id: UUID) -> list[str]:
        """Every state that was reported, without repeats in a row."""
        found: list[str] = []
        for beat in self.heartbeats:
            for seen in beat.assignments:
                if seen.assignment_id == assignment_id and found[-1:] != [seen.state.value]:
                    found.append(seen.state.value)
        return found

    def ended(self, job_id: UUID) -> CompletionReport | None:
        """The report of a job's end."""
        return next((report for known, report in self.completions if known == job_id), None)

    def _refused(self, call: str) -> Response | None:
        self.changed.set()
        if not self.refusals[call]:
            return None
        status, code = self.refusals[call].popleft()
        return JSONResponse({"detail": f"refused as {code}", "code": code}, status)

    def _take(self, item: Any) -> ReportResult:
        assert isinstance(item, ReportItem)
        call = "progress" if item.completion is None else "complete"
        self.changed.set()
        if self.refusals[call]:
            status, code = self.refusals[call].popleft()
            problem = ItemProblem(status=status, code=code, detail=f"refused as {code}")
            return ReportResult(problem=problem)
        self.told[item.job_id].append(call)
        if item.completion is not None:
            self.completions.append((item.job_id, item.completion))
        elif item.progress is not None:
            self.progress.append((item.job_id, item.progress))
        return ReportResult(cancel_requested=item.job_id in self.cancel_requested)

    def _take_reports(self, app: FastAPI) -> None:
        @app.post("/api/nodes/{node_id}/reports")
        async def reports(node_id: UUID, body: ReportBatch) -> Response:
            if not self.takes_batches:
                return JSONResponse({"detail": "Not Found", "code": "not_found"}, 404)
            if refused := self._refused("reports"):
                return refused
            if len(body.items) > self.largest_batch:
                return JSONResponse({"detail": "it broke", "code": "internal"}, 500)
            self.batches.append(len(body.items))
            answer = ReportBatchAnswer(results=[self._take(item) for item in body.items])
            return Response(answer.model_dump_json(), media_type="application/json")

        @app.post("/api/jobs/{job_id}/progress")
        async def progress(job_id: UUID, body: ProgressReport) -> Response:
            if refused := self._refused("progress"):
                return refused
            self.progress.append((job_id, body))
            return Response(status_code=204)

        @app.post("/api/jobs/{job_id}/complete")
        async def complete(job_id: UUID, body: CompletionReport) -> Response:
            if refused := self._refused("complete"):
                return refused
            self.completions.append((job_id, body))
            return JSONResponse({})

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/api/nodes/register")
        async def register(body: Register, request: Request) -> Response:
            if refused := self._refused("register"):
                return refused
            token = request.headers["authorization"].removeprefix("Bearer ")
            self.tokens.append(token)
            if token not in {JOIN_TOKEN, self.credential}:
                return JSONResponse({"detail": "unknown token", "code": "unauthenticated"}, 401)
            self.boots.append(body.boot_id)
            self.registered.append(body)
            s3 = S3Access(
                endpoint=self.s3.endpoint,
                access_key=self.s3.access_key,
                secret_key=self.s3.secret_key.get_secret_value(),
                region=self.s3.region,
                bucket_prefix=self.s3.bucket_prefix,
            )
            answer = RegisterAnswer(
                node_id=self.node_id,
                credential=self.credential if token == JOIN_TOKEN else None,
                credential_seconds=self.credential_seconds,
                redis_url=self.redis_url,
                s3=s3,
                artifact_ttl_seconds=3600,
                heartbeat_seconds=0.3,
            )
            return Response(answer.model_dump_json(), media_type="application/json")

        @app.post("/api/nodes/{node_id}/heartbeat")
        async def heartbeat(node_id: UUID, body: Heartbeat, request: Request) -> Response:
            if refused := self._refused("heartbeat"):
                return refused
            self.beat_tokens.append(request.headers["authorization"].removeprefix("Bearer "))
            self.heartbeats.append(body)
            answer = HeartbeatAnswer(
                server_time=datetime.now(UTC),
                assignments=list(self.desired.values()),
                fenced=self.fenced,
            )
            return Response(answer.model_dump_json(), media_type="application/json")

        @app.post("/api/nodes/{node_id}/credential")
        async def credential(node_id: UUID) -> Response:
            if refused := self._refused("credential"):
                return refused
            self.replaced += 1
            self.credential, self.credential_seconds = f"replaced-{self.replaced}", None
            answer = CredentialAnswer(credential=self.credential, credential_seconds=3600)
            return Response(answer.model_dump_json(), media_type="application/json")

        self._take_reports(app)
        return app

    @asynccontextmanager
    async def served(self) -> AsyncIterator["ControlPlane"]:
        """Serve on a loopback port."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(self.app(), log_level="warning", lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield self
        finally:
            server.should_exit = True
            server.force_exit = True
            await task
            listener.close()
