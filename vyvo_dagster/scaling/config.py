"""What a pool says to its scaler, checked when it is written."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["LocalConfig", "ScalerConfig", "TerraformConfig", "WebhookConfig"]

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
RESERVED = frozenset({"pool", "size", "node_names"})


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"is not {what}")
        return value

    return AfterValidator(check)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds a character that is not printable")
    return value


def _not_reserved(value: dict[str, Any]) -> dict[str, Any]:
    if taken := RESERVED & value.keys():
        raise ValueError(f"{', '.join(sorted(taken))} are set by the scaler")
    return value


Label = Annotated[str, _matching(_LABEL, "a label: letters, digits and . _ / -")]
LabelValue = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
ResourceType = Annotated[str, _matching(_TYPE, "a resource type such as aws_instance")]
Variable = Annotated[str, _matching(_VARIABLE, "a variable's name")]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LocalConfig(_Config):
    """Agents on the machine of the api, as processes of its own user."""

    kind: Literal["local"]
    labels: dict[Label, LabelValue] = Field(default_factory=dict, max_length=32)
    slots: int = Field(1, ge=1, le=4096, description="Predictions at a time for each version.")


class TerraformConfig(_Config):
    """A module in a folder below `VYVO_TERRAFORM_MODULES`, which takes `pool`, `size`, `node_names`."""

    kind: Literal["terraform"]
    module: Annotated[str, _matching(_MODULE, "a folder's name")] = Field(
        description="Folder of the module; no other pool may use it."
    )
    node_type: ResourceType = Field(
        description="Resource type of which each node has one.", examples=["aws_instance"]
    )
    attached_types: list[ResourceType] = Field(
        default_factory=list, max_length=32,
        description="Types of which each node may have one too, such as aws_eip.",
    )  # fmt: skip
    variables: Annotated[dict[Variable, Any], AfterValidator(_not_reserved)] = Field(
        default_factory=dict, max_length=64, description="Written beside them. Not for secrets."
    )


class WebhookConfig(_Config):
    """A signed POST to `VYVO_SCALER_WEBHOOK_URL`."""

    kind: Literal["webhook"]


ScalerConfig = Annotated[LocalConfig | TerraformConfig | WebhookConfig, Field(discriminator="kind")]
