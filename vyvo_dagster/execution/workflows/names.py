"""Names by which workflows are known in Dagster."""

import hashlib
import re
from typing import Final

from dagster import AssetKey

from vyvo_dagster.domain.workflow.definition import Definition, StepDefinition
from vyvo_dagster.execution.names import MODEL_VERSION

__all__ = [
    "LOCATION",
    "REPOSITORY",
    "RUN_TAG",
    "VERSION_TAG",
    "WORKFLOW_TAG",
    "artifact_key",
    "items_op",
    "job_name",
    "upstream_keys",
]

LOCATION: Final = "workflows"
REPOSITORY: Final = "workflows"

RUN_TAG: Final = "vyvo/workflow_run_id"
WORKFLOW_TAG: Final = "vyvo/workflow"
VERSION_TAG: Final = "vyvo/workflow_version_id"
"""On a job, and so on all its runs: those that have it are the engine's."""


def _word(text: str) -> str:
    """`text` as Dagster takes names; where that loses something, a digest keeps it apart."""
    word = re.sub(r"\W", "_", text, flags=re.ASCII)
    if word == text:
        return word
    return f"{word}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def job_name(tenant: str, workflow: str, version: int) -> str:
    """The Dagster job of a workflow's version."""
    return f"{_word(tenant)}__{_word(workflow)}__v{version}"


def items_op(step: str) -> str:
    """The op that stands for the list of a mapped step: its dynamic outputs are the items."""
    return f"{step}__items"


def artifact_key(tenant: str, workflow: str, step: str) -> AssetKey:
    """The asset that a step's artifacts are materializations of."""
    return AssetKey(["workflows", _word(tenant), _word(workflow), step])


def upstream_keys(tenant: str, definition: Definition, step: StepDefinition) -> list[AssetKey]:
    """What a step's artifacts are made from: its model's versions, and the artifacts it needs.

    A built-in operation makes no artifacts and hands on those of others, so it is passed over.
    """
    found: dict[AssetKey, None] = {} if step.model is None else {MODEL_VERSION: None}
    waiting, seen = list(step.needs), set(step.needs)
    while waiting:
        need = definition.steps[waiting.pop(0)]
        if need.operation is None:
            found[artifact_key(tenant, definition.name, need.name)] = None
            continue
        waiting += [each for each in need.needs if each not in seen]
        seen |= {*need.needs}
    return list(found)
