"""An image that is in the registry: pulled, started, asked, and written down as a result."""

from typing import Any, cast

from vyvo_dagster.building.container_check import engine_client, run_container
from vyvo_dagster.building.gpu import setup_can_run
from vyvo_dagster.building.health import check_runner, runner_environment
from vyvo_dagster.building.image_context import ReadyContext
from vyvo_dagster.building.registry import read_manifest
from vyvo_dagster.building.schema import Schemas
from vyvo_dagster.building.types import BuildContext, BuildRequest, BuildResult, Phases
from vyvo_dagster.domain.build import BuildBackend

__all__ = ["image_tag", "repository_of", "verified_result"]


def repository_of(model_id: str) -> str:
    """Repository of a model's runner images inside the registry: `vyvo/owner/name`, lowered."""
    return f"vyvo/{model_id.lower()}"


def image_tag(registry: str, request: BuildRequest) -> str:
    """`registry/vyvo/owner/name:version`; a tag has no `+`."""
    return f"{registry}/{repository_of(request.model_id)}:{request.version.replace('+', '_')}"


def verified_result(
    backend: BuildBackend,
    request: BuildRequest,
    context: BuildContext,
    ready: ReadyContext,
    phases: Phases,
    *,
    registry: str,
    digest: str,
    docker_host: str | None,
) -> BuildResult:
    """Find the image in the registry by its digest, run it, and tell what was built.

    Raises:
        BuildFailed: the registry does not have it. RunnerFailed: its runner does not work.
        Unavailable: engine or registry do not answer.
    """
    repository = repository_of(request.model_id)
    image = f"{registry}/{repository}@{digest}"
    manifest = read_manifest(registry, repository, digest)
    size = manifest.size_bytes if manifest else _local_size(image, docker_host)
    context.log.line("push", f"{image}, {size / 1e6:.1f} MB in the registry")
    context.on_image(image, digest)
    with phases("check"):
        schemas = _check(image, request, context, docker_host)
    house = ready.wheelhouse
    return BuildResult(
        backend=backend,
        image=image,
        digest=digest,
        size_bytes=size,
        lock_sha256=ready.lock_sha256,
        lock=house.lock if house else None,
        wheels=house.path if house else None,
        base_digest=ready.base_digest,
        python=ready.python,
        durations=phases.durations(),
        input_schema=schemas.input,
        output_schema=schemas.output,
    )


def _check(
    image: str, request: BuildRequest, context: BuildContext, docker_host: str | None
) -> Schemas:
    context.log.line("check", "starting the runner in a container")
    # VYVO_WEIGHTS is set by run_container, which knows where they are mounted.
    env = runner_environment(request, context, None)
    client = engine_client(docker_host)
    try:
        with run_container(client, image, request.build_id, env, request.weights_path) as runner:
            return check_runner(runner, context, setup=setup_can_run(request, context))
    finally:
        client.close()


def _local_size(image: str, docker_host: str | None) -> int:
    client = engine_client(docker_host)
    try:
        return int(cast("Any", client.images).get(image).attrs["Size"])
    finally:
        client.close()
