"""Write the OpenAPI document that the Cog server serves and checks inputs against.

    python -m vyvo_runner.schema predict.py:Predictor --output .cog/openapi_schema.json

`cog build` writes this file from a static parse; a runner that is built without the Cog CLI has no
such step, and coglet without the file accepts any input, answers 503 on `/openapi.json` and refuses
server-sent events. The document here has the members that coglet reads (`components.schemas.Input`
and `Output`, `x-cog-streaming`), in the shape of Cog's own. The predictor's module is imported; its
`setup()` is not run, so that no weights and no GPU are needed.
"""

from __future__ import annotations

import argparse
import ast
import collections.abc
import importlib.util
import inspect
import json
import os
import sys
import typing
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from .openapi import document

__all__ = ["SchemaError", "main", "openapi_document", "write_schema"]

DEFAULT_REFERENCE = "predict.py:Predictor"
DEFAULT_OUTPUT = Path(".cog/openapi_schema.json")

_SCALARS: Dict[Any, Dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    datetime: {"type": "string", "format": "date-time"},
    Any: {"type": "object"},
    dict: {"type": "object"},
    list: {"type": "array", "items": {"type": "object"}},
}
_CONSTRAINTS = (
    ("ge", "minimum"),
    ("le", "maximum"),
    ("min_length", "minLength"),
    ("max_length", "maxLength"),
    ("regex", "pattern"),
    ("description", "description"),
    ("accept", "x-cog-accept"),
)
_ITERATORS = (
    collections.abc.Iterator,
    collections.abc.AsyncIterator,
    collections.abc.Generator,
    collections.abc.AsyncGenerator,
)


class SchemaError(Exception):
    """The predictor's signature cannot be written as a schema; the message names the parameter."""


def openapi_document(reference: str = DEFAULT_REFERENCE) -> Dict[str, Any]:
    """Return the OpenAPI 3.0 document of a predictor such as `predict.py:Predictor`.

    Raises:
        SchemaError: no such file, class or method, or a type that Cog inputs cannot have.
    """
    path, _, name = reference.partition(":")
    predictor = _load(Path(path), name or "Predictor")
    method_name, method = _predict_method(predictor)
    try:
        hints = typing.get_type_hints(method)
    except NameError as error:
        raise SchemaError(
            f"{reference}: an annotation names what is not imported: {error}"
        ) from error
    streaming = _is_streaming(Path(path), name or "Predictor", method_name)
    output = _output_schema(hints.pop("return", Any))
    if streaming and output.get("x-cog-array-type") != "iterator":
        raise SchemaError(f"{reference}: a method with @streaming returns Iterator[...]")
    return document(_input_schema(method, hints), {**output, "title": "Output"}, streaming)


def write_schema(reference: str = DEFAULT_REFERENCE, output: Path = DEFAULT_OUTPUT) -> Path:
    """Write the document of `reference` to `output` (made with its folder); return its path.

    Raises:
        SchemaError: as `openapi_document`.
    """
    content = json.dumps(openapi_document(reference), sort_keys=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(output)
    return output


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, str(path))
    if not path.is_file() or spec is None or spec.loader is None:
        raise SchemaError(
            f"{path} is not a Python file; name the predictor as predict.py:Predictor"
        )
    module = importlib.util.module_from_spec(spec)
    # A predictor may import its neighbours, and pickle looks its module up by name.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    try:
        return getattr(module, name)
    except AttributeError:
        raise SchemaError(f"{path} has no class {name}") from None


def _predict_method(predictor: Any) -> Tuple[str, Callable[..., Any]]:
    from cog import BasePredictor, BaseRunner

    if not inspect.isclass(predictor):
        return getattr(predictor, "__name__", "predict"), predictor
    for owner in inspect.getmro(predictor):
        if owner in (BaseRunner, BasePredictor, object):
            break
        for method_name in ("run", "predict"):
            if callable(owner.__dict__.get(method_name)):
                return method_name, owner.__dict__[method_name]
    raise SchemaError(f"{predictor.__name__} has neither run() nor predict()")


def _is_streaming(path: Path, class_name: str, method_name: str) -> bool:
    # cog.streaming leaves no mark on the function: Cog's own build reads it from the source too.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or node.name != class_name:
            continue
        for item in node.body:
            if (
                isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))
                and item.name == method_name
            ):
                return any(_decorator_name(each) == "streaming" for each in item.decorator_list)
    return False


def _decorator_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _input_schema(method: Callable[..., Any], hints: Dict[str, Any]) -> Dict[str, Any]:
    from cog import FieldInfo

    properties: Dict[str, Any] = {}
    required: List[str] = []
    for order, parameter in enumerate(list(inspect.signature(method).parameters.values())[1:]):
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SchemaError(f"{name}: a predictor names its inputs; *args and **kwargs are none")
        if name not in hints:
            raise SchemaError(f"{name}: an input needs a type annotation")
        inner, nullable = _unwrap_optional(hints[name])
        schema: Dict[str, Any] = {"title": name.replace("_", " ").title(), "x-order": order}
        schema.update(_type_schema(inner, name))
        default = parameter.default
        if isinstance(default, FieldInfo):
            _apply_field(schema, default)
            default = default.default
            # Input(default=None) of a plain type means "required" to Cog.
            has_default = default is not None or nullable
        else:
            has_default = default is not parameter.empty
        if nullable:
            schema["nullable"] = True
        if has_default and default is not None:
            schema["default"] = default
        elif not has_default and not nullable:
            required.append(name)
        properties[name] = schema
    result: Dict[str, Any] = {"title": "Input", "type": "object", "properties": properties}
    if required:
        result["required"] = required
    return result


def _apply_field(schema: Dict[str, Any], field: Any) -> None:
    for attribute, keyword in _CONSTRAINTS:
        value = getattr(field, attribute, None)
        if value is not None:
            schema[keyword] = value
    if field.choices:
        schema["enum"] = list(field.choices)
    if field.deprecated:
        schema["deprecated"] = True


def _unwrap_optional(hint: Any) -> Tuple[Any, bool]:
    arguments = typing.get_args(hint)
    if type(None) not in arguments or not _is_union(hint):
        return hint, False
    rest = tuple(each for each in arguments if each is not type(None))
    return (rest[0] if len(rest) == 1 else Union[rest]), True


def _is_union(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return origin is Union or getattr(origin, "__name__", "") == "UnionType"


def _type_schema(hint: Any, where: str) -> Dict[str, Any]:
    from cog import Path as CogPath
    from cog import Secret

    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    if hint is Secret:
        return {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}
    if inspect.isclass(hint) and (issubclass(hint, CogPath) or hint.__name__ == "File"):
        return {"type": "string", "format": "uri"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is getattr(typing, "Annotated", None) or hasattr(hint, "__metadata__"):
        return _type_schema(arguments[0], where)
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0], where)}
    if origin is dict:
        schema: Dict[str, Any] = {"type": "object"}
        if arguments[1] is not Any:
            schema["additionalProperties"] = _type_schema(arguments[1], where)
        return schema
    if _is_union(hint):
        return _union_schema(hint, where)
    if inspect.isclass(hint) and getattr(hint, "__annotations__", None):
        return _fields_schema(hint, where)
    raise SchemaError(f"{where}: {hint!r} is no type of a Cog input or output")


def _union_schema(hint: Any, where: str) -> Dict[str, Any]:
    inner, nullable = _unwrap_optional(hint)
    if nullable:
        return {**_type_schema(inner, where), "nullable": True}
    return {"anyOf": [_type_schema(each, where) for each in typing.get_args(hint)]}


def _fields_schema(hint: Any, where: str) -> Dict[str, Any]:
    """A TypedDict, dataclass or model with annotated fields."""
    fields = typing.get_type_hints(hint)
    schema: Dict[str, Any] = {
        "type": "object",
        "properties": {
            name: _type_schema(each, f"{where}.{name}") for name, each in fields.items()
        },
    }
    required = getattr(hint, "__required_keys__", None)
    if required:
        schema["required"] = sorted(required)
    return schema


def _output_schema(hint: Any) -> Dict[str, Any]:
    hint, nullable = _unwrap_optional(hint)
    origin = typing.get_origin(hint)
    if origin in _ITERATORS or getattr(origin, "__name__", "").endswith("ConcatenateIterator"):
        schema: Dict[str, Any] = {
            "type": "array",
            "items": _type_schema(typing.get_args(hint)[0], "output"),
            "x-cog-array-type": "iterator",
        }
        if origin not in _ITERATORS:
            schema["x-cog-array-display"] = "concatenate"
    else:
        schema = _type_schema(hint, "output")
    if nullable:
        schema["nullable"] = True
    return schema


def main(arguments: Optional[List[str]] = None) -> int:
    """Entry point of `python -m vyvo_runner.schema`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="vyvo_runner.schema", description=(__doc__ or "").split("\n")[0]
    )
    reference = os.environ.get("COG_PREDICT_TYPE_STUB", DEFAULT_REFERENCE)
    parser.add_argument("reference", nargs="?", default=reference)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="file to write")
    options = parser.parse_args(arguments)
    try:
        path = write_schema(options.reference, options.output)
    except SchemaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
