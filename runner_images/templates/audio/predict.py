"""The Cog predictor of text-to-audio models, by transformers.

The weights are a folder as `save_pretrained` writes it, or a tar of one (what `hf://owner/name` is
kept as).
"""

from collections.abc import Iterator

import torch
import vyvo_runner
from cog import BaseRunner, Input, streaming
from sound import encode_wav
from transformers import pipeline, set_seed


class Predictor(BaseRunner):
    """Loads a pipeline once; makes one sound at a time."""

    def setup(self) -> None:
        """Load the weights that `VYVO_WEIGHTS` names into the GPU's memory."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = pipeline(
            "text-to-audio", model=str(vyvo_runner.weights_folder()), device=device,
            dtype=torch.float16 if device == "cuda" else torch.float32,
        )  # fmt: skip

    @streaming
    def run(
        self,
        prompt: str = Input(description="What to hear, or to say.", min_length=1, max_length=4000),
        max_tokens: int = Input(
            description="Longest sound, in the model's own tokens (MusicGen: 50 a second); models "
            "without tokens take no notice.",
            default=512,
            ge=16,
            le=4096,
        ),
        guidance: float = Input(description="Weight of the prompt.", default=3.0, ge=0.0, le=20.0),
        temperature: float = Input(
            description="How freely tokens are drawn.", default=1.0, ge=0.01, le=2.0
        ),
        seed: int = Input(
            description="Start of the random numbers.", default=0, ge=0, le=2**32 - 1
        ),
    ) -> Iterator[vyvo_runner.Artifact]:
        """Yield one WAV of 16 bits."""
        set_seed(seed)
        drawn = {
            "do_sample": True, "max_new_tokens": max_tokens, "guidance_scale": guidance,
            "temperature": temperature,
        }  # fmt: skip
        # VITS and its like make a sound in one pass and take none of these.
        arguments = drawn if self.pipeline.model.can_generate() else {}
        vyvo_runner.progress(0.0)
        made = (
            self.pipeline(prompt, generate_kwargs=arguments) if arguments else self.pipeline(prompt)
        )
        vyvo_runner.progress(1.0)
        yield vyvo_runner.upload(
            encode_wav(made["audio"], int(made["sampling_rate"])), "audio", filename="sound"
        )
