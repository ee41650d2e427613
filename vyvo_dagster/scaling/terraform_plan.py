"""What a Terraform plan may do to a pool, by its `terraform show -json` form.

Its shape: https://developer.hashicorp.com/terraform/internals/json-format, format version 1.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vyvo_dagster.errors import ScalingFailed, ScalingRefused
from vyvo_dagster.scaling.base import Task

__all__ = ["judge"]

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class _Step:
    address: str
    type: str
    key: object
    """Of for_each or count; None for a resource that has neither."""
    actions: frozenset[str]


def judge(text: str | bytes, task: Task) -> Mapping[str, Any]:
    """What a plan creates, changes and destroys, by address.

    Raises:
        ScalingRefused: it destroys more than was asked for, or another node than was drained, or
            creates nodes that nobody asked for.
        ScalingFailed: the plan cannot be read, or is not whole.
    """
    steps = list(_steps(text))
    for step in steps:
        if "delete" in step.actions and "create" in step.actions:
            raise ScalingRefused(f"the plan replaces {step.address}; a pool only grows or shrinks")
    destroyed = [s for s in steps if s.actions & {"delete", "forget"}]
    created = [s for s in steps if "create" in s.actions]
    node_type = task.config["node_type"]
    per_node = {node_type, *task.config.get("attached_types", ())}
    leaving = set(task.change.remove)
    for kind in sorted({s.type for s in destroyed}):
        found = [s for s in destroyed if s.type == kind]
        allowed = len(leaving) if kind in per_node else 0
        if len(found) > allowed:
            raise ScalingRefused(
                f"the plan destroys {len(found)} {kind} and {allowed} may go: {_listed(found)}"
            )
    if strange := [s for s in destroyed if s.key not in leaving]:
        raise ScalingRefused(
            f"the plan destroys what no leaving node owns: {_listed(strange)}; make the resources of"
            " nodes with for_each = toset(var.node_names)"
        )
    nodes = [s for s in created if s.type == node_type]
    if unasked := [s for s in nodes if s.key not in set(task.change.names)]:
        raise ScalingRefused(f"the plan creates nodes that nobody asked for: {_listed(unasked)}")
    return {
        "create": [s.address for s in created],
        "update": [s.address for s in steps if "update" in s.actions],
        "destroy": [s.address for s in destroyed],
    }


def _steps(text: str | bytes) -> Iterator[_Step]:
    try:
        document: dict[str, Any] = json.loads(text)
        version = str(document["format_version"])
        if version.partition(".")[0] != "1":
            raise ScalingFailed(f"the plan has format {version}; this reads format 1")
        if document.get("errored"):
            raise ScalingFailed("the plan is not whole: Terraform met an error while it planned")
        for each in document.get("resource_changes", []):
            if each.get("mode") != "data":
                yield _Step(
                    str(each["address"]), str(each["type"]), each.get("index"),
                    frozenset(each["change"]["actions"]),
                )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScalingFailed(f"the plan cannot be read: {error!r}") from error


def _listed(steps: list[_Step]) -> str:
    shown = ", ".join(s.address for s in steps[:_SHOWN])
    return shown if len(steps) <= _SHOWN else f"{shown} and {len(steps) - _SHOWN} more"
