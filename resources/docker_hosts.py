"""The Docker engines of the nodes, for ops that are tagged for them: a resolver over the registry."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from dagster import (
    ConfigurableResource,
    EnvVar,
    ExecutorDefinition,
    InitExecutorContext,
    ResourceDependency,
)
from pydantic import Field

from resources.store import StoreResource
from vyvo_dagster.domain.host import (
    GPU_TAG,
    HOST_TAG,
    POOL_LABEL,
    POOL_TAG,
    Device,
    HostView,
    Placed,
    Waiting,
    parse_request,
    place,
)
from vyvo_dagster.domain.node import parse_node_name
from vyvo_dagster.errors import InvalidInput, Unavailable
from vyvo_dagster.execution.routing.executor import routing_executor
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy, Placement, Unplaced
from vyvo_dagster.settings import HostsSettings
from vyvo_dagster.store.records import Node

__all__ = ["WEIGHTS", "DockerHostsResource", "NodeHosts", "hosts_executor"]

WEIGHTS: Final = "/weights"
"""Where an op on a host sees the weights cache of its node."""

_ANY: Final = "*"


class NodeHosts:
    """Chooses among the nodes of the registry; implements HostResolver.

    Args:
        store: the registry.
        engines: node name → URL of its engine; that of `*` is for the others, with `{node}` in it;
            a node whose name cannot be a host's has none by that.
            Set by who runs the system, never by a node: who names an engine commands it.
        tls_dir: of the client's certificate, see HostsSettings.
        weights_dir: the nodes' weights cache, `{node}` in it is the name; None mounts none.
    """

    def __init__(
        self,
        store: StoreResource,
        engines: Mapping[str, str],
        tls_dir: Path | None = None,
        weights_dir: str | None = None,
    ) -> None:
        self._store = store
        self._engines = engines
        self._tls_dir = tls_dir
        self._weights_dir = weights_dir

    def routes(self, tags: Mapping[str, str]) -> bool:
        """Whether a tag chooses a host."""
        return any(tag in tags for tag in (HOST_TAG, POOL_TAG, GPU_TAG))

    def hosts(self, tags: Mapping[str, str] | None = None) -> Sequence[DockerHost]:
        """Engines of the nodes that are not lost, of those named by the tags.

        Raises Unavailable for None where the registry does not answer; a step then waits.
        """
        try:
            nodes = self.nodes()
        except Unavailable:
            if tags is None:
                raise
            return []
        wanted, pool = (tags or {}).get(HOST_TAG), (tags or {}).get(POOL_TAG)
        found = [
            self._host(node.name)
            for node in nodes
            if wanted in {None, node.name} and pool in {None, node.labels.get(POOL_LABEL)}
        ]
        return [host for host in found if host is not None]

    def place(
        self, tags: Mapping[str, str], occupancy: Mapping[str, Occupancy | None]
    ) -> Placement | Unplaced:
        """See domain.host.place; raises ValueError for a tag that has no meaning."""
        try:
            request = parse_request(tags)
        except InvalidInput as error:
            raise ValueError(error.detail) from error
        assert request is not None, "only steps that are routed are placed"
        try:
            nodes = self.nodes()
        except Unavailable as error:
            return Unplaced(f"the registry of nodes: {error.detail}")
        reached = [node for node in nodes if self._host(node.name) is not None]
        outcome = place(request, [_view(node, occupancy.get(node.name)) for node in reached])
        if isinstance(outcome, Waiting):
            missing = sorted(node.name for node in nodes if node not in reached)
            hint = f"; VYVO_HOSTS_ENGINES names no engine of {', '.join(missing[:8])}"
            return Unplaced(outcome.reason + (hint if missing else ""))
        assert isinstance(outcome, Placed)
        host = self._host(outcome.host)
        assert host is not None
        mounts: dict[str, str] = {}
        if self._weights_dir is not None:
            mounts[self._weights_dir.replace("{node}", host.name)] = WEIGHTS
        return Placement(host, outcome.devices, request.memory_bytes, request.cpus, mounts)

    def close(self) -> None:
        """Close the registry's connection."""
        self._store.close()

    def nodes(self) -> list[Node]:
        """Every node that is not lost."""
        return self._store.call(lambda db: db.nodes.all())

    def _host(self, name: str) -> DockerHost | None:
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


class DockerHostsResource(ConfigurableResource[NodeHosts]):
    """The nodes' engines, for ops and sensors."""

    store: ResourceDependency[StoreResource]
    engines: dict[str, str] = Field(description="Node name to engine URL, see NodeHosts.")
    tls_dir: str | None = Field(default=None, description="Folder of the client's certificate.")
    weights_dir: str | None = Field(default=None, description="The nodes' weights cache.")

    @classmethod
    def of(cls, store: StoreResource, settings: HostsSettings) -> Self:
        """As the settings say."""
        tls = None if settings.tls_dir is None else str(settings.tls_dir)
        return cls(
            store=store,
            engines=settings.engines,
            tls_dir=tls,
            weights_dir=settings.weights_dir,
        )

    def resolver(self) -> NodeHosts:
        """What chooses among them."""
        tls = None if self.tls_dir is None else Path(self.tls_dir)
        return NodeHosts(self.store, self.engines, tls, self.weights_dir)


def hosts_executor(settings: HostsSettings) -> ExecutorDefinition:
    """The code location's executor."""

    def resolver(_context: InitExecutorContext) -> NodeHosts:
        store = StoreResource(dsn=EnvVar("VYVO_POSTGRES_DSN").get_value() or "")
        return NodeHosts(store, settings.engines, settings.tls_dir, settings.weights_dir)

    defaults: dict[str, Any] = {"env_vars": [n for n in settings.env if n in os.environ]}
    if settings.image is not None:
        defaults["image"] = settings.image
    if settings.network is not None:
        defaults["networks"] = [settings.network]
    return routing_executor(resolver, defaults)


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
