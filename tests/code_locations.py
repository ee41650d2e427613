"""Code locations loaded as Dagster's webserver loads them."""

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget

__all__ = ["loaded_location"]


@contextmanager
def loaded_location(
    instance: DagsterInstance, target: ModuleTarget
) -> Iterator[WorkspaceProcessContext]:
    """The location for the length of the block; its server has ended when the block has."""
    with WorkspaceProcessContext(instance, target) as context:
        yield context
    context._grpc_server_registry.wait_for_processes()
