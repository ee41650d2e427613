"""Real Postgres, Redis and S3 behind the resources, and builds in them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, ExecuteInProcessResult, materialize
from uuid_utils.compat import uuid7

from assets import model_version, model_weights, runner_image
from resources import (
    BuildingResource,
    ObjectsResource,
    RetentionResource,
    StoreResource,
    StreamsResource,
)
from tests.conftest import own_redis
from tests.integration.dagster import engines, gpu_engine, routed_world
from vyvo_dagster.domain.build import BuildBackend, partition_key
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.execution.names import BUILD_ID_TAG, PARTITIONS
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.build_queue import Taken
from vyvo_dagster.store.build_tables import runner_builds
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Build, ModelVersion
from vyvo_dagster.training.digits import TrainConfig, save_weights, train

HOSTS = {"default", "host2", "host3"}
ENGINES = engines.found()
WITHOUT = (
    ""
    if ENGINES.keys() >= HOSTS and engines.has_base_image(ENGINES["default"])
    else (
        "ops on tagged hosts are NOT tested: that takes three Docker engines named default, host2 and "
        f"host3 (found: {', '.join(sorted(ENGINES)) or 'none'}) and the image {engines.BASE_IMAGE}"
    )
)

# Ops on hosts are tested where engines stand for the hosts; elsewhere the report says so.
collect_ignore = ["test_engines.py", "test_executor.py", "test_pipes.py"] if WITHOUT else []


if WITHOUT or not gpu_engine.possible():
    collect_ignore.append("test_gpus.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if WITHOUT:
        terminalreporter.section("hosts")
        terminalreporter.line(WITHOUT)
    elif not gpu_engine.possible():
        terminalreporter.section("hosts")
        terminalreporter.line("One op to a GPU is NOT tested: that takes root, dockerd and ip")


@dataclass
class World:
    """The resources of one test, and what it does with them."""

    store: StoreResource
    streams: StreamsResource
    objects: ObjectsResource
    building: BuildingResource
    instance: DagsterInstance
    model_id: str = field(default_factory=lambda: f"test/m-{uuid7().hex[-12:]}")

    @property
    def resources(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "streams": self.streams,
            "objects": self.objects,
            "building": self.building,
            "retention": RetentionResource(),
        }

    def add_build(
        self, weights_uri: str | None, version: str = "1", template: str = "digits-diffusion",
        **values: Any,
    ) -> Build:  # fmt: skip
        build_id = uuid7()

        async def add(db: Store) -> Build:
            await db.models.ensure(self.model_id, "tester")
            made = await db.models.start_building(
                id=uuid7(),
                model_id=self.model_id,
                version=version,
                template=template,
                modality=Modality.IMAGE,
                weights_uri=weights_uri,
                env={"GREETING": "hello"},
                resources={},
                build_id=build_id,
            )
            return await db.builds.add(
                id=build_id,
                tenant="tester",
                model_id=self.model_id,
                version=version,
                version_id=made.id,
                runner_name="digits",
                template=template,
                weights_uri=weights_uri,
                env={"GREETING": "hello"},
                **{"backend": BuildBackend.VENV, **values},
            )

        return self.store.call(add)

    def begin(self, build: Build, run_id: str) -> None:
        """Take a build for a run, as its first step does."""

        async def begin(db: Store) -> object:
            return await db.build_queue.begin(build.id, run_id, "host", self.building.limits)

        assert isinstance(self.store.call(begin), Taken)

    def claim(self, build: Build) -> None:
        """Claim a build's launch, as the api does before it launches."""
        statement = sa.update(runner_builds).where(runner_builds.c.id == build.id)
        claimed = statement.values(launch_claimed_at=sa.func.now())
        self.store.call(lambda db: db.connection.execute(claimed))

    def build(self, build_id: UUID) -> Build:
        found = self.store.call(lambda db: db.builds.get(build_id))
        assert found is not None
        return found

    def version(self, build: Build) -> ModelVersion:
        found = self.store.call(lambda db: db.models.version_by_id(build.version_id))
        assert found is not None
        return found

    def run(self, build: Build, *, tagged: bool = True) -> ExecuteInProcessResult:
        """Run the job's assets for a build in this process, as a worker does."""
        partition = partition_key(build.model_id, build.version)
        self.instance.add_dynamic_partitions(PARTITIONS, [partition])
        return materialize(
            [model_weights, runner_image, model_version],
            partition_key=partition,
            instance=self.instance,
            resources=self.resources,
            tags={BUILD_ID_TAG: str(build.id)} if tagged else {},
            raise_on_error=False,
        )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of a process: the second build of a template installs nothing."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that the digits runner loads, of a model that has learned nothing."""
    path = tmp_path_factory.mktemp("weights") / "digits.npz"
    save_weights(train(TrainConfig(epochs=1, hidden=16, layers=1, time_steps=10)), path)
    return path


@pytest.fixture
def world(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings, data_dir: Path
) -> Iterator[World]:
    store = StoreResource(dsn=postgres_dsn)
    with DagsterInstance.ephemeral() as instance:
        yield World(
            store=store,
            streams=StreamsResource(url=redis_url),
            objects=ObjectsResource(
                endpoint=s3_settings.endpoint,
                access_key=s3_settings.access_key,
                secret_key=s3_settings.secret_key.get_secret_value(),
                bucket_prefix=s3_settings.bucket_prefix,
            ),
            building=BuildingResource(
                data_dir=str(data_dir),
                registry="127.0.0.1:5000",
                base_image="vyvo/base:bookworm",
                engine="process",
                # Builds of other tests are in the same database, and some never end.
                builds_per_host=10_000,
            ),
            instance=instance,
        )
    store.close()


@pytest.fixture
def weights_uri(world: World, weights_file: Path) -> str:
    """The weights, uploaded by hand as a person would."""
    s3 = world.objects.store()
    s3.put_file(s3.bucket(Modality.MODEL), "uploads/digits.npz", weights_file)
    return f"s3://{s3.bucket(Modality.MODEL)}/uploads/digits.npz"


@pytest.fixture(scope="session")
def routed(
    make_database: Callable[[str], str],
    s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[routed_world.World]:
    """A worker, a registry and three engines, for ops on tagged hosts.

    Its servers are its own: its worker would take the runs of other tests.
    """
    image = engines.build(ENGINES["default"], tmp_path_factory.mktemp("image"))
    with (
        own_redis(tmp_path_factory) as redis_url,
        routed_world.opened(
            tmp_path_factory.mktemp("dagster"), ENGINES, image, make_database("migrated"),
            make_database("empty"), redis_url, s3_settings,
        ) as opened,
    ):  # fmt: skip
        yield opened
