"""What a placement allows a container, and whether its GPUs are still its own."""

from typing import Any

from docker.types import DeviceRequest

from vyvo_dagster.execution.routing.engines import HOLDING, Engines, Labels
from vyvo_dagster.execution.routing.hosts import DockerHost, Placement

__all__ = ["contended", "limits"]


def limits(placement: Placement) -> dict[str, Any]:
    """What a placement means to `containers.create`."""
    options: dict[str, Any] = {}
    if placement.devices:
        options["device_requests"] = [
            DeviceRequest(device_ids=list(placement.devices), capabilities=[["gpu"]])
        ]
    if placement.memory_bytes is not None:
        # No swap beside it: a step that outgrows its limit ends, it does not slow its host down.
        options["mem_limit"] = options["memswap_limit"] = placement.memory_bytes
    if placement.cpus is not None:
        options["nano_cpus"] = round(placement.cpus * 1e9)
    if placement.read_only_mounts:
        options["volumes"] = {
            source: {"bind": target, "mode": "ro"}
            for source, target in placement.read_only_mounts.items()
        }
    return options


def contended(engines: Engines, host: DockerHost, name: str, devices: tuple[str, ...]) -> bool:
    """Whether another step holds one of the GPUs of the container `name`, which is made already.

    Each makes its container first and looks then, so that of two at the same time one at least
    sees the other and steps back.
    """
    if not devices:
        return False
    return any(
        c.status in HOLDING
        and c.name != name
        and set(devices) & set(c.labels.get(Labels.DEVICES, "").split(","))
        for c in engines.containers(host, Labels.RUN)
    )
