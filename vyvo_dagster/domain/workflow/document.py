"""The faults of a definition that concern all of it: its inputs, names, graph and triggers."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import jsonschema

from vyvo_dagster.domain.workflow.cron import next_time, parse_zone
from vyvo_dagster.domain.workflow.definition import references_of
from vyvo_dagster.domain.workflow.expression import is_name
from vyvo_dagster.domain.workflow.fitting import ANY, Schema, faults
from vyvo_dagster.domain.workflow.problem import Problem, model_fault
from vyvo_dagster.domain.workflow.template import child_path
from vyvo_dagster.errors import InvalidInput

__all__ = ["check_graph", "check_inputs", "check_names", "check_triggers"]

_KINDS: Final = ("cron", "on_artifact", "on_model_version")


def check_inputs(inputs: Mapping[str, Schema], known: dict[str, Schema]) -> Iterator[Problem]:
    """Faults of the inputs' schemas; `known` gets those that can be gone by."""
    for name, schema in inputs.items():
        path = child_path("$.inputs", name)
        known[name] = ANY
        if not is_name(name):
            yield Problem("bad_name", path, f"{name!r} cannot stand in an expression")
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            at = path + error.json_path.removeprefix("$")
            yield Problem("bad_schema", at, f"is no JSON Schema: {error.message[:200]}")
            continue
        if (keyword := _refused(schema)) is not None:
            yield Problem("bad_schema", path, f"an input's schema cannot use {keyword}")
            continue
        known[name] = schema
        if "default" in schema:
            for fault in faults(schema["default"], schema, {}, f"{path}.default"):
                yield Problem("bad_default", fault.path, fault.message)


def _refused(schema: Any) -> str | None:
    """A keyword that leads out of the schema, or whose check may take for ever."""
    if isinstance(schema, Mapping):
        for key, value in cast("Mapping[str, Any]", schema).items():
            named = isinstance(value, str) and key in {"$ref", "$dynamicRef", "pattern"}
            if named or key == "patternProperties" or (key == "uniqueItems" and value is True):
                return key
            if (found := _refused(value)) is not None:
                return found
    elif isinstance(schema, list):
        for each in cast("list[Any]", schema):
            if (found := _refused(each)) is not None:
                return found
    return None


def check_names(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that are given twice, or that no expression could hold."""
    for member in ("steps", "triggers"):
        seen: dict[str, int] = {}
        for index, entry in enumerate(cast("list[Mapping[str, Any]]", document.get(member, []))):
            name, path = str(entry["name"]), f"$.{member}[{index}].name"
            step = name if member == "steps" else None
            if name in seen:
                first = f"$.{member}[{seen[name]}]"
                yield Problem("duplicate_name", path, f"{name!r} is the name of {first} too", step)
            elif step is not None and not is_name(name):
                message = f"{name!r} is a word of the expressions' language; choose another"
                yield Problem("bad_name", path, message, step)
            seen.setdefault(name, index)


def check_graph(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Cycles, as the way from the first of its steps back to it."""
    places = {name: index for index, name in enumerate(steps)}
    needs = {
        name: [n for n in (*step.get("needs", ()), *references_of(step)) if n in steps]
        for name, step in steps.items()
    }
    done: set[str] = set()
    told: set[str] = set()
    for start, first in needs.items():
        if start in done:
            continue
        trail, rest = [start], [iter(first)]
        while trail:
            after = next((n for n in rest[-1] if n not in done), None)
            if after is None:
                done.add(trail.pop())
                rest.pop()
            elif after in trail:
                ring = [*trail[trail.index(after) :], after]
                if not told.isdisjoint(ring):
                    continue
                told.update(ring)
                message = f"the steps wait for each other: {' needs '.join(ring)}"
                yield Problem("cycle", f"$.steps[{places[after]}]", message, after)
            else:
                trail.append(after)
                rest.append(iter(needs[after]))


def check_triggers(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Faults of the triggers, but for their inputs."""
    for index, trigger in enumerate(cast("list[Mapping[str, Any]]", document.get("triggers", []))):
        path = f"$.triggers[{index}]"
        kinds = [kind for kind in _KINDS if kind in trigger]
        if len(kinds) != 1:
            yield Problem("no_kind", path, f"a trigger has one of {', '.join(_KINDS)}")
            continue
        (kind,) = kinds
        if kind == "cron":
            yield from _check_cron(trigger, path)
            continue
        if "timezone" in trigger:
            yield Problem("no_kind", f"{path}.timezone", "timezone is for cron")
        model = cast("Mapping[str, Any]", trigger[kind]).get("model")
        if model is not None and (fault := model_fault(str(model))) is not None:
            yield Problem("unknown_model", f"{path}.{kind}.model", fault)


def _check_cron(trigger: Mapping[str, Any], path: str) -> Iterator[Problem]:
    zone = str(trigger.get("timezone", "UTC"))
    try:
        parse_zone(zone)
    except InvalidInput as error:
        yield Problem("bad_timezone", f"{path}.timezone", error.detail)
        zone = "UTC"
    try:
        next_time(str(trigger["cron"]), zone, datetime(2026, 1, 1, tzinfo=UTC))
    except InvalidInput as error:
        yield Problem("bad_cron", f"{path}.cron", error.detail)
