"""Read weights files without trusting them: unpack a tar, and list a safetensors file's tensors."""

import json
import shutil
import struct
import tarfile
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000


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
