"""What a submission needs to know of a version, kept in memory and dropped when Postgres notifies.

A job is never queued for a version that was retired: the statement that writes it looks again.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

import psycopg

from vyvo_dagster.domain.fairness import Weighing
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.errors import Conflict, NotFound
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.notify import REGISTRY_CHANNEL, listen
from vyvo_dagster.store.records import ModelVersion

__all__ = ["Registry", "Served"]

log = logging.getLogger(__name__)

# The mean run time moves without a notification, and one may be lost in a failover.
_KEPT_SECONDS: Final = 5.0
_KEPT: Final = 4096
_SERVABLE: Final = (VersionState.READY, VersionState.ACTIVE)


@dataclass(frozen=True, slots=True)
class Served:
    """A version that takes jobs, and what the answers to its jobs are made of."""

    version: ModelVersion
    ready_nodes: int
    mean_seconds: float | None


class Registry:
    """Versions that take jobs, by model and version; without a version, the one that new jobs get."""

    def __init__(self, database: Database, dsn: str) -> None:
        self._database = database
        self._dsn = dsn
        self._known: dict[tuple[str, str | None], tuple[Served, float]] = {}
        self._loading = asyncio.Lock()
        self.weighing = Weighing({})
        """The tenants' weights, as old as the version that was loaded last."""
        self._drops = 0

    async def run(self) -> None:
        """Drop what is kept at every notification, until canceled."""
        while True:
            try:
                async for _ in listen(self._dsn, REGISTRY_CHANNEL):
                    self.drop()
            except psycopg.OperationalError as error:
                log.warning("change notifications stopped: %s", str(error).splitlines()[0])
                self.drop()
                await asyncio.sleep(1.0)

    def drop(self) -> None:
        """Something was changed: what is kept may be wrong. Its writer calls this after its commit."""
        self._known.clear()
        self._drops += 1

    async def find(self, model_id: str, version: str | None, store: Store | None = None) -> Served:
        """The version that a job of this request gets.

        Args:
            store: the transaction that the caller is in; it must not wait for another connection.

        Raises:
            NotFound: no such model or version.
            Conflict: the version does not take jobs, or the model has none that does.
        """
        found = self._kept(model_id, version)
        if found is None and store is not None:
            found = await self._load(store, model_id, version)
        if found is None:
            async with self._loading, self._database.transaction() as own:
                found = self._kept(model_id, version)
                if found is None:
                    found = await self._load(own, model_id, version)
        return found

    def _kept(self, model_id: str, version: str | None) -> Served | None:
        kept = self._known.get((model_id, version))
        return kept[0] if kept is not None and kept[1] > time.monotonic() else None

    async def _load(self, store: Store, model_id: str, version: str | None) -> Served:
        drops = self._drops
        shares = await store.shares.all()
        self.weighing = Weighing({(s.tenant, s.model_id): s.weight for s in shares})
        found = await _version(store, model_id, version)
        served = Served(
            found,
            await store.assignments.ready_nodes(found.id),
            await store.jobs.mean_seconds(found.model_id),
        )
        if drops == self._drops:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[model_id, version] = (served, time.monotonic() + _KEPT_SECONDS)
        return served


async def _version(store: Store, model_id: str, version: str | None) -> ModelVersion:
    if version is not None:
        found = await store.models.version(model_id, version)
        if found is None:
            raise NotFound(f"no version {version} of {model_id}")
    else:
        found = await store.models.serving(model_id)
        if found is None:
            if await store.models.get(model_id) is None:
                raise NotFound(f"no model {model_id}")
            raise Conflict(f"{model_id} has no version that is ready; build one first")
    if found.state not in _SERVABLE:
        raise Conflict(
            f"{found.model_id}@{found.version} is {found.state}; only a ready version takes jobs"
        )
    return found
