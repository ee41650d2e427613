"""One op to a GPU, on an engine that gives GPUs out, over runs of two processes."""

import itertools
import re
from collections.abc import Iterator

import pytest
from dagster import DagsterRunStatus

from tests.integration.dagster import gpu_engine
from tests.integration.dagster.routed_world import World

pytestmark = pytest.mark.xdist_group("hosts")

UUIDS = {"GPU-gpuhost-0", "GPU-gpuhost-1"}


@pytest.fixture(scope="module")
def gpuhost(routed: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    socket = routed.home / "gpu.sock"
    with gpu_engine.started(socket, tmp_path_factory.mktemp("gpu")):
        routed.join("gpuhost", gpus=2)
        routed.urls["gpuhost"] = f"unix://{socket}"
        yield routed
        del routed.urls["gpuhost"]


def held(world: World, run_id: str) -> list[tuple[str, float, float]]:
    """GPU, from, until, of each op of a run."""
    found = []
    for number in range(3):
        said = "\n".join(world.said(run_id, f"hold_{number}"))
        began, ended = (
            re.search(r"gpu=(\S+) from=([0-9.]+)", said),
            re.search(r"until=([0-9.]+)", said),
        )
        assert began, said
        assert ended, said
        found.append((began[1], float(began[2]), float(ended[1])))
    return found


def test_no_two_ops_have_the_same_gpu_at_the_same_time(gpuhost: World) -> None:
    runs = [gpuhost.launch("gpus"), gpuhost.launch("gpus")]
    for run_id in runs:
        assert gpuhost.ended(run_id, 240) is DagsterRunStatus.SUCCESS, gpuhost.said(run_id)
    ops = [op for run_id in runs for op in held(gpuhost, run_id)]
    assert len(ops) == 6
    assert {gpu for gpu, _, _ in ops} == UUIDS, "each op has one of them, and both are used"
    for (gpu, begun, ended), (other, other_begun, other_ended) in itertools.combinations(ops, 2):
        assert gpu != other or ended <= other_begun or other_ended <= begun
    assert any("has no GPU free" in m for run_id in runs for m in gpuhost.said(run_id))
    assert all(gpuhost.containers(run_id) == {} for run_id in runs)


def test_a_pool_holds_ops_back_before_their_containers_are_made(gpuhost: World) -> None:
    assert "gpu/gpuhost to 2" in gpuhost.tick()
    run_id = gpuhost.launch("pooled")
    assert gpuhost.ended(run_id, 240) is DagsterRunStatus.SUCCESS, gpuhost.said(run_id)
    said = "\n".join(gpuhost.said(run_id))
    assert "gpu/gpuhost" in said, "Dagster says for which pool it waits"
    assert {gpu for gpu, _, _ in held(gpuhost, run_id)} == UUIDS
