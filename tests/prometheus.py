"""Debian's Prometheus for tests: its programs, and a server that scrapes a stack."""

import fcntl
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from vyvo_dagster.local.ports import Ports

DEPLOY = Path(__file__).parents[1] / "deploy" / "prometheus"
SCRAPE_SECONDS = 1
_CACHE = Path(tempfile.gettempdir()) / "vyvo-tests-prometheus"
_NEEDED = ("prometheus", "promtool")


def programs() -> dict[str, str]:
    """Where `prometheus` and `promtool` are: on PATH, else unpacked from Debian's package, once."""
    found = {name: shutil.which(name) for name in _NEEDED}
    if all(found.values()):
        return {name: str(path) for name, path in found.items()}
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home = _CACHE / "root" / "usr" / "bin"
        if not home.exists():
            _unpack()
    return {name: str(home / name) for name in _NEEDED}


def _unpack() -> None:
    download = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
    with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        for command in (download, ["apt-get", "update"], download):
            got = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
            )
            if list(Path(folder).glob("*.deb")):
                break
        packages = list(Path(folder).glob("*.deb"))
        if not packages:
            said = f"{got.stdout}\n{got.stderr}"[-2000:]
            pytest.fail(f"put prometheus and promtool on PATH; apt-get has none:\n{said}")
        made = Path(folder) / "root"
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(made)], timeout=120, check=True)
        made.rename(_CACHE / "root")


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        body = answer.json()
        assert body["status"] == "success", (expression, body)
        return body["data"]["result"]

    def values(self, expression: str, since: float) -> list[float]:
        """Every value that an expression has had since then, over all series; numbers only."""
        span: dict[str, Any] = {"start": since, "end": time.time(), "step": 2}
        answer = httpx.get(
            f"{self.url}/api/v1/query_range", params={"query": expression, **span}, timeout=60
        )
        body = answer.json()
        assert body["status"] == "success", (expression, body)
        found = [float(value) for s in body["data"]["result"] for _, value in s["values"]]
        return [value for value in found if math.isfinite(value)]

    def targets(self) -> dict[str, str]:
        """Health of each target by its job and instance."""
        active = httpx.get(f"{self.url}/api/v1/targets", timeout=30).json()["data"]["activeTargets"]
        return {
            f"{t['labels']['job']} {t['labels']['instance']}": f"{t['health']} {t['lastError']}"
            for t in active
        }


@contextmanager
def scraping(folder: Path, targets: Mapping[str, str]) -> Generator[Prometheus]:
    """A Prometheus with this repository's rules that scrapes `targets` (job → host:port) each second."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": f"{SCRAPE_SECONDS}s",
        "evaluation_interval": f"{SCRAPE_SECONDS}s",
    }
    config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [address]}]}
        for job, address in targets.items()
    ]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = Ports(folder / "prometheus-ports.json").take("prometheus")
    command = [
        programs()["prometheus"], f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            alive = process.poll() is None
            assert alive, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(30)
