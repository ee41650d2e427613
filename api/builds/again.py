"""Builds asked for again: of what did not succeed, and of a version that is ready."""

from uuid import UUID

from uuid_utils.compat import uuid7

from api.auth import Principal, check_owner
from api.builds import service
from api.builds.schemas import BuildAccepted
from api.context import Context
from api.idempotency import Once, once
from runner_images.templates import get_template
from vyvo_dagster.domain.build import BuildState, partition_key
from vyvo_dagster.domain.model import VersionState, parse_model_id, parse_version
from vyvo_dagster.errors import Conflict, IllegalTransition, NotFound
from vyvo_dagster.store.build_requests import build_again
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion
from vyvo_dagster.streams import keys
from vyvo_dagster.telemetry import tracing

__all__ = ["rebuild", "retry"]

_RETRIED = frozenset({BuildState.FAILED, BuildState.CANCELED})


async def retry(
    context: Context, principal: Principal, build_id: UUID, request: Once
) -> BuildAccepted:
    """Queue a new build with what a failed or canceled one asked for.

    Raises:
        IllegalTransition: it has succeeded, or has not ended.
        Conflict: its version was built meanwhile, or is being built.
        UnknownTemplate: there is no such template any more.
    """
    async with context.database.transaction() as store:

        async def write() -> BuildAccepted:
            old = await service.find(store, principal, build_id)
            if old.state not in _RETRIED:
                raise IllegalTransition(
                    f"the build is {old.state}; only one that has failed or was canceled is retried"
                )
            version = await store.models.version_by_id(old.version_id)
            assert version is not None  # a foreign key
            if old.rebuild_of is None and version.state is not VersionState.DRAFT:
                raise Conflict(f"version {version.version} is {version.state} by another build")
            return await _again(store, principal, old, version, "build_retry")

        answer, done = await once(store, principal.tenant, request, BuildAccepted, write)
    _launch(context, answer, done=done)
    return answer


async def rebuild(
    context: Context, principal: Principal, model_id: str, version: str, request: Once
) -> BuildAccepted:
    """Queue a build of what a ready version was built from.

    Raises:
        NotFound, Forbidden: no such version, or another tenant's model.
        Conflict: it was not built here, is being built again already, or is not ready.
        UnknownTemplate: there is no such template any more.
    """
    parse_model_id(model_id)
    async with context.database.transaction() as store:

        async def write() -> BuildAccepted:
            model = await store.models.get(model_id)
            found = await store.models.version(model_id, parse_version(version))
            if model is None or found is None:
                raise NotFound(f"no version {version[:80]} of {model_id}")
            check_owner(principal, model.tenant, f"model {model_id}")
            build = None if found.build_id is None else await store.builds.get(found.build_id)
            if build is None:
                raise Conflict(f"version {version} of {model_id} was not built here")
            if found.state is VersionState.DRAFT:
                raise Conflict(f"version {version} of {model_id} is a draft; retry its build")
            return await _again(store, principal, build, found, "rebuild")

        answer, done = await once(store, principal.tenant, request, BuildAccepted, write)
    _launch(context, answer, done=done)
    return answer


async def _again(
    store: Store, principal: Principal, old: Build, version: ModelVersion, action: str
) -> BuildAccepted:
    get_template(old.template)
    build = await build_again(store, old, version, uuid7(), tracing.traceparent())
    await store.outbox.add(keys.BUILDS, {"id": str(build.id)})
    await store.keys.audit(
        id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action=action,
        subject=partition_key(version.model_id, version.version),
        detail={"build_id": str(build.id), "of": str(old.id)},
    )  # fmt: skip
    return BuildAccepted(build_id=build.id, status=build.state)


def _launch(context: Context, answer: BuildAccepted, *, done: bool) -> None:
    if done:
        context.relay.kick()
        context.spawn(f"launch of build {answer.build_id}", context.launcher.launch_next())
