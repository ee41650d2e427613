"""Image builds that go wrong, as runs: each says which step it was, and leaves nothing half-registered.

Collected where a Docker engine with buildx and a registry answer.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dagster import DagsterRunStatus, ExecuteInProcessResult

from resources import BuildingResource
from tests.integration.dagster.conftest import World
from tests.integration.dagster.test_build import end_of_stream, log_of
from tests.integration.failing_registry import FailingRegistry
from tests.integration.git_https import GitHost, git_host
from tests.integration.test_building_full_disk import can_mount, mounted
from vyvo_dagster.building.backends import why_not_buildx
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.store.records import Build

REGISTRY = "127.0.0.1:5000"
HAS_ENGINE = why_not_buildx(REGISTRY) is None

# One after the other: they share the engine.
pytestmark = pytest.mark.xdist_group("hosts")

PREDICTOR = """\
from cog import BasePredictor


class Runner(BasePredictor):
    def predict(self, name: str) -> str:
        return f"hello {name}"
"""


def cog_yaml(command: str = "echo made", package: str = "humanize==4.12.3") -> str:
    return (
        f"build:\n  python_version: '3.11'\n  python_packages: ['{package}']\n"
        f"  run:\n    - {command}\npredict: predict.py:Runner\n"
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    with git_host(tmp_path_factory.mktemp("git")) as running:
        yield running


@pytest.fixture
def here(world: World, host: GitHost, data_dir: Path) -> Callable[..., Build]:
    """A queued image build of a repository, on a build host as the settings given say."""

    def add(cog: str, data: Path = data_dir, **settings: Any) -> Build:
        world.building = BuildingResource(
            data_dir=str(data), base_image="vyvo/base:bookworm", builds_per_host=10_000,
            source_hosts=[host.netloc], source_ca=str(host.ca), host="build-host",
            **{"registry": REGISTRY, "engine": "docker", **settings},
        )  # fmt: skip
        name = world.model_id.rpartition("-")[2]
        host.make(name, {"cog.yaml": cog, "predict.py": PREDICTOR})
        return world.add_build(
            None, template="cog", backend=BuildBackend.BUILDX, repo=host.url(name)
        )

    return add


def in_registry(world: World) -> list[str]:
    """Tags that the registry has of the world's model."""
    answer = httpx.get(f"http://{REGISTRY}/v2/vyvo/{world.model_id}/tags/list", trust_env=False)
    return answer.json().get("tags") or []


def assert_nothing_registered(world: World, queued: Build, result: ExecuteInProcessResult) -> str:
    """The build failed, told so everywhere, and its version is as it was; the error."""
    assert not result.success
    build, version = world.build(queued.id), world.version(queued)
    assert build.state is BuildState.FAILED
    assert build.error is not None
    assert "\n" not in build.error
    assert (version.state, version.runner_image, version.image_digest) == (
        VersionState.DRAFT, None, None,
    )  # fmt: skip
    assert not result.asset_materializations_for_node("runner_image")
    assert not result.asset_materializations_for_node("model_version")
    assert build.log_url is not None
    lines = log_of(world, build.log_url)
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["text"] == f"failed: {build.error}"
    assert end_of_stream(world, build.id) == "failed"
    assert not list(world.building.scratch(str(build.id)).glob("context"))
    return build.error


def commands() -> str:
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return "\n".join(found)


def until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


class TestFaults:
    """With the engine."""

    __test__ = HAS_ENGINE

    def test_a_failing_step_is_named_with_its_last_words(
        self, world: World, here: Callable[..., Build]
    ) -> None:
        queued = here(cog_yaml('"echo the last words >&2; exit 7"'))
        said = assert_nothing_registered(world, queued, world.run(queued))
        assert said.startswith("image: [")
        assert "exit code: 7" in said
        assert said.endswith("the last words")
        assert in_registry(world) == []

    def test_a_wheel_that_is_missing_is_named(
        self, world: World, here: Callable[..., Build]
    ) -> None:
        queued = here(cog_yaml(package="humanize==999.0"))
        said = assert_nothing_registered(world, queued, world.run(queued))
        assert said.startswith("lock failed")
        assert "humanize==999.0" in said
        assert in_registry(world) == []

    def test_a_push_that_is_answered_500_twice_succeeds(
        self, world: World, here: Callable[..., Build]
    ) -> None:
        proxy = FailingRegistry(REGISTRY, r"PUT /v2/.*/manifests/", 2)
        try:
            queued = here(cog_yaml(), registry=proxy.address)
            result = world.run(queued)
        finally:
            proxy.close()
        assert result.success
        build, version = world.build(queued.id), world.version(queued)
        assert (proxy.failed, proxy.passed) == (2, 1)
        assert (build.state, version.state) == (BuildState.SUCCEEDED, VersionState.READY)
        assert version.runner_image == build.image
        assert build.log_url is not None
        tries = [line["text"] for line in log_of(world, build.log_url) if line["step"] == "push"]
        assert [text.rpartition("; ")[2] for text in tries[:2]] == [
            "try 2 of 4 in 1 s", "try 3 of 4 in 2 s",
        ]  # fmt: skip
        assert in_registry(world) == ["1"]

    def test_a_push_that_never_succeeds_registers_nothing(
        self, world: World, here: Callable[..., Build]
    ) -> None:
        proxy = FailingRegistry(REGISTRY, r"PUT /v2/.*/manifests/", 100)
        try:
            queued = here(cog_yaml(), registry=proxy.address, push_attempts=2)
            said = assert_nothing_registered(world, queued, world.run(queued))
        finally:
            proxy.close()
        assert said.startswith("push: gave up after 2 tries: ")
        assert "500" in said
        assert in_registry(world) == []

    def test_a_cancel_stops_buildkit(self, world: World, here: Callable[..., Build]) -> None:
        mark = f"sleep 97{os.getpid()}"
        queued = here(cog_yaml(f'"{mark}"'))
        told: list[float] = []

        def cancel() -> None:
            until(lambda: mark in commands(), 120)
            world.store.call(lambda db: db.builds.move(queued.id, BuildState.CANCELED))
            told.append(time.monotonic())

        thread = threading.Thread(target=cancel)
        thread.start()
        result = world.run(queued)
        took = time.monotonic() - told[0]
        thread.join()
        print(f"\ncancel: BuildKit and the run had ended after {took:.1f} s")
        # The step would go on for more than a day.
        until(lambda: mark not in commands(), 30)
        run = world.instance.get_run_by_id(result.run_id)
        assert run is not None
        assert run.status is DagsterRunStatus.CANCELED
        assert world.build(queued.id).state is BuildState.CANCELED
        assert world.version(queued).state is VersionState.DRAFT
        assert end_of_stream(world, queued.id) == "canceled"
        assert in_registry(world) == []

    def test_a_build_that_takes_too_long_is_ended(
        self, world: World, here: Callable[..., Build]
    ) -> None:
        mark = f"sleep 98{os.getpid()}"
        queued = here(cog_yaml(f'"{mark}"'), build_seconds=20)
        said = assert_nothing_registered(world, queued, world.run(queued))
        assert said == "image: gave up after 20 s in all"
        until(lambda: mark not in commands(), 30)

    def test_a_repository_that_reaches_out_or_swells_is_refused(
        self, world: World, here: Callable[..., Build], host: GitHost
    ) -> None:
        bomb = "a: &a [x, x]\nb: &b [*a, *a]\npredict: predict.py:Runner\n"
        queued = here(bomb)
        said = assert_nothing_registered(world, queued, world.run(queued))
        assert said == "source: cog.yaml: aliases (*name) are not taken"
        name = f"{world.model_id.rpartition('-')[2]}-link"
        made = host.make(name, {"cog.yaml": cog_yaml(), "predict.py": PREDICTOR})
        (made.work / "weights.txt").symlink_to("../../../../etc/passwd")
        made.commit({})
        queued = world.add_build(
            None, "2", template="cog", backend=BuildBackend.BUILDX, repo=host.url(name)
        )
        said = assert_nothing_registered(world, queued, world.run(queued))
        assert said.startswith("source: ")
        assert "weights.txt" in said
        assert "leads outside" in said
        assert in_registry(world) == []

    def test_a_line_of_a_megabyte_is_cut_into_pieces(
        self, world: World, here: Callable[..., Build]
    ) -> None:
        # No other run's: BuildKit says nothing of a step that it has made before.
        once = secrets.token_hex(8)
        queued = here(cog_yaml(f"""python -c "print('{once}', 'x' * 1000000)" """))
        assert world.run(queued).success
        build = world.build(queued.id)
        assert build.log_url is not None
        pieces = [line["text"] for line in log_of(world, build.log_url) if "xxxx" in line["text"]]
        # BuildKit itself clips a step that prints too much at once.
        assert 100_000 < sum(map(len, pieces)) < 1_001_000
        assert max(map(len, pieces)) <= 16 << 10


class TestFullDisk:
    """With the engine, and where a small file system can be mounted."""

    __test__ = HAS_ENGINE and can_mount()

    def test_a_full_disk_is_told(
        self, world: World, here: Callable[..., Build], tmp_path: Path
    ) -> None:
        small = tmp_path / "small"
        small.mkdir()
        with mounted(small, "2m"):
            queued = here(cog_yaml(), data=small)
            said = assert_nothing_registered(world, queued, world.run(queued))
            assert said.partition(":")[0].partition(" ")[0] in {"sdk", "lock", "wheels"}
            assert "full" in said or "No space left" in said
            assert not [p for p in (small / "wheelhouses").iterdir() if len(p.name) == 64]
        assert in_registry(world) == []
