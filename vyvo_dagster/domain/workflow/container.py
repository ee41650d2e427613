"""Steps that run a container on a tagged host, instead of a job of a model.

A container finds its input as JSON in the file that `VYVO_INPUT` names, and leaves its output as JSON
in the one that `VYVO_OUTPUT` names; it may leave none. Status 0 is success. Artifacts are uploaded as
a runner does, and stand in the output in their one shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.domain.host import OpRequest, parse_request

__all__ = [
    "CONTAINER_SCHEMA",
    "INPUT_FILE",
    "OUTPUT_FILE",
    "PLACES",
    "RUN_ON_SCHEMA",
    "ContainerStep",
    "container_name",
    "parse_container",
    "place_tags",
]

INPUT_FILE: Final = "/vyvo/input.json"
OUTPUT_FILE: Final = "/vyvo/output.json"

PLACES: Final = ("host", "pool", "gpu")
"""The members of `run_on` that choose a host."""

# What stands before a member of `run_on` in the tags of an op.
_TAG: Final = "vyvo/"
# A dollar would let a line break pass.
_END: Final = r"(?![\s\S])"
_IMAGE: Final = r"^[a-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?" + _END
_ENV_NAME: Final = r"^(?!VYVO_)[A-Za-z_][A-Za-z0-9_]{0,127}" + _END
_TEXT: Final = r"^[^\u0000]*" + _END

CONTAINER_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "An image to run to its end, instead of a model.",
    "properties": {
        "image": {
            "type": "string", "pattern": _IMAGE, "maxLength": 512,
            "description": "Reference; with a digest it is the same one for ever.",
        },
        "command": {
            "type": "array", "minItems": 1, "maxItems": 64,
            "items": {"type": "string", "maxLength": 4096, "pattern": _TEXT},
            "description": "Instead of the image's own; no shell reads it.",
        },
        "env": {
            "type": "object", "maxProperties": 64,
            "propertyNames": {"pattern": _ENV_NAME},
            "additionalProperties": {"type": "string", "maxLength": 4096, "pattern": _TEXT},
            "description": "Environment variables; those that begin with VYVO_ are the platform's.",
        },
    },
    "required": ["image"],
    "additionalProperties": False,
}  # fmt: skip

RUN_ON_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "Where a container runs: at least one of host, pool and gpu.",
    "properties": {
        "host": {"type": "string", "maxLength": 64, "description": "Name of a node."},
        "pool": {"type": "string", "maxLength": 64, "description": "The nodes' label `pool`."},
        "gpu": {
            "type": ["string", "integer"], "maxLength": 80,
            "description": "Whole GPUs: 1, all, h100 or h100:2; each is this step's alone.",
        },
        "memory": {"type": "string", "maxLength": 24, "description": "Limit, such as 16GiB."},
        "cpus": {"type": ["string", "number"], "maxLength": 24, "description": "Limit, such as 4."},
    },
    "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContainerStep:
    """What a step runs, and where."""

    image: str
    command: tuple[str, ...]
    """Empty is the image's own."""
    env: Mapping[str, str]
    request: OpRequest


def container_name(step_id: UUID, attempt: int) -> str:
    """The name of an attempt's container: who asks for it again finds it."""
    return f"vyvo-step-{step_id}-{attempt}"


def parse_container(step: Mapping[str, Any]) -> ContainerStep | None:
    """The container of a step that was checked; None where it has another kind."""
    given = step.get("container")
    if given is None:
        return None
    request = parse_request(place_tags(step["run_on"]))
    assert request is not None  # it was checked
    return ContainerStep(
        given["image"], tuple(given.get("command", ())), dict(given.get("env", {})), request
    )


def place_tags(where: Mapping[str, Any]) -> dict[str, str]:
    """A step's `run_on` as the tags of an op."""
    return {f"{_TAG}{name}": str(value) for name, value in where.items()}
