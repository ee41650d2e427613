"""Both build backends, for real: lock, install or build an image, start the runner, read its schema.

The image tests are collected where a Docker engine with buildx and a registry answer.
"""

import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import httpx
import jsonschema
import pytest

from runner_images import SHARED_DIR
from vyvo_dagster.building.backends import choose, why_not_buildx
from vyvo_dagster.building.recipe import TemplateFiles, lay_out
from vyvo_dagster.building.types import BuildCanceled, BuildContext, BuildRequest, BuildResult
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed, RunnerFailed, Unavailable

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "runner_images"
REGISTRY = "127.0.0.1:5000"
BASE_IMAGE = "vyvo/base:bookworm"
HAS_ENGINE = why_not_buildx(REGISTRY) is None
BACKENDS = [BuildBackend.VENV, *([BuildBackend.BUILDX] if HAS_ENGINE else [])]

PREDICTOR = """\
import os
import time
from pathlib import Path

from cog import BaseRunner, Input


class Predictor(BaseRunner):
    def setup(self) -> None:
        text = Path(os.environ["VYVO_WEIGHTS"]).read_text()
        if text == "slow":
            time.sleep(120)
        if text != "good":
            raise RuntimeError(f"cannot read weights: {text}, GREETING={os.environ.get('GREETING')}")

    def run(self, name: str = Input(description="Who."), style: str = Input(choices=["a", "b"])) -> str:
        return name + style
"""


@dataclass
class Lines:
    """Keeps what a build logs."""

    lines: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        self.lines.append((step, text))

    def text(self) -> str:
        return "".join(f"{step}: {text}\n" for step, text in self.lines)

    def wait_for(self, part: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while part not in self.text():
            assert time.monotonic() < deadline, f"never logged {part!r}:\n{self.text()}"
            time.sleep(0.05)


@dataclass
class Bench:
    """A template, a data directory, and what a build of it did."""

    template: Path
    data_dir: Path
    weights: Path
    log: Lines = field(default_factory=Lines)
    cancel: threading.Event = field(default_factory=threading.Event)
    states: list[BuildState] = field(default_factory=list[BuildState])
    build_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    registry: str = REGISTRY
    push_attempts: int = 4

    def build(self, backend: BuildBackend, **changes: Any) -> BuildResult:
        files = TemplateFiles(self.template, SHARED_DIR)
        recipe = lay_out(
            self.data_dir / "builds" / self.build_id / "context", files, None, self.log
        )
        request = BuildRequest(
            build_id=self.build_id,
            recipe=recipe,
            template_name="greeter",
            template_hash="0" * 64,
            model_id=f"test/{self.build_id[:13]}",
            version="v1+cpu",
            sdk_dir=IMAGES / "sdk",
            env={"GREETING": "hello"},
            **{"weights_path": self.weights, "base_image": BASE_IMAGE, **changes},
        )
        context = BuildContext(
            data_dir=self.data_dir,
            log=self.log,
            cancel=self.cancel,
            timeout=240.0,
            ready_timeout=60.0,
            on_state=self.states.append,
            push_attempts=self.push_attempts,
        )
        return choose(backend, registry=self.registry).backend.build(request, context)

    def leftovers(self) -> list[str]:
        """Containers of the build, and processes whose folder is inside the data directory."""
        found = []
        if HAS_ENGINE:
            client = docker.from_env()
            label = {"label": f"vyvo.build={self.build_id}"}
            found += [c.name for c in client.containers.list(all=True, filters=label)]
            client.close()
        for entry in Path("/proc").iterdir():
            try:
                cwd = str((entry / "cwd").readlink()) if entry.name.isdigit() else ""
            except OSError:
                continue
            if cwd.startswith(str(self.data_dir)):
                found.append(f"process {entry.name}")
        return found


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data directory for all tests of a worker, as a build host has."""
    return tmp_path_factory.mktemp("build-host")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    folder = tmp_path / "template"
    folder.mkdir()
    for name in ("Dockerfile", "docker-bake.hcl"):
        shutil.copy(SHARED_DIR / name, folder / name)
    (folder / "requirements.in").write_text("cog>=0.23,<0.24\n")
    (folder / "template.yaml").write_text("name: greeter\n")
    (folder / "predict.py").write_text(PREDICTOR)
    return folder


@pytest.fixture
def bench(template: Path, shared_data: Path, tmp_path: Path) -> Bench:
    weights = tmp_path / "weights.txt"
    weights.write_text("good")
    return Bench(template, shared_data, weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_build_gives_a_checked_runner_with_its_schema(
    bench: Bench, backend: BuildBackend
) -> None:
    result = bench.build(backend)
    assert result.backend is backend
    assert result.image.endswith(result.digest)
    assert result.digest.startswith("sha256:")
    assert result.size_bytes > 1_000_000
    assert result.python.startswith("3.")
    assert {"lock", "build", "check", "total"} <= result.durations.keys()
    good = {"name": "Ada", "style": "a"}
    jsonschema.validate(good, result.input_schema)
    for bad in (
        {"name": "Ada"},
        {**good, "style": "c"},
        {**good, "nmae": "x"},
        {**good, "name": 3},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, result.input_schema)
    jsonschema.validate("Adaa", result.output_schema)
    assert "check: health check: READY" in bench.log.text()
    assert bench.states == ([BuildState.PUSHING] if backend is BuildBackend.BUILDX else [])
    assert bench.leftovers() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_build_needs_no_network(
    bench: Bench, backend: BuildBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.build(backend)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    bench.log.lines.clear()
    second = bench.build(backend)
    assert second.lock_sha256 == first.lock_sha256
    assert "resolving" not in bench.log.text()
    assert "fetching" not in bench.log.text()
    if backend is BuildBackend.VENV:
        assert second.digest == first.digest


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_do_not_load_fail_the_build_with_the_reason(
    bench: Bench, backend: BuildBackend
) -> None:
    bench.weights.write_text("torn")
    with pytest.raises(RunnerFailed, match="cannot read weights: torn, GREETING=hello"):
        bench.build(backend)
    assert bench.leftovers() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_weights_the_schema_is_read_all_the_same(
    bench: Bench, backend: BuildBackend
) -> None:
    result = bench.build(backend, weights_path=None)
    assert "style" in result.input_schema["properties"]
    assert "no weights are given" in bench.log.text()
    assert bench.leftovers() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_predictor_that_does_not_load_fails_the_build(
    bench: Bench, backend: BuildBackend
) -> None:
    (bench.template / "predict.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(BuildFailed, match="nothing_of_that_name"):
        bench.build(backend)
    assert bench.leftovers() == []


def _cancel_at(bench: Bench, backend: BuildBackend, part: str) -> float:
    """Start a build, cancel it once `part` is logged; seconds until it had stopped."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench.build, backend)
        bench.log.wait_for(part)
        asked = time.monotonic()
        bench.cancel.set()
        with pytest.raises(BuildCanceled):
            running.result(timeout=30)
        return time.monotonic() - asked


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancel_during_the_check_stops_the_runner(bench: Bench, backend: BuildBackend) -> None:
    bench.weights.write_text("slow")
    assert _cancel_at(bench, backend, "health check: STARTING") < 5.0
    assert bench.leftovers() == []


def test_requirements_that_nothing_satisfies_are_quoted(bench: Bench) -> None:
    (bench.template / "requirements.in").write_text("cog>=0.23,<0.24\nnumpy==0.0.0.1\n")
    with pytest.raises(BuildFailed, match=r"numpy"):
        bench.build(BuildBackend.VENV)
    assert not list((bench.data_dir / "wheelhouses").rglob("*.partial"))


def test_builds_at_once_share_one_environment(bench: Bench, template: Path, tmp_path: Path) -> None:
    # A new app, so that neither finds the environment made.
    (template / "extra.py").write_text(f"# {uuid.uuid4()}\n")
    others = [Bench(template, tmp_path / "data", bench.weights) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda b: b.build(BuildBackend.VENV), others))
    assert len({result.image for result in results}) == 1
    installs = sum("Installed" in b.log.text() for b in others)
    fetches = sum("fetching the locked wheels" in b.log.text() for b in others)
    assert (installs, fetches) == (1, 1)


def test_an_environment_says_how_it_is_run(bench: Bench) -> None:
    digest = bench.build(BuildBackend.VENV).digest
    folder = bench.data_dir / "venvs" / digest.removeprefix("sha256:")
    spec = json.loads((folder / "runner.json").read_text())
    assert (folder / spec["command"][0]).exists()
    assert (folder / spec["cwd"] / "predict.py").is_file()
    assert not (folder / spec["cwd"] / "Dockerfile").exists()
    # What a build was given at run time is no part of what is shared by content.
    assert "GREETING" not in (folder / "runner.json").read_text()


def test_a_backend_that_cannot_work_says_what_is_missing() -> None:
    with pytest.raises(Unavailable, match=r"no Docker engine answers at tcp://127\.0\.0\.1:9"):
        choose(BuildBackend.BUILDX, registry=REGISTRY, docker_host="tcp://127.0.0.1:9")
    chosen = choose(BuildBackend.AUTO, registry=REGISTRY, docker_host="tcp://127.0.0.1:9")
    assert chosen.backend.kind is BuildBackend.VENV
    assert "no Docker engine" in chosen.reason
    processes = choose(BuildBackend.AUTO, registry=REGISTRY, engine="process")
    assert processes.backend.kind is BuildBackend.VENV


class TestImage:
    """What only an image build has."""

    __test__ = HAS_ENGINE

    def test_the_digest_is_the_manifests_in_the_registry(self, bench: Bench) -> None:
        result = bench.build(BuildBackend.BUILDX)
        repository = f"vyvo/test/{bench.build_id[:13]}"
        assert result.image == f"{REGISTRY}/{repository}@{result.digest}"
        answer = httpx.head(
            f"http://{REGISTRY}/v2/{repository}/manifests/v1_cpu",
            headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
        )
        assert answer.headers["docker-content-digest"] == result.digest
        client = docker.from_env()
        labels = client.images.get(result.image).labels
        client.close()
        assert labels["vyvo.model"] == f"test/{bench.build_id[:13]}"
        assert labels["org.opencontainers.image.base.digest"] == result.base_digest
        assert "GREETING" not in json.dumps(labels)

    def test_a_build_step_has_no_network(self, bench: Bench) -> None:
        dockerfile = bench.template / "Dockerfile"
        probe = f"RUN python3 -c \"import os; print({bench.build_id!r}, os.listdir('/sys/class/net'))\"\n"
        dockerfile.write_text(
            dockerfile.read_text().replace("WORKDIR /src\n", f"WORKDIR /src\n{probe}")
        )
        bench.build(BuildBackend.BUILDX)
        assert f"{bench.build_id} ['lo']" in bench.log.text()

    def test_a_failed_step_is_quoted(self, bench: Bench) -> None:
        dockerfile = bench.template / "Dockerfile"
        dockerfile.write_text(dockerfile.read_text() + f"RUN echo {bench.build_id} >&2; exit 7\n")
        with pytest.raises(BuildFailed) as failed:
            bench.build(BuildBackend.BUILDX)
        said = failed.value.detail
        assert re.fullmatch(
            rf"image: \[\d/\d\] RUN echo {bench.build_id} >&2; exit 7: exit code: 7: {bench.build_id}",
            said,
        )
        assert f": {bench.build_id}\n" in bench.log.text()

    def test_a_cancel_stops_the_image_build(self, bench: Bench) -> None:
        dockerfile = bench.template / "Dockerfile"
        dockerfile.write_text(
            dockerfile.read_text() + f"RUN echo started {bench.build_id}; sleep 97.{os.getpid()}\n"
        )
        assert _cancel_at(bench, BuildBackend.BUILDX, f": started {bench.build_id}\n") < 5.0
        _eventually(lambda: f"sleep 97.{os.getpid()}" not in _commands())
        assert bench.leftovers() == []

    def test_a_base_image_that_is_nowhere_is_said_so(self, bench: Bench) -> None:
        with pytest.raises(BuildFailed, match=r"^base"):
            bench.build(BuildBackend.BUILDX, base_image=f"{REGISTRY}/nothing/here:1")

    def test_what_an_earlier_try_left_is_replaced(self, bench: Bench) -> None:
        client = docker.from_env()
        try:
            client.containers.create(BASE_IMAGE, ["true"], name=f"vyvo-check-{bench.build_id}")
            bench.build(BuildBackend.BUILDX)
        finally:
            client.close()
        assert bench.leftovers() == []


def _commands() -> str:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return "\n".join(found)


def _eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
