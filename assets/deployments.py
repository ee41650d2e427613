"""`deployment`: which nodes have a version in force. Not made by a run: nodes report it."""

from typing import Final

from dagster import AssetSpec

from vyvo_dagster.execution.names import DEPLOYMENT, MODEL_VERSION, MODEL_VERSIONS, OWNERS

__all__ = ["deployment"]

deployment: Final = AssetSpec(
    DEPLOYMENT,
    deps=[MODEL_VERSION],
    partitions_def=MODEL_VERSIONS,
    group_name="serving",
    owners=OWNERS,
    kinds={"docker"},
    description="The assignments in force of a model version, as the nodes report them; the sensor "
    "node_heartbeats records each change.",
)
