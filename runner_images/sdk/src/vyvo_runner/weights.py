"""Where the model's weights are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Optional

from .errors import WeightsError

__all__ = ["weights_path"]


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
