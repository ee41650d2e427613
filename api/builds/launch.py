"""The direct launch of builds: one GraphQL request each to the Dagster webserver.

The row is the trigger: this process claims it first, in the order of the queue and where there is a
place, and whoever has the claim launches. Where Dagster is away the claim is given back, and the
`build_queue` sensor takes the build.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import httpx
import psycopg

from vyvo_dagster.domain.build import partition_key
from vyvo_dagster.domain.build_queue import BuildLimits
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Database
from vyvo_dagster.store.notify import BUILDS_CHANNEL, listen
from vyvo_dagster.store.records import Build
from vyvo_dagster.streams import build_hosts
from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["Launcher"]

log = logging.getLogger(__name__)

_JOB: Final = "build_runner"
_REPOSITORY: Final = {"repositoryName": "__repository__", "repositoryLocationName": "vyvo"}
_LAUNCH: Final = """
mutation LaunchBuild($partition: String!, $repository: RepositorySelector!, $params: ExecutionParams!) {
  addDynamicPartition(
    partitionsDefName: "model_versions", partitionKey: $partition, repositorySelector: $repository
  ) {
    __typename
    ... on PythonError { message }
    ... on UnauthorizedError { message }
  }
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PipelineNotFoundError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on UnauthorizedError { message }
    ... on PythonError { message }
  }
}
"""
_TERMINATE: Final = """
mutation TerminateBuild($id: String!) {
  terminateRun(runId: $id) { __typename ... on PythonError { message } }
}
"""
_LAUNCH_JOB: Final = """
mutation LaunchJob($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PipelineNotFoundError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on UnauthorizedError { message }
    ... on PythonError { message }
  }
}
"""
_WARM: Final = "{ version }"
_LONGEST_WARM_UP_PAUSE: Final = 10.0


class Launcher:
    """Launches the next builds of the queue, and terminates the runs of builds.

    Args:
        url: of the Dagster webserver; None leaves every launch to the sensor.
        http: a client that keeps its connections.
        database: where the queue is.
        dsn: of the same, for its notifications.
        redis: where the build hosts say that they are there.
        limits: how many builds may be at work.
    """

    def __init__(
        self, url: str | None, http: httpx.AsyncClient, database: Database, dsn: str,
        redis: AsyncRedis, limits: BuildLimits,
    ) -> None:  # fmt: skip
        self._url = None if url is None else f"{url.rstrip('/')}/graphql"
        self._http = http
        self._database = database
        self._dsn = dsn
        self._redis = redis
        self._limits = limits
        self._busy = asyncio.Lock()
        self._wanted = False

    async def run(self) -> None:
        """Launch the next builds whenever one has ended, until canceled."""
        while True:
            try:
                async for _ in listen(self._dsn, BUILDS_CHANNEL):
                    with suppress(Unavailable):
                        await self.launch_next()
            except psycopg.OperationalError as error:
                log.warning("notices of ended builds stopped: %s", str(error).splitlines()[0])
                await asyncio.sleep(1.0)

    async def warm(self) -> None:
        """Ask until Dagster answers once, so that the first build does not pay for the connection."""
        pause = 1.0
        while self._url is not None:
            try:
                await self._ask(_WARM, {})
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_WARM_UP_PAUSE)
            else:
                return

    async def launch_next(self) -> None:
        """Launch the builds that wait and have a place, in order; others are told to look again."""
        if self._url is None:
            return
        self._wanted = True
        if self._busy.locked():
            return
        async with self._busy:
            while self._wanted:
                self._wanted = False
                await self._launch_claimed()

    async def _launch_claimed(self) -> None:
        hosts = await build_hosts.count(self._redis)
        async with self._database.transaction() as store:
            claimed = await store.build_queue.claim_next(self._limits, hosts)
        left = [build.id for build in claimed]
        try:
            for build in claimed:
                run_id = await self._launch(build)
                left.remove(build.id)
                log.info("build %s is run %s", build.id, run_id)
        except Unavailable as error:
            log.warning("builds are left to the sensor: %s", error)
        finally:
            # A run that was launched all the same does no harm: only one can begin the build.
            if left:
                async with self._database.transaction() as store:
                    await store.build_queue.release(left)

    async def launch_job(self, job: str, ops: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Launch a run of a job of the code location, with the configuration of its ops; its id.

        Raises:
            Unavailable: there is no Dagster, or it does not launch the run.
        """
        if self._url is None:
            raise Unavailable("this needs Dagster, and no VYVO_DAGSTER_URL says where it is")
        params = {
            "selector": {"jobName": job, **_REPOSITORY},
            "runConfigData": {"ops": ops},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        launched = (await self._ask(_LAUNCH_JOB, {"params": params}))["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise Unavailable(f"Dagster did not launch {job}: {_why(launched)}")
        return str(launched["run"]["runId"])

    async def terminate(self, run_id: str) -> None:
        """Ask for a run's termination; one that has ended is no error. The run watches its row too."""
        if self._url is None:
            return
        try:
            await self._ask(_TERMINATE, {"id": run_id})
        except Unavailable as error:
            log.warning("run %s was not terminated: %s", run_id, error)

    async def _launch(self, build: Build) -> str:
        partition = partition_key(build.model_id, build.version)
        tags = {"dagster/partition": partition, "vyvo/build_id": str(build.id)}
        if build.traceparent is not None:
            tags["vyvo/traceparent"] = build.traceparent
        params = {
            "selector": {"jobName": _JOB, **_REPOSITORY},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        }
        variables = {"partition": partition, "repository": _REPOSITORY, "params": params}
        data = await self._ask(_LAUNCH, variables)
        added, launched = data["addDynamicPartition"], data["launchRun"]
        if added["__typename"] not in {
            "AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError"
        }:  # fmt: skip
            raise Unavailable(f"Dagster did not add the partition: {_why(added)}")
        if launched["__typename"] != "LaunchRunSuccess":
            raise Unavailable(f"Dagster did not launch the run: {_why(launched)}")
        return str(launched["run"]["runId"])

    async def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        assert self._url is not None
        try:
            answer = await self._http.post(self._url, json={"query": query, "variables": variables})
            answer.raise_for_status()
            body: Any = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(
                f"Dagster at {self._url} does not answer ({type(error).__name__})"
            ) from error
        if body.get("errors"):
            raise Unavailable(f"Dagster refused the request: {body['errors'][0].get('message')}")
        data: dict[str, Any] = body["data"]
        return data


def _why(answer: Mapping[str, Any]) -> str:
    errors = answer.get("errors") or [{}]
    return str(answer.get("message") or errors[0].get("message") or answer["__typename"])
