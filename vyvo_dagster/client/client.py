"""A typed client of the REST api, for the CLI, the demo, the tests, and anyone's scripts."""

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx

from vyvo_dagster.client.sse import ServerSentEvent, parse
from vyvo_dagster.domain.build import BUILD, BuildState
from vyvo_dagster.errors import Unavailable, VyvoError

__all__ = ["ApiError", "Client"]

# An SSE stream sends a comment at least every 15 s.
_STREAM_TIMEOUT = httpx.Timeout(10.0, read=60.0)
_RECONNECTS = 20


class ApiError(VyvoError):
    """The api answered with a problem document; `code` is the document's."""

    def __init__(self, status: int, code: str, detail: str, **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.status = status  # type: ignore[misc]
        self.code = code  # type: ignore[misc]


class Client:
    """Synchronous client. Use as a context manager, or call close().

    Args:
        url: base URL of the api, such as http://127.0.0.1:8080.
        key: API key.

    Every method raises ApiError for an answer of 400 and above, and Unavailable where the api
    cannot be reached.
    """

    def __init__(self, url: str, key: str, timeout: float = 30.0) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        """One request; the decoded JSON answer."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unavailable(f"cannot reach the api at {self._http.base_url}: {error}") from error
        if response.status_code >= 400:
            raise _problem(response)
        return response.json() if response.content else None

    def submit_build(
        self, body: Mapping[str, Any], idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Queue a build; `{build_id, status}`."""
        return self.request("POST", "/api/builds", json=dict(body), headers=_key(idempotency_key))

    def build(self, build_id: UUID | str, **log: int) -> dict[str, Any]:
        """A build with a slice of its log."""
        return self.request("GET", f"/api/builds/{build_id}", params=log)

    def build_log(self, build_id: UUID | str, after: str = "") -> Iterator[ServerSentEvent]:
        """The lines of a build's log as they come, until it ends."""
        return self._events(f"/api/builds/{build_id}/logs", after, last="end")

    def wait_for_build(self, build_id: UUID | str, timeout: float) -> dict[str, Any]:
        """The build once it has ended; raises TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            build = self.build(build_id)
            if BuildState(build["status"]) in BUILD.terminal:
                return build
            time.sleep(0.2)
        raise TimeoutError(f"build {build_id} did not end within {timeout:.0f} s")

    def version(self, model_id: str, version: str) -> dict[str, Any]:
        """One version's registry entry."""
        return self.request("GET", f"/api/models/{model_id}/versions/{version}")

    def nodes(self) -> list[dict[str, Any]]:
        """The newest nodes."""
        return self.request("GET", "/api/nodes")["items"]

    def node(self, node_id: UUID | str) -> dict[str, Any]:
        """One node, with its assignments."""
        return self.request("GET", f"/api/nodes/{node_id}")

    def assign(self, node_id: UUID | str, model_id: str, version_id: str) -> dict[str, Any]:
        """Load a version on a node."""
        return self.request(
            "POST",
            f"/api/nodes/{node_id}/assign",
            json={"model_id": model_id, "version_id": version_id},
        )

    def submit(
        self,
        model_id: str,
        input: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Submit a job; `{job_id, status, queue_position, eta_seconds}`."""
        body = {"model_id": model_id, "input": dict(input), **options}
        return self.request("POST", "/api/jobs", json=body, headers=_key(idempotency_key))

    def job(self, job_id: UUID | str) -> dict[str, Any]:
        """One job with its artifacts."""
        return self.request("GET", f"/api/jobs/{job_id}")

    def cancel(self, job_id: UUID | str) -> dict[str, Any]:
        """Cancel a job."""
        return self.request("POST", f"/api/jobs/{job_id}/cancel")

    def job_events(self, job_id: UUID | str, after: str = "") -> Iterator[ServerSentEvent]:
        """A job's events, kept and live, until `completed`; reconnects where it stopped."""
        return self._events(f"/api/jobs/{job_id}/events", after, last="completed")

    def download(self, presigned_url: str) -> bytes:
        """The bytes behind a presigned URL."""
        response = httpx.get(presigned_url, timeout=60.0, trust_env=False)
        response.raise_for_status()
        return response.content

    def _events(self, path: str, after: str, last: str) -> Iterator[ServerSentEvent]:
        for attempt in range(_RECONNECTS):
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
            try:
                with self._http.stream(
                    "GET", path, headers=headers, timeout=_STREAM_TIMEOUT
                ) as response:
                    if response.status_code >= 400:
                        response.read()
                        raise _problem(response)
                    for event in parse(response.iter_lines()):
                        after = event.id or after
                        yield event
                        if event.event == last:
                            return
            except httpx.TransportError:
                time.sleep(min(0.2 * 2**attempt, 5.0))
        raise Unavailable(f"the stream of {path} broke {_RECONNECTS} times; try again later")


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}


def _problem(response: httpx.Response) -> ApiError:
    """The error of a problem document, or of an answer that is none."""
    try:
        problem = response.json()
        return ApiError(
            response.status_code,
            str(problem["code"]),
            str(problem["detail"]),
            **{
                k: v
                for k, v in problem.items()
                if k not in {"type", "title", "status", "code", "detail"}
            },
        )
    except (ValueError, KeyError, TypeError):
        return ApiError(response.status_code, "not_a_problem", response.text[:200])
