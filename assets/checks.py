"""What is asserted of every built runner; the results stand beside the image in the Dagster UI."""

from typing import Final

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec

from runner_images import Template, check_template
from vyvo_dagster.building.types import BuildResult
from vyvo_dagster.execution.names import RUNNER_IMAGE

__all__ = ["CHECKS", "health_check", "published_check", "uploads_check"]

_DIGEST: Final = "runner_image_digest_in_registry"
_HEALTH: Final = "runner_image_answers_health_check"
_UPLOADS: Final = "runner_uploads_by_helper"

CHECKS: Final = [
    AssetCheckSpec(
        _DIGEST,
        asset=RUNNER_IMAGE,
        description="The digest in the model registry is the one that the OCI registry (or, for an "
        "environment, the build host's disk) holds.",
    ),
    AssetCheckSpec(
        _HEALTH,
        asset=RUNNER_IMAGE,
        description="The image was pulled and started, and its runner answered the health check.",
    ),
    AssetCheckSpec(
        _UPLOADS,
        asset=RUNNER_IMAGE,
        description="The template's predictor returns its outputs by vyvo_runner.upload.",
    ),
]


def published_check(where: str) -> AssetCheckResult:
    """The image was found; `where` says where."""
    return AssetCheckResult(check_name=_DIGEST, passed=True, metadata={"found": where})


def health_check(result: BuildResult | None, why: str = "") -> AssetCheckResult:
    """The backend's own check of the runner: its result, or why there is none."""
    if result is None:
        return AssetCheckResult(check_name=_HEALTH, passed=False, description=why)
    seconds = result.durations.get("check", 0.0)
    return AssetCheckResult(check_name=_HEALTH, passed=True, metadata={"seconds": seconds})


def uploads_check(template: Template) -> AssetCheckResult:
    """Problems of the template, each a sentence; they do not stop a build."""
    problems = check_template(template.path)
    return AssetCheckResult(
        check_name=_UPLOADS,
        passed=not problems,
        severity=AssetCheckSeverity.WARN,
        metadata={"problems": problems},
    )
