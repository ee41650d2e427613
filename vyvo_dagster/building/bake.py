"""The bake file of a recipe, as arguments of `docker buildx build`.

`docker buildx bake` ignores `network` with Docker Engine 20.10 to 24, so the file is read by
`bake --print` and its one target built by `buildx build --network none`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.recipe import BAKE
from vyvo_dagster.building.types import BuildContext, BuildRequest
from vyvo_dagster.errors import BuildFailed

__all__ = ["build_arguments"]


def build_arguments(
    request: BuildRequest,
    context: BuildContext,
    *,
    tag: str,
    base_digest: str,
    env: Mapping[str, str],
) -> list[str]:
    """What `docker buildx build` is told of the recipe, run from the recipe's folder.

    Without tag, output and progress, which are the caller's. Values are arguments of their own; no
    shell reads them. Equal inputs give equal arguments, so that they give an equal image.

    Raises:
        BuildFailed: the bake file cannot be read, or names what is outside of the recipe.
    """
    staged = request.recipe.folder
    target = _bake_target(staged, tag, request, context, env)
    argv = ["--network", "none", "--provenance", "false",
            "--file", _inside(staged, str(target.get("dockerfile", "Dockerfile")))]  # fmt: skip
    for name, value in {**target.get("args", {}), "BASE_IMAGE": request.base_image}.items():
        argv += ["--build-arg", f"{name}={value}"]
    labels = {
        **target.get("labels", {}),
        **request.labels,
        "org.opencontainers.image.base.digest": base_digest,
        "vyvo.template": request.template_name,
    }
    for name, value in labels.items():
        argv += ["--label", f"{name}={value}"]
    if target.get("target"):
        argv += ["--target", str(target["target"])]
    return [*argv, _inside(staged, str(target.get("context", ".")))]


def _bake_target(
    staged: Path, tag: str, request: BuildRequest, context: BuildContext, env: Mapping[str, str]
) -> dict[str, Any]:
    """The one target of the bake file, its variables filled in from the environment."""
    variables = {
        "BASE_IMAGE": request.base_image,
        "IMAGE": tag,
        "MODEL_ID": request.model_id,
        "MODEL_VERSION": request.version,
        "TEMPLATE": request.template_name,
        "TEMPLATE_HASH": request.template_hash,
        "PREDICTOR": request.recipe.predictor,
        "GPU_DEVICES": "all" if request.recipe.gpu else "void",
    }
    lines: list[str] = []

    def on_line(line: str) -> tuple[str, str] | None:
        # Progress ("#1 ...") goes to stderr, the JSON to stdout; both come here.
        if not line.startswith("#"):
            lines.append(line)
        return None

    run_logged(["docker", "buildx", "bake", "--file", BAKE, "--print"], step="image", log=context.log,
               cancel=context.cancel, timeout=60.0, cwd=staged, env={**env, **variables},
               on_line=on_line)  # fmt: skip
    text = "\n".join(lines)
    try:
        targets = cast("dict[str, dict[str, Any]]", json.loads(text[text.index("{") :])["target"])
    except (ValueError, KeyError) as error:
        raise BuildFailed(f"image: {BAKE} cannot be read: {text[:200]}") from error
    if len(targets) != 1:
        raise BuildFailed(
            f"image: the default group of {BAKE} must have one target, not {len(targets)}"
        )
    return next(iter(targets.values()))


def _inside(staged: Path, relative: str) -> str:
    path = (staged / relative).resolve()
    if not path.is_relative_to(staged.resolve()):
        raise BuildFailed(f"image: {BAKE} names {relative}, which is outside of the template")
    return str(path.relative_to(staged.resolve()))
