"""Inputs against the schemas of versions."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.input_schemas import InputSchemas
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.errors import InputSchemaMismatch
from vyvo_dagster.store.records import ModelVersion


def version(schema: dict[str, Any] | None) -> ModelVersion:
    now = datetime.now(UTC)
    return ModelVersion(
        id=uuid7(), model_id="a/b", version="v1", state=VersionState.READY, template="t",
        modality=Modality.IMAGE, runner_image=None, image_digest=None, weights_uri=None,
        weights_url=None, weights_sha256=None, weights_size_bytes=None, env={}, resources={},
        input_schema=schema, output_schema=None, build_id=None, collected_at=None, created_at=now, updated_at=now,
    )  # fmt: skip


def test_errors_say_where() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
    }
    with pytest.raises(InputSchemaMismatch) as caught:
        InputSchemas().check(version(schema), {"a": [1, "x"]})
    assert caught.value.extra["errors"] == [
        {"path": "$.a[1]", "message": "'x' is not of type 'integer'"}
    ]
    assert "a/b@v1" in caught.value.detail


def test_errors_are_bounded() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    with pytest.raises(InputSchemaMismatch) as caught:
        InputSchemas().check(version(schema), {f"k{n}": "x" * 10_000 for n in range(100)})
    errors = caught.value.extra["errors"]
    assert len(errors) == 20
    assert all(len(e["message"]) <= 300 for e in errors)


def test_a_draft_built_again_is_checked_by_its_new_schema() -> None:
    schemas, first = InputSchemas(), version({"required": ["a"]})
    schemas.check(first, {"a": 1})
    second = dataclasses.replace(first, input_schema={"required": ["b"]})
    with pytest.raises(InputSchemaMismatch):
        schemas.check(second, {"a": 1})


def test_without_a_schema_anything_goes() -> None:
    InputSchemas().check(version(None), {"anything": [1, None]})
