"""Runners under a real systemd: what it reads, what it starts, and what outlives the agent."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from agent_world import LIMITS, desire, order, settings
from control_plane import ControlPlane
from systemd_manager import Manager, manager

from vyvo_dagster.agent.agent import Agent
from vyvo_dagster.agent.envfile import EnvDirectory
from vyvo_dagster.agent.runners.systemctl import Systemctl
from vyvo_dagster.domain.unit import instance_unit
from vyvo_dagster.errors import RunnerFailed, Unavailable
from vyvo_dagster.protocol.job import AttemptStatus, OrderKind

UNITS = Path(__file__).parents[3] / "deploy/systemd"
UNIT = r"vyvo-runner@acme\x2d\x2dtiny.service"
HOSTILE = {
    "QUOTES": """it's "so" `called`""", "DOLLAR": "$HOME ${HOME} $$ $(id)", "EMPTY": "", "TAB": "a\tb",
    "BACKSLASH": "C:\\new\\x41\\", "SPECIFIER": "%i %% %h", "SPACES": "  two  ", "HASH": "#; x",
    "UNICODE": "größe \U0001f600 \u00a0", "INJECT": '"\\nLD_PRELOAD=/x', "LONG": "$\\\"'" * (16 << 10),
}  # fmt: skip
Start = Callable[..., AbstractAsyncContextManager[asyncio.Task[None]]]


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with manager() as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def agent(plane: ControlPlane, runner_venvs: Path, tmp_path: Path, systemd: Manager) -> Start:
    """An agent whose runners are units of the shipped template."""
    unit = (UNITS / "vyvo-runner@.service").read_text()
    command = f"{sys.executable} -m vyvo_dagster.cli"
    for shipped, here in (
        ("/opt/vyvo/bin/vyvo", command), ("/etc/vyvo", str(tmp_path / "etc")),
        # What the tests run is in folders of this user and in /tmp.
        ("/var/lib/vyvo-agent", "/tmp"), ("PrivateTmp=yes", "PrivateTmp=no"),
        ("ProtectHome=yes", "ProtectHome=no"), ("RestartSec=5", "RestartSec=60"),
        # These need nodes that only the system's own manager makes.
        ("ProtectKernelLogs=yes\n", ""), ("ProtectKernelTunables=yes\n", ""),
    ):  # fmt: skip
        assert shipped in unit
        unit = unit.replace(shipped, here)
    unit += f"\nWorkingDirectory={Path(__file__).parents[3]}\n"
    (systemd.units / "vyvo-runner@.service").write_text(unit)
    systemd.systemctl("daemon-reload")

    @asynccontextmanager
    async def start() -> AsyncIterator[asyncio.Task[None]]:
        stop = asyncio.Event()
        chosen = settings(plane, runner_venvs, tmp_path, runners="systemd", systemd_user=True)
        task = asyncio.create_task(Agent(chosen, LIMITS).run(stop))
        try:
            yield task
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)

    return start


async def predicted(plane: ControlPlane, asked: Any, **input: Any) -> Any:
    run = order(asked, steps=0, **input)
    await plane.order(OrderKind.RUN, run)
    report = await plane.until(lambda: plane.ended(run.job_id), 60)
    assert report.status is AttemptStatus.SUCCEEDED, report
    return report.output


def test_a_unit_reads_what_the_agent_wrote(systemd: Manager, tmp_path: Path) -> None:
    (systemd.units / "read@.service").write_text(
        "[Service]\nType=oneshot\n"
        f"EnvironmentFile={tmp_path}/etc/%I.env\n"
        f"ExecStart=/bin/sh -c 'exec env -0 > \"{tmp_path}/read.$$VYVO_TEST\"'\n"
    )
    systemd.systemctl("daemon-reload")
    folder = EnvDirectory(tmp_path / "etc", uuid4())
    odd = "Ac-me_9.x/A.b-c_d"
    for number, (model_id, version) in enumerate(
        [("acme/tiny", "1"), (odd, "1"), (odd, "2.0+cu12_x-y")]
    ):
        env = {**HOSTILE, "VYVO_TEST": str(number)}
        path = folder.write(uuid4(), model_id, version, env)
        systemd.systemctl("start", "--", instance_unit("read", path.stem))
        pairs = (tmp_path / f"read.{number}").read_bytes().decode().split("\0")
        read = dict(pair.split("=", 1) for pair in pairs if pair)
        assert {name: read.get(name) for name in env} == env


async def test_a_runner_is_a_unit_that_outlives_its_agent_and_is_adopted(
    plane: ControlPlane, systemd: Manager, agent: Start, runner_image: str, tmp_path: Path
) -> None:
    asked = desire(plane, runner_image, env={"GREETING": HOSTILE["QUOTES"]})
    async with agent():
        await plane.until(lambda: plane.state(asked.assignment_id) == "ready", 60)
        assert systemd.systemctl("is-active", "--", UNIT) == "active"
        (first,) = await predicted(plane, asked)
        pid = systemd.systemctl("show", "--property=MainPID", "--value", "--", UNIT)
    assert plane.heartbeats[-1].leaving
    assert systemd.systemctl("is-active", "--", UNIT) == "active"
    plane.heartbeats.clear()
    async with agent():
        await plane.until(lambda: plane.state(asked.assignment_id) == "ready", 60)
        (again,) = await predicted(plane, asked)
        assert again["pid"] == first["pid"]
        assert systemd.systemctl("show", "--property=MainPID", "--value", "--", UNIT) == pid
        env = (tmp_path / "etc" / "acme--tiny.env").read_text()
        assert 'GREETING="it\'s \\"so\\" \\`called\\`"' in env
        assert f'VYVO_RUNNER_IMAGE="{runner_image}"' in env
        # A runner that ends is started again, though by itself systemd would wait a minute.
        os.kill(int(pid), signal.SIGKILL)
        await plane.until(lambda: plane.state(asked.assignment_id) != "ready", 60)
        await plane.until(lambda: plane.state(asked.assignment_id) == "ready", 60)
        (restarted,) = await predicted(plane, asked)
        assert restarted["pid"] != first["pid"]
        # What it is told anew reaches it by a restart.
        changed = asked.model_copy(update={"env": {"GREETING": "anew"}})
        plane.desired[asked.assignment_id] = changed
        await plane.until(
            lambda: 'GREETING="anew"' in (tmp_path / "etc/acme--tiny.env").read_text()
        )
        await plane.until(lambda: plane.state(asked.assignment_id) == "ready", 60)
        del plane.desired[asked.assignment_id]
        await plane.until(lambda: plane.state(asked.assignment_id) is None, 60)
        assert systemd.systemctl("is-active", "--", UNIT, check=False) == "inactive"
        assert not (tmp_path / "etc" / "acme--tiny.env").exists()


async def test_a_host_without_the_unit_says_so(
    plane: ControlPlane, systemd: Manager, agent: Start, runner_image: str
) -> None:
    (systemd.units / "vyvo-runner@.service").unlink()
    systemd.systemctl("daemon-reload")
    asked = desire(plane, runner_image)
    async with agent():
        await plane.until(lambda: plane.state(asked.assignment_id) == "failed", 60)
        detail = plane.heartbeats[-1].assignments[0].detail or ""
    assert UNIT in detail
    assert "not found" in detail


async def test_a_unit_that_cannot_start_says_why(systemd: Manager) -> None:
    (systemd.units / "broken.service").write_text("[Service]\nType=exec\nExecStart=/no/such/file\n")
    systemd.systemctl("daemon-reload")
    systemctl = Systemctl(user=True)
    with pytest.raises(RunnerFailed, match="reload-or-restart failed"):
        await systemctl.reload_or_restart("broken.service")
    state = await systemctl.show("broken.service")
    assert not state.runs
    assert state.said.startswith("failed (failed, exit-code, exit status 203")


async def test_a_systemd_that_is_away_or_slow_is_unavailable(
    systemd: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (systemd.units / "slow.service").write_text(
        "[Service]\nType=oneshot\nExecStart=/bin/sleep 60\n"
    )
    systemd.systemctl("daemon-reload")
    with pytest.raises(Unavailable, match=r"did not end within 0\.5 s"):
        await Systemctl(user=True, seconds=0.5).reload_or_restart("slow.service")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    with pytest.raises(Unavailable, match="reaches no systemd"):
        await Systemctl(user=True).show("slow.service")
