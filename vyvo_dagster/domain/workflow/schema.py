"""The JSON Schema (2020-12) of a workflow definition. It is what is published and what is enforced."""

from collections.abc import Mapping
from typing import Any, Final

from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow.container import CONTAINER_SCHEMA, RUN_ON_SCHEMA
from vyvo_dagster.domain.workflow.operations import OPERATIONS

__all__ = ["DEFINITION_SCHEMA", "IDENTIFIER", "MAX_STEPS", "WORKFLOW_NAME"]

WORKFLOW_NAME: Final = r"^[a-z][a-z0-9_-]{0,62}$"
IDENTIFIER: Final = r"^[a-z][a-z0-9_]{0,62}$"
MAX_STEPS: Final = 200

_MODEL: Final = r"^[A-Za-z0-9._-]{1,64}/[A-Za-z0-9._-]{1,64}(@[A-Za-z0-9_][A-Za-z0-9._+-]{0,63})?$"
_EXPRESSION: Final = "One expression, `${{ ... }}`."


def _seconds(least: int, most: int, description: str) -> Mapping[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most, "description": description}


_RETRIES: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "How often a failed step is tried, and how long it waits between.",
    "properties": {
        "attempts": {
            "type": "integer", "minimum": 1, "maximum": 10, "default": 1,
            "description": "Attempts in all, the first included.",
        },
        "backoff_seconds": _seconds(0, 3600, "Wait after the first failure. Default 1."),
        "backoff_factor": {
            "type": "number", "minimum": 1, "maximum": 10, "default": 2,
            "description": "What each further wait is multiplied by.",
        },
        "max_backoff_seconds": _seconds(0, 3600, "The longest wait. Default 60."),
    },
    "required": ["attempts"],
    "additionalProperties": False,
}  # fmt: skip

_STEP: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {
            "type": "string", "pattern": IDENTIFIER,
            "description": "Unique in the workflow; expressions read `steps.<name>`.",
        },
        "description": {"type": "string", "maxLength": 1000},
        "model": {
            "type": "string", "pattern": _MODEL, "maxLength": 200,
            "description": "`owner/name`, `owner/name@version` or `owner/name@latest`.",
        },
        "operation": {
            "enum": list(OPERATIONS),
            "description": "A built-in operation, instead of a model.",
        },
        "container": CONTAINER_SCHEMA,
        "run_on": RUN_ON_SCHEMA,
        "input": {
            "type": "object", "default": {},
            "description": "What it takes. Strings may hold `${{ ... }}`.",
        },
        "needs": {
            "type": "array", "items": {"type": "string"}, "maxItems": MAX_STEPS,
            "description": "Steps to wait for, beside those that the expressions name.",
        },
        "when": {
            "type": "string",
            "description": f"{_EXPRESSION} The step is skipped where it is false.",
        },
        "for_each": {
            "type": ["string", "array"], "maxItems": 1000,
            "description": "A list, or one expression that is a list: a mapped step for each "
            "`item`, at `index`. Its output is the list of theirs, in order.",
        },
        "limit": {
            "type": "integer", "minimum": 1, "maximum": 1000,
            "description": "Mapped steps at a time; without it all.",
        },
        "max_items": {
            "type": "integer", "minimum": 1, "maximum": 1000, "default": 100,
            "description": "More items than that fail the step.",
        },
        "retries": _RETRIES,
        "timeout_seconds": {
            "type": "integer", "minimum": 1, "maximum": 7 * 86400,
            "description": "Of one attempt's run; waiting in the queue does not count.",
        },
        "priority": {"enum": [str(p) for p in Priority]},
        "continue_on_failure": {
            "type": "boolean", "default": False,
            "description": "What needs the step goes on when it has failed; its output is null.",
        },
    },
    "required": ["name"],
    "additionalProperties": False,
}  # fmt: skip

_TRIGGER: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": IDENTIFIER, "description": "Unique among triggers."},
        "cron": {
            "type": "string", "maxLength": 100,
            "description": "Five fields: minute, hour, day of month, month, day of week.",
        },
        "timezone": {
            "type": "string", "maxLength": 64, "default": "UTC",
            "description": "IANA name, of cron.",
        },
        "on_artifact": {
            "type": "object",
            "description": "Every new artifact that fits; none that the workflow itself made.",
            "properties": {
                "type": {"type": "string", "maxLength": 64, "description": "Such as image."},
                "model": {"type": "string", "maxLength": 200, "description": "`owner/name`."},
            },
            "additionalProperties": False,
        },
        "on_model_version": {
            "type": "object",
            "description": "Every version that becomes ready or active.",
            "properties": {
                "model": {"type": "string", "maxLength": 200, "description": "`owner/name`."}
            },
            "additionalProperties": False,
        },
        "inputs": {
            "type": "object",
            "description": "Of the run; expressions may read `event`.",
        },
        "enabled": {"type": "boolean", "default": True},
    },
    "required": ["name"],
    "additionalProperties": False,
}  # fmt: skip

DEFINITION_SCHEMA: Final[Mapping[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "urn:vyvo:workflow-definition:1",
    "title": "vyvo workflow definition",
    "type": "object",
    "properties": {
        "$schema": {"type": "string"},
        "name": {"type": "string", "pattern": WORKFLOW_NAME},
        "description": {"type": "string", "maxLength": 2000},
        "inputs": {
            "type": "object",
            "maxProperties": 100,
            "description": "JSON Schema of each input; one without `default` must be given.",
            "additionalProperties": {"type": "object"},
        },
        "steps": {"type": "array", "items": _STEP, "minItems": 1, "maxItems": MAX_STEPS},
        "outputs": {
            "type": "object",
            "maxProperties": 100,
            "description": "What a run gives back; expressions may read `inputs` and `steps`.",
        },
        "triggers": {"type": "array", "items": _TRIGGER, "maxItems": 20},
        "priority": {
            "enum": [str(p) for p in Priority],
            "default": str(Priority.STANDARD),
            "description": "Of steps that have none.",
        },
        "timeout_seconds": {
            "type": "integer",
            "minimum": 1,
            "maximum": 30 * 86400,
            "description": "Of a whole run, from its start.",
        },
    },
    "required": ["name", "steps"],
    "additionalProperties": False,
}
