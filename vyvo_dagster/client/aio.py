"""The asynchronous client: the same methods as `Client`, awaited."""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from vyvo_dagster.client import calls
from vyvo_dagster.client.access import AsyncKeys
from vyvo_dagster.client.artifacts import AsyncArtifacts
from vyvo_dagster.client.calls import Call, Id, JobSpec, Json, Stream
from vyvo_dagster.client.files import DOWNLOAD_TIMEOUT, draft_of, raise_for_download, store_away
from vyvo_dagster.client.following import TIMEOUT, Following
from vyvo_dagster.client.models import (
    Assignment,
    Build,
    BuildAccepted,
    DeadLetter,
    Event,
    Job,
    JobAccepted,
    JobSummary,
    Model,
    Node,
    NodeEvent,
    Page,
    Pool,
    PoolOperation,
    Queues,
    Version,
    WebhookDelivery,
    Weight,
)
from vyvo_dagster.client.problems import problem
from vyvo_dagster.client.retry import RetryPolicy
from vyvo_dagster.client.workflows import AsyncWorkflows
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.protocol import sse

__all__ = ["AsyncClient"]

T = TypeVar("T")
E = TypeVar("E", Job, Build)

_CHUNK = 1 << 20


class AsyncClient:
    """Asynchronous client; use it as an async context manager, or await close(). One event loop.

    Args:
        url: base URL of the api, such as http://127.0.0.1:8080.
        key: API key.
        timeout: seconds that one request may take.
        retry: when a request is tried again: 429 and 503 after the `Retry-After` they name, a lost
            connection where the call can be repeated. Submissions carry an Idempotency-Key of
            their own unless one is given, so they can.
        verify: TLS context; the system's trust store when None.

    Every method raises the VyvoError that the api's problem document names, and Unavailable where
    the api cannot be reached.
    """

    def __init__(
        self, url: str, key: str, *, timeout: float = 30.0, retry: RetryPolicy | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._retry = RetryPolicy() if retry is None else retry
        self._verify = verify or ssl.create_default_context()
        self._http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout,
            trust_env=False, verify=self._verify,
        )  # fmt: skip
        self.keys = AsyncKeys(self)
        """API keys and the audit log, for admins."""
        self.artifacts = AsyncArtifacts(self)
        """What jobs made, and what becomes of it."""
        self.workflows = AsyncWorkflows(self)
        """Workflows and their runs."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Make a call, again where it may be; its answer."""
        tried = 0
        while True:
            tried += 1
            try:
                response = await self._http.request(
                    call.method, call.path, json=call.body, params=call.params,
                    headers=call.headers,
                )  # fmt: skip
            except httpx.TransportError as error:
                pause = self._retry.after_error(call, tried, error)
                if pause is None:
                    raise self._away(error) from error
            else:
                if response.is_success:
                    return call.answer(response)
                pause = self._retry.after_answer(call, tried, response)
                if pause is None:
                    raise problem(response)
            await asyncio.sleep(pause)

    async def request(
        self, method: str, path: str, *, json: Json | None = None,
        params: Mapping[str, str | int] | None = None, idempotency_key: str | None = None,
    ) -> Any:  # fmt: skip
        """Any request; the decoded JSON answer."""
        return await self.send(calls.anything(method, path, json, params, idempotency_key))

    async def follow(self, stream: Stream, after: str = "") -> AsyncGenerator[Event]:
        """The events of a stream until it is over; reconnects where it stopped."""
        following = Following(stream, after)
        while not following.over:
            try:
                async with self._http.stream(
                    "GET", stream.path, headers=following.headers, timeout=TIMEOUT
                ) as response:
                    if not response.is_success:
                        await response.aread()
                        pause = following.refused(response)
                    else:
                        async for sent in sse.events_of(response.aiter_bytes()):
                            yield following.take(sent)
                            if following.over:
                                return
                        pause = following.broke()
            except httpx.TransportError as error:
                pause = following.broke(error)
            await asyncio.sleep(pause)

    async def submit(
        self, model_id: str, input: Json, *, version: str | None = None,
        priority: Priority | None = None, ttl_seconds: int | None = None,
        idempotency_key: str | None = None, **extra: Any,
    ) -> JobAccepted:  # fmt: skip
        """Submit a job; `extra` are further members of the request."""
        spec = JobSpec(
            model_id=model_id, input=input, version=version, priority=priority,
            ttl_seconds=ttl_seconds, extra=extra,
        )  # fmt: skip
        return await self.send(calls.submit(spec, idempotency_key))

    async def submit_batch(
        self, jobs: Sequence[JobSpec], *, idempotency_key: str | None = None
    ) -> tuple[JobAccepted, ...]:
        """Submit 1 to 200 jobs together: all are queued, or none."""
        return await self.send(calls.submit_batch(jobs, idempotency_key))

    async def job(self, job_id: Id) -> Job:
        """One job with its artifacts and attempts."""
        return await self.send(calls.job(job_id))

    async def jobs(
        self, *, status: JobState | str | None = None, model_id: str | None = None,
        cursor: str | None = None, limit: int = 50,
    ) -> Page[JobSummary]:  # fmt: skip
        """A page of jobs, newest first."""
        return await self.send(calls.jobs(status, model_id, cursor, limit))

    async def cancel(self, job_id: Id) -> Job:
        """Cancel a job; a repeat changes nothing."""
        return await self.send(calls.cancel(job_id))

    async def set_priority(self, job_id: Id, priority: Priority | str) -> Job:
        """Change the priority of a job that waits."""
        return await self.send(calls.set_priority(job_id, priority))

    async def requeue(
        self, job_id: Id, *, priority: Priority | str | None = None,
        ttl_seconds: int | None = None, idempotency_key: str | None = None,
    ) -> JobAccepted:  # fmt: skip
        """Queue a job again that has failed, expired or been canceled, with fresh attempts."""
        return await self.send(calls.requeue(job_id, priority, ttl_seconds, idempotency_key))

    async def dead_letters(
        self, *, model_id: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[DeadLetter]:
        """A page of what failed through no fault of its prediction, newest first."""
        return await self.send(calls.dead_letters(model_id, cursor, limit))

    async def queue(self, *, model_id: str | None = None, limit: int = 200) -> Queues:
        """What waits and what is in flight; another tenant's only with an admin's key."""
        return await self.send(calls.queue(model_id, limit))

    async def weights(self) -> tuple[Weight, ...]:
        """The weights that were set; a tenant that has none weighs 1."""
        return await self.send(calls.weights())

    async def set_weight(
        self, tenant: str, weight: float, *, model_id: str | None = None
    ) -> Weight:
        """Set a tenant's weight, above 0 up to 1,000, for one model or for all."""
        return await self.send(calls.set_weight(tenant, weight, model_id))

    async def delete_weight(self, tenant: str, *, model_id: str | None = None) -> None:
        """Forget a weight; NotFound where none was set."""
        return await self.send(calls.delete_weight(tenant, model_id))

    async def webhooks(self, job_id: Id) -> tuple[WebhookDelivery, ...]:
        """The deliveries of a job's webhook, oldest first."""
        return await self.send(calls.webhooks(job_id))

    async def redeliver(self, job_id: Id, delivery_id: Id) -> WebhookDelivery:
        """Start an ended delivery again, with the same `webhook-id`."""
        return await self.send(calls.redeliver(job_id, delivery_id))

    async def set_webhook_secret(self, secret: str | None = None) -> str:
        """Set the secret that signs the tenant's webhooks, a new one if None; it is shown only here."""
        return await self.send(calls.set_webhook_secret(secret))

    def job_events(self, job_id: Id, after: str = "") -> AsyncGenerator[Event]:
        """A job's events, kept and live, until `completed`; each once, over lost connections too."""
        return self.follow(calls.job_events(job_id), after)

    async def wait(self, job_id: Id, timeout: float) -> Job:
        """The job once it has ended; raises TimeoutError after `timeout` seconds."""
        return await self._polled(lambda: self.job(job_id), timeout, f"job {job_id}")

    async def download(self, presigned_url: str) -> bytes:
        """The bytes behind a presigned URL, in memory; see save for large ones."""

        async def read() -> bytes:
            async with self._plain() as http:
                response = await http.get(presigned_url)
            raise_for_download(response.status_code)
            return response.content

        return await self._downloaded(read)

    async def save(self, presigned_url: str, path: Path) -> Path:
        """Stream what is behind a presigned URL into a file, which appears when it is whole."""

        async def write() -> Path:
            async with self._plain() as http, http.stream("GET", presigned_url) as response:
                raise_for_download(response.status_code)
                with draft_of(path) as file:
                    async for chunk in response.aiter_bytes(_CHUNK):
                        await asyncio.to_thread(file.write, chunk)
            return path

        return await self._downloaded(write)

    async def _downloaded(self, work: Callable[[], Awaitable[T]]) -> T:
        tried = 0
        while True:
            tried += 1
            try:
                with store_away():
                    return await work()
            except Unavailable:
                pause = self._retry.after_failed_download(tried)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def submit_build(
        self, body: Json, *, idempotency_key: str | None = None
    ) -> BuildAccepted:
        """Queue a build; `body` as `POST /api/builds` takes it."""
        return await self.send(calls.submit_build(body, idempotency_key))

    async def build(self, build_id: Id) -> Build:
        """One build."""
        return await self.send(calls.build(build_id))

    def build_log(self, build_id: Id, after: str = "") -> AsyncGenerator[Event]:
        """The lines of a build's log as they come, until `end`."""
        return self.follow(calls.build_log(build_id), after)

    async def wait_for_build(self, build_id: Id, timeout: float) -> Build:
        """The build once it has ended; raises TimeoutError after `timeout` seconds."""
        return await self._polled(lambda: self.build(build_id), timeout, f"build {build_id}")

    async def models(self, *, cursor: str | None = None, limit: int = 50) -> Page[Model]:
        """A page of models, by id."""
        return await self.send(calls.models(cursor, limit))

    async def versions(
        self, model_id: str, *, cursor: str | None = None, limit: int = 50
    ) -> Page[Version]:
        """A page of a model's versions, newest first."""
        return await self.send(calls.versions(model_id, cursor, limit))

    async def version(self, model_id: str, version: str) -> Version:
        """One version's registry entry."""
        return await self.send(calls.version(model_id, version))

    async def nodes(
        self, *, state: NodeState | str | None = None, name: str | None = None,
        cursor: str | None = None, limit: int = 50,
    ) -> Page[Node]:  # fmt: skip
        """A page of nodes, newest first."""
        return await self.send(calls.nodes(state, name, cursor, limit))

    async def node(self, node_id: Id) -> Node:
        """One node, with its assignments."""
        return await self.send(calls.node(node_id))

    async def node_events(
        self, node_id: Id, *, cursor: str | None = None, limit: int = 50
    ) -> Page[NodeEvent]:
        """A page of a node's history, newest first."""
        return await self.send(calls.node_events(node_id, cursor, limit))

    async def cordon(self, node_id: Id) -> Node:
        """Give a node no new jobs; what runs there goes on."""
        return await self.send(calls.node_flag(node_id, "cordon"))

    async def uncordon(self, node_id: Id) -> Node:
        """Give a node jobs again; ends a drain too."""
        return await self.send(calls.node_flag(node_id, "uncordon"))

    async def drain(self, node_id: Id, *, deadline_seconds: int | None = None) -> Node:
        """Let a node end its jobs, until the deadline if there is one, and move its models."""
        return await self.send(calls.drain(node_id, deadline_seconds))

    async def unassign(self, node_id: Id, assignment_id: Id) -> Assignment:
        """Unload a version from a node; a repeat changes nothing."""
        return await self.send(calls.unassign(node_id, assignment_id))

    async def assign(
        self, node_id: Id, model_id: str, version_id: Id, *, idempotency_key: str | None = None
    ) -> Assignment:
        """Load a version, by its id or name, on a node."""
        return await self.send(calls.assign(node_id, model_id, version_id, idempotency_key))

    async def pools(self, *, cursor: str | None = None, limit: int = 50) -> Page[Pool]:
        """One page of node pools."""
        return await self.send(calls.pools(cursor, limit))

    async def pool(self, name: str) -> Pool:
        """A node pool with its nodes, and what its policy would do now."""
        return await self.send(calls.pool(name))

    async def put_pool(self, name: str, body: Json) -> Pool:
        """Make a node pool, or replace all of one but its nodes."""
        return await self.send(calls.put_pool(name, body))

    async def scale_pool(
        self, name: str, *, size: int | None = None, delta: int | None = None,
        dry_run: bool = False, idempotency_key: str | None = None,
    ) -> PoolOperation:  # fmt: skip
        """Ask for a size, or for so many nodes more or fewer; follow it by `pool_operation`."""
        return await self.send(calls.scale_pool(name, size, delta, dry_run, idempotency_key))

    async def pool_operations(
        self, name: str, *, cursor: str | None = None, limit: int = 50
    ) -> Page[PoolOperation]:
        """One page of a node pool's changes, without their logs."""
        return await self.send(calls.pool_operations(name, cursor, limit))

    async def pool_operation(
        self, name: str, operation_id: Id, *, log_offset: int = 0
    ) -> PoolOperation:
        """One change of a node pool, with its log from an offset in characters on."""
        return await self.send(calls.pool_operation(name, operation_id, log_offset))

    async def _polled(self, look: Callable[[], Awaitable[E]], timeout: float, what: str) -> E:
        deadline, pause = time.monotonic() + timeout, 0.05
        while not (found := await look()).ended:
            if time.monotonic() + pause > deadline:
                raise TimeoutError(f"{what} did not end within {timeout:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return found

    def _plain(self) -> httpx.AsyncClient:
        """For the object store, which must not see the api's key."""
        return httpx.AsyncClient(timeout=DOWNLOAD_TIMEOUT, trust_env=False, verify=self._verify)

    def _away(self, error: httpx.TransportError) -> Unavailable:
        said = str(error) or type(error).__name__
        return Unavailable(f"cannot reach the api at {self._http.base_url}: {said}")
