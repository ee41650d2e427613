"""Broken definitions, and what each is told. `docs/workflows.md` shows the same table."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vyvo_dagster.domain.workflow.definition import ModelRef
from vyvo_dagster.domain.workflow.problem import Catalog, ModelSchemas

__all__ = ["BROKEN", "CATALOG", "GOOD", "Broken"]

CATALOG: Final[Catalog] = {
    ModelRef("vyvo/digits", None): ModelSchemas(
        {
            "type": "object",
            "properties": {
                "seed": {"type": "integer"},
                "digit": {"type": "integer", "minimum": 0, "maximum": 9},
                "style": {"enum": ["thin", "bold"]},
            },
            "required": ["seed"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"digit": {"type": "integer"}, "note": {"type": "string"}},
            "additionalProperties": False,
        },
    ),
    ModelRef("vyvo/reader", "3"): ModelSchemas(
        {
            "type": "object", "properties": {"image": {"type": "string"}}, "required": ["image"],
            "additionalProperties": False,
        },
        {"type": "string"},
    ),
    ModelRef("vyvo/draft", None): "has no version that is ready",
}  # fmt: skip

GOOD: Final[Mapping[str, Any]] = {
    "name": "contact-sheet",
    "inputs": {
        "seeds": {"type": "array", "items": {"type": "integer"}, "default": [1, 2, 3]},
        "title": {"type": "string"},
        "strict": {"type": "boolean", "default": False},
    },
    "steps": [
        {
            "name": "make", "model": "vyvo/digits", "for_each": "${{ inputs.seeds }}", "limit": 2,
            "input": {"seed": "${{ item }}", "digit": 3, "style": "bold"},
        },
        {
            "name": "read", "model": "vyvo/reader@3", "for_each": "${{ steps.make.artifacts }}",
            "input": {"image": "${{ item.presigned_url }}"}, "retries": {"attempts": 3},
        },
        {
            "name": "guard", "operation": "fail", "when": "${{ inputs.strict }}",
            "input": {"message": "strict"}, "needs": ["read"],
        },
        {
            "name": "sheet", "operation": "zip",
            "input": {"lists": {"read": "${{ steps.read.output }}", "made": "${{ steps.make.output }}"}},
        },
    ],
    "outputs": {"title": "${{ inputs.title }}", "sheet": "${{ steps.sheet.output }}"},
    "triggers": [
        {"name": "nightly", "cron": "0 3 * * *", "timezone": "Europe/Berlin",
         "inputs": {"title": "of ${{ event.scheduled_at }}"}},
        {"name": "fresh", "on_model_version": {"model": "vyvo/digits"}, "inputs": {"title": "new"}},
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """A definition, made from GOOD, that has one fault."""

    what: str
    change: Callable[[Any], object]
    code: str
    message: str
    """As it is shown: step and path, then what is wrong."""

    @property
    def document(self) -> Any:
        document = copy.deepcopy(dict(GOOD))
        self.change(document)
        return document


def _put(*path: str | int, value: Any) -> Callable[[Any], object]:
    def change(document: Any) -> None:
        *way, last = path
        for part in way:
            document = document[part]
        if last == "+":
            document.append(value)
        else:
            document[last] = value

    return change


def _drop(*path: str | int) -> Callable[[Any], object]:
    def change(document: Any) -> None:
        *way, last = path
        for part in way:
            document = document[part]
        del document[last]

    return change


def _container(run_on: Any = {"pool": "a"}, **members: Any) -> Callable[[Any], object]:  # noqa: B006
    step = {"name": "gpu", "container": {"image": "a/b:1", **members}, "run_on": run_on}
    return _put("steps", "+", value={k: v for k, v in step.items() if v is not None})


BROKEN: Final[list[Broken]] = [
    Broken("no steps", _put("steps", value=[]), "schema", "$.steps: must hold at least 1, not 0"),
    Broken("no name", _drop("name"), "missing_field", "$: 'name' is required"),
    Broken("a name with a capital", _put("name", value="Sheet"), "schema", "$.name: 'Sheet' is no name; a name is 1 to 63 lower-case letters, digits, _ and - after, a letter first"),
    Broken("a misspelt field", _put("steps", 0, "neds", value=["x"]), "unknown_field", "step make, $.steps[0].neds: there is no such field; there are container, continue_on_failure, description, for_each, input, limit, max_items, model, name, needs, operation, priority, retries, run_on, timeout_seconds, when"),
    Broken("a step's name with a hyphen", _put("steps", 3, "name", value="my-sheet"), "schema", "step my-sheet, $.steps[3].name: 'my-sheet' is no name; a name is 1 to 63 lower-case letters, digits, _, a letter first"),
    Broken("a step's name that is a keyword", _put("steps", 2, "name", value="if"), "bad_name", "step if, $.steps[2].name: 'if' is a word of the expressions' language; choose another"),
    Broken("two steps of one name", _put("steps", 2, "name", value="sheet"), "duplicate_name", "step sheet, $.steps[3].name: 'sheet' is the name of $.steps[2] too"),
    Broken("neither model nor operation", _drop("steps", 2, "operation"), "no_kind", "step guard, $.steps[2]: a step has one of model, operation, container"),
    Broken("model and operation", _put("steps", 2, "model", value="vyvo/digits"), "no_kind", "step guard, $.steps[2]: a step has one of model, operation, container"),
    Broken("no such operation", _put("steps", 2, "operation", value="sleep"), "schema", "step guard, $.steps[2].operation: must be one of http, concat, filter, select, merge, zip, chunk, fail"),
    Broken("a model's name without an owner", _put("steps", 0, "model", value="digits"), "schema", "step make, $.steps[0].model: 'digits' is no model; a model is owner/name or owner/name@version"),
    Broken("a model that is not registered", _put("steps", 0, "model", value="vyvo/none@2"), "unknown_model", "step make, $.steps[0].model: vyvo/none@2 is not registered"),
    Broken("a model without a ready version", _put("steps", 0, "model", value="vyvo/draft"), "unknown_model", "step make, $.steps[0].model: vyvo/draft has no version that is ready"),
    Broken("needs a step that is not there", _put("steps", 2, "needs", value=["reed"]), "unknown_step", "step guard, $.steps[2].needs[0]: there is no step 'reed'"),
    Broken("a step that needs itself", _put("steps", 2, "needs", value=["guard"]), "cycle", "step guard, $.steps[2]: the steps wait for each other: guard needs guard"),
    Broken("a cycle by needs and expressions", _put("steps", 0, "needs", value=["sheet"]), "cycle", "step make, $.steps[0]: the steps wait for each other: make needs sheet needs read needs make"),
    Broken("reads a step that is not there", _put("steps", 3, "input", "lists", "read", value="${{ steps.reed.output }}"), "unknown_step", "step sheet, $.steps[3].input.lists.read: there is no step 'reed'"),
    Broken("reads an input that is not there", _put("steps", 0, "for_each", value="${{ inputs.seed }}"), "unknown_input", "step make, $.steps[0].for_each: there is no input 'seed'; there are seeds, title, strict"),
    Broken("reads what the model does not make", _put("outputs", "sheet", value="${{ steps.make.output[0].digits }}"), "bad_reference", "$.outputs.sheet: steps.make.output[0] has no 'digits'; it has digit, note"),
    Broken("a member of a string", _put("outputs", "sheet", value="${{ steps.read.output[0].text }}"), "bad_reference", "$.outputs.sheet: steps.read.output[0] is string and has no 'text'"),
    Broken("item without for_each", _put("steps", 2, "input", "message", value="${{ item }}"), "bad_reference", "step guard, $.steps[2].input.message: there is no item here but in the input of a step with for_each"),
    Broken("all steps at once", _put("outputs", "sheet", value="${{ len(steps) }}"), "bad_reference", "$.outputs.sheet: name the step: steps.<name>"),
    Broken("an expression that is none", _put("steps", 2, "when", value="${{ inputs.strict && true }}"), "bad_expression", "step guard, $.steps[2].when: 'inputs.strict && true' is no expression: invalid syntax"),
    Broken("an expression that is not closed", _put("outputs", "title", value="${{ inputs.title }"), "bad_expression", "$.outputs.title: a ${{ is not closed by }}"),
    Broken("a function that is not there", _put("outputs", "title", value="${{ open('/etc/passwd') }}"), "bad_expression", "$.outputs.title: the functions are abs, coalesce, flatten, float, int, join, len, max, min, range, round, str, sum"),
    Broken("a loop", _put("outputs", "title", value="${{ [i for i in inputs.seeds] }}"), "bad_expression", "$.outputs.title: expressions cannot hold a comprehension"),
    Broken("a condition that is no expression", _put("steps", 2, "when", value="true"), "bad_expression", "step guard, $.steps[2].when: it must be one expression: ${{ ... }}"),
    Broken("a condition of the wrong type", _put("steps", 2, "when", value="${{ inputs.title }}"), "type", "step guard, $.steps[2].when: must be boolean; inputs.title is string"),
    Broken("for_each over a string", _put("steps", 0, "for_each", value="${{ inputs.title }}"), "type", "step make, $.steps[0].for_each: must be array; inputs.title is string"),
    Broken("more items than max_items", lambda d: d["steps"][0].update(for_each=[1, 2, 3], max_items=2), "too_many_items", "step make, $.steps[0].for_each: has 3 items; max_items is 2"),
    Broken("a limit without for_each", _put("steps", 2, "limit", value=3), "no_for_each", "step guard, $.steps[2].limit: limit is for a step with for_each"),
    Broken("an input that the model does not take", _put("steps", 0, "input", "sed", value=1), "type", "step make, $.steps[0].input.sed: is not taken; taken are digit, seed, style"),
    Broken("an input that the model needs", _drop("steps", 0, "input", "seed"), "missing_field", "step make, $.steps[0].input: 'seed' is required"),
    Broken("an input of the wrong type", _put("steps", 0, "input", "seed", value="${{ inputs.title }}"), "type", "step make, $.steps[0].input.seed: must be integer; inputs.title is string"),
    Broken("a text for a number", _put("steps", 0, "input", "digit", value="no. ${{ item }}"), "type", "step make, $.steps[0].input.digit: must be integer, not string"),
    Broken("a value out of range", _put("steps", 0, "input", "digit", value=12), "type", "step make, $.steps[0].input.digit: must be at most 9, not 12"),
    Broken("a value that is not offered", _put("steps", 0, "input", "style", value="italic"), "type", "step make, $.steps[0].input.style: must be one of thin, bold"),
    Broken("an output that does not fit the next step", _put("steps", 1, "input", "image", value="${{ steps.make.output }}"), "type", "step read, $.steps[1].input.image: must be string; steps.make.output is array"),
    Broken("an operation's input", _drop("steps", 3, "input", "lists"), "missing_field", "step sheet, $.steps[3].input: 'lists' is required"),
    Broken("a container without a place", _container(run_on=None), "no_place", "step gpu, $.steps[4]: a container needs run_on with one of host, pool, gpu"),
    Broken("a container with limits only", _container(run_on={"memory": "1GiB"}), "no_place", "step gpu, $.steps[4].run_on: a container needs run_on with one of host, pool, gpu"),
    Broken("a place for a model", _put("steps", 0, "run_on", value={"pool": "a"}), "no_container", "step make, $.steps[0].run_on: run_on is for a step with container"),
    Broken("GPUs that are none", _container(run_on={"gpu": "1GB"}), "bad_place", "step gpu, $.steps[4].run_on.gpu: '1GB' must be such as 1, all, h100 or h100:2"),
    Broken("memory without a unit", _container(run_on={"pool": "a", "memory": "16"}), "bad_place", "step gpu, $.steps[4].run_on.memory: '16' must be such as 512MiB, at least 6MiB"),
    Broken("an image that is none", _container(image="My Image"), "schema", "step gpu, $.steps[4].container.image: 'My Image' is no image; an image is such as registry:5000/name:tag"),
    Broken("a variable of the platform", _container(env={"VYVO_INPUT": "x"}), "schema", "step gpu, $.steps[4].container.env: 'VYVO_INPUT' is no variable's name, or begins with VYVO_, which is the platform's"),
    Broken("retries without a number", _put("steps", 1, "retries", value={"backoff_seconds": 3}), "missing_field", "step read, $.steps[1].retries: 'attempts' is required"),
    Broken("too many attempts", _put("steps", 1, "retries", "attempts", value=50), "schema", "step read, $.steps[1].retries.attempts: must be at most 10, not 50"),
    Broken("a timeout of nothing", _put("steps", 1, "timeout_seconds", value=0), "schema", "step read, $.steps[1].timeout_seconds: must be at least 1, not 0"),
    Broken("no such priority", _put("priority", value="urgent"), "schema", "$.priority: must be one of interactive, standard, batch"),
    Broken("an input that is no schema", _put("inputs", "title", value={"type": "text"}), "bad_schema", "$.inputs.title.type: is no JSON Schema: 'text' is not valid under any of the given schemas"),
    Broken("an input by regular expression", _put("inputs", "title", value={"type": "string", "pattern": "(a+)+$"}), "bad_schema", "$.inputs.title: an input's schema cannot use pattern"),
    Broken("a default that does not fit", _put("inputs", "seeds", "default", value=["a"]), "bad_default", "$.inputs.seeds.default[0]: must be integer, not string"),
    Broken("no such cron", _put("triggers", 0, "cron", value="0 25 * * *"), "bad_cron", "$.triggers[0].cron: '0 25 * * *' is no cron expression: Bad hour"),
    Broken("a cron that never comes", _put("triggers", 0, "cron", value="0 0 30 2 *"), "bad_cron", "$.triggers[0].cron: '0 0 30 2 *' is no cron expression: Bad day-of-month"),
    Broken("no such time zone", _put("triggers", 0, "timezone", value="Berlin"), "bad_timezone", "$.triggers[0].timezone: there is no time zone 'Berlin'"),
    Broken("a trigger of two kinds", _put("triggers", 0, "on_artifact", value={}), "no_kind", "$.triggers[0]: a trigger has one of cron, on_artifact, on_model_version"),
    Broken("two triggers of one name", _put("triggers", 1, "name", value="nightly"), "duplicate_name", "$.triggers[1].name: 'nightly' is the name of $.triggers[0] too"),
    Broken("a trigger without an input that is needed", _drop("triggers", 1, "inputs"), "missing_field", "$.triggers[1].inputs: 'title' is required"),
    Broken("a trigger that reads a step", _put("triggers", 1, "inputs", "title", value="${{ steps.make.output }}"), "bad_reference", "$.triggers[1].inputs.title: there is no steps here"),
]  # fmt: skip
