"""Settings of builds: sources, backends, the queue, what is kept. A part of `settings.Settings`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

__all__ = ["BuildSettings"]


class BuildSettings(BaseSettings):
    """How runners are built, where, and how many at a time."""

    cuda_base_image: str | None = Field(
        default=None, description="The same for templates that compute on GPUs; unset: base_image."
    )
    source_hosts: list[str] = Field(
        default=["github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "huggingface.co"],
        description="Hosts (host or host:port) of builds' repositories; * allows all public ones.",
    )
    source_max_bytes: int = Field(
        default=1 << 30, gt=0, description="Largest repository, as fetched and as files."
    )
    source_seconds: float = Field(default=600.0, gt=0, description="What fetching one may take.")
    source_ca: Path | None = Field(
        default=None, description="PEM certificates that those hosts are checked with."
    )

    builder: str | None = Field(
        default=None,
        description="BuildKit daemon that builds images instead of the engine, tcp://host:1234.",
    )
    hub_endpoint: str | None = Field(
        default=None, description="Hub of hf:// weights; unset is Hugging Face's."
    )
    github_repository: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$",
        description="owner/name whose workflow builds images for github_actions.",
    )  # fmt: skip
    github_token: SecretStr | None = Field(default=None, description="Token that may run it.")
    github_workflow: str = Field(default="vyvo-build.yml", description="File of that workflow.")
    github_ref: str = Field(default="main", description="Branch or tag whose workflow is run.")
    github_api: str = Field(default="https://api.github.com", description="URL of GitHub's API.")

    builds_per_host: int = Field(
        default=2, ge=1, le=1024, description="Builds at work at a time on one build host."
    )
    builds_per_template: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="Template to builds at work at a time, as a JSON object; * is for all others.",
    )
    build_host: str | None = Field(
        default=None, description="Name of this build host; unset takes the machine's."
    )
    build_seconds: float = Field(
        default=7200.0, gt=0, description="What a build may take in all, its waiting not counted."
    )
    push_attempts: int = Field(
        default=4, ge=1, le=20, description="Tries to push an image, with pauses that double."
    )
    keep_days: float = Field(
        default=30.0, ge=0, description="Age at which what nobody refers to is collected."
    )
    keep_count: int = Field(
        default=2, ge=0, description="Newest such images of each model that are kept all the same."
    )
