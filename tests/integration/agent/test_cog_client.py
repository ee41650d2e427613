"""The Cog client against a real coglet server."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from vyvo_dagster.agent.cog_client import CogClient, HealthStatus, PredictionStatus
from vyvo_dagster.agent.runners.base import Runner, RunnerSpec, until_serving
from vyvo_dagster.agent.runners.process import ProcessLauncher
from vyvo_dagster.errors import RunnerFailed, Unavailable


@dataclass
class Heard:
    started: int = 0
    fractions: list[float] = field(default_factory=list)
    text: str = ""

    def on_started(self) -> None:
        self.started += 1

    def on_progress(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def on_log(self, text: str) -> None:
        self.text += text


@pytest.fixture
async def runner(runner_venvs: Path, runner_image: str, tmp_path: Path) -> AsyncIterator[Runner]:
    launcher = ProcessLauncher(runner_venvs, tmp_path)
    started = await launcher.launch(RunnerSpec(uuid4(), runner_image, {}))
    yield started
    await started.stop(0)


@pytest.fixture
async def client(runner: Runner) -> AsyncIterator[CogClient]:
    async with CogClient(runner.url) as made:
        await until_serving(made, 30)
        yield made


async def test_progress_and_logs_come_while_it_runs(client: CogClient) -> None:
    heard = Heard()
    task = asyncio.create_task(client.predict("a-1", {"steps": 5, "seconds": 0.1}, heard))
    while len(heard.fractions) < 2:
        await asyncio.sleep(0.01)
    assert not task.done()
    assert (await client.health()).status is HealthStatus.BUSY
    prediction = await task
    assert prediction.status is PredictionStatus.SUCCEEDED
    assert prediction.output[0]["text"] == "hello"
    assert heard.started == 1
    assert heard.fractions == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert heard.text.splitlines() == [f"step {n}" for n in range(1, 6)]


async def test_line_separators_inside_a_value_survive(client: CogClient) -> None:
    text = "one\u2028two\u0085three\vfour\x1cfive \U0001f600 \r\n six"
    prediction = await client.predict("b-1", {"text": text, "steps": 0}, Heard())
    assert prediction.output[0]["text"] == text


async def test_a_failure_says_what_the_predictor_said(client: CogClient) -> None:
    prediction = await client.predict("c-1", {"how": "fail", "text": "x", "steps": 0}, Heard())
    assert prediction.status is PredictionStatus.FAILED
    assert "bad thing: x" in (prediction.error or "")


async def test_bad_input_is_a_failure_that_names_the_field(client: CogClient) -> None:
    prediction = await client.predict("d-1", {"steps": 5000}, Heard())
    assert prediction.status is PredictionStatus.FAILED
    assert "input.steps" in (prediction.error or "")


async def test_cancel_ends_it_and_the_runner_goes_on(client: CogClient) -> None:
    heard = Heard()
    task = asyncio.create_task(client.predict("e-1", {"steps": 100, "seconds": 0.1}, heard))
    while not heard.fractions:
        await asyncio.sleep(0.01)
    assert await client.cancel("e-1")
    prediction = await asyncio.wait_for(task, 5)
    assert prediction.status is PredictionStatus.CANCELED
    assert not await client.cancel("e-1")
    again = await client.predict("e-2", {"steps": 0}, Heard())
    assert again.status is PredictionStatus.SUCCEEDED


async def test_a_full_runner_is_waited_for(client: CogClient) -> None:
    first = asyncio.create_task(client.predict("f-1", {"steps": 3, "seconds": 0.1}, Heard()))
    second = asyncio.create_task(client.predict("f-2", {"steps": 0}, Heard()))
    ended = await asyncio.wait_for(asyncio.gather(first, second), 10)
    assert [p.status for p in ended] == [PredictionStatus.SUCCEEDED] * 2


async def test_a_runner_that_dies_breaks_the_prediction_off(
    client: CogClient, runner: Runner
) -> None:
    with pytest.raises(Unavailable):
        await asyncio.wait_for(client.predict("g-1", {"how": "die", "steps": 0}, Heard()), 10)
    assert "SIGKILL" in await asyncio.wait_for(runner.wait(), 5)


async def test_a_failed_setup_is_told_with_its_reason(
    runner_venvs: Path, runner_image: str, tmp_path: Path
) -> None:
    launcher = ProcessLauncher(runner_venvs, tmp_path)
    runner = await launcher.launch(RunnerSpec(uuid4(), runner_image, {"SETUP": "fail"}))
    try:
        async with CogClient(runner.url) as client:
            with pytest.raises(RunnerFailed, match="weights missing on purpose"):
                await until_serving(client, 30)
    finally:
        await runner.stop(0)
