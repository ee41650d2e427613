"""The agent on real Redis, S3 and Cog runners, against a control plane that keeps what it hears."""

import hashlib
import stat
from pathlib import Path
from uuid import uuid4

import pytest
from agent_world import LIMITS, Start, desire, loaded, order
from control_plane import ControlPlane

from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.job import AttemptStatus, CancelOrder, OrderKind
from vyvo_dagster.protocol.node import AttemptRef
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.streams import keys


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
    assert ObjectStore(s3_settings).get_bytes(artifact.url) == b"\x89PNG not really"


async def test_failures_carry_their_codes(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
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
        assert (
            await plane.until(lambda: plane.ended(after.job_id))
        ).status is AttemptStatus.SUCCEEDED
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
            lambda: any(
                a.state == "loading" for b in plane.heartbeats[beats:] for a in b.assignments
            )
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
            await plane.order(
                OrderKind.CANCEL, CancelOrder(job_id=each.job_id, attempt=each.attempt)
            )
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
        assert (
            await plane.until(lambda: plane.ended(after.job_id))
        ).status is AttemptStatus.SUCCEEDED
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
        plane.refusals["complete"].extend(
            [(503, "unavailable"), (500, "internal"), (401, "unauthenticated")]
        )
        run = order(asked, steps=0)
        await plane.order(OrderKind.RUN, run)
        assert (
            await plane.until(lambda: plane.ended(run.job_id))
        ).status is AttemptStatus.SUCCEEDED
        # The same order again, as after a rebuild of the streams, runs nothing.
        await plane.order(OrderKind.RUN, run)
        refused = order(asked, steps=0)
        plane.refusals["complete"].append((422, "invalid_input"))
        await plane.order(OrderKind.RUN, refused)
        report = await plane.until(lambda: plane.ended(refused.job_id))
        assert report.status is AttemptStatus.FAILED
        assert "refused as invalid_input" in report.error.message
        assert [job_id for job_id, _ in plane.completions].count(run.job_id) == 1
