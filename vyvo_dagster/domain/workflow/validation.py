"""Every fault of a workflow definition, each with its step and its JSON path."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import jsonschema

from vyvo_dagster.domain.workflow.checks import document_problems
from vyvo_dagster.domain.workflow.definition import (
    Definition,
    ModelRef,
    canonical,
    model_ref,
    parse,
)
from vyvo_dagster.domain.workflow.fitting import run_inputs_schema, said, validator
from vyvo_dagster.domain.workflow.problem import Catalog, ModelSchemas, Problem, model_fault
from vyvo_dagster.domain.workflow.schema import DEFINITION_SCHEMA
from vyvo_dagster.domain.workflow.template import child_path
from vyvo_dagster.errors import InvalidInput, InvalidWorkflow

__all__ = [
    "Catalog",
    "ModelSchemas",
    "Problem",
    "check",
    "check_run_inputs",
    "checked",
    "model_refs",
]

MAX_BYTES: Final = 256 * 1024
_MAX_PROBLEMS: Final = 100


def model_refs(document: Any) -> set[ModelRef]:
    """The models that a document names, as far as it can be read; what a catalog must hold."""
    steps = (
        cast("Mapping[str, Any]", document).get("steps") if isinstance(document, Mapping) else None
    )
    if not isinstance(steps, list):
        return set()
    found: set[ModelRef] = set()
    for each in cast("list[Any]", steps):
        name = cast("Mapping[str, Any]", each).get("model") if isinstance(each, Mapping) else None
        if isinstance(name, str) and len(name) <= 200 and not model_fault(name):
            found.add(model_ref(name))
    return found


def checked(document: Any, catalog: Catalog) -> Definition:
    """The definition of a document.

    Raises:
        InvalidWorkflow: with `problems`, a list of {step, path, code, message}.
    """
    problems = check(document, catalog)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidWorkflow(
            f"{problems[0]}{more}",
            problems=[
                {"step": p.step, "path": p.path, "code": p.code, "message": p.message}
                for p in problems
            ],
        )
    return parse(cast("Mapping[str, Any]", document))


def check(document: Any, catalog: Catalog) -> list[Problem]:
    """All faults, at most 100; what the schema refuses hides what is looked at after it."""
    found: list[Problem] = []
    try:
        size = len(canonical(document).encode())
    except (ValueError, TypeError, RecursionError):
        return [Problem("malformed", "$", "it holds a number or a text that JSON has not")]
    if size > MAX_BYTES:
        return [Problem("too_large", "$", f"it has {size} bytes; {MAX_BYTES} are allowed")]
    for error in validator(DEFINITION_SCHEMA).iter_errors(document):
        found += _of_schema(document, error)
    if not found:
        for problem in document_problems(cast("Mapping[str, Any]", document), catalog):
            found.append(problem)
            if len(found) >= _MAX_PROBLEMS:
                break
    return found[:_MAX_PROBLEMS]


def _of_schema(document: Any, error: jsonschema.ValidationError) -> Iterator[Problem]:
    path = list(error.absolute_path)
    step = None
    if len(path) >= 2 and path[0] == "steps":
        entry: Any = document["steps"][path[1]]
        name = cast("Mapping[str, Any]", entry).get("name") if isinstance(entry, Mapping) else None
        step = name if isinstance(name, str) else None
    if error.validator == "additionalProperties":
        known = cast("Mapping[str, Any]", error.schema).get("properties", {})
        for name in sorted(set(cast("Mapping[str, Any]", error.instance)) - set(known)):
            at = child_path(error.json_path, name)
            taken = ", ".join(known)
            yield Problem("unknown_field", at, f"there is no such field; there are {taken}", step)
        return
    code = "missing_field" if error.validator == "required" else "schema"
    if error.validator == "pattern":
        yield Problem(code, error.json_path, _pattern(path, error), step)
        return
    yield Problem(code, error.json_path, said(error), step)


def _pattern(path: list[str | int], error: jsonschema.ValidationError) -> str:
    shown = repr(error.instance)[:80]
    if path[-1] == "model":
        return f"{shown} is no model; a model is owner/name or owner/name@version"
    if "container" in path:
        if path[-1] == "image":
            return f"{shown} is no image; an image is such as registry:5000/name:tag"
        if path[-1] == "env":
            return f"{shown} is no variable's name, or begins with VYVO_, which is the platform's"
        return "must hold no NUL character"
    extra = " and - after" if len(path) == 1 else ""
    return f"{shown} is no name; a name is 1 to 63 lower-case letters, digits, _{extra}, a letter first"


def check_run_inputs(definition: Definition, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A run's inputs with the defaults put in.

    Raises:
        InvalidInput: with `errors`, a list of {path, message}.
    """
    schema = run_inputs_schema(definition.inputs)
    found = [
        {"path": error.json_path, "message": said(error)}
        for error, _ in zip(validator(schema).iter_errors(inputs), range(20), strict=False)
    ]
    if found:
        first = found[0]
        raise InvalidInput(
            f"the inputs do not fit workflow {definition.name}: {first['path']}: {first['message']}",
            errors=found,
        )
    defaults = {n: s["default"] for n, s in definition.inputs.items() if "default" in s}
    return {**defaults, **inputs}
