"""Every broken definition is told what is wrong, and where; a good one is not."""

from pathlib import Path

import pytest

from tests.unit.workflow.broken import BROKEN, CATALOG, GOOD, Broken
from vyvo_dagster.domain.workflow.definition import ModelRef, parse
from vyvo_dagster.domain.workflow.validation import (
    check,
    check_run_inputs,
    checked,
    model_refs,
)
from vyvo_dagster.errors import InvalidInput, InvalidWorkflow

DOCS = Path(__file__).parents[3] / "docs" / "workflows.md"


def test_a_good_definition_has_no_fault() -> None:
    assert [str(p) for p in check(GOOD, CATALOG)] == []
    assert model_refs(GOOD) == {ModelRef("vyvo/digits", None), ModelRef("vyvo/reader", "3")}
    definition = parse(GOOD)
    assert [s.name for s in definition.order] == ["make", "read", "guard", "sheet"]
    assert definition.steps["sheet"].needs == ("read", "make")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.what)
def test_a_broken_definition_is_told_what_is_wrong(broken: Broken) -> None:
    problems = check(broken.document, CATALOG)
    assert [(p.code, str(p)) for p in problems] == [(broken.code, broken.message)]
    with pytest.raises(InvalidWorkflow) as caught:
        checked(broken.document, CATALOG)
    assert caught.value.detail == broken.message
    assert caught.value.extra["problems"][0]["code"] == broken.code


def test_the_docs_show_the_same_table() -> None:
    lines = DOCS.read_text().splitlines()
    missing = [
        b.what for b in BROKEN if f"| {b.what} | `{b.code}` | {b.message} |" not in lines
    ]  # fmt: skip
    assert missing == []
    assert len(BROKEN) >= 25


def test_all_faults_are_told_at_once() -> None:
    document = dict(GOOD) | {
        "steps": [
            {"name": "a", "model": "vyvo/digits", "input": {"seed": "x", "digit": 10}},
            {"name": "b", "operation": "concat", "input": {"values": "${{ steps.c.output }}"}},
        ],
        "outputs": {},
    }
    found = check(document, CATALOG)
    assert [(p.step, p.code) for p in found] == [
        ("a", "type"), ("a", "type"), ("b", "unknown_step"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "document", [None, [], "x", 3, {"name": float("nan")}, {"name": "\ud800"}, {"steps": 3}]
)
def test_what_is_no_definition_is_refused(document: object) -> None:
    assert check(document, {})
    assert model_refs(document) == set()


def test_a_definition_is_bounded() -> None:
    document = {"name": "w", "description": "x" * 300_000, "steps": []}
    assert [p.code for p in check(document, {})] == ["too_large"]
    many = {"name": "w", "steps": [{"name": f"s{i}", "model": "t/none"} for i in range(200)]}
    assert len(check(many, {})) == 100


def test_run_inputs_get_their_defaults_and_are_checked() -> None:
    definition = parse(GOOD)
    assert check_run_inputs(definition, {"title": "x"}) == {
        "seeds": [1, 2, 3], "strict": False, "title": "x",
    }  # fmt: skip
    with pytest.raises(InvalidInput, match=r"\$: 'title' is required"):
        check_run_inputs(definition, {})
    with pytest.raises(InvalidInput, match=r"\$.seeds\[0\]: must be integer, not string"):
        check_run_inputs(definition, {"title": "x", "seeds": ["a"]})
