"""The code location `workflows`: each stored version of a workflow as a Dagster job.

The jobs are made from rows whenever Dagster asks, so that a new version is there without a restart:
the webserver is told to ask again when one was pushed. Beside them stand the assets that the steps'
artifacts are materializations of, each with what it is made from.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final
from uuid import UUID

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    JobDefinition,
    RepositoryData,
    RepositoryDefinition,
    ResourceDefinition,
)
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from typing_extensions import override

from resources.loop import LoopThread
from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.execution.workflows.jobs import build_job
from vyvo_dagster.execution.workflows.names import (
    REPOSITORY,
    artifact_key,
    job_name,
    upstream_keys,
)
from vyvo_dagster.settings import Settings
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.workflow_records import WorkflowVersion

__all__ = ["WorkflowJobs", "workflows"]

_KEPT_SECONDS: Final = 1.0
_TIMEOUT: Final = 20.0
# Of each workflow; a run of an older one is shown by its own snapshot.
_VERSIONS: Final = 5


class WorkflowJobs(RepositoryData):
    """Jobs and assets, read from the rows at most once a second.

    Args:
        dsn: libpq URL of the registry database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._loop: LoopThread | None = None
        self._read_at = 0.0
        self._versions: Sequence[WorkflowVersion] = ()
        self._jobs: dict[UUID, JobDefinition] = {}

    @override
    def get_top_level_resources(self) -> Mapping[str, ResourceDefinition]:
        return {}

    @override
    def get_env_vars_by_top_level_resource(self) -> Mapping[str, AbstractSet[str]]:
        return {}

    @override
    def get_all_jobs(self) -> Sequence[JobDefinition]:
        return [self._job(version) for version in self._read()]

    @override
    def get_job_names(self) -> Sequence[str]:
        return [job_name(v.tenant, v.name, v.version) for v in self._read()]

    @override
    def get_job(self, job_name: str) -> JobDefinition:
        found = next((job for job in self.get_all_jobs() if job.name == job_name), None)
        if found is None:
            raise KeyError(f"no job {job_name}; its workflow version is older than those listed")
        return found

    @override
    def get_assets_defs_by_key(self) -> Mapping[AssetKey, AssetsDefinition]:
        specs: dict[AssetKey, AssetSpec] = {}
        for version in self._read():
            definition = parse(version.definition)
            for step in definition.order:
                if step.operation is not None:
                    continue
                key = artifact_key(version.tenant, version.name, step.name)
                # The newest version comes first and says how things are made now.
                specs.setdefault(key, AssetSpec(
                    key, deps=upstream_keys(version.tenant, definition, step),
                    group_name="workflows", description=step.description or f"Made by {step.what}.",
                    metadata={"workflow": version.name, "model": step.what},
                ))  # fmt: skip
        return {key: AssetsDefinition(specs=[spec]) for key, spec in specs.items()}

    def _job(self, version: WorkflowVersion) -> JobDefinition:
        with self._lock:
            if version.id not in self._jobs:
                self._jobs[version.id] = build_job(version)
            return self._jobs[version.id]

    def _read(self) -> Sequence[WorkflowVersion]:
        with self._lock:
            if time.monotonic() - self._read_at > _KEPT_SECONDS:
                if self._loop is None:
                    self._loop = LoopThread("workflow-jobs", _TIMEOUT)
                self._versions = self._loop.call(_versions(self._dsn))
                self._read_at = time.monotonic()
                known = {version.id for version in self._versions}
                self._jobs = {key: job for key, job in self._jobs.items() if key in known}
            return self._versions


async def _versions(dsn: str) -> list[WorkflowVersion]:
    """The newest versions of each workflow, the newest first."""
    database = Database(dsn, pool_size=0)
    try:
        async with database.transaction() as store:
            return await store.workflow_engine.newest_versions(_VERSIONS)
    finally:
        await database.close()


class _Workflows(RepositoryDefinition):
    """A repository whose assets change while it is loaded."""

    @property
    @override
    def asset_graph(self) -> AssetGraph:
        return AssetGraph.from_assets([*set(self.assets_defs_by_key.values())])


workflows: Final = _Workflows(REPOSITORY, repository_data=WorkflowJobs(Settings().postgres_dsn))
