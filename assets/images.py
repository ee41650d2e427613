"""`runner_image`: a runner built from its template, published and checked."""

import hashlib
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    DataVersion,
    MaterializeResult,
    MetadataValue,
    asset,
)

from assets.build_run import BuildRun, build_step
from assets.checks import CHECKS, health_check, published_check, uploads_check
from assets.recipes import Made, base_image_of, data_version, laid_out, store_papers
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from runner_images import SDK_DIR, Template, get_template, load_templates
from vyvo_dagster.building.locks import ObjectLocks
from vyvo_dagster.building.sharing import shared_file
from vyvo_dagster.building.types import BuildRequest, BuildResult
from vyvo_dagster.building.weights import local_weights
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import RunnerFailed
from vyvo_dagster.execution.names import MODEL_VERSIONS, MODEL_WEIGHTS, OWNERS, RUNNER_IMAGE
from vyvo_dagster.objects import ObjectStore, format_s3_uri

__all__ = ["runner_image"]


def _templates_version() -> str:
    """Changes when any template does, so that the UI marks images as built by older code."""
    hashes = "".join(template.hash for template in load_templates().values())
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


@asset(
    key=RUNNER_IMAGE,
    deps=[MODEL_WEIGHTS],
    partitions_def=MODEL_VERSIONS,
    check_specs=CHECKS,
    group_name="runners",
    owners=OWNERS,
    kinds={"docker", "python"},
    code_version=_templates_version(),
    description="The runner of a model version: an image by its manifest digest, or an environment "
    "by its content digest.",
)
def runner_image(
    context: AssetExecutionContext,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> Generator[MaterializeResult[None] | AssetCheckResult]:
    """Build, push and check the runner; record image, digest and schemas in the build's row."""
    with build_step(context, "image", store, streams, objects, building) as run:
        template = get_template(run.build.template)
        choice = building.choose(run.build.backend)
        run.log.line("image", f"backend {choice.backend.kind}: {choice.reason}")
        store.call(lambda db: db.builds.update(run.build.id, backend_used=choice.backend.kind))
        s3 = objects.store()

        def on_state(state: BuildState) -> None:
            store.call(lambda db: db.builds.move(run.build.id, state))

        def on_image(image: str, digest: str) -> None:
            # Before the check: what was pushed is found by the collection, whatever becomes of it.
            store.call(lambda db: db.builds.update(run.build.id, image=image, image_digest=digest))

        surroundings = building.context(
            run.log, run.cancel, on_state, locks=ObjectLocks(s3), share=partial(shared_file, s3, str(run.build.id)),
            on_image=on_image,
            runner_env=objects.runner_environment(building.artifact_ttl_seconds),
        )  # fmt: skip
        base_image = base_image_of(run, template, building)
        with laid_out(run, template, building, surroundings) as made:
            request = _request(run, template, made, base_image, _weights(run, building, s3))
            try:
                result = choice.backend.build(request, surroundings)
            except RunnerFailed as error:
                yield health_check(None, error.detail)
                raise
        yield published_check(building.published(result.image))
        yield health_check(result)
        yield uploads_check(template)
        _record(run, store, result, store_papers(run, template, made, result, base_image, s3))
        yield MaterializeResult(
            value=None,
            metadata=_metadata(run, template, made, result, s3),
            data_version=DataVersion(data_version(template, made, result)),
        )


def _weights(run: BuildRun, building: BuildingResource, s3: ObjectStore) -> Path | None:
    version = run.version
    if not version.weights_url or not version.weights_sha256:
        return None
    return local_weights(version.weights_url, version.weights_sha256, s3, building.weights_dir)


def _request(
    run: BuildRun, template: Template, made: Made, base_image: str, weights: Path | None
) -> BuildRequest:
    return BuildRequest(
        build_id=str(run.build.id),
        recipe=made.recipe,
        template_name=template.name,
        template_hash=template.hash,
        model_id=run.build.model_id,
        version=run.build.version,
        base_image=base_image,
        sdk_dir=SDK_DIR,
        env=run.build.env,
        weights_path=weights,
        labels={"vyvo.model": run.build.model_id, "vyvo.version": run.build.version},
        gpu=run.version.resources.get("gpu_memory_bytes", 0) > 0,
        needs_weights=template.needs_weights,
    )


def _record(
    run: BuildRun, store: StoreResource, result: BuildResult, papers: Mapping[str, Any]
) -> None:
    """Into the build's row, and not yet as succeeded: the registry entry is the next step's."""
    store.call(
        lambda db: db.builds.update(
            run.build.id, image=result.image, image_digest=result.digest, size_bytes=result.size_bytes,
            durations=dict(result.durations), input_schema=dict(result.input_schema),
            output_schema=dict(result.output_schema), **papers,
        )
    )  # fmt: skip


def _metadata(
    run: BuildRun, template: Template, made: Made, result: BuildResult, s3: ObjectStore
) -> dict[str, Any]:
    log_url = format_s3_uri(s3.bucket(Modality.LOG), f"builds/{run.build.id}.log")
    optional = {
        "base_digest": result.base_digest,
        "lock_sha256": result.lock_sha256,
        "source": made.source and made.source.repo,
        "source_commit": made.source and made.source.commit,
    }
    return {
        "image": result.image,
        "digest": result.digest,
        "size_bytes": MetadataValue.int(result.size_bytes),
        "duration_seconds": float(result.durations["total"]),
        "durations": MetadataValue.json(dict(result.durations)),
        "log_url": log_url,
        "backend": result.backend.value,
        "python": result.python,
        "template": template.name,
        "template_hash": template.hash,
        "build_id": str(run.build.id),
        **{name: value for name, value in optional.items() if value},
    }
