"""What all requests share, and who owns it: opened when the api starts, closed when it stops."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Final

import httpx
from fastapi import Depends, Request

from api.announcer import Announcer
from api.authenticator import Authenticator
from api.builds.launch import Launcher
from api.events.owners import Owners
from api.failures import Failures
from api.jobs.gateway import Gateway
from api.jobs.rates import Rates
from api.jobs.registry import Registry
from api.jobs.reports import Reports
from api.nodes.answers import Answers
from api.nodes.beats import Beats, Comparisons, beats, comparisons
from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.input_schemas import InputSchemas
from vyvo_dagster.dispatch.relay import Relay
from vyvo_dagster.domain.build_queue import BuildLimits
from vyvo_dagster.domain.node import HeartbeatPolicy
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.scaling.scalers import make_scalers
from vyvo_dagster.scaling.worker import PoolWorker
from vyvo_dagster.security.jwks import KeySet
from vyvo_dagster.security.jwt_tokens import JwtPolicy, JwtVerifier
from vyvo_dagster.security.providers import make_secrets
from vyvo_dagster.security.secrets import Secrets
from vyvo_dagster.settings import S3Settings, Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.submissions import SubmissionLine
from vyvo_dagster.streams.client import AsyncRedis, connect
from vyvo_dagster.streams.hub import EventHub

__all__ = ["Context", "Ctx", "open_context"]

log = logging.getLogger(__name__)

_START_SECONDS: Final = 30.0
_NOTE_USE_SECONDS: Final = 30.0
# A follower of a build's log blocks one connection for as long as it follows.
_FOLLOWERS: Final = 512


@dataclass(slots=True)
class Context:
    """The servers, caches and loops behind the routes."""

    settings: Settings
    s3: S3Settings
    database: Database
    redis: AsyncRedis
    log_redis: AsyncRedis
    objects: ObjectStore
    relay: Relay
    hub: EventHub
    owners: Owners
    announcer: Announcer
    reports: Reports
    authenticator: Authenticator
    launcher: Launcher
    input_schemas: InputSchemas
    registry: Registry
    gateway: Gateway
    rates: Rates
    pools: PoolWorker
    beats: Beats
    comparisons: Comparisons
    heartbeat_answers: Answers
    http: httpx.AsyncClient
    secrets: Secrets
    stopping: asyncio.Event
    """Set when the process stops: event streams end."""
    _group: asyncio.TaskGroup
    waiters: int = 0
    """Submissions that wait for their job's end."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @property
    def dagster_ui(self) -> str | None:
        """Dagster's UI as people reach it: through the api; None where there is none."""
        settings = self.settings
        return None if settings.dagster_url is None else f"{settings.api_url.rstrip('/')}/dagster"

    def spawn(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` beside the requests; an error of it is logged and ends nothing else."""

        async def guarded() -> None:
            try:
                await work
            except Exception:
                log.exception("background task %s failed", name)

        task = self._group.create_task(guarded(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def loop(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        """Run a loop until the api stops; one that fails is logged and started again."""

        async def forever() -> None:
            while True:
                try:
                    await run()
                except Exception:
                    log.exception("%s failed; starting it again", name)
                await asyncio.sleep(1.0)

        self.spawn(name, forever())

    async def end_tasks(self) -> None:
        """End everything that was spawned."""
        self.stopping.set()
        await cancel_all(self._tasks)


async def get_context(request: Request) -> Context:
    """The context of this application."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(get_context)]


@asynccontextmanager
async def open_context(settings: Settings, s3: S3Settings) -> AsyncGenerator[Context]:
    """Open all, start the loops, and close all in the reverse order.

    Raises:
        Unavailable: the database did not answer for 30 s.
    """
    database = Database(settings.postgres_dsn)
    redis = connect(settings.redis_url)
    log_redis = connect(settings.redis_url, max_connections=_FOLLOWERS)
    http = httpx.AsyncClient(timeout=httpx.Timeout(10.0, connect=2.0), trust_env=False)
    objects = ObjectStore(s3, artifact_ttl_seconds=settings.artifact_ttl_seconds)
    secrets = make_secrets(settings)
    relay, announcer = Relay(database, redis), Announcer(redis)
    registry = Registry(database, settings.postgres_dsn)
    try:
        async with asyncio.TaskGroup() as group:
            context = Context(
                settings=settings, s3=s3, database=database, redis=redis, log_redis=log_redis,
                objects=objects, relay=relay, hub=EventHub(redis), owners=Owners(database), announcer=announcer,
                reports=Reports(database, announcer, relay, objects.is_output),
                authenticator=Authenticator(
                    database, _verifier(settings, http),
                    Failures(redis, settings.auth_failures_per_minute),
                ),
                launcher=Launcher(
                    settings.dagster_url, http, database, settings.postgres_dsn, redis,
                    BuildLimits(settings.builds_per_host, settings.builds_per_template),
                ),
                input_schemas=InputSchemas(),
                registry=registry, gateway=Gateway(
                    SubmissionLine(settings.postgres_dsn), redis, lambda: registry.weighing
                ),
                rates=Rates(redis),
                pools=PoolWorker(
                    database, make_scalers(settings, os.environ), _place(settings), announcer.wake
                ),
                beats=beats(database, _policy(settings), timedelta(seconds=settings.lease_seconds)),
                comparisons=comparisons(database),
                heartbeat_answers=Answers(), http=http, secrets=secrets, stopping=asyncio.Event(), _group=group,
            )  # fmt: skip
            try:
                await _ensure_admin_key(context)
                context.loop("relay", context.relay.run)
                context.loop("event hub", context.hub.run)
                context.loop("registry", context.registry.run)
                context.loop("gateway", context.gateway.write_groups)
                context.loop("gateway announcer", context.gateway.announce_groups)
                context.loop("heartbeats", context.beats.run)
                context.loop("comparisons of heartbeats", context.comparisons.run)
                context.loop("announcer", context.announcer.run)
                context.loop("node pools", context.pools.run)
                context.loop("key use", lambda: _note_use(context))
                context.spawn("dagster warm-up", context.launcher.warm())
                if settings.dagster_url is not None:
                    context.loop("build queue", context.launcher.run)
                yield context
            finally:
                await context.end_tasks()
    finally:
        await http.aclose()
        await redis.aclose()
        await log_redis.aclose()
        await database.close()


def _policy(settings: Settings) -> HeartbeatPolicy:
    return HeartbeatPolicy(
        timedelta(seconds=settings.suspect_seconds), timedelta(seconds=settings.lost_seconds)
    )


def _verifier(settings: Settings, http: httpx.AsyncClient) -> JwtVerifier | None:
    policy = JwtPolicy.of(settings)
    return None if policy is None else JwtVerifier(policy, KeySet(policy.jwks_url, http))


def _place(settings: Settings) -> str:
    """Where local pools live: a machine and a data directory. Two installations on a machine are two places."""
    return f"{socket.gethostname()}:{settings.data_dir.absolute()}"


async def _ensure_admin_key(context: Context) -> None:
    key = context.settings.admin_key
    if key is None:
        return
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await context.authenticator.ensure_admin_key(key.get_secret_value())
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.25)
        else:
            return


async def _note_use(context: Context) -> None:
    while True:
        await asyncio.sleep(_NOTE_USE_SECONDS)
        await context.authenticator.note_use()
