"""The agent on real Redis, S3 and Cog runners, against a control plane that keeps what it hears."""

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from control_plane import JOIN_TOKEN, ControlPlane
from pydantic import SecretStr

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.agent.assignment import Limits
from vyvo_dagster.agent.serving import ServingLimits
from vyvo_dagster.errors import Conflict, InvalidInput
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.job import AttemptStatus, CancelOrder, OrderKind, RunOrder
from vyvo_dagster.protocol.node import AttemptRef, DesiredAssignment
from vyvo_dagster.settings import AgentSettings, S3Settings
from vyvo_dagster.streams import keys

LIMITS = Limits(
    serving=ServingLimits(setup=30, health=0.5, stop=1),
    quick_deaths=2, first_delay=0.1, longest_delay=0.2, first_retry=30, drain=5,
)  # fmt: skip


Start = Callable[..., Any]


@pytest.fixture
def started(plane: ControlPlane, runner_venvs: Path, tmp_path: Path) -> Start:
    """Run an agent for the time of a block; its end is the orderly one."""

    @asynccontextmanager
    async def start(limits: Limits = LIMITS) -> AsyncIterator[asyncio.Task[None]]:
        stop = asyncio.Event()
        task = asyncio.create_task(Agent(settings(plane, runner_venvs, tmp_path), limits).run(stop))
        try:
            yield task
        finally:
            stop.set()
            await asyncio.wait_for(task, 10)

    return start


def settings(plane: ControlPlane, venvs: Path, home: Path, **changes: Any) -> AgentSettings:
    return AgentSettings(
        **{
            "api_url": plane.url, "join_token": SecretStr(JOIN_TOKEN), "name": "node-under-test",
            "data_dir": home / "data", "env_dir": home / "etc", "venv_dir": venvs, "engine": "process",
            "docker_host": None, "slots": 1, **changes,
        }
    )  # fmt: skip


def desire(plane: ControlPlane, image: str, **members: Any) -> DesiredAssignment:
    asked = DesiredAssignment(
        **{
            "assignment_id": uuid4(), "model_id": "acme/tiny", "version": "1.0", "runner_image": image,
            **members,
        }
    )  # fmt: skip
    plane.desired[asked.assignment_id] = asked
    return asked


def order(asked: DesiredAssignment, attempt: int = 1, job_id: UUID | None = None, **input: Any) -> RunOrder:
    return RunOrder(
        job_id=job_id or uuid4(), attempt=attempt, assignment_id=asked.assignment_id,
        model_id=asked.model_id, version=asked.version, input=input,
    )  # fmt: skip


async def loaded(plane: ControlPlane, asked: DesiredAssignment) -> None:
    await plane.until(lambda: plane.state(asked.assignment_id) == "ready")


async def test_a_job_from_order_to_report(
    plane: ControlPlane, started: Start, runner_image: str, s3_settings: S3Settings, tmp_path: Path
) -> None:
    weights = b"the weights of the tiny model"
    digest = hashlib.sha256(weights).hexdigest()
    store = ObjectStore(s3_settings)
    url = store.put_bytes(f"{s3_settings.bucket_prefix}model", f"weights/sha256/{digest}", weights)
    asked = desire(
        plane, runner_image, weights_url=url, weights_sha256=f"sha256:{digest}",
        weights_size_bytes=len(weights), env={"GREETING": 'a "quoted" $HOME \\ value'},
    )  # fmt: skip
    async with started():
        await loaded(plane, asked)
        assert plane.states(asked.assignment_id)[-1] == "ready"
        run = order(asked, text="hi", steps=4, seconds=0.1)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: any(run.job_id == r.job_id for r in plane.heartbeats[-1].running))
        report = await plane.until(lambda: plane.ended(run.job_id))
        assert report.status is AttemptStatus.SUCCEEDED
        assert report.output[0]["text"] == "hi"
        assert report.output[0]["weights"] == weights.decode()
        assert set(report.timings) == {"wait", "predict", "upload", "total"}
        assert 0.4 <= report.timings["predict"] <= report.timings["total"] < 5
        told = [p for job_id, p in plane.progress if job_id == run.job_id]
        assert told[0].fraction is None
        assert not told[0].logs
        assert told[-1].fraction == 1.0
        assert [line for p in told for line in p.logs] == [f"step {n}" for n in range(1, 5)]

        env = order(asked, how="env", steps=0)
        await plane.order(OrderKind.RUN, env)
        seen = (await plane.until(lambda: plane.ended(env.job_id))).output[0]
        assert seen["GREETING"] == 'a "quoted" $HOME \\ value'
        assert seen["VYVO_MODEL_ID"] == "acme/tiny"
        assert seen["VYVO_AGENT_JOIN_TOKEN"] is None
        file = tmp_path / "etc" / "acme--tiny.env"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "VYVO_WEIGHTS=" in file.read_text()
        cached = tmp_path / "data" / "weights" / "sha256" / digest
        assert stat.S_IMODE(cached.stat().st_mode) == 0o444
    assert not file.exists()
    assert await plane.redis.xlen(keys.node(plane.node_id)) == 0


async def test_removal_is_reported_in_order_and_once(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        run = order(asked, steps=10, seconds=0.05)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: plane.progress)
        del plane.desired[asked.assignment_id]
        await plane.order(OrderKind.SYNC)
        # What it works on is let to its end.
        report = await plane.until(lambda: plane.ended(run.job_id))
        assert report.status is AttemptStatus.SUCCEEDED
        await plane.until(lambda: "removed" in plane.states(asked.assignment_id))
        assert plane.states(asked.assignment_id)[-3:] == ["ready", "removing", "removed"]
        await plane.until(lambda: not plane.heartbeats[-1].assignments)


async def test_what_is_desired_again_while_it_is_removed_comes_back(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        run = order(asked, steps=10, seconds=0.05)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: plane.progress)
        del plane.desired[asked.assignment_id]
        await plane.order(OrderKind.SYNC)
        await plane.until(lambda: plane.state(asked.assignment_id) == "removing")
        plane.desired[asked.assignment_id] = asked
        await plane.until(lambda: plane.state(asked.assignment_id) is None)
        await loaded(plane, asked)
        # Told of the removal, the control plane would have ended what was asked for since.
        assert "removed" not in plane.states(asked.assignment_id)
        assert plane.ended(run.job_id).status is AttemptStatus.SUCCEEDED


async def test_a_changed_assignment_is_loaded_anew_and_never_removed(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image, env={"GREETING": "one"})
    async with started():
        await loaded(plane, asked)
        changed = asked.model_copy(update={"env": {"GREETING": "two"}})
        plane.desired[asked.assignment_id] = changed
        await plane.until(lambda: plane.states(asked.assignment_id).count("loading") == 2)
        run = order(asked, how="env", steps=0)
        await plane.order(OrderKind.RUN, run)
        report = await plane.until(lambda: plane.ended(run.job_id))
        assert report.output[0]["GREETING"] == "two"
        assert not {"removing", "removed"} & set(plane.states(asked.assignment_id))


async def test_inline_outputs_become_artifacts(
    plane: ControlPlane, started: Start, runner_image: str, s3_settings: S3Settings
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        run = order(asked, how="inline", text="\x89PNG not really", steps=0)
        await plane.order(OrderKind.RUN, run)
        report = await plane.until(lambda: plane.ended(run.job_id))
    (artifact,) = report.artifacts
    assert artifact.mime_type == "image/png"
    assert artifact.type == "image"
    assert report.output[0]["url"] == artifact.url
    assert ObjectStore(s3_settings).get_bytes(artifact.url).decode() == "\x89PNG not really"


async def test_failures_carry_their_codes(plane: ControlPlane, started: Start, runner_image: str) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        bad, dies, after = (
            order(asked, how="fail", text="x", steps=0), order(asked, how="die", steps=0),
            order(asked, steps=0),
        )  # fmt: skip
        for each in (bad, dies, after):
            await plane.order(OrderKind.RUN, each)
        failed = await plane.until(lambda: plane.ended(bad.job_id))
        assert failed.error.code == "prediction_failed"
        assert "bad thing: x" in failed.error.message
        crashed = await plane.until(lambda: plane.ended(dies.job_id))
        assert crashed.error.code == "runner_crashed"
        assert "SIGKILL" in crashed.error.message
        # The runner is started again, and what waited for it is served.
        assert (await plane.until(lambda: plane.ended(after.job_id))).status is AttemptStatus.SUCCEEDED
        assert "loading" in plane.states(asked.assignment_id)


async def test_a_runner_that_keeps_dying_fails_its_assignment(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        for _ in range(LIMITS.quick_deaths):
            await loaded(plane, asked)
            beats = len(plane.heartbeats)
            run = order(asked, how="die", steps=0)
            await plane.order(OrderKind.RUN, run)
            await plane.until(lambda run=run: plane.ended(run.job_id))
            await plane.until(lambda beats=beats: len(plane.heartbeats) > beats + 1)
        await plane.until(lambda: plane.state(asked.assignment_id) == "failed")
        detail = plane.heartbeats[-1].assignments[0].detail or ""
        assert "2 times in a row" in detail
        late = order(asked, steps=0)
        await plane.order(OrderKind.RUN, late)
        report = await plane.until(lambda: plane.ended(late.job_id))
        assert report.status is AttemptStatus.HANDED_BACK


async def test_a_setup_that_fails_is_told_and_tried_again_when_asked(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image, env={"SETUP": "fail"})
    async with started():
        await plane.until(lambda: plane.state(asked.assignment_id) == "failed")
        assert "weights missing on purpose" in (plane.heartbeats[-1].assignments[0].detail or "")
        beats = len(plane.heartbeats)
        await plane.order(OrderKind.SYNC)
        await plane.until(
            lambda: any(a.state == "loading" for b in plane.heartbeats[beats:] for a in b.assignments)
        )


async def test_cancel_of_a_running_a_waiting_and_an_unknown_attempt(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        running, waiting = order(asked, steps=200, seconds=0.05), order(asked, steps=0)
        await plane.order(OrderKind.RUN, running)
        await plane.until(lambda: any(p.fraction for _, p in plane.progress))
        await plane.order(OrderKind.RUN, waiting)
        unknown = CancelOrder(job_id=uuid4(), attempt=1)
        for each in (waiting, running, unknown):
            await plane.order(OrderKind.CANCEL, CancelOrder(job_id=each.job_id, attempt=each.attempt))
        for each in (waiting, running, unknown):
            report = await plane.until(lambda job=each.job_id: plane.ended(job), 5)
            assert report.status is AttemptStatus.CANCELED
        assert plane.state(asked.assignment_id) == "ready"


async def test_a_prediction_that_ignores_its_cancellation_costs_the_runner(
    plane: ControlPlane, started: Start, runner_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vyvo_dagster.agent.attempt._GRACE", 0.5)
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        run = order(asked, how="stubborn", steps=400, seconds=0.1)
        await plane.order(OrderKind.RUN, run)
        await plane.until(lambda: any(p.fraction for _, p in plane.progress))
        await plane.order(OrderKind.CANCEL, CancelOrder(job_id=run.job_id, attempt=1))
        assert (await plane.until(lambda: plane.ended(run.job_id))).status is AttemptStatus.CANCELED
        after = order(asked, steps=0)
        await plane.order(OrderKind.RUN, after)
        assert (await plane.until(lambda: plane.ended(after.job_id))).status is AttemptStatus.SUCCEEDED
        # It was ended on purpose: that does not count as a death of its own.
        assert "failed" not in plane.states(asked.assignment_id)


async def test_stale_and_fenced_attempts_are_ended_and_not_reported(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        stale = order(asked, steps=200, seconds=0.05)
        plane.refusals["progress"].append((409, "stale_attempt"))
        await plane.order(OrderKind.RUN, stale)
        fenced = order(asked, steps=200, seconds=0.05)
        await plane.order(OrderKind.RUN, fenced)
        await plane.until(lambda: any(job_id == fenced.job_id for job_id, _ in plane.progress), 10)
        plane.fenced = [AttemptRef(job_id=fenced.job_id, attempt=1)]
        after = order(asked, steps=0)
        await plane.order(OrderKind.RUN, after)
        await plane.until(lambda: plane.ended(after.job_id), 10)
        assert {job_id for job_id, _ in plane.completions} == {after.job_id}
        await plane.until(lambda: not plane.heartbeats[-1].running)


async def test_a_report_is_repeated_until_it_is_taken(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        plane.refusals["complete"].extend([(503, "unavailable"), (500, "internal"), (401, "unauthenticated")])
        run = order(asked, steps=0)
        await plane.order(OrderKind.RUN, run)
        assert (await plane.until(lambda: plane.ended(run.job_id))).status is AttemptStatus.SUCCEEDED
        # The same order again, as after a rebuild of the streams, runs nothing.
        await plane.order(OrderKind.RUN, run)
        refused = order(asked, steps=0)
        plane.refusals["complete"].append((422, "invalid_input"))
        await plane.order(OrderKind.RUN, refused)
        report = await plane.until(lambda: plane.ended(refused.job_id))
        assert report.status is AttemptStatus.FAILED
        assert "refused as invalid_input" in report.error.message
        assert [job_id for job_id, _ in plane.completions].count(run.job_id) == 1


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
        pid_before = _runner_pids()
        plane.refusals["heartbeat"].append((409, "stale_boot"))
        await plane.until(lambda: len(plane.boots) == 2)
        assert plane.tokens == [JOIN_TOKEN, plane.credential]
        assert plane.boots[0] != plane.boots[1]
        again = order(asked, attempt=2, job_id=run.job_id, steps=0)
        await plane.order(OrderKind.RUN, again)
        report = await plane.until(lambda: plane.ended(run.job_id))
        assert (report.attempt, report.status) == (2, AttemptStatus.SUCCEEDED)
        # The runner stayed loaded: nothing was started anew.
        assert _runner_pids() == pid_before
        plane.credential = "credential-2"
        plane.refusals["heartbeat"].append((401, "unauthenticated"))
        await plane.until(lambda: len(plane.boots) == 3 and plane.heartbeats[-1].boot_id == plane.boots[2])
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


async def test_what_cannot_run_here_says_why(plane: ControlPlane, started: Start, runner_image: str) -> None:
    wanted = {
        desire(plane, "registry.example/vyvo/x@sha256:" + "0" * 64).assignment_id: "container engine",
        desire(plane, "venv://sha256:" + "0" * 64).assignment_id: "not on this node",
        desire(plane, "venv://sha256:../../etc").assignment_id: "64 hex digits",
        desire(plane, runner_image, resources={"gpu_memory_bytes": 1 << 40}).assignment_id: "GPU",
        desire(plane, runner_image, env={"BAD": "two\nlines"}).assignment_id: "line end",
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


def _runner_pids() -> set[int]:
    """Cog servers that this process started."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and b"cog.server.http" in command:
                found.add(int(entry.name))
    return found
