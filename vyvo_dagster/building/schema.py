"""A runner's input and output as JSON Schema, out of its OpenAPI 3.0 document."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

import jsonschema

from vyvo_dagster.errors import RunnerFailed

__all__ = ["Schemas", "read_schemas"]

_PREFIX: Final = "#/components/schemas/"
_DEPTH: Final = 32


class Schemas(NamedTuple):
    """JSON Schemas (2020-12) of one runner, without references."""

    input: dict[str, Any]
    output: dict[str, Any]


def read_schemas(document: bytes) -> Schemas:
    """The schemas of `components.schemas.Input` and `.Output`, self-contained.

    References are resolved in place, OpenAPI's `nullable` becomes JSON Schema's `null`. The input
    gets `additionalProperties: false` unless it says otherwise: a Cog server drops a name that it
    does not know, and the caller would never hear of the misspelling.

    Raises:
        RunnerFailed: it is no OpenAPI document with an Input, or not valid as JSON Schema.
    """
    try:
        parsed = json.loads(document)
        components = cast("dict[str, Any]", parsed["components"]["schemas"])
        entry = components["Input"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunnerFailed(
            "the runner's OpenAPI document has no components.schemas.Input"
        ) from error
    taken = cast("dict[str, Any]", _resolved(entry, components, 0))
    taken.setdefault("type", "object")
    taken.setdefault("additionalProperties", False)
    given = cast("dict[str, Any]", _resolved(components.get("Output", {}), components, 0))
    for name, schema in (("Input", taken), ("Output", given)):
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise RunnerFailed(
                f"the runner's {name} is not a JSON Schema: {error.message}"
            ) from error
    return Schemas(taken, given)


def _resolved(node: Any, components: Mapping[str, Any], depth: int) -> Any:
    # A schema that contains itself cannot be written out; past this depth anything is allowed.
    if depth > _DEPTH:
        return {}
    if isinstance(node, list):
        return [_resolved(item, components, depth) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    schema = cast("dict[str, Any]", node)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        target = components.get(reference.removeprefix(_PREFIX), {})
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _resolved({**target, **beside}, components, depth + 1)
    out = {
        key: _resolved(value, components, depth)
        for key, value in schema.items()
        if key != "nullable"
    }
    return _nullable(out) if schema.get("nullable") is True else out


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if not isinstance(kind, str):
        return {"anyOf": [schema, {"type": "null"}]}
    out = {**schema, "type": [kind, "null"]}
    if "enum" in out and None not in out["enum"]:
        out["enum"] = [*out["enum"], None]
    return out
