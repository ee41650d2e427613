"""Builds asked for again: of a draft whose build did not succeed, and of a version that is ready.

A ready version is immutable. Building it once more changes nothing where it comes to the same
digest, and makes a new version where it does not.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.errors import Conflict, VersionExists
from vyvo_dagster.store.records import Build, ModelVersion

if TYPE_CHECKING:
    from vyvo_dagster.store.database import Store

__all__ = ["build_again"]

_REBUILT = frozenset({VersionState.READY, VersionState.ACTIVE})


async def build_again(
    db: "Store", old: Build, version: ModelVersion, id: UUID, traceparent: str | None = None
) -> Build:
    """A new queued build with what an earlier one asked for.

    Args:
        db: the transaction.
        old: a build that has ended.
        version: its version; a draft is taken for the build, a ready one is rebuilt.
        id: of the new build.
        traceparent: W3C trace context of the request.

    Raises:
        Conflict: the version is retired, or being built, or was not built here.
    """
    name = f"{version.model_id}@{version.version}"
    rebuild = version.state in _REBUILT
    if rebuild:
        if version.build_id is None:
            raise Conflict(f"{name} was not built here, so it cannot be built again")
        if await db.builds.rebuilding(version.id):
            raise Conflict(f"{name} is being built again already")
    elif version.state is VersionState.DRAFT:
        try:
            await db.models.start_building(
                id=version.id, model_id=version.model_id, version=version.version,
                template=old.template, modality=version.modality, weights_uri=old.weights_uri,
                env=old.env, resources=version.resources, build_id=id,
            )  # fmt: skip
        except VersionExists as error:
            raise Conflict(f"{name} is being built again already") from error
    else:
        raise Conflict(f"{name} is {version.state}, so it cannot be built again")
    return await db.builds.add(
        id=id, tenant=old.tenant, model_id=version.model_id, version=version.version,
        version_id=version.id, rebuild_of=version.id if rebuild else None,
        runner_name=old.runner_name, template=old.template, repo=old.repo,
        ref=(old.source_commit or old.ref) if rebuild else old.ref,
        weights_uri=old.weights_uri, env=dict(version.env if rebuild else old.env),
        base_image=old.base_image, backend=old.backend, traceparent=traceparent,
    )  # fmt: skip
