"""What every image build does before the image is built, wherever that happens."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vyvo_dagster.building.base_image import inspect_base, inspect_cog_image
from vyvo_dagster.building.disk import full_disk_told
from vyvo_dagster.building.recipe import check_python
from vyvo_dagster.building.types import BuildContext, BuildRequest, Phases
from vyvo_dagster.building.wheelhouse import LOCK_NAME, Wheelhouse, prepare_wheelhouse

__all__ = ["ReadyContext", "complete_context"]


@dataclass(frozen=True, slots=True)
class ReadyContext:
    """The recipe's folder is complete. `wheelhouse` is None of an image that is built already."""

    base_digest: str
    python: str
    wheelhouse: Wheelhouse | None

    @property
    def lock_sha256(self) -> str | None:
        """`sha256:<hex>` of the lock."""
        return f"sha256:{self.wheelhouse.lock_sha256}" if self.wheelhouse else None


def complete_context(
    request: BuildRequest,
    context: BuildContext,
    phases: Phases,
    docker_host: str | None,
    env: Mapping[str, str],
) -> ReadyContext:
    """Look at the base image, lock for its Python, and add lock and wheels to the recipe's folder.

    Raises:
        BuildFailed: the base image or the requirements cannot be used.
        Unavailable: the engine does not answer.
    """
    recipe = request.recipe
    if recipe.prebuilt:
        with phases("base"):
            digest = inspect_cog_image(request.base_image, context, docker_host, env)
        return ReadyContext(digest, "", None)
    with phases("base"):
        base = inspect_base(request.base_image, request.build_id, context, docker_host, env)
        check_python(recipe, base.python, request.base_image)
    with phases("lock"):
        wheelhouse = prepare_wheelhouse(recipe.folder, request.sdk_dir, base.target, context)
        with full_disk_told("wheels", recipe.folder):
            _add_wheels(recipe.folder, wheelhouse)
    return ReadyContext(base.digest, base.python, wheelhouse)


def _add_wheels(folder: Path, wheelhouse: Wheelhouse) -> None:
    shutil.copyfile(wheelhouse.lock, folder / LOCK_NAME)
    wheels = folder / "wheelhouse"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    for wheel in wheelhouse.path.glob("*.whl"):
        try:
            os.link(wheel, wheels / wheel.name)
        except OSError:
            shutil.copyfile(wheel, wheels / wheel.name)
