"""Backup under load, everything destroyed, restored by the steps of the documentation."""

import base64
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from vyvo_dagster.client import Client
from vyvo_dagster.errors import VyvoError

from .stack import RunningStack, running, until

MODEL = "backup/noop"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
_CLOCKS = {
    "VYVO_HEARTBEAT_SECONDS": "2",
    "VYVO_SUSPECT_SECONDS": "10",
    "VYVO_LOST_SECONDS": "20",
    "VYVO_LEASE_SECONDS": "20",
    "VYVO_AGENT_ALLOW_NOOP": "1",
    "VYVO_AGENT_SLOTS": "8",
}


class Load:
    """Submits jobs whose outputs are files, until it is stopped; keeps what was acknowledged."""

    def __init__(self, client: Callable[[], Client]) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        with self._client() as client:
            while not self._stop.is_set():
                number = len(self.acknowledged)
                content = b"\x89PNG\r\n\x1a\n" + os.urandom(20_000 if number % 10 == 0 else 500)
                data = base64.b64encode(content).decode()
                spec = {"picture": f"data:image/png;base64,{data}", "sleep_seconds": 0.02}
                try:
                    job = client.submit(MODEL, spec)
                except VyvoError:
                    continue
                self.acknowledged[str(job.job_id)] = content
                time.sleep(0.03)


def documented_steps() -> list[str]:
    """The commands of the page's section, in its order."""
    section = PAGE.read_text().split("## Backup and restore\n")[1].split("\n## ")[0]
    return re.findall(r"^    (vyvo [^#\n]*[^#\s])", section, re.MULTILINE)


def command(step: str, backup: Path, data_dir: Path) -> list[str]:
    """A step of the page with the test's folders in it."""
    words = shlex.split(step.replace("/backups/2026-01-31", str(backup)).removesuffix("&"))
    assert words[0] == "vyvo"
    if ".vyvo" in words:
        words[words.index(".vyvo")] = str(data_dir)
    return [sys.executable, "-m", "vyvo_dagster.cli", *words[1:]]


def run(step: str, backup: Path, data_dir: Path) -> str:
    done = subprocess.run(
        command(step, backup, data_dir), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{step}: {done.stderr}"
    return done.stdout


def succeeded(client: Client, job_id: str) -> bool:
    return client.job(job_id).status == "succeeded"


def holds(client: Client, job_id: str, content: bytes) -> bool:
    """Whether the job has its artifact, with equal bytes."""
    (artifact,) = client.job(job_id).artifacts
    assert artifact.presigned_url is not None, artifact
    return client.download(artifact.presigned_url) == content


def runs_of(stack: RunningStack) -> set[str]:
    found = stack.graphql(
        '{ runsOrError(filter: {pipelineName: "collect_artifacts"}) {'
        " ... on Runs { results { runId status } } } }"
    )
    return {r["runId"] for r in found["runsOrError"]["results"] if r["status"] == "SUCCESS"}


def start_serving(client: Client) -> None:
    client.request("POST", "/api/models", json={"model_id": MODEL})
    body = {"modality": "image", "runner_image": "noop://backup"}
    client.request("PUT", f"/api/models/{MODEL}/versions/v1", json=body)
    (node,) = client.nodes().items
    client.assign(node.id, MODEL, "v1")
    until(
        lambda: [a.state for a in client.node(node.id).assignments] == ["ready"],
        60, "the node serves the version",
    )  # fmt: skip


def test_nothing_acknowledged_is_lost_with_all_data_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _CLOCKS.items():
        monkeypatch.setenv(name, value)
    backup, before, after = tmp_path / "backups" / "one", tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    create, check, servers, restore, up = documented_steps()
    assert servers.startswith("vyvo up --servers-only")
    assert up == "vyvo up"
    with running(before / "data", "--engine", "process") as stack, stack.client() as client:
        start_serving(client)
        swept = run("vyvo artifacts gc --dry-run --data-dir .vyvo", backup, before / "data")
        assert "0 without a row" in swept
        known_runs = runs_of(stack)
        assert known_runs
        with Load(stack.client) as load:
            until(
                lambda: (
                    len(load.acknowledged) > 60 and succeeded(client, list(load.acknowledged)[40])
                ),
                120, "jobs end under load",
            )  # fmt: skip
            promised = dict(load.acknowledged)
            said = run(create, backup, before / "data")
            later = len(load.acknowledged)
        assert later > len(promised), "nothing was submitted while the backup was written"
        assert "2 databases" in said
        stack.stop(signal.SIGKILL)
        until(lambda: not stack.left_behind(), 60, "the stack is gone")
    shutil.rmtree(before)
    run(check, backup, after / "data")
    with serving(servers, backup, after / "data"):
        run(restore, backup, after / "data")
    with running(after / "data", "--engine", "process") as stack, stack.client() as client:
        assert known_runs <= runs_of(stack)
        for job_id in promised:
            until(lambda job_id=job_id: succeeded(client, job_id), 180, f"job {job_id} ends")
        for job_id, content in promised.items():
            assert holds(client, job_id, content), job_id
        new = client.submit(MODEL, {"number": 1})
        assert client.wait(new.job_id, 60).status == "succeeded"


class serving:  # noqa: N801 - used as a function
    """`vyvo up --servers-only` for as long as the block runs."""

    def __init__(self, step: str, backup: Path, data_dir: Path) -> None:
        self._log = (data_dir.parent / "servers.log").open("wb")
        self._process = subprocess.Popen(
            [*command(step, backup, data_dir), "--json"], stdout=subprocess.PIPE, stderr=self._log
        )

    def __enter__(self) -> Any:
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the servers did not start"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def test_a_refused_restore_says_why_in_one_line(tmp_path: Path) -> None:
    def refused(*arguments: str, env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vyvo_dagster.cli", "backup", *arguments],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        return done.stderr

    none = str(tmp_path / "none")
    assert "no complete backup" in refused("check", none)
    assert "no stack was started" in refused("restore", none, "--data-dir", none)
    (tmp_path / "there").mkdir()
    assert "exists" in refused("create", str(tmp_path / "there"))
    # Servers that are away, or are named by what is no URL; no password is told.
    away = {"VYVO_POSTGRES_DSN": "postgresql://u:hush-hush@127.0.0.1:9/x"}
    bad = {"VYVO_POSTGRES_DSN": "postgresql://u:hush-hush@h/x?no_such_option=1"}
    for settings, said in ((away, "pg_dump failed"), (bad, "none that libpq reads")):
        told = refused("create", str(tmp_path / "new"), env=settings)
        assert said in told
        assert "hush-hush" not in told
    assert not [p for p in tmp_path.iterdir() if "new" in p.name]
