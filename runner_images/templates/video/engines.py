"""What makes a clip: an engine's interface, and how it is found.

A repository brings its engine as `vyvo_engine.py` at its root:

    def load(weights: Path) -> Engine: ...
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clip import Clip

SOURCE = Path(__file__).resolve().parent / "source"
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Request:
    """One clip to make. Sizes in pixels."""

    prompt: str
    image: Path | None
    negative_prompt: str
    audio_negative_prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    audio_guidance: float
    seed: int


class Engine(Protocol):
    """A loaded model."""

    def generate(self, request: Request, progress: Progress) -> Clip:
        """Make a clip; `progress` is told the share done, 0 to 1, as it goes."""
        ...


def load_engine(weights: Path) -> Engine:
    """The engine that `VIDEO_ENGINE` names, with its weights.

    Raises:
        RuntimeError: there is no such module, or it has no `load`.
    """
    name = os.environ.get("VIDEO_ENGINE", "vyvo_engine")
    # The repository's own modules, as its scripts see them when they are run from its root.
    sys.path.insert(0, str(SOURCE))
    try:
        load = importlib.import_module(name).load
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise RuntimeError(
            f"there is no module {name}: put vyvo_engine.py at the repository's root, or name an "
            "engine by VIDEO_ENGINE"
        ) from error
    except AttributeError as error:
        raise RuntimeError(f"the module {name} has no function load") from error
    return load(weights)
