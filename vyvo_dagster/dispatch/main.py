"""The orchestrator process: relay, dispatch, upkeep, and a small health server."""

import asyncio
import logging
import os
import socket
from datetime import timedelta

from vyvo_dagster.concurrency import cancel_all
from vyvo_dagster.dispatch.board import Board
from vyvo_dagster.dispatch.dispatcher import Dispatcher
from vyvo_dagster.dispatch.gauges import Gauges
from vyvo_dagster.dispatch.loading import Loading
from vyvo_dagster.dispatch.moving import Mover
from vyvo_dagster.dispatch.relay import Relay
from vyvo_dagster.dispatch.repair import Repair
from vyvo_dagster.dispatch.service import run_service
from vyvo_dagster.dispatch.upkeep import Upkeep
from vyvo_dagster.dispatch.webhooks import WebhookSender
from vyvo_dagster.domain.node import HeartbeatPolicy
from vyvo_dagster.settings import Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import connect
from vyvo_dagster.telemetry.health import probes, serve

__all__ = ["orchestrate", "run"]

log = logging.getLogger(__name__)


async def orchestrate(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop` is set. Nothing is lost by stopping at any point, so nothing is drained."""
    database = Database(settings.postgres_dsn, pool_size=4)
    redis = connect(settings.redis_url)
    wake = asyncio.Event()
    board = Board(database, settings.postgres_dsn, wake)
    dispatcher = Dispatcher(
        database,
        redis,
        board,
        wake,
        consumer=f"{socket.gethostname()}-{os.getpid()}",
        lease=timedelta(seconds=settings.lease_seconds),
    )
    upkeep = Upkeep(
        database,
        redis,
        policy=HeartbeatPolicy(
            timedelta(seconds=settings.suspect_seconds), timedelta(seconds=settings.lost_seconds)
        ),
        patience=timedelta(seconds=2 * settings.heartbeat_seconds),
    )

    repair = Repair(
        database,
        redis,
        lease=timedelta(seconds=settings.lease_seconds),
        silence=timedelta(seconds=1.5 * settings.heartbeat_seconds),
    )

    try:
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(loop, name=name)
                for name, loop in {
                    "relay": Relay(database, redis).run(),
                    "board": board.run(),
                    "board sweep": board.sweep(),
                    "wake": dispatcher.listen(),
                    "dispatch": dispatcher.run(),
                    "gauges": Gauges(database).run(),
                    "webhooks": WebhookSender(
                        database, allow_loopback=settings.webhook_allow_loopback
                    ).run(),
                    **upkeep.loops(),
                    **repair.loops(),
                    **Loading(
                        database, redis, timedelta(seconds=settings.on_demand_idle_seconds)
                    ).loops(),
                    **Mover(database, redis, lambda: board.notices).loops(),
                }.items()
            ]
            if settings.orchestrator_port:
                loops.append(
                    tasks.create_task(
                        serve(settings.orchestrator_port, probes, settings.metrics_host)
                    )
                )
            log.info("orchestrating")
            await stop.wait()
            await cancel_all(loops)
    finally:
        await redis.aclose()
        await database.close()


def run() -> None:
    """Entry point of `vyvo orchestrator`."""
    settings = Settings()
    run_service("orchestrator", settings, lambda stop: orchestrate(settings, stop))
