"""Nodes of the registry as hosts of containers: their engines by the settings, and a choice of one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vyvo_dagster.domain.host import Device, HostView, OpRequest, Waiting, place
from vyvo_dagster.domain.node import parse_node_name
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy, Placement, Unplaced
from vyvo_dagster.store.records import Node

__all__ = ["WEIGHTS", "HostEngines"]

WEIGHTS: Final = "/weights"
"""Where a container on a host sees the weights cache of its node."""

_ANY: Final = "*"


class HostEngines:
    """Which engine each node has.

    Args:
        engines: node name → URL of its engine; that of `*` is for the others, with `{node}` in it;
            a node whose name cannot be a host's has none by that.
            Set by who runs the system, never by a node: who names an engine commands it.
        tls_dir: of the client's certificate, see HostsSettings.
        weights_dir: the nodes' weights cache, `{node}` in it is the name; None mounts none.
    """

    def __init__(
        self,
        engines: Mapping[str, str],
        tls_dir: Path | None = None,
        weights_dir: str | None = None,
    ) -> None:
        self._engines = engines
        self._tls_dir = tls_dir
        self._weights_dir = weights_dir

    def of(self, name: str) -> DockerHost | None:
        """The engine of a node; None where the settings name none."""
        url = self._engines.get(name) or self._engines.get(_ANY)
        if url is None:
            return None
        try:
            # A name is what a node calls itself: it may not end a host, begin a port, a user or a
            # path, nor be an option of a program, whatever the registry let in.
            parse_node_name(name)
        except InvalidInput:
            return None
        tls = self._tls_dir
        if tls is not None and (tls / name / "cert.pem").is_file():
            tls /= name
        return DockerHost(name, url.replace("{node}", name), tls)

    def choose(
        self, request: OpRequest, nodes: Sequence[Node], occupancy: Mapping[str, Occupancy | None]
    ) -> Placement | Unplaced:
        """A host for what is asked for, see domain.host.place.

        Args:
            occupancy: by name of the node; None where its engine does not answer.
        """
        reached = [node for node in nodes if self.of(node.name) is not None]
        outcome = place(request, [_view(node, occupancy.get(node.name)) for node in reached])
        if isinstance(outcome, Waiting):
            missing = sorted(node.name for node in nodes if node not in reached)
            hint = f"; VYVO_HOSTS_ENGINES names no engine of {', '.join(missing[:8])}"
            return Unplaced(outcome.reason + (hint if missing else ""))
        host = self.of(outcome.host)
        assert host is not None
        return self.placement(host, outcome.devices, request)

    def placement(self, host: DockerHost, devices: Sequence[str], request: OpRequest) -> Placement:
        """What a container gets that was given a host and GPUs of it."""
        mounts: dict[str, str] = {}
        if self._weights_dir is not None:
            mounts[self._weights_dir.replace("{node}", host.name)] = WEIGHTS
        return Placement(host, tuple(devices), request.memory_bytes, request.cpus, mounts)


def _view(node: Node, occupancy: Occupancy | None) -> HostView:
    used = {g["index"]: g["memory_used_bytes"] for g in node.metrics.get("gpus", [])}
    has = node.capabilities
    return HostView(
        name=node.name,
        state=node.state,
        schedulable=not (node.cordoned or node.draining),
        labels=node.labels,
        devices=tuple(
            Device(g["uuid"], g["name"], g["memory_bytes"] - used.get(g["index"], 0))
            for g in has.get("gpus", [])
            if not g.get("lost")
        ),
        memory_bytes=has.get("memory_bytes", 0),
        cpus=has.get("cpus", 0),
        in_use=None if occupancy is None else occupancy.devices,
        ops=0 if occupancy is None else occupancy.steps,
    )
