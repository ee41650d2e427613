"""Builds: checked whole, written in one transaction, launched after it."""

import asyncio
from collections.abc import Collection
from uuid import UUID

from uuid_utils.compat import uuid7

from api.auth import Principal, check_owner
from api.builds.schemas import BuildAccepted, BuildRequest
from api.context import Context
from api.idempotency import Once, once
from runner_images.templates import Template, get_template
from vyvo_dagster.building.validation import (
    validate_base_image,
    validate_env,
    validate_ref,
    validate_repo,
    validate_weights_uri,
)
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.domain.model import Modality, VersionState, parse_model_id, parse_version
from vyvo_dagster.errors import IllegalTransition, InvalidInput, InvalidWeightsUri, NotFound
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build
from vyvo_dagster.streams import keys
from vyvo_dagster.telemetry import tracing

__all__ = ["cancel", "find", "paper", "submit"]


async def submit(
    context: Context, principal: Principal, body: BuildRequest, request: Once
) -> BuildAccepted:
    """Queue a build.

    Raises:
        UnknownTemplate, InvalidModelId, InvalidInput, InvalidEnv, InvalidWeightsUri: in that order
            of checks; nothing was written.
        VersionExists: the version is built or being built.
        Forbidden: the model is another tenant's.
    """
    template = _check(body, context.settings.source_hosts)
    build_id = uuid7()

    async with context.database.transaction() as store:

        async def write() -> BuildAccepted:
            await _write(store, context, principal, body, template, build_id)
            return BuildAccepted(build_id=build_id, status=BuildState.QUEUED)

        answer, done = await once(store, principal.tenant, request, BuildAccepted, write)
    if done:
        context.relay.kick()
        context.spawn(f"launch of build {build_id}", context.launcher.launch_next())
    return answer


def _check(body: BuildRequest, source_hosts: Collection[str]) -> Template:
    template = get_template(body.template)
    parse_model_id(body.model_id)
    parse_version(body.version)
    validate_env(body.env)
    if body.weights_uri is not None:
        validate_weights_uri(body.weights_uri)
    if body.repo is not None:
        validate_repo(body.repo, source_hosts)
    if body.ref is not None:
        validate_ref(body.ref)
        if body.repo is None:
            raise InvalidInput("ref names a place in a repository; name the repo too")
    if body.base_image is not None:
        validate_base_image(body.base_image)
    _check_template(body, template)
    return template


def _check_template(body: BuildRequest, template: Template) -> None:
    """That the build brings what its template is made of."""
    if template.needs_weights and body.weights_uri is None:
        raise InvalidWeightsUri(
            f"the template {template.name} needs weights: name their weights_uri"
        )
    if template.source == "required" and body.repo is None:
        raise InvalidInput(f"the template {template.name} needs a repo")
    if template.source == "cog" and body.repo is None and body.base_image is None:
        raise InvalidInput(
            f"the template {template.name} needs a repo with a cog.yaml, or as base_image an image that "
            "Cog has built"
        )


async def _write(
    store: Store, context: Context, principal: Principal, body: BuildRequest,
    template: Template, build_id: UUID,
) -> None:  # fmt: skip
    model = await store.models.ensure(body.model_id, principal.tenant)
    check_owner(principal, model.tenant, f"model {model.model_id}")
    version = await store.models.start_building(
        id=uuid7(), model_id=body.model_id, version=body.version, template=template.name,
        modality=Modality(body.modality or template.modality), weights_uri=body.weights_uri, env=body.env,
        resources={
            "gpu_memory_bytes": template.resources.gpu_memory_bytes,
            "memory_bytes": template.resources.memory_bytes,
        },
        build_id=build_id,
    )  # fmt: skip
    await store.builds.add(
        id=build_id, tenant=principal.tenant, model_id=body.model_id, version=body.version,
        version_id=version.id, runner_name=body.runner_name, template=template.name,
        repo=body.repo, ref=body.ref, weights_uri=body.weights_uri, env=dict(body.env),
        base_image=body.base_image,
        backend=body.backend or BuildBackend(context.settings.build_backend),
        traceparent=tracing.traceparent(),
    )  # fmt: skip
    await store.outbox.add(keys.BUILDS, {"id": str(build_id)})
    await store.keys.audit(
        id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action="build",
        subject=f"{body.model_id}@{body.version}", detail={"build_id": str(build_id)},
    )  # fmt: skip


async def find(store: Store, principal: Principal, build_id: UUID) -> Build:
    """A build that the principal may see, else NotFound."""
    build = await store.builds.get(build_id)
    if build is None or principal.sees not in {None, build.tenant}:
        raise NotFound("no such build")
    return build


async def paper(context: Context, url: str | None, what: str) -> bytes:
    """A document that a build left in the store, else NotFound; Unavailable while the store is."""
    if url is None:
        raise NotFound(f"the build has no {what}")
    return await asyncio.to_thread(context.objects.get_bytes, url)


async def cancel(context: Context, principal: Principal, build_id: UUID) -> Build:
    """Cancel a build; a repeat changes nothing.

    A build whose run has begun is wound up by its run, which gives the version back as a draft;
    one that has not is wound up here.

    Raises:
        IllegalTransition: it has ended otherwise.
    """
    async with context.database.transaction() as store:
        build = await find(store, principal, build_id)
        canceled = await store.builds.move(
            build_id, BuildState.CANCELED, error="canceled by request"
        )
        if canceled is None:
            build = await find(store, principal, build_id)
            if build.state is not BuildState.CANCELED:
                raise IllegalTransition(
                    f"the build has {build.state}; only one that has not ended can be canceled"
                )
            return build
        if canceled.started_at is None:
            await store.models.move(canceled.version_id, VersionState.DRAFT)
        await store.keys.audit(
            id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix,
            action="build_cancel", subject=str(build_id),
        )  # fmt: skip
    if canceled.run_id is not None:
        context.spawn(
            f"termination of build {build_id}", context.launcher.terminate(canceled.run_id)
        )
    return canceled
