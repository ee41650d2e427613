"""The jobs that keep the house, and the training of the demo's model."""

from pathlib import Path

import pytest
from dagster import Definitions, materialize
from uuid_utils.compat import uuid7

from assets import digits_diffusion_training
from ops.maintenance import retention
from resources import BuildingResource
from tests.integration.dagster.conftest import World
from vyvo_dagster.building.weights import local_weights
from vyvo_dagster.domain.build import BuildState


def test_retention_removes_scratch_of_ended_builds_only(world: World, tmp_path: Path) -> None:
    world.building = BuildingResource(
        data_dir=str(tmp_path), registry="127.0.0.1:5000", base_image="vyvo/base:bookworm"
    )
    running, ended = world.add_build(None, "1"), world.add_build(None, "2")
    world.store.call(lambda db: db.builds.move(ended.id, BuildState.FAILED, log_url="s3://b/k"))
    kept, removed = (world.building.scratch(str(build.id)) for build in (running, ended))
    unknown, foreign = world.building.scratch(str(uuid7())), tmp_path / "builds" / "no-uuid"
    foreign.mkdir()
    job = Definitions(jobs=[retention], resources=world.resources).resolve_job_def("retention")
    assert job.execute_in_process(instance=world.instance).success
    assert kept.is_dir()
    assert foreign.is_dir()
    assert not removed.exists()
    assert not unknown.exists()


def test_training_stores_measured_weights(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = materialize(
        [digits_diffusion_training],
        instance=world.instance,
        resources=world.resources,
        run_config={"ops": {"digits_diffusion_training": {"config": {"epochs": 60, "seed": 1}}}},
    )
    (made,) = result.asset_materializations_for_node("digits_diffusion_training")
    told = {name: value.value for name, value in made.metadata.items()}
    with capsys.disabled():
        print(f"\ntraining: {told['accuracy']:.1%} right after {told['train_seconds']} s")
    assert told["accuracy"] >= 0.95
    path = local_weights(
        str(told["weights_uri"]), str(told["sha256"]), world.objects.store(), tmp_path
    )
    assert path.stat().st_size == told["size_bytes"]
