"""The process of the workflow engine."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.domain.workflow.names import Sign
from vyvo_dagster.errors import Unavailable, VyvoError
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings, Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.hub import EventHub
from vyvo_dagster.telemetry.health import probes, serve
from vyvo_dagster.workflows.attempts import Attempts, Told
from vyvo_dagster.workflows.engine import WorkflowEngine
from vyvo_dagster.workflows.http_step import HttpSteps
from vyvo_dagster.workflows.intake import Intake
from vyvo_dagster.workflows.requests import Requests
from vyvo_dagster.workflows.submission import JobMaker

__all__ = ["drive"]

log = logging.getLogger(__name__)


# The longest that S3 signs for, and the usual life of an artifact: a job's input is signed as it is
# submitted, and read only when it has waited for its turn, perhaps for a day.
_SIGNED_SECONDS: Final = 7 * 86400


def signer(s3: S3Settings) -> Sign:
    """Presigns artifacts for the steps that read them. No request is made."""
    objects = ObjectStore(s3)

    def sign(url: str) -> str | None:
        try:
            return objects.presign_get(url, _SIGNED_SECONDS)
        except VyvoError:
            return None

    return sign


async def drive(
    settings: Settings, s3: S3Settings, stop: asyncio.Event,
    containers: Callable[[Database, Told], Attempts],
) -> None:  # fmt: skip
    """Run until `stop` is set; the runs are given back, for another engine or the next start.

    Args:
        containers: makes the attempts of steps with a container.
    """
    database = Database(settings.postgres_dsn, pool_size=4)
    redis = connect(settings.redis_url)
    hub = EventHub(redis)
    http = HttpSteps(allow_loopback=settings.webhook_allow_loopback)
    engine = WorkflowEngine(
        database, settings.postgres_dsn, redis, hub,
        attempts=[lambda told: Requests(http, told), lambda told: containers(database, told)],
        jobs=JobMaker(settings.max_attempts), sign=signer(s3),
        lease=timedelta(seconds=settings.workflow_lease_seconds),
        capacity=settings.workflow_capacity,
    )  # fmt: skip

    try:
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(loop, name=name)
                for name, loop in {
                    "hub": hub.run(),
                    "intake": Intake(database, redis, consumer=str(engine.id)).run(),
                    **engine.loops(),
                }.items()
            ]
            if settings.workflow_port:
                loops.append(
                    tasks.create_task(serve(settings.workflow_port, probes, settings.metrics_host))
                )
            log.info("driving workflow runs as %s", engine.id)
            await stop.wait()
            await cancel_all(loops)
    finally:
        with contextlib.suppress(Unavailable, TimeoutError):
            await engine.stop()
        await http.close()
        await redis.aclose()
        await database.close()
