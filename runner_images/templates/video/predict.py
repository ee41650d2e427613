"""The Cog predictor of audio-video models, by an engine that the repository or this template brings.

Settings of a build's `env`:
    VIDEO_ENGINE    module of the engine: `vyvo_engine` at the repository's root (default), or
                    `ovi_engine`, which drives the repository chetwinlow1/Ovi
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path as LocalPath

import vyvo_runner
from clip import Clip, write_mp4
from cog import BaseRunner, Input, Path, streaming
from engines import Engine, Request, load_engine

SIZE_MULTIPLE = 16


class Predictor(BaseRunner):
    """Loads the engine once; makes one clip at a time."""

    engine: Engine

    def setup(self) -> None:
        """Load the engine with the weights that `VYVO_WEIGHTS` names."""
        self.engine = load_engine(vyvo_runner.weights_path())

    @streaming
    def run(
        self,
        prompt: str = Input(
            description="What happens, and what is heard.", min_length=1, max_length=8000
        ),
        image: Path | None = Input(
            description="First frame; left out, the prompt alone.", default=None
        ),
        negative_prompt: str = Input(
            description="What to keep out of the picture.", default="", max_length=8000
        ),
        audio_negative_prompt: str = Input(
            description="What to keep out of the sound.", default="", max_length=8000
        ),
        width: int = Input(
            description="Width in pixels, a multiple of 16.", default=992, ge=64, le=1920
        ),
        height: int = Input(
            description="Height in pixels, a multiple of 16.", default=512, ge=64, le=1920
        ),
        steps: int = Input(description="Denoising steps.", default=50, ge=1, le=200),
        guidance: float = Input(
            description="Weight of the prompt for the picture.", default=4.0, ge=0.0, le=50.0
        ),
        audio_guidance: float = Input(
            description="Weight of the prompt for the sound.", default=3.0, ge=0.0, le=50.0
        ),
        seed: int = Input(
            description="Start of the random numbers.", default=0, ge=0, le=2**32 - 1
        ),
    ) -> Iterator[vyvo_runner.Artifact]:
        """Yield one MP4 (H.264, and AAC where the model makes sound)."""
        if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE:
            raise ValueError(
                f"width and height are multiples of {SIZE_MULTIPLE}, not {width} x {height}"
            )
        request = Request(
            prompt=prompt, image=LocalPath(image) if image else None, negative_prompt=negative_prompt,
            audio_negative_prompt=audio_negative_prompt, width=width, height=height, steps=steps,
            guidance=guidance, audio_guidance=audio_guidance, seed=seed,
        )  # fmt: skip
        clip: Clip = self.engine.generate(request, vyvo_runner.progress)
        with tempfile.TemporaryDirectory() as folder:
            path = LocalPath(folder) / "clip.mp4"
            write_mp4(clip, path)
            yield vyvo_runner.upload(path, "video", filename="clip")
