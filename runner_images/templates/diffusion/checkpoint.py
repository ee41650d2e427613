"""Make a diffusers pipeline of whatever the weights are: a folder, a tar of one, or one safetensors file.

The kind is told from the content, because a weights cache names files by their checksum.
"""

import inspect
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from archive import safetensors_names
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from vyvo_runner import unpack

INDEX = "model_index.json"

# A tensor that only checkpoints of this family have, by diffusers' own table, most specific first.
SINGLE_FILE_FAMILIES = (
    ("double_blocks.0.img_attn.norm.key_norm.scale", FluxPipeline),
    ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", FluxPipeline),
    ("joint_blocks.0.context_block.adaLN_modulation.1.bias", StableDiffusion3Pipeline),
    (
        "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
        StableDiffusion3Pipeline,
    ),
    (
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
        StableDiffusionXLPipeline,
    ),
    (
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        StableDiffusionPipeline,
    ),
)


def choose_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: torch.device, wanted: str) -> torch.dtype:
    """`auto`: bfloat16 on GPUs that compute in it, float16 on older ones, float32 on the CPU.

    Raises:
        ValueError: `wanted` is neither auto nor one of the three.
    """
    named = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if wanted in named:
        return named[wanted]
    if wanted != "auto":
        raise ValueError(f"DIFFUSION_DTYPE is auto, {', '.join(named)}; not {wanted!r}")
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_pipeline(weights: Path, dtype: torch.dtype) -> Any:
    """Load the pipeline that `weights` holds; nothing is downloaded and nothing is unpickled.

    Raises:
        ValueError: neither a pipeline folder, nor a tar of one, nor a safetensors checkpoint of a
            known family; the message says what was found.
    """
    if weights.is_dir():
        return _from_folder(weights, dtype)
    if tarfile.is_tarfile(weights):
        with tempfile.TemporaryDirectory(prefix="weights-", dir=_scratch()) as folder:
            unpack(weights, Path(folder))
            return _from_folder(Path(folder), dtype)
    return _from_single_file(weights, dtype)


def _scratch() -> str | None:
    return os.environ.get("DIFFUSION_SCRATCH") or None


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    # A tar often holds one folder that holds the pipeline.
    for candidate in (folder, *sorted(each for each in folder.iterdir() if each.is_dir())):
        if (candidate / INDEX).is_file():
            return DiffusionPipeline.from_pretrained(
                candidate, torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
    raise ValueError(f"the weights hold no {INDEX}; save them with pipeline.save_pretrained()")


def _from_single_file(path: Path, dtype: torch.dtype) -> Any:
    names = safetensors_names(path)
    family = next((cls for tensor, cls in SINGLE_FILE_FAMILIES if tensor in names), None)
    if family is None:
        raise ValueError(
            "the checkpoint is of no known family; save it as a diffusers folder in a tar"
        )
    options: dict[str, Any] = {"torch_dtype": dtype}
    config = os.environ.get("DIFFUSION_CONFIG")
    if config:
        # Without it diffusers looks the family's configuration up on the Hugging Face hub.
        options.update(config=config, local_files_only=True)
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        # diffusers goes by the name, and unpickles whatever is not called .safetensors.
        link = Path(folder) / "checkpoint.safetensors"
        link.symlink_to(path.resolve())
        return family.from_single_file(str(link), **options)


def accepted(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that are set and that this pipeline takes.

    Families differ: some know no negative prompt, and each has a size of its own.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in arguments.items() if value is not None and name in known}
