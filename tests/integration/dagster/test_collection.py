"""What nobody refers to goes, from the real registry, the engine and the disk; what is referred to stays."""

import io
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
import sqlalchemy as sa
from dagster import Definitions, ExecuteInProcessResult
from uuid_utils.compat import uuid7

from ops.collection import collect_unreferenced
from resources import BuildingResource
from tests.integration.dagster.conftest import World
from vyvo_dagster.building.backends import why_not_buildx
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import ModelVersion

REGISTRY = "127.0.0.1:5000"
HAS_ENGINE = why_not_buildx(REGISTRY) is None

# One after the other: they share the engines, or keep both cores busy.
pytestmark = pytest.mark.xdist_group("hosts")


def building(data: Path, engine: Any, keep_count: int = 1) -> BuildingResource:
    return BuildingResource(
        data_dir=str(data), registry=REGISTRY, base_image="vyvo/base:bookworm", engine=engine,
        keep_days=30, keep_count=keep_count, host="build-host",
    )  # fmt: skip


def collect(world: World, *, dry_run: bool = False) -> ExecuteInProcessResult:
    job = Definitions(jobs=[collect_unreferenced], resources=world.resources).resolve_job_def(
        "collect_unreferenced"
    )
    config = {"ops": {"collect_images": {"config": {"dry_run": dry_run}}}}
    result = job.execute_in_process(instance=world.instance, run_config=config)
    assert result.success
    return result


def found(result: ExecuteInProcessResult) -> dict[str, str]:
    """Name → kind of what was, or would be, removed."""
    (output,) = (e for e in result.all_events if e.is_successful_output)
    data: Any = output.step_output_data.metadata["found"].value
    return {each["name"]: each["kind"] for each in data}


def add(world: World, image: str, version: str, state: VersionState, days: int) -> ModelVersion:
    """A version in a state, built so long ago; retired ones were retired then."""
    build_id = uuid7()

    async def write(db: Store) -> ModelVersion:
        await db.models.ensure(world.model_id, "tester")
        made = await db.models.create_draft(
            id=uuid7(), model_id=world.model_id, version=version, template="x",
            modality=Modality.IMAGE, values={"runner_image": image, "build_id": build_id},
        )  # fmt: skip
        assert made is not None
        await db.builds.add(
            id=build_id, tenant="t", model_id=world.model_id, version=version, version_id=made.id,
            runner_name="r", template="x", backend=BuildBackend.AUTO, image=image,
        )  # fmt: skip
        await db.models.update(made.id, frozenset({VersionState.DRAFT}), {"state": state})
        for statement in (
            "update runner_builds set state = 'succeeded', finished_at = now() - make_interval(days => :days) where id = :id",
            "update model_versions set updated_at = now() - make_interval(days => :days) where build_id = :id",
        ):
            await db.connection.execute(sa.text(statement), {"days": days, "id": build_id})
        found = await db.models.version_by_id(made.id)
        assert found is not None
        return found

    return world.store.call(write)


class Images:
    """Small images of one model, pushed to the registry."""

    def __init__(self, repository: str) -> None:
        self.client: Any = docker.from_env()
        self.repository = repository

    def push(self, tag: str) -> str:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            content = os.urandom(64)
            entry = tarfile.TarInfo("file")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        self.client.api.import_image(data.getvalue(), repository=self.repository, tag=tag)
        self.client.images.push(self.repository, tag=tag)
        (name,) = self.client.images.get(f"{self.repository}:{tag}").attrs["RepoDigests"]
        return name

    def in_registry(self, name: str) -> bool:
        path, _, digest = name.partition("@")
        url = f"http://{REGISTRY}/v2/{path.partition('/')[2]}/manifests/{digest}"
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        return httpx.head(url, headers=accept, trust_env=False).status_code == 200

    def on_engine(self, name: str) -> bool:
        try:
            self.client.images.get(name)
        except docker.errors.ImageNotFound:
            return False
        return True


class TestImages:
    """With an engine and a registry."""

    __test__ = HAS_ENGINE

    def test_only_what_nobody_refers_to_goes(self, world: World, tmp_path: Path) -> None:
        world.building = building(tmp_path, "docker")
        images = Images(f"{REGISTRY}/vyvo/{world.model_id}")
        names = {
            tag: images.push(tag)
            for tag in ("old", "older", "young", "ready", "active", "assigned", "failed")
        }
        retired = VersionState.RETIRED
        old = add(world, names["old"], "old", retired, 60)
        add(world, names["older"], "older", retired, 90)
        add(world, names["young"], "young", retired, 5)
        add(world, names["ready"], "ready", VersionState.READY, 400)
        add(world, names["active"], "active", VersionState.ACTIVE, 400)
        assigned = add(world, names["assigned"], "assigned", retired, 400)
        add(world, names["failed"], "failed", VersionState.DRAFT, 50)
        world.store.call(lambda db: assign(db, assigned))
        # A build that pushed and then failed: its version refers to no image.
        world.store.call(lambda db: fail(db, world.model_id, "failed"))

        # `young` is the newest that nobody refers to, and is kept as such too.
        gone = {names["old"], names["older"], names["failed"]}
        told = found(collect(world, dry_run=True))
        assert gone <= told.keys()
        assert not (set(names.values()) - gone) & told.keys()
        assert all(images.in_registry(name) and images.on_engine(name) for name in names.values())

        told = found(collect(world))
        assert gone <= told.keys()
        for name in names.values():
            assert images.in_registry(name) == (name not in gone)
            assert images.on_engine(name) == (name not in gone)
        after = world.store.call(lambda db: db.models.version_by_id(old.id))
        assert after is not None
        assert after.collected_at is not None
        assert not gone & found(collect(world)).keys()
        totals = world.store.call(lambda db: db.collected.totals())
        assert totals["registry_image"][0] >= 3  # type: ignore[index]

    def test_a_model_that_is_being_built_is_left_alone(self, world: World, tmp_path: Path) -> None:
        world.building = building(tmp_path, "docker", keep_count=0)
        images = Images(f"{REGISTRY}/vyvo/{world.model_id}")
        name = images.push("old")
        add(world, name, "old", VersionState.RETIRED, 60)
        build = world.add_build(None, "next")
        assert name not in found(collect(world))
        assert images.in_registry(name)
        world.store.call(lambda db: db.builds.move(build.id, BuildState.CANCELED))
        assert name in found(collect(world))
        assert not images.in_registry(name)

    def test_an_image_that_a_container_is_made_of_stays_on_the_engine(
        self, world: World, tmp_path: Path
    ) -> None:
        world.building = building(tmp_path, "docker", keep_count=0)
        images = Images(f"{REGISTRY}/vyvo/{world.model_id}")
        name = images.push("old")
        add(world, name, "old", VersionState.RETIRED, 60)
        container = images.client.containers.create(name, ["none"])
        try:
            collect(world)
            assert not images.in_registry(name)
            assert images.on_engine(name)
        finally:
            container.remove(force=True)
        collect(world)
        assert not images.on_engine(name)


async def assign(db: Store, version: ModelVersion) -> None:
    node = uuid7()
    await db.nodes.join(id=node, name=f"n-{node.hex}", boot_id=uuid7(), labels={}, capabilities={})
    statement = sa.text(
        "insert into assignments (id, node_id, version_id, state) values (:id, :node, :version, 'ready')"
    )
    await db.connection.execute(statement, {"id": uuid7(), "node": node, "version": version.id})


async def fail(db: Store, model_id: str, version: str) -> None:
    at = {"model": model_id, "version": version}
    await db.connection.execute(
        sa.text("update model_versions set runner_image = null where model_id = :model and version = :version"), at
    )  # fmt: skip
    await db.connection.execute(
        sa.text("update runner_builds set state = 'failed' where model_id = :model and version = :version"), at
    )  # fmt: skip


def folder(path: Path, days: int) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"x" * 1000)
    then = time.time() - days * 86400
    os.utime(path, (then, then))
    return path


def test_caches_go_that_are_old_and_that_nobody_refers_to(world: World, tmp_path: Path) -> None:
    world.building = building(tmp_path, "process")
    old, young, used, odd = ("a" * 64, "b" * 64, "c" * 64, "not-a-digest")
    venvs = {name: folder(tmp_path / "venvs" / name, 5 if name == young else 60) for name in (old, young, used, odd)}  # fmt: skip
    wheels = {name: folder(tmp_path / "wheelhouses" / name, 60) for name in ("d" * 64, "e" * 64, "locks")}  # fmt: skip
    left = folder(tmp_path / "venvs" / f".{'f' * 64}.removed", 1)
    version = add(world, f"venv://sha256:{used}", "v1", VersionState.READY, 400)
    assert version.build_id is not None
    lock = f"sha256:{'e' * 64}"
    world.store.call(lambda db: db.builds.update(version.build_id, lock_sha256=lock))  # type: ignore[arg-type]
    expected = {f"venv://sha256:{old}": "environment", f"sha256:{'d' * 64}": "wheelhouse"}
    assert found(collect(world, dry_run=True)) == expected
    assert venvs[old].is_dir()
    assert found(collect(world)) == expected
    assert [name for name, path in venvs.items() if path.is_dir()] == [young, used, odd]
    assert [name for name, path in wheels.items() if path.is_dir()] == ["e" * 64, "locks"]
    assert not left.exists()
    assert found(collect(world)) == {}
