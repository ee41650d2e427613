"""Expressions: what they can say, what they cannot, and that they are bounded."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.workflow.expression import compile_expression
from vyvo_dagster.domain.workflow.functions import ExpressionError
from vyvo_dagster.domain.workflow.template import parse_template, render

NAMES: dict[str, Any] = {
    "inputs": {"n": 3, "s": "ab", "list": [1, 2, 3], "in": {"x-y": 5}, "none": None},
    "steps": {"a": {"output": {"y": [{"z": 7}]}, "artifacts": [{"url": "s3://b/k"}]}},
    "item": True,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("inputs.n + 1", 4),
        ("inputs.n * 2.5 - 1", 6.5),
        ("7 // 2 + 7 % 4", 6),
        ("-inputs.n", -3),
        ("inputs.s + 'c'", "abc"),
        ("[1] + inputs.list", [1, 1, 2, 3]),
        ("inputs.n > 2 and inputs.s == 'ab'", True),
        ("not item or inputs.n < 1", False),
        ("1 < inputs.n <= 3", True),
        ("2 in inputs.list", True),
        ("'b' in inputs.s", True),
        ("'big' if inputs.n > 2 else 'small'", "big"),
        ("steps.a.output.y[0].z", 7),
        ("steps['a']['output'].y[-1]['z']", 7),
        ("inputs['in']['x-y']", 5),
        ("inputs.list[1:]", [2, 3]),
        ("steps.a.artifacts[0].url", "s3://b/k"),
        ("len(inputs.list) + len(inputs.s)", 5),
        ("sum(inputs.list) / len(inputs.list)", 2.0),
        ("min(inputs.list) + max(4, 2)", 5),
        ("join(['a', 1, null, true], '-')", "a-1-null-true"),
        ("range(3)", [0, 1, 2]),
        ("flatten([[1], 2, [3, [4]]])", [1, 2, 3, [4]]),
        ("coalesce(null, inputs.none, 5)", 5),
        ("inputs.none.x[3].y", None),
        ("round(2.567, 2)", 2.57),
        ("int('12') + int(2.9)", 14),
        ("true == 1", False),
        ("null == None", True),
    ],
)
def test_values(text: str, value: object) -> None:
    found = compile_expression(text).evaluate(NAMES)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("1 +", "is no expression"),
        ("a.b", "there is no 'a'"),
        ("__import__('os')", "the functions are"),
        ("inputs.__class__.__mro__()", "the functions are"),
        ("'a'.join(inputs.list)", "the functions are"),
        ("len(x=1)", "by name"),
        ("len", "is a function"),
        ("join([len])", "is a function"),
        ("2 ** 10", "no operator"),
        ("1 << 40", "no operator"),
        ("inputs is null", "no operator"),
        ("lambda: 1", "lambda"),
        ("[i for i in inputs.list]", "a comprehension"),
        ("{'a': 1}", "an object"),
        ("f'{inputs.n}'", "an f-string"),
        ("(x := 1)", "an assignment"),
        ("b'a'", "no JSON value"),
        ("1j", "no JSON value"),
        ("x; y", "is no expression"),
        ("-" * 1500 + "1", "too complex"),
        ("+".join(["1"] * 400), "too complex"),
        ("1" * 3000, "longer than"),
    ],
)
def test_refused_before_a_run(text: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=says):
        compile_expression(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("inputs.m", "there is no 'm'; there is in, list"),
        ("inputs.list[3]", "no item 3; there are 3"),
        ("inputs.list.x", "a list has no 'x'"),
        ("inputs.n.real", "a number has no 'real'"),
        ("inputs.s.upper", "a string has no 'upper'"),
        ("inputs.s * 1000000", "a number is needed"),
        ("'%1000000000d' % 1", "a number is needed"),
        ("inputs.n + inputs.s", "a number is needed"),
        ("inputs.s < 3", "not supported"),
        ("1 / 0", "division"),
        ("1e308 * 10", "no JSON number"),
        ("range(100000)", "whole number"),
        ("sum(['a'])", "a number is needed"),
        ("index", "there is no 'index' here"),
        ("min([])", "empty list"),
        ("len(3)", "has no length"),
        ("int('a')", "invalid literal"),
        ("int('9999', 3)", "argument"),
        ("inputs.list['a']", "a list has no 'a'"),
        ("*".join(["9" * 300] * 5), "too many digits"),
    ],
)
def test_no_value(text: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=says):
        compile_expression(text).evaluate(NAMES)


def test_a_value_cannot_grow_without_bound() -> None:
    names = {"inputs": {"big": "x" * 900_000, "list": ["y" * 1000] * 900}}
    for text in (
        "inputs.big + inputs.big",
        "[inputs.list, inputs.list]",
        "join([inputs.big, inputs.big])",
    ):
        with pytest.raises(ExpressionError, match=r"too long|larger than"):
            compile_expression(text).evaluate(names)
    with pytest.raises(ExpressionError, match="larger than"):
        render({"a": "${{ inputs.big }}", "b": ["${{ inputs.big }}"]}, names)


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        compile_expression(text).evaluate(NAMES)
    except ExpressionError as error:
        assert error.detail  # noqa: PT017


def test_references_end_where_a_part_is_computed() -> None:
    found = compile_expression(
        "steps.a.output[inputs.n].x + len(steps['b c'].output[-1])"
    ).references
    assert [str(r) for r in found] == ["steps.a.output", "inputs.n", "steps['b c'].output[-1]"]
    assert not any(r.whole for r in found)
    (whole,) = compile_expression("steps.a.output").references
    assert whole.whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${{ inputs.list }}", [1, 2, 3]),
        ("  ${{inputs.n}} ", 3),
        ("n is ${{ inputs.n }}, ${{ item }}${{ inputs.none }}.", "n is 3, true."),
        ("$${{ inputs.n }}", "${{ inputs.n }}"),
        ("a $${{ x }} ${{ inputs.n }}", "a ${{ x }} 3"),
        ("${{ 'a}}b' }}", "a}}b"),
        ("${{ inputs.list }}!", "[1,2,3]!"),
    ],
)
def test_templates(text: str, value: object) -> None:
    assert render({"k": [text]}, NAMES) == {"k": [value]}


def test_a_template_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ExpressionError, match="not closed"):
        parse_template("a ${{ inputs.n }")


def test_an_error_names_the_place() -> None:
    with pytest.raises(ExpressionError, match=r"^input\.a\[1\]\.b: inputs\.m: there is no 'm'"):
        render({"a": [1, {"b": "${{ inputs.m }}"}]}, NAMES, "input")
