"""What models and versions look like over REST."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.builds.schemas import masked
from api.fields import Body, Text
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.store.records import Model, ModelVersion

__all__ = [
    "ModelCreate",
    "ModelUpdate",
    "ModelView",
    "Promotion",
    "ResourcesBody",
    "VersionPut",
    "VersionUpdate",
    "VersionView",
    "model_view",
    "version_view",
]


class ModelCreate(Body):
    """A model to register."""

    model_id: str = Field(max_length=4096, examples=["vyvo/digits"])
    description: Text = Field("", max_length=4000)


class ModelUpdate(Body):
    """What may change of a model."""

    description: Text = Field(max_length=4000)


class ModelView(BaseModel):
    """A model."""

    model_id: str
    tenant: str
    description: str
    created_at: datetime


class ResourcesBody(Body):
    """What one loaded copy takes, in bytes, and how long one prediction may."""

    gpu_memory_bytes: int = Field(0, ge=0, le=1 << 50)
    memory_bytes: int = Field(0, ge=0, le=1 << 50)
    timeout_seconds: int = Field(
        0, ge=0, le=7 * 86400,
        description="Longest prediction of a job that does not say its own; 0 is 3,600.",
    )  # fmt: skip


class VersionPut(Body):
    """A version whose image was built elsewhere, such as any Cog image."""

    modality: Literal[Modality.IMAGE, Modality.VIDEO, Modality.AUDIO, Modality.TEXT]
    runner_image: str | None = Field(
        None, max_length=512,
        pattern=r"^(venv://sha256:[0-9a-f]{64}|noop://[a-z0-9][a-z0-9-]{0,62}|"
        r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64})$",
        description="Reference with its digest; a version with one is ready, without one a draft. "
        "`noop://<name>` answers its input, on nodes that allow it: for load tests.",
        examples=["127.0.0.1:5000/vyvo/digits@sha256:" + "0" * 64],
    )  # fmt: skip
    template: Text = Field("external", max_length=63)
    weights_url: str | None = Field(
        None, max_length=2048,
        description="Location of weights that are in the platform's store, named by their checksum.",
        examples=["s3://vyvo-model/weights/sha256/" + "0" * 64],
    )  # fmt: skip
    env: dict[str, str] = Field(default_factory=dict)
    resources: ResourcesBody = Field(
        default_factory=lambda: ResourcesBody(gpu_memory_bytes=0, memory_bytes=0, timeout_seconds=0)
    )
    input_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema 2020-12 of the input."
    )
    output_schema: dict[str, Any] | None = None


class VersionUpdate(Body):
    """What may change of a version: `resources` and `env` of a draft, any version's retirement."""

    state: Literal[VersionState.RETIRED] | None = Field(None, description="Retire the version.")
    env: dict[str, str] | None = None
    resources: ResourcesBody | None = None


class Promotion(Body):
    """Which version new jobs get."""

    version: str = Field(max_length=4096, examples=["v2"])


class VersionView(BaseModel):
    """A version of a model. Sizes in bytes; values of `env` are not shown."""

    id: UUID
    model_id: str
    version: str
    state: VersionState
    template: str
    modality: Modality
    runner_image: str | None
    image_digest: str | None
    weights_uri: str | None
    weights_url: str | None
    weights_sha256: str | None
    weights_size_bytes: int | None
    env: dict[str, str]
    resources: dict[str, int]
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    build_id: UUID | None
    collected_at: datetime | None = Field(description="When its image was removed, if it was.")
    created_at: datetime
    updated_at: datetime


def model_view(model: Model) -> ModelView:
    """A model's row as it is shown."""
    return ModelView.model_validate(model, from_attributes=True)


def version_view(version: ModelVersion) -> VersionView:
    """A version's row as it is shown."""
    names = (n for n in VersionView.model_fields if n != "env")
    return VersionView(**{n: getattr(version, n) for n in names}, env=masked(version.env))
