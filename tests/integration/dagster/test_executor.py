"""Ops on tagged hosts: a worker, a registry and three real engines."""

import re
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from tests.integration.dagster import lossy_engine
from tests.integration.dagster.routed_world import World, until

# One worker of xdist has the hosts, and one Celery worker.
pytestmark = pytest.mark.xdist_group("hosts")


def test_each_op_runs_in_the_engine_that_its_tag_asks_for(routed: World) -> None:
    run_id = routed.launch("three_hosts")
    assert routed.ended(run_id) is DagsterRunStatus.SUCCESS, routed.said(run_id)
    hosts = {"on_default": "default", "on_host2": "host2", "on_pool_three": "host3"}
    for step, host in hosts.items():
        container, _ = routed.where(run_id, step)
        assert container is not None, step
        told = routed.launched(run_id, step)
        assert (told["Docker container id"], told["Host"]) == (container, host)
        assert routed.started_on(container) == [host]
        print(f"{step}: container {container[:12]}, started by the engine of {host}")
    here, beside = routed.where(run_id, "untagged"), routed.where(run_id, "own_process")
    assert here[0] is None
    assert beside[0] is None
    assert here[1] != beside[1]
    pids = {int(m[1]) for m in re.finditer(r"pid: (\d+)", "\n".join(routed.said(run_id)))}
    assert here[1] in pids, "the untagged op is in the process of the run"
    assert routed.containers(run_id) == {}


def test_ops_hand_values_from_host_to_host_and_back(routed: World) -> None:
    run_id = routed.launch("values")
    assert routed.ended(run_id) is DagsterRunStatus.SUCCESS, routed.said(run_id)
    assert routed.where(run_id, "hands_on")[0] is not None
    assert routed.where(run_id, "takes")[0] is None
    assert routed.told(run_id, "takes", r"took .*'pi': \[3, 1\.4, None, 'é'\], 'by': 'default'")


def test_an_op_that_no_node_matches_waits_says_which_tag_and_is_placed_later(routed: World) -> None:
    run_id = routed.launch("waiting")
    until(lambda: routed.told(run_id, "on_late", "no node matches vyvo/host=late"), what="a word")
    assert routed.status(run_id) is DagsterRunStatus.STARTED
    routed.join("late")
    assert routed.ended(run_id) is DagsterRunStatus.SUCCESS
    container, _ = routed.where(run_id, "on_late")
    assert container is not None
    assert len([m for m in routed.said(run_id, "on_late") if "no node matches" in m]) == 1


@pytest.mark.parametrize("request_", [rb"POST \S*/containers/create", rb"POST \S*/start"])
def test_an_engine_whose_answer_is_lost_runs_the_step_once(routed: World, request_: bytes) -> None:
    with lossy_engine.started(routed.home / "lossy.sock", routed.urls["default"]) as engine:
        routed.join("lossy")
        engine.lose(request_)
        run_id = routed.launch("lossy")
        assert routed.ended(run_id) is DagsterRunStatus.SUCCESS, routed.said(run_id)
        assert engine.lost == 1
        routed.forget("lossy")
    assert len([m for m in routed.said(run_id, "on_lossy") if "container=" in m]) == 1
    container, _ = routed.where(run_id, "on_lossy")
    assert container is not None
    assert routed.started_on(container) == ["default"]
    assert routed.containers(run_id) == {}


def test_a_terminated_run_leaves_no_container_and_no_process(routed: World) -> None:
    run_id = routed.launch("long")
    for step in ("long_on_host2", "deaf_on_host3"):
        routed.where(run_id, step)
    _, beside = routed.where(run_id, "long_beside")
    assert set(routed.containers(run_id)) == {"host2", "host3"}
    routed.terminate(run_id)
    assert routed.ended(run_id, 45) is DagsterRunStatus.CANCELED
    assert routed.containers(run_id) == {}
    assert not Path(f"/proc/{beside}").exists()


def test_a_run_terminated_in_an_op_of_its_own_process_leaves_no_container(routed: World) -> None:
    run_id = routed.launch("long_with_one_here")
    routed.where(run_id, "long_on_host2")
    routed.where(run_id, "long_here")
    routed.terminate(run_id)
    assert routed.ended(run_id, 45) is DagsterRunStatus.CANCELED
    assert routed.containers(run_id) == {}


def test_limits_and_the_weights_cache(routed: World) -> None:
    run_id = routed.launch("limits")
    assert routed.ended(run_id) is DagsterRunStatus.FAILURE
    assert routed.told(run_id, "limited", f"memory={384 << 20}")
    assert routed.told(run_id, "limited", "weights=weights of the node")
    assert routed.told(run_id, "limited", "write=30"), "a read-only file system"
    failed = "\n".join(str(e.dagster_event) for e in routed.instance.all_logs(run_id))
    assert "more memory than its limit" in failed
    assert routed.containers(run_id) == {}


def test_a_retry_is_another_container_and_a_bad_tag_fails_its_step_only(routed: World) -> None:
    run_id = routed.launch("attempts")
    assert routed.ended(run_id) is DagsterRunStatus.FAILURE
    seen = {
        m[1] for m in re.finditer(r"container=(\w+)", "\n".join(routed.said(run_id, "fails_once")))
    }
    assert len(seen) == 2
    failed = "\n".join(str(e.dagster_event) for e in routed.instance.all_logs(run_id))
    assert "tag vyvo/gpu='1GB' must be such as" in failed
    assert routed.told(run_id, "fails_once", "STEP_SUCCESS|Finished execution of step")


def test_a_gpu_is_asked_for_by_its_uuid_and_an_engine_without_says_so(routed: World) -> None:
    routed.join("host2", gpus=1)
    try:
        run_id = routed.launch("gpu")
        assert routed.ended(run_id) is DagsterRunStatus.FAILURE
        failed = "\n".join(str(e.dagster_event) for e in routed.instance.all_logs(run_id))
        assert "the engine refuses its container" in failed
        assert "could not select device driver" in failed
        assert routed.launched(run_id, "on_a_gpu")["GPUs"] == "GPU-host2-0"
        assert routed.containers(run_id) == {}
    finally:
        routed.join("host2")


def test_what_a_killed_worker_left_is_swept(routed: World) -> None:
    run_id = routed.launch("long")
    for step in ("long_on_host2", "deaf_on_host3"):
        routed.where(run_id, step)
    _, beside = routed.where(run_id, "long_beside")
    routed.kill_worker()
    try:
        assert routed.tick() == "nothing to do", "nobody has ended the run yet"
        assert set(routed.containers(run_id)) == {"host2", "host3"}
        # As the daemon does by the minute; the lease of the run would be lost after half of one.
        routed.forget_lease(run_id)
        routed.monitor(run_id)
        assert routed.ended(run_id) is DagsterRunStatus.FAILURE
        said = routed.tick()
        assert said.count("dagster-step-") == 2, said
        assert routed.containers(run_id) == {}
        until(lambda: not Path(f"/proc/{beside}").exists(), 10)
    finally:
        routed.start_worker()


def test_a_run_that_is_resumed_finds_its_container_and_runs_its_own_op_again(
    routed: World,
) -> None:
    run_id = routed.launch("resumable")
    container, _ = routed.where(run_id, "told_on_host2")
    routed.where(run_id, "long_here_unless_told")
    assert container is not None
    routed.kill_worker()
    try:
        routed.forget_lease(run_id)
        routed.monitor(run_id, resumes=True)
    finally:
        routed.start_worker()
    until(
        lambda: len({m for m in routed.said(run_id, "long_here_unless_told") if "pid=" in m}) == 2,
        what="the op in the process of the new worker",
    )
    assert routed.containers(run_id) == {"host2": [container]}
    (routed.home / "weights" / run_id).touch()
    assert routed.ended(run_id) is DagsterRunStatus.SUCCESS, routed.said(run_id)
    assert len([m for m in routed.said(run_id, "told_on_host2") if "container=" in m]) == 1
    assert routed.started_on(container) == ["host2"]
    assert routed.containers(run_id) == {}


def test_the_pools_of_gpus_have_as_many_slots_as_there_are_gpus(routed: World) -> None:
    routed.join("host2", gpus=2, pool="h100")
    routed.join("host3", gpus=1, pool="h100")
    try:
        assert "gpu-pool/h100 to 3" in routed.tick()
        limits = {p.name: p.limit for p in routed.instance.event_log_storage.get_pool_limits()}
        assert limits == {"gpu/host2": 2, "gpu/host3": 1, "gpu-pool/h100": 3}
        assert routed.tick() == "nothing to do"
    finally:
        routed.join("host2")
        routed.join("host3", pool="three")
