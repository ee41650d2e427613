"""What the build service adds to BuildKit: a warm build here against `docker buildx build`, bare.

Both build the same context in the same run: first once each to fill every cache, then by turns. Each
warm build changes one line of the predictor, so that its layer, the schema step and the push are done
anew. Of ours is counted everything up to the verified manifest in the registry: looking at the base
image, the lock, laying out the context, bake, build, push. The health check, which has no counterpart,
is shown beside it. Needs a Docker engine with buildx, a registry and the base image.

    python benchmarks/build_overhead.py [--rounds 5] [--registry 127.0.0.1:5000]
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from runner_images import SDK_DIR, SHARED_DIR, get_template
from vyvo_dagster.building.buildx import BuildxBackend
from vyvo_dagster.building.recipe import TemplateFiles, lay_out
from vyvo_dagster.building.types import BuildContext, BuildRequest, BuildResult

TEMPLATE = "digits-diffusion"
FACTOR, CONSTANT = 1.25, 1.0


class Quiet:
    """A log that nobody reads."""

    def line(self, step: str, text: str, fields: Any = None) -> None:
        """Drop one line."""


def changed(folder: Path, number: int) -> None:
    """Change the predictor, so that its layer is built anew."""
    path = folder / "predict.py"
    path.write_text(f"{path.read_text().split('# round ')[0]}# round {number} {uuid.uuid4()}\n")


def ours(template: Path, data_dir: Path, options: argparse.Namespace) -> BuildResult:
    """One build by the service's backend."""
    build_id = str(uuid.uuid4())
    context = BuildContext(data_dir=data_dir, log=Quiet(), timeout=600.0)
    files = TemplateFiles(template, SHARED_DIR, ">=3.11,<3.14")
    recipe = lay_out(context.scratch(build_id) / "context", files, None, Quiet())
    request = BuildRequest(
        build_id=build_id, recipe=recipe, template_name=TEMPLATE, template_hash="sha256:0",
        model_id="bench/overhead", version="ours", base_image=options.base_image, sdk_dir=SDK_DIR,
    )  # fmt: skip
    try:
        return BuildxBackend(options.registry).build(request, context)
    finally:
        shutil.rmtree(context.scratch(build_id), ignore_errors=True)


def bare(context: Path, options: argparse.Namespace) -> float:
    """Seconds of `docker buildx build` of a context that is laid out already."""
    argv = ["docker", "buildx", "build", "--network", "none", "--provenance", "false", "--push", "--quiet",
            "--build-arg", f"BASE_IMAGE={options.base_image}",
            "--tag", f"{options.registry}/vyvo/bench/overhead:bare", str(context)]  # fmt: skip
    began = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> int:
    """Measure, print, and exit 1 where it is over the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--registry", default="127.0.0.1:5000")
    parser.add_argument("--base-image", default="vyvo/base:bookworm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        template = Path(shutil.copytree(get_template(TEMPLATE).path, root / "template"))
        first = ours(template, root / "data", options)
        # The same context as ours, lock and wheels with it.
        context = lay_out(root / "bare", TemplateFiles(template, SHARED_DIR), None, Quiet()).folder
        assert first.lock is not None
        assert first.wheels is not None
        shutil.copyfile(first.lock, context / "requirements.lock")
        (context / "wheelhouse").mkdir()
        for wheel in first.wheels.glob("*.whl"):
            shutil.copyfile(wheel, context / "wheelhouse" / wheel.name)
        bare(context, options)
        mine: list[float] = []
        checks: list[float] = []
        theirs: list[float] = []
        for number in range(options.rounds):
            changed(template, number)
            began = time.monotonic()
            result = ours(template, root / "data", options)
            checks.append(result.durations["check"])
            mine.append(time.monotonic() - began - checks[-1])
            changed(context / "app", number)
            theirs.append(bare(context, options))
    limit = FACTOR * statistics.median(theirs) + CONSTANT
    mean = statistics.median(mine)
    print(f"{options.rounds} rounds by turns, medians: bare {statistics.median(theirs):.2f} s, "
          f"ours {mean:.2f} s (limit {limit:.2f} s), and its health check {statistics.median(checks):.2f} s; "
          f"the first build took {first.durations['total']:.1f} s")  # fmt: skip
    return 0 if mean <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
