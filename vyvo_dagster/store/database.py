"""The connection pool and the transaction.

A transaction is opened by a request, an op or one turn of a loop; repositories never commit.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from vyvo_dagster.store.artifacts import ArtifactRepository
from vyvo_dagster.store.assignments import AssignmentRepository
from vyvo_dagster.store.attempts import AttemptRepository
from vyvo_dagster.store.audit import AuditRepository
from vyvo_dagster.store.beats import BeatRepository
from vyvo_dagster.store.build_queue import BuildQueueRepository
from vyvo_dagster.store.builds import BuildRepository
from vyvo_dagster.store.collected import CollectedRepository
from vyvo_dagster.store.dead_letters import DeadLetterRepository
from vyvo_dagster.store.demand import DemandRepository
from vyvo_dagster.store.dispatches import DispatchRepository
from vyvo_dagster.store.errors import translated
from vyvo_dagster.store.idempotency import IdempotencyRepository
from vyvo_dagster.store.jobs import JobRepository
from vyvo_dagster.store.keys import KeyRepository
from vyvo_dagster.store.models import ModelRepository
from vyvo_dagster.store.moves import MoveRepository
from vyvo_dagster.store.nodes import NodeRepository
from vyvo_dagster.store.outbox import OutboxRepository
from vyvo_dagster.store.pools import PoolRepository
from vyvo_dagster.store.reports import ReportRepository
from vyvo_dagster.store.retention import RetentionRepository
from vyvo_dagster.store.shares import ShareRepository
from vyvo_dagster.store.submissions import SubmissionRepository
from vyvo_dagster.store.webhooks import WebhookRepository
from vyvo_dagster.store.workflow_engine import WorkflowEngineRepository
from vyvo_dagster.store.workflow_runs import WorkflowRunRepository
from vyvo_dagster.store.workflows import WorkflowRepository

__all__ = ["Database", "Store", "async_dsn"]


def async_dsn(dsn: str) -> str:
    """`dsn` with the driver named, since SQLAlchemy's default differs between releases."""
    scheme, _, rest = dsn.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgres", "postgresql"} else dsn


class Store:
    """All repositories over one connection, so that one transaction spans them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.artifacts = ArtifactRepository(connection)
        self.assignments = AssignmentRepository(connection)
        self.attempts = AttemptRepository(connection)
        self.audit = AuditRepository(connection)
        self.beats = BeatRepository(connection)
        self.audit = AuditRepository(connection)
        self.build_queue = BuildQueueRepository(connection)
        self.builds = BuildRepository(connection)
        self.collected = CollectedRepository(connection)
        self.dead_letters = DeadLetterRepository(connection)
        self.demand = DemandRepository(connection)
        self.dispatches = DispatchRepository(connection)
        self.idempotency = IdempotencyRepository(connection)
        self.jobs = JobRepository(connection)
        self.keys = KeyRepository(connection)
        self.models = ModelRepository(connection)
        self.moves = MoveRepository(connection)
        self.nodes = NodeRepository(connection)
        self.outbox = OutboxRepository(connection)
        self.pools = PoolRepository(connection)
        self.webhooks = WebhookRepository(connection)
        self.reports = ReportRepository(connection)
        self.retention = RetentionRepository(connection)
        self.shares = ShareRepository(connection)
        self.submissions = SubmissionRepository(connection)
        self.workflow_engine = WorkflowEngineRepository(connection)
        self.workflow_runs = WorkflowRunRepository(connection)
        self.workflows = WorkflowRepository(connection)

    async def ping(self) -> None:
        """Ask the server for an answer."""
        await self.connection.execute(sa.text("select 1"))


_IDLE_MS: Final = 15_000


class Database:
    """A pool of connections to Postgres.

    Args:
        dsn: libpq URL.
        pool_size: connections kept; 0 opens one per transaction (short-lived processes).
    """

    def __init__(self, dsn: str, pool_size: int = 10) -> None:
        url = async_dsn(dsn)
        # A process that is stopped or cut off in a transaction must not keep its locks.
        connect = {
            "connect_timeout": 5,
            "options": f"-c idle_in_transaction_session_timeout={_IDLE_MS}",
            "tcp_user_timeout": _IDLE_MS,
        }
        self.engine: AsyncEngine = (
            create_async_engine(
                url,
                pool_size=pool_size,
                max_overflow=pool_size,
                pool_timeout=5,
                pool_pre_ping=False,
                connect_args=connect,
            )
            if pool_size
            else create_async_engine(url, poolclass=NullPool, connect_args=connect)
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Store]:
        """One transaction: committed on leaving, rolled back on an error.

        Raises Unavailable where the server is away, so that a caller can be told to try again, and
        InvalidInput for a value that no column can hold.
        """
        with translated():
            async with self.engine.begin() as connection:
                yield Store(connection)

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()
