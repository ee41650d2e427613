"""Whether a runner's setup can succeed on this build host."""

from pathlib import Path
from typing import Final

from vyvo_dagster.building.types import BuildContext, BuildRequest

__all__ = ["host_has_gpu", "setup_can_run"]

_NVIDIA_CONTROL: Final = Path("/dev/nvidiactl")


def host_has_gpu() -> bool:
    """Whether NVIDIA's driver is loaded here."""
    return _NVIDIA_CONTROL.exists()


def setup_can_run(request: BuildRequest, context: BuildContext) -> bool:
    """Whether weights and, where the model needs one, a GPU are there; says so in the log if not."""
    if request.weights_path is None and request.needs_weights:
        context.log.line(
            "check", "no weights are given: setup is not checked, only that the server answers"
        )
        return False
    if request.gpu and not host_has_gpu():
        context.log.line(
            "check", "the model needs a GPU and this build host has none: setup is not checked"
        )
        return False
    return True
