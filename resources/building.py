"""Where and how this host builds runners."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from dagster import ConfigurableResource
from pydantic import Field

from vyvo_dagster.building.backends import Choice, choose
from vyvo_dagster.building.github_api import GitHubTarget
from vyvo_dagster.building.hub import Hub
from vyvo_dagster.building.registry import read_manifest
from vyvo_dagster.building.source import DEFAULT_SOURCE_HOSTS, SourceLimits
from vyvo_dagster.building.types import BuildContext, LockStore, Log
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.domain.build_queue import BuildLimits
from vyvo_dagster.errors import BuildFailed
from vyvo_dagster.security.providers import make_secrets
from vyvo_dagster.settings import Settings

__all__ = ["BuildingResource"]


class BuildingResource(ConfigurableResource[None]):
    """Choice of the backend, and what surrounds a build."""

    data_dir: str = Field(description="Folder of caches, wheelhouses, environments and scratch.")
    registry: str = Field(description="OCI registry that images are pushed to, host:port.")
    base_image: str = Field(description="Base image of builds that name none.")
    cuda_base_image: str | None = Field(
        default=None, description="The same for templates that compute on GPUs; None: base_image."
    )
    source_hosts: list[str] = Field(
        default=list(DEFAULT_SOURCE_HOSTS), description="Hosts of builds' repositories."
    )
    source_max_bytes: int = Field(default=1 << 30, gt=0, description="Largest repository.")
    source_seconds: float = Field(default=600.0, gt=0, description="What fetching one may take.")
    source_ca: str | None = Field(
        default=None, description="PEM file of certificates that those hosts are checked with."
    )
    builder: str | None = Field(
        default=None, description="BuildKit daemon that builds images, such as tcp://host:1234."
    )
    github_repository: str | None = Field(
        default=None, description="owner/name of the repository whose workflow builds images."
    )
    github_workflow: str = Field(default="vyvo-build.yml", description="File of the workflow.")
    github_ref: str = Field(default="main", description="Branch or tag whose workflow is run.")
    github_api: str = Field(default="https://api.github.com", description="URL of GitHub's API.")
    hub_endpoint: str | None = Field(
        default=None, description="Hub of hf:// weights; None is Hugging Face's."
    )
    engine: Literal["auto", "docker", "process"] = Field(
        default="auto", description="Whether builds use a Docker engine."
    )
    docker_host: str | None = Field(
        default=None, description="Docker engine URL; None: Docker's default."
    )
    backend: Literal["auto", "buildx", "github_actions", "venv"] = Field(
        default="auto", description="Backend of builds that leave the choice."
    )
    artifact_ttl_seconds: int = Field(
        default=7 * 86400, gt=0, description="Life of a runner's artifacts."
    )

    host: str = Field(
        default_factory=socket.gethostname, description="Name of the build host that this is."
    )
    builds_per_host: int = Field(default=2, gt=0, description="Builds at work at a time on a host.")
    builds_per_template: dict[str, int] = Field(
        default_factory=dict, description="The same by template; * is for all others."
    )
    build_seconds: float = Field(default=7200.0, gt=0, description="What a build may take in all.")
    push_attempts: int = Field(default=4, gt=0, description="Tries to push an image.")
    keep_days: float = Field(
        default=30.0, ge=0, description="Age at which what nobody refers to is collected."
    )
    keep_count: int = Field(
        default=2, ge=0, description="Newest such images of a model that are kept all the same."
    )

    @classmethod
    def of(cls, settings: Settings) -> "BuildingResource":
        """As the settings say. Secrets are not among it: they are asked for when they are used."""
        return cls(
            data_dir=str(settings.data_dir.resolve()),
            registry=settings.registry,
            base_image=settings.base_image,
            cuda_base_image=settings.cuda_base_image,
            engine=settings.engine,
            docker_host=settings.docker_host,
            backend=settings.build_backend,
            artifact_ttl_seconds=settings.artifact_ttl_seconds,
            host=settings.build_host or socket.gethostname(),
            builds_per_host=settings.builds_per_host,
            builds_per_template=settings.builds_per_template,
            build_seconds=settings.build_seconds,
            push_attempts=settings.push_attempts,
            keep_days=settings.keep_days,
            keep_count=settings.keep_count,
            source_hosts=settings.source_hosts,
            source_max_bytes=settings.source_max_bytes,
            source_seconds=settings.source_seconds,
            source_ca=str(settings.source_ca) if settings.source_ca else None,
            builder=settings.builder,
            hub_endpoint=settings.hub_endpoint,
            github_repository=settings.github_repository,
            github_workflow=settings.github_workflow,
            github_ref=settings.github_ref,
            github_api=settings.github_api,
        )

    @property
    def limits(self) -> BuildLimits:
        """How many builds may be at work."""
        return BuildLimits(self.builds_per_host, self.builds_per_template)

    @property
    def root(self) -> Path:
        """The data folder, absolute."""
        return Path(self.data_dir).resolve()

    @property
    def weights_dir(self) -> Path:
        """Verified local copies of weights, by checksum."""
        return self.root / "weights"

    def scratch(self, build_id: str) -> Path:
        """The folder of one build, made."""
        folder = self.root / "builds" / build_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def source_limits(self) -> SourceLimits:
        """What a repository may cost, and where it may be."""
        return SourceLimits(
            hosts=self.source_hosts, max_bytes=self.source_max_bytes, seconds=self.source_seconds,
            ca=Path(self.source_ca) if self.source_ca else None,
        )  # fmt: skip

    def log_spool(self, build_id: str) -> Path:
        """The file of one build's log on this host; its folder need not be there."""
        return self.root / "builds" / build_id / "log.jsonl"

    def choose(self, asked: BuildBackend) -> Choice:
        """The backend of a build that asks for `asked`; Unavailable where it cannot work here."""
        wanted = BuildBackend(self.backend) if asked is BuildBackend.AUTO else asked
        return choose(
            wanted, registry=self.registry, docker_host=self.docker_host, engine=self.engine,
            builder=self.builder, github=self.github(),
        )  # fmt: skip

    def hub(self) -> Hub:
        """Where hf:// weights come from, and as whom they are asked for.

        Raises:
            Unavailable: the provider of secrets does not answer.
        """
        return Hub(self.hub_endpoint, asyncio.run(make_secrets(Settings()).hugging_face_token()))

    def github(self) -> GitHubTarget | None:
        """The repository whose workflow builds; None where none is set, or no token is.

        Raises:
            Unavailable: the provider of secrets does not answer.
        """
        if self.github_repository is None:
            return None
        token = asyncio.run(make_secrets(Settings()).github_token())
        if token is None:
            return None
        return GitHubTarget(
            self.github_repository, token, workflow=self.github_workflow,
            ref=self.github_ref, api=self.github_api,
        )  # fmt: skip

    def context(
        self,
        log: Log,
        cancel: threading.Event,
        on_state: Callable[[BuildState], None],
        runner_env: dict[str, str],
        locks: LockStore | None = None,
        share: Callable[[Path], AbstractContextManager[str]] | None = None,
        *,
        on_image: Callable[[str, str], None],
    ) -> BuildContext:
        """The surroundings of one build."""
        return BuildContext(
            data_dir=self.root, log=log, cancel=cancel, on_state=on_state,
            runner_env=runner_env, locks=locks, share=share, on_image=on_image,
            push_attempts=self.push_attempts,
        )  # fmt: skip

    def published(self, image: str) -> str:
        """One sentence on where `image` was found.

        An image is looked up in its registry, which hands out its manifest's bytes by digest; an
        environment on this host's disk.

        Raises:
            BuildFailed: it is not there. Unavailable: the registry does not answer.
        """
        if image.startswith("venv://sha256:"):
            folder = self.root / "venvs" / image.removeprefix("venv://sha256:")
            if not (folder / "runner.json").is_file():
                raise BuildFailed(f"push: no environment stands at {folder}")
            return f"the environment stands at {folder}"
        name, _, digest = image.partition("@")
        registry, _, repository = name.partition("/")
        found = read_manifest(registry, repository, digest)
        if found is None:
            return f"{registry} asks for a login that only the engine has; the push reported the digest"
        return f"{registry} holds the manifest {found.digest}"
