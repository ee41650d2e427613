"""A runner's JSON Schema out of its OpenAPI document."""

import json
from typing import Any

import jsonschema
import pytest

from vyvo_dagster.building.schema import read_schemas
from vyvo_dagster.errors import RunnerFailed


def _document(**schemas: Any) -> bytes:
    return json.dumps({"openapi": "3.0.2", "components": {"schemas": schemas}}).encode()


def _accepts(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_references_and_nullable_are_resolved() -> None:
    schemas = read_schemas(
        _document(
            Input={
                "type": "object",
                "required": ["style"],
                "properties": {
                    "style": {"allOf": [{"$ref": "#/components/schemas/Style"}]},
                    "seed": {"type": "integer", "nullable": True},
                    "mask": {"$ref": "#/components/schemas/Style", "nullable": True},
                },
            },
            Style={"type": "string", "enum": ["ink", "oil"]},
            Output={"type": "array", "items": {"type": "string"}},
        )
    )
    assert "$ref" not in json.dumps(schemas.input)
    assert _accepts(schemas.input, {"style": "ink", "seed": None, "mask": None})
    assert not _accepts(schemas.input, {"style": "pencil"})
    assert not _accepts(schemas.input, {})
    assert _accepts(schemas.output, ["a"])


def test_a_misspelt_input_is_refused() -> None:
    schemas = read_schemas(
        _document(Input={"type": "object", "properties": {"digit": {"type": "integer"}}})
    )
    assert _accepts(schemas.input, {"digit": 1})
    assert not _accepts(schemas.input, {"digits": 1})


def test_a_schema_within_itself_ends() -> None:
    schemas = read_schemas(
        _document(
            Input={"type": "object", "properties": {"tree": {"$ref": "#/components/schemas/Tree"}}},
            Tree={"type": "object", "properties": {"left": {"$ref": "#/components/schemas/Tree"}}},
        )
    )
    assert _accepts(schemas.input, {"tree": {"left": {"left": {}}}})


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"components": {"schemas": {}}}', _document(Input={"type": 3})],
)
def test_what_is_no_openapi_document_is_said_so(document: bytes) -> None:
    with pytest.raises(RunnerFailed):
        read_schemas(document)
