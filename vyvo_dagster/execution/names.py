"""Names that runs, partitions and assets are known by; the api and the sensors use the same."""

from typing import Final

from dagster import AssetKey, DynamicPartitionsDefinition

__all__ = [
    "BUILD_ID_TAG",
    "BUILD_JOB",
    "CODE_LOCATION",
    "CODE_LOCATION_MODULE",
    "DEPLOYMENT",
    "LOST_TAG",
    "MODEL_VERSION",
    "MODEL_VERSIONS",
    "MODEL_WEIGHTS",
    "OWNERS",
    "PARTITIONS",
    "RUNNER_IMAGE",
    "TRACE_TAG",
    "TRAINING",
    "gpu_pool",
]

PARTITIONS: Final = "model_versions"
MODEL_VERSIONS: Final = DynamicPartitionsDefinition(name=PARTITIONS)
"""One partition per `owner/name@version`, see domain.build.partition_key."""

CODE_LOCATION: Final = "vyvo"
CODE_LOCATION_MODULE: Final = "vyvo_dagster.definitions"

BUILD_JOB: Final = "build_runner"
BUILD_ID_TAG: Final = "vyvo/build_id"
LOST_TAG: Final = "vyvo/lost"
"""On a run that was ended because its message was lost; its build is launched again."""
TRACE_TAG: Final = "vyvo/traceparent"
"""The trace (W3C) that a run goes on with."""

TRAINING: Final = AssetKey("digits_diffusion_training")
MODEL_WEIGHTS: Final = AssetKey("model_weights")
RUNNER_IMAGE: Final = AssetKey("runner_image")
MODEL_VERSION: Final = AssetKey("model_version")
DEPLOYMENT: Final = AssetKey("deployment")

OWNERS: Final = ["team:platform"]


def gpu_pool(*, host: str | None = None, pool: str | None = None) -> str:
    """The concurrency pool of ops that take one GPU each: of a host, or of a pool of hosts.

    As many of its ops run at a time, over all runs, as there are GPUs.
    """
    assert (host is None) != (pool is None)
    return f"gpu/{host}" if host is not None else f"gpu-pool/{pool}"
