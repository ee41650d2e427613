"""Artifacts are found wherever a runner puts them in its output."""

from vyvo_dagster.domain.artifact import artifacts_in

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
