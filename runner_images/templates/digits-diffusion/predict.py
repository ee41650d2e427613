"""The Cog predictor of the digits model: handwritten digits of the class asked for, as one PNG."""

import io
import json
import math
from collections.abc import Iterator

import numpy as np
import sampling
import vyvo_runner
from cog import BaseRunner, Input, streaming
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def contact_sheet(images: NDArray[np.uint8], gap: int = 0) -> NDArray[np.uint8]:
    """Lay images (n, h, w) out row by row in a grid of ceil(sqrt(n)) columns.

    Each takes the upper left of a cell of (h + gap) by (w + gap) pixels; the rest is black.
    """
    count, height, width = images.shape[0], images.shape[1] + gap, images.shape[2] + gap
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width), np.uint8)
    cells[:count, : height - gap, : width - gap] = images
    grid = cells.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
    return grid.reshape(rows * height, columns * width)


def encode_png(pixels: NDArray[np.uint8], scale: int, text: dict[str, str]) -> bytes:
    """Encode grey pixels (h, w) as PNG, each pixel a square of `scale` by `scale`, with text chunks."""
    enlarged = np.kron(pixels, np.ones((scale, scale), np.uint8))
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, format="PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


class Predictor(BaseRunner):
    """Loads the weights once; draws as often as asked."""

    model: sampling.DigitsModel

    def setup(self) -> None:
        """Load the weights that `VYVO_WEIGHTS` names."""
        self.model = sampling.load_model(vyvo_runner.weights_path())

    @streaming
    def run(
        self,
        digit: int = Input(description="The digit to draw.", ge=0, le=9),
        count: int = Input(description="How many samples of it.", default=1, ge=1, le=64),
        steps: int = Input(description="Denoising steps; more is finer.", default=25, ge=1, le=200),
        seed: int = Input(
            description="Start of the random numbers; equal inputs give equal images.",
            default=0,
            ge=0,
            le=2**32 - 1,
        ),
        guidance: float = Input(
            description="Weight of the digit: 1 is plain, more is clearer and less varied.",
            default=2.0,
            ge=0.0,
            le=10.0,
        ),
        scale: int = Input(
            description="Pixels of the PNG per pixel of a sample.", default=16, ge=1, le=64
        ),
        gap: int = Input(
            description="Black pixels between samples, before scaling.", default=0, ge=0, le=8
        ),
    ) -> Iterator[vyvo_runner.Artifact]:
        """Yield one PNG artifact: the samples in a grid of ceil(sqrt(count)) columns, (8 + gap) pixels apart."""
        images = sampling.sample(
            self.model,
            digit,
            count,
            steps=steps,
            seed=seed,
            guidance=guidance,
            on_step=lambda done, of: vyvo_runner.progress(done / of),
        )
        inputs = {
            "digit": digit,
            "count": count,
            "steps": steps,
            "seed": seed,
            "guidance": guidance,
        }
        text = {
            "Software": "digits-diffusion",
            "Comment": json.dumps({**inputs, "scale": scale, "gap": gap}),
        }
        png = encode_png(contact_sheet(images, gap), scale, text)
        yield vyvo_runner.upload(png, "image", filename=f"digit-{digit}.png")
