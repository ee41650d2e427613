"""Credentials: their form, and what is kept of them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.security.keys import TokenKind, digest_of, matches, mint, parse_token, same_secret


def test_a_token_has_the_documented_form_and_reads_back() -> None:
    for kind in TokenKind:
        token = mint(kind)
        assert re.fullmatch(rf"{kind}_[0-9a-f]{{8}}_[A-Za-z0-9_-]{{43}}", token.text)
        assert parse_token(token.text) == token
        assert matches(token, digest_of(token.text))


def test_no_two_tokens_are_alike() -> None:
    assert len({mint(TokenKind.KEY).text for _ in range(500)}) == 500


def test_a_token_is_not_shown_by_accident() -> None:
    token = mint(TokenKind.KEY)
    assert token.text.rpartition("_")[2] not in repr(token)
    assert token.text not in f"{token}"


def test_any_other_character_makes_another_token() -> None:
    token = mint(TokenKind.KEY)
    other = parse_token(token.text[:-1] + ("A" if token.text[-1] != "A" else "B"))
    assert other is not None
    assert not matches(other, token.digest)


@given(st.text())
def test_what_is_no_token_is_none(text: str) -> None:
    assert parse_token(text) is None


@given(st.text(), st.text(alphabet=st.characters(codec="utf-8")))
def test_secrets_are_equal_only_to_themselves(given_: str, expected: str) -> None:
    assert same_secret(expected, expected)
    assert same_secret(given_, expected) == (given_ == expected)
