"""Secrets stay out of logs, whatever cut them."""

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.building.masking import CUT, Masker

SECRET = "s3cr3t-token-of-some-length"


def test_secrets_are_replaced_the_longer_first() -> None:
    mask = Masker(["abcd", "abcdefgh", "no", ""])
    assert mask("abcdefgh abcd no") == "*** *** no"


def test_a_secret_of_several_lines_is_found_line_by_line() -> None:
    mask = Masker(["-----BEGIN KEY-----\nline-one-of-it\nline-two-of-it\n"])
    assert mask("x line-two-of-it y") == "x *** y"
    assert mask("-----BEGIN KEY-----\nline-one-of-it") == "***\n***"


@given(st.integers(0, len(SECRET)), st.text("xyz", min_size=40, max_size=60))
def test_no_beginning_of_a_secret_is_left_before_a_cut(kept: int, before: str) -> None:
    shown = Masker([SECRET])(before + SECRET[:kept] + CUT)
    assert shown.endswith(CUT)
    assert not any(SECRET[:n] in shown.removesuffix(CUT) for n in range(1, kept + 1))
    assert Masker([])("abc" + CUT) == "abc" + CUT


def test_fields_are_masked_too() -> None:
    assert Masker([SECRET]).fields({"ansi": f"\x1b[1m{SECRET}", "stream": 1}) == {
        "ansi": "\x1b[1m***", "stream": 1,
    }  # fmt: skip
