"""A runner build: its states, and what identifies its result."""

from enum import StrEnum

from vyvo_dagster.domain.state import StateMachine

__all__ = ["BUILD", "BuildBackend", "BuildState", "partition_key", "split_partition_key"]


class BuildState(StrEnum):
    """States of a build."""

    QUEUED = "queued"
    BUILDING = "building"
    PUSHING = "pushing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class BuildBackend(StrEnum):
    """How an image is made; AUTO chooses by what the host has."""

    AUTO = "auto"
    BUILDX = "buildx"
    GITHUB_ACTIONS = "github_actions"
    VENV = "venv"


_ENDS = frozenset({BuildState.FAILED, BuildState.CANCELED})

BUILD: StateMachine[BuildState] = StateMachine(
    "build",
    {
        BuildState.QUEUED: _ENDS | {BuildState.BUILDING},
        # A build that needs no push (venv) succeeds from BUILDING.
        BuildState.BUILDING: _ENDS | {BuildState.PUSHING, BuildState.SUCCEEDED},
        BuildState.PUSHING: _ENDS | {BuildState.SUCCEEDED},
        BuildState.SUCCEEDED: frozenset(),
        BuildState.FAILED: frozenset(),
        BuildState.CANCELED: frozenset(),
    },
)


def partition_key(model_id: str, version: str) -> str:
    """The Dagster partition of one model version, `owner/name@version`."""
    return f"{model_id}@{version}"


def split_partition_key(key: str) -> tuple[str, str]:
    """The inverse of partition_key; neither part may hold an `@`."""
    model_id, _, version = key.partition("@")
    return model_id, version
