"""`digits_diffusion_training`: the demo's model, trained here on real handwritten digits."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dagster import AssetExecutionContext, Config, MaterializeResult, MetadataValue, asset
from pydantic import Field

from resources import ObjectsResource
from runner_images import TEMPLATES_DIR
from vyvo_dagster.building.weights import store_weights
from vyvo_dagster.execution.names import OWNERS, TRAINING

__all__ = ["DigitsTraining", "digits_diffusion_training"]

_SAMPLING: Final = TEMPLATES_DIR / "digits-diffusion" / "sampling.py"


class DigitsTraining(Config):
    """How long and from which seed to train; the same values give the same weights."""

    epochs: int = Field(default=400, ge=1, le=10_000, description="Passes over the 1,797 digits.")
    seed: int = Field(default=0, ge=0, description="Seed of all random numbers.")
    samples_per_digit: int = Field(
        default=20, ge=1, le=64, description="Digits drawn of each class to measure the model."
    )


@asset(
    key=TRAINING,
    group_name="training",
    owners=OWNERS,
    kinds={"numpy", "s3"},
    code_version="1",
    description="A class-conditional diffusion model of handwritten digits, trained with numpy on the "
    "data set inside scikit-learn; its weights are in the object store under their SHA-256.",
)
def digits_diffusion_training(
    context: AssetExecutionContext, config: DigitsTraining, objects: ObjectsResource
) -> MaterializeResult[None]:
    """Train, measure with an independent classifier, and store the weights.

    `accuracy` is the share of drawn digits that a support vector machine, trained on the real
    ones, takes for the digit that was asked for.
    """
    # scikit-learn takes a second to import, which no other run should wait for.
    from vyvo_dagster.training.digits import TrainConfig, save_weights, train
    from vyvo_dagster.training.evaluate import accuracy

    every = max(1, config.epochs // 20)

    def on_epoch(epoch: int, of: int, loss: float) -> None:
        if epoch % every == 0 or epoch == of:
            context.log.info("epoch %d of %d, loss %.4f", epoch, of, loss)

    result = train(TrainConfig(epochs=config.epochs, seed=config.seed), on_epoch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits-diffusion.npz"
        save_weights(result, path)
        measured = accuracy(path, _SAMPLING, per_digit=config.samples_per_digit)
        stored = store_weights(path, objects.store(), _RunLog(context))
    context.log.info("%.1f %% of drawn digits are what was asked for", 100 * measured)
    return MaterializeResult(
        value=None,
        metadata={
            "weights_uri": stored.url,
            "sha256": stored.sha256,
            "size_bytes": MetadataValue.int(stored.size_bytes),
            "accuracy": round(measured, 4),
            "train_seconds": round(result.seconds, 2),
            "epochs": MetadataValue.int(config.epochs),
            "final_loss": round(result.losses[-1], 5),
        },
    )


class _RunLog:
    """Lines into the run's own log."""

    def __init__(self, context: AssetExecutionContext) -> None:
        self._log = context.log

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Log one line."""
        self._log.info("%s: %s", step, text)
