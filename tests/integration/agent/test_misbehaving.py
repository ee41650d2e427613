"""Runners that hang, die, answer too much or lie: each ends as operations.md says."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from agent_world import LIMITS, Start, desire, loaded, order, runner_pids
from control_plane import ControlPlane

from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.protocol.job import AttemptStatus, CompletionReport, OrderKind, RunOrder
from vyvo_dagster.settings import S3Settings


async def ended(plane: ControlPlane, run: RunOrder, seconds: float = 60.0) -> CompletionReport:
    await plane.order(OrderKind.RUN, run)
    report: CompletionReport = await plane.until(lambda: plane.ended(run.job_id), seconds)
    return report


def failure(report: CompletionReport) -> tuple[str, str]:
    assert report.status is AttemptStatus.FAILED
    assert report.error is not None
    return report.error.code, report.error.message


async def test_one_that_takes_too_long_is_canceled(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        pids = runner_pids()
        slow = order(asked, steps=1000, seconds=0.05).model_copy(update={"timeout_seconds": 0.5})
        assert failure(await ended(plane, slow)) == (
            "timed_out", "the prediction did not end within 0.5 s",
        )  # fmt: skip
        after = order(asked, steps=0).model_copy(update={"timeout_seconds": 5})
        assert (await ended(plane, after)).status is AttemptStatus.SUCCEEDED
        # It heeded its cancel: nothing was started anew.
        assert runner_pids() == pids


async def test_one_that_hangs_and_ignores_its_cancel_is_killed_and_started_again(
    plane: ControlPlane, started: Start, runner_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vyvo_dagster.agent.attempt._GRACE", 0.5)
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        pids = runner_pids()
        stuck = order(asked, how="stubborn", steps=400, seconds=0.1)
        stuck.timeout_seconds = 0.5
        assert failure(await ended(plane, stuck))[0] == "timed_out"
        assert (await ended(plane, order(asked, steps=0))).status is AttemptStatus.SUCCEEDED
        assert runner_pids().isdisjoint(pids)


async def test_a_worker_that_ends_is_a_crash(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        code, message = failure(await ended(plane, order(asked, how="exit", steps=0)))
        assert (code, message) == ("runner_crashed", "the runner's worker crashed")
        assert (await ended(plane, order(asked, steps=0), 30)).status is AttemptStatus.SUCCEEDED


async def test_an_output_that_is_too_large_is_not_read_to_its_end(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    limits = replace(LIMITS, serving=replace(LIMITS.serving, output_bytes=8 << 20))
    async with started(limits):
        await loaded(plane, asked)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_bytes()
        huge = order(asked, how="huge", steps=255, seconds=0)
        code, message = failure(await ended(plane, huge, 60))
        assert (code, "8388608 bytes" in message) == ("output_too_large", True)
        assert peak_bytes() - before < 64 << 20
        within = order(asked, how="huge", steps=6, seconds=0)
        assert (await ended(plane, within, 30)).status is AttemptStatus.SUCCEEDED


async def test_what_is_read_and_is_no_file_must_fit_the_report(
    plane: ControlPlane, started: Start, runner_image: str
) -> None:
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        large = order(asked, how="huge", steps=13, seconds=0)
        code, message = failure(await ended(plane, large, 30))
        assert (code, "answer their artifacts" in message) == ("output_too_large", True)


async def test_artifacts_are_what_is_said_of_them(
    plane: ControlPlane, started: Start, runner_image: str, s3_settings: S3Settings
) -> None:
    prefix = s3_settings.bucket_prefix
    store = ObjectStore(s3_settings)
    real = store.put_bytes(f"{prefix}image", f"lies/{os.urandom(8).hex()}.png", b"\x89PNG")
    model = store.put_bytes(f"{prefix}model", f"lies/{os.urandom(8).hex()}", b"four")
    asked = desire(plane, runner_image)
    async with started():
        await loaded(plane, asked)
        for url, size, said in (
            (f"s3://{prefix}image/lies/none.png", 4, "does not exist"),
            (real, 5, "has 4 bytes, not 5"),
            (model, 4, "in no bucket for outputs"),
            ("s3://someone-else/x", 4, "in no bucket for outputs"),
            ("s3://x", 4, "malformed artifact"),
        ):
            report = await ended(plane, order(asked, how="lie", text=url, steps=size, seconds=0))
            code, message = failure(report)
            assert (code, said in message) == ("artifact_invalid", True), message
        good = await ended(plane, order(asked, how="lie", text=real, steps=4, seconds=0))
        assert good.status is AttemptStatus.SUCCEEDED
        assert [a.url for a in good.artifacts] == [real]


def peak_bytes() -> int:
    """The most memory that this process has had since its count was cleared."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
