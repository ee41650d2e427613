"""Sampling from the digits model with numpy alone: DDIM with classifier-free guidance.

Song et al. 2021 (arXiv:2010.02502), deterministic (eta 0), from the .npz that
`vyvo_dagster.training.digits` writes, whose `metadata` names the format.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

FORMAT = "vyvo-digits-diffusion/1"
SIDE = 8


@dataclass(frozen=True)
class DigitsModel:
    """The arrays of one weights file; L layers, H units, T time steps."""

    alpha_bar: FloatArray  # (T,)
    w_in: FloatArray  # (64, H)
    b_in: FloatArray  # (H,)
    w: FloatArray  # (L, H, H)
    time: FloatArray  # (L, T, H)
    classes: FloatArray  # (L, 11, H); the last row is "no class"
    w_out: FloatArray  # (H, 64)
    b_out: FloatArray  # (64,)

    def velocity(self, x: FloatArray, t: int, classes: IntArray) -> FloatArray:
        """The network's v for images `x` (n, 64) at time step `t`, classes (n,); shape (n, 64)."""
        hidden = x @ self.w_in + self.b_in
        for layer in range(len(self.w)):
            z = hidden @ self.w[layer] + self.time[layer, t] + self.classes[layer][classes]
            hidden = hidden + z / (1.0 + np.exp(-z))
        return hidden @ self.w_out + self.b_out


def load_model(path: Path) -> DigitsModel:
    """Read a weights file.

    Raises:
        ValueError: the file is not of this format; the message says which it is.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            found = json.loads(str(loaded["metadata"])).get("format")
            arrays = {name: loaded[name] for name in DigitsModel.__annotations__ if name in loaded}
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        EOFError,
        OSError,
        BadZipFile,
    ) as error:
        raise ValueError(f"{path} holds no digits model: {error}") from error
    if found != FORMAT:
        raise ValueError(f"weights are of format {found!r}, this runner reads {FORMAT!r}")
    missing = sorted(DigitsModel.__annotations__.keys() - arrays.keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return DigitsModel(**arrays)


def sample(
    model: DigitsModel,
    digit: int,
    count: int,
    *,
    steps: int,
    seed: int,
    guidance: float = 2.0,
    on_step: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Draw images of one digit; equal arguments give equal images.

    Args:
        model: the weights.
        digit: the class, 0 to 9; 10 leaves it to chance.
        count: how many images.
        steps: denoising steps, at most the model's own T.
        seed: start of the random numbers.
        guidance: weight of the class: 0 ignores it, 1 is plain conditional sampling.
        on_step: called after each of the steps with its number from 1 and their number.

    Returns:
        uint8 of shape (count, 8, 8), 0 background to 255 ink.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, SIDE * SIDE)).astype(np.float32)
    chosen = np.full(count, digit)
    none = np.full(count, model.classes.shape[1] - 1)
    last = len(model.alpha_bar) - 1
    times = np.unique(np.linspace(0, last, min(steps, last + 1)).round().astype(int))[::-1]
    for number, t in enumerate(times, start=1):
        signal, noise = np.sqrt(model.alpha_bar[t]), np.sqrt(1 - model.alpha_bar[t])
        without = model.velocity(x, t, none)
        v = without + guidance * (model.velocity(x, t, chosen) - without)
        clean = np.clip(signal * x - noise * v, -1.0, 1.0)
        # The noise that goes with the clipped image, so that guidance cannot push it out of range.
        epsilon = (x - signal * clean) / noise
        previous = model.alpha_bar[times[number]] if number < len(times) else np.float32(1.0)
        x = np.sqrt(previous) * clean + np.sqrt(1 - previous) * epsilon
        if on_step is not None:
            on_step(number, len(times))
    levels = np.clip((x + 1.0) * 127.5, 0, 255).round().astype(np.uint8)
    return levels.reshape(count, SIDE, SIDE)
