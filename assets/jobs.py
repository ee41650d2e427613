"""The jobs over the assets."""

from typing import Final

from dagster import AssetSelection, define_asset_job

from vyvo_dagster.execution.names import (
    BUILD_JOB,
    MODEL_VERSION,
    MODEL_WEIGHTS,
    RUNNER_IMAGE,
    TRAINING,
)

__all__ = ["build_runner", "train_digits_diffusion"]

build_runner: Final = define_asset_job(
    BUILD_JOB,
    selection=AssetSelection.assets(MODEL_WEIGHTS, RUNNER_IMAGE, MODEL_VERSION),
    description="Build the runner of one model version: copy its weights, build and check its image, "
    "register it. Started by POST /api/builds.",
)

train_digits_diffusion: Final = define_asset_job(
    "train_digits_diffusion",
    selection=AssetSelection.assets(TRAINING),
    description="Train the digits model, in about a minute on two cores.",
)
