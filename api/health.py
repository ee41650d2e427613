"""/healthz, /readyz and /metrics: for probes and scrapers, without a key."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel
from redis.exceptions import RedisError

from api.context import Ctx
from vyvo_dagster.dispatch.gauges import Gauges
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.telemetry import metrics

__all__ = ["router"]

router = APIRouter(tags=["health"])

_PROBE_SECONDS: Final = 2.0
_FRESH_SECONDS: Final = 2.0


class Health(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Requests are served. `degraded`: Redis is away, so jobs are taken and wait."""

    status: Literal["ready", "degraded"]
    redis: bool


class _Figures:
    """Gauges of the rows, read again at most every two seconds however often they are scraped."""

    def __init__(self) -> None:
        self._gauges: tuple[Database, Gauges] | None = None
        self._read_at = 0.0

    async def refresh(self, database: Database) -> None:
        if self._gauges is None or self._gauges[0] is not database:
            self._gauges = (database, Gauges(database))
        elif time.monotonic() - self._read_at < _FRESH_SECONDS:
            return
        self._read_at = time.monotonic()
        await self._gauges[1].read()


_figures = _Figures()


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> Health:
    """Asks no other server."""
    return Health()


@router.get("/readyz", summary="Are requests served")
async def readyz(context: Ctx) -> Readiness:
    """503 while the database is away."""
    async with context.database.transaction() as store:
        if not await _answers(store.ping()):
            raise Unavailable("the database does not answer; try again shortly")
    redis = await _answers(context.redis.ping())
    return Readiness(status="ready" if redis else "degraded", redis=redis)


@router.get(
    "/metrics", summary="Prometheus metrics", response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format."}},
)  # fmt: skip
async def scrape(context: Ctx) -> Response:
    """Figures of this process, and of queues and nodes as the rows say."""
    # Without the database the process' own figures are still worth having.
    with suppress(Unavailable):
        await _figures.refresh(context.database)
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


async def _answers(probe: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            await probe
    except (RedisError, TimeoutError, OSError):
        return False
    return True
