"""The engine of the repository chetwinlow1/Ovi (its `ovi.ovi_fusion_engine`), on one GPU.

The weights are a folder, or a tar of one, laid out as the repository's `ckpt_dir` is.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import vyvo_runner
from clip import Clip
from engines import SOURCE, Progress, Request

FPS, SAMPLE_RATE = 24, 16_000


class OviEngine:
    """See `engines.Engine`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def generate(self, request: Request, progress: Progress) -> Clip:
        """Make a clip of about five seconds with sound."""
        progress(0.0)
        video, audio, _ = self._engine.generate(
            text_prompt=request.prompt,
            image_path=str(request.image) if request.image else None,
            video_frame_height_width=[request.height, request.width],
            seed=request.seed,
            solver_name="unipc",
            sample_steps=request.steps,
            shift=5.0,
            video_guidance_scale=request.guidance,
            audio_guidance_scale=request.audio_guidance,
            slg_layer=11,
            video_negative_prompt=request.negative_prompt,
            audio_negative_prompt=request.audio_negative_prompt,
        )
        progress(1.0)
        # Pixels (3, t, h, w) in -1 to 1; sound (samples,) in -1 to 1.
        pixels = np.clip((np.asarray(video) + 1.0) * 127.5, 0, 255).round().astype(np.uint8)
        sound = np.asarray(audio, np.float32).reshape(1, -1)
        return Clip(pixels.transpose(1, 2, 3, 0), FPS, sound, SAMPLE_RATE)


def load(weights: Path) -> OviEngine:
    """Load Ovi's fused model on one GPU; `weights` is where `weights_folder` looks too."""
    folder = vyvo_runner.weights_folder({"VYVO_WEIGHTS": str(weights)})
    os.chdir(SOURCE)
    from omegaconf import OmegaConf
    from ovi.ovi_fusion_engine import DEFAULT_CONFIG, OviFusionEngine

    config = OmegaConf.merge(DEFAULT_CONFIG, {"ckpt_dir": str(folder), "cpu_offload": False})
    return OviEngine(OviFusionEngine(config=config, device=0, target_dtype=_bfloat16()))


def _bfloat16() -> Any:
    import torch

    return torch.bfloat16
