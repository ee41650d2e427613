"""The buildx backend: a runner as an image, built without network and pushed to a registry."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vyvo_dagster.building.bake import build_arguments
from vyvo_dagster.building.caches import file_lock
from vyvo_dagster.building.image_check import image_tag, verified_result
from vyvo_dagster.building.image_context import complete_context
from vyvo_dagster.building.process import Shown, run_logged
from vyvo_dagster.building.progress import RawProgress
from vyvo_dagster.building.pushing import with_retries
from vyvo_dagster.building.types import (
    BuildCanceled,
    BuildContext,
    BuildRequest,
    BuildResult,
    Phases,
)
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed

__all__ = ["BuildxBackend"]

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class BuildxBackend:
    """Builds with the engine's BuildKit, or with one elsewhere.

    Args:
        registry: `host:port` that images are pushed to.
        docker_host: engine; None for Docker's default. It looks at base images and checks runners.
        builder: address of a BuildKit daemon that builds instead, such as `tcp://host:1234`, as
            buildx's driver `remote` takes it. It pulls base images itself, so they must be where it
            can.
    """

    kind = BuildBackend.BUILDX

    def __init__(
        self, registry: str, docker_host: str | None = None, builder: str | None = None
    ) -> None:
        self._registry, self._docker_host, self._builder = registry, docker_host, builder

    def build(self, request: BuildRequest, context: BuildContext) -> BuildResult:
        """Lock, build, push, check; see BuildResult.

        Raises:
            BuildFailed: a step failed. BuildCanceled: someone asked for it.
            RunnerFailed: the image is pushed and its runner does not work.
            Unavailable: engine or registry do not answer.
        """
        phases = Phases()
        env = {"DOCKER_HOST": self._docker_host} if self._docker_host else {}
        ready = complete_context(request, context, phases, self._docker_host, env)
        with phases("build"):
            digest = self._build(request, context, ready.base_digest, env)
        return verified_result(
            self.kind, request, context, ready, phases,
            registry=self._registry, digest=digest, docker_host=self._docker_host,
        )  # fmt: skip

    def _build(
        self, request: BuildRequest, context: BuildContext, base_digest: str, env: Mapping[str, str]
    ) -> str:
        tag = image_tag(self._registry, request)
        arguments = build_arguments(request, context, tag=tag, base_digest=base_digest, env=env)
        builder = _remote_builder(self._builder, context, env) if self._builder else {}
        metadata = context.scratch(request.build_id) / "build.json"
        metadata.unlink(missing_ok=True)
        argv = ["docker", "buildx", "build", "--progress", "rawjson", "--push", "--tag", tag,
                "--metadata-file", str(metadata), *arguments]  # fmt: skip
        told = pushing = False

        def build() -> None:
            nonlocal told, pushing
            progress = RawProgress()

            def on_line(line: str) -> list[Shown]:
                nonlocal told
                shown = progress(line)
                if progress.pushing and not told:
                    told = True
                    context.on_state(BuildState.PUSHING)
                return shown

            try:
                run_logged(argv, step="image", log=context.log, cancel=context.cancel, timeout=context.timeout,
                           cwd=request.recipe.folder, env={**env, **builder}, on_line=on_line)  # fmt: skip
            except BuildCanceled:
                raise
            except BuildFailed as error:
                if progress.failure is None:
                    raise
                raise BuildFailed(f"image: {progress.failure}") from error
            finally:
                pushing = progress.pushing

        with_retries(build, lambda: pushing, attempts=context.push_attempts, log=context.log,
                     cancel=context.cancel)  # fmt: skip
        if not told:
            context.on_state(BuildState.PUSHING)
        return _manifest_digest(metadata)


def _remote_builder(address: str, context: BuildContext, env: Mapping[str, str]) -> dict[str, str]:
    """Make sure that buildx knows the daemon; the environment by which it is taken.

    In a configuration of our own, so that nobody's is changed.
    """
    name = f"vyvo-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    config = context.data_dir.resolve() / "buildx"
    chosen = {"BUILDX_CONFIG": str(config), "BUILDX_BUILDER": name}
    with file_lock(config / ".lock", timeout=60.0, check=context.check_canceled):
        if not (config / "instances" / name).is_file():
            argv = ["docker", "buildx", "create", "--name", name, "--driver", "remote", address]
            run_logged(argv, step="image", log=context.log, cancel=context.cancel, timeout=60.0,
                       env={**env, "BUILDX_CONFIG": str(config)})  # fmt: skip
    return chosen


def _manifest_digest(metadata: Path) -> str:
    try:
        digest = str(json.loads(metadata.read_text())["containerimage.digest"])
    except (OSError, ValueError, KeyError) as error:
        raise BuildFailed("push: buildx reported no manifest digest") from error
    if not _DIGEST.fullmatch(digest):
        raise BuildFailed(f"push: not a manifest digest: {digest[:80]}")
    return digest
