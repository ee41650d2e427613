"""Where and how this host builds runners."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dagster import ConfigurableResource
from pydantic import Field

from vyvo_dagster.building.backends import Choice, choose
from vyvo_dagster.building.registry import read_manifest
from vyvo_dagster.building.types import BuildContext, Log
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed

__all__ = ["BuildingResource"]


class BuildingResource(ConfigurableResource[None]):
    """Choice of the backend, and what surrounds a build."""

    data_dir: str = Field(description="Folder of caches, wheelhouses, environments and scratch.")
    registry: str = Field(description="OCI registry that images are pushed to, host:port.")
    base_image: str = Field(description="Base image of builds that name none.")
    engine: Literal["auto", "docker", "process"] = Field(
        default="auto", description="Whether builds use a Docker engine."
    )
    docker_host: str | None = Field(
        default=None, description="Docker engine URL; None: Docker's default."
    )
    backend: Literal["auto", "buildx", "venv"] = Field(
        default="auto", description="Backend of builds that leave the choice."
    )
    artifact_ttl_seconds: int = Field(
        default=7 * 86400, gt=0, description="Life of a runner's artifacts."
    )

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

    def choose(self, asked: BuildBackend) -> Choice:
        """The backend of a build that asks for `asked`; Unavailable where it cannot work here."""
        wanted = BuildBackend(self.backend) if asked is BuildBackend.AUTO else asked
        return choose(
            wanted, registry=self.registry, docker_host=self.docker_host, engine=self.engine
        )

    def context(
        self,
        log: Log,
        cancel: threading.Event,
        on_state: Callable[[BuildState], None],
        runner_env: dict[str, str],
        upload_lock: Callable[[Path], str],
    ) -> BuildContext:
        """The surroundings of one build."""
        return BuildContext(
            data_dir=self.root, log=log, cancel=cancel, on_state=on_state,
            runner_env=runner_env, upload_lock=upload_lock,
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
