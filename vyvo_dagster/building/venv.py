"""The venv backend: a runner as an isolated environment on disk, for hosts without an engine.

`<venv root>/<hex>/` holds

- `venv/`: the environment, relocatable, installed from the wheelhouse with hashes and no network;
- `app/`: the recipe's app and `.cog/openapi_schema.json`;
- `runner.json`: `{"command": [...], "cwd": "app", "env": {...}}`. `command[0]` and `cwd` are
  relative to the folder; who runs it puts `venv/bin` first on PATH and the port into PORT.

`<hex>` is the SHA-256 of what goes in: lock, app files, interpreter. The same inputs are the same
runner, so a second build of them installs nothing. The build's `env` and the weights are not part
of it: they belong to the model version and are given when it runs.
"""

import hashlib
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from vyvo_dagster.building.caches import cached_folder, tree_hash, tree_size
from vyvo_dagster.building.disk import full_disk_told
from vyvo_dagster.building.gpu import setup_can_run
from vyvo_dagster.building.health import check_runner, runner_environment
from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.process_check import run_process
from vyvo_dagster.building.recipe import APP, check_python
from vyvo_dagster.building.types import BuildContext, BuildRequest, BuildResult, Phases
from vyvo_dagster.building.wheelhouse import Wheelhouse, host_target, prepare_wheelhouse, uv_command
from vyvo_dagster.domain.build import BuildBackend
from vyvo_dagster.errors import BuildFailed

__all__ = ["VenvBackend"]

_FORMAT: Final = 2


class VenvBackend:
    """Builds environments under `root`.

    Args:
        root: where they stand; None for `<data_dir>/venvs` of the build's context.
    """

    kind = BuildBackend.VENV

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    def build(self, request: BuildRequest, context: BuildContext) -> BuildResult:
        """Lock, install, write the schema, check; see BuildResult.

        Raises:
            BuildFailed: a step failed. BuildCanceled: someone asked for it.
            RunnerFailed: the environment stands and its runner does not work.
        """
        phases = Phases()
        recipe, target = request.recipe, host_target()
        if recipe.prebuilt:
            raise BuildFailed(
                "venv: a Cog image needs a container engine; an environment cannot run it"
            )
        if recipe.foreign:
            raise BuildFailed(
                "venv: a repository's code is run inside an image only; name the backend buildx"
            )
        check_python(recipe, platform.python_version(), "this build host")
        with phases("lock"):
            wheelhouse = prepare_wheelhouse(recipe.folder, request.sdk_dir, target, context)
        digest = _digest(request, wheelhouse)
        root = (self._root or context.data_dir / "venvs").resolve()
        folder = root / digest
        with phases("build"):
            if folder.is_dir():
                context.log.line("venv", f"the environment sha256:{digest} exists already")
            with full_disk_told("venv", root):
                cached_folder(
                    folder, lambda out: _install(out, request, wheelhouse, context), context
                )
        context.on_image(f"venv://sha256:{digest}", f"sha256:{digest}")
        weights = str(request.weights_path.resolve()) if request.weights_path else None
        with phases("check"):
            context.log.line("check", "starting the runner as a process")
            env = runner_environment(request, context, weights)
            with run_process(
                folder, env, context.scratch(request.build_id) / "check.log"
            ) as runner:
                schemas = check_runner(runner, context, setup=setup_can_run(request, context))
        return BuildResult(
            backend=self.kind,
            image=f"venv://sha256:{digest}",
            digest=f"sha256:{digest}",
            size_bytes=tree_size(folder),
            lock_sha256=f"sha256:{wheelhouse.lock_sha256}",
            lock=wheelhouse.lock,
            wheels=wheelhouse.path,
            base_digest=None,
            python=platform.python_version(),
            durations=phases.durations(),
            input_schema=schemas.input,
            output_schema=schemas.output,
        )


def _digest(request: BuildRequest, wheelhouse: Wheelhouse) -> str:
    parts = [
        str(_FORMAT),
        wheelhouse.lock_sha256,
        tree_hash(request.recipe.folder / APP),
        request.recipe.predictor,
        f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _install(
    out: Path, request: BuildRequest, wheelhouse: Wheelhouse, context: BuildContext
) -> None:
    venv, app = out / "venv", out / "app"
    python = venv / "bin" / "python"
    uv = uv_command()
    # Relocatable, because the folder is filled under another name than it ends up with.
    _run(
        [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(venv)],
        "venv",
        context,
    )
    _run(
        [uv, "pip", "install", "--offline", "--no-index", "--no-deps", "--require-hashes",
         "--find-links", str(wheelhouse.path), "--python", str(python), "-r", str(wheelhouse.lock)],
        "venv",
        context,
    )  # fmt: skip
    shutil.copytree(request.recipe.folder / APP, app, symlinks=True)
    env = {"COG_PREDICT_TYPE_STUB": request.recipe.predictor}
    _run([str(python), "-m", "vyvo_runner.schema"], "schema", context, cwd=app, env=env)
    if not (app / ".cog" / "openapi_schema.json").is_file():
        raise BuildFailed("schema: python -m vyvo_runner.schema wrote no .cog/openapi_schema.json")
    command = ["venv/bin/python", "-m", "cog.server.http", "--host", "127.0.0.1"]
    spec = {"command": command, "cwd": "app", "env": env}
    (out / "runner.json").write_text(json.dumps(spec, indent=2) + "\n")


def _run(
    argv: list[str],
    step: str,
    context: BuildContext,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> None:
    run_logged(
        argv,
        step=step,
        log=context.log,
        cancel=context.cancel,
        timeout=context.timeout,
        cwd=cwd,
        env={"VIRTUAL_ENV": "", "NO_COLOR": "1", "UV_NO_PROGRESS": "1", **(env or {})},
    )
