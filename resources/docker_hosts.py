"""The Docker engines of the nodes, for ops that are tagged for them: a resolver over the registry."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

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
    parse_request,
)
from vyvo_dagster.errors import InvalidInput, Unavailable
from vyvo_dagster.execution.hosts import HostEngines
from vyvo_dagster.execution.routing.executor import routing_executor
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy, Placement, Unplaced
from vyvo_dagster.settings import HostsSettings
from vyvo_dagster.store.records import Node

__all__ = ["DockerHostsResource", "NodeHosts", "hosts_executor"]


class NodeHosts:
    """Chooses among the nodes of the registry; implements HostResolver.

    Args:
        store: the registry.
        engines: of the nodes.
    """

    def __init__(self, store: StoreResource, engines: HostEngines) -> None:
        self._store = store
        self._engines = engines

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
            self._engines.of(node.name)
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
        return self._engines.choose(request, nodes, occupancy)

    def close(self) -> None:
        """Close the registry's connection."""
        self._store.close()

    def nodes(self) -> list[Node]:
        """Every node that is not lost."""
        return self._store.call(lambda db: db.nodes.all())


class DockerHostsResource(ConfigurableResource[NodeHosts]):
    """The nodes' engines, for ops and sensors."""

    store: ResourceDependency[StoreResource]
    engines: dict[str, str] = Field(description="Node name to engine URL, see HostEngines.")
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
        return NodeHosts(self.store, HostEngines(self.engines, tls, self.weights_dir))


def hosts_executor(settings: HostsSettings) -> ExecutorDefinition:
    """The code location's executor."""

    def resolver(_context: InitExecutorContext) -> NodeHosts:
        store = StoreResource(dsn=EnvVar("VYVO_POSTGRES_DSN").get_value() or "")
        engines = HostEngines(settings.engines, settings.tls_dir, settings.weights_dir)
        return NodeHosts(store, engines)

    defaults: dict[str, Any] = {"env_vars": [n for n in settings.env if n in os.environ]}
    if settings.image is not None:
        defaults["image"] = settings.image
    if settings.network is not None:
        defaults["networks"] = [settings.network]
    return routing_executor(resolver, defaults)
