"""The faults of a definition's steps: what they name, read, take and make."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final, cast

from vyvo_dagster.domain.host import parse_request
from vyvo_dagster.domain.workflow.container import PLACES, place_tags
from vyvo_dagster.domain.workflow.definition import model_ref
from vyvo_dagster.domain.workflow.document import (
    check_graph,
    check_inputs,
    check_names,
    check_triggers,
)
from vyvo_dagster.domain.workflow.expression import Expression, ExpressionError, Reference
from vyvo_dagster.domain.workflow.fitting import (
    ANY,
    ARTIFACT,
    Fault,
    Schema,
    faults,
    items_of,
    run_inputs_schema,
    schema_of,
)
from vyvo_dagster.domain.workflow.operations import OPERATIONS
from vyvo_dagster.domain.workflow.problem import Catalog, ModelSchemas, Problem, model_fault
from vyvo_dagster.domain.workflow.template import (
    Template,
    child_path,
    expressions_in,
    parse_template,
)
from vyvo_dagster.errors import InvalidInput

__all__ = ["document_problems"]

Roots = Mapping[str, Schema]

_KINDS: Final = ("model", "operation", "container")


def document_problems(document: Mapping[str, Any], catalog: Catalog) -> Iterator[Problem]:
    """The faults of a document that fits the schema of definitions."""
    inputs: dict[str, Schema] = {}
    yield from check_inputs(document.get("inputs", {}), inputs)
    yield from check_names(document)
    steps = cast("list[Mapping[str, Any]]", document["steps"])
    named = {str(step["name"]): step for step in steps}
    if len(named) == len(steps):
        yield from check_graph(named)
    checking = _Checking(named, inputs, catalog)
    for index, step in enumerate(steps):
        for found in checking.step(step, f"$.steps[{index}]"):
            yield Problem(found.code, found.path, found.message, str(step["name"]))
    yield from checking.expressions(document.get("outputs"), "$.outputs", checking.roots)
    yield from check_triggers(document)
    schema = run_inputs_schema(inputs)
    for index, trigger in enumerate(cast("list[Mapping[str, Any]]", document.get("triggers", []))):
        given, path = trigger.get("inputs", {}), f"$.triggers[{index}].inputs"
        yield from checking.expressions(given, path, {"event": ANY})
        for fault in faults(given, schema, {"event": ANY}, path):
            yield _of(fault, "bad_inputs")


def _of(fault: Fault, code: str = "type") -> Problem:
    return Problem("missing_field" if fault.missing else code, fault.path, fault.message)


def _container(step: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """The faults of a step's `container` and `run_on`, as far as their schemas leave them open."""
    where: Mapping[str, Any] | None = step.get("run_on")
    if "container" not in step:
        if where is not None:
            yield Problem("no_container", f"{path}.run_on", "run_on is for a step with container")
        return
    if where is None or not any(member in where for member in PLACES):
        at = path if where is None else f"{path}.run_on"
        yield Problem("no_place", at, f"a container needs run_on with one of {', '.join(PLACES)}")
        return
    for name in where:
        # One that chooses a host is needed for the others to be read at all.
        asked = place_tags({**({} if name in PLACES else {"gpu": 0}), name: where[name]})
        try:
            parse_request(asked)
        except InvalidInput as error:
            said = error.detail.partition("=")[2]
            yield Problem("bad_place", f"{path}.run_on.{name}", said)


class _Checking:
    """Steps beside what they may read."""

    def __init__(
        self, steps: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Schema], catalog: Catalog
    ) -> None:
        self._named = steps
        self._inputs = inputs
        self._catalog = catalog

    def step(self, step: Mapping[str, Any], path: str) -> Iterator[Problem]:
        """The faults of one step."""
        if sum(kind in step for kind in _KINDS) != 1:
            yield Problem("no_kind", path, f"a step has one of {', '.join(_KINDS)}")
            return
        yield from _container(step, path)
        for index, need in enumerate(step.get("needs", ())):
            if need not in self._named:
                yield Problem(
                    "unknown_step", f"{path}.needs[{index}]", f"there is no step {need!r}"
                )
        if "model" in step:
            yield from self._model(str(step["model"]), f"{path}.model")
        yield from self._list(step, path)
        for member, wanted in (("when", "boolean"), ("for_each", "array")):
            at = f"{path}.{member}"
            if isinstance(step.get(member), str):
                yield from self._single(step[member], wanted, at)
            yield from self.expressions(step.get(member), at, self.roots)
        yield from self._input(step, f"{path}.input")

    def _single(self, text: str, wanted: str, path: str) -> Iterator[Problem]:
        try:
            template = parse_template(text)
        except ExpressionError:
            return  # told with the other expressions
        if template is None or template.single is None:
            yield Problem("bad_expression", path, "it must be one expression: ${{ ... }}")
            return
        for fault in faults(text, {"type": wanted}, self.roots, path):
            yield _of(fault)

    def _model(self, name: str, path: str) -> Iterator[Problem]:
        if (fault := model_fault(name)) is not None:
            yield Problem("unknown_model", path, fault)
            return
        known = self._catalog.get(model_ref(name), "is not registered")
        if isinstance(known, str):
            yield Problem("unknown_model", path, f"{name} {known}")

    def _list(self, step: Mapping[str, Any], path: str) -> Iterator[Problem]:
        given = step.get("for_each")
        for member in ("limit", "max_items"):
            if given is None and member in step:
                message = f"{member} is for a step with for_each"
                yield Problem("no_for_each", f"{path}.{member}", message)
        if isinstance(given, list):
            count, most = len(cast("list[Any]", given)), step.get("max_items", 100)
            if count > most:
                message = f"has {count} items; max_items is {most}"
                yield Problem("too_many_items", f"{path}.for_each", message)

    def _input(self, step: Mapping[str, Any], path: str) -> Iterator[Problem]:
        given = cast("Mapping[str, Any]", step.get("input", {}))
        roots = self._item_roots(step)
        each: Roots = {**roots, "item": ANY, "index": {"type": "integer"}}
        if "operation" in step:
            operation = OPERATIONS[step["operation"]]
            schema, per_item = operation.input_schema, operation.each_item
        else:
            known = self._catalog.get(model_ref(step["model"])) if "model" in step else None
            schema = known.input if isinstance(known, ModelSchemas) else None
            per_item = frozenset[str]()
        for key, value in given.items():
            reads = each if key in per_item else roots
            yield from self.expressions(value, child_path(path, key), reads)
        if schema is not None:
            for fault in faults(given, schema, each if per_item else roots, path):
                yield _of(fault)

    def expressions(self, value: Any, path: str, roots: Roots) -> Iterator[Problem]:
        """Expressions in a value that cannot be parsed, or read what cannot be there."""
        for at, found in expressions_in(value, path):
            if not isinstance(found, Template):
                yield Problem("bad_expression", at, found.detail)
                continue
            for expression in found.expressions:
                yield from self._references(expression, at, roots)

    def _references(self, expression: Expression, path: str, roots: Roots) -> Iterator[Problem]:
        for reference in expression.references:
            if (found := self._reference(reference, path, roots)) is not None:
                yield found
                return
        try:
            schema_of(expression, roots)
        except ExpressionError as error:
            yield Problem("bad_reference", path, error.detail)

    def _reference(self, reference: Reference, path: str, roots: Roots) -> Problem | None:
        root, *parts = reference.path
        if root not in roots:
            where = " but in the input of a step with for_each" if root in {"item", "index"} else ""
            return Problem("bad_reference", path, f"there is no {root} here{where}")
        if root == "steps":
            if not parts:
                return Problem("bad_reference", path, "name the step: steps.<name>")
            if parts[0] not in self._named:
                return Problem("unknown_step", path, f"there is no step {parts[0]!r}")
        if root == "inputs" and parts and parts[0] not in self._inputs:
            known = ", ".join(self._inputs) or "none"
            message = f"there is no input {parts[0]!r}; there are {known}"
            return Problem("unknown_input", path, message)
        return None

    @cached_property
    def roots(self) -> Roots:
        """The schema of each root, but for `item` and `index`."""
        return {
            "inputs": _closed(self._inputs),
            "steps": _closed({name: self._result(each) for name, each in self._named.items()}),
            "run": _closed({"id": {"type": "string"}, "workflow": {"type": "string"}}),
        }

    def _item_roots(self, step: Mapping[str, Any]) -> Roots:
        roots = self.roots
        if "for_each" not in step:
            return roots
        item: Schema = ANY
        given = step["for_each"]
        if isinstance(given, str):
            try:
                template = parse_template(given)
                if template is not None and template.single is not None:
                    item = items_of(schema_of(template.single, roots))
            except ExpressionError:
                item = ANY
        return {**roots, "item": item, "index": {"type": "integer"}}

    def _result(self, step: Mapping[str, Any]) -> Schema:
        """The schema of `steps.<name>`."""
        output: Schema = ANY
        if "model" in step and not model_fault(str(step["model"])):
            known = self._catalog.get(model_ref(str(step["model"])))
            if isinstance(known, ModelSchemas):
                output = known.output or ANY
        elif "operation" in step:
            output = OPERATIONS[step["operation"]].output_schema
        if "for_each" in step:
            output = {"type": "array", "items": output}
        text = {"type": ["string", "null"]}
        return _closed(
            {
                "output": output, "artifacts": {"type": "array", "items": ARTIFACT},
                "state": {"type": "string"}, "error_code": text, "error_message": text,
            }
        )  # fmt: skip


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}
