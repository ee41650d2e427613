"""A command in the runner image of a model version, on a host that tags choose: evaluation, warm-up,
a check of the driver. The image needs no Dagster: what the command prints is the op's log, and what
it reports by Dagster Pipes its metadata.
"""

from typing import Any

from dagster import Config, OpExecutionContext, job, op
from pydantic import Field

from resources import DockerHostsResource, StoreResource
from vyvo_dagster.domain.host import CPUS_TAG, GPU_TAG, HOST_TAG, MEMORY_TAG, POOL_TAG
from vyvo_dagster.errors import InvalidInput, NotFound

__all__ = ["RunnerCommand", "run_in_runner", "runner_command"]


class RunnerCommand(Config):
    """What to run and where; at least one of host, pool and gpu."""

    model_id: str = Field(description="Such as vyvo/digits.")
    version: str = Field(description="A version that was built as an image.")
    command: list[str] = Field(
        min_length=1, description="Program and arguments; no shell reads it."
    )
    host: str | None = Field(default=None, description="Name of a node.")
    pool: str | None = Field(default=None, description="The nodes' label `pool`.")
    gpu: str | None = Field(default=None, description="Such as 1, all, h100, h100:2.")
    memory: str | None = Field(default=None, description="Limit, such as 16GiB.")
    cpus: str | None = Field(default=None, description="Limit, such as 4.")

    def tags(self) -> dict[str, str]:
        """As the tags of an op would say it."""
        given = {
            HOST_TAG: self.host,
            POOL_TAG: self.pool,
            GPU_TAG: self.gpu,
            MEMORY_TAG: self.memory,
            CPUS_TAG: self.cpus,
        }
        return {tag: value for tag, value in given.items() if value is not None}


@op(description="Run a command in the runner image of a version, on a host that matches.")
def runner_command(
    context: OpExecutionContext,
    config: RunnerCommand,
    store: StoreResource,
    docker_hosts: DockerHostsResource,
) -> list[Any]:
    """Returns the custom messages that the command sent by Dagster Pipes."""
    # Docker's libraries take a second, which no other run should pay.
    from vyvo_dagster.execution.routing.engines import Engines
    from vyvo_dagster.execution.routing.pipes import HostPipesClient

    if config.host is config.pool is config.gpu is None:
        raise InvalidInput("give a host, a pool or a gpu: the command runs on no other machine")
    version = store.call(lambda db: db.models.version(config.model_id, config.version))
    if version is None:
        raise NotFound(f"no version {config.version} of {config.model_id}")
    image = version.runner_image
    if image is None or "://" in image:
        raise InvalidInput(f"{config.model_id} {config.version} was not built as an image")
    engines = Engines()
    try:
        done = HostPipesClient(docker_hosts.resolver(), engines).run(
            context=context,
            image=image,
            tags=config.tags(),
            command=config.command,
            env=version.env,
        )
    finally:
        engines.close()
    return list(done.get_custom_messages())


@job(description="Run a command in the runner image of a model version, on a host that matches.")
def run_in_runner() -> None:
    """See runner_command."""
    runner_command()
