"""Which build a run is for, and taking it: the fence that lets only one run execute a build."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from dagster import AssetExecutionContext, DagsterRun, Failure
from uuid_utils.compat import uuid7

from resources import BuildingResource, StoreResource
from vyvo_dagster.domain.build import BUILD, BuildState, split_partition_key
from vyvo_dagster.errors import Conflict
from vyvo_dagster.execution.names import BUILD_ID_TAG
from vyvo_dagster.store.build_queue import Taken
from vyvo_dagster.store.build_requests import build_again
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion

__all__ = ["TakenBuild", "earlier_runs", "take_build"]

_PAUSE_SECONDS: Final = 0.5
# Twelve hours: as long as Celery keeps a run that waits.
_TRIES: Final = 86_400


def earlier_runs(context: AssetExecutionContext) -> list[str]:
    """The runs that this run retries, at any remove; it takes over what they had."""
    run: DagsterRun = context.run
    if run.root_run_id is None:
        return []
    group = context.instance.get_run_group(run.run_id)
    members = {r.run_id for r in group[1]} if group else set[str]()
    return sorted((members | {run.root_run_id}) - {run.run_id})


@dataclass(frozen=True, slots=True)
class TakenBuild:
    """A build that this run executes.

    Args:
        begun: whether this step took it, and no earlier step of the run.
        waited: why there was no place for it at first; None where there was one.
    """

    build: Build
    version: ModelVersion
    begun: bool
    waited: str | None


def take_build(
    context: AssetExecutionContext, store: StoreResource, building: BuildingResource
) -> TakenBuild:
    """Take the build of this run for execution, or fail the run without touching the build.

    Waits while this host, or the template, has as many builds at work as may be. Taking it again in
    a later step of the same run, or in a retry of it, succeeds.

    Raises:
        Failure: there is no such build, it has ended, or another run executes it.
    """
    earlier = earlier_runs(context)
    tag, partition = context.run.tags.get(BUILD_ID_TAG), context.partition_key
    run_id = context.run.run_id

    async def take(db: Store) -> tuple[Build, Taken | str | None]:
        build = await _find(db, tag, partition, [run_id, *earlier])
        taken = await db.build_queue.begin(
            build.id, run_id, building.host, building.limits, earlier
        )
        return build, taken

    waited: str | None = None
    for _ in range(_TRIES):
        build, taken = store.call(take)
        # A build that was made for this run is found by its id from now on.
        tag = str(build.id)
        if not isinstance(taken, str):
            break
        if waited is None:
            context.log.info("build %s waits: %s", build.id, taken)
        waited = taken
        time.sleep(_PAUSE_SECONDS)
    else:
        raise _refusal(f"build {tag} found no place within {_TRIES * _PAUSE_SECONDS / 3600:g} h")
    if taken is None:
        now = store.call(lambda db: db.builds.get(build.id))
        state = build.state if now is None else now.state
        ended = state in {BuildState.SUCCEEDED, BuildState.FAILED, BuildState.CANCELED}
        why = f"is {state}" if ended else f"is executed by another run ({now and now.run_id})"
        raise _refusal(f"build {build.id} {why}; this run did nothing")
    mine = taken.build
    version = store.call(lambda db: db.models.version_by_id(mine.version_id))
    assert version is not None  # a foreign key
    return TakenBuild(mine, version, taken.begun, waited)


async def _find(db: Store, tag: str | None, partition: str, run_ids: Sequence[str]) -> Build:
    if tag is not None:
        try:
            found = await db.builds.get(UUID(tag))
        except ValueError:
            found = None
        if found is None:
            raise _refusal(f"there is no build {tag[:64]}")
        return found
    # Launched by hand for a partition. A later step finds what the first one took.
    model_id, version = split_partition_key(partition)
    mine = await db.builds.of_runs(run_ids)
    if mine is not None:
        return mine
    newest = await db.builds.newest(model_id, version)
    if newest is None:
        raise _refusal(f"{partition} was never asked for; POST /api/builds starts a build")
    if newest.state not in BUILD.terminal:
        return newest
    version = await db.models.version_by_id(newest.version_id)
    assert version is not None  # a foreign key
    try:
        return await build_again(db, newest, version, uuid7())
    except Conflict as error:
        raise _refusal(error.detail) from error


def _refusal(why: str) -> Failure:
    return Failure(description=why, allow_retries=False)
