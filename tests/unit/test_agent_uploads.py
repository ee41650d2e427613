"""Inline outputs: which strings are files, and where they go."""

import base64

import pytest

from vyvo_dagster.agent.texts import clean
from vyvo_dagster.agent.uploads import data_uris_in, decode_data_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode(),
            ("image/png", b"\x89PNG"),
        ),
        ("DATA:Image/PNG;BASE64,iVBORw==", ("image/png", b"\x89PNG")),
        ("data:,plain%20text", ("text/plain", b"plain text")),
        ("data:text/plain;charset=utf-8;base64,aGk=", ("text/plain", b"hi")),
        ("data:image/svg+xml,%3Csvg/%3E", ("image/svg+xml", b"<svg/>")),
        ("data:image/png;base64,not base64!", None),
        ("data:image/png;base64,caf\u00e9", None),
        ("data: is what we need", None),
        ("database: x", None),
    ],
)
def test_data_uris(uri: str, expected: tuple[str, bytes] | None) -> None:
    assert decode_data_uri(uri) == expected


def test_they_are_found_at_any_depth() -> None:
    output = {"a": ["data:,1", {"b": "data:,2"}], "c": "no", "d": 4, "e": None}
    assert data_uris_in(output) == ["data:,1", "data:,2"]


def test_no_nul_reaches_a_row() -> None:
    assert clean({"a\0": ["b\0", 1, None, {"c": "\0"}]}) == {
        "a\ufffd": ["b\ufffd", 1, None, {"c": "\ufffd"}]
    }
