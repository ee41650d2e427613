"""Make a diffusers pipeline of whatever the weights are: a folder, a tar of one, or one safetensors file.

The kind is told from the content, because a weights cache names files by their checksum.
"""

import inspect
import json
import os
import shutil
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

INDEX = "model_index.json"
MAX_HEADER_BYTES = 100_000_000

# A tensor that only checkpoints of this family have, most specific first.
SINGLE_FILE_FAMILIES = (
    ("double_blocks.0.img_attn.proj.weight", FluxPipeline),
    ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", FluxPipeline),
    ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", StableDiffusion3Pipeline),
    ("conditioner.embedders.1.model.ln_final.weight", StableDiffusionXLPipeline),
    ("model.diffusion_model.input_blocks.0.0.weight", StableDiffusionPipeline),
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


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar's files into `folder`, and nothing else of it: no links, no devices, no modes.

    Raises:
        ValueError: an entry that would lie outside the folder, or is neither file nor folder.
    """
    root = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            target = (root / member.name).resolve()
            source = tar.extractfile(member) if member.isfile() else None
            if not target.is_relative_to(root) or (source is None and not member.isdir()):
                raise ValueError(f"refusing the tar's entry {member.name[:100]!r}")
            if source is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1024 * 1024)


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


def safetensors_names(path: Path) -> set[str]:
    """The names of a safetensors file's tensors, from its header alone.

    Raises:
        ValueError: the file has no such header.
    """
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is neither a tar nor a safetensors file")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise ValueError(f"{path.name} is neither a tar nor a safetensors file") from error
    return set(header) - {"__metadata__"}


def accepted(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that are set and that this pipeline takes.

    Families differ: some know no negative prompt, and each has a size of its own.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in arguments.items() if value is not None and name in known}
