"""Built-in operations: steps that need no model.

All but `http` are pure and done at once; `http` is a request that the engine makes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from vyvo_dagster.domain.workflow.expression import ExpressionError
from vyvo_dagster.domain.workflow.template import render, render_text
from vyvo_dagster.errors import InvalidInput

__all__ = ["HTTP", "OPERATIONS", "Operation", "OperationFailed"]

HTTP: Final = "http"
_MAX_ITEMS: Final = 10_000
_ANYTHING: Final[Mapping[str, Any]] = {}
_LIST: Final[Mapping[str, Any]] = {"type": "array", "maxItems": _MAX_ITEMS}


class OperationFailed(InvalidInput):
    """An operation refused its input, or was told to fail."""

    code = "operation_failed"


Names = Mapping[str, Any]
Act = Callable[[Mapping[str, Any], Names], Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: what it takes and makes as JSON Schemas, and, if it is pure, how."""

    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    act: Act | None = None
    """Called with its input, rendered, and the names that `each_item` is rendered with."""
    each_item: frozenset[str] = field(default_factory=frozenset[str])
    """Members of the input that are rendered once for each item, as `item` and `index`."""


def _object(required: tuple[str, ...], **properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


def _concat(given: Mapping[str, Any], _: Names) -> Any:
    values = cast("list[Any]", given["values"])
    if values and all(isinstance(v, list) for v in values):
        if "separator" in given:
            raise OperationFailed("separator is for strings; these are lists")
        made = [each for value in cast("list[list[Any]]", values) for each in value]
        return _limited(made)
    if any(isinstance(v, list) for v in values):
        raise OperationFailed("concat takes lists only, or strings only")
    return str(given.get("separator", "")).join(map(render_text, values))


def _limited(items: list[Any]) -> list[Any]:
    if len(items) > _MAX_ITEMS:
        raise OperationFailed(f"the list has {len(items)} items; {_MAX_ITEMS} are allowed")
    return items


def _per_item(given: Mapping[str, Any], member: str, names: Names) -> list[tuple[Any, Any]]:
    """(item, `given[member]` rendered for it)."""
    return [
        (item, render(given[member], {**names, "item": item, "index": index}, f"$.{member}"))
        for index, item in enumerate(cast("list[Any]", given["items"]))
    ]


def _filter(given: Mapping[str, Any], names: Names) -> Any:
    kept: list[Any] = []
    for item, verdict in _per_item(given, "where", names):
        if not isinstance(verdict, bool):
            raise ExpressionError("$.where: it must be true or false for each item")
        if verdict:
            kept.append(item)
    return kept


def _select(given: Mapping[str, Any], names: Names) -> Any:
    return [value for _, value in _per_item(given, "value", names)]


def _merge(given: Mapping[str, Any], _: Names) -> Any:
    made: dict[str, Any] = {}
    for each in cast("list[Any]", given["objects"]):
        made.update(each or {})
    return made


def _zip(given: Mapping[str, Any], _: Names) -> Any:
    lists = cast("Mapping[str, list[Any]]", given["lists"])
    sizes = {name: len(items) for name, items in lists.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise OperationFailed(f"the lists must be of one length: {shown}")
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _chunk(given: Mapping[str, Any], _: Names) -> Any:
    items, size = cast("list[Any]", given["items"]), cast("int", given["size"])
    return [items[at : at + size] for at in range(0, len(items), size)]


def _fail(given: Mapping[str, Any], _: Names) -> Any:
    raise OperationFailed(str(given["message"]))


OPERATIONS: Final[Mapping[str, Operation]] = {
    HTTP: Operation(
        "Send an HTTP request. Addresses inside the installation's networks are refused.",
        _object(
            ("url",),
            url={"type": "string", "maxLength": 4096},
            method={"enum": ["GET", "POST", "PUT", "PATCH", "DELETE"], "default": "GET"},
            headers={
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": {"type": "string", "maxLength": 4096},
            },
            body={"description": "Sent as JSON; a string is sent as it is."},
        ),
        {
            "type": "object",
            "properties": {
                "status": {"type": "integer"},
                "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                "body": {"description": "Parsed where it is JSON, else a string."},
            },
            "required": ["status", "headers", "body"],
            "additionalProperties": False,
        },
    ),
    "concat": Operation(
        "Put lists or strings one after the other.",
        _object(("values",), values=_LIST, separator={"type": "string", "maxLength": 256}),
        {"type": ["array", "string"]},
        _concat,
    ),
    "filter": Operation(
        "Keep the items for which `where` is true.",
        _object(("items", "where"), items=_LIST, where={"type": "boolean"}),
        _LIST,
        _filter,
        frozenset({"where"}),
    ),
    "select": Operation(
        "Make `value` for each item.",
        _object(("items", "value"), items=_LIST, value=_ANYTHING),
        _LIST,
        _select,
        frozenset({"value"}),
    ),
    "merge": Operation(
        "Put the members of objects into one; the last one wins.",
        _object(
            ("objects",),
            objects={"type": "array", "maxItems": 1000, "items": {"type": ["object", "null"]}},
        ),
        {"type": "object"},
        _merge,
    ),
    "zip": Operation(
        "Make lists of one length into one list of objects.",
        _object(
            ("lists",),
            lists={
                "type": "object",
                "minProperties": 1,
                "maxProperties": 32,
                "additionalProperties": _LIST,
            },
        ),
        {"type": "array", "items": {"type": "object"}},
        _zip,
    ),
    "chunk": Operation(
        "Cut a list into lists of `size` items.",
        _object(
            ("items", "size"), items=_LIST, size={"type": "integer", "minimum": 1, "maximum": 1000}
        ),
        {"type": "array", "items": {"type": "array"}},
        _chunk,
    ),
    "fail": Operation(
        "Fail with a message; with `when` it guards what follows.",
        _object(("message",), message={"type": "string", "maxLength": 1000}),
        {},
        _fail,
    ),
}
