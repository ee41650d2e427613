"""`webhook`: a service of the operator's makes a pool's machines, told by a signed POST.

Signed as standard-webhooks says, like those of jobs. The id of the message is the operation's, so
that a repeat can be known. Where it goes is a setting and not a caller's to say.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from vyvo_dagster.domain.webhook import secret_bytes, sign
from vyvo_dagster.errors import InvalidInput, ScalingFailed, ScalingRefused
from vyvo_dagster.scaling.base import Task

__all__ = ["WebhookScaler"]

_TRY_SECONDS: Final = 30.0
_PAUSES: Final = (1.0, 4.0, 0.0)
_TRY_AGAIN: Final = frozenset({408, 425, 429})
_SAID_BYTES: Final = 2000


class WebhookScaler:
    """Tells a service what a pool should be; it answers 2xx once it will see to that.

    Args:
        url: http or https.
        secret: `whsec_` and base64, as standard-webhooks writes them.
        api_url: where new nodes join, told in the message.
        pauses: seconds after each failed try; as many tries as there are.

    Raises:
        InvalidInput: the URL or the secret cannot be used.
    """

    def __init__(
        self, url: str, secret: str, *, api_url: str, pauses: Sequence[float] = _PAUSES
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"VYVO_SCALER_WEBHOOK_URL is no URL: {error}") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.userinfo:
            raise InvalidInput(
                "VYVO_SCALER_WEBHOOK_URL must be http or https, to a host, without a user"
            )
        secret_bytes(secret)
        self._url, self._secret, self._api_url, self._pauses = parsed, secret, api_url, pauses

    async def plan(self, task: Task) -> Mapping[str, Any]:
        """What the message would say; nothing is sent."""
        task.say(f"POST to {self._url.host}: size {task.change.size}")
        return {"message": self._data(task)}

    async def apply(self, task: Task) -> None:
        """Send it until it is answered."""
        # The same bytes at each try, and at the next worker's.
        body = json.dumps({"type": "node_pool.scale", "data": self._data(task)}).encode()
        async with httpx.AsyncClient(
            timeout=_TRY_SECONDS, trust_env=False, follow_redirects=False
        ) as http:
            for number, pause in enumerate(self._pauses, 1):
                try:
                    async with asyncio.timeout(_TRY_SECONDS):
                        status, said = await self._post(http, str(task.operation_id), body)
                except (httpx.HTTPError, OSError, TimeoutError) as error:
                    status, said = None, str(error) or type(error).__name__
                task.say(f"try {number}: {status or 'no answer'} {said}".rstrip())
                if status is not None and 200 <= status < 300:
                    return
                if status is not None and status < 500 and status not in _TRY_AGAIN:
                    raise ScalingRefused(f"the scaler's webhook answered {status}: {said}")
                await asyncio.sleep(pause)
        raise ScalingFailed(f"the scaler's webhook took it in none of {len(self._pauses)} tries")

    async def keep(self, pools: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> None:
        """Nothing: the service looks after its machines."""

    def _data(self, task: Task) -> dict[str, Any]:
        change = task.change
        return {
            "operation_id": str(task.operation_id), "pool": task.pool, "size": change.size,
            "node_names": list(change.names), "add": list(change.add),
            "remove": list(change.remove), "api_url": self._api_url,
        }  # fmt: skip

    async def _post(self, http: httpx.AsyncClient, id: str, body: bytes) -> tuple[int, str]:
        now = int(time.time())
        headers = {
            "Content-Type": "application/json", "User-Agent": "vyvo-dagster", "webhook-id": id,
            "webhook-timestamp": str(now), "webhook-signature": sign([self._secret], id, now, body),
        }  # fmt: skip
        said = b""
        async with http.stream("POST", self._url, content=body, headers=headers) as response:
            async for chunk in response.aiter_raw(1024):
                said += chunk
                if len(said) >= _SAID_BYTES:
                    break
            text = said[:_SAID_BYTES].decode(errors="replace")
            return response.status_code, " ".join(text.split())
