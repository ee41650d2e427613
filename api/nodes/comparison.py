"""What heartbeats say, compared with what the rows say: for many nodes by the same few statements.

It is asked for where a heartbeat has no answer that was made before: at a node's first one after
the start of this process, and whenever it or its rows changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from uuid_utils.compat import uuid7

from api.nodes import gpus
from vyvo_dagster.domain.model import Resources
from vyvo_dagster.domain.node import ASSIGNMENT, AssignmentState, NodeEventKind
from vyvo_dagster.protocol.node import DesiredAssignment, Heartbeat, ObservedAssignment
from vyvo_dagster.store.assignments import Observation
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.nodes import NewEvent
from vyvo_dagster.store.records import Assignment, ModelVersion

__all__ = ["Compared", "compare"]

_TOLD: Final = {
    AssignmentState.READY: NodeEventKind.ASSIGNMENT_READY,
    AssignmentState.FAILED: NodeEventKind.ASSIGNMENT_FAILED,
    AssignmentState.REMOVED: NodeEventKind.ASSIGNMENT_REMOVED,
}


@dataclass(slots=True)
class Compared:
    """What came of one node's heartbeat."""

    desired: str = "[]"
    """The assignments that the node should have, as JSON."""
    changed: bool = False
    """The rows say something else than before, so that the answer may be another next time."""
    wake: bool = False
    """Work may be placed that had no place."""


@dataclass(slots=True)
class _Loaded:
    """Assignments in force by node, and their versions."""

    by_node: dict[UUID, list[Assignment]]
    versions: dict[UUID, DesiredAssignment] = field(default_factory=dict[UUID, DesiredAssignment])


async def compare(store: Store, bodies: Mapping[UUID, Heartbeat]) -> dict[UUID, Compared]:
    """Record what the rows do not say yet, and say what each node should have.

    Nodes that are lost or have another boot than the heartbeat's are left out.
    """
    nodes = await store.nodes.current({id_: body.boot_id for id_, body in bodies.items()})
    found = {node_id: Compared() for node_id in nodes}
    for node_id, node in nodes.items():
        if await gpus.observe(store, node, bodies[node_id].gpus):
            found[node_id].changed = found[node_id].wake = True
    by_node = await _in_force(store, list(nodes))
    changed = await _observe(store, bodies, by_node)
    for node_id, state in changed:
        found[node_id].changed = True
        found[node_id].wake |= state is AssignmentState.READY
    by_node |= await _in_force(store, list({node_id for node_id, _ in changed}))
    versions = await store.models.by_ids({a.version_id for held in by_node.values() for a in held})
    shown = {version.id: _shown(version) for version in versions}
    for node_id, compared in found.items():
        desired = (
            shown[a.version_id].model_copy(update={"assignment_id": a.id}).model_dump_json()
            for a in by_node[node_id] if a.state is not AssignmentState.REMOVING
        )  # fmt: skip
        compared.desired = f"[{','.join(desired)}]"
    return found


async def _in_force(store: Store, node_ids: list[UUID]) -> dict[UUID, list[Assignment]]:
    by_node: dict[UUID, list[Assignment]] = {node_id: [] for node_id in node_ids}
    if node_ids:
        for assignment in await store.assignments.of_nodes(node_ids):
            by_node[assignment.node_id].append(assignment)
    return by_node


async def _observe(
    store: Store, bodies: Mapping[UUID, Heartbeat], by_node: Mapping[UUID, Sequence[Assignment]]
) -> list[tuple[UUID, AssignmentState]]:
    """Record what changed; of each change the node and the state."""
    seen: dict[UUID, tuple[Assignment, Observation]] = {}
    for node_id, loaded in by_node.items():
        reports = {report.assignment_id: report for report in bodies[node_id].assignments}
        for assignment in loaded:
            observed = _observed(assignment, reports.get(assignment.id))
            if observed is not None:
                seen[assignment.id] = (assignment, observed)
    if not seen:
        return []
    before = await store.assignments.observe([(a.node_id, o) for a, o in seen.values()])
    events: list[NewEvent] = []
    changed: list[tuple[UUID, AssignmentState]] = []
    for id_ in before:
        assignment, observed = seen[id_]
        changed.append((assignment.node_id, observed.state))
        kind = _TOLD.get(observed.state)
        if kind is not None:
            about: dict[str, Any] = {
                "assignment_id": str(assignment.id), "model_id": assignment.model_id,
                "version": assignment.version, "detail": observed.detail,
            }  # fmt: skip
            events.append(NewEvent(uuid7(), assignment.node_id, kind, about))
    await store.nodes.add_events(events)
    return changed


def _observed(assignment: Assignment, report: ObservedAssignment | None) -> Observation | None:
    """What is to be recorded of an assignment; None for nothing."""
    if report is None:
        # The agent never had it, or forgot it in a restart: nothing is left to remove.
        if assignment.state is not AssignmentState.REMOVING:
            return None
        report = ObservedAssignment(assignment_id=assignment.id, state=AssignmentState.REMOVED)
    if not ASSIGNMENT.allows(assignment.state, report.state):
        return None
    detail = None if report.detail is None else report.detail.replace("\0", "\ufffd")
    return Observation(report.assignment_id, report.state, detail, report.slots)


def _shown(version: ModelVersion) -> DesiredAssignment:
    """What a node is told of a version, but for the assignment's id."""
    return DesiredAssignment(
        assignment_id=version.id, model_id=version.model_id, version=version.version,
        runner_image=version.runner_image or "", weights_url=version.weights_url,
        weights_sha256=version.weights_sha256, weights_size_bytes=version.weights_size_bytes,
        env=dict(version.env), resources=Resources(**version.resources),
    )  # fmt: skip
