"""Whether a value, or what an expression will be, fits a JSON Schema.

What an expression will be is known as far as the schemas of what it reads say; where they say
nothing, it may be anything.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import jsonschema

from vyvo_dagster.domain.workflow.definition import canonical
from vyvo_dagster.domain.workflow.expression import Expression, ExpressionError
from vyvo_dagster.domain.workflow.template import Template, child_path, parse_template

__all__ = [
    "ANY",
    "ARTIFACT",
    "Fault",
    "faults",
    "items_of",
    "member",
    "mismatch",
    "run_inputs_schema",
    "said",
    "schema_of",
    "validator",
]

Schema = Mapping[str, Any]
ANY: Final[Schema] = {}
_STRING: Final[Schema] = {"type": "string"}
_TEXT: Final[Schema] = {"type": "string"}
ARTIFACT: Final[Schema] = {
    "type": "object",
    "properties": {
        "type": _TEXT, "url": _TEXT, "size_bytes": {"type": "integer"}, "mime_type": _TEXT,
        "expires_at": {"type": ["string", "null"]}, "presigned_url": {"type": ["string", "null"]},
    },
    "additionalProperties": False,
}  # fmt: skip
_NULL: Final = frozenset({"null"})
_MESSAGE_CHARS: Final = 300
_MAX_FAULTS: Final = 50


@dataclass(frozen=True, slots=True)
class Fault:
    """What does not fit, and where."""

    path: str
    message: str
    missing: bool = False
    """Whether it is a member that is required and not there."""


@lru_cache(maxsize=512)
def _compiled(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema))


def validator(schema: Schema) -> jsonschema.Draft202012Validator:
    """A compiled schema, kept."""
    return _compiled(canonical(schema))


def mismatch(
    value: Any, schema: Schema | None, without: frozenset[str] = frozenset()
) -> str | None:
    """Why a value does not fit, None where it does.

    Args:
        without: members that need not be there.
    """
    if schema is None:
        return None
    for error in validator(schema).iter_errors(value):
        if error.validator == "required" and not error.absolute_path and set(
            cast("Sequence[str]", error.validator_value)
        ) - set(cast("Mapping[str, Any]", value)) <= without:  # fmt: skip
            continue
        return f"{error.json_path}: {said(error)}"
    return None


def said(error: jsonschema.ValidationError) -> str:
    """The message of a schema's error, without a large value in it."""
    rule, limit = str(error.validator), cast("Any", error.validator_value)
    found: Any = error.instance
    match rule:
        case "type":
            wanted = " or ".join([limit] if isinstance(limit, str) else limit)
            return f"must be {wanted}, not {kind_of(found)}"
        case "required":
            # There is one error for each, and only its message says which.
            return error.message.replace("a required property", "required")[:_MESSAGE_CHARS]
        case "enum":
            return f"must be one of {', '.join(str(v) for v in limit)[:_MESSAGE_CHARS]}"
        case "minItems" | "minProperties":
            return f"must hold at least {limit}, not {len(found)}"
        case "maxItems" | "maxProperties":
            return f"must hold at most {limit}, not {len(found)}"
        case "minLength":
            return f"must be at least {limit} characters long"
        case "maxLength":
            return f"must be at most {limit} characters long, not {len(found)}"
        case "minimum":
            return f"must be at least {limit}, not {found}"
        case "maximum":
            return f"must be at most {limit}, not {found}"
        case _:
            return error.message[:_MESSAGE_CHARS]


def kind_of(value: Any) -> str:
    """JSON Schema's name for the type of a value."""
    if value is None:
        return "null"
    return {
        bool: "boolean", int: "integer", float: "number", str: "string", list: "array",
    }.get(type(value), "object")  # fmt: skip


def _types(schema: Schema) -> frozenset[str]:
    """The types that a schema allows; empty where it does not say."""
    given = schema.get("type")
    if given is None:
        for key in ("anyOf", "oneOf"):
            if key in schema:
                found = [_types(cast("Schema", each)) for each in schema[key]]
                return frozenset().union(*found) if all(found) else frozenset()
        if "enum" in schema:
            return frozenset(kind_of(v) for v in schema["enum"])
        if "const" in schema:
            return frozenset({kind_of(schema["const"])})
        return frozenset()
    return frozenset([given] if isinstance(given, str) else given)


def _numbers(types: frozenset[str]) -> frozenset[str]:
    # A number may turn out to be whole.
    return types | {"integer", "number"} if types & {"integer", "number"} else types


def member(schema: Schema, part: str | int) -> Schema:
    """The schema of a member or an item.

    Raises:
        ExpressionError: there cannot be one.
    """
    types = _types(schema)
    branches = [cast("Schema", s) for k in ("anyOf", "oneOf") for s in schema.get(k, ())]
    if branches and "properties" not in schema and "items" not in schema:
        inner = [b for b in branches if _types(b) != _NULL]
        return member(inner[0], part) if len(inner) == 1 else ANY
    if types and types <= {"string", "number", "integer", "boolean", "null"}:
        if isinstance(part, int) and "string" in types:
            return _STRING
        raise ExpressionError(f"is {' or '.join(sorted(types))} and has no {part!r}")
    if isinstance(part, int):
        return _item(schema, part, types)
    if types and "object" not in types:
        raise ExpressionError(f"is {' or '.join(sorted(types))} and has no {part!r}")
    properties = cast("Mapping[str, Schema]", schema.get("properties", {}))
    if part in properties:
        return properties[part]
    others = schema.get("additionalProperties", True)
    if others is False:
        known = ", ".join(sorted(properties)[:12]) or "nothing"
        raise ExpressionError(f"has no {part!r}; it has {known}")
    return cast("Schema", others) if isinstance(others, Mapping) else ANY


def _item(schema: Schema, part: int, types: frozenset[str]) -> Schema:
    if types and "array" not in types:
        raise ExpressionError(f"is {' or '.join(sorted(types))} and has no item {part}")
    most = schema.get("maxItems")
    if isinstance(most, int) and (part >= most or part < -most):
        raise ExpressionError(f"has at most {most} items and so no item {part}")
    first = cast("Sequence[Schema]", schema.get("prefixItems", ()))
    if 0 <= part < len(first):
        return first[part]
    found = schema.get("items", ANY)
    return cast("Schema", found) if isinstance(found, Mapping) else ANY


def items_of(schema: Schema) -> Schema:
    """The schema of a list's items."""
    found = schema.get("items", ANY)
    return cast("Schema", found) if isinstance(found, Mapping) else ANY


def schema_of(expression: Expression, roots: Mapping[str, Any]) -> Schema:
    """What is known of an expression's value. Every reference in it is followed.

    Args:
        roots: root → its schema.

    Raises:
        ExpressionError: it reads what cannot be there.
    """
    found: Schema = ANY
    for reference in expression.references:
        root, *parts = reference.path
        if root not in roots:
            raise ExpressionError(f"{expression.text}: there is no {root!r} here")
        schema: Schema = roots[str(root)]
        at = str(root)
        for part in parts:
            try:
                schema = member(schema, part)
            except ExpressionError as error:
                raise ExpressionError(f"{at} {error.detail}") from error
            at = child_path(at, part)
        if reference.whole:
            found = schema
    return found


def faults(value: Any, schema: Schema, roots: Mapping[str, Any], path: str) -> Iterator[Fault]:
    """Where a JSON value with expressions in it cannot fit a schema.

    Expressions that do not parse, or read what is not there, are left to others.
    """
    if isinstance(value, str):
        try:
            template = parse_template(value)
        except ExpressionError:
            return
        if template is not None:
            yield from _template_faults(template, schema, roots, path)
            return
    if isinstance(value, Mapping) and _templated(value):
        yield from _object_faults(cast("Mapping[str, Any]", value), schema, roots, path)
    elif isinstance(value, list) and _templated(value):
        types = _types(schema)
        if types and "array" not in types:
            yield Fault(path, f"must be {' or '.join(sorted(types))}, not array")
            return
        for index, each in enumerate(cast("list[Any]", value)):
            yield from faults(each, items_of(schema), roots, child_path(path, index))
    else:
        for error, _ in zip(validator(schema).iter_errors(value), range(_MAX_FAULTS), strict=False):
            at = path + error.json_path.removeprefix("$")
            if error.validator == "additionalProperties":
                yield from _not_taken(error, at)
            else:
                yield Fault(at, said(error), missing=error.validator == "required")


def _not_taken(error: jsonschema.ValidationError, path: str) -> Iterator[Fault]:
    taken = cast("Mapping[str, Any]", cast("Schema", error.schema).get("properties", {}))
    known = ", ".join(sorted(taken)[:20]) or "nothing"
    for name in sorted(set(cast("Mapping[str, Any]", error.instance)) - set(taken)):
        yield Fault(child_path(path, name), f"is not taken; taken are {known}")


def _templated(value: Any) -> bool:
    if isinstance(value, str):
        return "${{" in value
    if isinstance(value, Mapping):
        return any(map(_templated, cast("Mapping[str, Any]", value).values()))
    return isinstance(value, list) and any(map(_templated, cast("list[Any]", value)))


def _template_faults(
    template: Template, schema: Schema, roots: Mapping[str, Any], path: str
) -> Iterator[Fault]:
    wanted = _types(schema)
    if not wanted:
        return
    if template.single is None:
        if "string" not in wanted:
            yield Fault(path, f"must be {' or '.join(sorted(wanted))}, not string")
        return
    try:
        given = _types(schema_of(template.single, roots))
    except ExpressionError:
        return
    if given and not _numbers(given) & _numbers(wanted):
        yield Fault(
            path,
            f"must be {' or '.join(sorted(wanted))}; {template.single.text} is "
            f"{' or '.join(sorted(given))}",
        )


def _object_faults(
    value: Mapping[str, Any], schema: Schema, roots: Mapping[str, Any], path: str
) -> Iterator[Fault]:
    types = _types(schema)
    if types and "object" not in types:
        yield Fault(path, f"must be {' or '.join(sorted(types))}, not object")
        return
    properties = cast("Mapping[str, Schema]", schema.get("properties", {}))
    for name in cast("Sequence[str]", schema.get("required", ())):
        if name not in value:
            yield Fault(path, f"{name!r} is required", missing=True)
    others = schema.get("additionalProperties", True)
    for name, each in value.items():
        if name in properties:
            yield from faults(each, properties[name], roots, child_path(path, name))
        elif others is False:
            known = ", ".join(sorted(properties)[:20]) or "nothing"
            yield Fault(child_path(path, name), f"is not taken; taken are {known}")
        elif isinstance(others, Mapping):
            yield from faults(each, cast("Schema", others), roots, child_path(path, name))


def run_inputs_schema(inputs: Mapping[str, Schema]) -> Schema:
    """The JSON Schema of a run's inputs."""
    return {
        "type": "object", "properties": dict(inputs), "additionalProperties": False,
        "required": [name for name, schema in inputs.items() if "default" not in schema],
    }  # fmt: skip
