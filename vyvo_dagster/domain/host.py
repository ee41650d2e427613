"""Which host an op runs on: a pure function of the op's tags and of what each host has free.

Tags of an op:

    vyvo/host    the name of the node
    vyvo/pool    the node's label `pool`
    vyvo/gpu     how many whole GPUs: 1, 2, all; or a part of their name, with how many: h100, h100:2
    vyvo/memory  limit of the container's memory, such as 512MiB or 16GiB
    vyvo/cpus    limit of its processors, such as 0.5 or 4

The first three choose the host, so that an op with none of them runs where its run does.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from vyvo_dagster.domain.node import NodeState, parse_node_name
from vyvo_dagster.errors import InvalidInput

__all__ = [
    "CPUS_TAG",
    "GPU_TAG",
    "HOST_TAG",
    "MEMORY_TAG",
    "POOL_LABEL",
    "POOL_TAG",
    "Device",
    "HostView",
    "OpRequest",
    "Placed",
    "Waiting",
    "parse_request",
    "place",
]

HOST_TAG: Final = "vyvo/host"
POOL_TAG: Final = "vyvo/pool"
GPU_TAG: Final = "vyvo/gpu"
MEMORY_TAG: Final = "vyvo/memory"
CPUS_TAG: Final = "vyvo/cpus"
POOL_LABEL: Final = "pool"
"""The label of a node that says which pool it is of."""

_ROUTING: Final = (HOST_TAG, POOL_TAG, GPU_TAG)
_SIZE: Final = re.compile(r"([1-9][0-9]{0,14})(B|KiB|MiB|GiB|TiB)?")
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_GPU: Final = re.compile(r"(?:([A-Za-z][A-Za-z0-9 ._-]{0,62})(?::|$))?([1-9][0-9]?|all)?")
_MIN_MEMORY: Final = 6 << 20  # What Docker refuses to go below.


@dataclass(frozen=True, slots=True)
class OpRequest:
    """What an op's tags ask for. None asks for nothing of the kind; memory in bytes."""

    host: str | None = None
    pool: str | None = None
    gpus: int | None = None
    """Number of whole GPUs; 0 is none, -1 is every GPU of the host."""
    gpu_name: str | None = None
    memory_bytes: int | None = None
    cpus: float | None = None

    def tags(self) -> str:
        """The tags that choose the host, as a person wrote them."""
        gpu = "all" if self.gpus == -1 else str(self.gpus)
        found = {
            HOST_TAG: self.host,
            POOL_TAG: self.pool,
            GPU_TAG: f"{self.gpu_name}:{gpu}"
            if self.gpu_name
            else (None if self.gpus is None else gpu),
        }
        return ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of a host. Memory in bytes, as of the last heartbeat."""

    uuid: str
    name: str
    free_memory_bytes: int


@dataclass(frozen=True, slots=True)
class HostView:
    """A node as the placement of ops sees it."""

    name: str
    state: NodeState
    schedulable: bool
    """Neither cordoned nor draining."""
    labels: Mapping[str, str]
    devices: tuple[Device, ...]
    memory_bytes: int
    cpus: int
    in_use: frozenset[str] | None
    """UUIDs of the GPUs that other ops hold; None where the engine does not answer."""
    ops: int = 0
    """Ops that run there."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The host, and the UUIDs of the GPUs that the op gets."""

    host: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """No host now; `reason` names the tags and what is in the way."""

    reason: str


def parse_request(tags: Mapping[str, str]) -> OpRequest | None:
    """What the tags ask for; None when none of them chooses a host.

    Raises:
        InvalidInput: a value that is none of its tag's; the detail names the tag.
    """
    if not any(tag in tags for tag in _ROUTING):
        return None
    gpus, gpu_name = _gpus(tags.get(GPU_TAG))
    host, cpus = tags.get(HOST_TAG), tags.get(CPUS_TAG)
    try:
        count = None if cpus is None else float(cpus)
    except ValueError:
        count = 0.0
    if count is not None and not 0.01 <= count <= 4096:
        raise InvalidInput(f"tag {CPUS_TAG}={cpus!r} must be a number of processors, such as 4")
    try:
        named = None if host is None else parse_node_name(host)
    except InvalidInput as error:
        raise InvalidInput(f"tag {HOST_TAG}={host!r}: {error.detail}") from error
    return OpRequest(
        host=named,
        pool=tags.get(POOL_TAG),
        gpus=gpus,
        gpu_name=gpu_name,
        memory_bytes=_bytes(tags.get(MEMORY_TAG)),
        cpus=count,
    )


def place(request: OpRequest, hosts: Iterable[HostView]) -> Placed | Waiting:
    """The host with room that keeps most room whole elsewhere (best fit), and its GPUs.

    Among hosts that match: fewest GPUs left free, then fewest ops, then by name; of a host's GPUs
    those with the most free memory.
    """
    asked, matching = request.tags(), [h for h in hosts if _matches(request, h)]
    if not matching:
        return Waiting(f"no node matches {asked}")
    usable: list[HostView] = []
    reasons: list[str] = []
    for host in matching:
        reason = _unfit(request, host)
        if reason is None:
            usable.append(host)
        else:
            reasons.append(f"{host.name} {reason}")
    if not usable:
        return Waiting(f"no node is free for {asked}: {'; '.join(sorted(reasons)[:8])}")

    def order(host: HostView) -> tuple[int, int, str]:
        return len(_free(request, host)) - _wanted(request, host), host.ops, host.name

    best = min(usable, key=order)
    taken = sorted(_free(request, best), key=lambda d: (-d.free_memory_bytes, d.uuid))
    return Placed(best.name, tuple(d.uuid for d in taken[: _wanted(request, best)]))


def _matches(request: OpRequest, host: HostView) -> bool:
    if request.host is not None and request.host != host.name:
        return False
    if request.pool is not None and request.pool != host.labels.get(POOL_LABEL):
        return False
    return len(_named(request, host)) >= max(_wanted(request, host), 1) if request.gpus else True


def _unfit(request: OpRequest, host: HostView) -> str | None:
    """Why a host that matches cannot take the op now."""
    if host.state is not NodeState.READY:
        return f"is {host.state.value}"
    if not host.schedulable:
        return "is cordoned"
    if host.in_use is None:
        return "has an engine that does not answer"
    if (request.memory_bytes or 0) > host.memory_bytes:
        return "has less memory"
    if (request.cpus or 0) > host.cpus:
        return "has fewer processors"
    if len(_free(request, host)) < _wanted(request, host):
        return "has no GPU free" if _wanted(request, host) == 1 else "has too few GPUs free"
    return None


def _wanted(request: OpRequest, host: HostView) -> int:
    return len(_named(request, host)) if request.gpus == -1 else request.gpus or 0


def _named(request: OpRequest, host: HostView) -> list[Device]:
    name = (request.gpu_name or "").casefold()
    return [d for d in host.devices if name in d.name.casefold()]


def _free(request: OpRequest, host: HostView) -> list[Device]:
    return [d for d in _named(request, host) if d.uuid not in (host.in_use or frozenset())]


def _gpus(value: str | None) -> tuple[int | None, str | None]:
    if value is None or value == "0":
        return (None if value is None else 0), None
    found = _GPU.fullmatch(value) if value else None
    if found is None or (found[1] is None and found[2] is None):
        raise InvalidInput(f"tag {GPU_TAG}={value!r} must be such as 1, all, h100 or h100:2")
    if found[1] == "all":
        return -1, None
    count = found[2] or "1"
    return (-1 if count == "all" else int(count)), found[1]


def _bytes(value: str | None) -> int | None:
    if value is None:
        return None
    found = _SIZE.fullmatch(value)
    size = int(found[1]) * _UNITS[found[2] or "B"] if found else 0
    if size < _MIN_MEMORY:
        raise InvalidInput(f"tag {MEMORY_TAG}={value!r} must be such as 512MiB, at least 6MiB")
    return size
