"""Pushes to a registry that fails: made again, given up, or canceled."""

import threading
from collections.abc import Iterator

import pytest

from tests.integration.failing_registry import FailingRegistry
from tests.integration.test_building_backends import (
    HAS_ENGINE,
    REGISTRY,
    Bench,
    Lines,
    bench,
    shared_data,
    template,
)
from vyvo_dagster.building.pushing import with_retries
from vyvo_dagster.building.types import BuildCanceled, BuildResult
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed

__all__ = ["bench", "shared_data", "template"]

# One after the other: they share the engines, or keep both cores busy.
pytestmark = pytest.mark.xdist_group("hosts")


@pytest.fixture
def registry() -> Iterator[FailingRegistry]:
    made = FailingRegistry(REGISTRY, r"PUT /v2/.*/manifests/", 2)
    yield made
    made.close()


def build(bench: Bench, registry: str, attempts: int) -> BuildResult:
    bench.registry, bench.push_attempts = registry, attempts
    return bench.build(BuildBackend.BUILDX)


class TestPush:
    """With an engine, through a proxy before the real registry."""

    __test__ = HAS_ENGINE

    def test_a_push_that_is_answered_500_twice_is_made_a_third_time(
        self, bench: Bench, registry: FailingRegistry
    ) -> None:
        result = build(bench, registry.address, attempts=4)
        assert (registry.failed, registry.passed) == (2, 1)
        assert result.image.startswith(f"{registry.address}/vyvo/test/")
        said = [text for step, text in bench.log.lines if step == "push"]
        assert "500" in said[0]
        assert [text.rpartition("; ")[2] for text in said[:2]] == [
            "try 2 of 4 in 1 s",
            "try 3 of 4 in 2 s",
        ]
        assert bench.states == [BuildState.PUSHING]
        assert bench.leftovers() == []

    def test_a_push_that_fails_every_time_is_given_up_with_the_registrys_words(
        self, bench: Bench, registry: FailingRegistry
    ) -> None:
        with pytest.raises(BuildFailed, match=r"^push: gave up after 2 tries: .*500"):
            build(bench, registry.address, attempts=2)
        assert bench.leftovers() == []


@pytest.mark.parametrize(
    ("why", "pushing"),
    [
        ("image failed with exit status 1: exit code: 7", False),
        ("image failed with exit status 1: denied: requested access is denied", True),
        ("image failed with exit status 1: unauthorized: authentication required", True),
    ],
)
def test_what_would_fail_again_is_not_tried_again(why: str, pushing: bool) -> None:
    log, calls = Lines(), []

    def push() -> None:
        calls.append(why)
        raise BuildFailed(why)

    with pytest.raises(BuildFailed, match=why.partition(": ")[2]):
        with_retries(push, lambda: pushing, attempts=5, log=log, cancel=threading.Event())
    assert len(calls) == 1


def test_a_name_that_reads_like_a_refusal_is_none() -> None:
    calls: list[int] = []

    def push() -> None:
        calls.append(1)
        if len(calls) == 1:
            name = "10.0.0.403:403/denied/403"
            raise BuildFailed(f"image: pushing {name} with docker: 500 Internal Server Error")

    with_retries(push, lambda: True, attempts=2, log=Lines(), cancel=threading.Event())
    assert len(calls) == 2


def test_a_cancel_ends_the_pause() -> None:
    cancel = threading.Event()

    def push() -> None:
        cancel.set()
        raise BuildFailed("image failed with exit status 1: 500 Internal Server Error")

    with pytest.raises(BuildCanceled):
        with_retries(push, lambda: True, attempts=5, log=Lines(), cancel=cancel)
