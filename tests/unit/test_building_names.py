"""Names and targets that a build derives."""

import pytest

from vyvo_dagster.building.image_check import repository_of
from vyvo_dagster.building.wheelhouse import Target
from vyvo_dagster.errors import BuildFailed, InvalidInput
from vyvo_dagster.objects import format_s3_uri, parse_s3_uri


def test_repository_is_lower_case() -> None:
    assert repository_of("chetwinlow1/Ovi") == "vyvo/chetwinlow1/ovi"


def test_target_is_the_newest_platform_that_the_libc_runs() -> None:
    target = Target.of("3.11", "x86_64", "2.36")
    assert target.platform == "x86_64-manylinux_2_36"
    assert target.pip_platforms[0] == "manylinux_2_36_x86_64"
    assert "manylinux_2_17_x86_64" in target.pip_platforms
    assert "manylinux2014_x86_64" in target.pip_platforms
    assert Target.of("3.12", "aarch64", "2.30").platform == "aarch64-manylinux_2_28"
    assert Target.of("3.12", "x86_64", "2.99").platform == "x86_64-manylinux_2_40"


@pytest.mark.parametrize(
    ("machine", "libc"), [("x86_64", ""), ("x86_64", "2.5"), ("riscv64", "2.36")]
)
def test_target_without_wheels_is_refused(machine: str, libc: str) -> None:
    with pytest.raises(BuildFailed, match="glibc"):
        Target.of("3.11", machine, libc)


def test_s3_uri_round_trip() -> None:
    uri = format_s3_uri("vyvo-image", "2026/01/ä b.png")
    assert parse_s3_uri(uri) == ("vyvo-image", "2026/01/ä b.png")
    assert str(parse_s3_uri(uri)) == uri


@pytest.mark.parametrize(
    "uri", ["", "s3://", "s3://ab/k", "s3://a..b/k", "s3://bucket/", "s3://bucket//k", "s3://bucket/a/./b",
            "s3://bucket/\n", "http://bucket/k", "s3://-bucket/k"]
)  # fmt: skip
def test_s3_uri_that_is_none(uri: str) -> None:
    with pytest.raises(InvalidInput):
        parse_s3_uri(uri)
