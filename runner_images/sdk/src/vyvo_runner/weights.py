"""Where the model's weights are."""

from __future__ import annotations

import atexit
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Mapping, Optional

from .archive import unpack
from .errors import WeightsError

__all__ = ["weights_folder", "weights_path"]


def weights_path(environ: Optional[Mapping[str, str]] = None) -> Path:
    """The weights on the local disk, from `VYVO_WEIGHTS`; a file, or a folder for some models.

    Raises:
        WeightsError: the variable is not set, or nothing is there.
    """
    value = (os.environ if environ is None else environ).get("VYVO_WEIGHTS")
    if not value:
        raise WeightsError("VYVO_WEIGHTS is not set; it holds the path of the model's weights")
    path = Path(value)
    if not path.exists():
        raise WeightsError(f"VYVO_WEIGHTS names {value!r}, and nothing is there")
    return path


def weights_folder(environ: Optional[Mapping[str, str]] = None) -> Path:
    """The weights as a folder, for models of several files.

    A folder is given as it is. A tar, which is what a whole repository of a hub is kept as, is
    unpacked into a folder that lives as long as this process. Where the tar holds one folder and
    nothing else, that folder is given.

    Raises:
        WeightsError: there are no weights, or they are neither a folder nor a tar that is safe to
            unpack.
    """
    path = weights_path(environ)
    if path.is_dir():
        return path
    if not tarfile.is_tarfile(str(path)):
        raise WeightsError(f"{path.name} is neither a folder nor a tar")
    folder = Path(tempfile.mkdtemp(prefix="weights-"))
    atexit.register(shutil.rmtree, str(folder), ignore_errors=True)
    try:
        unpack(path, folder)
    except (ValueError, tarfile.TarError) as error:
        raise WeightsError(str(error)) from error
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
