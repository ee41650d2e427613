"""Joining, stopping, and what an agent refuses, on real Redis, S3 and Cog runners."""

import asyncio
import stat
from pathlib import Path

import pytest
from agent_world import Start, desire, loaded, order, runner_pids, settings
from control_plane import JOIN_TOKEN, ControlPlane

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.errors import Conflict, InvalidInput
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind
from vyvo_dagster.streams import keys


async def test_a_stop_hands_back_what_runs_and_says_so(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    loop = asyncio.get_running_loop()
    async with started():
        await loaded(plane, asked)
        run = order(asked, steps=400, seconds=0.1)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: any(p.fraction for _, p in plane.progress))
        began = loop.time()
    assert loop.time() - began < 8
    report = plane.ended(run.job_id)
    assert report is not None
    assert report.status is AttemptStatus.HANDED_BACK
    assert plane.heartbeats[-1].leaving
    assert not plane.heartbeats[-2].leaving


async def test_it_joins_again_when_its_boot_is_stale(
    plane: ControlPlane, started: Start, runner_image: str, tmp_path: Path
) -> None:
    asked = desire(plane, runner_image)
    plane.refusals["register"].extend([(503, "unavailable")] * 2)
    async with started():
        await loaded(plane, asked)
        assert plane.tokens == [JOIN_TOKEN]
        run = order(asked, steps=400, seconds=0.1)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: any(p.fraction for _, p in plane.progress))
        pid_before = runner_pids()
        plane.refusals["heartbeat"].append((409, "stale_boot"))
        await plane.until(lambda: len(plane.boots) == 2)
        assert plane.tokens == [JOIN_TOKEN, plane.credential]
        assert plane.boots[0] != plane.boots[1]
        again = order(asked, attempt=2, job_id=run.job_id, steps=0)
        await plane.order(OrderKind.RUN, again)
        report = await plane.until(lambda: plane.ended(run.job_id))
        assert (report.attempt, report.status) == (2, AttemptStatus.SUCCEEDED)
        # The runner stayed loaded: nothing was started anew.
        assert runner_pids() == pid_before
        plane.credential = "credential-2"
        plane.refusals["heartbeat"].append((401, "unauthenticated"))
        await plane.until(
            lambda: len(plane.boots) == 3 and plane.heartbeats[-1].boot_id == plane.boots[2]
        )
        assert plane.tokens[-2:] == ["credential-1", JOIN_TOKEN]
    credential = tmp_path / "data" / "credential.json"
    assert "credential-2" in credential.read_text()
    assert stat.S_IMODE(credential.stat().st_mode) == 0o600


async def test_orders_of_an_earlier_boot_are_dropped_and_a_flush_is_survived(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    stream = keys.node(plane.node_id)
    old = order(asked, steps=0)
    await plane.order(OrderKind.RUN, old)
    await plane.redis.xgroup_create(stream, keys.GROUP_AGENT, id="0")
    await plane.redis.xreadgroup(keys.GROUP_AGENT, "an-earlier-boot", {stream: ">"})
    async with started():
        await loaded(plane, asked)
        await plane.redis.delete(stream)
        run = order(asked, steps=0)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: plane.ended(run.job_id))
        consumers = await plane.redis.xinfo_consumers(stream, keys.GROUP_AGENT)
        assert [c["name"] for c in consumers] == [str(plane.boots[-1])]
    assert plane.ended(old.job_id) is None


async def test_what_cannot_run_here_says_why(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    wanted = {
        desire(
            plane, "registry.example/vyvo/x@sha256:" + "0" * 64
        ).assignment_id: "container engine",
        desire(plane, "venv://sha256:" + "0" * 64).assignment_id: "not on this node",
        desire(plane, "venv://sha256:../../etc").assignment_id: "64 hex digits",
        desire(plane, runner_image, resources={"gpu_memory_bytes": 1 << 40}).assignment_id: "GPU",
        desire(plane, runner_image, env={"BAD": "two\nlines"}).assignment_id: "newline",
        desire(plane, runner_image, weights_url="s3://bucket/key").assignment_id: "checksum",
    }
    async with started():
        await plane.until(lambda: all(plane.state(known) == "failed" for known in wanted))
        details = {a.assignment_id: a.detail or "" for a in plane.heartbeats[-1].assignments}
    assert [why for known, why in wanted.items() if why not in details[known]] == [], details


async def test_a_second_agent_on_the_same_directory_is_refused(
    plane: ControlPlane, started: Start, runner_venvs: Path, tmp_path: Path
) -> None:
    async with started():
        await plane.until(lambda: plane.heartbeats)
        with pytest.raises(Conflict, match="another agent uses"):
            await Agent(settings(plane, runner_venvs, tmp_path)).run(asyncio.Event())


async def test_without_a_token_it_says_what_is_missing(
    plane: ControlPlane, runner_venvs: Path, tmp_path: Path
) -> None:
    lacking = settings(plane, runner_venvs, tmp_path, join_token=None)
    with pytest.raises(InvalidInput, match="VYVO_AGENT_JOIN_TOKEN"):
        await asyncio.wait_for(Agent(lacking).run(asyncio.Event()), 10)


async def test_its_credential_is_replaced_before_it_ends(
    plane: ControlPlane, started: Start, tmp_path: Path
) -> None:
    plane.credential_seconds = 1.0
    plane.refusals["credential"].append((503, "unavailable"))
    async with started():
        await plane.until(lambda: plane.beat_tokens[-1:] == ["replaced-1"])
        assert plane.beat_tokens[0] == "credential-1"
        assert "replaced-1" in (tmp_path / "data" / "credential.json").read_text()
        assert len(plane.boots) == 1  # The session went on.
