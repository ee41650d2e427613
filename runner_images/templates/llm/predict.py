"""The Cog predictor of chat models, by transformers.

The weights are a folder as `save_pretrained` writes it, or a tar of one (what `hf://owner/name` is
kept as). Settings of a build's `env`:
    LLM_DTYPE    auto (default), bfloat16, float16 or float32
"""

import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
import vyvo_runner
from cog import BaseRunner, Input, streaming
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)

TOKEN_SECONDS = 120.0


class Stop(StoppingCriteria):
    """Ends the generation's thread when the prediction is canceled or fails."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Whether each sequence of the batch has ended."""
        return torch.full((input_ids.shape[0],), self.asked, device=input_ids.device)


class Predictor(BaseRunner):
    """Loads a model once; answers one prompt at a time."""

    def setup(self) -> None:
        """Load tokenizer and model from the weights that `VYVO_WEIGHTS` names."""
        folder = vyvo_runner.weights_folder()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # No code of the weights is run: trust_remote_code stays off.
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=os.environ.get("LLM_DTYPE", "auto"), local_files_only=True,
            use_safetensors=True,
        ).to(device).eval()  # fmt: skip

    @streaming
    def run(
        self,
        prompt: str = Input(description="What to answer.", min_length=1, max_length=200_000),
        system: str = Input(description="How to answer.", default="", max_length=20_000),
        max_tokens: int = Input(
            description="Longest answer, in tokens.", default=512, ge=1, le=32_768
        ),
        temperature: float = Input(
            description="How freely tokens are drawn; 0 takes the likeliest.",
            default=0.7,
            ge=0.0,
            le=2.0,
        ),
        top_p: float = Input(
            description="Share of the likeliest tokens that is drawn from.",
            default=0.95,
            ge=0.01,
            le=1.0,
        ),
        seed: int = Input(
            description="Start of the random numbers.", default=0, ge=0, le=2**32 - 1
        ),
    ) -> Iterator[vyvo_runner.Artifact]:
        """Yield the answer as one text."""
        inputs = self._tokens(prompt, system)
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=TOKEN_SECONDS
        )
        stop = Stop()
        drawn = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
        )
        set_seed(seed)
        thread = threading.Thread(
            target=self.model.generate,
            kwargs={
                **inputs, **drawn, "max_new_tokens": max_tokens, "streamer": streamer,
                "stopping_criteria": StoppingCriteriaList([stop]),
            },
        )  # fmt: skip
        thread.start()
        parts: list[str] = []
        try:
            for part in streamer:
                parts.append(part)
                vyvo_runner.progress(min(len(parts) / max_tokens, 1.0))
        finally:
            stop.asked = True
            thread.join()
        yield vyvo_runner.upload("".join(parts).encode(), "text", filename="answer")

    def _tokens(self, prompt: str, system: str) -> Any:
        if self.tokenizer.chat_template is None:
            text = f"{system}\n\n{prompt}" if system else prompt
            return self.tokenizer(text, return_tensors="pt").to(self.model.device)
        said = [{"role": "system", "content": system}] if system else []
        return self.tokenizer.apply_chat_template(
            [*said, {"role": "user", "content": prompt}], add_generation_prompt=True,
            return_tensors="pt", return_dict=True,
        ).to(self.model.device)  # fmt: skip
