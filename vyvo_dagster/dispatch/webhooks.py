"""Delivers webhooks: claims those that are due, signs, posts, notes how it went.

At least once: a crash after the post and before its note repeats it, with the same `webhook-id`.
Any number of orchestrators deliver at once. A name is resolved once for each try, every address
must be public, and the connection goes to the address that was judged; redirects are not followed.
"""

import asyncio
import json
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import httpx

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.outbound import Resolve, addresses, resolve, sni
from vyvo_dagster.domain.webhook import check_url, pause_after, sign
from vyvo_dagster.errors import InvalidWebhook, Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.webhooks import Claimed
from vyvo_dagster.telemetry import metrics

__all__ = ["WebhookSender", "resolve"]

log = logging.getLogger(__name__)

_TRY_SECONDS: Final = 10.0
_LEASE: Final = timedelta(seconds=60)
_OVERLAP: Final = timedelta(hours=24)
_AT_ONCE: Final = 64
# Receivers of one tenant that hang must leave room for the others'.
_AT_ONCE_OF_TENANT: Final = 16
_GONE: Final = 410
_ERROR_CHARS: Final = 500


class WebhookSender:
    """Delivers until canceled.

    Args:
        allow_loopback: whether webhooks may go to this machine itself, by http too.
        pauses: seconds until the next try after so many, None after the last.
    """

    def __init__(
        self, database: Database, *, allow_loopback: bool, resolver: Resolve = resolve,
        pauses: Callable[[int], float | None] = pause_after, sweep_seconds: float = 0.5,
        try_seconds: float = _TRY_SECONDS, verify: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._database = database
        self._allow_loopback = allow_loopback
        self._resolve = resolver
        self._pauses = pauses
        self._sweep = sweep_seconds
        self._try_seconds = try_seconds
        self._verify = verify or ssl.create_default_context()
        self._under_way: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        """Deliver what is due until canceled; survives a database that goes away."""
        # trust_env off: a proxy of the environment would resolve the name itself, after the check.
        async with httpx.AsyncClient(
            verify=self._verify, trust_env=False, follow_redirects=False,
            timeout=self._try_seconds, limits=httpx.Limits(max_keepalive_connections=0),
        ) as http:  # fmt: skip
            try:
                while True:
                    try:
                        claimed = await self._claim()
                    except Unavailable:
                        claimed = []
                    for each in claimed:
                        task = asyncio.create_task(self._deliver(http, each))
                        self._under_way[task] = each.delivery.tenant
                        task.add_done_callback(self._ended)
                    # There may be more than one claim takes.
                    await asyncio.sleep(0 if len(claimed) == _AT_ONCE_OF_TENANT else self._sweep)
            finally:
                await cancel_all(self._under_way)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The claim runs out, and the delivery is tried again.
            log.error("a webhook's delivery failed by itself", exc_info=error)

    async def _claim(self) -> list[Claimed]:
        tenants = Counter(self._under_way.values())
        busy = [tenant for tenant, count in tenants.items() if count >= _AT_ONCE_OF_TENANT]
        room = min(_AT_ONCE - len(self._under_way), _AT_ONCE_OF_TENANT)
        if room <= 0:
            return []
        async with self._database.transaction() as store:
            return await store.webhooks.claim(room, _LEASE, _OVERLAP, busy)

    async def _deliver(self, http: httpx.AsyncClient, claimed: Claimed) -> None:
        status: int | None = None
        error: str | None = None
        try:
            async with asyncio.timeout(self._try_seconds):
                status = await self._post(http, claimed)
        except TimeoutError:
            error = f"no answer within {self._try_seconds:g} s"
        except Exception as failure:  # noqa: BLE001 - whatever it is, the try is over and counts
            error = str(failure) or type(failure).__name__
        if status is not None and not 200 <= status < 300:
            error = f"it answered {status}"
            if 300 <= status < 400:
                error += "; redirects are not followed"
        again = self._pauses(claimed.delivery.tries)
        if status == _GONE:
            again = None
        outcome = "delivered" if error is None else "given_up" if again is None else "failed"
        metrics.WEBHOOKS.labels(outcome).inc()
        async with self._database.transaction() as store:
            await store.webhooks.settle(
                claimed.delivery, status=status, again=again,
                error=None if error is None else error.replace("\0", "")[:_ERROR_CHARS],
            )  # fmt: skip

    async def _post(self, http: httpx.AsyncClient, claimed: Claimed) -> int:
        """Post it to the first of its addresses that takes a connection; the answer's status."""
        delivery = claimed.delivery
        # The rules may have become stricter since it was taken.
        check_url(delivery.url, allow_loopback=self._allow_loopback)
        if not claimed.secrets:
            raise InvalidWebhook("the tenant has no secret to sign it with")
        url = httpx.URL(delivery.url)
        body = json.dumps(claimed.payload, separators=(",", ":")).encode()
        id_, now = str(delivery.id), int(time.time())
        headers = {
            "Host": url.netloc.decode("ascii"), "Content-Type": "application/json",
            "User-Agent": "vyvo-dagster", "webhook-id": id_, "webhook-timestamp": str(now),
            "webhook-signature": sign(claimed.secrets, id_, now, body),
        }  # fmt: skip
        failure: Exception | None = None
        for address in await addresses(url, self._resolve, allow_loopback=self._allow_loopback):
            request = http.build_request(
                "POST", url.copy_with(host=address), headers=headers, content=body,
                # TLS names the host, not the address: SNI and the certificate's check follow it.
                extensions={**sni(url), "timeout": httpx.Timeout(self._try_seconds).as_dict()},
            )  # fmt: skip
            try:
                response = await http.send(request, stream=True)
            except httpx.ConnectError as error:
                failure = error
                continue
            # Its status is all that counts: what it says is not read.
            await response.aclose()
            return response.status_code
        raise failure or InvalidWebhook(f"{url.host} has no address")
