"""The agent's HTTP client to the control plane; answers become values, problems become errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import BaseModel, ValidationError

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
from vyvo_dagster.protocol.job import (
    CompletionReport,
    ProgressReport,
    ReportBatchAnswer,
    ReportItem,
    ReportResult,
)
from vyvo_dagster.protocol.node import (
    AssignmentCredentials,
    CredentialAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Register,
    RegisterAnswer,
)

if TYPE_CHECKING:
    from vyvo_dagster.agent.rpc import RpcReports

__all__ = ["ControlPlane", "Unreachable", "problem_error"]

M = TypeVar("M", bound=BaseModel)

_TIMEOUT: Final = httpx.Timeout(15.0, connect=5.0)
# Short, so that a node that was cut off is heard again within seconds: see `Heartbeats`.
_BEAT_TIMEOUT: Final = httpx.Timeout(10.0, connect=2.5)
# A proxy or a server that is starting answers these; the request itself may be good.
_TRANSIENT: Final = frozenset({408, 425, 429, 502, 503, 504})
_FROM_A_PROXY: Final = frozenset({502, 504})
_ERRORS: Final[Mapping[int, type[VyvoError]]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    # A route that an older api does not have.
    405: NotFound,
    409: Conflict,
    413: InvalidInput,
    422: InvalidInput,
}
# Codes that are told apart within their status.
_BY_CODE: Final[Mapping[str, type[VyvoError]]] = {
    kind.code: kind for kind in (StaleAttempt, InvalidReport)
}


class Unreachable(Unavailable):
    """Nothing of the api's own came back."""


class ControlPlane:
    """One api, as one node.

    Args:
        api_url: URL of the api, http or https, without a path.
        grpc_url: where attempts are reported by gRPC, as `RpcReports` takes it; unset, by HTTP.
        grpc_ca: certificates that gRPC's server is checked with.

    `credential` is the node's own, set by whoever joined; requests other than `register` carry it.

    Methods raise Unreachable when the api does not answer, Unavailable when it is starting, Unauthenticated,
    Forbidden, NotFound, Conflict (StaleAttempt where the problem's code says so), InvalidInput as
    the api answers, and VyvoError when it failed inside.
    """

    def __init__(
        self, api_url: str, grpc_url: str | None = None, grpc_ca: Path | None = None
    ) -> None:
        parts = urlsplit(api_url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise InvalidInput(
                f"VYVO_AGENT_API_URL must look like http://host:port; got {api_url!r}"
            )
        self.url = api_url.rstrip("/")
        self.credential: str | None = None
        self._grpc_url, self._grpc_ca = grpc_url, grpc_ca
        self._rpc: RpcReports | None = None
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )
        # Apart: one that fails is followed by a new connection, never by another that is dead too.
        self._beats = httpx.AsyncClient(
            base_url=self.url,
            timeout=_BEAT_TIMEOUT,
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=1),
        )

    async def __aenter__(self) -> Self:
        if self._grpc_url is not None:
            from vyvo_dagster.agent.rpc import RpcReports

            self._rpc = RpcReports(self._grpc_url, self._grpc_ca, lambda: self.credential)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._rpc is not None:
            await self._rpc.aclose()
        await self._beats.aclose()
        await self._http.aclose()

    async def register(self, body: Register, token: str) -> RegisterAnswer:
        """Join with the join token or with the node's own credential."""
        answer = await self._post("/api/nodes/register", body, token)
        return _parsed(RegisterAnswer, answer)

    async def replace_credential(self, node_id: UUID) -> CredentialAnswer:
        """The node's next credential; the caller keeps it and sets `credential`."""
        answer = await self._post(f"/api/nodes/{node_id}/credential", b"{}", self.credential)
        return _parsed(CredentialAnswer, answer)

    async def assignment_credentials(
        self, node_id: UUID, assignment_id: UUID
    ) -> AssignmentCredentials:
        """What this node needs to pull an assignment's image. An api that gives none says so."""
        path = f"/api/nodes/{node_id}/assignments/{assignment_id}/credentials"
        try:
            answer = await self._post(path, b"{}", self.credential)
        except NotFound:
            return AssignmentCredentials(registry=None)
        return _parsed(AssignmentCredentials, answer)

    async def heartbeat(
        self, node_id: UUID, body: Heartbeat, *, seconds: float | None = None
    ) -> HeartbeatAnswer:
        """Report this node; `seconds` shortens the usual one."""
        answer = await self._post(
            f"/api/nodes/{node_id}/heartbeat", body, self.credential, self._beats, seconds
        )
        return _parsed(HeartbeatAnswer, answer)

    async def report(
        self, node_id: UUID, items: Sequence[ReportItem], texts: Sequence[bytes]
    ) -> list[ReportResult]:
        """Report many attempts at a time; `texts` are the JSON texts of `items`."""
        if self._rpc is not None:
            results = await self._rpc.report(items)
        else:
            content = b'{"items":[' + b",".join(texts) + b"]}"
            path = f"/api/nodes/{node_id}/reports"
            answer = await self._post(path, content, self.credential)
            results = _parsed(ReportBatchAnswer, answer).results
        if len(results) != len(items):
            raise Unavailable(f"{self.url} answered {len(results)} of {len(items)} reports")
        return results

    async def progress(self, job_id: UUID, report: ProgressReport) -> None:
        """Report an attempt's start, progress or log lines."""
        if self._rpc is not None:
            await self._rpc.progress(job_id, report)
            return
        await self._post(f"/api/jobs/{job_id}/progress", report, self.credential)

    async def complete(self, job_id: UUID, report: CompletionReport) -> None:
        """Report an attempt's end; the api answers a repeat as it did the first."""
        if self._rpc is not None:
            await self._rpc.complete(job_id, report)
            return
        await self._post(f"/api/jobs/{job_id}/complete", report, self.credential)

    async def _post(
        self,
        path: str,
        body: BaseModel | bytes,
        token: str | None,
        client: httpx.AsyncClient | None = None,
        seconds: float | None = None,
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            answer = await (client or self._http).post(
                path,
                content=body if isinstance(body, bytes) else body.model_dump_json(),
                headers=headers,
                timeout=httpx.USE_CLIENT_DEFAULT if seconds is None else seconds,
            )
        except httpx.HTTPError as error:
            raise Unreachable(
                f"the api at {self.url} does not answer ({type(error).__name__})"
            ) from error
        if answer.is_success:
            return answer
        raise self._problem(answer)

    def _problem(self, answer: httpx.Response) -> VyvoError:
        status = answer.status_code
        problem = _members(answer)
        detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")[:2000]
        if status in _TRANSIENT or answer.is_redirect:
            kind = Unreachable if status in _FROM_A_PROXY else Unavailable
            return kind(f"the api at {self.url} answered {status}: {detail}")
        return problem_error(status, str(problem.get("code")), detail)


def problem_error(status: int, code: str, detail: str) -> VyvoError:
    """The error that a problem tells of."""
    if status in _TRANSIENT:
        return Unavailable(detail)
    kind = _BY_CODE.get(code)
    if kind is not None and kind.status == status:
        return kind(detail)
    return _ERRORS.get(status, VyvoError)(detail)


def _members(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        problem: Any = answer.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _parsed(model: type[M], answer: httpx.Response) -> M:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Unavailable(
            f"{answer.request.url} answered what is no {model.__name__} "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); is it a vyvo api of this version?"
        ) from error
