"""`vyvo api` as a process of its own, which can be killed and started again, and its pools."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from vyvo_dagster.security.keys import TokenKind, mint
from vyvo_dagster.settings import S3Settings

from .fronts import free_port
from .world import JOIN_TOKEN


class OwnApi:
    """Started by `start`; `root` is its data directory."""

    def __init__(self, root: Path, dsn: str, redis_url: str, s3: S3Settings, **env: str) -> None:
        port, key = free_port(), mint(TokenKind.KEY).text
        self.root, self.log = root, root / "api.log"
        self.env = {
            "PATH": os.environ["PATH"], "VYVO_POSTGRES_DSN": dsn, "VYVO_REDIS_URL": redis_url,
            "VYVO_DATA_DIR": str(root), "VYVO_API_PORT": str(port), "VYVO_ADMIN_KEY": key,
            "VYVO_API_URL": f"http://127.0.0.1:{port}", "VYVO_JOIN_TOKEN": JOIN_TOKEN,
            "VYVO_S3_ENDPOINT": s3.endpoint, "VYVO_S3_ACCESS_KEY": s3.access_key,
            "VYVO_S3_SECRET_KEY": s3.secret_key.get_secret_value(),
            "VYVO_S3_BUCKET_PREFIX": s3.bucket_prefix, "VYVO_ENGINE": "process",
            "VYVO_HEARTBEAT_SECONDS": "1", **env,
        }  # fmt: skip
        self.client = httpx.Client(
            base_url=self.env["VYVO_API_URL"], headers={"Authorization": f"Bearer {key}"},
            timeout=10, trust_env=False,
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vyvo_dagster.cli", "api"], env=self.env,
                stdout=output, stderr=output,
            )  # fmt: skip
        until(self._answers, 60)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(40)
            self.process = None

    def close(self) -> None:
        self.stop(signal.SIGTERM)
        for pid in agents(self.root).values():
            os.kill(pid, signal.SIGKILL)
        self.client.close()


def until(found: Callable[[], Any], seconds: float = 40) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)
    return answer


def agents(root: Path) -> dict[str, int]:
    """Node → pid of the agents that work in the pools below `root`."""
    mark = f"VYVO_AGENT_DATA_DIR={root / 'pools'}/".encode()
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(mark) and b"vyvo_dagster.agent.main" in command:
                found[variable.rpartition(b"/")[2].decode()] = int(entry.name)
    return found


def scale(own: OwnApi, name: str, size: int, **values: Any) -> dict[str, Any]:
    answer = own.client.post("/api/node-pools/scale", json={"pool": name, "size": size, **values})
    assert answer.status_code == 202, answer.text
    return answer.json()


def operation(own: OwnApi, name: str, id: str) -> dict[str, Any]:
    return own.client.get(f"/api/node-pools/{name}/operations/{id}").json()


def ended(own: OwnApi, name: str, id: str, seconds: float = 40) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = operation(own, name, id)
        return found if found["status"] in {"succeeded", "failed"} else None

    return until(look, seconds)


def scaled(own: OwnApi, name: str, size: int, **values: Any) -> dict[str, Any]:
    found = ended(own, name, scale(own, name, size, **values)["id"])
    assert found["status"] == "succeeded", found
    return found
