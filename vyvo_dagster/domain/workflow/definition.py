"""A workflow's definition, parsed: what the engine runs by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, cast

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.container import ContainerStep, parse_container
from vyvo_dagster.domain.workflow.expression import Expression
from vyvo_dagster.domain.workflow.state import TriggerKind
from vyvo_dagster.domain.workflow.template import Template, expressions_in, parse_template

__all__ = [
    "LATEST",
    "Definition",
    "ModelRef",
    "Retries",
    "StepDefinition",
    "TriggerDefinition",
    "canonical",
    "digest",
    "model_ref",
    "parse",
    "references_of",
]

LATEST: Final = "latest"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of the registry. No version means the one that new jobs get: active, else newest ready."""

    model_id: str
    version: str | None

    def __str__(self) -> str:
        return self.model_id if self.version is None else f"{self.model_id}@{self.version}"


def model_ref(text: str) -> ModelRef:
    """`owner/name`, `owner/name@version` or `owner/name@latest`."""
    model_id, _, version = text.partition("@")
    return ModelRef(model_id, None if version in {"", LATEST} else version)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a failed step is tried, and how long it waits before."""

    attempts: int = 1
    backoff_seconds: float = 1.0
    backoff_factor: float = 2.0
    max_backoff_seconds: float = 60.0

    def delay(self, failed: int) -> timedelta:
        """Wait after the `failed`-th attempt, from 1."""
        seconds = self.backoff_seconds * self.backoff_factor ** min(failed - 1, 16)
        return timedelta(seconds=min(seconds, self.max_backoff_seconds))


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step: of a model, a built-in operation or a container.

    `needs` holds what its expressions name, too.
    """

    name: str
    model: ModelRef | None
    operation: str | None
    container: ContainerStep | None
    input: Mapping[str, Any]
    needs: tuple[str, ...]
    when: Expression | None
    for_each: Expression | list[Any] | None
    limit: int | None
    max_items: int
    retries: Retries
    timeout_seconds: int | None
    priority: Priority | None
    continue_on_failure: bool
    description: str

    @property
    def mapped(self) -> bool:
        """Whether it is done once for each item of a list."""
        return self.for_each is not None

    @property
    def what(self) -> str:
        """Its model, operation or image, for people."""
        return self.container.image if self.container else str(self.model or self.operation)


@dataclass(frozen=True, slots=True)
class TriggerDefinition:
    """What starts runs by itself. `spec`: cron and timezone, or the filter of an event."""

    name: str
    kind: TriggerKind
    spec: Mapping[str, Any]
    inputs: Mapping[str, Any]
    enabled: bool


@dataclass(frozen=True)
class Definition:
    """A workflow's definition. `steps` is in the order of the document."""

    name: str
    description: str
    inputs: Mapping[str, Mapping[str, Any]]
    steps: Mapping[str, StepDefinition]
    outputs: Mapping[str, Any]
    triggers: tuple[TriggerDefinition, ...]
    priority: Priority
    timeout_seconds: int | None

    @cached_property
    def order(self) -> tuple[StepDefinition, ...]:
        """The steps, each after all that it needs. A definition that was checked has no cycle."""
        done: dict[str, None] = {}
        waiting = dict(self.steps)
        while waiting:
            ready = [s for s in waiting.values() if all(n in done for n in s.needs)]
            if not ready:
                raise ValueError(f"workflow {self.name} has a cycle")
            for step in ready:
                done[step.name] = None
                del waiting[step.name]
        return tuple(self.steps[name] for name in done)

    def priority_of(self, step: StepDefinition) -> Priority:
        """The class that the step's jobs wait in."""
        return step.priority or self.priority


def parse(document: Mapping[str, Any]) -> Definition:
    """The definition of a document that `validation.check` found no fault with."""
    steps = [_step(cast("Mapping[str, Any]", each)) for each in document["steps"]]
    return Definition(
        name=document["name"],
        description=document.get("description", ""),
        inputs=document.get("inputs", {}),
        steps={step.name: step for step in steps},
        outputs=document.get("outputs", {}),
        triggers=tuple(_trigger(each) for each in document.get("triggers", ())),
        priority=Priority(document.get("priority", Priority.STANDARD)),
        timeout_seconds=document.get("timeout_seconds"),
    )


def _step(given: Mapping[str, Any]) -> StepDefinition:
    for_each = given.get("for_each")
    return StepDefinition(
        name=given["name"],
        model=model_ref(given["model"]) if "model" in given else None,
        operation=given.get("operation"),
        container=parse_container(given),
        input=given.get("input", {}),
        needs=tuple(dict.fromkeys([*given.get("needs", ()), *references_of(given)])),
        when=_single(given["when"]) if "when" in given else None,
        for_each=_single(for_each) if isinstance(for_each, str) else for_each,
        limit=given.get("limit"),
        max_items=given.get("max_items", 100),
        retries=Retries(**given.get("retries", {})),
        timeout_seconds=given.get("timeout_seconds"),
        priority=Priority(given["priority"]) if "priority" in given else None,
        continue_on_failure=given.get("continue_on_failure", False),
        description=given.get("description", ""),
    )


def _single(text: str) -> Expression:
    template = parse_template(text)
    assert template is not None
    assert template.single is not None
    return template.single


def references_of(step: Mapping[str, Any]) -> list[str]:
    """Names of the steps that a step's expressions read, in order."""
    found: dict[str, None] = {}
    for member in ("when", "for_each", "input"):
        for _, template in expressions_in(step.get(member)):
            if isinstance(template, Template):
                for expression in template.expressions:
                    for reference in expression.references:
                        path = reference.path
                        if path[0] == "steps" and len(path) > 1 and isinstance(path[1], str):
                            found[path[1]] = None
    return list(found)


def _trigger(given: Mapping[str, Any]) -> TriggerDefinition:
    if "cron" in given:
        kind = TriggerKind.CRON
        spec = {"cron": given["cron"], "timezone": given.get("timezone", "UTC")}
    elif "on_artifact" in given:
        kind, spec = TriggerKind.ARTIFACT, given["on_artifact"]
    else:
        kind, spec = TriggerKind.MODEL_VERSION, given["on_model_version"]
    return TriggerDefinition(
        given["name"], kind, spec, given.get("inputs", {}), given.get("enabled", True)
    )


def canonical(document: Mapping[str, Any]) -> str:
    """A document as JSON text that is the same for the same content."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document's content, hexadecimal."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()
