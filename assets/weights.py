"""`model_weights`: the checksummed copy of a version's weights in the object store."""

import time

from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, asset

from assets.build_run import build_step
from resources import BuildingResource, ObjectsResource, StoreResource, StreamsResource
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.building.weights import copy_weights
from vyvo_dagster.execution.names import MODEL_VERSIONS, MODEL_WEIGHTS, OWNERS, TRAINING

__all__ = ["model_weights"]

_STEP = "weights"


@asset(
    key=MODEL_WEIGHTS,
    deps=[TRAINING],
    partitions_def=MODEL_VERSIONS,
    group_name="runners",
    owners=OWNERS,
    kinds={"s3"},
    code_version="1",
    description="The weights of a model version, kept in the object store under their SHA-256.",
)
def model_weights(
    context: AssetExecutionContext,
    store: StoreResource,
    streams: StreamsResource,
    objects: ObjectsResource,
    building: BuildingResource,
) -> MaterializeResult[None]:
    """Fetch the weights that the build names, and record their checksum in the registry."""
    began = time.monotonic()
    with build_step(context, _STEP, store, streams, objects, building) as run:
        if run.build.rebuild_of is not None:
            # A version that is ready keeps the weights that it has.
            url = run.version.weights_url or "none"
            run.log.line(_STEP, f"as they are: {url}")
            return MaterializeResult(value=None, metadata={"url": url})
        uri = run.build.weights_uri
        if uri is None:
            run.log.line(_STEP, "the build names no weights")
            return MaterializeResult(value=None, metadata={"weights": "none: the build names none"})

        def check() -> None:
            if run.cancel.is_set():
                raise BuildCanceled("weights: the build was canceled")

        # Other weights are fetched where the provider of secrets is away, too.
        hub = building.hub() if uri.startswith("hf://") else None
        found = copy_weights(
            uri, objects.store(), building.weights_dir, run.log, check=check, hub=hub
        )
        store.call(
            lambda db: db.models.set_weights(
                run.version.id, found.url, found.sha256, found.size_bytes
            )
        )
        return MaterializeResult(
            value=None,
            metadata={
                "url": found.url,
                "sha256": found.sha256,
                "size_bytes": MetadataValue.int(found.size_bytes),
                "source": uri.partition("?")[0],
                "duration_seconds": round(time.monotonic() - began, 3),
            },
        )
