"""Artifacts are found wherever a runner puts them in its output."""

import pytest

from vyvo_dagster.domain.artifact import artifacts_in, is_output
from vyvo_dagster.domain.model import Modality

ONE = {
    "type": "image",
    "url": "s3://vyvo-image/a.png",
    "size_bytes": 3,
    "mime_type": "image/png",
    "expires_at": None,
}


def test_artifacts_at_any_depth_in_order() -> None:
    two = {**ONE, "url": "s3://vyvo-image/b.png"}
    found = list(artifacts_in({"a": [ONE, {"b": {"c": two}}], "text": "s3://no/artifact"}))
    assert [a["url"] for a in found] == ["s3://vyvo-image/a.png", "s3://vyvo-image/b.png"]


def test_what_is_not_an_artifact_is_passed_over() -> None:
    assert not list(
        artifacts_in([{**ONE, "url": "https://x/y"}, {"type": "image"}, "s3://a/b", 1, None])
    )


@pytest.mark.parametrize(
    ("modality", "key", "may_be"),
    [
        (Modality.IMAGE, "2026/01/31/job.1/a.png", True),
        (Modality.TEXT, "anything", True),
        (Modality.MODEL, "2026/01/31/job.1/lora.safetensors", True),
        (Modality.MODEL, "weights/sha256/ab", False),
        (Modality.MODEL, "locks/ab/requirements.lock", False),
        (Modality.MODEL, "2026/01/31/", False),
        (Modality.LOG, "2026/01/31/a", False),
    ],
)
def test_weights_and_logs_are_no_outputs(modality: Modality, key: str, may_be: bool) -> None:
    assert is_output(modality, key) is may_be
