"""Workflow versions as Dagster jobs: one op for each step, mapped steps as dynamic outputs.

The ops are never executed by Dagster: the engine drives the run, and reports what the UI shows.
"""

from collections.abc import Mapping
from typing import Any, Final

from dagster import (
    DynamicOut,
    Failure,
    Field,
    GraphDefinition,
    In,
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    Out,
    Permissive,
    ResourceDefinition,
)
from dagster._core.definitions.dependency import (
    DependencyDefinition,
    DynamicCollectDependencyDefinition,
    IDependencyDefinition,
)

from vyvo_dagster.domain.workflow.definition import Definition, StepDefinition, parse
from vyvo_dagster.execution.workflows.names import VERSION_TAG, WORKFLOW_TAG, items_op, job_name
from vyvo_dagster.store.workflow_records import WorkflowVersion

__all__ = ["INPUTS_RESOURCE", "build_job", "run_config_of"]

INPUTS_RESOURCE: Final = "workflow"
"""Its config holds the inputs of a run that is started from Dagster's launchpad."""
_ITEM: Final = "item"


def run_config_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The run config that carries a run's inputs."""
    return {"resources": {INPUTS_RESOURCE: {"config": {"inputs": dict(inputs)}}}}


def build_job(version: WorkflowVersion) -> JobDefinition:
    """The job of a version."""
    definition = parse(version.definition)
    nodes: list[OpDefinition] = []
    dependencies: dict[str, dict[str, IDependencyDefinition]] = {}
    for step in definition.order:
        needs: dict[str, IDependencyDefinition] = {
            f"after_{need}": _after(definition.steps[need]) for need in step.needs
        }
        if step.mapped:
            items = items_op(step.name)
            nodes.append(_op(step, items, list(needs), DynamicOut()))
            dependencies[items] = needs
            needs = {_ITEM: DependencyDefinition(items, "result")}
        nodes.append(_op(step, step.name, list(needs), Out()))
        dependencies[step.name] = needs
    graph = GraphDefinition(
        name=job_name(version.tenant, version.name, version.version),
        description=definition.description or None,
        node_defs=nodes,
        dependencies={name: needs for name, needs in dependencies.items() if needs},
    )
    return graph.to_job(
        tags={
            VERSION_TAG: str(version.id), WORKFLOW_TAG: version.name,
            # Steps are tried again by the engine; Dagster must not start the run anew.
            "dagster/max_retries": "0",
        },
        resource_defs={INPUTS_RESOURCE: _inputs(definition)},
        metadata={"workflow": version.name, "version": version.version},
    )  # fmt: skip


def _after(step: StepDefinition) -> IDependencyDefinition:
    if step.mapped:
        return DynamicCollectDependencyDefinition(step.name, "result")
    return DependencyDefinition(step.name, "result")


def _op(step: StepDefinition, name: str, needs: list[str], out: Out) -> OpDefinition:
    def compute(_context: OpExecutionContext, **_: object) -> Any:
        raise Failure("Workflow runs are driven by the workflow engine.", allow_retries=False)

    return OpDefinition(
        compute_fn=compute, name=name, ins={need: In() for need in needs},
        outs={"result": out}, required_resource_keys={INPUTS_RESOURCE},
        description=step.description or step.what,
        tags={"vyvo/runs": step.what},
    )  # fmt: skip


def _inputs(definition: Definition) -> ResourceDefinition:
    asked = {
        name: str(schema.get("description") or schema.get("type") or "any")
        for name, schema in definition.inputs.items()
    }
    described = "; ".join(f"{name}: {what}" for name, what in asked.items()) or "none"

    def resource(_: Any) -> None:
        return None

    return ResourceDefinition(
        resource_fn=resource,
        config_schema={
            "inputs": Field(
                Permissive(), default_value={}, description=f"Inputs of the workflow ({described})."
            )
        },
    )
