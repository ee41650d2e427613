"""What JSON allows and a column does not, refused or mended."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.fields import check_json, listing, mended
from api.jobs.submission import traceparent_or_none
from vyvo_dagster.errors import InvalidInput

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters())
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner)
)


@given(values)
def test_what_is_mended_can_be_stored(value: Any) -> None:
    fixed = mended(value)
    check_json(fixed, "value")
    text = json.dumps(fixed, allow_nan=False)
    assert "\\u0000" not in text
    text.encode()


@given(values)
def test_what_can_be_stored_is_left_as_it_is(value: Any) -> None:
    try:
        check_json(value, "value")
    except InvalidInput:
        return
    assert mended(value) == value


@pytest.mark.parametrize(
    "value", ["a\0", "\ud800", {"k\0": 1}, [[float("nan")]], {"a": [float("inf")]}, {"a": "\udfff"}]
)
def test_what_cannot_be_stored_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^input "):
        check_json(value, "input")


def test_depth_is_bounded() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="nested"):
        check_json(deep, "input")
    assert json.dumps(mended(deep))


def test_a_page_and_the_way_to_the_next() -> None:
    class Row:
        def __init__(self, n: int) -> None:
            self.id = UUID(int=n)

    rows = [Row(n) for n in range(3)]
    assert listing(rows, 2) == (rows[:2], str(rows[1].id))
    assert listing(rows, 3) == (rows, None)
    empty: list[Row] = []
    assert listing(empty, 3) == ([], None)


@pytest.mark.parametrize(
    ("header", "good"),
    [
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True),
        ("00-" + "0" * 32 + "-" + "b" * 16 + "-01", False),
        ("00-" + "a" * 32 + "-" + "0" * 16 + "-01", False),
        ("00-" + "A" * 32 + "-" + "b" * 16 + "-01", False),
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-01\n", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_w3c_trace_context_is_kept(header: str | None, good: bool) -> None:
    assert traceparent_or_none(header) == (header if good else None)
