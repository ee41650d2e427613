"""A real Cog environment, as the venv backend lays it out, with the tests' own predictor."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import engine_image
import pytest
import systemd_manager
from agent_world import Start, starter
from control_plane import JOIN_TOKEN, ControlPlane
from redis.asyncio import Redis

from tests.private_registry import PROGRAM
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.streams import keys

ROOT = Path(__file__).parents[3]
PREDICTOR = Path(__file__).with_name("predictor.py")
COG = "cog==0.23.1"
ENGINE = engine_image.engine()

# Containers are tested where an engine answers.
collect_ignore = [] if ENGINE is not None else ["test_containers.py", "test_engine_outage.py"]
collect_ignore += [] if ENGINE is not None and PROGRAM is not None else ["test_private_images.py"]

# So are runners that systemd looks after, where it can run: as root, with a cgroup2 file system.
collect_ignore += [] if systemd_manager.runs_here() else ["test_systemd.py"]
collect_ignore += [] if shutil.which("systemd-analyze") else ["test_units.py"]


@pytest.fixture
async def plane(redis_url: str, s3_settings: S3Settings) -> AsyncIterator[ControlPlane]:
    redis = Redis.from_url(redis_url, decode_responses=True)
    async with ControlPlane(redis, redis_url, s3_settings).served() as served:
        yield served
    await redis.delete(keys.node(served.node_id))
    await redis.aclose()


@pytest.fixture(scope="session")
def runner_venvs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of environments with one in it; made once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    venvs = shared / "runner-venvs"
    with (shared / "runner-venvs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not venvs.exists():
            partial = shared / "runner-venvs.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _environment(partial / _hex())
            partial.rename(venvs)
    return venvs


@pytest.fixture(scope="session")
def runner_image(runner_venvs: Path) -> str:
    """The name of that environment."""
    assert (runner_venvs / _hex()).is_dir()
    return f"venv://sha256:{_hex()}"


@pytest.fixture(scope="session")
def cog_image(runner_venvs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same predictor as an image of the engine."""
    with (runner_venvs.parent / "cog-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        app = runner_venvs / _hex() / "app"
        return engine_image.build(ENGINE, app, COG, tmp_path_factory.mktemp("image") / "context")


def _hex() -> str:
    return hashlib.sha256(PREDICTOR.read_bytes() + COG.encode()).hexdigest()


def _environment(root: Path) -> None:
    venv, app = root / "venv", root / "app"
    app.mkdir(parents=True)
    (app / "predict.py").write_bytes(PREDICTOR.read_bytes())
    uv = [sys.executable, "-m", "uv"]
    python = venv / "bin" / "python"
    _run([*uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(venv)], root)
    needs = [COG, "filetype", "minio", "pydantic"]
    _run([*uv, "pip", "install", "--quiet", "--python", str(python), *needs], root)
    _run(
        [str(python), "-m", "vyvo_runner.schema"],
        app,
        PYTHONPATH=str(ROOT / "runner_images/sdk/src"),
    )
    command = ["venv/bin/python", "-m", "cog.server.http", "--host", "127.0.0.1"]
    (root / "runner.json").write_text(json.dumps({"command": command, "cwd": "app", "env": {}}))


def _run(command: list[str], cwd: Path, **env: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture
def started(plane: ControlPlane, runner_venvs: Path, tmp_path: Path) -> Start:
    """Run an agent for the time of a block; its end is the orderly one."""
    return starter(plane, runner_venvs, tmp_path)


@pytest.fixture
async def spawn(
    plane: ControlPlane, runner_venvs: Path, tmp_path: Path
) -> AsyncIterator[Callable[..., Any]]:
    started: list[asyncio.subprocess.Process] = []

    async def start(**changes: str) -> asyncio.subprocess.Process:
        env = {
            "PATH": os.environ["PATH"],
            "VYVO_AGENT_API_URL": plane.url,
            "VYVO_AGENT_JOIN_TOKEN": JOIN_TOKEN,
            "VYVO_AGENT_NAME": "node-under-test",
            "VYVO_AGENT_DATA_DIR": str(tmp_path / "data"),
            "VYVO_AGENT_ENV_DIR": str(tmp_path / "etc"),
            "VYVO_AGENT_VENV_DIR": str(runner_venvs),
            "VYVO_AGENT_ENGINE": "process",
            "VYVO_AGENT_LABELS": json.dumps({"zone": "a"}),
            **changes,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vyvo_dagster.agent.main", env={k: v for k, v in env.items() if v},
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH with a libnvidia-ml.so.1 of two GPUs; see nvml_stub.c."""
    folder = tmp_path_factory.mktemp("nvml")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert compiler is not None, "the tests of NVML need a C compiler: install gcc"
    source = Path(__file__).with_name("nvml_stub.c")
    library = str(folder / "libnvidia-ml.so.1")
    _run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, str(source)], folder)
    return folder
