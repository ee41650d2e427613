"""Every call of the api as a value: what is sent, and how its answer is read. No I/O."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx
from pydantic import BaseModel

from vyvo_dagster.client.models import (
    Assignment,
    Build,
    BuildAccepted,
    DeadLetter,
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
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.errors import Unavailable

__all__ = ["Call", "Id", "JobSpec", "Json", "Stream"]

T_co = TypeVar("T_co", covariant=True)
Json = Mapping[str, Any]
Id = UUID | str


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One request. `read` makes the answer of its decoded JSON."""

    method: str
    path: str
    read: Callable[[Any], T_co]
    body: Json | None = None
    params: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    key: str | None = None
    """Idempotency-Key."""
    naturally_repeatable: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether doing it twice is doing it once."""
        return (
            self.naturally_repeatable
            or self.key is not None
            or self.method in {"GET", "PUT", "DELETE"}
        )

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside the credential."""
        return {} if self.key is None else {"Idempotency-Key": self.key}

    def answer(self, response: httpx.Response) -> T_co:
        """What a response below 400 says; Unavailable where another server than the api gave it."""
        try:
            return self.read(json.loads(response.content) if response.content else None)
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(
                f"{response.url.host}:{response.url.port} answers {self.method} {self.path}"
                " with something else than this api does; is the URL right?"
            ) from error


@dataclass(frozen=True, slots=True)
class Stream:
    """One event stream; it is over after an event of the kind `last`."""

    path: str
    last: str


def _read(cls: type[BaseModel]) -> Callable[[Any], Any]:
    return cls.model_validate


def _key(given: str | None) -> str:
    """Each call has a key of its own, so that it may be tried again."""
    return given or uuid.uuid4().hex


def _id(value: Id) -> str:
    """An id in a path: whatever it holds, it stays one segment."""
    return quote(str(value), safe="")


def _model(model_id: str) -> str:
    owner, _, name = model_id.partition("/")
    return f"/api/models/{quote(owner, safe='')}/{quote(name, safe='')}"


def _given(**values: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job to submit. `version` None takes the active one; `ttl_seconds` is its life in the queue."""

    model_id: str
    input: Json
    version: str | None = None
    priority: Priority | None = None
    ttl_seconds: int | None = None
    extra: Json = field(default_factory=dict[str, Any])
    """Further members of the request, such as `webhook`."""

    def body(self) -> dict[str, Any]:
        """The request's body."""
        options = _given(version=self.version, priority=self.priority, ttl_seconds=self.ttl_seconds)
        return {"model_id": self.model_id, "input": dict(self.input), **options, **self.extra}


def submit(spec: JobSpec, key: str | None) -> Call[JobAccepted]:
    return Call("POST", "/api/jobs", _read(JobAccepted), spec.body(), key=_key(key))


def submit_batch(specs: Sequence[JobSpec], key: str | None) -> Call[tuple[JobAccepted, ...]]:
    def read(answer: Any) -> tuple[JobAccepted, ...]:
        return tuple(JobAccepted.model_validate(job) for job in answer["jobs"])

    return Call("POST", "/api/jobs/batch", read, {"jobs": [s.body() for s in specs]}, key=_key(key))


def job(job_id: Id) -> Call[Job]:
    return Call("GET", f"/api/jobs/{_id(job_id)}", _read(Job))


def jobs(
    status: JobState | str | None, model_id: str | None, cursor: str | None, limit: int
) -> Call[Page[JobSummary]]:
    params = _given(status=status, model_id=model_id, cursor=cursor, limit=limit)
    return Call("GET", "/api/jobs", _read(Page[JobSummary]), params=params)


def cancel(job_id: Id) -> Call[Job]:
    return Call("POST", f"/api/jobs/{_id(job_id)}/cancel", _read(Job), naturally_repeatable=True)


def set_priority(job_id: Id, priority: Priority | str) -> Call[Job]:
    return Call(
        "PATCH", f"/api/jobs/{_id(job_id)}", _read(Job), {"priority": str(priority)},
        naturally_repeatable=True,
    )  # fmt: skip


def requeue(
    job_id: Id, priority: Priority | str | None, ttl_seconds: int | None, key: str | None
) -> Call[JobAccepted]:
    return Call(
        "POST", f"/api/jobs/{_id(job_id)}/requeue", _read(JobAccepted),
        _given(priority=priority, ttl_seconds=ttl_seconds), key=_key(key),
    )  # fmt: skip


def dead_letters(model_id: str | None, cursor: str | None, limit: int) -> Call[Page[DeadLetter]]:
    params = _given(model_id=model_id, cursor=cursor, limit=limit)
    return Call("GET", "/api/dead-letters", _read(Page[DeadLetter]), params=params)


def queue(model_id: str | None, limit: int) -> Call[Queues]:
    return Call("GET", "/api/queue", _read(Queues), params=_given(model_id=model_id, limit=limit))


def weights() -> Call[tuple[Weight, ...]]:
    def read(answer: Any) -> tuple[Weight, ...]:
        return tuple(Weight.model_validate(each) for each in answer["items"])

    return Call("GET", "/api/queue/weights", read)


def set_weight(tenant: str, weight: float, model_id: str | None) -> Call[Weight]:
    body = {"tenant": tenant, "weight": weight, "model_id": model_id}
    return Call("PUT", "/api/queue/weights", _read(Weight), body)


def delete_weight(tenant: str, model_id: str | None) -> Call[None]:
    params = _given(tenant=tenant, model_id=model_id)
    return Call("DELETE", "/api/queue/weights", lambda _: None, params=params)


def webhooks(job_id: Id) -> Call[tuple[WebhookDelivery, ...]]:
    def read(answer: Any) -> tuple[WebhookDelivery, ...]:
        return tuple(WebhookDelivery.model_validate(each) for each in answer)

    return Call("GET", f"/api/jobs/{_id(job_id)}/webhooks", read)


def redeliver(job_id: Id, delivery_id: Id) -> Call[WebhookDelivery]:
    path = f"/api/jobs/{_id(job_id)}/webhooks/{_id(delivery_id)}/redeliver"
    return Call("POST", path, _read(WebhookDelivery))


def set_webhook_secret(secret: str | None) -> Call[str]:
    def read(answer: Any) -> str:
        return str(answer["secret"])

    return Call("POST", "/api/webhook-secret", read, _given(secret=secret))


def job_events(job_id: Id) -> Stream:
    return Stream(f"/api/jobs/{_id(job_id)}/events", "completed")


def submit_build(body: Json, key: str | None) -> Call[BuildAccepted]:
    return Call("POST", "/api/builds", _read(BuildAccepted), dict(body), key=_key(key))


def build(build_id: Id) -> Call[Build]:
    return Call("GET", f"/api/builds/{_id(build_id)}", _read(Build))


def build_log(build_id: Id) -> Stream:
    return Stream(f"/api/builds/{_id(build_id)}/logs", "end")


def models(cursor: str | None, limit: int) -> Call[Page[Model]]:
    return Call("GET", "/api/models", _read(Page[Model]), params=_given(cursor=cursor, limit=limit))


def versions(model_id: str, cursor: str | None, limit: int) -> Call[Page[Version]]:
    params = _given(cursor=cursor, limit=limit)
    return Call("GET", f"{_model(model_id)}/versions", _read(Page[Version]), params=params)


def version(model_id: str, name: str) -> Call[Version]:
    return Call("GET", f"{_model(model_id)}/versions/{_id(name)}", _read(Version))


def nodes(
    state: NodeState | str | None, name: str | None, cursor: str | None, limit: int
) -> Call[Page[Node]]:
    params = _given(state=state, name=name, cursor=cursor, limit=limit)
    return Call("GET", "/api/nodes", _read(Page[Node]), params=params)


def node(node_id: Id) -> Call[Node]:
    return Call("GET", f"/api/nodes/{_id(node_id)}", _read(Node))


def node_events(node_id: Id, cursor: str | None, limit: int) -> Call[Page[NodeEvent]]:
    path = f"/api/nodes/{_id(node_id)}/events"
    return Call("GET", path, _read(Page[NodeEvent]), params=_given(cursor=cursor, limit=limit))


def node_flag(node_id: Id, what: str) -> Call[Node]:
    path = f"/api/nodes/{_id(node_id)}/{what}"
    return Call("POST", path, _read(Node), naturally_repeatable=True)


def drain(node_id: Id, deadline_seconds: int | None) -> Call[Node]:
    return Call(
        "POST", f"/api/nodes/{_id(node_id)}/drain", _read(Node),
        _given(deadline_seconds=deadline_seconds), naturally_repeatable=True,
    )  # fmt: skip


def unassign(node_id: Id, assignment_id: Id) -> Call[Assignment]:
    path = f"/api/nodes/{_id(node_id)}/assignments/{_id(assignment_id)}"
    return Call("DELETE", path, _read(Assignment))


def assign(node_id: Id, model_id: str, version_id: Id, key: str | None) -> Call[Assignment]:
    body = {"model_id": model_id, "version_id": str(version_id)}
    return Call("POST", f"/api/nodes/{_id(node_id)}/assign", _read(Assignment), body, key=_key(key))


def pools(cursor: str | None, limit: int) -> Call[Page[Pool]]:
    params = _given(cursor=cursor, limit=limit)
    return Call("GET", "/api/node-pools", _read(Page[Pool]), params=params)


def pool(name: str) -> Call[Pool]:
    return Call("GET", f"/api/node-pools/{_id(name)}", _read(Pool))


def put_pool(name: str, body: Json) -> Call[Pool]:
    return Call("PUT", f"/api/node-pools/{_id(name)}", _read(Pool), dict(body))


def scale_pool(
    name: str, size: int | None, delta: int | None, dry_run: bool, key: str | None
) -> Call[PoolOperation]:
    body = {"pool": name, "dry_run": dry_run, **_given(size=size, delta=delta)}
    return Call("POST", "/api/node-pools/scale", _read(PoolOperation), body, key=_key(key))


def pool_operations(name: str, cursor: str | None, limit: int) -> Call[Page[PoolOperation]]:
    params = _given(cursor=cursor, limit=limit)
    path = f"/api/node-pools/{_id(name)}/operations"
    return Call("GET", path, _read(Page[PoolOperation]), params=params)


def pool_operation(name: str, operation_id: Id, log_offset: int) -> Call[PoolOperation]:
    path = f"/api/node-pools/{_id(name)}/operations/{_id(operation_id)}"
    return Call("GET", path, _read(PoolOperation), params={"log_offset": log_offset})


def anything(method: str, path: str, body: Json | None, params: Mapping[str, str | int] | None,
             key: str | None) -> Call[Any]:  # fmt: skip
    def read(answer: Any) -> Any:
        return answer

    return Call(method.upper(), path, read, body, params or {}, key)
