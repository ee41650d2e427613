"""Workflows by the client: `client.workflows.run("contact-sheet", {"seeds": [1, 2]})`."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from vyvo_dagster.client.calls import Call, Id, Json, Stream
from vyvo_dagster.client.models import Event, Page
from vyvo_dagster.client.workflow_models import (
    Pushed,
    Validation,
    Workflow,
    WorkflowRun,
    WorkflowSummary,
    WorkflowVersion,
)
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.state import RunState

__all__ = ["AsyncWorkflows", "Workflows"]

T = TypeVar("T")


def _given(**values: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in values.items() if value is not None}


def _path(name: Id, *rest: str) -> str:
    return "/".join(["/api/workflows", quote(str(name), safe=""), *rest])


def _run(run_id: Id, *rest: str) -> str:
    return "/".join(["/api/workflow-runs", quote(str(run_id), safe=""), *rest])


def _listing(cursor: str | None, limit: int) -> Call[Page[WorkflowSummary]]:
    params = _given(cursor=cursor, limit=limit)
    return Call("GET", "/api/workflows", Page[WorkflowSummary].model_validate, params=params)


def _push(document: Json) -> Call[Pushed]:
    # The same content twice is one version.
    return Call(
        "POST", "/api/workflows", Pushed.model_validate, document, naturally_repeatable=True
    )


def _validate(document: Json) -> Call[Validation]:
    return Call(
        "POST",
        "/api/workflows/validate",
        Validation.model_validate,
        document,
        naturally_repeatable=True,
    )


def _schema() -> Call[dict[str, Any]]:
    def read(answer: Any) -> dict[str, Any]:
        return dict(answer)

    return Call("GET", "/api/workflows/schema", read)


def _pause(name: str, paused: bool) -> Call[Workflow]:
    return Call(
        "PATCH", _path(name), Workflow.model_validate, {"paused": paused}, naturally_repeatable=True
    )


def _versions(name: str, cursor: str | None, limit: int) -> Call[Page[WorkflowVersion]]:
    params = _given(cursor=cursor, limit=limit)
    return Call("GET", _path(name, "versions"), Page[WorkflowVersion].model_validate, params=params)


def _version(name: str, version: int) -> Call[WorkflowVersion]:
    return Call("GET", _path(name, "versions", str(version)), WorkflowVersion.model_validate)


def _start(
    name: str, inputs: Json, version: int | None, priority: Priority | str | None, key: str | None
) -> Call[WorkflowRun]:
    body = {"inputs": dict(inputs), **_given(version=version, priority=priority)}
    return Call(
        "POST", _path(name, "runs"), WorkflowRun.model_validate, body, key=key or uuid.uuid4().hex
    )


def _runs(
    workflow: str | None, status: RunState | str | None, cursor: str | None, limit: int
) -> Call[Page[WorkflowRun]]:
    params = _given(workflow=workflow, status=status, cursor=cursor, limit=limit)
    return Call("GET", "/api/workflow-runs", Page[WorkflowRun].model_validate, params=params)


def _get_run(run_id: Id) -> Call[WorkflowRun]:
    return Call("GET", _run(run_id), WorkflowRun.model_validate)


def _cancel(run_id: Id) -> Call[WorkflowRun]:
    return Call(
        "POST", _run(run_id, "cancel"), WorkflowRun.model_validate, naturally_repeatable=True
    )


def _retry(run_id: Id, key: str | None) -> Call[WorkflowRun]:
    return Call(
        "POST", _run(run_id, "retry"), WorkflowRun.model_validate, key=key or uuid.uuid4().hex
    )


def _events(run_id: Id) -> Stream:
    return Stream(_run(run_id, "events"), "run_completed")


class _Sync(Protocol):
    def send(self, call: Call[T]) -> T: ...
    def follow(self, stream: Stream, after: str = "") -> Generator[Event]: ...


class _Async(Protocol):
    async def send(self, call: Call[T]) -> T: ...
    def follow(self, stream: Stream, after: str = "") -> AsyncGenerator[Event]: ...


class Workflows:
    """The workflows of an api, by a Client's connections."""

    def __init__(self, client: _Sync) -> None:
        self._client = client

    def list(self, *, cursor: str | None = None, limit: int = 50) -> Page[WorkflowSummary]:
        """A page of workflows, newest first."""
        return self._client.send(_listing(cursor, limit))

    def push(self, document: Json) -> Pushed:
        """Push a definition; InvalidWorkflow with `problems` where it has faults."""
        return self._client.send(_push(document))

    def validate(self, document: Json) -> Validation:
        """All faults of a definition, and its graph where it has none."""
        return self._client.send(_validate(document))

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of definitions."""
        return self._client.send(_schema())

    def get(self, name: str) -> Workflow:
        """One workflow with its latest definition and its triggers."""
        return self._client.send(Call("GET", _path(name), Workflow.model_validate))

    def pause(self, name: str, paused: bool = True) -> Workflow:
        """Let a workflow's triggers rest, or fire again."""
        return self._client.send(_pause(name, paused))

    def versions(
        self, name: str, *, cursor: str | None = None, limit: int = 50
    ) -> Page[WorkflowVersion]:
        """A page of a workflow's versions, newest first."""
        return self._client.send(_versions(name, cursor, limit))

    def version(self, name: str, version: int) -> WorkflowVersion:
        """One version, with its definition."""
        return self._client.send(_version(name, version))

    def run(
        self, name: str, inputs: Json | None = None, *, version: int | None = None,
        priority: Priority | str | None = None, idempotency_key: str | None = None,
    ) -> WorkflowRun:  # fmt: skip
        """Start a run; the same `idempotency_key` starts one run of the workflow."""
        return self._client.send(_start(name, inputs or {}, version, priority, idempotency_key))

    def runs(
        self, *, workflow: str | None = None, status: RunState | str | None = None,
        cursor: str | None = None, limit: int = 50,
    ) -> Page[WorkflowRun]:  # fmt: skip
        """A page of runs, newest first, without their steps."""
        return self._client.send(_runs(workflow, status, cursor, limit))

    def get_run(self, run_id: Id) -> WorkflowRun:
        """One run with its steps."""
        return self._client.send(_get_run(run_id))

    def cancel(self, run_id: Id) -> WorkflowRun:
        """Cancel a run and the jobs of its steps; a repeat changes nothing."""
        return self._client.send(_cancel(run_id))

    def retry(self, run_id: Id, *, idempotency_key: str | None = None) -> WorkflowRun:
        """A new run that keeps the steps that have succeeded."""
        return self._client.send(_retry(run_id, idempotency_key))

    def events(self, run_id: Id, after: str = "") -> Generator[Event]:
        """A run's events, kept and live, until `run_completed`."""
        return self._client.follow(_events(run_id), after)

    def wait(self, run_id: Id, timeout: float) -> WorkflowRun:
        """The run once it has ended; raises TimeoutError after `timeout` seconds."""
        return _polled(lambda: self.get_run(run_id), timeout, run_id)


class AsyncWorkflows:
    """As Workflows, awaited, by an AsyncClient's connections."""

    def __init__(self, client: _Async) -> None:
        self._client = client

    async def list(self, *, cursor: str | None = None, limit: int = 50) -> Page[WorkflowSummary]:
        """A page of workflows, newest first."""
        return await self._client.send(_listing(cursor, limit))

    async def push(self, document: Json) -> Pushed:
        """Push a definition; InvalidWorkflow with `problems` where it has faults."""
        return await self._client.send(_push(document))

    async def validate(self, document: Json) -> Validation:
        """All faults of a definition, and its graph where it has none."""
        return await self._client.send(_validate(document))

    async def schema(self) -> dict[str, Any]:
        """The JSON Schema of definitions."""
        return await self._client.send(_schema())

    async def get(self, name: str) -> Workflow:
        """One workflow with its latest definition and its triggers."""
        return await self._client.send(Call("GET", _path(name), Workflow.model_validate))

    async def pause(self, name: str, paused: bool = True) -> Workflow:
        """Let a workflow's triggers rest, or fire again."""
        return await self._client.send(_pause(name, paused))

    async def versions(
        self, name: str, *, cursor: str | None = None, limit: int = 50
    ) -> Page[WorkflowVersion]:
        """A page of a workflow's versions, newest first."""
        return await self._client.send(_versions(name, cursor, limit))

    async def version(self, name: str, version: int) -> WorkflowVersion:
        """One version, with its definition."""
        return await self._client.send(_version(name, version))

    async def run(
        self, name: str, inputs: Json | None = None, *, version: int | None = None,
        priority: Priority | str | None = None, idempotency_key: str | None = None,
    ) -> WorkflowRun:  # fmt: skip
        """Start a run; the same `idempotency_key` starts one run of the workflow."""
        return await self._client.send(
            _start(name, inputs or {}, version, priority, idempotency_key)
        )

    async def runs(
        self, *, workflow: str | None = None, status: RunState | str | None = None,
        cursor: str | None = None, limit: int = 50,
    ) -> Page[WorkflowRun]:  # fmt: skip
        """A page of runs, newest first, without their steps."""
        return await self._client.send(_runs(workflow, status, cursor, limit))

    async def get_run(self, run_id: Id) -> WorkflowRun:
        """One run with its steps."""
        return await self._client.send(_get_run(run_id))

    async def cancel(self, run_id: Id) -> WorkflowRun:
        """Cancel a run and the jobs of its steps; a repeat changes nothing."""
        return await self._client.send(_cancel(run_id))

    async def retry(self, run_id: Id, *, idempotency_key: str | None = None) -> WorkflowRun:
        """A new run that keeps the steps that have succeeded."""
        return await self._client.send(_retry(run_id, idempotency_key))

    def events(self, run_id: Id, after: str = "") -> AsyncGenerator[Event]:
        """A run's events, kept and live, until `run_completed`."""
        return self._client.follow(_events(run_id), after)


def _polled(look: Callable[[], WorkflowRun], timeout: float, run_id: Id) -> WorkflowRun:
    deadline, pause = time.monotonic() + timeout, 0.05
    while not (found := look()).ended:
        if time.monotonic() + pause > deadline:
            raise TimeoutError(f"workflow run {run_id} did not end within {timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return found
