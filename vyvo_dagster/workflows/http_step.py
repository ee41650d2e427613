"""HTTP steps: one request, bounded in time and size, to addresses that a stranger may have called.

At least once: an engine that takes a run over sends again what may not have been answered, with the
same `Idempotency-Key`, which is the step's attempt.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any, Final

import httpx

from vyvo_dagster.dispatch.outbound import Resolve, addresses, resolve, sni
from vyvo_dagster.domain.webhook import check_url
from vyvo_dagster.domain.workflow.run import Outcome, Start
from vyvo_dagster.domain.workflow.state import StepState
from vyvo_dagster.errors import InvalidWebhook
from vyvo_dagster.workflows.json_text import stored_json

__all__ = ["HttpSteps"]

_SECONDS: Final = 60.0
_ANSWER_BYTES: Final = 1 << 20
_REQUEST_BYTES: Final = 256 << 10
_HEADER_CHARS: Final = 4096
_AT_ONCE: Final = 64
# What speaks for the connection is ours to say.
_RESERVED: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "idempotency-key", "upgrade"}
)
_FAILED: Final = "http_failed"


class HttpSteps:
    """Sends the requests of HTTP steps.

    Args:
        allow_loopback: whether they may go to this machine itself, by http too.
        verify: of TLS; unset trusts what the machine trusts.
    """

    def __init__(
        self, *, allow_loopback: bool, resolver: Resolve = resolve,
        verify: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._allow_loopback = allow_loopback
        self._resolve = resolver
        self._room = asyncio.Semaphore(_AT_ONCE)
        # trust_env off: a proxy of the environment would resolve the name itself, after the check.
        self._http = httpx.AsyncClient(
            verify=verify or ssl.create_default_context(), trust_env=False,
            follow_redirects=False, limits=httpx.Limits(max_keepalive_connections=0),
        )  # fmt: skip

    async def send(self, start: Start) -> Outcome:
        """Send a step's request; any answer of 200 to 299 is a success. Raises nothing."""
        assert start.http is not None
        seconds = start.timeout_seconds or _SECONDS
        try:
            async with self._room:
                async with asyncio.timeout(seconds):
                    status, headers, body = await self._send(start, start.http, seconds)
        except TimeoutError:
            return _failed(f"no answer within {seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, InvalidWebhook, OSError, ValueError) as error:
            return _failed(str(error) or type(error).__name__)
        if not 200 <= status < 300:
            return _failed(f"it answered {status}: {body[:500].decode('utf-8', 'replace')}")
        return Outcome(
            StepState.SUCCEEDED, {"status": status, "headers": headers, "body": _parsed(body)}
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _send(
        self, start: Start, given: Mapping[str, Any], seconds: float
    ) -> tuple[int, dict[str, str], bytes]:
        text = str(given["url"])
        check_url(text, allow_loopback=self._allow_loopback)
        url = httpx.URL(text)
        body, kind = _body(given.get("body"))
        headers = {
            **({} if kind is None else {"content-type": kind}), "user-agent": "vyvo-dagster",
            **{
                str(name).lower(): str(value)
                for name, value in (given.get("headers") or {}).items()
                if str(name).lower() not in _RESERVED
            },
            "host": url.netloc.decode("ascii"),
            "idempotency-key": f"{start.step.id}-{start.step.attempt}",
        }  # fmt: skip
        failure: Exception | None = None
        for address in await addresses(url, self._resolve, allow_loopback=self._allow_loopback):
            request = self._http.build_request(
                str(given.get("method", "GET")), url.copy_with(host=address), headers=headers,
                content=body,
                extensions={**sni(url), "timeout": httpx.Timeout(seconds).as_dict()},
            )  # fmt: skip
            try:
                response = await self._http.send(request, stream=True)
            except httpx.ConnectError as error:
                failure = error
                continue
            try:
                return response.status_code, _headers(response), await _read(response)
            finally:
                await response.aclose()
        raise failure or InvalidWebhook(f"{url.host} has no address")


async def _read(response: httpx.Response) -> bytes:
    found = bytearray()
    async for chunk in response.aiter_bytes():
        found += chunk
        if len(found) > _ANSWER_BYTES:
            raise ValueError(f"the answer has more than {_ANSWER_BYTES} bytes")
    return bytes(found)


def _body(given: Any) -> tuple[bytes | None, str | None]:
    if given is None:
        return None, None
    text, kind = (given, "text/plain; charset=utf-8") if isinstance(given, str) else (
        json.dumps(given, ensure_ascii=False, separators=(",", ":")), "application/json"
    )  # fmt: skip
    body = text.encode("utf-8", "replace")
    if len(body) > _REQUEST_BYTES:
        raise ValueError(f"the body has more than {_REQUEST_BYTES} bytes")
    return body, kind


def _headers(response: httpx.Response) -> dict[str, str]:
    return {
        name: value.replace("\0", "")[:_HEADER_CHARS]
        for name, value in response.headers.items()
        if name != "set-cookie"
    }


def _parsed(body: bytes) -> Any:
    """JSON where it is that, else text; without NUL, which no column holds."""
    text = body.decode("utf-8", "replace")
    try:
        return stored_json(text)
    except (ValueError, RecursionError):
        return text.replace("\0", "")


def _failed(message: str) -> Outcome:
    return Outcome(StepState.FAILED, None, _FAILED, message.replace("\0", ""))
