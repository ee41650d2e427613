"""Names that callers choose: what is taken, what is refused, and what becomes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.build import partition_key, split_partition_key
from vyvo_dagster.domain.model import file_stem, parse_model_id, parse_version
from vyvo_dagster.domain.node import parse_node_name
from vyvo_dagster.domain.scope import Scope, grants
from vyvo_dagster.errors import InvalidInput, InvalidModelId


@pytest.mark.parametrize(
    "good", ["a/b", "chetwinlow1/Ovi", "stabilityai/sdxl-turbo.v1_0", "a" * 64 + "/b"]
)
def test_good_model_ids(good: str) -> None:
    assert parse_model_id(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a",
        "/b",
        "a/",
        "../etc",
        "a/..",
        "a/b/c",
        "a b/c",
        "a/b c",
        "a" * 65 + "/b",
        "a" * 300 + "/b",
        "a--b/c",
        "a/-b",
        "a/b.",
        "a/b\n",
        "ä/b",
        "a/b\x00",
        "a@b/c",
    ],
)
def test_bad_model_ids_are_refused_in_a_short_sentence(bad: str) -> None:
    with pytest.raises(InvalidModelId) as caught:
        parse_model_id(bad)
    assert len(caught.value.detail) < 250


@given(st.text(max_size=80))
def test_a_model_id_that_is_taken_is_a_safe_file_name(text: str) -> None:
    try:
        stem = file_stem(text)
    except InvalidModelId:
        return
    assert "/" not in stem
    assert not stem.startswith((".", "-"))
    assert stem.isascii()
    assert stem.replace("--", "/", 1) == text


@pytest.mark.parametrize("bad", ["", "-1", ".5", "v 1", "v1\n", "a/b", "v@1", "v" * 65])
def test_bad_versions(bad: str) -> None:
    with pytest.raises(InvalidInput):
        parse_version(bad)


def test_partition_keys_are_one_to_one() -> None:
    assert split_partition_key(partition_key("a/b", "v1")) == ("a/b", "v1")


@pytest.mark.parametrize("bad", ["", "a b", "-a", "a/b", "a" * 64, "a\n"])
def test_bad_node_names(bad: str) -> None:
    with pytest.raises(InvalidInput):
        parse_node_name(bad)


def test_scopes() -> None:
    assert all(grants({Scope.ADMIN}, s) for s in Scope if s is not Scope.NODE)
    assert not grants({Scope.ADMIN}, Scope.NODE)
    assert grants({Scope.JOBS_WRITE}, Scope.JOBS_READ)
    assert not grants({Scope.JOBS_READ}, Scope.JOBS_WRITE)
    assert not grants({Scope.NODE}, Scope.JOBS_READ)
    assert not grants(set(), Scope.JOBS_READ)
