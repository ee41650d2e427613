"""`vyvo up` as an operator runs it: starts, recovers, stops without a trace, starts again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.process import marked_pids

START_SECONDS = 120
STOP_SECONDS = 60


def start(data_dir: Path, *options: str) -> "subprocess.Popen[str]":
    if not (data_dir / "ports.json").exists():
        # Ports of its own choice at the first start: the usual ones may be another stack's.
        ports = Ports(data_dir.with_name("ports.json"))
        options = ("--port", str(ports.take("api")), *options)
    command = [sys.executable, "-P", "-m", "vyvo_dagster.cli", "up", "--json"]
    with data_dir.with_name("up.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--engine", "process", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def answer_of(process: "subprocess.Popen[str]", log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the stack did not start:\n{log.read_text()[-3000:]}"
    return json.loads(line)


@contextmanager
def stack(
    data_dir: Path, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    process = start(data_dir, *options)
    try:
        yield process, answer_of(process, data_dir.with_name("up.log"))
    finally:
        if process.poll() is None:
            process.terminate()
        assert process.stdout is not None
        process.stdout.close()
        process.wait(STOP_SECONDS)


def wait_until(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def test_it_starts_recovers_stops_without_a_trace_and_finds_its_data_again(tmp_path: Path) -> None:
    data_dir, log = tmp_path / "data", tmp_path / "up.log"
    with stack(data_dir, "--no-dagster", "--agents", "2") as (process, first):
        assert first["dagster"] is None
        assert {"up", "postgres", "redis", "s3", "api", "orchestrator"} < set(first["pids"])
        headers = {"Authorization": f"Bearer {first['admin_key']}"}
        nodes = httpx.get(f"{first['api']}/api/nodes", headers=headers).json()["items"]
        assert sorted((node["name"], node["state"]) for node in nodes) == [
            ("local-1", "ready"),
            ("local-2", "ready"),
        ]
        with psycopg.connect(first["postgres_dsn"]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")

        second = start(data_dir, "--no-dagster")
        out, _ = second.communicate(timeout=START_SECONDS)
        assert (second.returncode, out) == (1, "")
        assert f"is in use by the `vyvo up` with pid {process.pid}" in log.read_text()

        os.kill(first["pids"]["orchestrator"], signal.SIGKILL)
        wait_until(
            lambda: log.read_text().count("orchestrator  ready") == 2, 30, "a new orchestrator"
        )
        assert "orchestrator  died     status -9" in log.read_text()

        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
    assert marked_pids(f"{data_dir}#") == []
    assert "killed" not in log.read_text()

    with stack(data_dir, "--no-dagster", "--agents", "2") as (process, again):
        same = ("api", "admin_key", "s3", "postgres_dsn", "redis_url")
        assert [again[key] for key in same] == [first[key] for key in same]
        with psycopg.connect(again["postgres_dsn"]) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        nodes = httpx.get(f"{first['api']}/api/nodes", headers=headers).json()["items"]
        assert sorted(node["name"] for node in nodes) == ["local-1", "local-2"]
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_SECONDS) == 0
    assert marked_pids(f"{data_dir}#") == []


def test_a_killed_stack_leaves_no_process_and_starts_again(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with stack(data_dir, "--no-dagster") as (process, _):
        assert len(marked_pids(f"{data_dir}#")) >= 6
        process.kill()
        process.wait(10)
        wait_until(lambda: not marked_pids(f"{data_dir}#"), 25, "all children ended")
    with stack(data_dir, "--no-dagster"):
        pass
    assert marked_pids(f"{data_dir}#") == []


def test_a_signal_while_it_starts_stops_what_has_started(tmp_path: Path) -> None:
    data_dir, log = tmp_path / "data", tmp_path / "up.log"
    process = start(data_dir, "--no-dagster")
    wait_until(lambda: log.exists() and "redis" in log.read_text(), 60, "the first part")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=STOP_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert marked_pids(f"{data_dir}#") == []


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    data_dir, log = tmp_path / "data", tmp_path / "up.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(data_dir, "--port", str(port))
        out, _ = process.communicate(timeout=START_SECONDS)
    assert (process.returncode, out) == (1, "")
    assert log.read_text().splitlines() == [
        f"vyvo up: port {port} for api is in use; choose another one or free it"
    ]
    assert marked_pids(f"{data_dir}#") == []


@pytest.mark.xdist_group("dagster-stack")
def test_with_dagster_its_forked_processes_recover_too(tmp_path: Path) -> None:
    data_dir, log = tmp_path / "data", tmp_path / "up.log"
    port = Ports(tmp_path / "dagster-ports.json").take("dagster")
    with stack(data_dir, "--dagster-port", str(port), "--agents", "0") as (process, said):
        assert {"code-server", "webserver", "daemon", "worker"} < set(said["pids"])
        query = {"query": "{ instance { daemonHealth { id } } version }"}
        answer = httpx.post(f"{said['dagster']}/graphql", json=query, timeout=30).json()
        assert answer["data"]["version"]

        os.kill(said["pids"]["daemon"], signal.SIGKILL)
        wait_until(lambda: log.read_text().count("daemon        ready") == 2, 60, "a new daemon")
        (forkserver,) = _children_named(process.pid, b"vyvo_dagster.local.forkserver")
        os.kill(forkserver, signal.SIGKILL)
        wait_until(
            lambda: all(
                log.read_text().count(f"{name:<13} ready") >= 2
                for name in ("code-server", "webserver", "daemon", "worker")
            ),
            90,
            "all of Dagster again",
        )
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    assert marked_pids(f"{data_dir}#") == []


def _children_named(parent: int, word: bytes) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent and word in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
