"""The Cog predictor of text-to-image models on a GPU, by torch and diffusers.

Settings of a build's `env`:
    DIFFUSION_DTYPE     auto (default), bfloat16, float16 or float32
    DIFFUSION_OFFLOAD   none (default), or model: keep in GPU memory only the part that computes
    DIFFUSION_CONFIG    folder of the family's configuration, for a single safetensors file
    DIFFUSION_SCRATCH   folder to unpack a tar in; the default is the system's
"""

import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import vyvo_runner
from checkpoint import accepted, choose_device, choose_dtype, load_pipeline
from cog import BaseRunner, Input, streaming
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}
SIZE_MULTIPLE = 8
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def step_callback(image: int, images: int, steps: int) -> StepCallback:
    """A diffusers callback that reports the progress of image number `image` (from 0) of `images`."""

    def on_step_end(
        _pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        vyvo_runner.progress((image + (step + 1) / steps) / images)
        return tensors

    return on_step_end


def encode(image: Image.Image, output_format: str) -> bytes:
    """Encode an image as png, jpeg or webp."""
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": 95}
    image.convert("RGB").save(buffer, format=output_format.upper(), **options)
    return buffer.getvalue()


class Predictor(BaseRunner):
    """Loads a pipeline once and draws with it, one image at a time."""

    def setup(self) -> None:
        """Load the weights that `VYVO_WEIGHTS` names into the GPU's memory."""
        self.device = choose_device()
        dtype = choose_dtype(self.device, os.environ.get("DIFFUSION_DTYPE", "auto"))
        self.pipeline = load_pipeline(vyvo_runner.weights_path(), dtype)
        if self.device.type == "cuda" and os.environ.get("DIFFUSION_OFFLOAD", "none") == "model":
            self.pipeline.enable_model_cpu_offload()
        else:
            self.pipeline.to(self.device)
        # The bar would fill the job's log; progress goes out as a metric.
        self.pipeline.set_progress_bar_config(disable=True)
        self.own_scheduler = self.pipeline.scheduler

    @streaming
    def run(
        self,
        prompt: str = Input(description="What to draw.", min_length=1, max_length=4000),
        negative_prompt: str = Input(description="What to keep out.", default="", max_length=4000),
        width: int | None = Input(
            description="Width in pixels, a multiple of 8; left out, the model's own.",
            default=None,
            ge=64,
            le=2048,
        ),
        height: int | None = Input(
            description="Height in pixels, a multiple of 8; left out, the model's own.",
            default=None,
            ge=64,
            le=2048,
        ),
        count: int = Input(description="How many images.", default=1, ge=1, le=16),
        steps: int = Input(description="Denoising steps.", default=30, ge=1, le=200),
        guidance: float = Input(description="Weight of the prompt.", default=5.0, ge=0.0, le=50.0),
        scheduler: str = Input(
            description="How the steps are taken; default is the model's own.",
            default="default",
            choices=["default", "ddim", "dpm++", "euler"],
        ),
        seed: int = Input(
            description="Start of the random numbers; image n of the job takes seed + n.",
            default=0,
            ge=0,
            le=2**32 - 1,
        ),
        output_format: str = Input(
            description="Format.", default="png", choices=["png", "jpeg", "webp"]
        ),
    ) -> Iterator[vyvo_runner.Artifact]:
        """Yield one artifact per image, each as soon as it is drawn."""
        if (width or 0) % SIZE_MULTIPLE or (height or 0) % SIZE_MULTIPLE:
            raise ValueError(
                f"width and height are multiples of {SIZE_MULTIPLE}, not {width} x {height}"
            )
        self._take_scheduler(scheduler)
        for number in range(count):
            arguments = {
                "prompt": prompt,
                "negative_prompt": negative_prompt or None,
                "width": width,
                "height": height,
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                # On the CPU, so that a seed draws the same image on every kind of GPU.
                "generator": torch.Generator("cpu").manual_seed(seed + number),
                "callback_on_step_end": step_callback(number, count, steps),
            }
            try:
                image = self.pipeline(**accepted(self.pipeline, arguments)).images[0]
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                raise RuntimeError(
                    "out of GPU memory; ask for a smaller width and height"
                ) from error
            yield vyvo_runner.upload(
                encode(image, output_format), "image", filename=f"image-{number}"
            )

    def _take_scheduler(self, name: str) -> None:
        if name == "default":
            self.pipeline.scheduler = self.own_scheduler
        else:
            self.pipeline.scheduler = SCHEDULERS[name].from_config(self.own_scheduler.config)
