"""A fault of a definition, and what the registry must say for one to be found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vyvo_dagster.domain.model import parse_model_id
from vyvo_dagster.domain.workflow.definition import ModelRef, model_ref
from vyvo_dagster.errors import InvalidModelId

__all__ = ["Catalog", "ModelSchemas", "Problem", "model_fault"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. `path` is a JSON path in the document; `step` the step's name, where it is in one."""

    code: str
    path: str
    message: str
    step: str | None = None

    def __str__(self) -> str:
        where = self.path if self.step is None else f"step {self.step}, {self.path}"
        return f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class ModelSchemas:
    """What a model's version takes and makes; None where the registry does not say."""

    input: Mapping[str, Any] | None
    output: Mapping[str, Any] | None


Catalog = Mapping[ModelRef, ModelSchemas | str]
"""What the registry says of each model that a definition names: schemas, or why there are none."""


def model_fault(name: str) -> str | None:
    """Why a name is no model's, None where it may be one."""
    try:
        parse_model_id(model_ref(name).model_id)
    except InvalidModelId as error:
        return error.detail
    return None
