"""Train the class-conditional denoising diffusion model of the `digits-diffusion` template.

    python -m vyvo_dagster.training.digits --out digits.npz

Denoising diffusion (Ho et al. 2020, arXiv:2006.11239) with the cosine schedule of Nichol and Dhariwal
2021 (arXiv:2102.09672), on scikit-learn's 1,797 handwritten digits of 8 x 8 pixels. The network
predicts v = sqrt(a) eps - sqrt(1-a) x0 (Salimans and Ho 2022, arXiv:2202.00512). One .npz file holds
everything that sampling needs, with the time embedding already applied, so that the runner needs
nothing but numpy; `WEIGHTS_FORMAT` names its layout.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np

from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.training.network import (
    Adam,
    FloatArray,
    IntArray,
    Parameters,
    gradients,
    init_parameters,
    time_features,
)

__all__ = [
    "WEIGHTS_FORMAT",
    "OnEpoch",
    "TrainConfig",
    "TrainResult",
    "load_digits",
    "save_weights",
    "train",
]

WEIGHTS_FORMAT = "vyvo-digits-diffusion/1"
PIXELS = 64
CLASSES = 10

OnEpoch = Callable[[int, int, float], None]
"""Called after each epoch with its number from 1, the number of epochs, and the mean loss."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run depends on; equal configurations give equal weights on one machine."""

    epochs: int = 400
    batch_size: int = 256
    hidden: int = 384
    layers: int = 3
    time_steps: int = 200
    learning_rate: float = 2e-3
    unconditional: float = 0.1
    """Share of samples trained without their class, for classifier-free guidance."""
    seed: int = 0


@dataclass(frozen=True)
class TrainResult:
    """A trained model: `weights` are the averaged parameters, `losses` one mean per epoch."""

    config: TrainConfig
    weights: Parameters
    alpha_bar: FloatArray
    losses: tuple[float, ...]
    seconds: float


def load_digits() -> tuple[FloatArray, IntArray]:
    """The real digits: images (1797, 64) scaled to -1 .. 1, and their classes (1797,)."""
    from sklearn import datasets  # not at the top: it takes a second that `--help` need not wait

    bunch = cast("Any", datasets.load_digits())
    images = (np.asarray(bunch.data, np.float32) / 8.0) - 1.0
    return images.astype(np.float32), np.asarray(bunch.target, np.int64)


def cosine_schedule(steps: int) -> FloatArray:
    """Cumulative products of (1 - beta) for steps 0 .. steps-1, falling from about 1 to about 0."""
    offset = 0.008
    phase = (np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2
    curve = np.cos(phase) ** 2
    return np.clip(curve[1:] / curve[0], 1e-4, 1.0).astype(np.float32)


def train(config: TrainConfig | None = None, on_epoch: OnEpoch | None = None) -> TrainResult:
    """Train a model; about a minute on two cores with the defaults.

    Raises:
        InvalidInput: a configuration without an epoch, a unit or a time step.
    """
    config = config or TrainConfig()
    if min(config.epochs, config.batch_size, config.hidden, config.layers, config.time_steps) < 1:
        raise InvalidInput("epochs, batch size, hidden units, layers and time steps are at least 1")
    began = time.perf_counter()
    rng = np.random.default_rng(config.seed)
    images, labels = load_digits()
    features = time_features(config.time_steps)
    alpha_bar = cosine_schedule(config.time_steps)
    signal = np.sqrt(alpha_bar)[:, None]
    noise_scale = np.sqrt(1 - alpha_bar)[:, None]
    identity = np.eye(CLASSES + 1, dtype=np.float32)
    parameters = init_parameters(
        rng, pixels=PIXELS, hidden=config.hidden, layers=config.layers, classes=CLASSES
    )
    optimizer = Adam(parameters)
    batches = max(1, len(images) // config.batch_size)
    losses: list[float] = []
    for epoch in range(config.epochs):
        order = rng.permutation(len(images))
        total = 0.0
        for batch in range(batches):
            rows = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            clean = images[rows]
            t = rng.integers(0, config.time_steps, len(rows))
            noise = rng.standard_normal(clean.shape, dtype=np.float32)
            classes = np.where(rng.random(len(rows)) < config.unconditional, CLASSES, labels[rows])
            noisy = signal[t] * clean + noise_scale[t] * noise
            velocity = signal[t] * noise - noise_scale[t] * clean
            loss, gradient = gradients(parameters, noisy, features[t], identity[classes], velocity)
            done = (epoch * batches + batch) / (config.epochs * batches)
            # A cosine decay to zero: the last epochs only settle the average.
            optimizer.step(gradient, config.learning_rate * 0.5 * (1 + np.cos(np.pi * done)))
            total += loss
        losses.append(total / batches)
        if on_epoch is not None:
            on_epoch(epoch + 1, config.epochs, losses[-1])
    return TrainResult(
        config, optimizer.average, alpha_bar, tuple(losses), time.perf_counter() - began
    )


def save_weights(result: TrainResult, path: Path) -> str:
    """Write one .npz that the runner loads; return its checksum, `sha256:<hex>`.

    Arrays, all float32: `alpha_bar` (T,), `w_in` (64, H), `b_in` (H,), `w` (L, H, H),
    `time` (L, T, H), which is bias and time embedding applied, `classes` (L, 11, H),
    `w_out` (H, 64), `b_out` (64,); and `metadata`, a JSON object as a string.
    """
    config, weights = result.config, result.weights
    features = time_features(config.time_steps)
    layers = range(config.layers)
    metadata = {
        "format": WEIGHTS_FORMAT,
        "config": asdict(config),
        "image": {"height": 8, "width": 8, "minimum": -1.0, "maximum": 1.0},
        "loss": result.losses[-1],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            metadata=np.array(json.dumps(metadata, sort_keys=True)),
            alpha_bar=result.alpha_bar,
            w_in=weights["w_in"],
            b_in=weights["b_in"],
            w=np.stack([weights[f"w_{layer}"] for layer in layers]),
            time=np.stack(
                [features @ weights[f"u_{layer}"] + weights[f"b_{layer}"] for layer in layers]
            ),
            classes=np.stack([weights[f"c_{layer}"] for layer in layers]),
            w_out=weights["w_out"],
            b_out=weights["b_out"],
        )
    partial.replace(path)
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@click.command()
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write."
)
@click.option("--epochs", type=click.IntRange(min=1), default=TrainConfig.epochs, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=TrainConfig.seed, show_default=True)
def main(out: Path, epochs: int, seed: int) -> None:
    """Train the digits model and write its weights as one .npz file."""
    every = max(1, epochs // 20)

    def report(epoch: int, of: int, loss: float) -> None:
        if epoch % every == 0 or epoch == of:
            click.echo(f"epoch {epoch:4d}/{of}  loss {loss:.4f}", file=sys.stderr)

    result = train(TrainConfig(epochs=epochs, seed=seed), report)
    checksum = save_weights(result, out)
    click.echo(f"{out}  {checksum}  {out.stat().st_size} bytes  {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
