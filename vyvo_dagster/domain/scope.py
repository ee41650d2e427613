"""Scopes of a credential."""

from collections.abc import Iterable
from enum import StrEnum

__all__ = ["Scope", "grants"]


class Scope(StrEnum):
    """What a key may do. ADMIN grants all but NODE, which belongs to one node's own credential."""

    ADMIN = "admin"
    BUILDS_READ = "builds:read"
    BUILDS_WRITE = "builds:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    NODES_READ = "nodes:read"
    NODES_WRITE = "nodes:write"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ARTIFACTS_READ = "artifacts:read"
    EVENTS_READ = "events:read"
    WORKFLOWS_READ = "workflows:read"
    WORKFLOWS_WRITE = "workflows:write"
    WORKFLOWS_RUN = "workflows:run"
    DAGSTER_READ = "dagster:read"
    NODE = "node"


def grants(held: Iterable[Scope], needed: Scope) -> bool:
    """Whether a key with `held` may do what `needed` names; `x:write` and `x:run` include `x:read`."""
    scopes = frozenset(held)
    if needed in scopes:
        return True
    if needed is Scope.NODE:
        return False
    if Scope.ADMIN in scopes:
        return True
    noun, _, verb = needed.partition(":")
    return verb == "read" and not scopes.isdisjoint({f"{noun}:write", f"{noun}:run"})
