"""The buildx backend: a runner as an image, built without network and pushed to a registry."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from vyvo_dagster.building.base_image import BaseImage, inspect_base
from vyvo_dagster.building.caches import NOT_SOURCE
from vyvo_dagster.building.container_check import engine_client, run_container
from vyvo_dagster.building.gpu import setup_can_run
from vyvo_dagster.building.health import check_runner, runner_environment
from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.progress import PlainProgress
from vyvo_dagster.building.registry import read_manifest
from vyvo_dagster.building.schema import Schemas
from vyvo_dagster.building.types import BuildContext, BuildRequest, BuildResult, Phases
from vyvo_dagster.building.wheelhouse import LOCK_NAME, Wheelhouse, prepare_wheelhouse
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed

__all__ = ["BuildxBackend", "repository_of"]

_BAKE: Final = "docker-bake.hcl"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def repository_of(model_id: str) -> str:
    """Repository of a model's runner images inside the registry: `vyvo/owner/name`, lowered."""
    return f"vyvo/{model_id.lower()}"


class BuildxBackend:
    """Builds with the engine's BuildKit.

    `docker buildx bake` ignores `network` with Docker Engine 20.10 to 24, so the bake file is
    read by `bake --print` and its target built by `buildx build --network none`.

    Args:
        registry: `host:port` that images are pushed to.
        docker_host: engine; None for Docker's default.
    """

    kind = BuildBackend.BUILDX

    def __init__(self, registry: str, docker_host: str | None = None) -> None:
        self._registry, self._docker_host = registry, docker_host

    def build(self, request: BuildRequest, context: BuildContext) -> BuildResult:
        """Lock, stage, build, push, check; see BuildResult.

        Raises:
            BuildFailed: a step failed. BuildCanceled: someone asked for it.
            RunnerFailed: the image is pushed and its runner does not work.
            Unavailable: engine or registry do not answer.
        """
        phases = Phases()
        env = {"DOCKER_HOST": self._docker_host} if self._docker_host else {}
        with phases("base"):
            base = inspect_base(
                request.base_image, request.build_id, context, self._docker_host, env
            )
        with phases("lock"):
            wheelhouse = prepare_wheelhouse(
                request.template_dir, request.sdk_dir, base.target, context
            )
        repository = repository_of(request.model_id)
        staged = context.scratch(request.build_id) / "context"
        try:
            with phases("build"):
                _stage(staged, request, wheelhouse)
                tag = f"{self._registry}/{repository}:{request.version.replace('+', '_')}"
                digest = self._build(staged, request, context, tag=tag, base=base, env=env)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        image = f"{self._registry}/{repository}@{digest}"
        manifest = read_manifest(self._registry, repository, digest)
        size = manifest.size_bytes if manifest else self._local_size(image)
        context.log.line("push", f"{image}, {size / 1e6:.1f} MB in the registry")
        with phases("check"):
            schemas = self._check(image, request, context)
        return BuildResult(
            backend=self.kind,
            image=image,
            digest=digest,
            size_bytes=size,
            lock_sha256=f"sha256:{wheelhouse.lock_sha256}",
            lock_url=context.upload_lock(wheelhouse.lock) if context.upload_lock else None,
            base_digest=base.digest,
            python=base.python,
            durations=phases.durations(),
            input_schema=schemas.input,
            output_schema=schemas.output,
        )

    def _build(
        self,
        staged: Path,
        request: BuildRequest,
        context: BuildContext,
        *,
        tag: str,
        base: BaseImage,
        env: Mapping[str, str],
    ) -> str:
        target = _bake_target(staged, tag, request, context, env)
        metadata = context.scratch(request.build_id) / "build.json"
        metadata.unlink(missing_ok=True)
        argv = ["docker", "buildx", "build", "--network", "none", "--progress", "plain",
                "--provenance", "false", "--push", "--metadata-file", str(metadata),
                "--file", str(_inside(staged, target.get("dockerfile", "Dockerfile"))), "--tag", tag]  # fmt: skip
        for name, value in {**target.get("args", {}), "BASE_IMAGE": request.base_image}.items():
            argv += ["--build-arg", f"{name}={value}"]
        labels = {
            **target.get("labels", {}),
            **request.labels,
            "org.opencontainers.image.base.digest": base.digest,
            "vyvo.build": request.build_id,
            "vyvo.template": request.template_name,
        }
        for name, value in labels.items():
            argv += ["--label", f"{name}={value}"]
        if target.get("target"):
            argv += ["--target", target["target"]]
        argv.append(str(_inside(staged, target.get("context", "."))))
        progress = PlainProgress()
        told = False

        def on_line(line: str) -> tuple[str, str] | None:
            nonlocal told
            shown = progress(line)
            if progress.pushing and not told:
                told = True
                context.on_state(BuildState.PUSHING)
            return shown

        run_logged(argv, step="image", log=context.log, cancel=context.cancel, timeout=context.timeout,
                   env=env, on_line=on_line)  # fmt: skip
        if not told:
            context.on_state(BuildState.PUSHING)
        return _manifest_digest(metadata)

    def _check(self, image: str, request: BuildRequest, context: BuildContext) -> Schemas:
        context.log.line("check", "starting the runner in a container")
        # VYVO_WEIGHTS is set by run_container, which knows where they are mounted.
        env = runner_environment(request, context, None)
        client = engine_client(self._docker_host)
        try:
            with run_container(
                client, image, request.build_id, env, request.weights_path
            ) as runner:
                return check_runner(runner, context, setup=setup_can_run(request, context))
        finally:
            client.close()

    def _local_size(self, image: str) -> int:
        client = engine_client(self._docker_host)
        try:
            return int(cast("Any", client.images).get(image).attrs["Size"])
        finally:
            client.close()


def _stage(staged: Path, request: BuildRequest, wheelhouse: Wheelhouse) -> None:
    """Lay out the build context: the template's files, the lock, the wheels."""
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(request.template_dir, staged, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    shutil.copyfile(wheelhouse.lock, staged / LOCK_NAME)
    wheels = staged / "wheelhouse"
    wheels.mkdir()
    for wheel in wheelhouse.path.glob("*.whl"):
        try:
            os.link(wheel, wheels / wheel.name)
        except OSError:
            shutil.copyfile(wheel, wheels / wheel.name)


def _bake_target(
    staged: Path, tag: str, request: BuildRequest, context: BuildContext, env: Mapping[str, str]
) -> dict[str, Any]:
    """The one target of the template's bake file, its variables filled in from the environment."""
    if not (staged / _BAKE).is_file():
        raise BuildFailed(f"image: the template has no {_BAKE}")
    variables = {
        "BASE_IMAGE": request.base_image,
        "IMAGE": tag,
        "MODEL_ID": request.model_id,
        "MODEL_VERSION": request.version,
        "BUILD_ID": request.build_id,
        "TEMPLATE_HASH": request.template_hash,
    }
    lines: list[str] = []

    def on_line(line: str) -> tuple[str, str] | None:
        # Progress ("#1 ...") goes to stderr, the JSON to stdout; both come here.
        if line.startswith("#"):
            return None
        lines.append(line)
        return None

    run_logged(["docker", "buildx", "bake", "--file", _BAKE, "--print"], step="image", log=context.log,
               cancel=context.cancel, timeout=60.0, cwd=staged, env={**env, **variables},
               on_line=on_line)  # fmt: skip
    text = "\n".join(lines)
    try:
        targets = cast("dict[str, dict[str, Any]]", json.loads(text[text.index("{") :])["target"])
    except (ValueError, KeyError) as error:
        raise BuildFailed(f"image: {_BAKE} cannot be read: {text[:200]}") from error
    if len(targets) != 1:
        raise BuildFailed(
            f"image: the default group of {_BAKE} must have one target, not {len(targets)}"
        )
    return next(iter(targets.values()))


def _inside(staged: Path, relative: str) -> Path:
    path = (staged / relative).resolve()
    if not path.is_relative_to(staged.resolve()):
        raise BuildFailed(f"image: {_BAKE} names {relative}, which is outside of the template")
    return path


def _manifest_digest(metadata: Path) -> str:
    try:
        digest = str(json.loads(metadata.read_text())["containerimage.digest"])
    except (OSError, ValueError, KeyError) as error:
        raise BuildFailed("push: buildx reported no manifest digest") from error
    if not _DIGEST.fullmatch(digest):
        raise BuildFailed(f"push: not a manifest digest: {digest[:80]}")
    return digest
