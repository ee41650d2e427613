"""Values of ops as JSON in the object store."""

import math
from typing import Any

import pytest
from dagster import Nothing, Out, job, op

from resources import JsonValues
from tests.integration.dagster.conftest import World
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import InvalidInput


def stored(world: World) -> int:
    s3 = world.objects.store()
    return len(list(s3.list(s3.bucket(Modality.LOG), "dagster/values/")))


def run(world: World, value: Any) -> Any:
    @op(out=Out(io_manager_key="json_values"))
    def gives() -> Any:
        return value

    @op(out=Out(io_manager_key="json_values"))
    def takes(given: Any) -> Any:
        return [given]

    @job
    def hands_over() -> None:
        takes(gives())

    resources = {"json_values": JsonValues(objects=world.objects)}
    done = hands_over.execute_in_process(resources=resources, instance=world.instance)
    return done.output_for_node("takes")


@pytest.mark.parametrize("value", [None, 0, "é\x00", [], {"a": [1, 2.5, {"b": False}]}])
def test_a_value_comes_back_as_it_was(world: World, value: Any) -> None:
    before = stored(world)
    assert run(world, value) == [value]
    assert stored(world) == before + 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((1, 2), "come back changed"),
        ({1: "a"}, "come back changed"),
        (math.nan, "no JSON value"),
        (b"bytes", "no JSON value"),
        ("x" * (16 << 20), "store it, and return its URI"),
    ],
)
def test_a_value_that_would_not_is_refused(world: World, value: Any, reason: str) -> None:
    before = stored(world)
    with pytest.raises(InvalidInput, match=reason):
        run(world, value)
    assert stored(world) == before


def test_nothing_is_not_stored(world: World) -> None:
    @op(out=Out(Nothing, io_manager_key="json_values"))
    def gives() -> None: ...

    @job
    def one() -> None:
        gives()

    before = stored(world)
    resources = {"json_values": JsonValues(objects=world.objects)}
    assert one.execute_in_process(resources=resources, instance=world.instance).success
    assert stored(world) == before
