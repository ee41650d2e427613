"""The tests' predictor as a Cog image of the local engine, built without network."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException, ImageNotFound

BASE_IMAGE = "vyvo/base:bookworm"
DOCKERFILE = f"""\
FROM {BASE_IMAGE}
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 COG_PREDICT_TYPE_STUB=predict.py:Predictor
COPY wheels /wheels
RUN python3 -m venv /opt/venv && pip install --quiet --no-index --find-links /wheels cog
COPY app /src
WORKDIR /src
USER 10001:10001
EXPOSE 5000
CMD ["python", "-m", "cog.server.http", "--host", "0.0.0.0"]
"""


def engine() -> Any:
    """A client of the engine that has the base image; None where there is none."""
    try:
        client = docker.from_env(timeout=5)
        client.images.get(BASE_IMAGE)
    except (DockerException, requests.RequestException):
        return None
    client.api.timeout = 120
    return client


def build(client: Any, app: Path, cog: str, folder: Path) -> str:
    """Build the image of `app` unless it is there; return its name, which names its content."""
    content = DOCKERFILE.encode() + cog.encode() + (app / "predict.py").read_bytes()
    name = f"vyvo-test/agent:{hashlib.sha256(content).hexdigest()[:20]}"
    try:
        client.images.get(name)
    except ImageNotFound:
        shutil.copytree(app, folder / "app")
        _wheels(cog, folder / "wheels")
        (folder / "Dockerfile").write_text(DOCKERFILE)
        client.images.build(path=str(folder), tag=name, rm=True, network_mode="none")
    return name


def _wheels(cog: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "-d", str(folder), cog],
        check=False, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
