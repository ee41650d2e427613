"""Read weights files without trusting them: list a safetensors file's tensors."""

import json
import struct
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000


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
