"""The process of the workflow engine, with the containers of tagged hosts."""

import asyncio
from collections.abc import Sequence

from vyvo_dagster.dispatch.service import run_service
from vyvo_dagster.execution.containers.steps import ContainerSteps
from vyvo_dagster.execution.hosts import HostEngines
from vyvo_dagster.execution.routing.engines import Engines
from vyvo_dagster.security.providers import make_secrets
from vyvo_dagster.settings import HostsSettings, S3Settings, Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.records import Node
from vyvo_dagster.telemetry import logs
from vyvo_dagster.workflows.attempts import Attempts, Told
from vyvo_dagster.workflows.main import drive

__all__ = ["drive_with_hosts", "run"]


async def drive_with_hosts(
    settings: Settings, s3: S3Settings, hosts: HostsSettings, stop: asyncio.Event
) -> None:
    """Drive workflow runs until `stop` is set; their containers go to the engines of `hosts`."""
    # Where artifacts go, as a runner is told it.
    env = {
        "VYVO_S3_ENDPOINT": s3.endpoint, "VYVO_S3_ACCESS_KEY": s3.access_key,
        "VYVO_S3_SECRET_KEY": s3.secret_key.get_secret_value(), "VYVO_S3_REGION": s3.region,
        "VYVO_S3_BUCKET_PREFIX": s3.bucket_prefix,
    }  # fmt: skip

    def containers(database: Database, told: Told) -> Attempts:
        async def nodes() -> Sequence[Node]:
            async with asyncio.timeout(10), database.transaction() as store:
                return await store.nodes.all()

        return ContainerSteps(
            told, nodes=nodes, env=env, network=hosts.network, engines=Engines(),
            hosts=HostEngines(hosts.engines, hosts.tls_dir, hosts.weights_dir),
            secrets=make_secrets(settings),
        )  # fmt: skip

    await drive(settings, s3, stop, containers)


def run() -> None:
    """Entry point of `vyvo workflow-engine`."""
    settings, s3, hosts = Settings(), S3Settings(), HostsSettings()
    logs.hide(*logs.secrets_of(s3))
    run_service(
        "workflow-engine", settings, lambda stop: drive_with_hosts(settings, s3, hosts, stop)
    )
