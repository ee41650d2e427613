"""Each template that this machine can build, for real: source, lock, image, health check.

Collected where a Docker engine with buildx and a registry answer. With -s the times are printed.
"""

import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import jsonschema
import pytest

from runner_images import SDK_DIR, SHARED_DIR, get_template
from tests.integration.git_https import GitHost, git_host
from vyvo_dagster.building.backends import choose, why_not_buildx
from vyvo_dagster.building.recipe import TemplateFiles, lay_out
from vyvo_dagster.building.source import SourceLimits, fetch_source
from vyvo_dagster.building.types import BuildContext, BuildRequest, BuildResult
from vyvo_dagster.domain.build import BuildBackend
from vyvo_dagster.errors import BuildFailed

REGISTRY = "127.0.0.1:5000"
BASE_IMAGE = "vyvo/base:bookworm"
HAS_ENGINE = why_not_buildx(REGISTRY) is None

COG_YAML = """\
build:
  python_version: "3.11"
  python_packages: ["humanize==4.12.3"]
  system_packages: [python3]
  run:
    - python -c "import humanize; open('made-here', 'w').write(humanize.intcomma(1000000))"
    - test ! -e /sys/class/net/eth0
predict: app/predict.py:Runner
"""
COG_PREDICT = """\
from pathlib import Path as P
from cog import BasePredictor, Input
import humanize


class Runner(BasePredictor):
    def setup(self):
        self.word = P("/src/made-here").read_text()

    def predict(self, number: int = Input(description="A number.", ge=0)) -> str:
        return f"{self.word} {humanize.ordinal(number)}"
"""
ENGINE = """\
import numpy as np
from clip import Clip


class Engine:
    def __init__(self, text):
        self.text = text

    def generate(self, request, progress):
        rng = np.random.default_rng(request.seed)
        frames = rng.integers(0, 255, (8, request.height, request.width, 3), np.uint8)
        progress(0.5)
        sound = np.sin(np.arange(16000) / 20, dtype=np.float32)[None]
        return Clip(frames, 8, sound, 16000)


def load(weights):
    return Engine(weights.read_text())
"""


@dataclass
class Bench:
    """Builds templates in one data directory, as a build host does."""

    data_dir: Path
    lines: list[str] = field(default_factory=list[str])
    cancel: threading.Event = field(default_factory=threading.Event)

    def line(self, step: str, text: str, fields: Any = None) -> None:
        self.lines.append(f"{step}: {text}")

    def build(
        self, template: str, host: GitHost | None = None, repo: str | None = None, *,
        model_id: str, backend: BuildBackend = BuildBackend.BUILDX, **changes: Any,
    ) -> BuildResult:  # fmt: skip
        build_id = str(uuid.uuid4())
        context = BuildContext(
            data_dir=self.data_dir, log=self, cancel=self.cancel, timeout=400.0, ready_timeout=90.0,
            runner_env=changes.pop("runner_env", {}),
        )  # fmt: skip
        found = get_template(template)
        source = None
        if host is not None and repo is not None:
            limits = SourceLimits(hosts=[host.netloc], ca=host.ca)
            folder = context.scratch(build_id) / "source"
            source = fetch_source(host.url(repo), None, folder, limits, context).path
        files = TemplateFiles(
            found.path, SHARED_DIR, found.requires_python, gpu=found.accelerator == "cuda",
            cog=found.source == "cog", source_requirements=found.source_requirements,
        )  # fmt: skip
        request = BuildRequest(
            build_id=build_id, recipe=lay_out(context.scratch(build_id) / "context", files, source, self),
            template_name=template, template_hash=found.hash, model_id=model_id, version="v1",
            sdk_dir=SDK_DIR, needs_weights=found.needs_weights,
            **{"base_image": BASE_IMAGE, **changes},
        )  # fmt: skip
        return choose(backend, registry=REGISTRY).backend.build(request, context)

    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with git_host(tmp_path) as running:
        yield running


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("build-host"))


def model() -> str:
    return f"test/t-{uuid.uuid4().hex[:12]}"


def told(template: str, backend: str, cold: BuildResult, warm: BuildResult) -> None:
    times = ", ".join(f"{k} {v:.1f} s" for k, v in warm.durations.items())
    print(
        f"\n{template} x {backend}: cold {cold.durations['total']:.1f} s, "
        f"warm {warm.durations['total']:.1f} s ({times})"
    )


def predict(image: str, body: dict[str, Any], env: dict[str, str], weights: Path | None) -> Any:
    """Run an image and ask it for one prediction."""
    import httpx

    client = docker.from_env()
    volumes = {str(weights): {"bind": "/weights/w", "mode": "ro"}} if weights else {}
    container = client.containers.run(
        image, detach=True, environment={**env, "VYVO_WEIGHTS": "/weights/w"}, volumes=volumes,
        network_mode="host" if env else "bridge",
        ports={} if env else {"5000/tcp": ("127.0.0.1", None)},
    )  # fmt: skip
    try:
        container.reload()
        port = env.get("PORT") or container.ports["5000/tcp"][0]["HostPort"]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                url = f"http://127.0.0.1:{port}"
                if httpx.get(f"{url}/health-check").json()["status"] == "READY":
                    return httpx.post(f"{url}/predictions", json={"input": body}, timeout=60).json()
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(container.logs().decode())
    finally:
        container.remove(force=True)
        client.close()


class TestTemplates:
    """With the engine."""

    __test__ = HAS_ENGINE

    def test_cog_builds_a_repository_and_then_takes_its_image(
        self, bench: Bench, host: GitHost
    ) -> None:
        host.make("cogged", {"cog.yaml": COG_YAML, "app/predict.py": COG_PREDICT})
        name = model()
        cold = bench.build("cog", host, "cogged", model_id=name)
        warm = bench.build("cog", host, "cogged", model_id=name)
        told("cog", "buildx", cold, warm)
        assert "health check: READY" in bench.text()
        # Equal inputs, an equal lock and an equal image, and nothing resolved twice.
        assert (warm.digest, warm.lock_sha256) == (cold.digest, cold.lock_sha256)
        assert bench.text().count("resolving for Python 3.11") == 1
        assert cold.lock is not None
        assert "humanize==4.12.3" in cold.lock.read_text()
        jsonschema.validate({"number": 3}, cold.input_schema)
        assert predict(cold.image, {"number": 3}, {}, None)["output"] == "1,000,000 3rd"
        self._prebuilt(bench, cold.image)

    @staticmethod
    def _prebuilt(bench: Bench, image: str) -> None:
        """The image as `cog build` leaves it: labelled by Cog, and taken as it is."""
        with pytest.raises(BuildFailed, match="was not built by Cog"):
            bench.build("cog", model_id=model(), base_image=image)
        tag = f"{REGISTRY}/test/cog-{uuid.uuid4().hex[:12]}:latest"
        dockerfile = f'FROM {image}\nLABEL run.cog.version="0.16.0" run.cog.config="{{}}"\n'
        subprocess.run(
            ["docker", "build", "--quiet", "--tag", tag, "-"],
            input=dockerfile.encode(), check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(["docker", "push", "--quiet", tag], check=True, capture_output=True)
        name = model()
        cold = bench.build("cog", model_id=name, base_image=tag)
        warm = bench.build("cog", model_id=name, base_image=tag)
        told("cog (an image of Cog's)", "buildx", cold, warm)
        assert cold.lock_sha256 is None
        assert cold.image.startswith(f"{REGISTRY}/vyvo/{name}@sha256:")
        assert "number" in cold.input_schema["properties"]

    def test_video_makes_a_clip_with_sound_by_a_repositorys_engine(
        self, bench: Bench, host: GitHost, tmp_path: Path, s3_settings: Any
    ) -> None:
        host.make("engine", {"vyvo_engine.py": ENGINE, "requirements.txt": "numpy>=2,<3\n"})
        weights = tmp_path / "weights"
        weights.write_text("any")
        name = model()
        cold = bench.build("video", host, "engine", model_id=name, weights_path=weights)
        warm = bench.build("video", host, "engine", model_id=name, weights_path=weights)
        told("video", "buildx", cold, warm)
        assert warm.digest == cold.digest
        env = {
            "VYVO_S3_ENDPOINT": s3_settings.endpoint, "VYVO_S3_ACCESS_KEY": s3_settings.access_key,
            "VYVO_S3_SECRET_KEY": s3_settings.secret_key.get_secret_value(),
            "VYVO_S3_BUCKET_PREFIX": s3_settings.bucket_prefix, "PORT": "5911",
        }  # fmt: skip
        asked = {"prompt": "rain", "width": 64, "height": 64, "seed": 7}
        answer = predict(cold.image, asked, env, weights)
        assert answer["status"] == "succeeded", answer
        (made,) = answer["output"]
        assert (made["type"], made["mime_type"]) == ("video", "video/mp4")
        assert made["size_bytes"] > 1000

    def test_digits_is_built_by_both_backends(self, bench: Bench) -> None:
        for backend in (BuildBackend.BUILDX, BuildBackend.VENV):
            name = model()
            cold = bench.build("digits-diffusion", model_id=name, backend=backend)
            warm = bench.build("digits-diffusion", model_id=name, backend=backend)
            told("digits-diffusion", backend.value, cold, warm)
            assert warm.digest == cold.digest

    def test_a_repositorys_code_does_not_run_on_the_host(self, bench: Bench, host: GitHost) -> None:
        host.make("cogged", {"cog.yaml": COG_YAML, "app/predict.py": COG_PREDICT})
        with pytest.raises(BuildFailed, match="inside an image only"):
            bench.build("cog", host, "cogged", model_id=model(), backend=BuildBackend.VENV)

    def test_what_the_base_image_lacks_is_said(self, bench: Bench, host: GitHost) -> None:
        lacking = COG_YAML.replace("[python3]", "[python3, no-such-package]")
        host.make("lacking", {"cog.yaml": lacking, "app/predict.py": COG_PREDICT})
        with pytest.raises(BuildFailed, match="lacks the system packages no-such-package"):
            bench.build("cog", host, "lacking", model_id=model())
        other = COG_YAML.replace('"3.11"', '"3.8"')
        host.make("other", {"cog.yaml": other, "app/predict.py": COG_PREDICT})
        with pytest.raises(BuildFailed, match=r"^base: the runner needs Python .*==3\.8\.\*"):
            bench.build("cog", host, "other", model_id=model())

    def test_shell_metacharacters_stay_what_they_are(
        self, bench: Bench, host: GitHost, tmp_path: Path
    ) -> None:
        """In labels, arguments and a repository's file names: no shell reads them."""
        name = "a;touch $(HOME)/x `id` 'q' \"d\".txt"
        host.make("odd", {"cog.yaml": COG_YAML, "app/predict.py": COG_PREDICT, name: "x"})
        odd = "$(touch /tmp/vyvo-pwned); `id` \"'|&"
        result = bench.build("cog", host, "odd", model_id=model(), labels={"note": odd})
        client = docker.from_env()
        assert client.images.get(result.image).labels["note"] == odd
        client.close()
        assert not Path("/tmp/vyvo-pwned").exists()

    def test_a_failing_step_and_a_line_of_a_megabyte(self, bench: Bench, host: GitHost) -> None:
        loud = COG_YAML.replace(
            "test ! -e /sys/class/net/eth0", """python -c "print('x' * 1000000)"; exit 7"""
        )
        host.make("loud", {"cog.yaml": loud, "app/predict.py": COG_PREDICT})
        with pytest.raises(BuildFailed, match=r"^image: \[\d/\d\] RUN .*exit code: 7") as caught:
            bench.build("cog", host, "loud", model_id=model())
        assert len(caught.value.detail) < 2000
        missing = COG_YAML.replace("humanize==4.12.3", "humanize==999.0")
        host.make("missing", {"cog.yaml": missing, "app/predict.py": COG_PREDICT})
        with pytest.raises(BuildFailed, match=r"^lock failed.*humanize"):
            bench.build("cog", host, "missing", model_id=model())
        sdist = COG_YAML.replace("humanize==4.12.3", "fire==0.5.0")
        host.make("sdist", {"cog.yaml": sdist, "app/predict.py": COG_PREDICT})
        with pytest.raises(BuildFailed, match=r"^lock failed.*(wheel|build)"):
            bench.build("cog", host, "sdist", model_id=model())
