"""The Docker engines that stand for hosts, and an image with Dagster and this code on each of them.

Engines are those of VYVO_TEST_ENGINES (a JSON object of name and URL), or else the sockets of this
machine: Docker's own, and any `docker.sock` one or two folders below /run.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster_pipes
import docker
import requests
from docker.errors import DockerException, ImageNotFound

ROOT = Path(__file__).resolve().parents[3]
BASE_IMAGE = "vyvo/base:bookworm"
REGISTRY = "127.0.0.1:5000"
PACKAGES = ["vyvo_dagster", "assets", "ops", "sensors", "resources", "api", "runner_images"]
LOCATION = Path(__file__).with_name("routed_location.py")
# Two images, so that a change of the code copies the code only. Nothing is fetched in a build.
LIBRARIES = f"""\
FROM {BASE_IMAGE}
COPY site /usr/local/lib/python3.11/dist-packages
"""
STEPS = """\
FROM {libraries}
COPY code /code
ENV PYTHONPATH=/code
"""
# Of the servers' dependencies those that no op needs.
LEFT_OUT = ("uv==", "dagster-webserver==", "opentelemetry", "pip==", "hvac==", "-e ", "./")


def found() -> dict[str, str]:
    """Name → URL of the engines that answer."""
    if given := os.environ.get("VYVO_TEST_ENGINES"):
        return {name: url for name, url in json.loads(given).items() if answers(url)}
    sockets = [*Path("/run").glob("*/docker.sock"), *Path("/run").glob("*/*/docker.sock")]
    urls = {path.parent.name: f"unix://{path}" for path in sorted(sockets)}
    urls["default"] = "unix:///var/run/docker.sock"
    return {name: url for name, url in urls.items() if answers(url)}


def client(url: str, timeout: float = 120) -> Any:
    return docker.DockerClient(base_url=url, timeout=timeout)


def answers(url: str) -> bool:
    try:
        return bool(client(url, 5).ping())
    except (DockerException, requests.RequestException, OSError):
        return False


def has_base_image(url: str) -> bool:
    try:
        return bool(client(url, 5).images.get(BASE_IMAGE))
    except (DockerException, requests.RequestException):
        return False


def build(url: str, folder: Path) -> str:
    """Build the image on one engine and push it, unless that was done; return its name."""
    engine = client(url, 300)
    lock = (ROOT / "uv.lock").read_bytes()
    libraries = f"vyvo-test/libraries:{_digest(LIBRARIES.encode(), lock)}"
    code = sorted([*_code(), LOCATION])
    contents = [part for file in code for part in (str(file).encode(), file.read_bytes())]
    steps = f"{REGISTRY}/vyvo-test/steps:{_digest(libraries.encode(), *contents)}"
    _ensure(engine, libraries, folder / "libraries", LIBRARIES, _site)
    _ensure(engine, steps, folder / "steps", STEPS.format(libraries=libraries), _copy_code)
    said = engine.images.push(steps)
    assert '"error"' not in said, said
    return steps


def build_pipes(url: str, folder: Path) -> str:
    """Push an image that has Dagster Pipes' one file and no Dagster; return its name."""
    code = Path(dagster_pipes.__file__).read_bytes()
    dockerfile = (
        f"FROM {BASE_IMAGE}\nCOPY dagster_pipes.py /usr/local/lib/python3.11/dist-packages/\n"
    )
    name = f"{REGISTRY}/vyvo-test/pipes:{_digest(dockerfile.encode(), code)}"
    engine = client(url, 300)

    def fill(context: Path) -> None:
        (context / "dagster_pipes.py").write_bytes(code)

    _ensure(engine, name, folder / "pipes", dockerfile, fill)
    said = engine.images.push(name)
    assert '"error"' not in said, said
    return name


def _ensure(
    engine: Any, name: str, folder: Path, dockerfile: str, fill: Callable[[Path], None]
) -> None:
    try:
        engine.images.get(name)
    except ImageNotFound:
        folder.mkdir(parents=True)
        (folder / "Dockerfile").write_text(dockerfile)
        fill(folder)
        engine.images.build(path=str(folder), tag=name, rm=True, network_mode="none")


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _code() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def _copy_code(folder: Path) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / "code" / package, ignore=ignored)
    shutil.copy(LOCATION, folder / "code")


def _site(folder: Path) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    locked = _run(
        [uv, "export", "--frozen", "--no-hashes", "--no-emit-project", "--extra", "server"]
    )
    lines = [line for line in locked.splitlines() if not line.strip().startswith(LEFT_OUT)]
    (folder / "locked.txt").write_text("\n".join(lines))
    target = ["--target", str(folder / "site"), "--python-version", "3.11"]
    _run([uv, "pip", "install", "--no-deps", *target, "-r", str(folder / "locked.txt")])
    (folder / "locked.txt").unlink()


def _run(argv: list[str]) -> str:
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
