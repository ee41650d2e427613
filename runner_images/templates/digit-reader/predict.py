"""The Cog predictor that reads digits in images, and lays images out with what was read in them.

The model is the one that the wheel of ddddocr carries: a convolutional and recurrent network that was
trained on printed and distorted characters, in ONNX, on the CPU. No weights are fetched.
"""

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import ddddocr
import numpy as np
import vyvo_runner
from cog import BaseRunner, Input, Path, streaming
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

DIGITS = "0123456789"
HEIGHT, MARGIN = 64, 16
CELL, CAPTION = 128, 24


def legible(image: Image.Image) -> Image.Image:
    """A digit as the model saw them in training: dark on light, smooth, with a margin."""
    grey = image.convert("L")
    if float(np.asarray(grey).mean()) < 128:
        grey = ImageOps.invert(grey)
    grey = grey.resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    grey = ImageOps.autocontrast(grey.filter(ImageFilter.GaussianBlur(1.5)))
    return ImageOps.expand(grey, MARGIN, 255)


def png(image: Image.Image) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sheet(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Images in a grid of ceil(sqrt(n)) columns, each above its caption."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    made = Image.new("L", (columns * CELL, rows * (CELL + CAPTION)), 255)
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(size=16)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % columns * CELL, place // columns * (CELL + CAPTION)
        made.paste(image.convert("L").resize((CELL - 8, CELL - 8)), (left + 4, top + 4))
        draw.text((left + CELL / 2, top + CELL), caption, fill=0, font=font, anchor="ma")
    return made


class Predictor(BaseRunner):
    """Loads the model once; reads as often as asked."""

    reader: Any

    def setup(self) -> None:
        """Load the model of the wheel."""
        self.reader = ddddocr.DdddOcr(show_ad=False)
        self.reader.set_ranges(DIGITS)

    @streaming
    def run(
        self,
        images: list[Path] = Input(description="What to read, or to lay out."),
        captions: list[str] = Input(
            description="One for each image: lays the images out instead of reading them.",
            default=[],
        ),
    ) -> Iterator[dict]:
        """Yield `{"text": digit}` for each image; with captions one PNG artifact instead."""
        opened = [Image.open(path) for path in images]
        if captions:
            if len(captions) != len(opened):
                raise ValueError(f"{len(opened)} images have {len(captions)} captions")
            yield dict(
                vyvo_runner.upload(png(sheet(opened, captions)), "image", filename="sheet.png")
            )
            return
        for place, image in enumerate(opened):
            yield {"text": self.read(image)}
            vyvo_runner.progress((place + 1) / len(opened))

    def read(self, image: Image.Image) -> str:
        """The likeliest digit."""
        found = self.reader.classification(png(legible(image)), probability=True)
        # (positions, 1, characters); a position may hold none, so the digit's best one counts.
        likely: NDArray[np.float64] = np.asarray(found["probabilities"])[:, 0, :].max(axis=0)
        charset = list(found["charset"])
        return DIGITS[int(likely[[charset.index(digit) for digit in DIGITS]].argmax())]
