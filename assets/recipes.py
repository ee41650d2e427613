"""What a build is made of, laid out on disk and, once it is built, written down."""

import hashlib
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from assets.build_run import BuildRun
from resources import BuildingResource
from runner_images import SHARED_DIR, Template
from vyvo_dagster.building.recipe import TemplateFiles, lay_out
from vyvo_dagster.building.sbom import Contents, make_sbom
from vyvo_dagster.building.source import Source, fetch_source
from vyvo_dagster.building.types import BuildContext, BuildResult, Recipe
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.objects import ObjectStore, format_s3_uri

__all__ = ["Made", "base_image_of", "data_version", "laid_out", "store_papers"]

_STEP: Final = "source"


@dataclass(frozen=True, slots=True)
class Made:
    """A recipe, and the source in it."""

    recipe: Recipe
    source: Source | None


@contextmanager
def laid_out(
    run: BuildRun, template: Template, building: BuildingResource, context: BuildContext
) -> Generator[Made]:
    """The build's recipe, for as long as the block runs; the source is fetched for it.

    Raises:
        BuildFailed: the source or the recipe cannot be had.
    """
    scratch = context.scratch(str(run.build.id))
    folder, fetched = scratch / "context", scratch / "source"
    try:
        source = None
        if run.build.repo is not None and template.source == "none":
            run.log.line(_STEP, f"the template {template.name} takes no source; the repo is noted")
        elif run.build.repo is not None:
            limits = building.source_limits()
            source = fetch_source(run.build.repo, run.build.ref, fetched, limits, context)
        files = TemplateFiles(
            path=template.path, shared=SHARED_DIR, requires_python=template.requires_python,
            gpu=template.accelerator == "cuda", cog=template.source == "cog",
            source_requirements=template.source_requirements,
        )  # fmt: skip
        recipe = lay_out(folder, files, source.path if source else None, run.log)
        shutil.rmtree(fetched, ignore_errors=True)
        yield Made(recipe, source)
    finally:
        for left in (folder, fetched):
            shutil.rmtree(left, ignore_errors=True)


def base_image_of(run: BuildRun, template: Template, building: BuildingResource) -> str:
    """The base image: the build's, the template's, the platform's for GPUs or for all."""
    of_gpu = building.cuda_base_image if template.accelerator == "cuda" else None
    return run.build.base_image or template.base_image or of_gpu or building.base_image


def data_version(template: Template, made: Made, result: BuildResult) -> str:
    """Equal for builds of equal inputs: template, source, base image, lock, Python."""
    parts = [
        template.hash,
        made.source.commit if made.source else "",
        result.base_digest or "",
        result.lock_sha256 or "",
        result.python,
        result.backend,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def store_papers(
    run: BuildRun, template: Template, made: Made, result: BuildResult, base_image: str, s3: ObjectStore
) -> dict[str, Any]:  # fmt: skip
    """Put the lock and the bill of materials into S3; the columns of the build's row."""
    bucket = s3.bucket(Modality.MODEL)
    contents = Contents(
        model_id=run.build.model_id, version=run.build.version, image=result.image,
        digest=result.digest, wheels=result.wheels, base_image=base_image,
        base_digest=result.base_digest, repo=made.source.repo if made.source else None,
        commit=made.source.commit if made.source else None, template=template.name,
        template_hash=template.hash,
    )  # fmt: skip
    key = f"builds/{run.build.id}/sbom.cdx.json"
    sbom = make_sbom(contents, datetime.now(UTC))
    s3.put_bytes(bucket, key, sbom, "application/vnd.cyclonedx+json")
    return {
        "source_commit": contents.commit,
        "lock_sha256": result.lock_sha256,
        "lock_url": _store_lock(run, result.lock, s3, bucket),
        "sbom_url": format_s3_uri(bucket, key),
        "base_digest": result.base_digest,
        "template_hash": template.hash,
    }


def _store_lock(run: BuildRun, lock: Path | None, s3: ObjectStore, bucket: str) -> str | None:
    if lock is None:
        return None
    key = f"builds/{run.build.id}/requirements.lock"
    s3.put_file(bucket, key, lock, "text/plain")
    return format_s3_uri(bucket, key)
