"""What builds look like over REST."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.fields import Body, Text
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.store.records import Build

__all__ = [
    "BuildAccepted",
    "BuildRequest",
    "BuildView",
    "LogSlice",
    "LogView",
    "build_view",
    "masked",
]

# Long enough that a bad value reaches the check that names what is wrong with it.
_Long = Annotated[str, Field(max_length=4096)]


class BuildRequest(Body):
    """A build to make."""

    template: Text = Field(max_length=200, examples=["digits-diffusion"])
    runner_name: str = Field(
        pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$", examples=["digits-runner"]
    )
    model_id: _Long = Field(description="`owner/name`.", examples=["vyvo/digits"])
    version: _Long = Field(examples=["v1"])
    repo: _Long | None = Field(
        None, description="https URL of the git repository with the model's source, at an allowed host.",
        examples=["https://github.com/owner/name"],
    )  # fmt: skip
    ref: _Long | None = Field(
        None, description="Branch, tag or full commit id; unset takes the default branch.",
        examples=["v1.0.2"],
    )  # fmt: skip
    modality: Literal["image", "video", "audio", "text"] | None = Field(
        None, description="What the model makes; unset takes the template's."
    )
    weights_uri: _Long | None = Field(
        None, description="s3://, https:// or hf:// location of the weights.",
        examples=["s3://vyvo-model/weights/sha256/0f3a..."],
    )  # fmt: skip
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment of the runner; no control characters.",
        examples=[{"LOG_LEVEL": "info"}],
    )  # fmt: skip
    backend: BuildBackend | None = Field(
        None, description="How the image is made; unset takes the server's default."
    )
    base_image: _Long | None = Field(None, examples=["vyvo/base:bookworm"])


class BuildAccepted(BaseModel):
    """A build was queued."""

    build_id: UUID
    status: BuildState


class LogView(BaseModel):
    """One line of a build's log. `n` counts from 1; `t` is seconds since the epoch.

    `fields` is what BuildKit says of it besides: the event, bytes of a transfer, colours.
    """

    n: int
    t: float
    step: str
    text: str
    fields: dict[str, Any] | None = None


class LogSlice(BaseModel):
    """Lines after `log_offset`; ask next with `next_offset`. `available` is false while Redis is away."""

    lines: list[LogView]
    next_offset: int
    available: bool = True


class BuildView(BaseModel):
    """A build. Sizes in bytes, durations in seconds by step; values of `env` are not shown."""

    build_id: UUID
    status: BuildState
    model_id: str
    version: str
    version_id: UUID
    runner_name: str
    template: str
    repo: str | None
    ref: str | None
    source_commit: str | None
    weights_uri: str | None
    env: dict[str, str]
    base_image: str | None
    backend: BuildBackend
    backend_used: BuildBackend | None
    tenant: str
    run_id: str | None
    host: str | None = Field(description="The build host that executes it.")
    attempt: int = Field(description="Runs that have taken it, one after another.")
    rebuild_of: UUID | None = Field(description="The version that it builds once more.")
    unchanged: bool = Field(description="It came to the digest that the version has.")
    image: str | None
    image_digest: str | None
    size_bytes: int | None
    base_digest: str | None
    template_hash: str | None
    lock_sha256: str | None
    has_sbom: bool
    log_url: str | None
    log_lines: int | None
    error: str | None
    durations: dict[str, float]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    log: LogSlice | None = None


def masked(env: Mapping[str, str]) -> dict[str, str]:
    """An environment whose values may be secrets, as it is shown."""
    return dict.fromkeys(env, "***")


def build_view(build: Build, log: LogSlice | None = None) -> BuildView:
    """A build's row as it is shown."""
    return BuildView(
        build_id=build.id, status=build.state, model_id=build.model_id, version=build.version,
        version_id=build.version_id, runner_name=build.runner_name, template=build.template,
        repo=build.repo, ref=build.ref, source_commit=build.source_commit, weights_uri=build.weights_uri, env=masked(build.env),
        base_image=build.base_image, backend=build.backend, backend_used=build.backend_used,
        tenant=build.tenant, run_id=build.run_id, host=build.host, attempt=build.attempt,
        rebuild_of=build.rebuild_of, unchanged=build.unchanged, image=build.image,
        image_digest=build.image_digest, size_bytes=build.size_bytes,
        base_digest=build.base_digest, template_hash=build.template_hash,
        lock_sha256=build.lock_sha256, has_sbom=build.sbom_url is not None, log_url=build.log_url, log_lines=build.log_lines,
        error=build.error, durations=dict(build.durations), created_at=build.created_at,
        started_at=build.started_at, finished_at=build.finished_at, log=log,
    )  # fmt: skip
